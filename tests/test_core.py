"""The module as a whole: it stands alone, stays small, and changes nothing that is not its own."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import finished, good, names, run

import diffusion_utils
from diffusion_utils import ROOT

CORE = Path(diffusion_utils.__file__)
MORE = sorted(path for path in (ROOT / "diffusion_course").glob("*.py") if path.stem != "__init__")
MODULES = [CORE, *MORE]
SIBLINGS = {path.stem for path in ROOT.glob("*.py")} | {
    path.name for path in ROOT.iterdir() if any(path.glob("*.py"))
}
each = pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)


# Alone ----------------------------------------------------------------------------------


def test_one_file_is_enough(tmp_path):
    """Copied into an empty folder it loads pictures, trains, saves, loads and draws."""
    shutil.copy(CORE, tmp_path)
    (tmp_path / "photos").mkdir()
    good(tmp_path / "photos", 8)
    program = """
import os, sys
from pathlib import Path
import torch
from diffusion_utils import (CPU_RECIPE, Diffusion, DiffusionConfig, generate, get_data, get_loader, show, train)
import diffusion_utils
assert Path(diffusion_utils.__file__).parent == Path.cwd() and not [n for n in sys.modules if n.split(".")[0] == "more"]
data = get_data("photos", size=8)
assert data.shape == (8, 3, 8, 8)
diffusion = Diffusion(DiffusionConfig(8, (8, 16), 1))
history = train(diffusion, get_loader(data, 4), **CPU_RECIPE | dict(epochs=2))
assert len(history["loss"]) == 4
diffusion.save_pretrained("model")
again = Diffusion.from_pretrained("model")
pictures = generate(again, n=3, steps=2, seed=0)
assert torch.equal(pictures, generate(diffusion, n=3, steps=2, seed=0))
show(pictures, path="drawn.png")
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
from helpers import go_on, loader, tiny
batches = loader()
inner, state_before = batches.generator, batches.generator.get_state()
diffusion_utils.train(tiny(), batches, epochs=1)
assert batches.generator is inner and torch.equal(inner.get_state(), state_before) and batches.sampler.generator is inner
diffusion_utils.get_data(limit=3, size=8)
after = state()
assert all(before[i] == after[i] for i in range(len(before)) if i not in (8, 11, 12)), [a == b for a, b in zip(before, after)]
print("done")
"""
    assert finished(run(program, MPLBACKEND="agg")).strip().endswith("done")


# Small ----------------------------------------------------------------------------------


def lines_of_code(path):
    """Lines without docstrings, comments and blanks, as `ruff format` leaves them."""
    source = formatted(path)
    tree, docstrings = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return len([1 for i, line in lines if i not in docstrings and line.strip() and line.strip()[0] != "#"])


def ruff(*arguments, **options):
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", **options)


def formatted(path):
    """The module as `ruff format` writes it."""
    result = ruff("format", "--stdin-filename", str(path), "-", input=path.read_text(encoding="utf-8"))
    assert result.returncode == 0, result.stderr
    return result.stdout


@each
def test_a_module_is_small(path):
    assert lines_of_code(path) <= (474 if path == CORE else 200)


def test_the_modules_are_formatted():
    result = ruff("format", "--check", *map(str, MODULES))
    assert result.returncode == 0, result.stdout


# Who imports whom -----------------------------------------------------------------------


def imported(path):
    """The modules that a file imports, wherever in it, by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            inner = {f"more.{alias.name}" for alias in node.names} if node.module == "more" else {node.module}
            found |= inner
    return found


def test_the_core_imports_no_sibling():
    assert {"diffusion_utils", "train", "more", "tests", "benchmarks", "tools"} <= SIBLINGS
    assert not {name.split(".")[0] for name in imported(CORE)} & SIBLINGS


@pytest.mark.parametrize("path", MORE, ids=lambda path: path.stem)
def test_who_imports_whom(path):
    """A later file imports the core, at most one other of its kind, and nothing else of the course."""
    ours = {name for name in imported(path) if name.split(".")[0] in SIBLINGS}
    assert "diffusion_utils" in ours
    others = ours - {"diffusion_utils"}
    assert len(others) <= 1 and others <= {f"more.{other.stem}" for other in MORE if other != path}


def test_nobody_imports_in_a_circle():
    after = {f"more.{path.stem}": {n for n in imported(path) if n.startswith("more.")} for path in MORE}
    while after:
        free = {name for name, needs in after.items() if not needs & after.keys()}
        assert free, after
        after = {name: needs for name, needs in after.items() if name not in free}


def test_a_helper_in_its_place():
    """What is not taught stands at the end of the core; tests import what they share from helpers.py."""
    source = CORE.read_text(encoding="utf-8")
    taught, _, rest = source.partition("\n# Not taught: ")
    assert rest and all(
        node.name.startswith("_") for node in ast.parse(rest.partition("\n")[2]).body if hasattr(node, "name")
    )
    private = [n.name for n in ast.parse(taught).body if hasattr(n, "name") and n.name.startswith("_")]
    assert private == ["_HubModel"]  # a class must stand before those that inherit from it
    for path in (ROOT / "tests").glob("*.py"):
        borrowed = {name.split(".")[0] for name in imported(path)}
        assert not [name for name in borrowed if name.startswith("test_")], path.name


def test_no_test_replaces_what_has_a_socket():
    for path in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "setattr"
                and len(node.args) > 1
            ):
                replaced = getattr(node.args[1], "value", None)
                assert replaced not in ("AdamW", "training_step", "l1_loss"), f"{path.name}:{node.lineno}"
