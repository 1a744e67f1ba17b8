"""Your own pictures, in the order of lesson 10.

Lesson 10  picture_files, look_through, Pictures, publish

    rows = picture_files("my photos")            whatever its files are called
    for path, picture, reason in look_through(rows):
        ...
    data = get_data(rows)
"""

import warnings
from collections import Counter
from pathlib import Path

import huggingface_hub
import numpy as np
import torch

from diffusion_utils import (
    _check,
    _files,
    _pictures,
    _read_picture,
    _reason,
    _rows,
    _Unreadable,
    _whole_number,
    open_pictures,
)

# Endings of pictures that Pillow may not open: they are counted, and what can be done is said.
PHOTOS = {".heic", ".heif", ".avif", ".jxl", ".qoi", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2",
          ".svg", ".eps", ".wmf", ".emf"}  # fmt: skip


def picture_files(folder):
    """All picture files in `folder` and the folders in it, sorted, as rows for `get_data`. Lesson 10.

    Files are taken by their endings; hidden ones are left out, and nothing is guessed from names.
    Pictures that this Pillow cannot open (.heic, .dng) are counted in one warning. Raises ValueError
    that counts the endings which are there when no file is a picture, FileNotFoundError when there
    is no such folder.
    """
    _check(Path(folder).is_dir(), f"folder: there is no folder {str(folder)!r}", FileNotFoundError)
    files = _files(folder)
    pictures = _pictures(files)
    _tell_endings(folder, files, pictures)
    return _rows(pictures)


def _tell_endings(folder, files, pictures):
    """Warn of pictures that Pillow cannot open; ValueError when there are no others."""
    endings = Counter(path.suffix.lower() or "without an ending" for path in files)
    there = ", ".join(f"{n} {ending}" for ending, n in endings.most_common(5)) or "no files at all"
    opened = {path.suffix.lower() for path in pictures}
    closed = ", ".join(f"{n} {ending}" for ending, n in sorted(endings.items()) if ending in PHOTOS - opened)
    advice = (
        "save such photos as JPEG or PNG (for .heic, the package pillow-heif teaches Pillow to open them)"
    )
    nothing = f"folder: no file in {str(folder)!r} is a picture that Pillow opens; there are {there}"
    _check(pictures, f"{nothing}; {advice}" if closed else nothing)
    if closed:
        warnings.warn(f"folder: Pillow cannot open, and leaves out, {closed}; {advice}", stacklevel=3)


def look_through(source, size=64, split="train"):
    """Yield `(path, picture, reason)` for each file of `source`, in no special order. Lesson 10.

    `picture` is a float32 array (3, size, size) in [0, 1], and `reason` empty; or `picture` is
    None, and `reason` says why it cannot be read. `path` is as the rows have it, a file's own or a
    mere name, and may be "". Raises what `get_data` raises for a source.
    """
    rows, column = open_pictures(source, split, streaming=False)
    for row in rows:
        file = row[column] or {"path": None, "bytes": None}  # a row without a picture
        path = file["path"] or ""
        try:
            yield path, _read_picture(file, size) / np.float32(255), ""
        except _Unreadable as error:
            yield path, None, str(error).partition(" cannot be read (")[2][:-1]


class Pictures(torch.utils.data.Dataset):
    """All pictures of `source`, each decoded when it is asked for: (3, size, size) in [0, 1]. Lesson 10.

    For more pictures than fit into memory. From a hub id they are downloaded first. Raises
    what `get_data` raises for a source, and ValueError for a file that is not a picture: look
    through them before a long training.
    """

    def __init__(self, source, *, split="train", size=64, seed=0):
        self.size = _whole_number("size", size)
        self.rows, self.column = open_pictures(source, split, seed, streaming=False)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return _read_picture(self.rows[index][self.column], self.size) / np.float32(255)


def publish(diffusion, name, token=None, **options):
    """Publish a model on the hub as `name`, "owner/name"; `options` are those of `push_to_hub`. Lesson 10.

    The token is kept nowhere. Raises PermissionError without one (`huggingface_hub.login()` or
    HF_TOKEN give one), ConnectionError when the hub refuses or cannot be reached, ValueError or
    TypeError for a name or an option that cannot be.
    """
    known = token or huggingface_hub.get_token()
    _check(known, "token: there is none; call huggingface_hub.login() or set HF_TOKEN first", PermissionError)
    try:
        return diffusion.push_to_hub(name, token=token, **options)
    except (TypeError, ValueError):  # a wrong option or name, which says so itself
        raise
    except Exception as error:  # the hub's clients have no common class for what can go wrong
        raise ConnectionError(
            f"{name} was not published: {_reason(error)}. The model here is unchanged"
        ) from error
