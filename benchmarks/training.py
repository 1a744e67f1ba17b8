"""Training speed and memory: the loop as the original article describes it, against `Training`, and each of its switches.

    python benchmarks/training.py          ten minutes on two CPU cores

At 64×64 the full model on batches of 64, at 32×32 lesson 04's on batches of 32; each side in a process of
its own. `Training` chooses by itself, the other rows by hand. "Of the peak" is the share of the operations a
second that a large matrix product reaches in as many bits. On CUDA, compiling is measured as well, and the full
recipe's time is extrapolated.
"""

import os
import subprocess
import sys
import time

import torch
from accelerate import PartialState
from common import ROOT, articles_loop, fresh, memory, middle, publish, spread
from torch.utils.flop_counter import FlopCounterMode

CUDA = torch.cuda.is_available()
WARM_UP, STEPS, REPEATS = (46, 20 * 46, 3) if CUDA else (2, {64: 4, 32: 40}, 3)


def sixteen_bits():
    """What `Training` computes in here: float32 where nothing shorter is native."""
    from diffusion_utils import pick_accelerator

    precision = pick_accelerator().mixed_precision
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}[precision]


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


def peak(dtype):
    """Operations a second of a large matrix product."""
    device = "cuda" if CUDA else "cpu"
    left, right = torch.randn(2, 4096, 4096, device=device).to(dtype)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return 2 * 4096**3 / min(seconds)


def operations(size):
    """Of one image, forward and backward."""
    from diffusion_utils import l1_loss

    diffusion, loader = prepare(size)
    with FlopCounterMode(display=False) as counter:
        l1_loss(diffusion, next(iter(loader))).backward()
    return counter.get_total_flops() / loader.batch_size


def where_time_goes(size):
    """What part of three steps of `Training` each kind of operation takes, as text."""
    from diffusion_utils import Training

    diffusion, loader = prepare(size)
    training = Training(diffusion, loader, epochs=100)
    steps = iter(training)
    for _ in range(2):
        next(steps)
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            next(steps)
    kinds = {"onv": "convolutions", "norm": "BatchNorm", "silu": "SiLU", "upsample": "upsampling"}
    kinds |= {"avg_pool": "upsampling", "copy": "copies", "cat": "copies", "adam": "optimizer and EMA"}
    kinds |= {"foreach": "optimizer and EMA", "lerp": "optimizer and EMA"}
    times = {}
    for event in profiler.key_averages():
        kind = next((kind for part, kind in kinds.items() if part in event.key), "the rest")
        times[kind] = times.get(kind, 0) + (
            event.self_device_time_total if CUDA else event.self_cpu_time_total
        )
    total = sum(times.values())
    shares = sorted(((value / total, kind) for kind, value in times.items()), reverse=True)
    return ", ".join(f"{kind} {share:.0%}" for share, kind in shares)


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
    work = operations(size)
    peaks = {bits: fresh(peak, dtype) for bits, dtype in {16: sixteen_bits(), 32: torch.float32}.items()}
    rows = []
    for name, values in results.items():
        speeds = [speed for speed, _ in values]
        median = sorted(speeds)[REPEATS // 2]
        in_32 = name == "the article's loop" or "32 bits" in name or "precision=no" in name
        share = work * median / peaks[32 if in_32 else 16]
        memories = [megabytes for _, megabytes in values]
        row = [name, spread(speeds, 1), f"{median / base:.2f}", f"{share:.0%}", f"{max(memories):.0f}"]
        rows.append(row + ([f"{2000 * 46 * 64 / median / 60:.1f}"] if CUDA else []))
    columns = ["images/s", "ratio", "of the peak", "memory, MB"] + (["full recipe, minutes"] if CUDA else [])
    bits_here = (32,) if sixteen_bits() is torch.float32 else (32, 16)
    speeds = " and ".join(f"{peaks[bits] / 1e9:.0f} in {bits} bits" for bits in bits_here)
    note = (
        f"The peak, in billions of operations a second: {speeds}. An image takes {work / 1e9:.2f} billion. "
    )
    note += f"Where the time of `Training` goes: {fresh(where_time_goes, size)}."
    return columns, rows, note


if __name__ == "__main__":
    if len(sys.argv) > 1:  # one of two processes
        speed, megabytes = course(int(sys.argv[1]))
        if PartialState().is_main_process:
            print(speed, megabytes)
        PartialState().destroy_process_group()
    else:
        for title, size in {"Training": 64, "Training, small": 32}.items():
            columns, rows, note = compare(size)
            speeds, peaks = (f"{middle(rows[0][i])} and {middle(rows[1][i])}" for i in (1, 4))
            summary = f"{speeds} images a second, {peaks} MB."
            publish(title, [f"{size}×{size}, batches of {size}", *columns], rows, summary=summary, note=note)
