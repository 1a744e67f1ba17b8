"""What a network is asked for (lesson 13), and how errors count: three training runs of lesson 04's network for each.

    python benchmarks/targets.py          an hour on two CPU cores

Equal images, recipe and number of steps; the times of a batch lie evenly. Pixel distance and kernel distance
(lesson 07) of 400 samples to 1,000 held-out faces, how much their pixels vary, and how many of them have what
a minority of faces has, as the classifier sees it; drawn by DDIM.
"""

from functools import partial

import torch
from common import fresh, judged, middle, publish, spread, start_at_zero

PREDICTIONS = [("noise", 1), ("noise", 2), ("image", 2), ("v", 1), ("v", 2), ("flow", 2)]
STEPS = (4, 20)
RARE = ("glasses", "hat", "mouth", "beard")  # the first class of each is not to have it
REAL = "real faces"


def shares(images):
    """How many of the images have each of RARE, in percent."""
    from diffusion_course.quality import attributes, load_classifier

    seen = attributes(load_classifier(), images)
    return [100 * float((seen[name] > 0).double().mean()) for name in RARE]


def measure(predicts, power, seed):
    """`(pixel distance, kernel distance, variation, shares of RARE)` for each of STEPS."""
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
    variation = [float(images.std()) for images in drawn]
    return list(zip(pixels, kernels, variation, map(shares, drawn)))


def row(predicts, power, steps, runs):
    """A row of the table from what `measure` gave for `steps` in each run."""
    pixels, kernels, variation, rare = zip(*runs)
    error = ("absolute", "squared")[power - 1]
    distances = spread(pixels), spread(kernels), spread(variation, 3)
    return [predicts, error, steps, *distances, *(spread(values, 1) for values in zip(*rare))]


def real_row():
    """What held-out faces have."""
    from diffusion_utils import get_data

    faces = torch.from_numpy(get_data(split="test", limit=1000, size=32))
    return [REAL, "", "", "", "", f"{float(faces.std()):.3f}", *(f"{share:.1f}" for share in shares(faces))]


def write(results):
    """Publish what `measure` gave: {(predicts, power): one list for each seed}."""
    rows = []
    for (predicts, power), runs in results.items():
        rows += [row(predicts, power, steps, [run[i] for run in runs]) for i, steps in enumerate(STEPS)]
    columns = ["predicts", "error", "steps", "pixel distance, three training runs", "kernel distance"]
    columns += ["variation", *(f"{name}, %" for name in ("glasses", "hats", "open mouths", "beards"))]
    pixels = [f"{middle(line[3])} ({line[0]}, {line[1]})" for line in rows if line[2] == 20]
    summary = f"20 steps: pixel distance {'; '.join(pixels)}."
    publish("Targets", columns, [*rows, real_row()], summary)


if __name__ == "__main__":
    write({kind: [fresh(measure, *kind, seed) for seed in range(3)] for kind in PREDICTIONS})
