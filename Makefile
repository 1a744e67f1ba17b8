# make lab      start the course in JupyterLab
# make test     run all tests, every lesson included
# make test-oldest, make test-newest   the same with the oldest and the newest versions that requirements.txt
#               allows, each in an environment of its own; with another Python: PYTHON=python3.10 make test-oldest
# make lessons  run all lessons and keep what they print and plot
# make faces    draw the data set and its sheets again
# make images   draw the other pictures again, with the model that ships
# make site     render README and lessons as web pages in site/
# make address REPO=owner/name   change the public address in badges and cells

PYTHON ?= python3
BIN := .venv/bin
# Two processes of one thread do more than one of two. A file stays whole, and the files in their order.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
ROOT_USER := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test test-oldest test-newest lessons faces images site address

lab: .venv/installed
	$(BIN)/jupyter lab $(ROOT_USER) notebooks/00_introduction.ipynb

test test-oldest test-newest: export OMP_NUM_THREADS := 1
# Linux: keep freed memory for the next step of a training, in place of fetching it anew from the system.
test test-oldest test-newest: export MALLOC_MMAP_MAX_ := 0
test test-oldest test-newest: export MALLOC_TRIM_THRESHOLD_ := 4000000000

test: .venv/installed
	$(BIN)/python $(PYTEST) --cov=diffusion_utils --cov=long_training --cov=quality --cov-report=term-missing --cov-fail-under=95

test-oldest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	$(PYTHON) tools/oldest.py > .venv-$*/oldest.txt
	.venv-$*/bin/python -m pip install --quiet --upgrade --requirement requirements.txt $(if $(filter oldest,$*),--constraint .venv-$*/oldest.txt)
	.venv-$*/bin/python $(PYTEST)

lessons: .venv/installed
	$(BIN)/python tools/run_lessons.py

faces: .venv/installed
	$(BIN)/python data/draw_toy_faces.py
	$(BIN)/python data/draw_toy_faces.py --sheet images/toy_faces.png

images: .venv/installed
	$(BIN)/python tools/make_images.py

site: .venv/installed
	$(BIN)/python tools/make_site.py

address: .venv/installed
	$(BIN)/python tools/address.py $(REPO)

.venv/installed: requirements.txt constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt
	touch $@
