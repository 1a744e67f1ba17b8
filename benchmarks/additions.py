"""What lesson 04's run adds to the lesson's plain loop, one thing after the other: one training run of each.

    python benchmarks/additions.py        an hour on one CPU core without bfloat16

Equal network, images and number of steps. Pixel distance and kernel distance (lesson 07) of 400 samples to 1,000
held-out faces, drawn by DDIM in 20 steps from equal noise; the first 16 faces of each go to images/additions.png.
"""

import torch
from common import ROOT, fresh, judged, publish, start_at_zero
from PIL import Image

EPOCHS = 40
# Each has what those before it have.
ROWS = ("the plain loop", "+ average, changing rate, even times", "+ Muon")


def measure(row):
    """`(pixel distance, kernel distance, the first 16 faces)` of the training that `row` names."""
    from diffusion_course.optimizers import even_l1_loss, muon
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

    torch.manual_seed(0)
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE)))
    options = {"epochs": EPOCHS}
    if row != ROWS[0]:
        options = CPU_RECIPE | {"loss": even_l1_loss} | options
    if row == ROWS[2]:
        options |= {"optimizer": muon, "lr": 5e-3}
    training = Training(diffusion, get_loader(get_data(size=32), 32, seed=0), **options)
    for step in training:
        if step == len(training) and row == ROWS[0]:
            break  # the weights stay as they are, without an average
    faces = generate(diffusion.to(memory_format=torch.contiguous_format), n=400, seed=1).cpu()
    (pixel,), (kernel,), _ = judged([faces])
    return pixel, kernel, faces[:16]


if __name__ == "__main__":
    pixels, kernels, faces = zip(*(fresh(measure, row) for row in ROWS))
    sheet = torch.stack(faces).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(ROOT / "images" / "additions.png")
    rows = [(row, f"{pixel:.2f}", f"{kernel:.2f}") for row, pixel, kernel in zip(ROWS, pixels, kernels)]
    summary = f"Pixel distance {'; '.join(f'{pixel} ({row})' for row, pixel, _ in rows)}."
    publish("Additions", ["lesson 04's training", "pixel distance", "kernel distance"], rows, summary=summary)
