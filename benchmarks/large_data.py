"""More images than memory: 200,000 faces as parquet, and the memory that training on them takes.

    python benchmarks/large_data.py        ten minutes on two CPU cores, 1 GB of disk

As one array the images would take 200,000 · 3 · 64 · 64 · 4 bytes, 9.2 GB.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path

from common import fresh, memory, publish

N, SHARDS, STEPS = 200_000, 40, 100


def draw(arguments):
    """One shard, in the hub's layout: the toy faces mirrored, moved and tinted at random."""
    import io

    import datasets
    import numpy as np
    from PIL import Image, ImageChops

    from diffusion_utils import TOY_FACES

    folder, shard = arguments
    rng, rows = np.random.default_rng(shard), []
    faces = list(datasets.load_dataset(str(TOY_FACES), split="train")["image"])
    for _ in range(N // SHARDS):
        image = ImageChops.offset(faces[rng.integers(len(faces))], *(int(x) for x in rng.integers(-4, 5, 2)))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tint = Image.new("RGB", image.size, tuple(int(x) for x in rng.integers(200, 256, 3)))
        buffer = io.BytesIO()
        ImageChops.multiply(image, tint).save(buffer, "PNG", compress_level=1)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    table = datasets.Dataset.from_dict({"image": rows}).cast_column("image", datasets.Image())
    table.to_parquet(str(Path(folder, "data", f"train-{shard:05}.parquet")))


def load_and_train(folder, limit):
    """Peak memory on top of the imports, and images/s, for some steps of a small model on 64×64 images."""
    import datasets

    from diffusion_course.images import LazyImages
    from diffusion_utils import Diffusion, DiffusionConfig, Training, get_loader

    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = cache
        before, mapped, start = memory("VmRSS"), memory("RssFile"), time.perf_counter()
        images = LazyImages(folder, split=f"train[:{limit}]")
        opened = time.perf_counter() - start
        training = Training(Diffusion(DiffusionConfig(64, (8, 16, 32), 1)), get_loader(images, 64))
        start = time.perf_counter()
        for step in training:
            if step == STEPS:
                break
        speed = STEPS * 64 / (time.perf_counter() - start)
        return len(images), opened, speed, memory() - before, memory("RssFile") - mapped


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data").mkdir()
        with multiprocessing.get_context("spawn").Pool() as pool:
            pool.map(draw, [(folder, shard) for shard in range(SHARDS)], chunksize=1)
        size = sum(path.stat().st_size for path in Path(folder, "data").iterdir()) / 2**20
        rows = []
        for limit in (N // 100, N):
            count, *measured = fresh(load_and_train, folder, limit)
            digits = zip(measured, (1, 0, 0, 0))  # opened in s, images/s, memory, of it mapped
            array = f"{count * 3 * 64 * 64 * 4 / 2**20:,.0f}"
            rows.append([f"{count:,}", *(f"{value:.{places}f}" for value, places in digits), array])
    columns = ["images", "opened in s", "images/s", "memory, MB", "of it mapped, MB", "as one array, MB"]
    note = (
        f"The parquet files have {size:.0f} MB. Mapped is what is read from the disk's files in place: "
        "the system takes that memory back when it needs it."
    )
    few, many = (f"{int(row[3]) - int(row[4]):,}" for row in rows)
    summary = f"{few} and {many} MB, and up to {rows[1][4]} MB of files mapped from the disk."
    publish("Large data", columns, rows, summary=summary, note=note)
