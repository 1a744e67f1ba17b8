"""Your own pictures, in the order of lesson 09.

Lesson 09  picture_files, look_through, Pictures, publish

    rows = picture_files("my photos")            whatever its files are called
    for name, picture, reason in look_through(rows):
        ...
    data = get_data(rows)
"""

from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import torch
from PIL import Image

from diffusion_utils import _check, _read_picture, _reason, _whole_number, open_pictures


def picture_files(folder):
    """All picture files in `folder` and the folders in it, sorted, as rows for `get_data`. Lesson 09.

    Files are taken by their endings, those that Pillow opens; hidden ones are left out. Unlike
    `datasets`, it guesses nothing from names. Raises ValueError that lists the endings which are
    there when no file is a picture, FileNotFoundError when there is no such folder.
    """
    _check(Path(folder).is_dir(), f"folder: there is no folder {str(folder)!r}", FileNotFoundError)
    kinds = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    paths = [
        path for path in sorted(Path(folder).rglob("*")) if path.is_file() and not path.name.startswith(".")
    ]
    files = [{"path": str(path), "bytes": None} for path in paths if path.suffix.lower() in kinds]
    endings = sorted({path.suffix for path in paths})
    _check(files, f"folder: no picture in {str(folder)!r}, only files that end in {endings}")
    return datasets.Dataset.from_dict(
        {"image": files}, datasets.Features({"image": datasets.Image(decode=False)})
    )


def look_through(source, size=64, split="train"):
    """Yield `(name, picture, reason)` for each file of `source`, in no special order. Lesson 09.

    `picture` is a float32 array (3, size, size) in [0, 1], and `reason` empty; or `picture` is
    None, and `reason` says why it cannot be read. Raises what `get_data` raises for a source.
    """
    rows, column = open_pictures(source, split, streaming=False)
    for row in rows:
        name = Path((row[column] or {}).get("path") or "without a name").name
        try:
            yield name, _read_picture(row[column], size) / np.float32(255), ""
        except ValueError as error:
            yield name, None, str(error)


class Pictures(torch.utils.data.Dataset):
    """All pictures of `source`, each decoded when it is asked for: (3, size, size) in [0, 1]. Lesson 09.

    For more pictures than fit into memory. From a hub id they are downloaded first. Raises
    what `get_data` raises for a source, and ValueError for a file that is not a picture.
    """

    def __init__(self, source, *, split="train", size=64, seed=0):
        self.size = _whole_number("size", size)
        self.rows, self.column = open_pictures(source, split, seed, streaming=False)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return _read_picture(self.rows[index][self.column], self.size) / np.float32(255)


def publish(diffusion, name, token=None, **options):
    """Publish a model on the hub as `name`, "owner/name"; `options` are those of `push_to_hub`. Lesson 09.

    The token is kept nowhere. Raises PermissionError without one (`huggingface_hub.login()` or
    HF_TOKEN give one) and ConnectionError when the hub refuses or cannot be reached.
    """
    known = token or huggingface_hub.get_token()
    _check(known, "token: there is none; call huggingface_hub.login() or set HF_TOKEN first", PermissionError)
    try:
        return diffusion.push_to_hub(name, token=token, **options)
    except Exception as error:  # the hub's clients have no common class for what can go wrong
        raise ConnectionError(
            f"{name} was not published: {_reason(error)}. The model here is unchanged"
        ) from error
