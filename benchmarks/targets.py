"""What a network is asked for, three of lesson 13's questions: three trainings of lesson 04's network for each.

    python benchmarks/targets.py

Equal pictures, recipe and number of steps. Pixel distance and kernel distance (lesson 07) of 400 samples
to 1,000 held-out faces, and how much their pixels vary; drawn by DDIM.
"""

from functools import partial

import torch
from common import fresh, publish, spread

QUESTIONS = [("noise", 1), ("v", 1), ("v", 2), ("flow", 2)]
STEPS = (4, 20)


def asked(target, power, seed):
    """`(pixel distance, kernel distance, variation)` for each of STEPS."""
    from diffusion_utils import (
        CPU_RECIPE,
        CPU_SHAPE,
        DiffusionConfig,
        Training,
        generate,
        get_data,
        get_loader,
    )
    from more.flow import Answering, target_loss
    from more.quality import face_features, kernel_distance, load_classifier, pixel_distance

    torch.manual_seed(seed)
    diffusion = Answering(DiffusionConfig(**CPU_SHAPE, target=target))
    torch.nn.init.zeros_(diffusion.unet.out.weight)
    torch.nn.init.zeros_(diffusion.unet.out.bias)
    loader, loss = get_loader(get_data(size=32), 32), partial(target_loss, power=power)
    for _ in Training(diffusion, loader, loss=loss, **CPU_RECIPE | dict(seed=seed)):
        pass
    held_out, classifier = torch.from_numpy(get_data(split="test", limit=1000, size=32)), load_classifier()
    drawn = [generate(diffusion, n=400, steps=steps, seed=seed).cpu() for steps in STEPS]
    features, reference = (
        [face_features(classifier, images) for images in drawn],
        face_features(classifier, held_out),
    )
    kernels = [kernel_distance(one, reference) for one in features]
    return [(pixel_distance(one, held_out), kernel, float(one.std())) for one, kernel in zip(drawn, kernels)]


if __name__ == "__main__":
    rows = []
    for target, power in QUESTIONS:
        runs = [fresh(asked, target, power, seed) for seed in range(3)]
        for i, steps in enumerate(STEPS):
            pixels, kernels, variation = zip(*(run[i] for run in runs))
            error = ("absolute", "squared")[power - 1]
            rows.append([target, error, steps, spread(pixels), spread(kernels), spread(variation, 3)])
            print(*rows[-1], flush=True)
    columns = [
        "asked for",
        "error",
        "steps",
        "pixel distance, three trainings",
        "kernel distance",
        "variation",
    ]
    publish("Targets", columns, rows)
