"""All lessons: as files, and against the modules.

nbval runs each lesson as a reader would, and conftest.py then moves its sliders and solves its
exercises; the tests here look at what neither can see.
"""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from PIL import Image, ImageChops

import diffusion_utils
from diffusion_utils import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import make_images  # noqa: E402

LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in LESSONS]
MODULE = Path(diffusion_utils.__file__)
MODULES = [path for path in sorted(ROOT.glob("*.py")) if path.stem not in ("train", "conftest")]
lesson = pytest.mark.parametrize("path", LESSONS, ids=NAMES)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_the_lessons_are_there():
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(len(NAMES))] and len(NAMES) >= 6


def test_the_module_is_found():
    """All lessons begin with the same cell; after it the import works from both folders."""
    (first,) = {cells(path, "code")[0].source for path in LESSONS}
    for folder in (ROOT, ROOT / "notebooks"):
        program = f"{first}\nfrom importlib.util import find_spec\nprint(find_spec('diffusion_utils').origin)"
        result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
        assert Path(result.stdout.strip()).resolve() == MODULE.resolve(), result.stderr


# As files -------------------------------------------------------------------------------


@lesson
def test_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 1.5e6


@lesson
def test_executed_from_top_to_bottom(path):
    assert [cell.execution_count for cell in cells(path, "code")] == list(range(1, len(cells(path, "code")) + 1))


@lesson
def test_outputs(path):
    for cell in cells(path, "code"):
        for output in cell.outputs:
            text = json.dumps(output)
            assert output.output_type != "error"
            assert output.get("name") != "stderr", text[:300]
            assert not re.search(r"/(root|home|work|tmp|Users)/|[A-Z]:\\\\", text), text[:300]
            assert len(output.get("text", "").splitlines()) < 60


@lesson
def test_short_cells(path):
    lengths = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in cells(path, "code")]
    assert max(lengths) <= 30
    assert sum(lengths) / len(lengths) <= 9


@lesson
def test_widgets_can_be_shown(path):
    widgets = nbformat.read(path, as_version=4).metadata.get("widgets")
    if widgets is not None:  # GitHub shows no notebook at all when this key is missing
        assert widgets["application/vnd.jupyter.widget-state+json"]["state"]


@lesson
def test_shape_of_a_lesson(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for heading in ("**What you'll do:**", "**What you'll learn**", "**What you'll need:**", "**Time:**",
                    "## On your own", "## Where to read on"):  # fmt: skip
        assert heading in text, heading
    if not path.stem.startswith("00"):
        assert "**Predict first:**" in text
    assert any("assert " in cell.source for cell in cells(path, "code"))
    exercises = text.count("**Exercise ")
    assert text.count("<summary>Solution</summary>") == exercises >= (1 if path.stem.startswith("00") else 3)


@lesson
def test_links_between_lessons(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\((?!https:)([^)#]+\.ipynb)\)", text):
        assert (path.parent / target).exists(), target
    order = NAMES.index(path.stem)
    for neighbour in NAMES[max(0, order - 1) : order] + NAMES[order + 1 : order + 2]:
        assert f"({neighbour}.ipynb)" in text, neighbour


@lesson
def test_picture_in_the_readme(path):
    picture = Image.open(ROOT / "images" / f"{path.stem}.png")
    assert ImageChops.difference(picture.convert("RGB"), make_images.cover(path)).getbbox() is None, "run make images"
    assert f"images/{path.stem}.png" in (ROOT / "README.md").read_text(encoding="utf-8")


# Against the module ---------------------------------------------------------------------


def definitions(source):
    """Public functions and classes of some source, by name, as syntax trees without docstrings."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            for inner in ast.walk(node):
                body = getattr(inner, "body", None)
                if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                    if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                        del body[0]
            found[node.name] = ast.dump(node)
    return found


def code(path):
    return "\n".join(cell.source for cell in cells(path, "code"))


@pytest.mark.parametrize("module, name", [(path, name) for path in MODULES for name in definitions(path.read_text())])
def test_each_definition_belongs_to_one_lesson(module, name):
    taught = [path.stem for path in LESSONS if name in definitions(code(path))]
    assert len(taught) == 1, f"{name} is defined in {taught}"
    in_lesson = definitions(code(ROOT / "notebooks" / f"{taught[0]}.ipynb"))[name]
    assert in_lesson == definitions(module.read_text())[name], f"{name} differs between {taught[0]} and {module.name}"
    docstring = getattr(importlib.import_module(module.stem), name).__doc__ or ""
    assert f"Lesson {taught[0][:2]}" in docstring, f"the docstring of {name} does not name its lesson"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_follows_the_lessons(module):
    loaded, names = importlib.import_module(module.stem), list(definitions(module.read_text()))
    owners = [re.search(r"Lesson (\d\d)", getattr(loaded, name).__doc__)[1] for name in names]
    assert owners == sorted(owners)
    assert all(name in loaded.__doc__ for name in names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_is_small(module):
    """At most 400 lines of code, without docstrings, comments and blanks."""
    tree = ast.parse(module.read_text())
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [line for i, line in enumerate(module.read_text().splitlines(), 1)
             if i not in docstrings and line.strip() and not line.strip().startswith("#")]  # fmt: skip
    assert len(lines) <= 400
