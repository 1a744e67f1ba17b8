"""Training speed and memory at 64×64: the loop as the original article describes it, against `Training`.

    python benchmarks/training.py          five minutes on two CPU cores

Both train the full 64×64 model on the same batches of 64. On CUDA, each switch of
`fast_accelerator` is measured as well, and the full recipe's time is extrapolated.
"""

import time

import torch
from common import articles_loop, fresh, memory, publish, spread

CUDA = torch.cuda.is_available()
BATCHES, WARM_UP, STEPS, REPEATS = (46, 46, 20 * 46, 3) if CUDA else (2, 0, 4, 5)


def prepare():
    from diffusion_utils import Diffusion, DiffusionConfig, get_data, get_loader

    torch.manual_seed(0)
    return Diffusion(DiffusionConfig()), get_loader(get_data(limit=64 * BATCHES), 64)


def measure(loop, wait):
    """Images/s of a training loop after its first WARM_UP steps, and peak memory; `wait()` waits for the GPU."""
    start = time.perf_counter()
    for step, _ in enumerate(loop, 1):
        if step == WARM_UP:
            wait()
            start = time.perf_counter()
        if step == WARM_UP + STEPS:
            break
    wait()
    speed = STEPS * 64 / (time.perf_counter() - start)
    return speed, torch.cuda.max_memory_allocated() / 2**20 if CUDA else memory()


def article():
    return measure(articles_loop(*prepare()), wait=lambda: None)  # it waits for each loss


def course(fast=False, **switches):
    """`Training`; with the accelerator of lesson 10 if `fast`, and these switches of it."""
    from diffusion_utils import Training
    from more.long_training import fast_accelerator

    diffusion, loader = prepare()
    accelerator = fast_accelerator(**switches) if fast else None
    training = Training(diffusion, loader, accelerator=accelerator, epochs=(WARM_UP + STEPS) // BATCHES)
    return measure(training, wait=lambda: float(training.history["loss"][-1]))


if __name__ == "__main__":
    sides = {"the article's loop": (article, {}), "`Training`": (course, {})}
    if CUDA:
        for precision in (
            "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16",
            "no",
        ):
            for compiler in ("no", "inductor"):
                name = f"mixed_precision={precision}, dynamo_backend={compiler}"
                switches = dict(fast=True, mixed_precision=precision, dynamo_backend=compiler)
                sides[f"`fast_accelerator`, {name}"] = course, switches
    results = {name: [] for name in sides}
    for _ in range(REPEATS):  # one after the other, so that a slow moment hits all
        for name, (function, switches) in sides.items():
            results[name].append(fresh(function, **switches))
    base = sorted(speed for speed, _ in results["the article's loop"])[REPEATS // 2]
    rows = []
    for name, values in results.items():
        speeds = [speed for speed, _ in values]
        median = sorted(speeds)[REPEATS // 2]
        row = [name, spread(speeds, 1), f"{median / base:.2f}", f"{max(peak for _, peak in values):.0f}"]
        rows.append(row + ([f"{2000 * 46 * 64 / median / 60:.1f}"] if CUDA else []))
    columns = ["64×64, batches of 64", "images/s", "ratio", "peak memory, MB"]
    publish("Training", columns + (["full recipe, minutes"] if CUDA else []), rows)
