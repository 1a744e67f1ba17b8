"""Lesson 10: images from anywhere, one by one, and what is said of those that cannot be read."""

import io
import os
import random
import re
import sys
import warnings
import zipfile
from pathlib import Path
from unittest.mock import Mock, call

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from helpers import good, gradient, names, same, tiny
from PIL import Image, ImageCms

from diffusion_course import images
from diffusion_course.images import (
    CATS,
    CATS_MODEL,
    Augmented,
    LazyImages,
    any_images,
    copies,
    eight_bits,
    look_through,
    mirror,
    publish,
)
from diffusion_course.long_runs import carry_on
from diffusion_course.quality import pixel_distance
from diffusion_utils import TOY_FACES, Diffusion, Training, generate, get_data, get_loader

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and odd names need rights there")
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
unread = datasets.Image(decode=False)


def save(folder, *names, color="red"):
    """Write small images of one colour, and files that are none."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif"):
            Image.new("RGB", (8, 8), color).save(path)
    return folder


def pack(path, *names, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # as it stands, with \ and all
            archive.writestr(entry, content)
    return path


def encoded(kind="PNG", image=None, **options):
    buffer = io.BytesIO()
    (image or gradient()).save(buffer, kind, **options)
    return buffer.getvalue()


def found(rows):
    return sorted(Path(row["image"]["path"]).name for row in rows.cast_column("image", unread))


def found_with(words, source):
    """How many images are found; meanwhile there is one warning, with these words, or none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        count = len(any_images(source))
    sentences = [str(warning.message) for warning in caught if warning.category is UserWarning]
    assert len(sentences) == bool(words) and all(re.search(words, sentence) for sentence in sentences)
    return count


# Which files ----------------------------------------------------------------------------

TWENTY = [f"{i:02}.png" for i in range(20)]
FOLDERS = {  # what lies in the folder, how many are in train and in test, and the words of a warning
    "a name with train": ([*TWENTY, "at the train station.png"], 21, 0, None),
    "a folder with train": ([*TWENTY, "my train/a.png"], 21, 0, None),
    "names with other splits": (["test.png", "a val.png", "dev-1.png", "eval.jpg"], 4, 0, None),
    "a class called train": (["train/a.png", "boat/b.png"], 2, 0, "not all images lie in folders of splits"),
    "one stray file": (["train/a.png", "test/b.png", "c.png"], 3, 0, "not all images lie in folders of splits"),
    "two splits": (["train/a.png", "train/b.png", "test/c.png"], 2, 1, None),
    "two splits, in capitals": (["Train/a.png", "TEST/c.png"], 1, 1, None),
    "two splits further down": (["faces/train/a.png", "faces/train/b.png", "faces/test/c.png"], 2, 1, None),
    "one split": (["train/deep/a.png", "train/b.png"], 2, 0, None),
    "captions": (["a.png", "b.png", "a.txt", "b.txt"], 2, 0, r"2 files left out, Pillow opens no \{'.txt': 2\}"),
    "a telephone": (["a.png", *(f"{i}.HEIC" for i in range(50))], 1, 0, r"50 files left out, .*'.heic': 50"),
    "outputs": (["a.png", "out/training.pt", "b.eps", "c"], 1, 0, "3 files left out, .*'no extension': 1"),
    "hidden": (["a.png", ".b.png", ".t/c.png", "__MACOSX/a.png", "@eaDir/a.jpg", ".DS_Store"], 1, 0, None),
    "capitals": (["A.PNG", "B.JPEG", "c.Jpg", "d.tIf"], 4, 0, None),
    "a script": (["a.png", "folder.py"], 1, 0, "1 files left out"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("zipped", [False, True])
def test_folders_and_zip_files(tmp_path, name, zipped):
    files, train, test, words = FOLDERS[name]
    folder = save(tmp_path / "folder", *files)
    if zipped:  # by a program for Windows
        path = tmp_path / "FOLDER.ZIP"
        folder = pack(path, *(file.replace("/", "\\") for file in files), content=encoded())
    assert found_with(words, folder) == train
    if test:
        assert len(any_images(folder, "test")) == test
    else:
        with warnings.catch_warnings(), pytest.raises(ValueError, match="split: there is no 'test', only"):
            warnings.simplefilter("ignore")
            any_images(folder, "test")


@pytest.mark.parametrize("source", ["relative", "~/mine", "one", "list", "texts"])
def test_other_sources(tmp_path, monkeypatch, source):
    save(tmp_path / "mine", "a.png", "b.png")
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    files = [tmp_path / "mine" / "a.png", tmp_path / "mine" / "b.png"]
    texts = ("a.png", "~/mine/b.png")
    rows = any_images({"relative": ".", "one": files[0], "list": files, "texts": texts}.get(source, source))
    monkeypatch.chdir(tmp_path)  # the rows know where their files are
    assert len(get_data(rows, size=4)) == (1 if source == "one" else 2)


def test_tables(tmp_path):
    """A data set that is open, one in hub layout, and that in a zip file."""
    kinds = datasets.Features(face=datasets.Image(), age=datasets.Value("int32"))
    rows = datasets.Dataset.from_dict({"face": [gradient(), None, gradient()], "age": [1, 2, 3]}, kinds)
    (tmp_path / "hub").mkdir()
    rows.to_parquet(tmp_path / "hub" / "train.parquet")
    pack(tmp_path / "hub.zip", "hub/train.parquet", content=(tmp_path / "hub" / "train.parquet").read_bytes())
    for source in (rows, tmp_path / "hub", tmp_path / "hub.zip"):
        with pytest.warns(UserWarning, match="1 of 3 images are left out, the first: a row cannot be read"):
            assert get_data(any_images(source), size=8).shape == (2, 3, 8, 8)
    reasons = {reason for _, _, reason in look_through(rows, 8)}
    assert reasons == {"", "it is not an image"}


def table(path, *colors):
    """A table of small images, one of each colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [Image.new("RGB", (4, 4), color) for color in colors]}
    datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image())).to_parquet(path)


def packed(path, color):
    """A zip file with a small image, of the same size in every colour."""
    pack(path, "a.bmp", content=encoded("BMP", Image.new("RGB", (4, 4), color)))


@pytest.mark.parametrize("write, name", [(table, "train.parquet"), (packed, "f.zip")])
def test_a_source_that_changes(tmp_path, write, name):
    """Even with the time and size of the one before, of which there is a copy."""
    path, shown = tmp_path / name, []
    for color in ("black", "white"):
        write(path, color)
        os.utime(path, ns=(10**18, 10**18))
        shown.append(any_images(path if write is packed else tmp_path))
    assert [get_data(rows, size=4).mean() for rows in shown] == [0, 1]


@pytest.mark.parametrize("tables, images, rows, words", [
    (["train.parquet"], TWENTY[:3], 2, "3 files beside its tables are left out, such as '00.png'"),
    (["a.parquet"], TWENTY[:3], 3, "1 files beside its tables are left out, such as 'a.parquet'"),
    (["train_a.parquet", "test_a.parquet", "more.parquet"], [], 2, "1 files beside .*, such as 'more.parquet'"),
    (["data/train-0.parquet", "data/test-0.parquet"], [], 2, None),
])  # fmt: skip
def test_what_a_table_has_beside_it(tmp_path, tables, images, rows, words):
    for name in tables:
        table(tmp_path / name, "red", "blue")
    save(tmp_path, *images)
    assert found_with(words, tmp_path) == rows


def test_tables_without_images(tmp_path):
    """As img2dataset writes them: `datasets` takes the notes of the images for tables."""
    table(tmp_path / "00000.parquet", "red")
    save(tmp_path, "00000/0.png")
    for number in range(3):
        (tmp_path / "00000" / f"{number}.json").write_text("{}")
    with pytest.raises(ValueError, match="source: its tables are empty; name the folder of the images"):
        found_with("2 files beside its tables are left out", tmp_path)


def test_a_hub_that_is_not_reached(tmp_path, monkeypatch):
    def unreached(*arguments, **options):
        raise ConnectionError("Couldn't reach 'me/faces' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreached)
    with pytest.raises(ConnectionError, match="reach 'me/faces' on the Hub; .* offline, .*HF_ENDPOINT"):
        any_images("me/faces")


@pytest.mark.parametrize("files, sentence", [
    ([], r"there is no image in .*, only \{\}"), (["a.heic", "b.HEIC"], r"only \{'.heic': 2\}"),
    (["bad.png.txt"], r"only \{'.txt': 1\}"),
])  # fmt: skip
def test_no_image(tmp_path, files, sentence):
    with pytest.raises(ValueError, match=sentence):
        any_images(save(tmp_path, *files) if files else tmp_path)


def test_a_zip_file_writes_nothing_elsewhere(tmp_path):
    pack(tmp_path / "f.zip", "../outside.png", "..\\..\\outside.png", "/inside.png", content=encoded())
    assert len(any_images(tmp_path / "f.zip")) >= 1 and names(tmp_path) == ["f.zip"]


@posix
def test_links_and_pipes(tmp_path):
    save(tmp_path / "mine", "a.png", "deep/b.png")
    save(tmp_path / "elsewhere", "c.png")
    (tmp_path / "mine" / "deep" / "back").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "lost.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "mine" / "pipe.png")
    with pytest.warns(UserWarning, match="1 of 4 images are left out, the first: lost.png cannot be read"):
        assert found(any_images(tmp_path / "mine")) == ["a.png", "b.png", "c.png"]


@linux
def test_names_of_all_kinds(tmp_path):
    odd = [
        "a, (b) & ümlaut #1%20.png",
        "a::b.png",
        "http:x.png",
        "new\nline.png",
        os.fsdecode(b"caf\xe9.png"),
    ]
    assert len(get_data(any_images(save(tmp_path / "set[1] *?", *odd)), size=4)) == 5


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    save(tmp_path, "a.png", "locked/b.png")
    scan = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.warns(UserWarning, match=r"source: 'locked' is left out \(Permission denied\)"):
        assert found(any_images(tmp_path)) == ["a.png"]


# What is in them ------------------------------------------------------------------------

BROKEN = {
    "text.jpg": (b"this is not an image", "it is not an image"),
    "empty.jpg": (b"", "it is not an image"),
    "truncated.jpg": (encoded("JPEG")[:400], "[Tt]runcated"),
    "truncated.png": (encoded()[:150], "truncated|broken"),
    "only_header.gif": (b"GIF89a", "it is not an image|not enough|unknown|truncated|out of range|unpack"),
    "bomb.png": (encoded("PNG", Image.new("1", (20_000, 20_000))), "decompression bomb"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_broken_file_among_good_ones(tmp_path, name):
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    good(tmp_path)
    sentence = rf"source: 1 of 4 images are left out, the first: {name} cannot be read \(.*({reason})"
    with pytest.warns(UserWarning, match=sentence) as warned:
        assert get_data(any_images(tmp_path), size=8).shape == (3, 3, 8, 8)
    (warning,) = [warning for warning in warned if warning.category is UserWarning]
    assert warning.filename == __file__ and "\n" not in str(warning.message)
    seen = {Path(path).name: (image, why) for path, image, why in look_through(tmp_path, 8)}
    assert seen[name][0] is None and seen[name][1] and str(tmp_path) not in seen[name][1]
    assert seen["good_1.png"][0].shape == (3, 8, 8) and seen["good_1.png"][1] == ""
    for path in tmp_path.glob("good*"):
        path.unlink()
    with pytest.raises(ValueError, match="source: 1 of 1 images are left out"):
        any_images(tmp_path)


@posix
def test_many_broken_files_are_not_kept_open(tmp_path):
    """Else the system would open no more, and good images would be left out, too."""
    import resource

    good(tmp_path, 20, start=900)
    for i in range(400):
        (tmp_path / f"broken_{i}.png").write_bytes(encoded()[:150])
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, usual[1]))
    try:
        with pytest.warns(UserWarning, match="400 of 420 images are left out"):
            assert len(any_images(tmp_path)) == 20
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def exif(content):
    return b"Exif\0\0" + content


UPRIGHT = Image.Exif()
UPRIGHT[0x0112] = 6
LYING = gradient().transpose(Image.Transpose.ROTATE_90)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = np.asarray(gradient().convert("L"))
ODD = {  # what is in the file, whether its file stays, and whether it is grey
    "animated.gif": (encoded("GIF", save_all=True, append_images=[Image.new("RGB", (64, 64))]), True, False),
    "turned.jpg": (encoded("JPEG", LYING, exif=UPRIGHT, quality=98), True, False),
    "turned.png": (encoded("PNG", LYING, exif=UPRIGHT), True, False),
    "broken_exif.png": (encoded("PNG", exif=exif(b"garbage that is no TIFF")), False, False),
    "broken_exif.webp": (encoded("WEBP", exif=exif(b"garbage that is no TIFF"), quality=98), False, False),
    "cmyk.jpg": (encoded("JPEG", gradient().convert("CMYK"), quality=98), True, False),
    "profile.png": (encoded("PNG", icc_profile=PROFILE), True, False),
    "palette.png": (encoded("PNG", gradient().quantize(200)), True, False),
    "sixteen_bits.png": (encoded("PNG", Image.fromarray(GREY.astype(np.uint16) * 257)), False, True),
    "floats.tif": (encoded("TIFF", Image.fromarray(GREY.astype(np.float32) / 255)), False, True),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_images_come_out_right(tmp_path, name):
    """By way of `any_images`, of `look_through` and, where any program opens it, as it is."""
    content, stays, grey = ODD[name]
    (tmp_path / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rows = any_images(tmp_path)
    assert (rows.cast_column("image", unread)[0]["image"]["bytes"] is None) == stays
    expected = gradient().convert("L").convert("RGB") if grey else gradient()
    expected = np.asarray(expected).transpose(2, 0, 1) / 255
    ((path, image, reason),) = look_through(tmp_path)
    assert Path(path).name == found(rows)[0] == name and not reason
    for result in (image, get_data(rows)[0], LazyImages(rows)[0]):
        assert np.abs(result - expected).mean() < 0.03


@pytest.mark.parametrize("kind, most, white", [
    ("f", 1, 1), ("f", 1.003, 1), ("f", 0.4, 1), ("f", 255, 255), ("f", 255.6, 255), ("f", 100, 255), ("f", 65535, 65535),
    ("i", 255, 255), ("i", 256, 255), ("i", 65535, 65535), ("uint16", 65535, 65535), ("uint16", 200, 65535),
])  # fmt: skip
def test_grey_values_of_any_range(kind, most, white):
    grey = np.linspace(0, most, 256).reshape(16, 16).astype(kind)
    result = np.asarray(eight_bits(Image.fromarray(grey))) / 255
    assert np.abs(result - (grey / white).clip(0, 1)).max() < 0.003


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -5])
def test_grey_values_that_are_none(odd):
    grey = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    grey[0, 0] = odd
    pixels = np.asarray(eight_bits(Image.fromarray(grey)))
    assert pixels[0, 0] == 0 and pixels[-1, -1] == 255  # all others are as they were


def test_a_part_of_the_rows_is_a_fair_sample(tmp_path):
    """Those that were changed lie among the others."""
    save(tmp_path, *TWENTY)
    for i in range(20):
        Image.new("F", (4, 4), 0.5).save(tmp_path / f"f{i}.tif")
    half = found(any_images(tmp_path).select(range(20)))
    assert 5 <= len([name for name in half if name.endswith("tif")]) <= 15


@pytest.mark.parametrize("use", [any_images, lambda source: list(look_through(source))])
def test_an_error_of_our_own_is_not_a_broken_image(tmp_path, monkeypatch, use):
    def fails(*arguments):
        raise KeyError("a mistake of ours")

    Image.new("F", (4, 4), 0.5).save(tmp_path / "a.tif")
    monkeypatch.setattr(images, "eight_bits", fails)
    with pytest.raises(KeyError, match="a mistake of ours"):
        use(tmp_path)


# One by one -----------------------------------------------------------------------------


def test_lazy_is_the_same_as_at_once():
    lazy = LazyImages(TOY_FACES, split="test", size=16, seed=3)
    at_once = get_data(split="test", limit=5, size=16, seed=3)
    assert len(lazy) == 1000 and all(np.array_equal(lazy[i], at_once[i]) for i in range(5))
    batch = next(iter(get_loader(lazy, 8)))
    assert batch.shape == (8, 3, 16, 16) and 0 <= batch.min() and batch.max() <= 1


# The cats -------------------------------------------------------------------------------


def test_the_cats_are_as_their_card_says():
    card = (CATS / "README.md").read_text(encoding="utf-8")
    seen = set()
    for split, count in {"train": "1,000", "test": "200"}.items():
        rows = datasets.load_dataset(str(CATS), split=split)
        assert f"| `{split}` | {count} |" in card and len(rows) == int(count.replace(",", ""))
        assert {image.size for image in rows["image"]} == {(64, 64)}
        parts = {name: rows[name][:] for name in rows.column_names if name != "image"}
        assert all(f"| `{name}` | 0 to {max(numbers)} |" in card for name, numbers in parts.items())
        seen |= set(zip(*parts.values()))
    assert len(seen) == 1200  # all different
    assert "David Revoy" in card and "creativecommons.org/licenses/by/4.0" in card
    assert sum(path.stat().st_size for path in CATS.rglob("*") if path.is_file()) < 3e6


def test_the_network_that_draws_cats():
    """Lesson 10 says what it draws; the weights lie there in 16 bits and are loaded in 32."""
    diffusion = Diffusion.from_pretrained(CATS_MODEL)
    assert {weights.dtype for weights in diffusion.parameters()} == {torch.float32}
    assert (CATS_MODEL / "model.safetensors").stat().st_size < 1.1e6
    held_out = torch.from_numpy(get_data(CATS, split="test", size=32))
    both_ways = torch.cat((held_out, held_out.flip(3)))
    assert pixel_distance(generate(diffusion, n=60, seed=5), both_ways) < 9


# Others of the same kind, and the same again --------------------------------------------


def pool(count, seed=0):
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_copies_are_found_and_others_are_not():
    known, new = pool(20), pool(20, seed=1)
    noisy = (known + 0.1 * (pool(20, seed=2) - 0.5)).clip(0, 1)
    for drawn in (known, known.flip(3), noisy):
        copied, places = copies(drawn, known)
        assert copied.all() and places.tolist() == list(range(20))
    copied, places = copies(new.numpy(), known.numpy())
    assert not copied.any() and places.shape == (20,)


def test_mirror():
    image = pool(1)[0]
    mirrored = [mirror(image) for _ in range(40)]
    assert {torch.equal(one, image) for one in mirrored} == {True, False}
    assert all(torch.equal(one, image) or torch.equal(one, image.flip(-1)) for one in mirrored)


def vary(image):
    """Random by all three kinds of random numbers; and it writes into the image that it is given."""
    image *= random.uniform(0.5, 1) * np.random.uniform(0.5, 1) * torch.rand(3, 1, 1)
    return image.flip(-1) if random.random() < 0.5 else image


def varied(workers=0, seed=0):
    data = np.random.default_rng(0).random((32, 3, 8, 8), dtype=np.float32)
    options = {"shuffle": True, "drop_last": True, "num_workers": workers, "persistent_workers": workers > 0}
    return torch.utils.data.DataLoader(Augmented(data, vary, seed), 8, **options)


def test_augmented_follows_from_seed_epoch_and_index():
    data = torch.rand(4, 3, 8, 8)
    before, one, other = data.clone(), Augmented(data, vary), Augmented(data, vary, seed=1)
    first = one[2]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert torch.equal(one[2], first) and not torch.equal(one[1], first) and len(one) == 4
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    one.set_epoch(1)
    assert not torch.equal(one[2], first) and not torch.equal(other[2], first) and torch.equal(data, before)


def train_varied(folder=None, workers=0, stop=None):
    training = Training(tiny(), varied(workers), epochs=3, lr=1e-2)
    for step in training if folder is None else carry_on(training, folder, every=5):
        if step == stop:
            break
    return training


def test_training_on_augmented_images_goes_on_to_the_bit(tmp_path):
    """Whether it is broken off within an epoch or between two, with the loader's workers and without."""
    whole = train_varied()
    assert same(train_varied(workers=2).diffusion, whole.diffusion)
    train_varied(tmp_path, stop=6)
    train_varied(tmp_path, workers=2, stop=8)
    parts = train_varied(tmp_path)
    assert parts.loader.dataset.epoch == 2  # the loop says when a new one begins
    assert same(parts.diffusion, whole.diffusion) and parts.history["loss"] == whole.history["loss"]
    with pytest.raises(ValueError, match="augment_seed=0, not 1"):
        list(carry_on(Training(tiny(), varied(seed=1), epochs=3, lr=1e-2), tmp_path))


# publish --------------------------------------------------------------------------------


def test_publish_asks_for_a_token_and_passes_the_rest_on(monkeypatch):
    """Whether the token is an argument or was stored; tests/test_hub.py has a hub to publish on."""
    model = Mock()
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PermissionError, match="token: there is none; call huggingface_hub.login"):
        publish(model, "me/it")
    publish(model, "me/it", token="secret", private=True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
    publish(model, "me/it")
    calls = [call("me/it", token="secret", private=True), call("me/it", token=None)]
    assert model.push_to_hub.mock_calls == calls
