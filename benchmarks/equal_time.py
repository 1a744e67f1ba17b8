"""The same faces at 32×32 and the same seconds: the article's settings against those of lesson 04.

    python benchmarks/equal_time.py        ten minutes on two CPU cores

The lesson's recipe runs to its end; the article's settings, in the loop it describes and with
its U-Net scaled down to 32×32, get as many seconds. Pixel distance (lesson 04) and kernel
distance (lesson 07) of 200 samples to 1,000 held-out faces.
"""

import json
import re
import statistics
import time

import torch
from common import ROOT, fresh, publish, spread


def distances(diffusion):
    """Pixel distances and kernel distances, for three seeds."""
    from diffusion_utils import generate, get_data, pixel_distance
    from quality import face_features, kernel_distance, load_classifier

    held_out, classifier = torch.from_numpy(get_data(split="test", limit=1000, size=32)), load_classifier()
    reference = face_features(classifier, held_out)
    drawn = [generate(diffusion, n=200, seed=seed).cpu() for seed in (1, 2, 3)]
    pixels = [pixel_distance(images, held_out) for images in drawn]
    return pixels, [kernel_distance(face_features(classifier, images), reference) for images in drawn]


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
    rows = [[name, f"{seconds:.0f}", f"{steps:,}", f"{images:,}", spread(pixels), spread(kernels)]
            for name, (seconds, steps, images, (pixels, kernels)) in (("article's settings", theirs), ("lesson 04", ours))]  # fmt: skip
    pixels, kernels = (statistics.mean(ours[3][i]) / statistics.mean(theirs[3][i]) for i in (0, 1))
    publish("Equal time", ["32×32", "seconds", "steps", "images", "pixel distance, three seeds", "kernel distance"], rows,
            f"Ratio of the mean distances: {pixels:.2f} of pixels, {kernels:.2f} of the kernel.")  # fmt: skip
