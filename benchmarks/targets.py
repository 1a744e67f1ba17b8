"""What a network is asked for, three of lesson 13's questions: three training runs of lesson 04's network for each.

    python benchmarks/targets.py

Equal images, recipe and number of steps. Pixel distance and kernel distance (lesson 07) of 400 samples
to 1,000 held-out faces, and how much their pixels vary; drawn by DDIM.
"""

from functools import partial

import torch
from common import fresh, judged, middle, publish, spread, start_at_zero

PREDICTIONS = [("noise", 1), ("v", 1), ("v", 2), ("flow", 2)]
STEPS = (4, 20)


def measure(predicts, power, seed):
    """`(pixel distance, kernel distance, variation)` for each of STEPS."""
    from diffusion_course.objectives import prediction_loss
    from diffusion_utils import (
        CPU_RECIPE,
        CPU_SHAPE,
        Diffusion,
        DiffusionConfig,
        Training,
        generate,
        get_data,
        get_loader,
    )

    torch.manual_seed(seed)
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE, predicts=predicts)))
    loader, loss = get_loader(get_data(size=32), 32), partial(prediction_loss, power=power)
    for _ in Training(diffusion, loader, loss=loss, **CPU_RECIPE | dict(seed=seed)):
        pass
    drawn = [generate(diffusion, n=400, steps=steps, seed=seed).cpu() for steps in STEPS]
    pixels, kernels, _ = judged(drawn)
    return list(zip(pixels, kernels, [float(images.std()) for images in drawn]))


if __name__ == "__main__":
    rows = []
    for predicts, power in PREDICTIONS:
        runs = [fresh(measure, predicts, power, seed) for seed in range(3)]
        for i, steps in enumerate(STEPS):
            pixels, kernels, variation = zip(*(run[i] for run in runs))
            error = ("absolute", "squared")[power - 1]
            rows.append([predicts, error, steps, spread(pixels), spread(kernels), spread(variation, 3)])
            print(*rows[-1], flush=True)
    columns = [
        "predicts",
        "error",
        "steps",
        "pixel distance, three training runs",
        "kernel distance",
        "variation",
    ]
    pixels = [f"{middle(row[3])} ({row[0]}, {row[1]})" for row in rows if row[2] == 20]
    publish("Targets", columns, rows, summary=f"20 steps: pixel distance {'; '.join(pixels)}.")
