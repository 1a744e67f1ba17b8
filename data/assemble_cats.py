"""Put together the cats of lesson 10 from the parts that David Revoy has drawn: body, fur, eyes, mouth, accessory.

    pip download --no-deps robohash==2.0
    python data/assemble_cats.py robohash-2.0-py3-none-any.whl      # writes data/cats/

There are 15 · 10 · 15 · 10 · 16 = 360,000 different cats. The data set has 1,200 of them, drawn by lot and no two
of which look the same, on white, with 64×64 pixels in at most 64 colours.
"""

import argparse
import io
import zipfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "cats"
PARTS = ["body", "fur", "eyes", "mouth", "accessory"]  # from the back to the front
COUNTS = {"train": 1000, "test": 200}
SIZE = 64


def open_parts(path):
    """The parts in the package, four times as large as the images: {name: [image, ...]}."""
    parts = {part: [] for part in PARTS}
    with zipfile.ZipFile(path) as package:
        for name in sorted(package.namelist()):  # robohash/sets/set4/000#00body/003#body3.png
            if "/set4/" in name and name.endswith(".png"):
                part = Path(name).stem.split("#")[1].rstrip("0123456789")
                image = Image.open(io.BytesIO(package.read(name))).convert("RGBA")
                parts[part].append(image.resize((4 * SIZE, 4 * SIZE), Image.Resampling.BOX))
    return parts


def assemble(parts, numbers):
    """A cat, RGB, from the number of each of its parts."""
    cat = Image.new("RGBA", (4 * SIZE, 4 * SIZE), "white")
    for part, number in zip(PARTS, numbers):
        cat = Image.alpha_composite(cat, parts[part][number])
    return cat.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)


def encode(image):
    """The bytes of a PNG with a palette."""
    file = io.BytesIO()
    few = image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", help="robohash-2.0-py3-none-any.whl")
    parts = open_parts(parser.parse_args().package)
    shape = [len(parts[part]) for part in PARTS]
    cats, looks = [], np.empty((0, SIZE // 2, SIZE // 2, 3))
    for chosen in np.random.default_rng(0).permutation(np.prod(shape)):
        numbers = [int(number) for number in np.unravel_index(chosen, shape)]
        look = np.asarray(assemble(parts, numbers).reduce(2), float)[None]
        if (np.abs(looks - look).mean((1, 2, 3)) > 0.5).all():  # of 255; a scarf may hide the mouth
            looks = np.concatenate([looks, look])
            cats.append(numbers)
        if len(cats) == sum(COUNTS.values()):
            break
    kinds = datasets.Features(image=datasets.Image(), **{part: datasets.Value("int32") for part in PARTS})
    (FOLDER / "data").mkdir(parents=True, exist_ok=True)
    for split, count in COUNTS.items():
        some, cats = cats[:count], cats[count:]
        columns = dict(zip(PARTS, map(list, zip(*some))))
        columns["image"] = [{"bytes": encode(assemble(parts, numbers)), "path": None} for numbers in some]
        table = datasets.Dataset.from_dict(columns, kinds)
        table.to_parquet(FOLDER / "data" / f"{split}-00000-of-00001.parquet")
        if split == "train":
            page = Image.new("RGB", (16 * SIZE, 6 * SIZE), "white")
            for place, numbers in enumerate(some[:96]):
                page.paste(assemble(parts, numbers), (place % 16 * SIZE, place // 16 * SIZE))
            page.quantize(256).save(FOLDER / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
