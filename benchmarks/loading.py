"""Loading 3,000 JPEGs of 178×218: `map` with lists of pixels, against `get_data`.

    python benchmarks/loading.py              two minutes on two CPU cores

Memory is what a fresh process has at most, less what it has after its imports and one small
call, for `datasets` imports some of its own parts late. The array itself has
3,000 · 3 · 64 · 64 · 4 bytes, 141 MB.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from common import fresh, memory, middle, publish, spread

N = 3000


def make(folder):
    """The toy faces, enlarged to the size of CelebA's images, as one parquet file."""
    import io

    import datasets
    from PIL import Image

    from diffusion_utils import TOY_FACES

    def jpeg(image):
        buffer = io.BytesIO()
        image.resize((178, 178), Image.Resampling.BICUBIC).resize((178, 218)).save(buffer, "JPEG", quality=90)
        return {"bytes": buffer.getvalue(), "path": None}

    faces = datasets.load_dataset(str(TOY_FACES), split="train")
    rows = datasets.Dataset.from_dict({"image": [jpeg(row["image"]) for row in faces]})
    Path(folder, "data").mkdir()
    rows.cast_column("image", datasets.Image()).to_parquet(str(Path(folder, "data", "train-00000.parquet")))


def one_array(folder):
    """`get_data` of the course."""
    from diffusion_utils import get_data

    get_data(limit=1)
    before, start = memory("VmRSS"), time.perf_counter()
    data = get_data(folder, limit=N)
    assert data.shape == (N, 3, 64, 64)
    return time.perf_counter() - start, memory() - before


def lists(folder):
    """As the article describes it: `map` turns each image into a list, and caches all of them."""
    import datasets
    import numpy as np
    import torch

    from diffusion_utils import get_data

    get_data(limit=1)
    cache = tempfile.mkdtemp()
    before, start = memory("VmRSS"), time.perf_counter()
    rows = datasets.load_dataset(folder, split="train", cache_dir=cache).shuffle(seed=0).select(range(N))
    pixels = rows.map(lambda row: {"pixel": np.array(row["image"].resize((64, 64))).transpose(2, 0, 1).tolist()},
                      remove_columns=["image"])  # fmt: skip
    data = torch.tensor(np.array(pixels["pixel"][:], dtype=np.float32)) / 255
    assert data.shape == (N, 3, 64, 64)
    result = time.perf_counter() - start, memory() - before
    shutil.rmtree(cache)
    return result


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fresh(make, folder)
        sides = {"`map` with lists": lists, "`get_data`": one_array}
        results = {name: [] for name in sides}
        for _ in range(3):
            for name, function in sides.items():
                results[name].append(fresh(function, folder))
    base = statistics.median(s for s, _ in results["`map` with lists"])
    rows = []
    for name, values in results.items():
        seconds, used = zip(*values)
        faster, part = base / statistics.median(seconds), statistics.median(used) / 140.6
        rows.append([name, spread(seconds), f"{faster:.1f}", spread(used, 0), f"{part:.2f}"])
    columns = [
        "3,000 JPEGs of 178×218 to 64×64",
        "seconds",
        "times as fast",
        "memory, MB",
        "of the array's size",
    ]
    (_, lists, _, _, lists_size), (_, ours, _, _, size) = rows
    summary = f"{middle(lists)} and {middle(ours)} s, {lists_size} and {size} times the array's size."
    publish("Data", columns, rows, summary=summary)
