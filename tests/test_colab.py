"""The first cell of each lesson on Colab: a stand-in for Colab, and git sent to a copy of this folder."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import address
import colab
import nbformat
import pytest
from lessons import LESSONS, NOTEBOOKS, ROOT
from sync import FIRST_CELL


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables that make a process think it is on Colab, and git fetch from here."""
    folder = tmp_path_factory.mktemp("colab")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(command, cwd=ROOT, text=True).splitlines():
        (folder / "origin" / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / "origin" / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in ("init -q", "add -A", "commit -qm course", f"tag {address.course()['version']}"):
        subprocess.run([*git, *command.split()], cwd=folder / "origin", check=True)
    (folder / "stub" / "google" / "colab").mkdir(parents=True)
    (folder / "stub" / "google" / "colab" / "__init__.py").write_text("")
    (folder / "stub" / "sitecustomize.py").write_text("import google.colab\n")
    return {
        "PYTHONPATH": str(folder / "stub"),
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{(folder / 'origin').as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{address.course()['repository']}",
    }


def test_the_first_cell_on_colab(environment, tmp_path):
    """In an empty folder, twice, as after an impatient second click; then the lesson goes on."""
    look = "import diffusion_utils, diffusion_course.toy\nprint(diffusion_utils.__file__, os.getcwd(), sep='\\n')"
    program = f"{FIRST_CELL}\n{FIRST_CELL}\n{look}"
    command, variables = [sys.executable, "-c", program], {**os.environ, **environment}
    result = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    module, folder = map(Path, result.stdout.splitlines()[-2:])
    course = tmp_path / "course"
    assert folder == course / "notebooks" and (folder / module).resolve() == course / "diffusion_utils.py"
    assert list(tmp_path.iterdir()) == [course]


@pytest.fixture
def on_colab(tmp_path, monkeypatch):
    """Run the first cell as often as asked; `fails` says which programs do, and what they leave."""

    def run_cell(times, fails):
        calls = []
        monkeypatch.setitem(sys.modules, "google.colab", sys)

        def run(command, check):
            program = Path(command[-1]).name if command[0] != "git" else "git"
            calls.append((program, fails(program, len(calls))))
            if program == "git":
                for part in ("notebooks", "tools"):
                    (Path(command[-1]) / part).mkdir(parents=True)
                if not calls[-1][1]:
                    (Path(command[-1]) / "diffusion_utils.py").write_text("")
            if calls[-1][1]:
                raise subprocess.CalledProcessError(1, command)

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", sys.path[:])
        for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            monkeypatch.setenv(name, "1")
        monkeypatch.setattr(subprocess, "run", run)
        for _ in range(times):
            try:
                exec(FIRST_CELL, {})
            except subprocess.CalledProcessError:
                pass
        return [program for program, _ in calls], Path.cwd().relative_to(tmp_path).as_posix()

    return run_cell


@pytest.mark.parametrize("fails, programs, place", [
    (lambda program, n: program == "colab.py", ["git", "colab.py", "colab.py"], "."),
    (lambda program, n: program == "colab.py" and n < 2, ["git", "colab.py", "colab.py"], "course/notebooks"),
    (lambda program, n: n < 1, ["git", "git", "colab.py"], "course/notebooks"),
])  # fmt: skip
def test_what_failed_is_tried_again(on_colab, tmp_path, fails, programs, place):
    """And the cell does not pass without it. A torn clone never gets the name under which it would be used."""
    assert on_colab(2, fails) == (programs, place)
    assert (tmp_path / "course" / "diffusion_utils.py").exists()
    assert not (tmp_path / "course" / "notebooks" / "course").exists()


def test_elsewhere_the_cell_does_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", FIRST_CELL], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


# What gets installed ---------------------------------------------------------------------


def test_nothing_is_installed_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)  # would fail if called
    colab.main()


def test_torch_and_numpy_stay_as_they_are(monkeypatch):
    real, calls = importlib.metadata.version, []

    def version(name):
        if name == "datasets":
            raise importlib.metadata.PackageNotFoundError(name)
        return "4.50.0" if name == "transformers" else real(name)

    def run(command, check):
        calls.append((command, open(command[command.index("--constraint") + 1]).read()))

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", run)
    colab.main()
    ((command, constraints),) = calls
    asked_for = [re.match(r"[a-z]+(?=>=)", word) for word in command]
    assert [match[0] for match in asked_for if match] == ["datasets", "transformers"]
    assert constraints.split() == [f"torch=={real('torch')}", f"numpy=={real('numpy')}"]


# The address -----------------------------------------------------------------------------

WITH_ADDRESS = ("README.md", "pyproject.toml", "web/field/index.html", "tools/first_cell.py", "web/index.html",
                "notebooks/00_introduction.ipynb")  # fmt: skip


def test_one_address_everywhere():
    settings = address.course()
    repository, version = settings["repository"], settings["version"]
    assert f"https://github.com/{repository}" in FIRST_CELL and f"--branch={version}" in FIRST_CELL
    colab_site = "https://colab.research.google.com"
    for path in NOTEBOOKS:
        top = nbformat.read(path, as_version=4).cells[0].source
        place = f"{colab_site}/github/{repository}/blob/{version}/notebooks/{path.name}"
        assert f"[![Open in Colab]({colab_site}/assets/colab-badge.svg)]({place})" in top
    page = (ROOT / "web" / "index.html").read_text(encoding="utf-8")
    place = f"{colab_site}/github/{repository}/blob/{version}/notebooks/{LESSONS[0].name}"
    assert f'href="{place}"' in page and f'href="https://github.com/codespaces/new/{repository}"' in page


def test_dev_container():
    """It sets up with a target that make has, and opens a lesson that is there."""
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8")
    settings = json.loads(re.sub(r"(?m)(^| )//.*", "", text))
    make, target = settings["onCreateCommand"].split()
    assert make == "make" and f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert settings["customizations"]["codespaces"]["openFiles"] == [f"notebooks/{LESSONS[0].name}"]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """The files with the address, to be rewritten without harm; and other repositories, whose names begin alike."""
    for name in WITH_ADDRESS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    old = address.course()["repository"]
    others = f"github.com/{old}-more github.com/{old}.io github.com/x{old} github.com/a/bigger-project"
    with open(tmp_path / "README.md", "a", encoding="utf-8") as readme:
        readme.write(f"\n{others} https://github.com/{old}. https://github.com/{old}/blob/v1")
    monkeypatch.setattr(address, "ROOT", tmp_path)
    monkeypatch.setattr(address, "PROJECT", tmp_path / "pyproject.toml")
    return others


def test_make_address_twice(tmp_path, elsewhere):
    old = address.course()["repository"]
    last = f"\n{elsewhere} https://github.com/c/dig. https://github.com/c/dig/blob/v1"
    for new in ("a/big", "c/dig"):
        address.rewrite(new)
    assert address.course()["repository"] == "c/dig"
    for name in WITH_ADDRESS:
        text = (tmp_path / name).read_text(encoding="utf-8").removesuffix(last)
        assert old not in text and old.replace("/", ".github.io/") not in text
    for name in WITH_ADDRESS[3:]:
        assert "github.com/c/dig" in (tmp_path / name).read_text(encoding="utf-8")
    nbformat.validate(nbformat.read(tmp_path / WITH_ADDRESS[-1], as_version=4))
    assert (tmp_path / "README.md").read_text(encoding="utf-8").endswith(last)


@pytest.mark.parametrize("nonsense", ["nonsense", "../..", "a/..", "./a", "a/b/c", "", "a b/c", "a/b\n"])
def test_no_address(elsewhere, nonsense):
    old = address.course()
    with pytest.raises(SystemExit, match="REPO: .* is not of the form owner/name"):
        address.rewrite(nonsense)
    assert address.course() == old


@pytest.mark.parametrize("arguments", [[], ["a/b", "c/d"]])
def test_make_address_without_an_address(arguments):
    command = [sys.executable, str(ROOT / "tools" / "address.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.strip() == "REPO is missing: make address REPO=owner/name"
