"""Lesson 10: pictures from anywhere, one by one, and what is said of those that cannot be read."""

import os
import sys
import warnings
import zipfile
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
from PIL import Image

from diffusion_utils import TOY_FACES, _files, _pictures, get_data, get_loader
from diffusion_course import pictures
from diffusion_course.images import Pictures, look_through, picture_files, publish

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names need rights there")


def save(folder, *names, color="red"):
    """Write small pictures of one colour."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), color).save(path)


def names(rows):
    return [Path(row["image"]["path"]).name for row in rows]


# picture_files --------------------------------------------------------------------------


def test_all_folders_sorted_nothing_guessed(tmp_path):
    save(tmp_path, "b.png", "test/val.jpg", "my train/at the train station.png", "a/dev/UPPER.JPEG")
    rows = picture_files(tmp_path)
    assert names(rows) == ["UPPER.JPEG", "b.png", "at the train station.png", "val.jpg"]
    assert get_data(rows, size=4).shape == (4, 3, 4, 4)
    assert get_data(rows, limit=2, size=4).shape == (2, 3, 4, 4)


def test_what_is_hidden_or_no_picture(tmp_path):
    save(tmp_path, "good.png", ".hidden.png", "._good.png", ".thumbnails/small.png", "__MACOSX/good.png",
         "@eaDir/good.jpg")  # fmt: skip
    for name in ("training.pt", "train.log", "notes.txt", "film.mpg", "table.h5", "no_ending", ".DS_Store"):
        (tmp_path / name).write_bytes(b"?")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(picture_files(tmp_path)) == ["good.png"]


def test_a_hidden_folder_that_is_asked_for(tmp_path):
    save(tmp_path / ".mine", "a.png")
    assert names(picture_files(tmp_path / ".mine")) == ["a.png"]


def test_photos_that_pillow_cannot_open_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PHOTOS", {".heic", ".dng", ".png", ".eps"})
    save(tmp_path, "a.png")
    for name in ("1.heic", "2.HEIC", "raw.dng", "logo.eps"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.warns(
        UserWarning, match=r"leaves out, 1 \.dng, 1 \.eps, 2 \.heic; save .* as JPEG"
    ) as warned:
        assert names(picture_files(tmp_path)) == ["a.png"]
    assert len(warned) == 1 and warned[0].filename == __file__


def test_endings():
    opened = [
        Path("a" + ending) for ending in (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")
    ]
    closed = (".eps", ".ps", ".wmf", ".emf", ".h5", ".hdf", ".grib", ".bufr", ".mpg", ".mpeg")
    assert _pictures([*opened, *(Path("a" + ending) for ending in closed)]) == opened


@pytest.mark.parametrize("files, sentence", [
    ([], "no file in .* is a picture that Pillow opens; there are no files at all$"),
    (["a.txt", "b.TXT", "README"], r"there are 2 \.txt, 1 without an ending$"),
    (["a.heic"], r"there are 1 \.heic; save such photos as JPEG"),
])  # fmt: skip
def test_no_picture(tmp_path, files, sentence):
    for name in files:
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ValueError, match=sentence):
        picture_files(tmp_path)


def test_no_folder(tmp_path):
    for path in (tmp_path / "nowhere", __file__):
        with pytest.raises(FileNotFoundError, match="folder: there is no folder"):
            picture_files(path)


@posix
def test_links(tmp_path):
    save(tmp_path / "mine", "a.png", "deep/b.png")
    save(tmp_path / "elsewhere", "c.png")
    (tmp_path / "mine" / "deep" / "back").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "lost.png").symlink_to(tmp_path / "nothing.png")
    assert sorted(names(picture_files(tmp_path / "mine"))) == ["a.png", "b.png", "c.png", "lost.png"]
    assert len(_files(tmp_path / "mine")) == 4
    with pytest.warns(UserWarning, match="1 of 4 pictures are left out, the first: lost.png cannot be read"):
        assert len(get_data(picture_files(tmp_path / "mine"), size=4)) == 3


@posix
def test_pipes_are_not_waited_for(tmp_path):
    save(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(picture_files(tmp_path)) == ["a.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_all_kinds(tmp_path):
    save(tmp_path, "a, (b) & ümlaut #1%20.png", "a::b.png", "http:x.png", "new\nline.png")
    save(tmp_path, os.fsdecode(b"caf\xe9.png"))
    rows = picture_files(tmp_path)
    assert len(rows) == len(get_data(rows, size=4)) == 5


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    save(tmp_path, "a.png", "locked/b.png")
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"folder: 'locked' is left out \(Permission denied\)"):
        assert names(picture_files(tmp_path)) == ["a.png"]


def test_the_rows_work_from_another_folder(tmp_path, monkeypatch):
    save(tmp_path / "mine", "a.png")
    monkeypatch.chdir(tmp_path)
    rows = picture_files("mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert get_data(rows, size=4).shape == (1, 3, 4, 4)


def test_rows_with_their_bytes_make_a_data_set_for_the_hub(tmp_path):
    save(tmp_path / "mine", "a.png", "b.jpg")
    with_bytes = [
        {"bytes": Path(row["image"]["path"]).read_bytes()} for row in picture_files(tmp_path / "mine")
    ]
    kinds = datasets.Features({"image": datasets.Image()})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    rows = datasets.Dataset.from_dict({"image": with_bytes}, kinds)
    rows.to_parquet(tmp_path / "hub" / "data" / "train-00000.parquet")
    assert get_data(tmp_path / "hub", size=4).shape == (2, 3, 4, 4)


# look_through ---------------------------------------------------------------------------


def test_look_through(tmp_path):
    save(tmp_path, "good.png")
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:50])
    found = {
        Path(path).name: (picture, reason)
        for path, picture, reason in look_through(picture_files(tmp_path), 4)
    }
    picture, reason = found["good.png"]
    assert picture.shape == (3, 4, 4) and picture.dtype == np.float32 and not reason
    assert np.allclose(picture[:, 0, 0], [1, 0, 0])
    assert found["text.jpg"] == (None, "it is no picture")
    assert found["half.png"][0] is None and found["half.png"][1]
    assert not any(str(tmp_path) in reason for _, reason in found.values())


def test_look_through_sorts_out(tmp_path):
    save(tmp_path, "a/same.png", "b/other.png")
    (tmp_path / "b" / "same.png").write_bytes(b"?")
    rows = picture_files(tmp_path)
    bad = {path for path, _, reason in look_through(rows) if reason}
    good = rows.filter(lambda row: row["image"]["path"] not in bad)
    assert len(good) == 2 and len(get_data(good, size=4)) == 2


def test_look_through_rows_without_a_picture():
    kind = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [None, Image.new("RGB", (4, 4))]}, kind)
    found = sorted(look_through(rows, 4), key=lambda item: item[2])
    assert found[0][1] is not None and found[1][:2] == ("", None) and found[1][2]


def test_look_through_other_sources(tmp_path):
    assert sum(picture is not None for _, picture, _ in look_through(TOY_FACES, 8, split="test[:5]")) == 5
    save(tmp_path, "a.png", "b.png")
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.write(tmp_path / name, f"inner/{name}")
    assert len([path for path, _, reason in look_through(tmp_path / "two.zip") if not reason]) == 2
    with pytest.raises(FileNotFoundError):
        next(look_through(tmp_path / "nowhere"))


# Pictures -------------------------------------------------------------------------------


def test_lazy_is_the_same_as_at_once():
    lazy, at_once = (
        Pictures(TOY_FACES, split="test", size=16, seed=3),
        get_data(split="test", limit=5, size=16, seed=3),
    )
    assert len(lazy) == 1000
    assert all(np.array_equal(lazy[i], at_once[i]) for i in range(5))
    batch = next(iter(get_loader(lazy, 8)))
    assert batch.shape == (8, 3, 16, 16) and 0 <= batch.min() and batch.max() <= 1


def test_lazy_rows_of_files(tmp_path):
    save(tmp_path, "a.png", "b.png", color="blue")
    lazy = Pictures(picture_files(tmp_path), size=4)
    assert len(lazy) == 2 and np.allclose(lazy[1][2], 1)


def test_lazy_names_a_broken_file(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"text.jpg cannot be read \(it is no picture\)"):
        Pictures(picture_files(tmp_path))[0]


@pytest.mark.parametrize("size, error", [(0, ValueError), ("64", TypeError)])
def test_lazy_size(size, error):
    with pytest.raises(error, match="size must be"):
        Pictures(TOY_FACES, size=size)


# publish --------------------------------------------------------------------------------


class Model:
    """Publishes nothing; it notes what it is told, and fails where asked to."""

    def __init__(self, error=None):
        self.error, self.told = error, None

    def push_to_hub(self, name, **options):
        self.told = name, options
        if self.error:
            raise self.error
        return "an address"


def test_publish(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    model = Model()
    assert publish(model, "me/it", token="secret", private=True) == "an address"
    assert model.told == ("me/it", {"token": "secret", "private": True})
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
    assert publish(model, "me/it") == "an address" and model.told == ("me/it", {"token": None})


def test_publish_without_a_token(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    model = Model()
    with pytest.raises(PermissionError, match="token: there is none; call huggingface_hub.login"):
        publish(model, "me/it")
    assert model.told is None


@pytest.mark.parametrize("raised, kind, sentence", [
    (OSError("403 Forbidden\nwith a long page"), ConnectionError, "me/it was not published: 403 Forbidden. The model here"),
    (RuntimeError("no route"), ConnectionError, "me/it was not published: no route"),
    (TypeError("no such option"), TypeError, "no such option"),
    (ValueError("a bad name"), ValueError, "a bad name"),
])  # fmt: skip
def test_publish_goes_wrong(raised, kind, sentence):
    with pytest.raises(kind, match=sentence):
        publish(Model(raised), "me/it", token="secret")
