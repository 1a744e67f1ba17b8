"""Images of your own (lesson 10): how many are needed, and whether it pays to start from the network that knows faces.

    python benchmarks/own_images.py        a quarter of an hour on one CPU core

Lesson 04's network and Muon on the cats. For the first question 800 steps of 32, one training run each; where there
are fewer cats, each is seen more often, and half of the time mirrored, but for one run that shows what mirroring is
worth. For the second 300 steps, three training runs each. Pixel distance (lesson 07) of 200 drawings to the 200 cats
that are held out, and the share of copies (lesson 10) among them. The first drawings go to
images/own_images.png: those of each number of cats, and below each row the nearest cats of the training set; then
a row from a new network and one from the network that knows faces, after 300 steps.
"""

import torch
from common import ROOT, fresh, middle, publish, spread, start_at_zero
from PIL import Image

COUNTS, SEEDS = (30, 100, 400, 1000), (0, 1, 2)
LONG, SHORT = 800, 300  # steps
DRAWN, SHOWN = 200, 12


def train(count, steps, mirrored, known=False, seed=0):
    """`(pixel distance, percent of copies, some drawings and the nearest cats)` after one training run.

    `known`: whether it starts from the network that knows faces.
    """
    from diffusion_course.images import CATS, Augmented, copies, mirror
    from diffusion_course.optimizers import even_l1_loss, muon
    from diffusion_course.quality import pixel_distance
    from diffusion_utils import (
        CPU_RECIPE,
        CPU_SHAPE,
        TOY_MODEL,
        Diffusion,
        DiffusionConfig,
        Training,
        generate,
        get_data,
        get_loader,
    )

    torch.manual_seed(seed)
    cats, held_out = (torch.from_numpy(get_data(CATS, split=split, size=32)) for split in ("train", "test"))
    some = cats[:count]
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE)))
    if known:
        diffusion = Diffusion.from_pretrained(TOY_MODEL)
    repeated = some[torch.arange(8 * steps) % count]  # a quarter of the steps is an epoch
    loader = get_loader(Augmented(repeated, mirror) if mirrored else repeated, 32)
    recipe = CPU_RECIPE | dict(epochs=4, lr=5e-3, seed=seed)
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
    for count, mirrored in [*((count, True) for count in COUNTS), (100, False)]:
        distance, percent, images = fresh(train, count, LONG, mirrored)
        yes = "yes" if mirrored else "no"
        rows.append([f"{count:,}", yes, "new", str(LONG), f"{distance:.2f}", f"{percent:.1f}"])
        print(rows[-1], flush=True)
        shown += [*images] if mirrored else []
    for known in (False, True):
        results = [fresh(train, COUNTS[-1], SHORT, False, known, seed) for seed in SEEDS]
        distances, percents, pairs = zip(*results)
        start = "knows faces" if known else "new"
        rows.append([f"{COUNTS[-1]:,}", "no", start, str(SHORT), spread(distances), spread(percents, 1)])
        print(rows[-1], distances, flush=True)
        shown.append(pairs[0][0])
    floor, alarms = real()
    rows.append(["real, held out", "", "", "", f"{floor:.2f}", f"{alarms:.1f}"])
    sheet = (
        torch.stack(shown).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    )  # (10, 12, 3, 32, 32) before
    image = Image.fromarray((sheet * 255).round().byte().numpy())
    image.save(ROOT / "images" / "own_images.png")
    numbers = "; ".join(f"{row[5]} % copies ({row[0]} cats)" for row in rows[: len(COUNTS)])
    new, known = (middle(row[4]) for row in rows[-3:-1])
    starts = f"From a new network and from one that knows faces: pixel distance {new} and {known}"
    columns = ["cats", "mirrored", "network at the start", "steps", "pixel distance", "copies, percent"]
    note = f"One training run each for {LONG} steps, three for {SHORT}: median and range."
    publish("Own images", columns, rows, summary=f"{numbers}. {starts}.", note=note)
