"""All lessons, and the page of help: as files, and against the modules.

nbval runs each lesson as a reader would, and after_lesson.py then moves its sliders and solves its
exercises; the tests here look at what neither can see.
"""

import json
import re
import subprocess
import sys

import make_images
import nbformat
import pytest
import sync
from lessons import CORE, HELP, LESSONS, MODULES, NOTEBOOKS, ROOT, cells
from PIL import Image, ImageChops, ImageStat

NAMES = [path.stem for path in LESSONS]
lesson = pytest.mark.parametrize("path", LESSONS, ids=NAMES)
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
module = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)


def code_lines(path):
    """The lines of a lesson's code cells, one list for each cell."""
    return [cell.source.splitlines() for cell in cells(path, "code")]


def prose(path):
    return "\n".join(cell.source for cell in cells(path, "markdown"))


def test_the_lessons_are_there():
    assert [name[:2] for name in NAMES] == [f"{number:02}" for number in range(20)]


def test_the_modules_are_found():
    """All notebooks begin with the same cell; after it the imports work from both folders."""
    assert {cells(path, "code")[0].source for path in NOTEBOOKS} == {sync.FIRST_CELL}, "run make sync"
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in MODULES]
    look = "from importlib.util import find_spec\nprint(*(find_spec(n).origin for n in {}), sep='\\n')"
    program = f"{sync.FIRST_CELL}\n{look.format(names)}"
    for folder in (ROOT, ROOT / "notebooks"):
        result = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
        found = [(folder / line).resolve() for line in result.stdout.splitlines()]
        assert found == MODULES, result.stderr


# As files -------------------------------------------------------------------------------


@notebook
def test_valid_and_small(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < 1.5e6


@notebook
def test_executed_from_top_to_bottom(path):
    counts = [cell.execution_count for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


@notebook
def test_outputs(path):
    for cell in cells(path, "code"):
        for output in cell.outputs:
            text = json.dumps(output)
            assert output.output_type != "error"
            assert output.get("name") != "stderr", text[:300]
            assert not re.search(r"/(root|home|work|tmp|Users)/|[A-Z]:\\\\", text), text[:300]
            assert len(output.get("text", "").splitlines()) < 60


@notebook
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


def anchors(path):
    """What a link can lead to in a notebook: its headings, as JupyterLab and GitHub name them."""
    return {heading.replace(" ", "-") for heading in re.findall(r"(?m)^#+ (.+)$", prose(path))}


@notebook
def test_links_lead_somewhere(path):
    for target, place in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", prose(path)):
        target = path.parent / target if target else path
        assert target.exists(), target
        assert not place or place in anchors(target), place


@lesson
def test_links_between_lessons(path):
    text, order = prose(path), NAMES.index(path.stem)
    for neighbour in NAMES[max(0, order - 1) : order] + NAMES[order + 1 : order + 2]:
        assert f"({neighbour}.ipynb)" in text, neighbour


def as_saved(picture, file):
    """Whether a picture is what `make images` saved, but for what its palette has changed."""
    saved = Image.open(file).convert("RGB")
    return (
        saved.size == picture.size and ImageStat.Stat(ImageChops.difference(saved, picture)).mean < [10] * 3
    )


@lesson
def test_picture_in_the_readme(path):
    assert as_saved(make_images.cover(path), ROOT / "images" / f"{path.stem}.png"), "run make images"
    assert f"images/{path.stem}.png" in (ROOT / "README.md").read_text(encoding="utf-8")


# The page of help -----------------------------------------------------------------------


def sections():
    """The sections of the page of help below its table: {heading: cells}."""
    found, heading = {}, None
    for cell in nbformat.read(HELP, as_version=4).cells:
        for part in re.split(r"(?m)^(?=## )", cell.source) if cell.cell_type == "markdown" else [cell]:
            if isinstance(part, str) and part.startswith("## "):
                heading = part.splitlines()[0][3:]
            found.setdefault(heading, []).append(part)
    return found


def test_help_makes_each_fault_and_mends_it():
    """Each line of the table leads to a section that says why, says what to do, and proves it."""
    top = cells(HELP, "markdown")[0].source
    links = re.findall(r"(?m)^\|.*\| \[(.+)\]\(#(.+)\) \|$", top)
    assert len(links) >= 10 and [heading for heading, _ in links] == [
        heading for heading in sections() if heading and not heading.startswith(("Network", "Still"))
    ]
    for heading, parts in sections().items():
        if heading in dict(links):
            text = "\n".join(part for part in parts if isinstance(part, str))
            code = "\n".join(part.source for part in parts if not isinstance(part, str))
            assert "**Why" in text and "**What to do" in text and "assert " in code, heading


def test_help_shows_its_faults_at_the_top():
    top = cells(HELP, "markdown")[0].source
    faults = {name: picture for name, picture in make_images.covers().items() if name.startswith("fault_")}
    assert len(faults) >= 6
    assert set(re.findall(r"\((../images/fault_.*?)\)", top)) == {f"../images/{name}" for name in faults}
    for name, picture in faults.items():
        assert as_saved(picture, ROOT / "images" / name), "run make images"


@pytest.mark.parametrize(
    "name",
    ["README.md", *[f"notebooks/{name}.ipynb" for name in NAMES if name[:2] in ("00", "04", "05", "10")]],
)
def test_help_is_found(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "it_does_not_work.ipynb" in (text[:5000] if name == "README.md" else text)


# Pictures of one's own ------------------------------------------------------------------


def test_lesson_04_with_other_pictures(tmp_path, monkeypatch):
    """A folder of forty, no test set: lesson 04 gets to its end, and takes as many steps as with the faces."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(40):
        Image.new("RGB", (16, 16), (6 * number, 255 - 6 * number, 90)).save(pictures / f"{number}.png")
    code = "\n".join(cell.source for cell in cells(LESSONS[4], "code")[1:])
    assert code.count("source = TOY_FACES") == 1
    assert code.count('"epochs": 40') == code.count('recipe["epochs"] = 16') == 1
    short = "CPU_SHAPE = dict(image_size=16, widths=(8, 16), block_depth=1)"
    code = code.replace("cuda = torch.cuda.is_available()", f"cuda = False\n{short}")
    code = code.replace('"epochs": 40', '"epochs": 1').replace(
        'recipe["epochs"] = 16', 'recipe["epochs"] = 1'
    )
    code = code.replace("source = TOY_FACES", f"source = {str(pictures)!r}")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "lesson 04", "exec"), names)
    assert len(names["loader"]) == 1 and names["recipe"]["epochs"] == 75
    assert (tmp_path / "my_model" / "model.safetensors").exists()


# Against the modules --------------------------------------------------------------------


def definitions(module):
    """The public definitions of a module in their order: {name: number of the lesson that it names}."""
    return {name: sync.number(node) for name, (node, *_) in sync.public(module.read_text("utf-8")).items()}


def defined_in():
    """Where each function and class is defined at top level: {name: [number of a lesson, ...]}."""
    found = {}
    for path in LESSONS:
        sources = [cell.source for cell in cells(path, "code")]
        parted = sync.in_parts(sources)
        names = [name for source in sources for name in sync.public(source)]
        for name in [name for name in names if name not in parted] + [*parted]:
            found.setdefault(name, []).append(path.stem[:2])
    return found


def test_a_class_in_parts_is_whole():
    """All methods of a class that is built in several cells stand in one of them."""
    source = CORE.read_text(encoding="utf-8")
    sources = [cell.source for cell in cells(LESSONS[4], "code")]
    parted = sync.in_parts(sources)
    assert parted == {"Diffusion", "Training"}
    for name in parted:
        built = [sync.methods(sync.public(text)[name][0]) for text in sources if name in sync.public(text)]
        names = [method for part in built for method in part]
        assert sorted(names) == sorted(sync.methods(sync.public(source)[name][0]))


@notebook
def test_cells_are_short(path):
    """At most 30 lines that are not empty."""
    for lines in code_lines(path):
        assert len([line for line in lines if line.strip()]) <= 30, lines[0]


def test_cells_equal_their_modules():
    assert sync.main(check=True) == [], "run make sync"


@module
def test_each_definition_is_built_in_one_lesson(module):
    """Which is the one that its docstring names, and no other has a thing of that name."""
    built = defined_in()
    for name, number in definitions(module).items():
        assert built.get(name) == [number], f"{name} is built in {built.get(name)}, not once in {number}"


def test_the_core_follows_the_lessons():
    numbers = list(definitions(CORE).values())
    assert numbers == sorted(numbers) and set(numbers) == {"01", "02", "03", "04", "05"}


def test_no_training_loop_is_written_again():
    """Lesson 04 builds it; all others use it, with losses of their own, but for the probe of one layer in lesson 08."""
    for path in NOTEBOOKS:
        if path not in (LESSONS[4], LESSONS[8]):
            text = "\n".join(cell.source for cell in cells(path, "code"))
            assert "optimizer.step(" not in text and ".zero_grad(" not in text, path.stem
