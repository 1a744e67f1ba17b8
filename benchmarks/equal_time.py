"""The same faces at 32×32 and the same seconds: the article's settings against those of lesson 04.

    python benchmarks/equal_time.py        ten minutes on two CPU cores

The lesson's recipe runs to its end; the article's settings, in the loop it describes and with
its U-Net scaled down to 32×32, get as many seconds. Pixel distance and kernel distance
(lesson 07) of 200 samples to 1,000 held-out faces.
"""

import statistics
import time

import torch
from common import articles_loop, fresh, publish, spread


def distances(diffusion):
    """Pixel distances and kernel distances, for three seeds."""
    from diffusion_utils import generate, get_data
    from more.quality import face_features, kernel_distance, load_classifier, pixel_distance

    held_out, classifier = torch.from_numpy(get_data(split="test", limit=1000, size=32)), load_classifier()
    reference = face_features(classifier, held_out)
    drawn = [generate(diffusion, n=200, seed=seed).cpu() for seed in (1, 2, 3)]
    pixels = [pixel_distance(images, held_out) for images in drawn]
    return pixels, [kernel_distance(face_features(classifier, images), reference) for images in drawn]


def lesson():
    """What lesson 04 does on a CPU."""
    from diffusion_utils import CPU_RECIPE, CPU_SHAPE, Diffusion, DiffusionConfig, get_data, get_loader, train

    torch.manual_seed(0)
    diffusion, batch_size = Diffusion(DiffusionConfig(**CPU_SHAPE)), 32
    torch.nn.init.zeros_(diffusion.unet.out.weight)
    torch.nn.init.zeros_(diffusion.unet.out.bias)
    loader = get_loader(get_data(size=CPU_SHAPE["image_size"]), batch_size)
    start = time.perf_counter()
    steps = len(train(diffusion, loader, **CPU_RECIPE)["loss"])
    return time.perf_counter() - start, steps, steps * batch_size, distances(diffusion)


def article(seconds):
    """The article's loop for as many seconds."""
    from diffusion_utils import Diffusion, DiffusionConfig, get_data, get_loader

    torch.manual_seed(0)
    diffusion, batch_size = Diffusion(DiffusionConfig(32, (16, 32, 48, 64), 2)), 64
    loader, start = get_loader(get_data(size=32), batch_size, seed=0), time.perf_counter()
    for steps, _ in enumerate(articles_loop(diffusion, loader), 1):
        if (took := time.perf_counter() - start) > seconds:
            return took, steps, steps * batch_size, distances(diffusion)


if __name__ == "__main__":
    ours = fresh(lesson)
    theirs = fresh(article, ours[0])
    rows = []
    for name, (seconds, steps, images, (pixels, kernels)) in (
        ("article's settings", theirs),
        ("lesson 04", ours),
    ):
        rows.append([name, f"{seconds:.0f}", f"{steps:,}", f"{images:,}", spread(pixels), spread(kernels)])
    pixels, kernels = (statistics.mean(ours[3][i]) / statistics.mean(theirs[3][i]) for i in (0, 1))
    columns = ["32×32", "seconds", "steps", "images", "pixel distance, three seeds", "kernel distance"]
    note = f"Ratio of the mean distances: {pixels:.2f} of pixels, {kernels:.2f} of the kernel."
    publish("Equal time", columns, rows, note)
