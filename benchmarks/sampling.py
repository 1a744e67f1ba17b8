"""Sampling at 64×64: the loop with the graph for gradients that nobody needs, against `generate`.

    python benchmarks/sampling.py          two minutes on two CPU cores

Five pictures of 64×64 with the full model. Memory is what a fresh process has at most, less
what it has once the model is loaded.
"""

import time
from functools import partial
from statistics import median

import torch
from common import fresh, memory, publish, spread


def with_graph(diffusion, n, steps, seed):
    """`generate`, without its torch.no_grad()."""
    from diffusion_utils import denormalize, predict, sample, starting_noise

    times = torch.linspace(1, 0, steps + 1).tolist()
    for _, image in sample(partial(predict, diffusion), starting_noise(diffusion, n, seed), times):
        pictures = denormalize(diffusion, image)
    return pictures


def draw(steps, keep_graph):
    """Seconds and memory in MB that five pictures take."""
    from diffusion_utils import Diffusion, DiffusionConfig, generate

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion = Diffusion(DiffusionConfig()).to(device).eval()
    generate(diffusion, n=5, steps=1, seed=0)  # the first call of a process is slower
    before = memory("VmRSS")
    start = time.perf_counter()
    pictures = (with_graph if keep_graph else generate)(diffusion, n=5, steps=steps, seed=0)
    pictures.sum().item()
    seconds = time.perf_counter() - start
    assert pictures.requires_grad is keep_graph
    return seconds, torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory() - before


if __name__ == "__main__":
    rows = []
    for steps in (1, 5, 20, 50):
        results = {keep: [fresh(draw, steps, keep) for _ in range(3)] for keep in (True, False)}
        seconds, used = ([[pair[i] for pair in results[keep]] for keep in (True, False)] for i in (0, 1))
        ratio = median(used[0]) / median(used[1])
        rows.append([steps, *map(spread, seconds), *(spread(values, 0) for values in used), f"{ratio:.0f}"])
    columns = ["graph kept, s", "`generate`, s", "graph kept, MB", "`generate`, MB", "ratio of memory"]
    publish("Sampling", ["steps", *columns], rows)
