"""What the benchmarks share: fresh processes, their memory, the article's loop, two rulers, the table of results."""

import datetime
import importlib.metadata
import multiprocessing
import os
import platform
import re
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results.md"


def fresh(function, *arguments, **options):
    """Call `function` in a new process and return what it returns."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def memory(kind="VmHWM"):
    """This process's memory in MB: VmHWM is the most it ever had, VmRSS what it has now. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1024


def spread(values, digits=2):
    """Median and range, as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def middle(cell):
    """The median of a cell that `spread` wrote."""
    return str(cell).split(" (")[0]


def articles_loop(diffusion, loader):
    """The training loop of the original article, without an end; yields the loss after each step.

    AdamW in float32, without warm-up, decay or an average of the weights.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion.to(device).train()
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=2e-4, weight_decay=1e-4)
    while True:
        for images in loader:
            noise, predicted_noise = diffusion(images.to(device))
            loss = torch.nn.functional.l1_loss(predicted_noise, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()


def start_at_zero(diffusion):
    """`diffusion` with a last layer of zeros, so that its first answer is 0, as in lesson 04."""
    torch.nn.init.zeros_(diffusion.unet.out.weight)
    torch.nn.init.zeros_(diffusion.unet.out.bias)
    return diffusion


def judged(sets, size=32, left_out=0):
    """Compare sets of faces (N, 3, size, size) with 1,000 held-out ones, less the first `left_out`.

    Returns three lists: pixel distances, kernel distances (lesson 07), and the latter's error bars.
    """
    from diffusion_course.quality import (
        error_bar,
        face_features,
        kernel_distance,
        load_classifier,
        pixel_distance,
    )
    from diffusion_utils import get_data

    held_out, classifier = torch.from_numpy(get_data(split="test", limit=1000, size=size)), load_classifier()
    held_out = held_out[left_out:]
    reference = face_features(classifier, held_out)
    features = [face_features(classifier, faces) for faces in sets]
    pixels = [pixel_distance(faces, held_out) for faces in sets]
    kernels = [kernel_distance(one, reference) for one in features]
    return pixels, kernels, [error_bar(one, reference) for one in features]


def machine():
    """This machine and the versions that matter, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [re.sub(r"\(R\)| Processor", "", line.split(":")[1]) for line in lines if "model name" in line]
    units = " with AMX" if any("amx_bf16" in line for line in lines) else ""
    processor = f"{os.cpu_count()} cores {names[0].strip() if names else ''}".strip() + units
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    packages = ("torch", "transformers", "datasets", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}; {device}; Python {platform.python_version()}, {versions}"


def publish(title, columns, rows, summary, note=""):
    """Print a table, and put it into results.md instead of the one of that title made on the same kind of device.

    `summary`: what the table says, in a sentence; the README repeats it.
    """
    from diffusion_course.quality import results

    title += " (CUDA)" if torch.cuda.is_available() else " (CPU)"
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    parts = [machine(), f"**{summary}**", "\n".join(lines), note]
    text = "\n\n".join(part for part in parts if part)
    print(f"## {title}\n\n{text}\n")
    head = RESULTS.read_text(encoding="utf-8").split("\n## ")[0].strip()
    sections = results(RESULTS) | {title: text}
    texts = [head, *(f"## {name}\n\n{sections[name].strip()}" for name in sorted(sections))]
    RESULTS.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
