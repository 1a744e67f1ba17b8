"""Sampling at 64×64: with the graph for gradients that nobody needs, as `generate` draws, and so in 16 bits.

    python benchmarks/sampling.py          three minutes on two CPU cores

Five images of 64×64 with the full model. Memory is what a fresh process has at most, less
what it has once the model is loaded.
"""

import time
from functools import partial
from statistics import median

import numpy as np
import torch
from common import fresh, memory, middle, publish, spread

KINDS = "graph kept", "generate", "16 bits"


def with_graph(diffusion, n, steps, seed):
    """`generate`, without its torch.no_grad()."""
    from diffusion_utils import denormalize, predict, sample, starting_noise

    places = np.linspace(0, len(diffusion.config.times) - 1, steps + 1)
    times = np.interp(places, range(len(diffusion.config.times)), diffusion.config.times).tolist()
    for _, image in sample(partial(predict, diffusion), starting_noise(diffusion, n, seed), times):
        images = denormalize(diffusion, image)
    return images


def draw(steps, kind):
    """Seconds and memory in MB that five images take."""
    from diffusion_utils import LARGE_MODEL, Diffusion, generate

    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion = Diffusion.from_pretrained(LARGE_MODEL).to(device).eval()
    function = with_graph if kind == "graph kept" else generate
    generate(diffusion, n=5, steps=1, seed=0)  # the first call of a process is slower
    before = memory("VmRSS")
    start = time.perf_counter()
    with torch.autocast(device, torch.bfloat16, enabled=kind == "16 bits"):
        images = function(diffusion, n=5, steps=steps, seed=0)
    images.sum().item()
    seconds = time.perf_counter() - start
    assert images.requires_grad is (kind == "graph kept")
    used = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory() - before
    return seconds, used, images.detach().cpu().numpy()


if __name__ == "__main__":
    rows = []
    for steps in (1, 5, 20, 50):
        results = {kind: [fresh(draw, steps, kind) for _ in range(3)] for kind in KINDS}
        seconds, used = ([[run[i] for run in results[kind]] for kind in KINDS] for i in (0, 1))
        ratio, times = median(used[0]) / median(used[1]), median(seconds[1]) / median(seconds[2])
        off = abs(results["generate"][0][2] - results["16 bits"][0][2]).mean()
        texts = [
            *map(spread, seconds),
            f"{times:.2f}",
            *(spread(values, 0) for values in used),
            f"{ratio:.0f}",
        ]
        rows.append([steps, *texts, f"{off:.4f}"])
    columns = [f"{kind}, s" for kind in KINDS] + ["32 : 16 bits"] + [f"{kind}, MB" for kind in KINDS]
    columns += ["graph : exact, memory", "mean difference of a pixel"]
    twenty = list(map(middle, rows[2]))
    summary = f"20 steps: {', '.join(twenty[1:4])} s, {', '.join(f'{int(mb):,}' for mb in twenty[5:8])} MB."
    publish("Sampling", ["steps", *columns], rows, summary=summary)
