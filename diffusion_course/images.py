"""Your own images, whatever they are called and wherever they lie, in the order of lesson 10.

data = get_data(any_images("holiday.zip"))       what cannot be read is left out, and counted
for path, image, reason in look_through("holiday.zip"):
    ...                                          and this is why
varied = Augmented(data, mirror)                 each image a little different in each epoch
copied, places = copies(drawn, data)             which drawings are copies, and of what
lazy = LazyImages("holiday")                     more images than memory
"""

import io
import os
import random
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import huggingface_hub
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from diffusion_utils import ROOT, open_images, seed_of, square_rgb

CATS = ROOT / "data" / "cats"  # 1,200 cats that David Revoy has drawn
CATS_MODEL = ROOT / "pretrained" / "cats_32"  # the network of lesson 04, trained on them
HIDDEN = ".", "__MACOSX", "@eaDir", "$RECYCLE.BIN"  # files and folders of the system begin so
SPLITS = {"train", "training", "valid", "validation", "val", "dev", "test", "testing", "eval"}
# What Pillow opens only with other programs, tables of weather data, and films.
OTHER_FORMATS = {"EPS", "WMF", "HDF5", "GRIB", "BUFR", "MPEG"}


# Find the files -------------------------------------------------------------------------


def list_files(folder):
    """All files in `folder` and the folders in it, sorted, but hidden ones and the system's own. Lesson 10.

    Links are followed, and each folder is entered once, even when a link leads back into it. A folder that
    may not be read is passed over with a warning.
    """

    def warn(error):
        warnings.warn(f"source: {Path(error.filename).name!r} is left out ({error.strerror})", stacklevel=6)

    files, seen = [], set()
    for here, folders, names in os.walk(os.path.abspath(folder), onerror=warn, followlinks=True):
        new = os.path.realpath(here) not in seen
        seen.add(os.path.realpath(here))
        folders[:] = [name for name in folders if new and not name.startswith(HIDDEN)]
        files += [Path(here, name) for name in names if new and not name.startswith(HIDDEN)]
    return sorted((path for path in files if path.is_file() or path.is_symlink()), key=str)


def can_open(path):
    """Whether Pillow opens files with the extension of `path` on its own. Lesson 10."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in Image.OPEN and kind not in OTHER_FORMATS


def of_split(files, split):
    """Those of `files` that belong to `split`. Lesson 10.

    Where all lie in folders called train, test and so on, these are the splits; else all are "train", also
    those in folders of splits one level down, such as cats/test.
    """
    root = os.path.commonpath([path.parent for path in files])
    parts = [path.relative_to(root).parts[0].lower() for path in files]
    if not SPLITS.issuperset(parts):
        if SPLITS.intersection(parts):
            warnings.warn("source: not all images lie in folders of splits, so all are 'train'", stacklevel=4)
        parts = ["train"] * len(files)
    if split not in parts:
        raise ValueError(f"split: there is no {split!r}, only {sorted(set(parts))}")
    return [path for path, part in zip(files, parts) if part == split]


@cache
def unzipped(path, *changed):
    """A folder with what the zip file `path` holds since it `changed`, until the program ends. Lesson 10."""
    folder = TemporaryDirectory(ignore_cleanup_errors=True)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            entry.filename = entry.filename.replace("\\", "/")  # as some programs for Windows write them
            archive.extract(entry, folder.name)
    return folder


def open_table(source, split="train"):
    """The rows of a folder in hub layout, or of a data set on the hub, which is downloaded once. Lesson 10.

    What `datasets` makes of a folder is kept until one of its files is replaced. A warning counts the images and
    tables there that it puts into no split. Raises ConnectionError where the hub is neither reached nor needed before.
    """
    if not Path(source).is_dir():
        try:
            return datasets.load_dataset(str(source), split=split)
        except ConnectionError as error:
            advice = (
                "what was loaded before opens offline, and HF_ENDPOINT may name another address of the hub"
            )
            raise ConnectionError(f"source: {error}; {advice}") from error
    files = [file for file in list_files(source) if file.suffix == ".parquet" or can_open(file)]
    places = [file.stat() for file in files if file.exists()]
    times = [(place.st_mtime_ns, place.st_ctime_ns, place.st_ino, place.st_size) for place in places]
    kept = Path(datasets.config.HF_DATASETS_CACHE, f"folder-{zlib.crc32(repr(times).encode()):08x}")
    builder = datasets.load_dataset_builder(str(source), cache_dir=str(kept))
    taken = set(map(os.path.realpath, chain(*builder.config.data_files.values())))
    others = [file.name for file in files if os.path.realpath(file) not in taken]
    if others:
        sentence = f"source: {len(others)} files beside its tables are left out, such as {others[0]!r}"
        warnings.warn(sentence, stacklevel=4)
    builder.download_and_prepare()
    if not builder.info.splits.total_num_examples:
        raise ValueError("source: its tables are empty; name the folder of the images, or a list of files")
    return builder.as_dataset(split)


def find_images(source, split="train"):
    """The images of `source` as a `datasets.Dataset`; no file is opened yet. Lesson 10.

    `source`: a folder, a zip file, one file, a list of files, or what `open_images` takes; a hub id is
    downloaded. A folder is listed, and nothing is guessed from names but splits (see `of_split`). What Pillow
    does not open is counted in one warning. Raises ValueError where there is no image, or no such split, and
    BadZipFile where a single file in a zip file is broken.
    """
    if isinstance(source, datasets.Dataset):
        return source
    if isinstance(source, (list, tuple)):
        images = [Path(file).expanduser().absolute() for file in source]
    else:
        path = Path(source).expanduser().absolute()
        if path.suffix.lower() == ".zip" and path.is_file():
            stat = path.stat()
            path = Path(unzipped(path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size).name)
        files = list_files(path) if path.is_dir() else [path]
        if not path.exists() or any(file.suffix == ".parquet" for file in files):
            return open_table(path if path.exists() else source, split)
        images = [file for file in files if can_open(file)]
        others = Counter(file.suffix.lower() or "no extension" for file in files if not can_open(file))
        some = dict(others.most_common(5))
        if not images:
            raise ValueError(f"source: there is no image in {str(source)!r}, only {some}")
        if others:
            warnings.warn(f"source: {others.total()} files left out, Pillow opens no {some}", stacklevel=3)
        images = of_split(images, split)
    rows = []
    for file in images:
        name = str(file).encode(errors="replace").decode()  # a table holds UTF-8 only
        rows.append({"path": name, "bytes": None if name == str(file) else file.read_bytes()})
    return datasets.Dataset.from_dict({"image": rows}, datasets.Features(image=datasets.Image()))


# Read them ------------------------------------------------------------------------------


def read_image(file, about=None):
    """Decode a file as a row holds it: `(image, "")`, or `(None, reason)` where Pillow cannot. Lesson 10.

    With `about`, a JPEG may be decoded at a fraction of its size that is no smaller, which is faster.
    """
    try:
        with Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])) as image:
            image.draft(None, about)
            image.load()
            return image, ""
    except UnidentifiedImageError:
        return None, "it is not an image"
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        return None, (str(error) or repr(error)).splitlines()[0]


def eight_bits(image):
    """The grey values of a PIL image of 16 bits or more, or of floats, scaled to 8 bits. Lesson 10.

    White is 65,535 in 16 bits; in others 1, 255 or 65,535, whichever the largest value comes closest to.
    """
    pixels = np.nan_to_num(np.asarray(image), posinf=0, neginf=0)
    white = 65535
    if not image.mode.startswith("I;16"):
        white = next((white for white in (1, 255) if pixels.max() < 1.5 * white), white)
    return Image.fromarray((pixels / white * 255).clip(0, 255).round().astype(np.uint8))


def tidy_image(image):
    """`(image, changed)`: a PIL image upright and in 8 bits, and whether its file needs that help. Lesson 10.

    Any program turns an image as its EXIF note says; where that note is broken, the image stays as it is.
    """
    changed = image.mode[0] in "IF"
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # whatever a broken note leads to
        changed = True
    return eight_bits(image) if image.mode[0] in "IF" else image, changed


def any_images(source, split="train"):
    """The images of `source` as rows for `get_data`; each is opened once, to see if it is whole. Lesson 10.

    `source`: see `find_images`. Broken files are left out, with one warning that counts them and names the
    first. Images of 16 bits or of floats, and those with a broken EXIF note, become PNG in memory; all others
    stay where they are. The rows come shuffled, so that a part of them is a fair sample.
    """
    rows = open_images(find_images(source, split)).cast_column("image", datasets.Image(decode=False))
    places, changed, broken = [], [], []
    for place, row in enumerate(tqdm(rows, desc="checking", unit=" images", delay=2)):
        file = row["image"] or {"path": "a row", "bytes": b""}
        image, reason = read_image(file, about=(64, 64))
        if reason:
            broken.append(f"{Path(file['path'] or 'an image').name} cannot be read ({reason})")
        elif tidy_image(image)[1]:
            png = io.BytesIO()
            tidy_image(read_image(file)[0])[0].save(png, "PNG", exif=b"")
            places.append(len(rows) + len(changed))
            changed.append({"path": file["path"], "bytes": png.getvalue()})
        else:
            places.append(place)
    if broken:
        sentence = f"source: {len(broken)} of {len(rows)} images are left out, the first: {broken[0]}"
        if not places:
            raise ValueError(sentence)
        warnings.warn(sentence, stacklevel=2)
    # As plain columns first: an `Image` would look for its path on the disk, and drop the bytes.
    kind = dict(bytes=datasets.Value("binary"), path=datasets.Value("string"))
    more = datasets.Dataset.from_dict({"image": changed}, datasets.Features(image=kind))
    more = more.cast_column("image", datasets.Image(decode=False))
    rows = datasets.concatenate_datasets([rows, more]).select(places)
    return rows.cast_column("image", datasets.Image())


def look_through(source, size=64, split="train"):
    """Yield `(path, image, reason)` for each file of `source`, in no special order. Lesson 10.

    `image` is a float32 array (3, size, size) in [0, 1], and `reason` empty; or `image` is None, and `reason`
    says why it cannot be read. `path` is as the rows have it, a file's own or a mere name, and may be "".
    """
    rows = open_images(find_images(source, split)).cast_column("image", datasets.Image(decode=False))
    for row in rows:
        file = row["image"] or {"path": None, "bytes": b""}
        image, reason = read_image(file)
        if not reason:
            image = np.asarray(square_rgb(tidy_image(image)[0], size)).transpose(2, 0, 1) / np.float32(255)
        yield file["path"] or "", image, reason


# More than memory, and more than there are ----------------------------------------------


class LazyImages(torch.utils.data.Dataset):
    """All images of `source`, each decoded when it is asked for: (3, size, size) in [0, 1]. Lesson 10.

    For more images than fit into memory. `source`: see `find_images`. A broken file is an error when its turn
    comes: give it `any_images(source)`, or small copies, before a long training run.
    """

    def __init__(self, source, *, split="train", size=64, seed=0):
        self.rows = open_images(find_images(source, split), seed=seed)
        self.size = size

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image = square_rgb(self.rows[index]["image"], self.size)
        return np.asarray(image).transpose(2, 0, 1) / np.float32(255)


@contextmanager
def seeded(seed):
    """Inside, all random numbers follow from `seed`; afterwards they go on as before. Lesson 10."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Augmented(torch.utils.data.Dataset):
    """A data set in which image i is `augment(data[i])`, another one in each epoch. Lesson 10.

    `augment` takes a tensor (C, S, S) in [0, 1] and gives one, and may be as random as it likes: its random
    numbers follow from `seed`, the epoch and i. So a training run that is broken off goes on with the same
    images. `Training` calls `set_epoch`.
    """

    def __init__(self, data, augment, seed=0):
        self.data, self.augment, self.seed = data, augment, seed
        self.epoch = torch.tensor(0).share_memory_()  # so that the loader's workers see it change

    def set_epoch(self, epoch):
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        with seeded(seed_of(self.seed, int(self.epoch), index)):
            return self.augment(torch.as_tensor(self.data[index]).clone())


def mirror(image):
    """Left and right exchanged, in half of all cases; for `Augmented`. Lesson 10."""
    return image.flip(-1) if random.random() < 0.5 else image


def copies(drawn, known):
    """Which images of `drawn` (N, 3, S, S) are copies of one of `known` (M, 3, S, S), and of which. Lesson 10.

    Returns `(copied, places)`: N truth values, and the place in `known` of the nearest image, which may be mirrored.
    It counts as a copy's original if it is less than a third as far as the second nearest. Distances are those of images
    averaged down to 16×16, so that single pixels do not matter. An image that is in `known` twice hides its copies: leave
    doubles out.
    """
    here, there = (
        torch.nn.functional.adaptive_avg_pool2d(torch.as_tensor(images).cpu(), 16)
        for images in (drawn, known)
    )
    upright = torch.cdist(here.flatten(1), there.flatten(1))
    mirrored = torch.cdist(here.flatten(1), there.flip(3).flatten(1))
    distances, places = torch.minimum(upright, mirrored).topk(2, largest=False)
    return distances[:, 0] < distances[:, 1] / 3, places[:, 0]


# Give it away ---------------------------------------------------------------------------


def publish(diffusion, name, token=None, **options):
    """Publish a model on the hub as `name`, "owner/name"; `options` are those of `push_to_hub`. Lesson 10.

    The token is kept nowhere. Raises PermissionError without one, before anything is sent.
    """
    if not (token or huggingface_hub.get_token()):
        raise PermissionError("token: there is none; call huggingface_hub.login() or set HF_TOKEN first")
    return diffusion.push_to_hub(name, token=token, **options)
