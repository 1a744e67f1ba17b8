"""Lesson 01: get_data, get_loader and show."""

import io

import datasets
import numpy as np
import pytest
import torch
from helpers import gradient
from matplotlib import pyplot as plt
from PIL import Image

from diffusion_utils import TOY_FACES, get_data, get_loader, show, square_rgb

# Images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr"])
def test_any_mode_becomes_rgb(mode):
    grey = gradient().convert("L")
    result = np.asarray(square_rgb(grey.convert(mode), 64)).astype(int)
    tolerance = {"1": 255, "P": 4, "YCbCr": 2}.get(mode, 1)
    assert result.shape == (64, 64, 3) and np.abs(result - np.asarray(grey)[:, :, None]).max() <= tolerance


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_what_pillow_would_cut_off(mode):
    with pytest.raises(ValueError, match=f"image: it has the mode {mode}; open it with any_images"):
        square_rgb(Image.new(mode, (8, 8)), 8)


def test_transparent_becomes_white():
    palette = Image.new("P", (10, 10), 0)
    palette.info["transparency"] = 0
    for image in (Image.new("RGBA", (10, 10), (255, 0, 0, 0)), palette):
        assert np.asarray(square_rgb(image, 10)).min() == 255


def test_cropped_not_squashed():
    sizes = (200, 100), (100, 200)
    wide, tall = (np.asarray(square_rgb(gradient(*size), 100)).astype(int) for size in sizes)
    assert abs(wide[50, 0, 0] - 64) < 4 and abs(wide[50, -1, 0] - 191) < 4  # the middle half
    assert abs(tall[0, 50, 1] - 64) < 4 and abs(tall[-1, 50, 1] - 191) < 4


@pytest.mark.parametrize("size", [(1, 1), (10_000, 3), (3, 10_000), (2, 64)])
def test_any_size(size):
    assert np.asarray(square_rgb(Image.new("RGB", size, "red"), 8)).tolist() == [[[255, 0, 0]] * 8] * 8


# get_data -------------------------------------------------------------------------------


def test_get_data_is_the_images_themselves():
    """In an order that the seed gives, whatever the limit."""
    rows = datasets.load_dataset(str(TOY_FACES), split="test")
    data = get_data(split="test", limit=5, seed=3)
    assert data.dtype == np.float32 and data.flags["C_CONTIGUOUS"]
    assert np.array_equal(get_data(rows, limit=9, seed=3)[:5], data)  # rows that are open already
    assert not np.array_equal(get_data(rows, limit=5, seed=2), data)
    for image, row in zip(data, rows.shuffle(seed=3)):
        assert np.array_equal((image * 255).round().transpose(1, 2, 0), np.asarray(row["image"]))


def test_a_folder_of_images(tmp_path):
    """In all folders below; capitals or not; a name is only a name; what is hidden is left out."""
    kinds = {"a.png": "png", "B.JPEG": "jpeg", "train/c.png": "png", "deep/er/at the test, (ü).webp": "webp",
             "set[1] *?.bmp": "bmp", ".hidden.png": "png", "d.txt": "png"}  # fmt: skip
    for name, kind in kinds.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        gradient().save(tmp_path / name, kind)
    data = get_data(tmp_path, size=16)
    assert data.shape == (5, 3, 16, 16)
    assert data[0, 0, 0, -1] > 0.9 and data[0, 0, 0, 0] < 0.1  # channel 0 is red, and grows to the right
    assert data[0, 1, -1, 0] > 0.9 and data[0, 1, 0, 0] < 0.1  # channel 1 is green, and grows downwards


@pytest.mark.parametrize("columns, mean", [
    (("mask", "image"), 1), (("image", "mask"), 1), (("face", "mask"), 0),
])  # fmt: skip
def test_the_column_called_image(tmp_path, columns, mean):
    """Else the first one that holds images."""
    colors = {"image": "white", "mask": "black", "face": "black"}
    images = {name: [Image.new("RGB", (4, 4), colors[name])] for name in columns}
    kinds = datasets.Features({name: datasets.Image() for name in columns})
    datasets.Dataset.from_dict(images, kinds).to_parquet(tmp_path / "train.parquet")
    assert get_data(tmp_path, size=4).mean() == mean


@pytest.mark.parametrize("column", ["image", "face"])
def test_a_hub_id_is_streamed(monkeypatch, column):
    """One that ends early gives a shorter array, and photos are not compressed anew on the way."""
    calls, photo = {}, io.BytesIO()
    gradient().save(photo, "JPEG", quality=98)
    expected = np.asarray(square_rgb(Image.open(photo), 32)).transpose(2, 0, 1) / np.float32(255)

    def load_dataset(path, **options):
        calls.update(options, path=path)
        kinds = datasets.Features({"name": datasets.Value("string"), column: datasets.Image()})
        photos = [{"bytes": photo.getvalue(), "path": None}] * 3
        rows = datasets.Dataset.from_dict({"name": ["a", "b", "c"], column: photos}, kinds)
        return rows.to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = get_data("somebody/faces", limit=20, size=32)
    assert data.shape == (3, 3, 32, 32) and all(np.array_equal(image, expected) for image in data)
    assert calls == {"path": "somebody/faces", "split": "train", "streaming": True}


@pytest.mark.parametrize("source, options, sentence", [
    ("empty", {}, "source: there is no image in"),
    ("empty", {"split": "test"}, "split: a folder of images has no 'test'"),
    (datasets.Dataset.from_dict({"a": [1], "b": [2]}), {}, r"has no column of images, only \['a', 'b'\]"),
])  # fmt: skip
def test_get_data_says_what_is_missing(tmp_path, monkeypatch, source, options, sentence):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        get_data(source, **options)


# get_loader -----------------------------------------------------------------------------


@pytest.mark.parametrize("value, sentence", [
    (np.nan, "not from nan to nan"), (np.inf, "not from 0.5 to inf"), (255, "not from 0.5 to 255.0"),
    (-0.1, "not from -0.1"),
])  # fmt: skip
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_get_loader_refuses_values_outside(value, sentence, kind):
    data = np.full((8, 3, 4, 4), 0.5, dtype=np.float32)
    data[3, 1, 2, 0] = value
    with pytest.raises(ValueError, match=rf"data: values must lie in \[0, 1\], {sentence}"):
        get_loader(kind(data), 4)


def test_get_loader_too_few():
    with pytest.raises(ValueError, match="data: 10 images do not fill a batch of batch_size=64"):
        get_loader(np.zeros((10, 3, 4, 4), dtype=np.float32))


# show -----------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [
    np.full((3, 3, 8, 8), 0.5), torch.full((3, 1, 8, 8), 0.5, requires_grad=True), torch.full((3, 4, 8, 8), 0.5),
])  # fmt: skip
def test_show(images, tmp_path):
    """One, three or four channels; a grey one stays as grey as it is."""
    show(images, n=2, path=tmp_path / "row.png", titles=["a", "b"])
    image = Image.open(tmp_path / "row.png").convert("L")
    assert image.width > 1.5 * image.height  # two images side by side
    assert abs(image.getpixel((image.width // 4, image.height * 2 // 3)) - 127) < 3
    plt.close("all")


def test_show_never_blocks(monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    monkeypatch.setattr(plt, "show", lambda **options: calls.append(options))
    show(torch.zeros(1, 3, 4, 4) - 7)  # out of range: clipped, no warning
    plt.close("all")
    assert calls == [{"block": False}]
