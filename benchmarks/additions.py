"""What lesson 04's run adds to the lesson's plain loop, one thing after the other: one training run of each.

    python benchmarks/additions.py        two hours on one CPU core without bfloat16

Equal network, images and number of steps. First the lesson's mistake: a model that stays in eval(). The loss is the
mean of the last 100 steps. Pixel distance and kernel distance (lesson 07) of 400 samples to 1,000 held-out faces,
drawn by DDIM in 20 steps from equal noise; the first 16 faces of each go to images/additions.png.
"""

import torch
from common import ROOT, fresh, judged, publish, start_at_zero
from PIL import Image

EPOCHS = 40
MISTAKE, PLAIN = "the plain loop, in eval()", "the plain loop"
ADDITIONS = ("+ average", "+ changing rate", "+ even times", "+ Muon")  # each has what those before it have


def measure(row):
    """`(loss, pixel distance, kernel distance, the first 16 faces)` of the training that `row` names."""
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

    class Forgetful(Diffusion):
        def train(self, mode=True):
            return super().train(False)

    torch.manual_seed(0)
    kind = Forgetful if row == MISTAKE else Diffusion
    diffusion = start_at_zero(kind(DiffusionConfig(**CPU_SHAPE)))
    with_them = {
        "+ average": {"ema_decay": CPU_RECIPE["ema_decay"]},
        "+ changing rate": CPU_RECIPE,
        "+ even times": {"loss": even_l1_loss},
        "+ Muon": {"optimizer": muon, "lr": 5e-3},
    }
    options = {}
    for addition in ADDITIONS[: ADDITIONS.index(row) + 1] if row in ADDITIONS else ():
        options |= with_them[addition]
    training = Training(diffusion, get_loader(get_data(size=32), 32, seed=0), **options | {"epochs": EPOCHS})
    for step in training:
        if step == len(training) and row not in ADDITIONS:
            break  # the weights stay as they are, without an average
    loss = torch.tensor(training.history["loss"][-100:]).mean().item()
    faces = generate(diffusion.to(memory_format=torch.contiguous_format), n=400, seed=1).cpu()
    (pixel,), (kernel,), _ = judged([faces])
    return loss, pixel, kernel, faces[:16]


if __name__ == "__main__":
    names = (MISTAKE, PLAIN, *ADDITIONS)
    *numbers, faces = zip(*(fresh(measure, name) for name in names))
    sheet = torch.stack(faces).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(ROOT / "images" / "additions.png")
    rows = [
        (name, f"{loss:.3f}", f"{pixel:.2f}", f"{kernel:.2f}")
        for name, loss, pixel, kernel in zip(names, *numbers)
    ]
    summary = f"Pixel distance {'; '.join(f'{pixel} ({name})' for name, _, pixel, _ in rows)}."
    columns = ["lesson 04's training", "loss", "pixel distance", "kernel distance"]
    publish("Additions", columns, rows, summary=summary)
