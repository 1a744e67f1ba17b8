"""All lessons: as files, and against the modules.

nbval runs each lesson as a reader would, and after_lesson.py then moves its sliders and solves its
exercises; the tests here look at what neither can see.
"""

import ast
import json
import re
import subprocess
import sys

import make_images
import nbformat
import pytest
import sync
from lessons import CORE, LESSONS, MODULES, ROOT, cells
from PIL import Image, ImageChops

NAMES = [path.stem for path in LESSONS]
lesson = pytest.mark.parametrize("path", LESSONS, ids=NAMES)
module = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)


def code_lines(path):
    """The lines of a lesson's code cells, one list for each cell."""
    return [cell.source.splitlines() for cell in cells(path, "code")]


def prose(path):
    return "\n".join(cell.source for cell in cells(path, "markdown"))


def test_the_lessons_are_there():
    assert [name[:2] for name in NAMES] == [f"{i:02}" for i in range(len(NAMES))] and len(NAMES) >= 6


def test_the_modules_are_found():
    """All lessons begin with the same cell; after it the imports work from both folders."""
    assert {cells(path, "code")[0].source for path in LESSONS} == {sync.FIRST_CELL}, "run make sync"
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in MODULES]
    look = "from importlib.util import find_spec\nprint(*(find_spec(n).origin for n in {}), sep='\\n')"
    program = f"{sync.FIRST_CELL}\n{look.format(names)}"
    for folder in (ROOT, ROOT / "notebooks"):
        result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
        found = [(folder / line).resolve() for line in result.stdout.splitlines()]
        assert found == MODULES, result.stderr


# As files -------------------------------------------------------------------------------


@lesson
def test_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 1.5e6


@lesson
def test_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


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
    lengths = [sum(bool(line.strip()) for line in lines) for lines in code_lines(path)]
    assert max(lengths) <= 30
    assert sum(lengths) / len(lengths) <= 9


def test_short_lessons():
    """The two that grow whenever nobody looks: getting the data, and the training."""
    one, four = (sum(map(len, code_lines(LESSONS[number]))) for number in (1, 4))
    assert one <= 190 and four <= 260
    assert len(prose(LESSONS[4]).split()) <= 1800


@lesson
def test_widgets_can_be_shown(path):
    widgets = nbformat.read(path, as_version=4).metadata.get("widgets")
    if widgets is not None:  # GitHub shows no notebook at all when this key is missing
        assert widgets["application/vnd.jupyter.widget-state+json"]["state"]


@lesson
def test_shape_of_a_lesson(path):
    text = prose(path)
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
    text = prose(path)
    for target in re.findall(r"\]\((?!https:)([^)#]+\.ipynb)\)", text):
        assert (path.parent / target).exists(), target
    order = NAMES.index(path.stem)
    for neighbour in NAMES[max(0, order - 1) : order] + NAMES[order + 1 : order + 2]:
        assert f"({neighbour}.ipynb)" in text, neighbour


@lesson
def test_picture_in_the_readme(path):
    picture = Image.open(ROOT / "images" / f"{path.stem}.png").convert("RGB")
    assert ImageChops.difference(picture, make_images.cover(path)).getbbox() is None, "run make images"
    assert f"images/{path.stem}.png" in (ROOT / "README.md").read_text(encoding="utf-8")


# Against the modules --------------------------------------------------------------------


def definitions(module):
    """The public definitions of a module in their order: {name: number of the lesson that it names}."""
    return {name: sync.number(node) for name, (node, *_) in sync.public(module.read_text("utf-8")).items()}


def defined_in():
    """Where each function and class is defined at top level: {name: [number of a lesson, ...]}."""
    found = {}
    for path in LESSONS:
        for name in [name for cell in cells(path, "code") for name in sync.public(cell.source)]:
            found.setdefault(name, []).append(path.stem[:2])
    return found


def test_cells_equal_their_modules():
    assert sync.main(check=True) == [], "run make sync"


@module
def test_each_definition_is_built_in_one_lesson(module):
    """Which is the one that its docstring names, and no other has a thing of that name."""
    built = defined_in()
    for name, number in definitions(module).items():
        assert built.get(name) == [number], f"{name} is built in {built.get(name)}, not once in {number}"


@module
def test_a_module_follows_the_lessons(module):
    """The core those from 01 to 05, each other module a lesson of its own; all are in its docstring."""
    names, about = definitions(module), ast.get_docstring(ast.parse(module.read_text("utf-8")))
    numbers = list(names.values())
    assert numbers == sorted(numbers)
    assert set(numbers) == ({"01", "02", "03", "04", "05"} if module == CORE else {numbers[0]})
    assert all(re.search(rf"\b{name}\b", about) for name in names)
    assert all(f"Lesson {number}" in about for number in numbers)


def test_later_modules_have_later_lessons_of_their_own():
    own = [next(iter(definitions(module).values())) for module in MODULES if module != CORE]
    assert len(set(own)) == len(own) and min(own) > "05"


def test_no_training_is_written_again():
    """Lesson 04 builds the training; all others use its loop, with losses of their own."""
    for path in LESSONS:
        if path != LESSONS[4]:
            text = "\n".join(cell.source for cell in cells(path, "code"))
            assert "optimizer.step(" not in text and ".zero_grad(" not in text, path.stem
