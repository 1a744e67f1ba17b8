"""The same faces at 32×32, the same seconds: the article's settings and lesson 04's, on the networks of both.

    python benchmarks/equal_time.py        ten minutes on two CPU cores

Lesson 04's recipe on its network runs to its end, and the others get as many seconds: the article's
settings, in the loop it describes, and the lesson's, on either network (the article's scaled down to 32×32).
Then the lesson's training once more in 32 bits, for equal images. Pixel distance and kernel distance
(lesson 07) of 200 samples to 1,000 held-out faces.
"""

import os
import statistics
import time
from itertools import count

import torch
from common import articles_loop, fresh, judged, middle, publish, spread, start_at_zero

NETWORKS = {"lesson 04's": ((16, 32, 64, 128), 1), "the article's": ((16, 32, 48, 64), 2)}


def distances(diffusion):
    """Pixel distances and kernel distances, for three seeds."""
    from diffusion_utils import generate

    return judged([generate(diffusion, n=200, seed=seed).cpu() for seed in (1, 2, 3)])[:2]


def new(network, seed=0):
    from diffusion_utils import Diffusion, DiffusionConfig

    torch.manual_seed(seed)
    return Diffusion(DiffusionConfig(32, *NETWORKS[network]))


def lesson(network, seconds=None, precision=None, seed=0):
    """What lesson 04 does on a CPU, with as many epochs as fit into `seconds`."""
    from diffusion_utils import CPU_RECIPE, Training, get_data, get_loader

    diffusion, loader = new(network, seed), get_loader(get_data(size=32), 32)
    recipe = CPU_RECIPE | dict(seed=seed)
    if precision:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision  # in this process, which ends with the run
    start_at_zero(diffusion)
    if seconds:  # the cosine needs to know its end beforehand
        start = time.perf_counter()
        list(Training(new(network), loader, epochs=1))
        recipe["epochs"] = max(1, round(seconds / (time.perf_counter() - start)))
    start = time.perf_counter()
    steps = len(list(Training(diffusion, loader, **recipe)))
    return time.perf_counter() - start, steps, steps * 32, distances(diffusion)


def article(network, seconds):
    """The article's loop for as many seconds."""
    from diffusion_utils import get_data, get_loader

    diffusion = new(network)
    loader, start = get_loader(get_data(size=32), 64, seed=0), time.perf_counter()
    for steps, _ in zip(count(1), articles_loop(diffusion, loader)):
        if (took := time.perf_counter() - start) > seconds:
            return took, steps, steps * 64, distances(diffusion)


if __name__ == "__main__":
    ours, theirs = NETWORKS
    best = fresh(lesson, ours)
    results = {
        ("lesson 04's", ours): best,
        ("lesson 04's", theirs): fresh(lesson, theirs, seconds=best[0]),
        ("the article's", ours): fresh(article, ours, best[0]),
        ("the article's", theirs): fresh(article, theirs, best[0]),
        ("lesson 04's, in 32 bits", ours): fresh(lesson, ours, precision="no"),
    }
    rows = []
    for names, (seconds, steps, images, (pixels, kernels)) in results.items():
        rows.append([*names, f"{seconds:.0f}", f"{steps:,}", f"{images:,}", spread(pixels), spread(kernels)])
    base = results["the article's", theirs][3]
    pixels, kernels = (statistics.mean(best[3][i]) / statistics.mean(base[i]) for i in (0, 1))
    columns = ["settings", "network", "seconds", "steps", "images"]
    columns += ["pixel distance, three seeds", "kernel distance"]
    note = f"Ratio of the mean distances, first row to fourth: {pixels:.2f} of pixels, {kernels:.2f} of the kernel."
    (*_, seconds, _, _, pixels, kernel), theirs = rows[0], rows[3]
    distances = (
        f"Pixel distance {middle(theirs[5])} and {middle(pixels)}, kernel distance {middle(theirs[6])}"
    )
    summary = f"{distances} and {middle(kernel)}, after {seconds} seconds."
    publish("Equal time", columns, rows, summary=summary, note=note)
