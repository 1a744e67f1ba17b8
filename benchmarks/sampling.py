"""Sampling: `generate` against the same loop that keeps the graph for gradients nobody needs.

    python benchmarks/sampling.py          two minutes on two CPU cores

Five pictures of 64×64 with the full model. Memory is what a fresh process has at most, less
what it has once the model is loaded.
"""

import time

import torch
from common import fresh, memory, publish, spread


def sample(steps, keep_graph):
    """Seconds and memory in MB that five pictures take."""
    from diffusion_utils import Diffusion, DiffusionConfig, generate

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion = Diffusion(DiffusionConfig()).to(device).eval()
    function = generate.__wrapped__ if keep_graph else generate  # without its @torch.no_grad()
    with torch.no_grad():
        generate(diffusion, n=5, steps=1, seed=0)  # the first call of a process is slower
    before = memory("VmRSS")
    start = time.perf_counter()
    pictures = function(diffusion, n=5, steps=steps, seed=0)
    pictures.sum().item()
    seconds = time.perf_counter() - start
    assert pictures.requires_grad is keep_graph
    return seconds, torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory() - before


if __name__ == "__main__":
    rows = []
    for steps in (1, 5, 20, 50):
        pair = {keep: [fresh(sample, steps, keep) for _ in range(3)] for keep in (True, False)}
        graph, lean = ([m for _, m in pair[keep]] for keep in (True, False))
        rows.append([steps, *(spread([s for s, _ in pair[keep]]) for keep in (True, False)),
                     spread(graph, 0), spread(lean, 0), f"{sorted(graph)[1] / sorted(lean)[1]:.0f}"])  # fmt: skip
    publish("Sampling", ["steps", "graph kept, s", "`generate`, s", "graph kept, MB", "`generate`, MB", "ratio of memory"], rows)
