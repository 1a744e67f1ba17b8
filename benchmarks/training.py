"""Training speed and memory: the loop as the original article describes it, against `train`.

    python benchmarks/training.py          five minutes on two CPU cores

Both train the full 64×64 model on the same batches of 64. On CUDA, each switch of
`fast_accelerator` is measured as well, and the full recipe's time is extrapolated.
"""

import time

import torch
from common import fresh, memory, publish, spread

EPOCHS, BATCHES, REPEATS = (20, 46, 3) if torch.cuda.is_available() else (1, 2, 5)


def prepare():
    from diffusion_utils import Diffusion, DiffusionConfig, get_data, get_loader

    torch.manual_seed(0)
    return Diffusion(DiffusionConfig()), get_loader(get_data(limit=64 * BATCHES), 64)


def peak():
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else memory()


def bare():
    """AdamW, float32, no average of the weights, nothing else. Returns images/s and peak memory."""
    diffusion, loader = prepare()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion.to(device).train()
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=2e-4, weight_decay=1e-4)
    for epoch in range(EPOCHS + 1):
        if epoch == min(1, EPOCHS - 1):  # on CUDA, the first epoch is for warming up
            start = time.perf_counter()
        for images in loader:
            noise, predicted_noise = diffusion(images.to(device))
            loss = torch.nn.functional.l1_loss(predicted_noise, noise)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
    return (EPOCHS if EPOCHS > 1 else 2) * BATCHES * 64 / (time.perf_counter() - start), peak()


def course(precision=None, compiled=None):
    """`train`, with other switches than its own choice where they are given."""
    import diffusion_utils
    import long_training

    original = long_training.Accelerator
    if precision:
        long_training.Accelerator = lambda **options: original(
            **{**options, "mixed_precision": precision, "dynamo_backend": "inductor" if compiled else "no"}
        )
    marks = []
    record = diffusion_utils.record
    diffusion_utils.record = lambda *arguments: (record(*arguments), marks.append(time.perf_counter()))
    diffusion, loader = prepare()
    start = time.perf_counter()
    diffusion_utils.train(diffusion, loader, EPOCHS + 1)
    first = marks[0] if EPOCHS > 1 else start
    return (EPOCHS if EPOCHS > 1 else 2) * BATCHES * 64 / (marks[-1] - first), peak()


if __name__ == "__main__":
    sides = {"the article's loop": (bare,), "`train`": (course,)}
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        sides |= {
            "`train` in float32": (course, "no", False),
            f"`train` in {bf16}, not compiled": (course, bf16, False),
            "`train` in float32, compiled": (course, "no", True),
        }
    results = {name: [] for name in sides}
    for _ in range(REPEATS):  # one after the other, so that a slow moment hits all
        for name, (function, *arguments) in sides.items():
            results[name].append(fresh(function, *arguments))
    base = sorted(speed for speed, _ in results["the article's loop"])[REPEATS // 2]
    rows = []
    for name, values in results.items():
        speeds = [speed for speed, _ in values]
        median = sorted(speeds)[REPEATS // 2]
        row = [name, spread(speeds, 1), f"{median / base:.2f}", f"{max(m for _, m in values):.0f}"]
        rows.append(row + ([f"{2000 * 46 * 64 / median / 60:.1f}"] if torch.cuda.is_available() else []))
    columns = ["64×64, batches of 64", "images/s", "ratio", "peak memory, MB"]
    publish("Training", columns + (["full recipe, minutes"] if torch.cuda.is_available() else []), rows)
