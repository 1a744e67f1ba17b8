"""AdamW and Muon (lesson 11), on lesson 04's training: three training runs each, equally many steps, even times in both.

    python benchmarks/optimizers.py        half an hour on two CPU cores

Equal network, images, loss and recipe, but for the learning rate: each has the one that suits it. Pixel distance
and kernel distance (lesson 07) of 400 samples to 1,000 held-out faces, drawn by DDIM in 20 steps.
"""

import time

import torch
from common import fresh, judged, middle, publish, spread, start_at_zero

EPOCHS, SEEDS, RATES = 40, (0, 1, 2), {"AdamW": 3e-3, "Muon": 5e-3}


def measure(name, seed):
    """`(seconds, pixel distance, kernel distance)` after one training run."""
    from diffusion_course import optimizers
    from diffusion_utils import (
        CPU_RECIPE,
        CPU_SHAPE,
        Diffusion,
        DiffusionConfig,
        Training,
        adamw,
        generate,
        get_data,
        get_loader,
    )

    torch.manual_seed(seed)
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE)))
    loader = get_loader(get_data(size=32), 32, seed=0)
    recipe = CPU_RECIPE | dict(epochs=EPOCHS, seed=seed, lr=RATES[name])
    optimizer = {"AdamW": adamw, "Muon": optimizers.muon}[name]
    start = time.process_time()
    for _ in Training(diffusion, loader, loss=optimizers.even_l1_loss, optimizer=optimizer, **recipe):
        pass
    seconds = time.process_time() - start
    (pixel,), (kernel,), _ = judged([generate(diffusion, n=400, seed=1)])
    return seconds, pixel, kernel


if __name__ == "__main__":
    runs = {name: [fresh(measure, name, seed) for seed in SEEDS] for name in ("AdamW", "Muon")}
    rows = []
    for name, results in runs.items():
        seconds, pixels, kernels = zip(*results)
        rows.append([name, RATES[name], spread(seconds, 0), spread(pixels), spread(kernels)])
    columns = [
        "optimizer",
        "learning rate",
        "seconds of processor time",
        "pixel distance, three training runs",
    ]
    pixels, kernels = (f"{middle(rows[0][i])} and {middle(rows[1][i])}" for i in (3, 4))
    summary = f"AdamW and Muon, 3,720 steps: pixel distance {pixels}, kernel distance {kernels}."
    publish("Optimizers", [*columns, "kernel distance"], rows, summary=summary)
