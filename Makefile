# `make help` lists the targets. With another Python: PYTHON=python3.12 make lab

PYTHON ?= python3
BIN := .venv/bin
# Two processes of one thread do more than one of two. A file stays whole, and the files in their order.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
COVERAGE := --cov=diffusion_utils --cov=diffusion_course --cov-report=term-missing --cov-fail-under=95
# The site's packages from npm; tests that need them are skipped where there is no npm.
NPM_PACKAGES := $(if $(shell command -v npm),web/node_modules/.package-lock.json)
ROOT_USER := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab help test style format sync lessons tables faces images site serve address test-oldest test-newest

lab: .venv/for-lessons  ## start the course in JupyterLab
	$(BIN)/jupyter lab $(ROOT_USER) notebooks/00_introduction.ipynb

help:  ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+.*:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

test: style $(NPM_PACKAGES)  ## run all tests, every lesson included
	$(BIN)/python $(PYTEST) $(COVERAGE)

style: .venv/for-tests  ## see whether all files are written in one style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/for-tests  ## write all files in that style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sync: .venv/for-tests  ## copy the modules' definitions into the lessons that build them, and collapse imports
	$(BIN)/python tools/sync.py

lessons: sync  ## run all lessons, and keep what they print and plot
	$(BIN)/python tools/run_lessons.py
	$(BIN)/python tools/tables.py

tables: .venv/for-tests  ## write the tables in the README again
	$(BIN)/python tools/tables.py

faces: .venv/for-tests  ## draw the data set and its sheets again
	$(BIN)/python data/draw_toy_faces.py
	$(BIN)/python data/draw_toy_faces.py --sheet images/toy_faces.png
	$(BIN)/python tools/smaller.py images/toy_faces.png

images: .venv/for-tests  ## draw the other pictures again, with the models that ship
	$(BIN)/python tools/make_images.py

site: .venv/for-tests web/node_modules/.package-lock.json  ## make the web site: the page that draws, and the lessons
	$(BIN)/python tools/make_site.py

serve: site  ## make the web site, and serve it on this machine
	$(BIN)/python tools/serve.py

address: .venv/for-tests  ## change the public address in badges and cells: make address REPO=owner/name
	$(BIN)/python tools/address.py $(REPO)

test-oldest: .venv-oldest/installed $(NPM_PACKAGES)  ## run all tests with the oldest versions that the requirements allow
	.venv-oldest/bin/python $(PYTEST)

test-newest: .venv-newest/installed $(NPM_PACKAGES)  ## run all tests with the newest versions
	.venv-newest/bin/python $(PYTEST)

test test-oldest test-newest: export OMP_NUM_THREADS := 1
# Linux: keep freed memory for the next step of a training run, instead of fetching it anew from the system.
test test-oldest test-newest: export MALLOC_MMAP_MAX_ := 0
test test-oldest test-newest: export MALLOC_TRIM_THRESHOLD_ := 4000000000

web/node_modules/.package-lock.json: web/package-lock.json
	npm ci --prefix web --ignore-scripts --no-audit --no-fund
	touch $@

# The environments: .venv with what a reader needs, or with the tests' packages too ----------

.venv/for-lessons: requirements.txt constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python is older than 3.10; name a newer one: make PYTHON=python3.12 lab')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@

.venv/for-tests: .venv/for-lessons requirements-tests.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-tests.txt --constraint constraints.txt
	touch $@

.PHONY: .venv-oldest/installed .venv-newest/installed # there may be newer ones since
.venv-oldest/installed:
	$(PYTHON) -m venv .venv-oldest
	$(PYTHON) tools/oldest.py > .venv-oldest/oldest.txt
	.venv-oldest/bin/python -m pip install --quiet --requirement requirements-tests.txt --constraint .venv-oldest/oldest.txt
.venv-newest/installed:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --requirement requirements-tests.txt
