"""Odd and broken input: what comes of it, and the sentence that a user gets."""

import io
import json
import logging
import math
import os
import sys
import threading
import warnings
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from helpers import good, gradient, loader, names, same, tiny
from PIL import Image, ImageCms
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

import diffusion_utils
from diffusion_utils import (
    TOY_FACES,
    TOY_MODEL,
    Diffusion,
    DiffusionConfig,
    Training,
    generate,
    get_data,
    get_loader,
    square_rgb,
    train,
)
from diffusion_course.images import Pictures, look_through, picture_files
from diffusion_course.quality import FaceClassifier, face_features, pixel_distance


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
    (told,) = [
        warning for warning in warned if warning.category is UserWarning
    ]  # not those of other tests' files
    assert "\n" not in str(told.message)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on open files there")
def test_many_broken_files_are_not_kept_open(tmp_path):
    """Else the system would open no more, and good pictures would be left out, too."""
    import resource

    good(tmp_path, 20, start=900)
    content = png()[:150]
    for i in range(400):
        (tmp_path / f"broken_{i}.png").write_bytes(content)
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, usual[1]))
    try:
        with pytest.warns(UserWarning, match="400 of 420 pictures are left out"):
            assert len(get_data(tmp_path, size=8)) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


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
    "a misspelt option": (lambda t: Diffusion.from_pretrained(saved(t), devize="cpu"), TypeError, "unexpected keyword argument 'devize'"),
    "a config with another target": (lambda t: Diffusion.from_pretrained(target(t)), ValueError, r"there is no model that can be loaded \(predicts must be 'noise' or 'v', not 'fog'\)"),
    "another target": (lambda t: DiffusionConfig(predicts="fog"), ValueError, "predicts must be 'noise' or 'v', not 'fog'"),
    "widths of nothing": (lambda t: DiffusionConfig(widths=()), ValueError, "image_size=64 cannot be halved -1 times, which 0 widths need"),
    "block_depth 0": (lambda t: DiffusionConfig(block_depth=0), ValueError, "block_depth must be 1 or more, not 0"),
    "an image_size of text": (lambda t: DiffusionConfig("64"), TypeError, "image_size must be a whole number, not '64'"),
    "channels 0": (lambda t: DiffusionConfig(channels=0), ValueError, "channels must be 1 or more, not 0"),
    # what is no source
    "no name": (lambda t: get_data(""), TypeError, "source: a folder, a file, a list of files or a name is needed, not ''"),
    "None": (lambda t: get_data(None), TypeError, "source: a folder, .* is needed, not None"),
    "bytes as a source": (lambda t: get_data(b"photos"), TypeError, "source: a folder, .* is needed, not b'photos'"),
    "a number": (lambda t: get_data(7), TypeError, "source: a folder, .* is needed, not 7"),
    "an address": (lambda t: get_data("https://example.org/faces.zip"), FileNotFoundError, "there is no folder or file 'https://example.org/faces.zip'"),
    "a text file": (lambda t: get_data(folder_with(t, notes__txt=b"a") / "notes.txt"), ValueError, "source: 'notes.txt' is no folder, no zip file and no picture"),
    "no file at all in a list": (lambda t: get_data([]), ValueError, "source: there is no picture in"),
    "files that are not there": (lambda t: get_data([t / "no.png"]), ValueError, r"that can be read; 1 of 1 .*: no.png cannot be read \(.*No such file"),
    "one broken file": (lambda t: get_data(folder_with(t, bad__jpg=b"no")), ValueError, r"no picture in .* that can be read; 1 of 1 .*: bad.jpg cannot be read \(it is no picture\)"),
    "no split": (lambda t: get_data(split=None), TypeError, r"split must be text such as 'train\[:80%\]', not None"),
    "a split that a folder does not have": (lambda t: get_data(folder_with(t, a__png=png()), split="test"), ValueError, 'Unknown split "test"'),
    "a zip file that is locked": (lambda t: get_data(locked(t)), ValueError, "source: no pictures can be loaded from .*(encrypted|password)"),
    # seeds
    "get_data, seed -1": (lambda t: get_data(seed=-1), ValueError, "seed must be 0 or more, not -1"),
    "get_data, seed None": (lambda t: get_data(seed=None), TypeError, "seed must be a whole number, not None"),
    "get_loader, seed -1": (lambda t: get_loader(faces(), 4, seed=-1), ValueError, "seed must be 0 or more, not -1"),
    "get_loader, seed 0.5": (lambda t: get_loader(faces(), 4, seed=0.5), TypeError, "seed must be a whole number, not 0.5"),
    "generate, seed -1": (lambda t: generate(tiny(), seed=-1), ValueError, "seed must be 0 or more, not -1"),
    "generate, seed 1.5": (lambda t: generate(tiny(), seed=1.5), TypeError, "seed must be a whole number, not 1.5"),
    "generate, seed of text": (lambda t: generate(tiny(), seed="a"), TypeError, "seed must be a whole number, not 'a'"),
    "Pictures, seed -1": (lambda t: Pictures(TOY_FACES, seed=-1), ValueError, "seed must be 0 or more, not -1"),
    # noise and weights to draw from
    "noise of NumPy": (lambda t: draw(np.zeros((1, 3, 8, 8), np.float32)), ValueError, r"noise: a Tensor of \('N', 3, 8, 8\) floats is needed, not ndarray float32, \(1, 3, 8, 8\)"),
    "noise of whole numbers": (lambda t: draw(torch.zeros(1, 3, 8, 8, dtype=int)), ValueError, "noise: a Tensor .* not Tensor torch.int64"),
    "noise of another size": (lambda t: draw(torch.randn(1, 3, 16, 16)), ValueError, r"noise: .* not Tensor torch.float32, \(1, 3, 16, 16\)"),
    "noise of one channel": (lambda t: draw(torch.randn(1, 1, 8, 8)), ValueError, r"noise: .* not Tensor torch.float32, \(1, 1, 8, 8\)"),
    "noise without N": (lambda t: draw(torch.randn(3, 8, 8)), ValueError, r"noise: .* not Tensor torch.float32, \(3, 8, 8\)"),
    "noise that is a list": (lambda t: draw([0.5]), ValueError, "noise: .* is needed, not list$"),
    "noise with a NaN": (lambda t: draw(torch.full((1, 3, 8, 8), np.nan)), ValueError, "noise: it holds numbers that are not finite"),
    "weights that are NaN": (lambda t: generate(broken()), ValueError, "diffusion: answers are not finite; see it_does_not_work.ipynb"),
    # a network that cannot be
    "an odd first width": (lambda t: DiffusionConfig(8, (7, 14), 1), ValueError, "widths: the first must be even, .* not 7"),
    "a width of 0": (lambda t: DiffusionConfig(8, (0, 8), 1), ValueError, "widths must be 1 or more, not 0"),
    "a later width of -8": (lambda t: DiffusionConfig(8, (8, -8), 1), ValueError, "widths must be 1 or more, not -8"),
    "a width of 8.5": (lambda t: DiffusionConfig(8, (8.5, 16), 1), TypeError, "widths must be a whole number, not 8.5"),
    "widths of text": (lambda t: DiffusionConfig(8, "ab", 1), TypeError, "widths must be a list of whole numbers, not 'ab'"),
    "widths as a number": (lambda t: DiffusionConfig(8, 16, 1), TypeError, "widths must be a list of whole numbers, not 16"),
    "no widths": (lambda t: DiffusionConfig(8, None, 1), TypeError, "widths must be a list of whole numbers, not None"),
    "block_depth -1": (lambda t: DiffusionConfig(block_depth=-1), ValueError, "block_depth must be 1 or more, not -1"),
    "image_size 0": (lambda t: DiffusionConfig(0), ValueError, "image_size must be 1 or more, not 0"),
    "image_size -16": (lambda t: DiffusionConfig(-16), ValueError, "image_size must be 1 or more, not -16"),
    "image_size None": (lambda t: DiffusionConfig(None), TypeError, "image_size must be a whole number, not None"),
    "such widths in a file": (lambda t: Diffusion.from_pretrained(config(t, widths=[7, 14])), ValueError, r"no model that can be loaded \(widths: the first must be even"),
    "such a size in a file": (lambda t: Diffusion.from_pretrained(config(t, image_size="8")), TypeError, "image_size must be a whole number, not '8'"),
    # a folder that holds no model of the course
    "no config.json": (lambda t: Diffusion.from_pretrained(without(t, "config.json")), OSError, r"no model that can be loaded \(there is no file named config.json\)"),
    "no weights": (lambda t: Diffusion.from_pretrained(without(t, "model.safetensors")), OSError, r"no model that can be loaded \(.*no file named model.safetensors"),
    "a model of another kind": (lambda t: Diffusion.from_pretrained(config(t, model_type="bert")), ValueError, r"no model that can be loaded \(config.json is of another kind of model, 'bert'\)"),
    "a torn config.json": (lambda t: Diffusion.from_pretrained(folder_with(saved(t), config__json=b"{")), OSError, r"no model that can be loaded \(.*config"),
    "a torn file, by its name": (lambda t: Diffusion.from_pretrained(torn(t)), ValueError, r"no model that can be loaded \(model.safetensors: .+\)"),
    "many weights missing": (lambda t: Diffusion.from_pretrained(few(t)), ValueError, r"weights are missing, .*: \['[^']+', '[^']+', '[^']+'\] and \d+ more$"),
    "weights too many": (lambda t: Diffusion.from_pretrained(few(t, extra=torch.zeros(1))), ValueError, "weights are missing, or do not fit config.json"),
    "a mistyped folder": (lambda t: Diffusion.from_pretrained("models/faces/large"), FileNotFoundError, "there is no folder or file 'models/faces/large'"),
    # what cannot be trained
    "pictures of 16×16 for a model of 8×8": (lambda t: fit(torch.rand(8, 3, 16, 16)), ValueError, r"images: .* \('N', 3, 8, 8\) floats is needed, not Tensor torch.float32, \(4, 3, 16, 16\)"),
    "pictures of odd size": (lambda t: fit(torch.rand(8, 3, 7, 7)), ValueError, r"images: .*\(4, 3, 7, 7\)"),
    "pictures that are not square": (lambda t: fit(torch.rand(8, 3, 8, 4)), ValueError, r"images: .*\(4, 3, 8, 4\)"),
    "batches of pairs": (lambda t: fit(TensorDataset(torch.rand(8, 3, 8, 8), torch.rand(8))), ValueError, "images: a Tensor .* is needed, not list$"),
    # distances
    "a distance of one picture": (lambda t: pixel_distance(faces()[:1], faces()), ValueError, "features: at least 2 pictures are needed, not 1"),
    "a distance of none": (lambda t: pixel_distance(faces()[:0], faces()), ValueError, "features: at least 2 pictures are needed, not 0"),
    "a distance to one": (lambda t: pixel_distance(faces(), faces()[:1]), ValueError, "reference: at least 2 pictures are needed, not 1"),
    "a distance of NaN": (lambda t: pixel_distance(faces(value=np.nan), faces()), ValueError, "features holds numbers that are not finite"),
}  # fmt: skip


def draw(noise):
    return generate(tiny(), steps=1, noise=noise)


def broken():
    diffusion = tiny()
    diffusion.unet.out.weight.data.fill_(math.nan)
    return diffusion


def fit(pictures):
    return train(tiny(), DataLoader(pictures, 4), 1)


def config(folder, **changes):
    path = saved(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def without(folder, name):
    (saved(folder) / name).unlink()
    return folder


def few(folder, **more):
    """A model with two of its weights, or with all and some more."""
    path = saved(folder) / "model.safetensors"
    weights = load_file(path)
    kept = weights if more else dict(list(weights.items())[:2])
    save_file({**kept, **more}, path, metadata={"format": "pt"})
    return folder


def locked(folder):
    """A zip file that says it is encrypted: bit 0 of its flags, in both of its tables."""
    with zipfile.ZipFile(folder / "f.zip", "w") as archive:
        archive.writestr("a.png", png())
    content = bytearray((folder / "f.zip").read_bytes())
    for start, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(start) + place] |= 1
    (folder / "f.zip").write_bytes(content)
    return folder / "f.zip"


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


# Silently wrong, once: now right ------------------------------------------------------------


def write(folder, *files, color="red"):
    """Small pictures of one colour, and files of another kind."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp"):
            Image.new("RGB", (4, 4), color).save(path)
        else:
            path.write_bytes(b"?")
    return folder


TWENTY = [f"{i:02}.png" for i in range(20)]
FOLDERS = {  # what lies in the folder, and what is loaded of it
    "a name with train": ([*TWENTY, "at the train station.png"], 21),
    "a folder with train": ([*TWENTY, "my train/a.png"], 21),
    "names with other parts": (["test.png", "a val.png", "dev-1.png", "eval.jpg", "validation.png"], 5),
    "a class called train": (["train/a.png", "boat/b.png"], 2),
    "a class called test": (["test/a.png", "c.png"], 2),
    "two parts": (["train/a.png", "train/b.png", "test/c.png"], 2),
    "one part": (["train/deep/a.png", "train/b.png"], 2),
    "as many captions": ([*TWENTY, *(f"{i:02}.txt" for i in range(20))], 20),
    "outputs": (["a.png", "out/training.pt", "train.log"], 1),
    "phone": (["a.png", "b.png", *(f"{i}.heic" for i in range(50))], 2),
    "hidden": (["a.png", ".b.png", ".thumbnails/c.png", "__MACOSX/a.png", "@eaDir/a.jpg", ".DS_Store"], 1),
    "a table of some": (["a.png", "b.png", "metadata.csv"], 2),
    "a script": (["a.png", "folder.py"], 1),
    "a page about it": (["a.png", "README.md"], 1),
    "capitals": (["A.PNG", "B.JPEG", "c.Jpg"], 3),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_all_pictures_of_a_folder(tmp_path, name):
    """And they are those of picture_files, in the same order, unless the folder has parts."""
    files, count = FOLDERS[name]
    folder = write(tmp_path / "folder", *files)
    (folder / "metadata.csv").exists() and (folder / "metadata.csv").write_text("file_name,age\na.png,1\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assert len(get_data(folder, size=4)) == count
        rows, column = diffusion_utils.open_pictures(folder)
        listed = picture_files(folder).shuffle(seed=0)
    assert "part" in name or list(rows[column]) == list(listed["image"])
    others = [file for file in files if Path(file).suffix.lower() not in (".png", ".jpg", ".jpeg")]
    others = [file for file in others if not file.startswith(".")]
    said = [str(warning.message) for warning in caught if "left out" in str(warning.message)]
    assert bool(said) == bool(others)
    for ending in {Path(file).suffix for file in others}:
        n = len([file for file in others if file.endswith(ending)])
        assert f"{ending!r}: {n}" in said[0]


def test_what_is_left_out_is_said_in_one_short_line(tmp_path):
    write(tmp_path, "a.png", *(f"IMG_{i}" for i in range(30)), *(f"x.{i}" for i in range(30)))
    with pytest.warns(UserWarning, match="source: 60 files are left out; .*'no ending': 30") as warned:
        get_data(tmp_path, size=4)
    assert len(warned) == 1 and len(str(warned[0].message)) < 200


def test_an_unknown_split_removes_no_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    get_data(limit=1, size=4)
    copies = list(tmp_path.rglob("*.arrow"))
    with pytest.raises(ValueError, match="Unknown split"):
        get_data(split="valid")
    assert copies and list(tmp_path.rglob("*.arrow")) == copies


def test_the_parts_of_a_folder_in_a_folder(tmp_path):
    write(tmp_path / "faces", "train/a.png", "train/b.png", "test/c.png")
    assert len(get_data(tmp_path, size=4)) == 2 and len(get_data(tmp_path, split="test", size=4)) == 1
    assert len(get_data(tmp_path / "faces" / "test", size=4)) == 1  # by its own name it is all there is


def test_the_parts_of_a_folder(tmp_path):
    folder = write(tmp_path, "train/a.png", "train/b.png", "test/c.png", "validation/d.png")
    assert (
        len(get_data(folder, split="test", size=4)) == len(get_data(folder, split="validation", size=4)) == 1
    )
    assert len(get_data(folder, split="train+test", size=4)) == 3
    assert len(get_data(folder, split="train[:50%]", size=4)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
@pytest.mark.parametrize("name", ["set[12]", "*", "a?", "[!x]", "{a,b}", "~", "a::b"])
def test_a_folder_whose_name_looks_like_a_pattern(tmp_path, name):
    write(tmp_path / name, "a.png", "b.png")
    write(tmp_path / "set1", "c.png")
    assert len(get_data(tmp_path / name, size=4)) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_a_table_in_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    """It would be taken for one; so it is refused."""
    for name in ("set[12]", "set1"):
        (tmp_path / name).mkdir()
        table(tmp_path / name, {"image": [gradient()]})
    with pytest.raises(ValueError, match=r"source: rename 'set\[12\]', for tables without \* \? \["):
        get_data(tmp_path / "set[12]")


def table(folder, columns, name="train.parquet"):
    kinds = datasets.Features({column: datasets.Image() for column in columns})
    datasets.Dataset.from_dict(columns, kinds).to_parquet(folder / name)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_name_that_is_no_utf_8(tmp_path):
    write(tmp_path, "a.png", os.fsdecode(b"caf\xe9.png"))
    assert len(get_data(tmp_path, size=4)) == 2


@pytest.mark.parametrize("source", [".", "~/mine", "one", "list", "texts"])
def test_other_sources(tmp_path, monkeypatch, source):
    write(tmp_path / "mine", "a.png", "b.png")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    files = [tmp_path / "mine" / "a.png", tmp_path / "mine" / "b.png"]
    source = {"one": files[0], "list": files, "texts": ("a.png", "~/mine/b.png")}.get(source, source)
    assert len(get_data(source, size=4)) == (1 if source == files[0] else 2)


@pytest.mark.parametrize("name", ["f.zip", "FACES.ZIP"])
def test_zip_files(tmp_path, name):
    """Parts are parts, endings may be in capitals, hidden files are none, and a broken one is called by its name."""
    write(tmp_path, "a.png")
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for inner in ("train/A.PNG", "train/b.png", "test/c.png", "__MACOSX/train/._a.png", ".hidden.png"):
            archive.write(tmp_path / "a.png", inner)
        archive.writestr("train/bad.png", "?")
    with pytest.warns(UserWarning, match="1 of 3 pictures are left out, the first: bad.png cannot be read"):
        assert len(get_data(tmp_path / name, size=4)) == 2
    assert len(get_data(tmp_path / name, split="test", size=4)) == 1


def test_a_zip_file_that_changes(tmp_path):
    for color in ("black", "white"):
        write(tmp_path, "a.png", color=color)
        with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
            archive.write(tmp_path / "a.png", "a.png")
        os.utime(tmp_path / "f.zip", ns=(0, {"black": 1, "white": 2}[color] * 10**9))
        assert get_data(tmp_path / "f.zip", size=4).mean() == (color == "white")


def test_a_zip_file_writes_nothing_elsewhere(tmp_path):
    write(tmp_path, "a.png")
    with zipfile.ZipFile(tmp_path / "f.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "../outside.png")
        archive.write(tmp_path / "a.png", "inside.png")
    assert len(get_data(tmp_path / "f.zip", size=4)) == 1
    assert names(tmp_path) == ["a.png", "f.zip"]


def test_a_script_in_a_folder_does_not_run(tmp_path):
    script = f"open({str(tmp_path / 'pwned')!r}, 'w')"
    for content in ((), ("a.png",)):
        folder = write(tmp_path / f"data{len(content)}", *content)
        folder.mkdir(exist_ok=True)
        (folder / f"{folder.name}.py").write_text(script)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if content:
                assert len(get_data(folder, size=4)) == 1
            else:
                with pytest.raises(ValueError, match="no pictures can be loaded"):
                    get_data(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "columns, mean", [(("mask", "image"), 1), (("image", "mask"), 1), (("face", "mask"), 0)]
)
def test_the_column_called_image(tmp_path, columns, mean):
    colors = {"image": "white", "mask": "black", "face": "black"}
    table(tmp_path, {name: [Image.new("RGB", (4, 4), colors[name])] for name in columns})
    assert get_data(tmp_path, size=4).mean() == mean


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_a_table_behind_a_link_that_is_written_anew(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.parquet").symlink_to(tmp_path / "far.parquet")
    for color in ("black", "white"):
        table(tmp_path, {"image": [Image.new("RGB", (4, 4), color)]}, "far.parquet")
        assert get_data(tmp_path / "data", size=4).mean() == (color == "white")


def test_the_cache(tmp_path, monkeypatch):
    """Of a folder that changes again and again few copies are kept, and a torn one is made anew."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    table(tmp_path / "data", {"image": [gradient()]})
    for i in range(6):
        (tmp_path / "data" / "notes.txt").write_text("x" * i)
        assert len(get_data(tmp_path / "data", size=4)) == 1
    copies = list((tmp_path / "cache" / "course").rglob("*.arrow"))
    assert 1 <= len(copies) <= 3
    for copy in copies:
        copy.write_bytes(copy.read_bytes()[:50])
    with pytest.raises(ValueError, match="source: no pictures can be loaded"):
        get_data(tmp_path / "data")
    assert len(get_data(tmp_path / "data", size=4)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_as_many_as_asked_for(tmp_path, seed):
    write(tmp_path, *TWENTY)
    for i in range(10):
        (tmp_path / f"bad_{i}.png").write_bytes(b"?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(get_data(tmp_path, size=4, limit=20, seed=seed)) == 20
        assert len(get_data(tmp_path, size=4, limit=2, seed=seed)) == 2


@pytest.mark.parametrize(
    "kind, most", [("f", 1), ("f", 255), ("f", 65535), ("i", 255), ("i", 65535), ("uint16", 65535)]
)
def test_grey_values_of_any_range(tmp_path, kind, most):
    grey = np.asarray(gradient().convert("L")) / 255 * most
    Image.fromarray(grey.astype(kind)).save(tmp_path / "grey.tif")
    (picture,) = get_data(tmp_path, size=64)
    assert np.abs(picture - grey / most).max() < 0.02


@pytest.mark.parametrize("odd", [np.nan, np.inf, -5])
def test_grey_values_that_are_none(odd):
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    grey[0, 0] = odd
    pixels = np.asarray(square_rgb(Image.fromarray(grey), 8))
    assert pixels[0, 0, 0] == 0 and pixels[-1, -1, 0] == 255  # all others are as they were


# Errors of our own, and what a library says ---------------------------------------------------


@pytest.mark.parametrize("kind", [NameError, ValueError, TypeError, KeyError])
@pytest.mark.parametrize(
    "read", [lambda t: get_data(t, size=4), lambda t: list(look_through(t)), lambda t: Pictures(t)[0]]
)
def test_an_error_of_our_own_is_not_a_broken_picture(tmp_path, monkeypatch, kind, read):
    def fails(*arguments):
        raise kind("a mistake of ours")

    write(tmp_path, "a.png")
    monkeypatch.setattr(diffusion_utils, "square_rgb", fails)
    with pytest.raises(kind, match="a mistake of ours"):
        read(tmp_path)


@pytest.mark.parametrize("change", [few, other_widths, torn])
def test_nothing_is_printed_before_the_sentence(tmp_path, caplog, change):
    logger, said = logging.getLogger("transformers"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    folder = change(tmp_path)
    logger.addHandler(handler)
    with pytest.raises(ValueError):
        Diffusion.from_pretrained(folder)
    logger.removeHandler(handler)
    assert not said and not logging.getLogger("transformers.modeling_utils").disabled


def test_the_hub_gets_the_token(monkeypatch):
    seen = []

    def hub(token=None):
        seen.append(token)
        raise RuntimeError("stop")

    monkeypatch.setattr(diffusion_utils.huggingface_hub, "HfApi", hub)
    with pytest.raises(ConnectionError):
        Diffusion.from_pretrained("me/private", token="hf_mine")
    assert seen == ["hf_mine"]


@pytest.mark.parametrize("options", [{}, {"local_files_only": True}])
def test_a_model_in_a_cache_of_ones_own(tmp_path, options):
    place = tmp_path / "models--me--it"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    tiny().save_pretrained(place / "snapshots" / ("a" * 40))
    assert same(Diffusion.from_pretrained("me/it", cache_dir=tmp_path, **options), tiny())


# Numbers of other kinds -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_numbers_draw(tmp_path, dtype):
    Diffusion.from_pretrained(TOY_MODEL).to(dtype).save_pretrained(tmp_path)
    other, expected = Diffusion.from_pretrained(tmp_path, dtype=dtype), Diffusion.from_pretrained(TOY_MODEL)
    drawn, expected = (generate(model, n=2, steps=5, seed=0) for model in (other, expected))
    assert other.dtype == dtype and drawn.dtype == torch.float32
    assert (drawn - expected).abs().mean() < 0.05


def test_other_default_numbers(monkeypatch):
    expected = generate(Diffusion.from_pretrained(TOY_MODEL), n=1, steps=2, noise=torch.zeros(1, 3, 32, 32))
    torch.set_default_dtype(torch.float64)
    try:
        noise = torch.zeros(1, 3, 32, 32)
        assert noise.dtype == torch.float64
        drawn = generate(Diffusion.from_pretrained(TOY_MODEL), n=1, steps=2, noise=noise)
        assert generate(tiny(), n=2, steps=2, seed=0).shape == (2, 3, 8, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(drawn, expected, atol=1e-5)


def test_features_of_pictures_in_64_bits():
    assert face_features(FaceClassifier(), np.random.default_rng(0).random((3, 3, 32, 32))).shape == (3, 64)


# A training beside a drawing ------------------------------------------------------------------


def test_the_mode_of_each_part_stays():
    diffusion = tiny().train()
    diffusion.unet.down[0].eval()
    before = [module.training for module in diffusion.modules()]
    generate(diffusion, n=1, steps=1)
    assert [module.training for module in diffusion.modules()] == before


def test_drawing_in_threads_leaves_a_training_model_in_train_mode():
    diffusion = tiny().train()
    threads = [threading.Thread(target=generate, args=(diffusion, 1, 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = [diffusion.training for _ in range(100)]
    for thread in threads:
        thread.join()
    assert all(seen) and all(module.training for module in diffusion.modules())
