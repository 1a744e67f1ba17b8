"""A diffusion model for small pictures, in the order in which the course builds it.

Lesson 01  data:      whole_number, reason, ask_hub, cache_of, open_pictures, square_rgb,
                      read_picture, get_data, Pictures, get_loader, show
Lesson 02  noise:     schedule
Lesson 03  network:   Combine, Residual, unet_layers, UNet
Lesson 04  training:  DiffusionConfig, HubModel, Diffusion, training_step, average_weights,
                      pixel_distance, Training, batches, draw_samples, finish, train
                      (and long_training.py: precision, checkpoints, the stop button)
Lesson 05  sampling:  predict, denormalize, starting_noise, generate

Pictures are float32 tensors or arrays of shape (N, 3, S, S): N pictures, three colour
channels (red, green, blue), S rows, S columns. Values lie in [0, 1].
"""

import math
import re
import time
import warnings
from itertools import islice
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow
import torch
from accelerate.utils import broadcast
from IPython import get_ipython
from IPython.display import display
from matplotlib import pyplot as plt
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel, get_scheduler
from transformers.utils.logging import disable_progress_bar

from long_training import (
    enough_memory,
    fast_accelerator,
    fingerprint,
    load_checkpoint,
    record,
    save_checkpoint,
    seed_from,
    stop_button,
)

# The libraries' own bars, shown for each small file that they read or write.
disable_progress_bar()
datasets.disable_progress_bars()

ROOT = Path(__file__).resolve().parent
TOY_FACES = ROOT / "data" / "toy_faces"  # the pictures that ship with the course
TOY_MODEL = ROOT / "pretrained" / "toy_faces_32"  # the model that lesson 04 trains on them
LARGE_MODEL = ROOT / "pretrained" / "toy_faces_64"  # one of the full size, trained by train.py


# Lesson 01: data ------------------------------------------------------------------------


def whole_number(name, value):
    """Return `value` if it is a whole number of 1 or more, else say so. Lesson 01.

    Raises TypeError or ValueError with a sentence that names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")
    return int(value)


def reason(error):
    """The first line of what an error says. Lesson 01."""
    return (str(error) or repr(error)).splitlines()[0]


def ask_hub(name, kind="dataset"):
    """Make sure, within seconds, that the hub has the data set or model `name`, "owner/name". Lesson 01.

    Raises FileNotFoundError when it has none that you may see, ConnectionError without a network.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"there is no folder or file {name!r}")
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=4)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.GatedRepoError):
        raise FileNotFoundError(f"there is no folder {name!r}, and no {kind} of that name on the hub "
                                "that is open to you; if it is private, log in first") from None  # fmt: skip
    except Exception as error:
        raise ConnectionError(f"the hub cannot be reached for {name!r} ({reason(error)}); what ships with "
                              "the course, TOY_FACES and TOY_MODEL, needs no network") from None  # fmt: skip


def cache_of(source):
    """Where `datasets` keeps what it has read of `source`, a folder or file. Lesson 01.

    Another place whenever a file in it has changed, which `datasets` itself may overlook; so what
    another process is reading stays as it is.
    """
    files = [path.lstat() for path in [Path(source), *Path(source).rglob("*")]]
    state = sum(file.st_size + file.st_mtime_ns for file in files)
    return Path(datasets.config.HF_DATASETS_CACHE, "course", str(state))


def open_pictures(source, split="train", seed=0, streaming=True):
    """Open a data set of pictures, shuffled by `seed`. Nothing is decoded yet. Lesson 01.

    `source`: a folder in hub layout, a folder or zip file of pictures, or a hub id
    ("owner/name"). A folder is opened whole; a hub id is streamed, so that only what is read
    is fetched, unless `streaming` is False or `split` cuts, as in "train[:80%]".

    Returns `(rows, column)`: an iterable of dicts, and the name of the column that holds the
    pictures' files. Raises FileNotFoundError, ConnectionError or ValueError where there are no
    pictures.
    """
    name, options = str(source), {"split": split, "streaming": streaming and "[" not in split}
    if not Path(name).exists():
        ask_hub(name)
    else:
        options = {"split": split, "cache_dir": cache_of(name)}
        if name.endswith(".zip"):
            name, options["data_files"] = "imagefolder", name
    try:
        rows = datasets.load_dataset(name, **options)
    except Exception as error:
        raise ValueError(f"source: no pictures can be loaded from {str(source)!r}: {reason(error)}") from None
    pyarrow.default_memory_pool().release_unused()  # tens of megabytes, which reading left behind
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"source: {str(source)!r} has no column of pictures, only {list(rows.features)}")
    rows = rows.select_columns(columns[:1]).cast_column(columns[0], datasets.Image(decode=False))
    return rows.shuffle(seed=seed), columns[0]


def read_picture(file, size):
    """One picture, as a row of `open_pictures` holds it, as uint8 array (3, size, size). Lesson 01.

    Photos come upright, whichever way the camera was held. Raises ValueError that names the
    file when it is not a picture, or not a whole one.
    """
    try:
        with datasets.Image().decode_example(file) as picture:
            return np.asarray(square_rgb(picture, size)).transpose(2, 0, 1)
    except Exception as error:
        name = Path(file["path"] or "a picture").name
        why = "it is no picture" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise ValueError(f"{name} cannot be read ({why})") from None


def square_rgb(picture, size):
    """Turn any PIL picture into a `size` × `size` RGB picture. Lesson 01.

    Grey, palette, CMYK and 16-bit pictures become RGB, what is transparent becomes white;
    the longer side is cropped on both ends, so that nothing is squashed.
    """
    if picture.mode.startswith("I"):  # 16 bits: convert() would cut off, not scale
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return ImageOps.fit(picture.convert("RGB"), (size, size))


def get_data(source=TOY_FACES, *, split="train", limit=3000, size=64, seed=0):
    """Load up to `limit` pictures as one float32 array (N, 3, size, size) in [0, 1]. Lesson 01.

    `source`: a folder in hub layout, a folder or zip file of pictures, or a hub id such as
    "lansinuote/gen.1.celeba"; `seed` fixes which pictures come, and in which order. Each
    picture is decoded straight into its place in the array; no pixels go to disk. Files that
    cannot be read are left out, with one warning that counts them and names the first.

    Raises TypeError, ValueError, FileNotFoundError or ConnectionError with the argument's name.
    """
    limit, size = whole_number("limit", limit), whole_number("size", size)
    rows, column = open_pictures(source, split, seed)
    if hasattr(rows, "num_rows"):  # a stream does not know its length
        limit = min(limit, rows.num_rows)
    data, count, bad = np.empty((limit, 3, size, size), dtype=np.float32), 0, []
    for row in tqdm(rows.take(limit), total=limit, desc="decoding", unit=" pictures", delay=1):
        try:
            data[count] = read_picture(row[column], size)
            count += 1
        except ValueError as error:
            bad.append(error)
    if bad:
        warnings.warn(f"source: {len(bad)} of {len(bad) + count} pictures are left out, the first: {bad[0]}", stacklevel=2)
    if count == 0:
        raise ValueError(f"source: there is no picture in {str(source)!r} that can be read")
    data = data[:count]
    data /= 255
    return data


class Pictures(torch.utils.data.Dataset):
    """All pictures of `source`, each decoded when it is asked for: (3, size, size) in [0, 1]. Lesson 01.

    For more pictures than fit into memory. From a hub id they are downloaded first. Raises
    what `open_pictures` raises, and ValueError for a file that is not a picture.
    """

    def __init__(self, source, *, split="train", size=64, seed=0):
        self.size = whole_number("size", size)
        self.rows, self.column = open_pictures(source, split, seed, streaming=False)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return read_picture(self.rows[index][self.column], self.size) / np.float32(255)


def get_loader(data, batch_size=64, seed=None):
    """Deal `data` (N, 3, S, S) in shuffled batches (batch_size, 3, S, S). Lesson 01.

    `data`: an array or tensor, float32 in [0, 1], or `Pictures`. The last, incomplete batch of
    an epoch is dropped. With a `seed` the order is the same in every run. Raises ValueError for
    other numbers or shapes, and when there are fewer pictures than one batch.
    """
    batch_size = whole_number("batch_size", batch_size)
    if hasattr(data, "shape"):
        if len(data.shape) != 4 or data.shape[1] != 3 or data.dtype not in (np.float32, torch.float32):
            raise ValueError(f"data: float32 of shape (N, 3, S, S) is needed, not {data.dtype} of {tuple(data.shape)}")
        if len(data) and not (0 <= data.min() and data.max() <= 1):  # NaN fails both
            raise ValueError(f"data: values must lie in [0, 1], not from {data.min()} to {data.max()}")
    if len(data) < batch_size:
        raise ValueError(f"data: {len(data)} pictures do not fill one batch; batch_size={batch_size} is too large")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(data, batch_size, shuffle=True, drop_last=True, generator=generator)


def show(images, n=5, path=None, titles=()):
    """Show the first `n` pictures of (N, 3, S, S) in one row; save them where `path` says. Lesson 01.

    Takes tensors on any device and arrays; values outside [0, 1] are clipped.
    """
    images = torch.as_tensor(images[: whole_number("n", n)]).detach().cpu().clip(0, 1)
    figure, axes = plt.subplots(1, len(images), figsize=(1.5 * len(images), 1.7), squeeze=False)
    for axis, image in zip(axes[0], images):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.axis("off")
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    if path is not None:
        figure.savefig(path)
    if plt.get_backend().lower() == "agg":  # no screen, nothing to show
        plt.close(figure)
    else:
        plt.show(block=False)


# Lesson 02: noise -----------------------------------------------------------------------


def schedule(time):
    """The offset cosine schedule: how much noise and how much picture at `time`. Lesson 02.

    `time`: a tensor or number in [0, 1]; 0 is (almost) the clean picture, 1 (almost) pure
    noise. Returns `(noise_rate, signal_rate)`, each of the shape of `time`, such that
    noise_rate² + signal_rate² = 1; signal_rate falls from 0.95 to 0.02.

    Nichol & Dhariwal 2021 (the cosine), with an offset at both ends.
    """
    start, end = math.acos(0.95), math.acos(0.02)
    angle = start + torch.as_tensor(time) * (end - start)
    return angle.sin(), angle.cos()


# Lesson 03: network ---------------------------------------------------------------------


class Combine(nn.Module):
    """Put a noisy picture and its noise variance into one tensor. Lesson 03.

    forward: `image` (N, 3, S, S) and `variance` (N, 1, 1, 1), which is noise_rate², give
    (N, 2·channels, S, S). The first half are colours mixed by a 1×1 convolution; the
    second half is constant over the picture: sines and cosines of the variance at
    frequencies from 1 to 1000. Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, channels=32):
        super().__init__()
        frequencies = torch.linspace(0.0, math.log(1000), channels // 2).exp()
        self.register_buffer("t", 2 * math.pi * frequencies)
        self.cnn = nn.Conv2d(3, channels, kernel_size=1)

    def embed(self, variance):
        angle = self.t * variance.flatten(1)
        return torch.cat((angle.sin(), angle.cos()), dim=1)

    def forward(self, image, variance):
        embedding = self.embed(variance)[:, :, None, None]
        embedding = embedding.expand(-1, -1, *image.shape[2:])
        return torch.cat((self.cnn(image), embedding), dim=1)


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut: (N, channel_in, S, S) to (N, channel_out, S, S).

    He et al. 2015, with a 1×1 convolution on the shortcut. Lesson 03.
    """

    def __init__(self, channel_in, channel_out):
        super().__init__()
        self.cnn = nn.Conv2d(channel_in, channel_out, kernel_size=1)
        self.s = nn.Sequential(
            nn.BatchNorm2d(channel_in),
            nn.Conv2d(channel_in, channel_out, kernel_size=3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channel_out, channel_out, kernel_size=3, padding=1),
        )

    def forward(self, x):
        return self.cnn(x) + self.s(x)


def unet_layers(widths, block_depth):
    """The layers of a UNet as three lists: down, middle, up. Lesson 03.

    Each Residual on the way up also takes the channels of its partner on the way down.
    """
    down, middle, up = [], [], []
    channels, skips = 2 * widths[0], []
    for width in widths[:-1]:
        for _ in range(block_depth):
            down.append(Residual(channels, width))
            channels = width
            skips.append(channels)
        down.append(nn.AvgPool2d(2))
    for _ in range(block_depth):
        middle.append(Residual(channels, widths[-1]))
        channels = widths[-1]
    for width in reversed(widths[:-1]):
        up.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
        for _ in range(block_depth):
            up.append(Residual(channels + skips.pop(), width))
            channels = width
    return down, middle, up


class UNet(nn.Module):
    """Down, across the bottom and up again, with a skip from each level. Lesson 03.

    forward: (N, 2·widths[0], S, S) gives (N, 3, S, S). `widths` are the channels of each
    level, the last those of the bottom; `block_depth` is how many Residual blocks each
    level has. S must halve len(widths) - 1 times. Ronneberger et al. 2015.
    """

    def __init__(self, widths=(32, 64, 96, 128), block_depth=2):
        super().__init__()
        down, middle, up = unet_layers(widths, block_depth)
        self.down, self.middle, self.up = nn.ModuleList(down), nn.ModuleList(middle), nn.ModuleList(up)
        self.out = nn.Conv2d(widths[0], 3, kernel_size=1)

    def forward(self, x):
        skips = []
        for layer in self.down:
            x = layer(x)
            if isinstance(layer, Residual):
                skips.append(x)
        for layer in self.middle:
            x = layer(x)
        for layer in self.up:
            if isinstance(layer, Residual):
                x = torch.cat((x, skips.pop()), dim=1)
            x = layer(x)
        return self.out(x)


# Lesson 04: training --------------------------------------------------------------------


class DiffusionConfig(PretrainedConfig):
    """The numbers that fix the model's shape; the defaults are the full 64×64 model. Lesson 04.

    Raises ValueError when `image_size` cannot be halved once for each level below the first.
    """

    model_type = "course_diffusion"

    def __init__(self, image_size=64, widths=(32, 64, 96, 128), block_depth=2, **kwargs):
        self.image_size, self.widths, self.block_depth = image_size, list(widths), block_depth
        if image_size % 2 ** (len(widths) - 1):
            raise ValueError(
                f"image_size={image_size} cannot be halved {len(widths) - 1} times, "
                f"which {len(widths)} widths need; try a multiple of {2 ** (len(widths) - 1)}"
            )
        super().__init__(**kwargs)


class HubModel(PreTrainedModel):
    """A PreTrainedModel that refuses half a model, and says in one sentence what is wrong. Lesson 04."""

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        """Load a model from a folder or from the hub; one that lacks weights is refused.

        Raises ValueError that says which weights are missing, do not fit or cannot be read,
        OSError where there is no model, ConnectionError without a network.
        """
        if not Path(name).exists() and not huggingface_hub.try_to_load_from_cache(str(name), "config.json"):
            ask_hub(str(name), "model")
        options = {"ignore_mismatched_sizes": True, **kwargs, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(name, *args, **options)
        except OSError as error:
            raise OSError(f"{name}: there is no model that can be loaded ({reason(error)})") from None
        except Exception as error:
            raise ValueError(f"{name}: the weights cannot be read ({reason(error)})") from None
        if info["mismatched_keys"]:
            raise ValueError(f"{name}: weights do not fit config.json: {sorted(info['mismatched_keys'])[0]} and others")
        if info["missing_keys"]:
            raise ValueError(f"{name} lacks the weights {sorted(info['missing_keys'])}")
        return (model, info) if kwargs.get("output_loading_info") else model

    def push_to_hub(self, name, *args, token=None, **kwargs):
        """Publish the model on the hub as `name`, "owner/name". The token is kept nowhere.

        Raises PermissionError without a token (`huggingface_hub.login()` or HF_TOKEN give one)
        and ConnectionError when the hub refuses or cannot be reached.
        """
        if not (token or huggingface_hub.get_token()):
            raise PermissionError("token: there is none; call huggingface_hub.login() or set HF_TOKEN first")
        try:
            return super().push_to_hub(name, *args, token=token, **kwargs)
        except Exception as error:
            raise ConnectionError(f"{name} was not published: {reason(error)}. The model here is unchanged") from None


class Diffusion(HubModel):
    """The diffusion model: it mixes noise into pictures and predicts that noise. Lesson 04.

    forward: `images` (N, 3, S, S) in [0, 1] gives `(noise, predicted_noise)`, both
    (N, 3, S, S). Ho et al. 2020, algorithm 1, with continuous time.
    """

    config_class = DiffusionConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm2d(3, affine=False)
        self.unet = UNet(config.widths, config.block_depth)
        self.combine = Combine(config.widths[0])
        self.post_init()  # transformers' own bookkeeping; from_pretrained needs it

    def _init_weights(self, module):
        """Keep PyTorch's initial weights, which transformers would draw anew."""

    def forward(self, images):
        image = self.norm(images)
        noise = torch.randn(image.shape, device=image.device)
        noise_rate, signal_rate = schedule(torch.rand(len(image), 1, 1, 1, device=image.device))
        noisy = image * signal_rate + noise * noise_rate
        return noise, self.unet(self.combine(noisy, noise_rate**2))


def training_step(diffusion, images, optimizer, backward=torch.Tensor.backward):
    """Learn from one batch `images` (N, 3, S, S); returns the loss, a scalar. Lesson 04.

    The loss is the mean absolute difference between noise and predicted noise. `backward`
    computes the gradients; that of Accelerate can scale them for half precision.
    """
    noise, predicted_noise = diffusion(images)
    loss = nn.functional.l1_loss(predicted_noise, noise)
    backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def average_weights(diffusion, ema_decay):
    """A copy of `diffusion` that follows it slowly: the EMA of its weights. Lesson 04.

    Call `update_parameters(diffusion)` on it after each step; `module` is the averaged
    model. In the first steps the average is shorter than `ema_decay`, so that the random
    initial weights are soon forgotten. BatchNorm's statistics are copied.
    """

    def update(averages, weights, n):
        n = int(average.n_averaged)
        decay = min(ema_decay, (1 + n) / (10 + n))
        get_ema_multi_avg_fn(decay)(averages, weights, n)

    average = AveragedModel(diffusion, multi_avg_fn=update)
    return average


def pixel_distance(images, reference):
    """How far `images` are from `reference`, both (N, 3, S, S) in [0, 1]; 0 is equal. Lesson 04.

    The Fréchet distance between two normal distributions: |m₁ - m₂|² + tr(C₁ + C₂ - 2(C₁C₂)^½),
    of pictures averaged down to 16×16 and projected on the 64 main directions of `reference`.
    Heusel et al. 2017, equation 6, on pixels in place of a network's features.
    """
    flat = [
        nn.functional.adaptive_avg_pool2d(torch.as_tensor(x).cpu(), 16).flatten(1).double()
        for x in (images, reference)
    ]
    directions = torch.linalg.svd(flat[1] - flat[1].mean(0), full_matrices=False).Vh[:64]
    (m1, c1), (m2, c2) = (((x @ directions.T).mean(0), (x @ directions.T).T.cov()) for x in flat)
    roots = torch.linalg.eigvals(c1 @ c2).real.clip(min=0).sqrt()
    return float((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * roots.sum())


class Training:
    """All that changes while a model learns, ready for the next step. Lesson 04.

    `diffusion` and `average` hold the two sets of weights; `model`, `optimizer` and `loader`
    are Accelerate's versions of what came in. `settings` are the numbers that the result
    depends on. `history`: "loss" and "lr" have a number a step, "samples" has tuples
    `(epoch, raw, averaged)`, "seconds" the time it took so far.
    """

    def __init__(self, diffusion, loader, epochs, lr, weight_decay, warmup_steps, cosine_decay, ema_decay, seed):
        self.steps = whole_number("epochs", epochs) * len(loader)
        config, pictures = diffusion.config, loader.dataset
        self.settings = {
            "image_size": config.image_size, "widths": config.widths, "block_depth": config.block_depth,
            "pictures": len(pictures), "fingerprint": fingerprint(pictures), "batch_size": loader.batch_size,
            "lr": lr, "weight_decay": weight_decay, "warmup_steps": warmup_steps,
            "cosine_decay": cosine_decay and epochs, "ema_decay": ema_decay, "seed": seed,
        }  # fmt: skip
        self.accelerator = fast_accelerator()
        self.diffusion = diffusion.to(self.accelerator.device).train()
        self.average = average_weights(diffusion, ema_decay)
        optimizer = torch.optim.AdamW(diffusion.parameters(), lr, weight_decay=weight_decay, fused=True)
        kind = "cosine" if cosine_decay else "constant_with_warmup"
        self.rates = get_scheduler(kind, optimizer, warmup_steps, self.steps)
        self.order = loader.sampler.generator = torch.Generator()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(diffusion, optimizer, loader)
        parts = {"optimizer": self.optimizer, "rates": self.rates, "scaler": self.accelerator.scaler}
        self.parts = {name: part for name, part in parts.items() if part}
        self.history, self.clock = {"loss": [], "lr": [], "samples": [], "seconds": 0.0}, time.perf_counter()

    @property
    def done(self):
        """How many steps have been taken."""
        return len(self.history["loss"])


def batches(training):
    """Yield the rest of an epoch: its order follows from the seed and the epoch, and the noise of
    each step from the seed and the step, so that a training can go on from anywhere. Lesson 04.
    """
    step, seed, epoch_length = training.done, training.settings["seed"], len(training.loader)
    training.order.manual_seed(seed_from(seed, step // epoch_length))
    for images in islice(training.loader, step % epoch_length, None):
        torch.manual_seed(seed_from(seed, step, training.accelerator.process_index))
        training.history["lr"] += training.rates.get_last_lr()
        yield images
        step += 1


def draw_samples(history, diffusion, average, epoch, figure=None):
    """Add five samples of each set of weights to the history; in a notebook, show it. Lesson 04.

    What a notebook shows is one figure with the losses and the newest samples: each call draws
    it anew in place of `figure`, what the call before returned.
    """
    history["samples"].append((epoch, *(generate(model, seed=0).cpu() for model in (diffusion, average.module))))
    if get_ipython() is None:
        return None
    drawing, (curve, row) = plt.subplots(2, 1, figsize=(7, 4), layout="constrained")
    width = min(50, len(history["loss"]))
    curve.plot(history["loss"], color="0.85")
    curve.plot(range(width - 1, len(history["loss"])), np.convolve(history["loss"], np.ones(width) / width, "valid"))
    curve.set(xlabel="step", ylabel="loss", ylim=(0, 1))
    faces = torch.cat(list(history["samples"][-1][2]), dim=2).permute(1, 2, 0)
    row.imshow(faces.numpy(), interpolation="nearest")
    row.set(title=f"epoch {epoch}", xticks=[], yticks=[])
    plt.close(drawing)
    if figure is None:
        return display(drawing, display_id=True)
    figure.update(drawing)
    return figure


def finish(training):
    """Give the averaged weights to the model, the same in each process. Lesson 04."""
    training.accelerator.unwrap_model(training.model, keep_fp32_wrapper=False)
    for buffer in training.average.module.buffers():
        broadcast(buffer)
    training.diffusion.load_state_dict(training.average.module.state_dict())
    if training.done < training.steps:
        tqdm.write(f"Stopped after {training.done} of {training.steps} steps.")


def train(diffusion, loader, epochs=2000, *, lr=2e-4, weight_decay=1e-4, warmup_steps=0,
          cosine_decay=False, ema_decay=0.999, sample_every=100,
          checkpoint_dir=None, checkpoint_every=100, resume=True, seed=0):  # fmt: skip
    """Train `diffusion` on the batches of `loader`; it ends with the averaged weights. Lesson 04.

    Runs on CUDA where there is one. The learning rate rises to `lr` within `warmup_steps`
    and, with `cosine_decay`, falls to 0 at the end. Every `sample_every` epochs, and at the
    end, five samples are drawn with raw and averaged weights. Order and noise follow from
    `seed`; PyTorch's global seed is set anew in each step.

    With `checkpoint_dir`, a folder, the state is kept there every `checkpoint_every` epochs,
    and the same call carries on from it: on a CPU, with the same number of threads, to the
    same bits. More `epochs` may be asked for, unless the learning rate follows a cosine.
    `resume=False` deletes the checkpoints and starts over. Ctrl-C saves and returns.

    Returns the history, see `Training`. Raises ValueError for a checkpoint of another training,
    FloatingPointError for a loss that is not finite, OSError when a checkpoint cannot be
    written, RuntimeError when a batch does not fit into the GPU's memory.
    """
    training = Training(diffusion, loader, epochs, lr, weight_decay, warmup_steps, cosine_decay, ema_decay, seed)
    if checkpoint_dir:
        load_checkpoint(training, checkpoint_dir, resume)
    main, figure, size = training.accelerator.is_main_process, None, loader.batch_size
    bar = tqdm(total=training.steps * size, initial=training.done * size, unit=" images", mininterval=2, disable=not main)
    with bar, stop_button() as stop, enough_memory(size):
        while training.done < training.steps and not stop.is_set():
            losses = []
            for images in batches(training):
                losses.append(training_step(training.model, images, training.optimizer, training.accelerator.backward))
                training.rates.step()
                training.average.update_parameters(diffusion)
                bar.update(size)
                if stop.is_set():
                    break
            record(training, losses, checkpoint_dir)
            epoch, rest = divmod(training.done, len(loader))
            bar.set_postfix(epoch=epoch, loss=f"{np.mean(training.history['loss'][-len(losses):]):.3f}")
            last = stop.is_set() or training.done == training.steps
            if main and not rest and (last or epoch % sample_every == 0):
                figure = draw_samples(training.history, diffusion, training.average, epoch, figure)
            if main and checkpoint_dir and (last or not rest and epoch % checkpoint_every == 0):
                save_checkpoint(training, checkpoint_dir)
    finish(training)
    return training.history


# Lesson 05: sampling --------------------------------------------------------------------


def predict(diffusion, noisy, time):
    """Ask the network once: `(predicted_noise, predicted_image)` for `noisy` at `time`. Lesson 05.

    `noisy` (N, 3, S, S) is normalised, as are both results; `time` (N, 1, 1, 1) is in
    [0, 1]. The picture follows from noisy = signal_rate · image + noise_rate · noise.
    """
    noise_rate, signal_rate = schedule(time)
    predicted_noise = diffusion.unet(diffusion.combine(noisy, noise_rate**2))
    return predicted_noise, (noisy - noise_rate * predicted_noise) / signal_rate


def denormalize(diffusion, image):
    """Undo `diffusion.norm`: normalised (N, 3, S, S) back to colours in [0, 1]. Lesson 05."""
    mean = diffusion.norm.running_mean.reshape(1, 3, 1, 1)
    std = (diffusion.norm.running_var**0.5).reshape(1, 3, 1, 1)
    return (mean + image * std).clip(0.0, 1.0)


def starting_noise(diffusion, n, seed=None):
    """Pure noise (n, 3, S, S) on the model's device to start from. Lesson 05.

    A `seed` gives the same noise on every device; None takes torch's global generator.
    """
    size, device = diffusion.config.image_size, diffusion.device
    if seed is None:
        return torch.randn(n, 3, size, size, device=device)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=generator).to(device)


@torch.no_grad()
def generate(diffusion, n=5, steps=20, seed=None, *, noise=None, on_step=None):
    """Draw `n` pictures (n, 3, S, S) in [0, 1] from noise, in `steps` steps. Lesson 05.

    The same `seed` gives the same pictures; with `noise` (n, 3, S, S) you choose what to
    start from. `on_step(step, noisy, image)` is called after each step, from 1 on, with the
    picture so far and the clean picture predicted from it, both (n, 3, S, S) in [0, 1]. The
    model's train or eval mode is left as it was.

    Song et al. 2020 (DDIM), equation 12 with sigma = 0. Raises TypeError or ValueError
    for `n` or `steps` that are not whole numbers of 1 or more.
    """
    n, steps = whole_number("n", n), whole_number("steps", steps)
    noisy = starting_noise(diffusion, n, seed) if noise is None else noise.to(diffusion.device)
    was_training = diffusion.training
    diffusion.eval()  # BatchNorm: use the statistics learned, do not learn from samples
    try:
        for step in range(steps):
            time = torch.full((len(noisy), 1, 1, 1), (steps - step) / steps, device=noisy.device)
            predicted_noise, image = predict(diffusion, noisy, time)
            noise_rate, signal_rate = schedule(time - 1 / steps)
            noisy = signal_rate * image + noise_rate * predicted_noise
            if on_step is not None:
                on_step(step + 1, denormalize(diffusion, noisy), denormalize(diffusion, image))
    finally:
        diffusion.train(was_training)
    return denormalize(diffusion, image)
