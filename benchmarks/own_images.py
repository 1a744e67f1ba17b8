"""Images of your own (lesson 10): how many are needed?

    python benchmarks/own_images.py        five minutes on one CPU core

Lesson 04's network and Muon on 30, 100 and 400 cats: 600 steps of 32, one training run each, mirrored half of the
time; where there are fewer cats, each is seen more often. Pixel distance (lesson 07) of 200 drawings to the 200 cats
that are held out, and the share of copies (lesson 10) among them. The first drawings of each number of cats go to
images/own_images.png, and below each row the nearest cats of the training set.
"""

import torch
from common import ROOT, publish, start_at_zero
from PIL import Image

COUNTS, STEPS = (30, 100, 400), 600
DRAWN, SHOWN = 200, 12


def train(count):
    """`(pixel distance, percent of copies, some drawings and the nearest cats)` after one training run."""
    from diffusion_course.images import CATS, Augmented, copies, mirror
    from diffusion_course.optimizers import even_l1_loss, muon
    from diffusion_course.quality import pixel_distance
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
    cats, held_out = (torch.from_numpy(get_data(CATS, split=split, size=32)) for split in ("train", "test"))
    some = cats[:count]
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE)))
    repeated = some[torch.arange(8 * STEPS) % count]  # a quarter of the steps is an epoch
    loader = get_loader(Augmented(repeated, mirror), 32)
    recipe = CPU_RECIPE | dict(epochs=4, lr=5e-3)
    for _ in Training(diffusion, loader, loss=even_l1_loss, optimizer=muon, **recipe):
        pass
    drawn = generate(diffusion, n=DRAWN, seed=1).cpu()
    copied, places = copies(drawn, some)
    distance = pixel_distance(turned(drawn), held_out)
    return distance, 100 * copied.float().mean().item(), torch.stack([drawn[:SHOWN], some[places[:SHOWN]]])


def turned(cats):
    """All cats looking to the right: mirrored where they are then nearer to the mean of the held-out ones."""
    from diffusion_course.images import CATS
    from diffusion_utils import get_data

    mean = torch.from_numpy(get_data(CATS, split="test", size=32)).mean(0)
    as_they_are, mirrored = ((images - mean).square().mean((1, 2, 3)) for images in (cats, cats.flip(3)))
    return torch.where((mirrored < as_they_are).view(-1, 1, 1, 1), cats.flip(3), cats)


def real():
    """Pixel distance and percent of copies of real cats: the floor of the one, the false alarms of the other."""
    from diffusion_course.images import CATS, copies
    from diffusion_course.quality import pixel_distance
    from diffusion_utils import get_data

    cats, held_out = (torch.from_numpy(get_data(CATS, split=split, size=32)) for split in ("train", "test"))
    floor = pixel_distance(cats[: len(held_out)], held_out)
    return floor, 100 * copies(held_out, cats)[0].float().mean().item()


if __name__ == "__main__":
    rows, shown = [], []
    for count in COUNTS:
        distance, percent, images = train(count)
        rows.append([str(count), f"{distance:.2f}", f"{percent:.1f}"])
        shown += [*images]
    floor, alarms = real()
    rows.append(["real, held out", f"{floor:.2f}", f"{alarms:.1f}"])
    sheet = torch.stack(shown).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # (6, 12, 3, 32, 32) before
    image = Image.fromarray((sheet * 255).round().byte().numpy())
    image.save(ROOT / "images" / "own_images.png")
    numbers = [f"pixel distance {row[1]}, {row[2]} % copies ({row[0]} cats)" for row in rows[: len(COUNTS)]]
    columns = ["cats", "pixel distance", "copies, percent"]
    note = f"One training run each, {STEPS} steps of 32."
    publish("Own images", columns, rows, summary=f"{'; '.join(numbers)}.", note=note)
