"""Training speed and memory: the loop as the original article describes it, against `Training`, and each of its switches.

    python benchmarks/training.py          ten minutes on two CPU cores

At 64×64 the full model on batches of 64, at 32×32 lesson 04's on batches of 32; each side in a process of
its own. `Training` chooses by itself, the other rows by hand. On CUDA, compiling is measured as
well, and the full recipe's time is extrapolated.
"""

import os
import subprocess
import sys
import time

import torch
from accelerate import PartialState
from common import ROOT, articles_loop, fresh, memory, middle, publish, spread

CUDA = torch.cuda.is_available()
WARM_UP, STEPS, REPEATS = (46, 20 * 46, 3) if CUDA else (2, {64: 4, 32: 40}, 3)


def prepare(size):
    from diffusion_utils import CPU_SHAPE, Diffusion, DiffusionConfig, get_data, get_loader

    torch.manual_seed(0)
    batch_size = 64 if size == 64 else 32
    data = get_data(limit=batch_size * (46 if CUDA else 8), size=size)
    return Diffusion(DiffusionConfig(**({} if size == 64 else CPU_SHAPE))), get_loader(data, batch_size)


def measure(loop, size, batch_size, wait=lambda: None):
    """Images/s of a training loop after its first WARM_UP steps, and peak memory; `wait()` waits for the GPU."""
    steps = STEPS if CUDA else STEPS[size]
    for step, _ in enumerate(loop, 1):
        if step == WARM_UP:
            wait()
            start = time.perf_counter()
        if step == WARM_UP + steps:
            break
    wait()
    speed = steps * batch_size / (time.perf_counter() - start)
    return speed, torch.cuda.max_memory_allocated() / 2**20 if CUDA else memory()


def article(size):
    diffusion, loader = prepare(size)
    return measure(articles_loop(diffusion, loader), size, loader.batch_size)  # it waits for each loss


def course(size, by_hand=False, channels_last=False, bf16=False, precision="no", **switches):
    """`Training` as it is, or with these switches."""
    from diffusion_utils import Training, l1_loss, pick_accelerator

    def loss(diffusion, images):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return l1_loss(diffusion, images)

    diffusion, loader = prepare(size)
    options = {}
    if by_hand:
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision
        options = {"loss": loss, "accelerator": pick_accelerator(**switches)}
    training = Training(diffusion, loader, epochs=100, **options)
    if channels_last:
        training.diffusion.to(memory_format=torch.channels_last)
        training.average.to(memory_format=torch.channels_last)
    wait = lambda: float(training.history["loss"][-1])  # noqa: E731
    return measure(training, size, loader.batch_size, wait)


def two_processes(size):
    """`Training` in two processes of one thread, which share each batch."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        __file__,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [*command, str(size)], env=environment, check=True, capture_output=True, text=True
    )
    speed, peak = map(float, output.stdout.split())
    return speed, 2 * peak


def sides(size):
    found = {"the article's loop": (article, {}), "`Training`": (course, {})}
    if CUDA:
        native = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        for precision in (native, "no"):
            for compiler in ("no", "inductor"):
                switches = dict(by_hand=True, precision=precision, dynamo_backend=compiler)
                found[f"mixed_precision={precision}, dynamo_backend={compiler}"] = course, switches
    else:
        found["32 bits"] = course, dict(by_hand=True)
        found["32 bits, `channels_last`"] = course, dict(by_hand=True, channels_last=True)
        found["bfloat16"] = course, dict(by_hand=True, bf16=True)
        found["bfloat16, `channels_last`"] = course, dict(by_hand=True, bf16=True, channels_last=True)
        found["`Training`, two processes of one thread"] = two_processes, {}
    return found


def compare(size):
    results = {name: [] for name in sides(size)}
    for _ in range(REPEATS):  # one after the other, so that a slow moment hits all
        for name, (function, switches) in sides(size).items():
            results[name].append(fresh(function, size, **switches))
    base = sorted(speed for speed, _ in results["the article's loop"])[REPEATS // 2]
    rows = []
    for name, values in results.items():
        speeds = [speed for speed, _ in values]
        median = sorted(speeds)[REPEATS // 2]
        row = [name, spread(speeds, 1), f"{median / base:.2f}", f"{max(peak for _, peak in values):.0f}"]
        rows.append(row + ([f"{2000 * 46 * 64 / median / 60:.1f}"] if CUDA else []))
    columns = ["images/s", "ratio", "peak memory, MB"] + (["full recipe, minutes"] if CUDA else [])
    return columns, rows


if __name__ == "__main__":
    if len(sys.argv) > 1:  # one of two processes
        speed, peak = course(int(sys.argv[1]))
        if PartialState().is_main_process:
            print(speed, peak)
        PartialState().destroy_process_group()
    else:
        for title, size in {"Training": 64, "Training, small": 32}.items():
            columns, rows = compare(size)
            speeds, peaks = (f"{middle(rows[0][i])} and {middle(rows[1][i])}" for i in (1, 3))
            summary = f"{speeds} images a second, {peaks} MB."
            publish(title, [f"{size}×{size}, batches of {size}", *columns], rows, summary=summary)
