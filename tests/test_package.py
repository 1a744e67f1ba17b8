"""The modules as a package, and a published model: both work where there is no checkout of the course."""

import os
import shutil
import subprocess
import sys

import torch
from helpers import tiny

from diffusion_course.samplers import DPMSolver
from diffusion_utils import ROOT, generate

INSTALLED = """
import sys
from pathlib import Path
import torch
import diffusion_course.samplers, diffusion_utils
from diffusion_utils import Diffusion, generate
for module in (diffusion_utils, diffusion_course):
    assert Path(sys.argv[1]) in Path(module.__file__).parents, module.__file__
images = generate(Diffusion.from_pretrained("model"), n=2, seed=0, sampler=diffusion_course.samplers.DPMSolver())
torch.save(images, "drawn.pt")
"""

PUBLISHED = """
import importlib.util
import torch
from transformers import AutoModel
assert importlib.util.find_spec("diffusion_utils") is None
diffusion = AutoModel.from_pretrained("model", trust_remote_code=True)
noise = torch.ones(1, 3, 8, 8)
with torch.no_grad():
    torch.save(diffusion.predict_noise(noise, torch.full((1, 1, 1, 1), 0.5)), "predicted.pt")
"""


def python(folder, *arguments, **variables):
    """Run Python in a folder, with nothing on its path but the libraries and what `variables` say."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_wheel_draws(tmp_path):
    """Built from a copy, since building leaves files beside the sources."""
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "diffusion_course", source / "diffusion_course")
    for name in ("pyproject.toml", "requirements.txt", "diffusion_utils.py"):
        shutil.copy(ROOT / name, source)
    alone = "--quiet", "--no-deps", "--no-index"
    python(tmp_path, "-m", "pip", "wheel", source, *alone, "--no-build-isolation", "--wheel-dir", tmp_path)
    wheel = next(tmp_path.glob("diffusion_course-*.whl"))
    python(tmp_path, "-m", "pip", "install", wheel, *alone, "--target", site)
    diffusion = tiny()
    diffusion.save_pretrained(tmp_path / "model")
    python(tmp_path, "-c", INSTALLED, site, PYTHONPATH=str(site))
    expected = generate(diffusion, n=2, seed=0, sampler=DPMSolver())
    assert torch.allclose(torch.load(tmp_path / "drawn.pt"), expected, atol=1e-5)


def test_a_published_model_opens_without_the_course(tmp_path):
    diffusion = tiny()
    diffusion.save_pretrained(tmp_path / "model")
    python(tmp_path, "-c", PUBLISHED, HF_MODULES_CACHE=str(tmp_path / "modules"))
    with torch.no_grad():
        expected = diffusion.eval().predict_noise(torch.ones(1, 3, 8, 8), torch.full((1, 1, 1, 1), 0.5))
    assert torch.allclose(torch.load(tmp_path / "predicted.pt"), expected, atol=1e-5)
