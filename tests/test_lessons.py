"""All lessons: as files, against the module, their sliders, and the solutions of their exercises.

nbval runs each lesson as a reader would; the tests here look at what it cannot see.
"""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import ipywidgets
import nbformat
import pytest
from matplotlib import pyplot as plt
from PIL import Image, ImageChops

import diffusion_utils
from diffusion_utils import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import make_images  # noqa: E402

LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in LESSONS]
MODULE = Path(diffusion_utils.__file__)
MODULES = [path for path in sorted(ROOT.glob("*.py")) if path.stem != "train"]
lesson = pytest.mark.parametrize("path", LESSONS, ids=NAMES)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def test_the_lessons_are_there():
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(len(NAMES))] and len(NAMES) >= 6


def test_the_module_is_found():
    """All lessons begin with the same cell; after it the import works from both folders."""
    (first,) = {cells(path, "code")[0].source for path in LESSONS}
    for folder in (ROOT, ROOT / "notebooks"):
        program = f"{first}\nimport diffusion_utils\nprint(diffusion_utils.__file__)"
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


# Sliders and solutions ------------------------------------------------------------------

TRAINING = "history = train(diffusion, loader, **recipe"
# Lesson 04 trains for minutes, and nbval does that. Here its model is the one it has shipped.
SHIPPED = "diffusion = diffusion_utils.Diffusion.from_pretrained(diffusion_utils.TOY_MODEL)"


def steps_of(path):
    """The code of a lesson in order. Between a training cell and the exercises, all is left out."""
    out, skipping = [], False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## On your own"):
            skipping = False
        if cell.cell_type == "code" and TRAINING in cell.source:
            skipping = True
            out.append(("code", SHIPPED))
        elif not skipping:
            out.append((cell.cell_type, cell.source))
    return out


def solve(steps):
    """Put each solution in place of the exercise cell before it. Returns code, and their number."""
    out, number = [], 0
    for kind, source in steps:
        if kind == "markdown" and "<summary>Solution</summary>" in source:
            solution = re.search(r"```python\n(.*?)```", source, re.S)[1]
            check = out.pop()
            out[-1] = solution
            out.append(check)
            number += 1
        elif kind == "code":
            out.append(source)
    return out, number


@pytest.fixture
def sliders(monkeypatch, tmp_path):
    """Run code as a notebook would, but on paper, and keep each `interact`."""
    seen = []

    def interact(function, **controls):
        seen.append((function, controls))
        function(**{name: control.value for name, control in controls.items()})

    monkeypatch.setattr(ipywidgets, "interact", interact)
    monkeypatch.setattr(plt, "show", lambda **options: plt.close("all"))
    monkeypatch.chdir(tmp_path)
    return seen


def ends_and_middle(control):
    if hasattr(control, "options"):
        values = [option[1] if isinstance(option, tuple) and len(option) == 2 and isinstance(option[0], str) else option
                  for option in control.options]  # fmt: skip
        return [values[0], values[len(values) // 2], values[-1]]
    middle = (control.min + control.max) / 2
    return [control.min, type(control.value)(middle), control.max]


@lesson
def test_sliders_and_solutions(path, sliders, capsys):
    source, exercises = solve(steps_of(path))
    namespace = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        for step in source:
            exec(compile(step, path.name, "exec"), namespace)
        for function, controls in sliders:
            for name, control in controls.items():
                for value in ends_and_middle(control):
                    others = {other: widget.value for other, widget in controls.items()}
                    function(**{**others, name: value})
    output = capsys.readouterr().out
    assert exercises >= (1 if path.stem.startswith("00") else 3)
    assert output.count(": correct.") == exercises and "waiting for you" not in output
    assert all(control.continuous_update is False for _, controls in sliders for control in controls.values()
               if hasattr(control, "continuous_update"))  # fmt: skip
    assert os.getcwd() != str(ROOT)
