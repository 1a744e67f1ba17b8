"""Odd and broken input: what comes of it, and the sentence that a user gets."""

import io
import os
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import good, gradient, loader, tiny
from PIL import Image, ImageCms

from diffusion_utils import (
    TOY_FACES,
    Diffusion,
    DiffusionConfig,
    Training,
    generate,
    get_data,
    get_loader,
    train,
)
from more.long_training import carry_on
from more.pictures import Pictures


def jpeg(**options):
    buffer = io.BytesIO()
    gradient().save(buffer, "JPEG", **options)
    return buffer.getvalue()


# Among good pictures: left out, and named in one warning ---------------------------------


def bomb():
    """A PNG of a few kilobytes that says it has 20,000 × 20,000 pixels."""
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


BROKEN = {
    "text.jpg": (b"this is not a picture", "it is no picture"),
    "empty.jpg": (b"", "it is no picture"),
    "truncated.jpg": (jpeg()[:400], "[Tt]runcated"),
    "truncated.png": (lambda: png()[:150], "truncated|broken|Truncated"),
    "only_header.gif": (b"GIF89a", "it is no picture|not enough|unknown|truncated|index out of range|unpack"),
    "bomb.png": (bomb, "decompression bomb"),
}


def png():
    buffer = io.BytesIO()
    gradient().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_broken_file_among_good_ones(tmp_path, name):
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    good(tmp_path)
    message = rf"source: 1 of 4 pictures are left out, the first: {name} cannot be read \(.*({reason})"
    with pytest.warns(UserWarning, match=message) as warned:
        assert get_data(tmp_path, size=8).shape == (3, 3, 8, 8)
    assert len([w for w in warned if w.category is UserWarning]) == 1
    pictures = Pictures(tmp_path, size=8)  # decoded one by one, it is an error
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        [pictures[i] for i in range(4)]


def test_several_broken_files_are_counted_in_one_line(tmp_path):
    good(tmp_path)
    for i in range(5):
        (tmp_path / f"bad_{i}.png").write_bytes(b"?")
    with pytest.warns(UserWarning, match="5 of 8 pictures are left out, the first: bad_") as warned:
        assert len(get_data(tmp_path, size=8)) == 3
    assert len(warned) == 1 and "\n" not in str(warned[0].message)


def test_nothing_but_broken_files(tmp_path):
    (tmp_path / "text.jpg").write_text("no")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="source: there is no picture in .* that can be read"),
    ):
        get_data(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    good(tmp_path)
    (tmp_path / "good_1.png").chmod(0)
    with pytest.warns(UserWarning, match="good_1.png cannot be read .*Permission denied"):
        assert len(get_data(tmp_path, size=8)) == 2


# Odd, but pictures -----------------------------------------------------------------------


def odd(name, folder):
    """Write one odd picture into `folder`."""
    picture, path = gradient(), folder / name
    if name == "animated.gif":
        picture.save(path, save_all=True, append_images=[Image.new("RGB", (64, 64), "white")])
    elif name == "rotated.jpg":  # stored lying on its side, with a note to turn it
        exif = Image.Exif()
        exif[0x0112] = 6
        picture.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=98)
    elif name == "cmyk.jpg":
        picture.convert("CMYK").save(path, quality=98)
    elif name == "sixteen_bits.png":
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(path)
    elif name == "profile.png":
        picture.save(path, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    elif name == "palette.png":
        picture.quantize(200).save(path)
    elif name == "UPPER.JPEG":
        picture.save(path, quality=98)
    elif name == "a name, with (blanks) & ümlauts.png":
        picture.save(path)


@pytest.mark.parametrize("name", ["animated.gif", "rotated.jpg", "cmyk.jpg", "sixteen_bits.png", "profile.png",
                                  "palette.png", "UPPER.JPEG", "a name, with (blanks) & ümlauts.png"])  # fmt: skip
def test_odd_pictures_come_out_right(tmp_path, name, recwarn):
    odd(name, tmp_path)
    (picture,) = get_data(tmp_path, size=64)
    expected = gradient() if name != "sixteen_bits.png" else gradient().convert("L").convert("RGB")
    expected = np.asarray(expected).transpose(2, 0, 1) / 255
    assert np.abs(picture - expected).mean() < 0.03
    assert not [str(w.message) for w in recwarn.list if w.category is not ResourceWarning]


def test_transparent_palette_is_laid_on_white(tmp_path):
    picture = Image.new("P", (10, 10), 0)
    picture.putpalette([255, 0, 0] + [0] * 765)
    picture.save(tmp_path / "clear.png", transparency=0)
    assert get_data(tmp_path, size=10).min() == 1


@pytest.mark.parametrize("width, height", [(1, 1), (10_000, 3), (3, 10_000), (2, 64)])
def test_any_size(tmp_path, width, height):
    Image.new("RGB", (width, height), (255, 0, 0)).save(tmp_path / "one.png")
    (picture,) = get_data(tmp_path, size=8)
    assert np.allclose(picture[0], 1) and np.allclose(picture[1:], 0)


def test_the_same_name_twice_and_nested_folders(tmp_path):
    for folder, color in (("a", "black"), ("b/c", "white"), ("b/d", "white")):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (4, 4), color).save(tmp_path / folder / "face.png")
    assert sorted(get_data(tmp_path, size=4).mean((1, 2, 3))) == [0, 1, 1]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_a_folder_that_contains_itself(tmp_path):
    good(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(get_data(tmp_path, size=4)) >= 3


def test_a_zip_file(tmp_path):
    good(tmp_path, 4)
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in tmp_path.glob("*.png"):
            archive.write(path, f"inner/{path.name}")
    assert (
        np.array_equal(get_data(tmp_path / "faces.zip", size=8)[0], get_data(TOY_FACES, limit=1, size=8)[0])
        is False
    )
    assert get_data(str(tmp_path / "faces.zip"), size=8).shape == (4, 3, 8, 8)


def test_a_folder_of_parquet(tmp_path):
    kinds = datasets.Features({"face": datasets.Image(), "age": datasets.Value("int32")})
    rows = datasets.Dataset.from_dict({"face": [gradient()] * 3, "age": [1, 2, 3]}, features=kinds)
    rows.to_parquet(tmp_path / "rows.parquet")
    assert get_data(tmp_path, size=8).shape == (3, 3, 8, 8)


# Sources, arguments, arrays, checkpoints: one sentence -----------------------------------


def folder_with(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(content)
    return tmp_path


def faces(**changes):
    data = np.full((8, 3, 16, 16), 0.5, dtype=np.float32)
    data[0, 0, 0, 0] = changes.get("value", 0.5)
    return data


SENTENCES = {
    "an empty folder": (lambda t: get_data(t), ValueError, "source: no pictures can be loaded from"),
    "a folder of text": (lambda t: get_data(folder_with(t, a__txt=b"a", b__txt=b"b")), ValueError, "has no column of pictures"),
    "a file that is no zip": (lambda t: get_data(folder_with(t, f__zip=b"no") / "f.zip"), ValueError, "source: no pictures can be loaded from"),
    "a torn parquet file": (lambda t: get_data(folder_with(t, f__parquet=b"PAR1")), ValueError, "source: no pictures can be loaded from"),
    "no such folder": (lambda t: get_data(t / "nowhere"), FileNotFoundError, "there is no folder or file"),
    "a split that is not there": (lambda t: get_data(split="valid"), ValueError, 'Unknown split "valid"'),
    "size 0": (lambda t: get_data(size=0), ValueError, "size must be 1 or more, not 0"),
    "size as text": (lambda t: get_data(size="64"), TypeError, "size must be a whole number, not '64'"),
    "limit -1": (lambda t: get_data(limit=-1), ValueError, "limit must be 1 or more, not -1"),
    "too few for a batch": (lambda t: get_loader(faces(), 64), ValueError, "data: 8 pictures do not fill one batch; batch_size=64 is too large"),
    "no pictures at all": (lambda t: get_loader(faces()[:0], 1), ValueError, "data: 0 pictures do not fill one batch"),
    "batch_size 2.5": (lambda t: get_loader(faces(), 2.5), TypeError, "batch_size must be a whole number, not 2.5"),
    "NaN": (lambda t: get_loader(faces(value=np.nan), 4), ValueError, r"data: values must lie in \[0, 1\], not from nan to nan"),
    "infinity": (lambda t: get_loader(faces(value=np.inf), 4), ValueError, r"data: values must lie in \[0, 1\], not from 0.5 to inf"),
    "values up to 255": (lambda t: get_loader(faces() * 510, 4), ValueError, r"data: values must lie in \[0, 1\], not from 255.0 to 255.0"),
    "bytes": (lambda t: get_loader(faces().astype(np.uint8), 4), ValueError, r"data: float32 of shape \(N, 3, S, S\) is needed, not uint8"),
    "float64": (lambda t: get_loader(faces().astype(float), 4), ValueError, "data: float32 .* is needed, not float64"),
    "colours last": (lambda t: get_loader(faces().transpose(0, 2, 3, 1), 4), ValueError, r"not float32, \(8, 16, 16, 3\)"),
    "one picture, no N": (lambda t: get_loader(faces()[0], 4), ValueError, r"not float32, \(3, 16, 16\)"),
    "a size that cannot be halved": (lambda t: DiffusionConfig(60), ValueError, "image_size=60 cannot be halved 3 times, which 4 widths need; try a multiple of 8"),
    "steps 0": (lambda t: generate(tiny(), steps=0), ValueError, "steps must be 1 or more, not 0"),
    "steps -20": (lambda t: generate(tiny(), steps=-20), ValueError, "steps must be 1 or more, not -20"),
    "steps 2.5": (lambda t: generate(tiny(), steps=2.5), TypeError, "steps must be a whole number, not 2.5"),
    "n 0": (lambda t: generate(tiny(), n=0), ValueError, "n must be 1 or more, not 0"),
    "no model there": (lambda t: Diffusion.from_pretrained(t), OSError, "there is no model that can be loaded .*no file named"),
    "torn safetensors": (lambda t: Diffusion.from_pretrained(torn(t)), ValueError, r"there is no model that can be loaded \(.+\)"),
    "other widths": (lambda t: Diffusion.from_pretrained(other_widths(t)), ValueError, "weights are missing, or do not fit config.json"),
    "a pickle that runs code": (lambda t: Diffusion.from_pretrained(pickled(t)), ValueError, r"there is no model that can be loaded \(.+\)"),
    "a misspelt option": (lambda t: Diffusion.from_pretrained(saved(t), devize="cpu"), ValueError, r"there is no model that can be loaded \(.*'devize'\)"),
    "a config with another target": (lambda t: Diffusion.from_pretrained(target(t)), ValueError, r"there is no model that can be loaded \(predicts must be 'noise' or 'v', not 'fog'\)"),
    "another target": (lambda t: DiffusionConfig(predicts="fog"), ValueError, "predicts must be 'noise' or 'v', not 'fog'"),
    "a number that is no part of a recipe": (lambda t: recipe(sample_every=25), TypeError, r"a recipe has no \['sample_every'\], only \['epochs', 'lr', 'weight_decay', "),
    "checkpoint_dir": (lambda t: train(tiny(), loader(), 1, checkpoint_dir=t), TypeError, r"a recipe has no \['checkpoint_dir'\]"),
    "ema_decay 7": (lambda t: recipe(ema_decay=7), ValueError, "ema_decay < 1: .*'ema_decay': 7"),
    "ema_decay 1": (lambda t: recipe(ema_decay=1), ValueError, "ema_decay < 1: .*'ema_decay': 1"),
    "ema_decay NaN": (lambda t: recipe(ema_decay=np.nan), ValueError, "a recipe needs numbers of 0 or more"),
    "widths of nothing": (lambda t: DiffusionConfig(widths=()), ValueError, "image_size=64 cannot be halved -1 times, which 0 widths need"),
    "block_depth 0": (lambda t: DiffusionConfig(block_depth=0), ValueError, "block_depth must be 1 or more, not 0"),
    "an image_size of text": (lambda t: DiffusionConfig("64"), TypeError, "image_size must be a whole number, not '64'"),
    "channels 0": (lambda t: DiffusionConfig(channels=0), ValueError, "channels must be 1 or more, not 0"),
    "half a warm-up": (lambda t: recipe(warmup_steps=2.5), ValueError, "a recipe needs numbers of 0 or more, .*'warmup_steps': 2.5"),
    "a negative warm-up": (lambda t: recipe(warmup_steps=-5), ValueError, "a recipe needs numbers of 0 or more, .*'warmup_steps': -5"),
    "lr NaN": (lambda t: recipe(lr=np.nan), ValueError, "a recipe needs numbers of 0 or more, .*'lr': nan"),
    "lr -1": (lambda t: recipe(lr=-1), ValueError, "a recipe needs numbers of 0 or more, .*'lr': -1"),
    "seed -1": (lambda t: recipe(seed=-1), ValueError, "a recipe needs numbers of 0 or more, .*'seed': -1"),
    "epochs 0": (lambda t: recipe(epochs=0), ValueError, "epochs must be 1 or more, not 0"),
    "epochs 2.5": (lambda t: recipe(epochs=2.5), TypeError, "epochs must be a whole number, not 2.5"),
    "epochs 0, train": (lambda t: train(tiny(), loader(), epochs=0), ValueError, "epochs must be 1 or more, not 0"),
    "a checkpoint every 0 steps": (lambda t: next(carry_on(recipe(), t, every=0)), ValueError, "every must be 1 or more, not 0"),
    "a checkpoint every 2.5 steps": (lambda t: next(carry_on(recipe(), t, every=2.5)), TypeError, "every must be a whole number, not 2.5"),
}  # fmt: skip


def recipe(**numbers):
    return Training(tiny(), loader(), **{"epochs": 1, **numbers})


def saved(folder):
    tiny().save_pretrained(folder)
    return folder


def target(folder):
    config = saved(folder) / "config.json"
    config.write_text(config.read_text().replace('"noise"', '"fog"'))
    return folder


def torn(folder):
    tiny().save_pretrained(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def other_widths(folder):
    tiny().save_pretrained(folder)
    DiffusionConfig(8, (16, 16), 1).save_pretrained(folder)
    return folder


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def pickled(folder):
    tiny().config.save_pretrained(folder)
    torch.save({**tiny().state_dict(), "evil": Evil()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", SENTENCES)
def test_one_clear_sentence(tmp_path, monkeypatch, name):
    call, kind, sentence = SENTENCES[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=sentence) as error:
        call(tmp_path)
    assert type(error.value) is kind and len(str(error.value).splitlines()) == 1
    cause, context = error.value.__cause__, error.value.__context__
    assert context is cause  # what a library has raised is kept as the cause, and nothing else is in between
    assert not Path("pwned").exists()


def test_a_pickle_of_tensors_loads(tmp_path):
    diffusion = tiny()
    diffusion.config.save_pretrained(tmp_path)
    torch.save(diffusion.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = Diffusion.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in diffusion.state_dict().items())
