"""Pack the emoji of lesson 10: drawings of animals, food, places, things and flags from Noto Emoji, on white.

    npm pack emoji-datasource-google@16.0.0
    python data/pack_emoji.py emoji-datasource-google-16.0.0.tgz      # writes data/emoji/

People, faces and signs with letters stay out, and so does what looks like another one: the flag of Norway is three
emoji, and there are 24 clocks. Each image keeps its 64×64 pixels, in at most 256 colours.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

FOLDER = Path(__file__).resolve().parent / "emoji"
CATEGORIES = {"Animals & Nature": "nature", "Food & Drink": "food", "Travel & Places": "places",
              "Activities": "activities", "Objects": "things", "Flags": "flags"}  # fmt: skip
ALIKE = 0.025  # two images are alike when their pixels, in [0, 1], differ by less, on average
TEST_SHARE = 6  # one image of so many is set aside


def open_emoji(path):
    """Yield `(name, category, image)` of each emoji in the package, in Unicode's order; `image` is RGB, 64×64."""
    wanted = "package/emoji.json", "package/img/google/64/"
    with tarfile.open(path) as package:  # from beginning to end: it is packed as a whole
        members = [member for member in package if member.name.startswith(wanted)]
        files = {Path(member.name).name: package.extractfile(member).read() for member in members}
    for row in sorted(json.loads(files["emoji.json"]), key=lambda row: row["sort_order"]):
        if row["category"] in CATEGORIES:
            image = Image.open(io.BytesIO(files[row["image"]])).convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            name = row["short_name"].removeprefix("flag-")
            yield name, CATEGORIES[row["category"]], Image.alpha_composite(white, image).convert("RGB")


def without_doubles(emoji):
    """The rows of `emoji` that look like none before them."""
    kept, pixels = [], np.empty((0, 32 * 32 * 3), np.float32)
    for name, category, image in emoji:
        small = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.float32).reshape(1, -1) / 255
        if (np.abs(pixels - small).mean(1) < ALIKE).any():
            continue
        kept.append((name, category, image))
        pixels = np.concatenate([pixels, small])
    return kept


def encode(image):
    """The bytes of a PNG with a palette, and no word about where it comes from."""
    file = io.BytesIO()
    few = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def sheet(images, columns=24):
    """All `images`, reduced to 32×32, in one image with `columns` columns."""
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (34 * columns, 34 * rows), "white")
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        page.paste(image.resize((32, 32), Image.Resampling.BOX), (34 * column, 34 * row))
    return page


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", help="emoji-datasource-google-16.0.0.tgz")
    emoji = without_doubles(open_emoji(parser.parse_args().package))
    order = np.random.default_rng(0).permutation(len(emoji)).tolist()
    count = len(emoji) // TEST_SHARE
    kinds = datasets.Features(
        image=datasets.Image(),
        name=datasets.Value("string"),
        category=datasets.ClassLabel(names=list(CATEGORIES.values())),
    )
    (FOLDER / "data").mkdir(parents=True, exist_ok=True)
    for split, places in {"test": order[:count], "train": order[count:]}.items():
        names, categories, images = zip(*(emoji[place] for place in places))
        files = [{"bytes": encode(image), "path": None} for image in images]
        table = dict(image=files, name=names, category=categories)
        rows = datasets.Dataset.from_dict(table, kinds)
        rows.to_parquet(FOLDER / "data" / f"{split}-00000-of-00001.parquet")
        print(split, len(rows), {name: categories.count(name) for name in CATEGORIES.values()})
    sheet([image for _, _, image in emoji][::4]).save(FOLDER / "samples.png", optimize=True)


if __name__ == "__main__":
    main()
