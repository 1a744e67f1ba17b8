first=open('/work/main/tools/first_cell.py').read().strip()
M(r'''# 10 · Bring your own pictures

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/diffusion-course/blob/v1/notebooks/10_your_own_images.ipynb)

**What you'll do:** teach the network something that is no face: a thousand cats, and then the images in your own folder.

**What you'll learn**
- how to fine-tune a trained network, and what that is worth;
- how many images it takes, and how to tell a new image from a copy;
- what to do when images are few;
- what becomes of broken, odd and sideways files, and how to see it before you train;
- how a data set is laid out for the Hugging Face hub, and how to share one there.

**What you'll need:** lessons [01](01_data_loading.ipynb), [04](04_training.ipynb) and [05](05_sampling.ipynb); the pixel distance comes from lesson [07](07_measuring_quality.ipynb).

**Time:** the cells run in about two minutes on two CPU cores, without a GPU. Reading: 30 minutes.''')
K(first,hide=True)
K('''import io
import os
import random
import struct
import tempfile
import textwrap
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock''',hide=True)
K('''import datasets
import huggingface_hub
import numpy as np
import torch
from ipywidgets import IntSlider, interact
from matplotlib import pyplot as plt
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from diffusion_course.images import CATS, CATS_MODEL, HIDDEN, OTHER_FORMATS, SPLITS, LazyImages, any_images, look_through
from diffusion_course.optimizers import even_l1_loss, muon  # lesson 11 builds them
from diffusion_course.quality import published
from diffusion_utils import (
    CPU_RECIPE,
    TOY_MODEL,
    Diffusion,
    Training,
    generate,
    get_data,
    get_loader,
    open_images,
    seed_of,
    show,
    square_rgb,
)''',hide=True)
M('''All that this lesson writes goes into one temporary folder, which is gone when the lesson ends.''')
K('''workshop = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
desk = Path(workshop.name)
datasets.config.HF_DATASETS_CACHE = desk / "cache"  # the copies that `datasets` makes of what it reads''')
M('''## A thousand cats

So far you have seen nothing but faces. Here are 1,200 cats, by David Revoy, who allows everybody to use and change them if he is named (CC BY 4.0). 200 of them are set aside. The folder is opened like any other.''')
K('''cats, held_out = (torch.from_numpy(get_data(CATS, split=split, size=32)) for split in ("train", "test"))
print(len(cats), "to learn from,", len(held_out), "set aside")
assert cats.shape == (1000, 3, 32, 32) and len(held_out) == 200''')
K('''def sheet(images, columns=16):
    rows = len(images) // columns
    grid = torch.as_tensor(images[: rows * columns]).cpu().unflatten(0, (rows, columns))
    page = grid.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # rows, height, columns, width, colours
    figure = plt.figure(figsize=(0.6 * columns, 0.6 * rows))
    figure.add_axes((0, 0, 1, 1)).imshow(page, interpolation="nearest")
    plt.axis("off")
    plt.show()


sheet(cats[:48])''')
M('''## Teach it cats

We do not begin with a new network but with the one that knows faces, and train it as lesson [04](04_training.ipynb) did. That is called **fine-tuning**. The optimizer is Muon, which lesson [11](11_long_training_runs.ipynb) builds.

**Predict first:** what will it draw after 20 steps, after 100, after 400? And are faces of any help with cats?''')
K('''painter = Diffusion.from_pretrained(TOY_MODEL)
recipe = CPU_RECIPE | {"epochs": 13, "lr": 5e-3}
training = Training(painter, get_loader(cats, 32), loss=even_l1_loss, optimizer=muon, **recipe)
sketches = []
for step in training:
    if step in (20, 100):
        sketches.append(generate(training.average.module, n=16, seed=1))''')
K('''drawn = generate(painter, n=64, seed=1)
sheet(torch.cat([*sketches, drawn[:16]]))
assert len(training) == 403''')
M('''@LIVE@''')
M('''And with more time? This network has learned for @MINUTES@ minutes on one CPU core, from a new start. In half of all cases it saw a cat mirrored:''')
K('''cat_painter = Diffusion.from_pretrained(CATS_MODEL)
better = generate(cat_painter, n=64, seed=1)
sheet(better)''',tags=['cover'])
M('''@SHIPPED@''')
K('''def leaf(seed):
    show(generate(cat_painter, n=6, seed=seed), n=6)


interact(leaf, seed=IntSlider(2, min=0, max=50, continuous_update=False));''')
M('''## Are they new?

A network may have learned its images by heart. To find out, look for the training image that is nearest to each drawing. Single pixels are a poor guide, since a shift by one of them changes many, so we compare images averaged down to 16×16, upright and mirrored.

How near is a copy? No fixed number will do: two orange cats with a scarf are always near each other. So compare with the *second* nearest. If the nearest is less than a third as far, the drawing belongs to that one image.''')
K(DEF('copies'))
K('''copied, originals = copies(better, cats)
sheet(torch.cat([better[:16], cats[originals[:16]]]))
alarms = copies(held_out, cats)[0].float().mean()
print(f"copies: {copied.float().mean():.0%} of the drawings, {alarms:.1%} of the cats that are held out")''')
M('''@COPIES@

## How many images does it take?

The program `benchmarks/own_images.py` has trained a new network on 30, 100, 400 and 1,000 cats, 1,000 steps each. Here are drawings of the four, and below each drawing the nearest cat of its training set:

![Drawings of four networks, and below each the nearest training images](../images/own_images.png)

The numbers to it. The pixel distance is that to the cats held out.''')
K('''table = published("Own images")
for count, mirrored, start, steps, distance, percent in table:
    print(f"{count:14} mirrored: {mirrored:3}  {start:11}  {steps:5}  distance {distance:18} copies {percent:15} %")''')
M('''@COUNTS@

**Augmentation** makes more of few images: in each epoch every image is changed a little, in a way after which it is still an image that you would want drawn. What is allowed depends on the images. A cat may be mirrored, a letter may not.''')
K(DEF('mirror'))
M('''The difficult part is chance. A training run may be interrupted, and should then go on as if nothing had been (lesson [11](11_long_training_runs.ipynb)). So `Augmented` gives each image a seed of its own, made of three numbers: one seed for all, the epoch, and the place of the image. `Training` says which epoch it is; `seeded` puts all random numbers back afterwards.''')
K(DEF('seeded'))
K(DEF('Augmented'))
K('''varied, views = Augmented(cats, mirror), []
for epoch in range(16):
    varied.set_epoch(epoch)
    views.append(varied[3])
sheet(torch.stack(views))
varied.set_epoch(5)
random.seed(99)  # whatever happened before
assert torch.equal(varied[3], views[5]) and not all(torch.equal(view, views[0]) for view in views)''')
M('''@MIRROR@

## Does it pay to start from faces?

@STARTS@''')
# ---------------------------------------------------------------- files
M('''## A folder as folders really are

The cats came well sorted. Real folders have a history: a scanner, three phones, a friend who sends everything as GIF, a copy that broke off. We play all of that. `story` notes what each file is.''')
K('''rows = datasets.load_dataset(str(CATS), split="train")
album, story = desk / "album", {}
album.mkdir()


def cat(number):
    return rows[number]["image"].convert("RGB").resize((256, 256))


def keep(name, what, image, **options):
    image.save(album / name, **options)
    story[name] = what


upright = Image.Exif()
upright[Image.ExifTags.Base.Orientation] = 6  # "turn me by 90° to the right"
keep("kitten.jpg", "an ordinary JPEG", cat(0))
keep("sideways.jpg", "lies on its side, says its EXIF note", cat(3).rotate(90), exif=upright)
keep("print.jpg", "CMYK: four inks", cat(2).convert("CMYK"), quality=95)
keep("hop.gif", "five images in one: the first", cat(5), save_all=True,
     append_images=[cat(5).rotate(angle, fillcolor="white") for angle in (20, 40, 60, 80)])  # fmt: skip''')
K('''ghost = cat(10).convert("RGBA")
ghost.putalpha(ghost.convert("L").point(lambda value: 255 * (value < 250)))
grey = np.asarray(cat(6).convert("L"))
four = np.concatenate([np.asarray(cat(number)) for number in (11, 12, 13, 14)], axis=1)
keep("ghost.png", "transparent: now on white", ghost)
keep("deep.png", "16 bits, grey", Image.fromarray(grey.astype(np.uint16) * 257))
keep("lab.tif", "numbers with a point, from 0 to 1", Image.fromarray(grey.astype(np.float32) / 255))
keep("wide.jpg", "1024 × 256: its middle", Image.fromarray(four))
keep("few.png", "a palette of 5 colours", cat(18).quantize(5))
keep("stamp.bmp", "1 bit: black or white", cat(51).convert("1"))
keep("LOUD.JPEG", "an extension in capitals", cat(35))
keep("tiny.png", "4 × 4 pixels", cat(29).resize((4, 4), Image.Resampling.BOX))''')
M('''And six that are no images, or not whole ones. `bomb.png` is a small file whose head *says* that it has 20,000 × 20,000 pixels. Unpacking such a **decompression bomb** would take more than a gigabyte.''')
K('''whole, lie = (album / "kitten.jpg").read_bytes(), bytearray((album / "few.png").read_bytes())
lie[16:24] = struct.pack(">II", 20_000, 20_000)  # width and height …
lie[29:33] = struct.pack(">I", zlib.crc32(lie[12:29]))  # … and the checksum that belongs to them
broken = {"half.jpg": whole[: len(whole) // 2], "diary.jpg": b"Dear diary, today I saw a cat.", "empty.png": b"",
          ".thumb.jpg": whole, "bomb.png": bytes(lie), "phone.heic": b"a photo as an iPhone stores it"}  # fmt: skip
for name, content in broken.items():
    (album / name).write_bytes(content)''')
M('''**Predict first:** eighteen files. Which of them does a careful loader read, and what does it say about the others? `look_through` goes through a folder file by file, and gives for each the image, or the reason why there is none.''')
K('''with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", UserWarning)
    seen = {Path(path).name: (image, reason) for path, image, reason in look_through(album, size=96)}
    data = get_data(any_images(album), size=32)
for warning in caught[1:]:
    print(textwrap.fill(str(warning.message), 90))''')
K('''def frame(axis, name, image, note):
    axis.set(xticks=[], yticks=[], title=name, facecolor="0.97", box_aspect=1)
    axis.set_xlabel(textwrap.fill(textwrap.shorten(note, 66, placeholder=" …"), 23), fontsize=8, va="top")
    if image is not None:
        axis.imshow(image.transpose(1, 2, 0))
    else:
        axis.xaxis.label.set_color("firebrick")


hidden = {".thumb.jpg": "hidden: the system's own", "phone.heic": "Pillow cannot open it"}
notes = {name: reason for name, (_, reason) in seen.items() if reason} | hidden
figure, axes = plt.subplots(3, 6, figsize=(9.3, 6.3), layout="constrained")
for axis, name in zip(axes.flat, [*story, *broken]):
    frame(axis, name, seen.get(name, (None,))[0], story.get(name) or notes[name])
plt.show()''')
M('''Twelve of eighteen, and a word about each of the others. The cat that lay on its side sits upright, and the four inks are three colours. Two of the twelve you may still not want: of the panorama only the middle is left, two halves of cats, and sixteen pixels make none. No program knows that. Look before you train.

`any_images` is the same without the talk: it opens each file once, leaves out what is broken, says so in a warning, and what it gives can be handed to `get_data`. It takes a folder, a zip file, a list of files, or what `get_data` takes. How it works stands [at the end](#Inside-any_images).''')
K('''assert len(data) == 12 == len(story) and set(notes) == set(broken)
sitting = np.asarray(cat(3).resize((96, 96))).transpose(2, 0, 1) / 255
assert np.abs(seen["sideways.jpg"][0] - sitting).mean() < 0.03  # upright
assert seen["ghost.png"][0][:, 0, 0].min() == 1  # what was transparent is white
assert "decompression bomb" in notes["bomb.png"] and "truncated" in notes["half.jpg"]''')
M('''## Three ways to go wrong in silence

**Names.** Many programs guess from names which images are for training; `datasets` does. **Predict first:** twenty images, and one more that is called `at the train station.png`. How many does it load?''')
K('''holiday = desk / "holiday"
holiday.mkdir()
for number, image in enumerate(rows["image"][:20]):
    image.save(holiday / f"{number:02}.png")
cat(20).save(holiday / "at the train station.png")
guessed, listed = datasets.load_dataset(str(holiday), split="train"), get_data(holiday, size=32)
print(f"datasets: {len(guessed)} of 21;  get_data: {len(listed)} of 21")
assert len(guessed) == 1 and len(listed) == len(any_images(holiday)) == 21''')
M('''One! As soon as one name has such a word in it, `datasets` takes only the files that have. `get_data` and `any_images` list the folder and guess nothing.

**Order.** You want to set the last fifth aside. But files come in the order of their names, and folders in the order of the alphabet. **Predict first:** with a folder for each accessory, which cats are in the last fifth?''')
K('''folders = desk / "by accessory"
for number, row in enumerate(rows.select(range(320))):
    path = folders / f"{row['accessory']:02}" / f"{number:03}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    row["image"].save(path)
files = sorted(folders.rglob("*.png"))
sheet(get_data(any_images(files[256:]), size=32)[:32])''')
K('''parts = any_images(folders).train_test_split(test_size=64, seed=0)
paths = parts["test"].cast_column("image", datasets.Image(decode=False))["image"]
worn = [{path.parent.name for path in some} for some in (files[256:], [Path(file["path"]) for file in paths])]
print("cut in order:  ", *sorted(worn[0]))
print("shuffled first:", *sorted(worn[1]))
assert len(worn[0]) <= 4 and len(worn[1]) >= 12''')
M('''A test on the last fifth would ask for what was never taught: of sixteen accessories it has the last few. Shuffle first, then cut. The rows of `any_images` come shuffled, and `train_test_split` shuffles again.

**Doubles.** A scarf hides the mouth, so two cats that differ only there look the same. With one of them in the training set and the other in the test, the test asks for what was learned by heart. The program that chose our cats has left out such doubles; exercise 2 finds them in a folder.

## More images than memory

`get_data` makes one array of N · 3 · size² numbers of four bytes each: 49 GB for a million images of 64×64. `LazyImages` opens a file only when its turn comes, so memory holds one batch, however many images there are.''')
K('''lazy = LazyImages(holiday, size=32)
print(next(iter(get_loader(lazy, 16))).shape)
assert np.array_equal(lazy[7], listed[7]) and round(1e6 * 3 * 64**2 * 4 / 1e9) == 49''')
M('''The price is that each image is decoded again in every epoch. For small images that hardly matters. For photos of twelve million pixels it does, so save small copies once and train on those; `look_through(folder, size=96)` gives you the images for that, and tells you about broken files now and not after three hours.

## The hub

`get_data("owner/name")`, with a name from [huggingface.co/datasets](https://huggingface.co/datasets), opens a data set on the hub. It is **streamed**: what you do not read never crosses the wire. **Predict first:** you ask for five images out of 20,000. How many are fetched? To find out without a network, we count what a stream is asked for.''')
K('''fetched = []
pixel = {"bytes": (album / "tiny.png").read_bytes()}


def far_away():
    for number in range(20_000):
        fetched.append(number)
        yield {"image": pixel}


features = datasets.Features(image=datasets.Image())
stream = datasets.IterableDataset.from_generator(far_away, features=features)
five = list(stream.shuffle(seed=0).take(5))
print(f"{len(five)} images used, {len(fetched):,} of 20,000 fetched")
assert len(five) == 5 and 1000 <= len(fetched) <= 1010''')
M('''A thousand. Nobody has seen the end of a stream, so it cannot be shuffled as a whole: a buffer of 1,000 rows is filled first and drawn from. The sample is fairer for it, and the first image takes a moment.

Some data sets are *private*, or *gated*: you have to accept their terms on their page first. Log in once with `hf auth login` in a terminal. It asks for a **token**, a password for programs, and keeps it.

How is a data set laid out there? Like the cats in this course:

```
cats/
├── README.md                            the card: what it is, whose it is, under which terms
└── data/
    ├── train-00000-of-00001.parquet     a table; the image files are in its column "image"
    └── test-00000-of-00001.parquet
```

A few large files instead of many small ones, and a page about them. The head of the card is for programs, and says which file is which split; the rest is for people. `datasets` writes such a table from any rows:''')
K('''shared = desk / "holiday_set"
(shared / "data").mkdir(parents=True)
any_images(holiday).to_parquet(shared / "data" / "train-00000-of-00001.parquet")
head = "configs:\\n- config_name: default\\n  data_files:\\n  - {split: train, path: data/train-*.parquet}"
(shared / "README.md").write_text(f"---\\nlicense: cc0-1.0\\n{head}\\n---\\n# Our holiday\\n")
assert len(get_data(shared, size=32)) == 21''')
M('''`hf upload your-name/holiday holiday_set . --repo-type dataset` in a terminal sends it. Before you do, ask whose images these are. Those you took you may share, if the people in them agree; those you found somewhere mostly not. The cats may be here because the artist allows it, and because their card names him and the licence and says what was changed.

## Your folder

Name your folder, and run the cell. It leaves out what cannot be read, sets a tenth aside, and trains from the network that knows faces for 1,500 steps, however many images there are. Your files stay as they are. If letters or left and right matter in your images, take `mirror` out.''')
K('''my_folder = None  # for example "/home/you/Pictures/cat"

if my_folder is None:
    print("No folder, no training: my_folder is None.")
else:
    parts = any_images(my_folder).train_test_split(test_size=0.1, seed=0)
    mine, kept_aside = (get_data(parts[part], size=32, limit=10_000) for part in ("train", "test"))
    network = Diffusion.from_pretrained(TOY_MODEL)
    batch = min(32, len(mine))
    recipe = CPU_RECIPE | {"epochs": max(1, 1500 // (len(mine) // batch)), "lr": 5e-3}
    loader = get_loader(Augmented(mine, mirror), batch)
    for _ in tqdm(Training(network, loader, loss=even_l1_loss, optimizer=muon, **recipe)):
        pass
    mine_drawn = generate(network, n=64, seed=0)
    sheet(mine_drawn)
    print(f"{int(copies(mine_drawn, mine)[0].sum())} of 64 are copies")''')
M('''What to expect, from all that this lesson has measured:

@EXPECT@

For 64×64 take the full network, `DiffusionConfig()` without numbers, and give it hours or a GPU: `python train.py --data your/folder --start-from pretrained/toy_faces_64 --muon --lr 5e-3 --cosine-decay --output my_model`. If all you get is blobs, [It does not work](it_does_not_work.ipynb#Blobs) has more.

## Keep it, and give it away

`save_pretrained` writes weights and configuration into a folder, with a copy of `diffusion_utils.py`, and `from_pretrained` reads them.''')
K('''painter.save_pretrained(desk / "cat_painter")
again = Diffusion.from_pretrained(desk / "cat_painter").to(painter.device)
assert torch.equal(generate(again, seed=1), generate(painter, seed=1))
print(*sorted(path.name for path in (desk / "cat_painter").iterdir()))''')
M('''To publish it, the hub has to know who you are. `publish` makes sure of that before it sends anything.''')
K(DEF('publish'))
K('''with mock.patch("huggingface_hub.get_token", return_value=None):  # as if nobody had logged in
    try:
        publish(painter, "your-name/cat-painter")
    except PermissionError as error:
        print(error)''')
M('''Never write a token into a notebook: it is saved with it, and sooner or later shared with it. When you have logged in, put a name into this cell and run it. `publish(..., private=True)` shows the model to nobody but you.''')
K('''repo_id = None  # for example "your-name/cat-painter"

if repo_id is None:
    print("Nothing is published: repo_id is None.")
else:
    publish(painter, repo_id)
    show(generate(Diffusion.from_pretrained(repo_id)))''')
M('''## Inside any_images

On a first reading, skip to [On your own](#On-your-own). Here is the rest of `diffusion_course/images.py`; its cells are collapsed.

**Which files?** Those that Pillow opens on its own, without the system's hidden ones. A link may lead from a folder back into one that it lies in, so each folder is entered once. Folders named `train` and `test` are splits where *all* images lie in such folders.''')
K(DEF('list_files')+"\n\n\n"+DEF('can_open'),hide=True)
K(DEF('of_split')+"\n\n\n"+DEF('unzipped'),hide=True)
M('''**From where?** A folder in hub layout and a name on the hub go to `datasets`; all else is listed. No file is opened yet; `LazyImages` opens each when its turn comes.''')
K(DEF('open_table'),hide=True)
K(DEF('find_images'),hide=True)
K(DEF('LazyImages'),hide=True)
M('''**What is in them?** `read_image` decodes one or says why it cannot. `eight_bits` scales 16 bits to 8, which Pillow's own `convert` would cut off, and `tidy_image` turns an image upright.''')
K(DEF('read_image')+"\n\n\n"+DEF('eight_bits'),hide=True)
K(DEF('tidy_image')+"\n\n\n"+DEF('look_through'),hide=True)
M('''**And all together.** Images that need help, here `deep.png` and `lab.tif`, become PNG in memory; all others stay where they are.''')
K(DEF('any_images'),hide=True)
K('''with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)
    assert np.array_equal(get_data(any_images(album), size=32), data)''')
M('''## On your own

**Exercise 1.** Of a panorama, `square_rgb` keeps the middle. Write `whole_image(image, size)`, which keeps *all* of an image: shrunk until it fits into `size` × `size`, centred, and white around it. `ImageOps` has something for it.''')
K('''def whole_image(image, size):
    return ...''')
K('''panorama = Image.open(album / "wide.jpg")
result = whole_image(panorama, 64)
if result is ...:
    print("Exercise 1 is waiting for you.")
else:
    assert result.mode == "RGB" and result.size == (64, 64), f"{result.mode}, {result.size}"
    pixels = np.asarray(result).astype(int)
    assert pixels[:20].min() == 255 and pixels[-20:].min() == 255, "above and below it should be white"
    small = np.asarray(panorama.resize((64, 16))).astype(int)
    assert np.abs(pixels[24:40] - small).mean() < 8, "the panorama should be in the middle, all of it"
    both = [np.asarray(image).transpose(2, 0, 1) / 255 for image in (square_rgb(panorama, 64), result)]
    show(np.stack(both), titles=["the middle", "all of it"])
    print("Exercise 1: correct.")''')
M('''<details><summary>Solution</summary>

```python
def whole_image(image, size):
    return ImageOps.pad(image.convert("RGB"), (size, size), color="white")
```
</details>''')
M('''**Exercise 2.** Some images in `with_doubles` are there twice: the same pixels under another name and in another format. Find them with `look_through`, and give `doubles`: a set with a file name (`Path(path).name`) for each image that is there twice, no matter which of its two.''')
K('''with_doubles = desk / "with doubles"
with_doubles.mkdir()
for number, image in enumerate(rows["image"][:30]):
    image.save(with_doubles / f"{number:02}.png")
    if number in (3, 14, 15, 26):
        image.convert("RGB").save(with_doubles / f"copy of {40 - number}.bmp")

doubles = ...''')
K('''if doubles is ...:
    print("Exercise 2 is waiting for you.")
else:
    pairs = [{f"{number:02}.png", f"copy of {40 - number}.bmp"} for number in (3, 14, 15, 26)]
    assert len(doubles) == 4, f"{len(doubles)} names, but four images are there twice"
    assert all(len(pair & doubles) == 1 for pair in pairs), "one name of each pair, please"
    print("Exercise 2: correct.")''')
M('''<details><summary>Solution</summary>

```python
known, doubles = set(), set()
for path, image, reason in look_through(with_doubles):
    if image.tobytes() in known:
        doubles.add(Path(path).name)
    known.add(image.tobytes())
```

It finds images that are equal to the last bit. A JPEG of the same image differs a little; `copies` finds it.
</details>''')
M('''**Exercise 3.** Write an augmentation `shift(image)` for images on white, (3, S, S): moved by up to three pixels up or down and to the left or right, at random, with white where nothing is left. No pixel may come in again on the other side.''')
K('''def shift(image):
    return ...''')
K('''black = torch.zeros(3, 32, 32)
if shift(black) is ...:
    print("Exercise 3 is waiting for you.")
else:
    results = [shift(black.clone()) for _ in range(300)]
    assert all(result.shape == (3, 32, 32) for result in results), "the size should stay"
    assert all(set(result.unique().tolist()) <= {0.0, 1.0} for result in results), "black or white, nothing else"
    edges = {(bool(r[0, 0].all()), bool(r[0, -1].all()), bool(r[0, :, 0].all()), bool(r[0, :, -1].all())) for r in results}
    assert len(edges) == 9, f"{len(edges)} of nine directions; to stay in place is one of them"
    assert min(float(1 - result.mean()) for result in results) >= (29 / 32) ** 2 - 1e-6, "three pixels at most"
    show(torch.stack([shift(cats[1]) for _ in range(8)]), n=8)
    print("Exercise 3: correct.")''')
M('''<details><summary>Solution</summary>

```python
def shift(image):
    larger = torch.nn.functional.pad(image, (3, 3, 3, 3), value=1)
    down, right = np.random.randint(0, 7, size=2)
    return larger[:, down : down + 32, right : right + 32]
```
</details>''')
M('''## Where to read on

- The [datasets documentation](https://huggingface.co/docs/datasets): *Create an image dataset*, *Stream*, *Share*; and the hub's page on [data set cards](https://huggingface.co/docs/hub/datasets-cards).
- Pillow's page on [image file formats](https://pillow.readthedocs.io/en/stable/handbook/image-file-formats.html): what it reads, and what it needs for it.
- Karras et al. (2020), [Training Generative Adversarial Networks with Limited Data](https://arxiv.org/abs/2006.06676): when augmentations leak into what is drawn, and how to prevent it.
- Somepalli et al. (2022), [Diffusion Art or Digital Forgery?](https://arxiv.org/abs/2212.03860): how large models copy, and how it is found.
- Gebru et al. (2018), [Datasheets for Datasets](https://arxiv.org/abs/1803.09010): what to write down about a data set, and to ask before you make one.

[← 09 · Take the wheel](09_controlling_generation.ipynb) · [11 · Let it run, and let it crash →](11_long_training_runs.ipynb)''')
