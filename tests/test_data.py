"""Lesson 01: get_data, get_loader and show."""

import os

import datasets
import numpy as np
import pytest
import torch
from helpers import gradient
from matplotlib import pyplot as plt
from PIL import Image

import diffusion_utils
from diffusion_utils import (
    TOY_FACES,
    _whole_number,
    get_data,
    get_loader,
    open_pictures,
    show,
    square_rgb,
)


def test_get_data_defaults():
    data = get_data()
    assert data.shape == (3000, 3, 64, 64) and data.dtype == np.float32
    assert data.flags["C_CONTIGUOUS"] and data.min() >= 0 and 0.99 < data.max() <= 1


def test_get_data_is_the_pictures_themselves():
    rows = datasets.load_dataset(str(TOY_FACES), split="test").shuffle(seed=3)
    data = get_data(split="test", limit=5, seed=3)
    for picture, row in zip(data, rows):
        assert np.array_equal((picture * 255).round().transpose(1, 2, 0), np.asarray(row["image"]))


def test_get_data_seed():
    assert np.array_equal(get_data(limit=5, seed=1), get_data(limit=5, seed=1))
    assert not np.array_equal(get_data(limit=5, seed=1), get_data(limit=5, seed=2))
    assert np.array_equal(get_data(limit=5, seed=1), get_data(limit=9, seed=1)[:5])


def test_get_data_from_a_folder_of_pictures(tmp_path):
    for i in range(4):
        gradient().save(tmp_path / f"{i}.png")
    data = get_data(tmp_path, size=16)
    assert data.shape == (4, 3, 16, 16)
    assert data[0, 0, 0, -1] > 0.9 and data[0, 0, 0, 0] < 0.1  # channel 0 is red, and grows to the right
    assert data[0, 1, -1, 0] > 0.9 and data[0, 1, 0, 0] < 0.1  # channel 1 is green, and grows downwards


def test_a_changed_folder_is_read_again(tmp_path):
    """datasets keeps a cache, and for a folder with a card it does not look whether it is out of date."""
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
    )
    kinds = datasets.Features({"image": datasets.Image()})
    for color in ("black", "white"):
        rows = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4), color)]}, features=kinds)
        rows.to_parquet(tmp_path / "data" / "train.parquet")
        assert get_data(tmp_path, size=4).mean() == (color == "white")


def test_what_is_open_stays_as_it_is(tmp_path):
    """Another process may read the same folder, and each of several that train does."""
    for color in ("black", "white"):
        rows = datasets.Dataset.from_dict(
            {"image": [Image.new("RGB", (4, 4), color)]}, datasets.Features({"image": datasets.Image()})
        )
        rows.to_parquet(tmp_path / "train.parquet")
        if color == "black":
            opened, _ = open_pictures(tmp_path)
            kept = {file["filename"]: os.stat(file["filename"]).st_mtime_ns for file in opened.cache_files}
        get_data(tmp_path)
    assert kept and all(os.stat(name).st_mtime_ns == time for name, time in kept.items())


def test_get_data_keeps_only_what_it_could_read(monkeypatch):
    """A stream that ends early gives a shorter array."""
    rows = datasets.load_dataset(str(TOY_FACES), split="test", streaming=True).select_columns("image").take(7)
    rows = rows.cast_column("image", datasets.Image(decode=False))
    monkeypatch.setattr(diffusion_utils, "open_pictures", lambda *arguments: (rows, "image"))
    assert get_data(limit=20, size=8).shape == (7, 3, 8, 8)


def test_a_hub_id_is_streamed(monkeypatch):
    asked = {}

    def load_dataset(path, **options):
        asked.update(options, path=path)
        rows = {"face": [gradient()] * 3, "name": ["a", "b", "c"]}
        kinds = datasets.Features({"name": datasets.Value("string"), "face": datasets.Image()})
        return datasets.Dataset.from_dict(rows, features=kinds).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(diffusion_utils, "_ask_hub", lambda name: None)
    assert get_data("somebody/faces", limit=2, size=8).shape == (2, 3, 8, 8)
    assert asked == {"path": "somebody/faces", "split": "train", "streaming": True}


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_any_mode_becomes_rgb(mode):
    grey = gradient().convert("L")
    if mode in ("I;16", "I"):
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).convert(mode)
    else:
        picture = grey.convert(mode)
    result = np.asarray(square_rgb(picture, 64)).astype(int)
    assert result.shape == (64, 64, 3)
    tolerance = {"1": 255, "P": 4, "YCbCr": 2}.get(mode, 1)
    assert np.abs(result - np.asarray(grey)[:, :, None]).max() <= tolerance


def test_transparent_becomes_white():
    picture = Image.new("RGBA", (10, 10), (255, 0, 0, 0))
    assert np.asarray(square_rgb(picture, 10)).min() == 255
    palette = Image.new("P", (10, 10), 0)
    palette.info["transparency"] = 0
    assert np.asarray(square_rgb(palette, 10)).min() == 255


def test_cropped_not_squashed():
    wide = np.asarray(square_rgb(gradient(200, 100), 100))
    assert abs(int(wide[50, 0, 0]) - 64) < 4 and abs(int(wide[50, -1, 0]) - 191) < 4  # the middle half
    tall = np.asarray(square_rgb(gradient(100, 200), 100))
    assert abs(int(tall[0, 50, 1]) - 64) < 4 and abs(int(tall[-1, 50, 1]) - 191) < 4


@pytest.mark.parametrize("value, error", [(0, ValueError), (-3, ValueError), (2.5, TypeError), ("8", TypeError),
                                          (True, TypeError), (None, TypeError)])  # fmt: skip
def test_whole_number(value, error):
    with pytest.raises(error, match="size must be"):
        _whole_number("size", value)
    with pytest.raises(error, match="limit must be"):
        get_data(limit=value)
    assert _whole_number("size", np.int64(3)) == 3


def test_rows_that_are_open_already():
    rows = datasets.load_dataset(str(TOY_FACES), split="test")
    assert np.array_equal(get_data(rows, limit=5, seed=3), get_data(split="test", limit=5, seed=3))
    assert get_data(rows.select(range(4)), size=8).shape == (4, 3, 8, 8)


def test_get_data_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder or file 'no/such/folder'"):
        get_data("no/such/folder")
    (tmp_path / "numbers.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"no column of pictures, only \['a', 'b'\]"):
        get_data(tmp_path)


def test_get_loader():
    data = np.arange(10, dtype=np.float32).reshape(10, 1, 1, 1) / 10 * np.ones((1, 3, 2, 2), dtype=np.float32)
    loader = get_loader(data, batch_size=4, seed=0)
    batches = list(loader)
    assert len(loader) == len(batches) == 2 and all(batch.shape == (4, 3, 2, 2) for batch in batches)
    seen = torch.cat(batches)[:, 0, 0, 0]
    assert len(seen.unique()) == 8 and seen.dtype == torch.float32
    assert not torch.equal(seen, torch.cat(list(loader))[:, 0, 0, 0])  # another order in the next epoch
    assert torch.equal(seen, torch.cat(list(get_loader(data, 4, seed=0)))[:, 0, 0, 0])


def test_get_loader_too_few():
    with pytest.raises(ValueError, match="10 pictures do not fill one batch; batch_size=64"):
        get_loader(np.zeros((10, 3, 4, 4), dtype=np.float32))
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        get_loader(np.zeros((10, 3, 4, 4), dtype=np.float32), batch_size=0)


@pytest.mark.parametrize(
    "images", [np.full((3, 3, 8, 8), 0.5), torch.full((3, 3, 8, 8), 0.5, requires_grad=True)]
)
def test_show(images, tmp_path):
    show(images, n=2, path=tmp_path / "row.png", titles=["a", "b"])
    width, height = Image.open(tmp_path / "row.png").size
    assert width > 1.5 * height  # two pictures side by side
    assert not plt.get_fignums()  # nothing is left open


def test_show_never_blocks(monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    monkeypatch.setattr(plt, "show", lambda **options: calls.append(options))
    show(torch.zeros(1, 3, 4, 4) - 7)  # out of range: clipped, no warning
    plt.close("all")
    assert calls == [{"block": False}]


def test_a_row_without_a_picture_is_left_out():
    kinds = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [gradient(), None, gradient()]}, kinds)
    with pytest.warns(UserWarning, match="1 of 3 pictures are left out, the first: a picture cannot be read"):
        assert get_data(rows, size=8).shape == (2, 3, 8, 8)
