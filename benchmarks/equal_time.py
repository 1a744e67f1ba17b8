"""The same faces at 32×32 and the same seconds: the article's settings against those of lesson 04.

    python benchmarks/equal_time.py        ten minutes on two CPU cores

The lesson's recipe runs to its end; the article's settings, in the loop it describes and with
its U-Net scaled down to 32×32, get as many seconds. Pixel distance (lesson 04) of 200 samples.
"""

import json
import re
import statistics
import time

import torch
from common import ROOT, fresh, publish, spread


def distances(diffusion):
    from diffusion_utils import generate, get_data, pixel_distance

    held_out = get_data(split="test", limit=1000, size=32)
    return [pixel_distance(generate(diffusion, n=200, seed=seed), held_out) for seed in (1, 2, 3)]


def lesson():
    """What lesson 04 does, with the recipe that is read from its cell."""
    import diffusion_utils
    from diffusion_utils import Diffusion, DiffusionConfig, get_data, get_loader, train

    cells = json.loads((ROOT / "notebooks" / "04_training.ipynb").read_text())["cells"]
    source = next("".join(cell["source"]) for cell in cells if "recipe = dict(" in "".join(cell["source"]))
    branch = source.split("else:\n")[1].split("\n\n")[0]
    settings = {}
    exec(re.sub(r"^    ", "", branch, flags=re.MULTILINE), {"diffusion_utils": diffusion_utils}, settings)
    torch.manual_seed(0)
    diffusion = Diffusion(DiffusionConfig(**settings["shape"]))
    torch.nn.init.zeros_(diffusion.unet.out.weight)
    torch.nn.init.zeros_(diffusion.unet.out.bias)
    loader = get_loader(get_data(size=32), settings["batch_size"])
    start = time.perf_counter()
    steps = len(train(diffusion, loader, **settings["recipe"])["loss"])
    return time.perf_counter() - start, steps, steps * settings["batch_size"], distances(diffusion)


def article(seconds):
    """AdamW 2e-4, batches of 64, no warm-up, no decay, no average of the weights."""
    from diffusion_utils import Diffusion, DiffusionConfig, get_data, get_loader, training_step

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion = Diffusion(DiffusionConfig(32, (16, 32, 48, 64), 2)).to(device).train()
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=2e-4, weight_decay=1e-4)
    loader, steps, start = get_loader(get_data(size=32), 64, seed=0), 0, time.perf_counter()
    while True:
        for images in loader:
            training_step(diffusion, images.to(device), optimizer)
            steps += 1
            if time.perf_counter() - start > seconds:
                return time.perf_counter() - start, steps, steps * 64, distances(diffusion)


if __name__ == "__main__":
    ours = fresh(lesson)
    theirs = fresh(article, ours[0])
    rows = [[name, f"{seconds:.0f}", f"{steps:,}", f"{images:,}", spread(d)]
            for name, (seconds, steps, images, d) in (("article's settings", theirs), ("lesson 04", ours))]  # fmt: skip
    ratio = statistics.mean(ours[3]) / statistics.mean(theirs[3])
    publish("Equal time", ["32×32", "seconds", "steps", "images", "pixel distance, three seeds"], rows,
            f"Ratio of the mean distances: {ratio:.2f}.")  # fmt: skip
