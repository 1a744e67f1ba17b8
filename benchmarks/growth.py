"""What grows when the work does: images/s, memory and the wait before the first step.

    python benchmarks/growth.py            ten minutes on two CPU cores, 3 GB of disk

One thing changes at a time, from 3,000 images of 64×64 and the article's network: the number of images, in
memory or decoded one by one; the number of pixels; the number of weights. Each row is a process of its own.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path

from common import fresh, memory, publish

WARM_UP, STEPS, REPEATS = 2, 5, 3
ARTICLE = (32, 64, 96, 128)
ROWS = [  # images, lazy, pixels, widths
    (3_000, False, 64, ARTICLE),
    (30_000, False, 64, ARTICLE),
    (30_000, True, 64, ARTICLE),
    (200_000, True, 64, ARTICLE),
    (3_000, False, 32, ARTICLE),
    (3_000, False, 128, ARTICLE),
    (3_000, False, 64, (16, 32, 48, 64)),
    (3_000, False, 64, (64, 128, 192, 256)),
]


def repeat_faces(folder, count):
    """The shipped faces over and over, as parquet files of 3,000 in the hub's layout."""
    import datasets

    from diffusion_utils import TOY_FACES

    faces = datasets.load_dataset(str(TOY_FACES), split="train").select_columns("image")
    for shard, start in enumerate(range(0, count, len(faces))):
        part = faces.select(range(min(len(faces), count - start)))
        part.to_parquet(str(Path(folder, "data", f"train-{shard:05}.parquet")))


def train(folder, count, lazy, size, widths):
    """Seconds from the imports' end to that of the first step, images/s after it, peak memory in MB, weights."""
    import datasets

    from diffusion_course.images import LazyImages
    from diffusion_utils import Diffusion, DiffusionConfig, Training, get_data, get_loader

    with tempfile.TemporaryDirectory() as cache:
        datasets.config.HF_DATASETS_CACHE = cache
        start = time.perf_counter()
        if lazy:
            images = LazyImages(folder, split=f"train[:{count}]", size=size)
        else:
            images = get_data(folder, limit=count, size=size)
        training = Training(Diffusion(DiffusionConfig(size, widths)), get_loader(images, 64))
        ends = []
        for _ in itertools.islice(training, 1 + WARM_UP + STEPS):
            training.history["loss"][-1].item()
            ends.append(time.perf_counter())
        speed = 64 * STEPS / (ends[-1] - ends[WARM_UP])
        return ends[0] - start, speed, memory(), training.diffusion.num_parameters()


if __name__ == "__main__":
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data").mkdir()
        repeat_faces(folder, max(count for count, *_ in ROWS))
        for count, lazy, size, widths in ROWS:
            runs = [fresh(train, folder, count, lazy, size, widths) for _ in range(REPEATS)]
            wait, speed, peak, weights = (statistics.median(values) for values in zip(*runs))
            images = f"{count:,}, {'one by one' if lazy else 'in memory'}"
            network = f"{weights / 1e6:.1f}"
            rows.append([images, size, network, f"{speed:.1f}", f"{wait:.1f}", f"{peak:.0f}"])
            print(*rows[-1], flush=True)
    columns = ["images", "pixels", "million weights", "images/s", "seconds to the first step", "memory, MB"]
    summary = f"{rows[0][3]} images a second; {rows[3][3]} with 200,000 images, {rows[5][3]} at 128×128."
    publish("Growth", columns, rows, summary=summary, note="Batches of 64; medians of three runs each.")
