"""The module as a whole: it stands alone, stays small, and changes nothing that is not its own."""

import ast
import re
import shutil
from pathlib import Path

import pytest
from helpers import finished, good, names, run
from lessons import NOTEBOOKS, cells

import diffusion_utils
from diffusion_utils import ROOT

CORE = Path(diffusion_utils.__file__)
LATER = sorted(path for path in (ROOT / "diffusion_course").glob("*.py") if path.stem != "__init__")
SIBLINGS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("[a-z]*/*.py")}


# Alone ----------------------------------------------------------------------------------


def test_one_file_is_enough(tmp_path):
    """Copied into an empty folder it loads images, trains, saves, loads and draws."""
    shutil.copy(CORE, tmp_path)
    (tmp_path / "photos").mkdir()
    good(tmp_path / "photos", 8)
    program = """
import os, sys
from pathlib import Path
import torch
from diffusion_utils import CPU_RECIPE, Diffusion, DiffusionConfig, Training, generate, get_data, get_loader, show
import diffusion_utils
assert Path(diffusion_utils.__file__).parent == Path.cwd() and "diffusion_course" not in sys.modules
data = get_data("photos", size=8)
assert data.shape == (8, 3, 8, 8)
diffusion = Diffusion(DiffusionConfig(8, (8, 16), 1))
assert [*Training(diffusion, get_loader(data, 4), **CPU_RECIPE | dict(epochs=2))] == [1, 2, 3, 4]
diffusion.save_pretrained("model")
again = Diffusion.from_pretrained("model")
images = generate(again, n=3, steps=2, seed=0)
assert torch.equal(images, generate(diffusion.cpu(), n=3, steps=2, seed=0))
show(images, path="drawn.png")
print("done")
"""
    (tmp_path / "program.py").write_text(program)
    variables = dict(PYTHONPATH=str(tmp_path), MPLBACKEND="agg", HF_DATASETS_CACHE=str(tmp_path / "cache"))
    process = run(f"import os; os.chdir({str(tmp_path)!r}); exec(open('program.py').read())", **variables)
    assert finished(process).strip().endswith("done")
    assert {"config.json", "model.safetensors"} <= set(names(tmp_path / "model"))
    assert (tmp_path / "drawn.png").stat().st_size > 500


def test_no_notebook_is_needed_and_nothing_is_switched():
    """Where IPython and widgets are missing, it can be imported; and it leaves others' settings alone."""
    program = """
import importlib.abc, sys
missing = {"IPython", "ipywidgets", "notebook", "jupyter", "ipykernel", "jupyterlab", "nbformat"}
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in missing:
            raise ImportError(f"there is no {name}")
sys.meta_path.insert(0, Missing())
import logging, warnings, random
import datasets, torch, numpy as np, torch.optim.swa_utils
import transformers
from accelerate import Accelerator
from matplotlib import pyplot as plt
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_scheduler
from huggingface_hub.utils import are_progress_bars_disabled
def state():
    return (datasets.are_progress_bars_disabled(), are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled(),
            transformers.logging.get_verbosity(), datasets.logging.get_verbosity(), logging.getLogger().level, list(warnings.filters),
            torch.get_num_threads(), torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.get_default_dtype(),
            random.getstate(), np.random.get_state()[1].tolist(), dict(plt.rcParams), torch.backends.cudnn.benchmark)
before = state()
import diffusion_utils
assert all(a == b for a, b in zip(before, state(), strict=True)), [i for i, (a, b) in enumerate(zip(before, state())) if a != b]
assert not missing & {name.split(".")[0] for name in sys.modules}
from helpers import loader, tiny
[*diffusion_utils.Training(tiny(), loader(), epochs=1)]
diffusion_utils.get_data(limit=3, size=8)
after = state()
assert all(before[i] == after[i] for i in range(len(before)) if i not in (8, 11, 12)), [a == b for a, b in zip(before, after)]
print("done")
"""
    assert finished(run(program, MPLBACKEND="agg")).strip().endswith("done")


# Small ----------------------------------------------------------------------------------


def code_of(source):
    """The lines of a module without docstrings, comments and blanks."""
    tree, docstrings = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return [line for i, line in lines if i not in docstrings and line.strip() and line.strip()[0] != "#"]


def test_the_core_is_small():
    """As `ruff format` leaves it; `make style`, with which `make test` begins, sees to that, and that functions are simple."""
    assert len(code_of(CORE.read_text(encoding="utf-8"))) <= 300


# Who imports whom -----------------------------------------------------------------------


def imports(source):
    """What a program imports, wherever in it: (module, name), with "" for a module as a whole."""
    pairs = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            pairs += [(node.module, alias.name) for alias in node.names]
    return pairs


def ours(path):
    """The modules of the course that a file imports, by their full names."""
    pairs = imports(path.read_text(encoding="utf-8"))
    full = {f"{module}.{name}" if module == "diffusion_course" else module for module, name in pairs}
    return {name for name in full if name.split(".")[0] in SIBLINGS}


def test_the_core_imports_no_sibling():
    assert {"diffusion_utils", "train", "diffusion_course", "tests", "benchmarks", "tools"} <= SIBLINGS
    assert not ours(CORE)


@pytest.mark.parametrize("path", LATER, ids=lambda path: path.stem)
def test_who_imports_whom(path):
    """A later file imports the core, at most one other of its kind, and what that one imports, also through others.

    quality.py also has the program that draws the faces draw faulty ones.
    """
    others = ours(path) - {"diffusion_utils"} - ({"data"} if path.stem == "quality" else set())
    assert others <= {f"diffusion_course.{other.stem}" for other in LATER if other != path}
    for one in others:
        chain = {one}
        for _ in LATER:
            chain |= set().union(*(ours(CORE.parent / f"{name.replace('.', '/')}.py") for name in chain))
            chain &= {f"diffusion_course.{other.stem}" for other in LATER}
        if others <= chain:
            return
    assert not others, f"{path.name} imports {others}, none of which imports the others"


def test_nobody_imports_in_a_circle():
    after = {f"diffusion_course.{path.stem}": ours(path) - {"diffusion_utils"} for path in LATER}
    while after:
        free = {name for name, needs in after.items() if not needs & after.keys()}
        assert free, after
        after = {name: needs for name, needs in after.items() if name not in free}


# Names ----------------------------------------------------------------------------------

OLD_WORDS = {  # what these things were called before they got the field's names
    "told", "asked", "wish", "Bag", "Sentence", "ToldResidual", "ToldUNet", "Conditional", "Asked", "strength", "avoid",
    "leave_out", "Coder", "codes_of", "pictures_of", "answer", "Answering", "ask", "karras",
}  # fmt: skip


def programs():
    """The source of every program of the course, lessons too, by a name for it."""
    for path in sorted(ROOT.glob("*.py")) + sorted(ROOT.glob("[a-z]*/*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        code = "\n".join(cell.source for cell in cells(path, "code"))
        yield path.relative_to(ROOT).as_posix(), re.sub(r"(?m)^( *)%.*$", r"\1pass", code)


def identifiers(source):
    """All names in a program: variables, attributes, arguments, functions and classes."""
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(getattr(node, field, None), str):
                yield getattr(node, field)


@pytest.mark.parametrize("path", [CORE, *LATER], ids=lambda path: path.stem)
def test_no_name_of_ours_is_private(path):
    """Each is taught, or is no name of ours: `_init_weights` is a hook of transformers."""
    kinds = ast.FunctionDef, ast.ClassDef
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = [node.name for node in nodes if isinstance(node, kinds)]
    private = [name for name in names if name.startswith("_") and not name.startswith("__")]
    assert set(private) <= {"_init_weights"}


def test_nobody_imports_what_is_private():
    for path, source in programs():
        ours = [name for module, name in imports(source) if module.split(".")[0] in SIBLINGS]
        assert not [name for name in ours if name.startswith("_")], path


def test_no_old_word_is_left():
    for path, source in programs():
        assert not OLD_WORDS & set(identifiers(source)), path


# What tests may do ----------------------------------------------------------------------


def test_no_test_imports_another():
    """What they share is in helpers.py."""
    for path in (ROOT / "tests").glob("*.py"):
        modules = [name for name, _ in imports(path.read_text("utf-8"))]
        assert not [name for name in modules if name.startswith("test_")], path.name


def test_no_test_replaces_what_has_a_socket():
    for path in (ROOT / "tests").glob("*.py"):
        replaced = set(re.findall(r"setattr\([^()]*?, \"(\w+)\"", path.read_text("utf-8")))
        assert not replaced & {"AdamW", "take_step", "l1_loss", "adamw"}, path.name
