"""A diffusion model for small pictures, in the order in which the course builds it.

Lesson 01  data:      square_rgb, open_pictures, get_data, get_loader, show
Lesson 02  noise:     schedule, mix
Lesson 03  network:   Combine, Residual, blocks, UNet
Lesson 04  training:  DiffusionConfig, Diffusion, l1_loss, average_weights, training_step, Training, train
Lesson 05  sampling:  predict, denormalize, starting_noise, ddim, sample, generate

This file needs no other of the course: copy it, and you can load pictures, train, save and
draw. What begins with an underscore is not taught: checks, the hub, caches and the hardware, at the end.

Pictures are float32 tensors or arrays of shape (N, 3, S, S): N pictures, three colour
channels (red, green, blue), S rows, S columns. Values lie in [0, 1].
"""

import copy
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from functools import cache, partial
from itertools import islice, pairwise, takewhile
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration, parse_choice_from_env, parse_flag_from_env
from matplotlib import pyplot as plt
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel, get_scheduler

ROOT = Path(__file__).resolve().parent
TOY_FACES = ROOT / "data" / "toy_faces"  # the pictures that ship with the course
TOY_MODEL = ROOT / "pretrained" / "toy_faces_32"  # the network of lesson 04, trained for a good hour
SHORT_MODEL = ROOT / "pretrained" / "toy_faces_32_short"  # the same after the five minutes of lesson 04
LARGE_MODEL = ROOT / "pretrained" / "toy_faces_64"  # one of the full size, trained by train.py

# Recipes: all numbers that a training depends on. The article's, for a GPU, and five minutes' on a CPU.
GPU_RECIPE = dict(epochs=2000, lr=2e-4, weight_decay=1e-4, ema_decay=0.999)
GPU_RECIPE |= dict(warmup_steps=0, cosine_decay=False, seed=0)
CPU_RECIPE = GPU_RECIPE | dict(epochs=16, lr=3e-3, ema_decay=0.99, warmup_steps=100, cosine_decay=True)
CPU_SHAPE = dict(image_size=32, widths=(16, 32, 64, 128), block_depth=1)  # on a GPU, DiffusionConfig's own


# Lesson 01: data ------------------------------------------------------------------------


def square_rgb(picture, size):
    """Turn any PIL picture into a `size` × `size` RGB picture. Lesson 01.

    Grey, palette, CMYK, 16-bit and float pictures become RGB, what is transparent becomes white;
    the longer side is cropped on both ends, so that nothing is squashed.
    """
    if picture.mode[0] in "IF":  # 16 bits, floats: convert() would cut off, not scale
        picture = Image.fromarray(_eight_bits(picture))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return ImageOps.fit(picture.convert("RGB"), (size, size))


def open_pictures(source, split="train", seed=0, streaming=True):
    """Open a data set of pictures, shuffled by `seed`. Nothing is decoded yet. Lesson 01.

    `source`: a folder or zip file of pictures, a picture, a list of pictures' files, a folder in
    hub layout, a hub id ("owner/name"), or a `datasets.Dataset`. A folder is opened whole; a hub id
    is streamed, so that only what is read is fetched, unless `streaming` is False or `split` cuts, as
    in "train[:80%]". In a folder of pictures nothing is guessed from names; only when all of them lie
    in folders called train, test, validation … those are its splits.

    Returns `(rows, column)`: an iterable of dicts, and the name of the column that holds the
    pictures' files: "image", else the first one of pictures. Raises FileNotFoundError,
    ConnectionError, TypeError or ValueError where there are no pictures.
    """
    rows = source if isinstance(source, datasets.Dataset) else _load(source, split, streaming)
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    _check(columns, f"source: {str(source)!r} has no column of pictures, only {list(rows.features)}")
    column = "image" if "image" in columns else columns[0]
    rows = rows.select_columns(column).cast_column(column, datasets.Image(decode=False))
    return rows.shuffle(seed=_whole_number("seed", seed, least=0)), column


def get_data(source=TOY_FACES, *, split="train", limit=3000, size=64, seed=0):
    """Load up to `limit` pictures as one float32 array (N, 3, size, size) in [0, 1]. Lesson 01.

    `source`: a folder or zip file of pictures, a folder in hub layout, or a hub id such as
    "lansinuote/gen.1.celeba", and what else `open_pictures` takes; `seed` fixes which pictures come,
    and in which order. Each picture is decoded straight into its place in the array; no pixels go to
    disk. Files that cannot be read are left out, with one warning that counts them and names the
    first; others take their places.

    Raises TypeError, ValueError, FileNotFoundError or ConnectionError with the argument's name.
    """
    limit, size = _whole_number("limit", limit), _whole_number("size", size)
    rows, column = open_pictures(source, split, seed)
    limit = min(limit, getattr(rows, "num_rows", limit))  # a stream does not know its length
    data, count, bad = np.empty((limit, 3, size, size), dtype=np.float32), 0, []
    wanted = takewhile(lambda row: count < limit, rows)
    for row in tqdm(wanted, total=limit, desc="decoding", unit=" pictures", delay=1):
        try:
            data[count] = _read_picture(row[column], size) / np.float32(255)
            count += 1
        except _Unreadable as error:
            bad.append(str(error))  # the error itself would keep the file open
    _tell_unreadable(source, count, bad)
    return data[:count]


def get_loader(data, batch_size=64, seed=None):
    """Deal `data` (N, 3, S, S) in shuffled batches (batch_size, 3, S, S). Lesson 01.

    `data`: an array or tensor, float32 in [0, 1], or a data set such as `Pictures` of lesson
    09. The last, incomplete batch of an epoch is dropped. With a `seed` the order is the same
    in every run. Raises ValueError for other numbers or shapes, and when there are fewer
    pictures than one batch.
    """
    _check_data(data, _whole_number("batch_size", batch_size))
    generator = None if seed is None else torch.Generator().manual_seed(_whole_number("seed", seed, least=0))
    return torch.utils.data.DataLoader(data, batch_size, shuffle=True, drop_last=True, generator=generator)


def show(images, n=5, path=None, titles=()):
    """Show the first `n` pictures of (N, 3, S, S) in one row; save them where `path` says. Lesson 01.

    Takes tensors on any device and arrays; values outside [0, 1] are clipped.
    """
    images = torch.as_tensor(images[: _whole_number("n", n)]).detach().cpu().clip(0, 1)
    figure, axes = plt.subplots(1, len(images), figsize=(1.5 * len(images), 1.7), squeeze=False)
    for axis, image, title in zip(axes[0], images, [*titles, *[""] * len(images)]):
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
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


def mix(image, noise, time):
    """The noisy picture at `time`: signal_rate · image + noise_rate · noise. Lesson 02.

    `image` and `noise` (N, C, S, S), both of mean 0 and standard deviation 1; `time`: a number
    or a tensor (N, 1, 1, 1) in [0, 1]. Ho et al. 2020, equation 4.
    """
    noise_rate, signal_rate = schedule(time)
    return signal_rate * image + noise_rate * noise


# Lesson 03: network ---------------------------------------------------------------------


class Combine(nn.Module):
    """Put a noisy picture and its noise variance into one tensor. Lesson 03.

    forward: `image` (N, colors, S, S) and `variance` (N, 1, 1, 1), which is noise_rate², give
    (N, 2·channels, S, S). The first half are colours mixed by a 1×1 convolution; the
    second half is constant over the picture: sines and cosines of the variance at
    frequencies from 1 to 1000. Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, channels=32, colors=3):
        super().__init__()
        frequencies = torch.linspace(0.0, math.log(1000), channels // 2).exp()
        self.register_buffer("t", 2 * math.pi * frequencies)
        self.cnn = nn.Conv2d(colors, channels, kernel_size=1)

    def embed(self, variance):
        angle = self.t * variance.flatten(1)
        return torch.cat((angle.sin(), angle.cos()), dim=1)

    def forward(self, image, variance):
        embedding = self.embed(variance)[:, :, None, None].expand(-1, -1, *image.shape[2:])
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


def blocks(channel_in, width, depth, skip=0):
    """`depth` Residual blocks of one level; each also takes `skip` channels from the way down. Lesson 03."""
    return [Residual((width if i else channel_in) + skip, width) for i in range(depth)]


class UNet(nn.Module):
    """Down, across the bottom and up again, with a skip from each level. Lesson 03.

    forward: (N, 2·widths[0], S, S) gives (N, colors, S, S). `widths` are the channels of each
    level, the last those of the bottom; `block_depth` is how many Residual blocks each
    level has. S must halve len(widths) - 1 times. Ronneberger et al. 2015.
    """

    def __init__(self, widths=(32, 64, 96, 128), block_depth=2, colors=3):
        super().__init__()
        self.down, self.middle, self.up = nn.ModuleList(), nn.Sequential(), nn.ModuleList()
        *levels, bottom = pairwise([2 * widths[0], *widths])
        for above, width in levels:
            self.down.extend([*blocks(above, width, block_depth), nn.AvgPool2d(2)])
        self.middle.extend(blocks(*bottom, block_depth))
        for below, width in pairwise(reversed(widths)):
            self.up.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            self.up.extend(blocks(below, width, block_depth, skip=width))
        self.out = nn.Conv2d(widths[0], colors, kernel_size=1)

    def forward(self, x):
        skips = []
        for layer in self.down:
            x = layer(x)
            if isinstance(layer, Residual):
                skips.append(x)
        x = self.middle(x)
        for layer in self.up:
            if isinstance(layer, Residual):
                x = torch.cat((x, skips.pop()), dim=1)
            x = layer(x)
        return self.out(x)


# Lesson 04: training --------------------------------------------------------------------


class DiffusionConfig(PretrainedConfig):
    """The numbers that fix the model; the defaults are the full 64×64 model. Lesson 04.

    `channels` is 3 for colour pictures. `predicts` is what the network is asked for: "noise", or
    "v", which is signal_rate · noise - noise_rate · image (Salimans & Ho 2022, appendix D).

    Raises ValueError or TypeError that names the number that does not fit.
    """

    model_type = "course_diffusion"

    def __init__(
        self, image_size=64, widths=(32, 64, 96, 128), block_depth=2, channels=3, predicts="noise", **kwargs
    ):
        numbers = dict(image_size=image_size, block_depth=block_depth, channels=channels)
        super().__init__(**{name: _whole_number(name, value) for name, value in numbers.items()}, **kwargs)
        self.widths, self.predicts = _check_widths(widths, image_size), predicts
        _check(predicts in ("noise", "v"), f"predicts must be 'noise' or 'v', not {predicts!r}")


class _HubModel(PreTrainedModel):
    """A PreTrainedModel that refuses half a model, and says in one sentence what is wrong."""

    def _init_weights(self, module):
        """Keep PyTorch's initial weights, which transformers would draw anew."""

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        """Load a model from a folder or from the hub; one that lacks weights is refused.

        Raises ValueError that says which weights are missing, do not fit or cannot be read,
        OSError where there is no model, ConnectionError without a network, TypeError for an option
        that does not exist.
        """
        name, report = os.path.expanduser(name), logging.getLogger("transformers.modeling_utils")
        if not (Path(name).exists() or kwargs.get("local_files_only")):
            _ask_hub(name, "model", kwargs.get("token"), kwargs.get("cache_dir"))
        options = {"ignore_mismatched_sizes": True, **kwargs, "output_loading_info": True}
        try:
            told = cls.config_class.get_config_dict(name, **kwargs)[0]
            _check(told, "there is no file named config.json", OSError)
            same = told.get("model_type") in (None, "", cls.config_class.model_type)
            _check(same, f"config.json is of another kind of model, {told.get('model_type')!r}")
            report.disabled = True  # what it says of missing weights becomes a sentence, below
            model, info = super().from_pretrained(name, *args, **options)
        except TypeError:  # an option that is none
            raise
        except Exception as error:  # safetensors, pickle and torch have no common class for a torn file
            kind = OSError if isinstance(error, OSError) else ValueError
            torn = "" if isinstance(error, (OSError, ValueError)) else "model.safetensors: "
            raise kind(f"{name}: there is no model that can be loaded ({torn}{_reason(error)})") from error
        finally:
            report.disabled = False
        wrong = [key[0] for key in sorted(info["mismatched_keys"])]
        wrong += sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        _check(not wrong, f"{name}: weights are missing, or do not fit config.json: {wrong[:3]}{more}")
        return (model, info) if kwargs.get("output_loading_info") else model


class Diffusion(_HubModel):
    """The diffusion model: it mixes noise into pictures and predicts that noise. Lesson 04.

    forward plays one round of the game: `images` (N, 3, S, S) in [0, 1] gives `(noise,
    predicted_noise)`, both (N, 3, S, S). `answer(noisy, time)` is the network alone, without
    anything random: `noisy` (N, 3, S, S), normalised, and `time` (N, 1, 1, 1) in [0, 1] give the
    predicted noise.

    Ho et al. 2020, algorithm 1, with continuous time.
    """

    config_class = DiffusionConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm2d(config.channels, affine=False)
        self.unet = UNet(config.widths, config.block_depth, config.channels)
        self.combine = Combine(config.widths[0], config.channels)
        self.post_init()  # transformers' own bookkeeping; from_pretrained needs it

    def answer(self, noisy, time):
        noise_rate, signal_rate = schedule(time)
        output = self.unet(self.combine(noisy, noise_rate**2))
        return noise_rate * noisy + signal_rate * output if self.config.predicts == "v" else output

    def forward(self, images):
        _check_images("images", images, self.config)
        image = self.norm(images)
        noise = torch.randn(image.shape, device=image.device)
        time = torch.rand(len(image), 1, 1, 1, device=image.device)
        return noise, self.answer(mix(image, noise, time), time)


def l1_loss(diffusion, images):
    """How wrong the guess is: the mean absolute difference, for a batch (N, 3, S, S). Lesson 04."""
    noise, predicted_noise = diffusion(images)
    return nn.functional.l1_loss(predicted_noise, noise)


def average_weights(diffusion, ema_decay):
    """A copy of `diffusion` that follows it slowly: the EMA of its weights. Lesson 04.

    Call `update_parameters(diffusion)` on it after each step; `module` is the averaged
    model. In the first steps the average is shorter than `ema_decay`, so that the random
    initial weights are soon forgotten. BatchNorm's statistics are copied.
    """

    def update(averages, weights, _):
        n = int(average.n_averaged)  # of the average that is made below
        get_ema_multi_avg_fn(min(ema_decay, (1 + n) / (10 + n)))(averages, weights, n)

    average = AveragedModel(diffusion, multi_avg_fn=update)
    return average


def training_step(training, batch):
    """Learn from a batch: loss, gradients, optimizer, learning rate, average. Returns the loss. Lesson 04."""
    loss = training.loss(batch)
    training.accelerator.backward(loss)  # in float16 it also scales the gradients
    training.optimizer.step()
    training.optimizer.zero_grad()
    training.rates.step()
    training.average.update_parameters(training.diffusion)
    return training.accelerator.reduce(loss.detach(), "mean")  # of all GPUs, if there are several


class Training:
    """A training, to be looped over: each round takes one step and gives its number, from 1 on. Lesson 04.

        training = Training(diffusion, get_loader(data), epochs=16, lr=3e-3)
        for step in training:
            if step % 100 == 0:
                show(generate(training.average.module, seed=0))

    `diffusion`: a `Diffusion`, or any module for which `loss(diffusion, batch)` gives a scalar.
    `recipe`: the numbers that shall differ from GPU_RECIPE. The order of the pictures follows
    from the loader's seed (else the recipe's) and the epoch, the noise from the seed and the
    step, for which PyTorch's global seed is set anew; nothing depends on what was drawn before.

    len() is the number of steps, `step` how many are done. `history` has "loss" and "lr" of each
    step; until the end losses are tensors on the device, so that a GPU is not waited for. When all
    steps are done, `diffusion` has the averaged weights; after a `break` it has the raw ones, the
    next loop goes on, and `finish()` ends the training early, with the averaged ones.

    Raises TypeError or ValueError that says what is wrong with the recipe or the loader, RuntimeError
    where gradients are switched off.
    """

    def __init__(self, diffusion, loader, *, loss=l1_loss, accelerator=None, **recipe):
        self.recipe, self.step, self.history = _check_recipe(GPU_RECIPE | recipe), 0, {"loss": [], "lr": []}
        self.accelerator = accelerator or _accelerator()
        self.diffusion = diffusion.to(self.accelerator.device, memory_format=_layout(self.accelerator))
        self.average = average_weights(diffusion.train(), self.recipe["ema_decay"])
        lr, weight_decay, warmup = (self.recipe[name] for name in ("lr", "weight_decay", "warmup_steps"))
        optimizer = torch.optim.AdamW(diffusion.parameters(), lr, weight_decay=weight_decay, fused=True)
        loader, self.order = _own_order(loader, self.recipe)
        kind = "cosine" if self.recipe["cosine_decay"] else "constant_with_warmup"
        self.rates = get_scheduler(kind, optimizer, warmup, self.recipe["epochs"] * len(loader))
        asked = nn.ModuleDict({"diffusion": diffusion})  # a module, since `prepare` knows only those
        asked.forward = partial(loss, diffusion)
        self.loss, self.optimizer, self.loader = self.accelerator.prepare(asked, optimizer, loader)

    def __len__(self):
        return self.recipe["epochs"] * len(self.loader)

    def __iter__(self):
        while self.step < len(self):
            self.order(self.step // len(self.loader))  # that of the epoch
            for batch in islice(self.loader, self.step % len(self.loader), None):
                torch.manual_seed(_seed(self.recipe["seed"], self.step, self.accelerator.process_index))
                self.history["lr"] += self.rates.get_last_lr()
                self.history["loss"].append(training_step(self, batch))
                self.step += 1
                yield self.step
        self.finish()

    def finish(self):
        self.history["loss"] = [float(loss) for loss in self.history["loss"]]
        self.diffusion.load_state_dict(self.average.module.state_dict())
        self.diffusion.to(memory_format=torch.contiguous_format)


def train(diffusion, loader, epochs=2000, **options):
    """Train `diffusion` on the batches of `loader`; it ends with the averaged weights. Lesson 04.

    `options` are those of `Training`: loss, accelerator, and the numbers of GPU_RECIPE. Returns
    the history, see `Training`, and raises what `Training` raises. For checkpoints, a stop
    button, 16 bits: loop over `carry_on(Training(...), folder)` of lesson 10. When the loss stands
    still, becomes NaN, or nothing but mist is drawn: notebooks/it_does_not_work.ipynb.
    """
    training = Training(diffusion, loader, epochs=epochs, **options)
    for step in (bar := tqdm(training, unit=" steps", mininterval=1)):
        if step % 50 == 0:
            bar.set_postfix(loss=f"{np.mean([float(loss) for loss in training.history['loss'][-50:]]):.3f}")
    return training.history


# Lesson 05: sampling --------------------------------------------------------------------


def predict(diffusion, noisy, time):
    """Ask the network once: `(predicted_noise, predicted_image)` for `noisy` at `time`. Lesson 05.

    `noisy` (N, 3, S, S) is normalised, as are both results; `time` (N, 1, 1, 1) is in
    [0, 1]. The picture follows from noisy = signal_rate · image + noise_rate · noise.
    """
    noise_rate, signal_rate = schedule(time)
    predicted_noise = diffusion.answer(noisy, time)
    return predicted_noise, (noisy - noise_rate * predicted_noise) / signal_rate


def denormalize(diffusion, image):
    """Undo `diffusion.norm`: normalised (N, 3, S, S) back to colours in [0, 1]. Lesson 05."""
    mean, variance = diffusion.norm.running_mean[:, None, None], diffusion.norm.running_var[:, None, None]
    return (mean + image * variance**0.5).clip(0.0, 1.0)


def starting_noise(diffusion, n, seed=None):
    """Pure noise (n, 3, S, S) on the model's device to start from. Lesson 05.

    A `seed` gives the same noise on every device; None takes torch's global generator.
    """
    shape = n, diffusion.config.channels, diffusion.config.image_size, diffusion.config.image_size
    if seed is None:
        return torch.randn(shape, device=diffusion.device)
    generator = torch.Generator().manual_seed(_whole_number("seed", seed, least=0))
    return torch.randn(shape, generator=generator).to(diffusion.device)


def ddim(predict, noisy, time, next_time):
    """One step of DDIM from `time` to `next_time`, both (N, 1, 1, 1): `(noisy, image)`. Lesson 05.

    `predict(noisy, time)` gives noise and picture; they are mixed again, for `next_time`.
    Song et al. 2020, equation 12 with sigma = 0.
    """
    noise, image = predict(noisy, time)
    return mix(image, noise, next_time), image


def sample(predict, noisy, times, step=ddim):
    """Go from `noisy` (N, 3, S, S) along `times`; yield `(noisy, image)` after each step. Lesson 05.

    `predict(noisy, time)`: as `partial(predict, diffusion)`. `times`: numbers in [0, 1], or a little
    above (lesson 11), the first that of `noisy`, so n + 1 numbers for n steps. `step(predict, noisy,
    time, next_time)` gives the next noisy picture and the predicted clean one; `ddim` is one.
    Results are normalised.
    """
    for now, then in pairwise(times):
        time = torch.full((len(noisy), 1, 1, 1), now, dtype=noisy.dtype, device=noisy.device)
        noisy, image = step(predict, noisy, time, time - (now - then))
        yield noisy, image


@torch.no_grad()
def generate(diffusion, n=5, steps=20, seed=None, *, noise=None, on_step=None, exact=False, sampler=ddim):
    """Draw `n` pictures (n, 3, S, S) in [0, 1] from noise, in `steps` steps. Lesson 05.

    `steps` may also be the times themselves, a list as `sample` takes it, and
    `sampler` another step than `ddim`, see lesson 11. The same `seed` gives the same pictures;
    with `noise` (n, 3, S, S) you choose what to start from. `on_step(step, noisy, image)` is
    called after each step, from 1 on, with the picture so far and the clean picture predicted
    from it, both (n, 3, S, S) in [0, 1]. On a CPU that computes with 16 bits the network does so,
    unless all shall be `exact`: pixels then differ by a few thousandths. The model is left as it
    is: a copy draws, in eval mode and with weights of 32 bits, whatever those of the model have.

    Raises TypeError or ValueError for `n` or `steps` that are not whole numbers of 1 or more, for
    `noise` of another size and for numbers that are not finite, in it or in what the model answers;
    TypeError for a `sampler` that is no function.
    """
    n, times = _whole_number("n", n), steps
    if not isinstance(steps, (list, tuple)):
        steps = _whole_number("steps", steps)
        times = [(steps - step) / steps for step in range(steps + 1)]
    _check(len(times) > 1, f"steps: two times make a step, {times} has fewer")
    _check(callable(sampler), f"sampler: {sampler!r} is no step such as ddim, see more.samplers", TypeError)
    layout = torch.preserve_format if exact else _layout(diffusion)
    network = copy.deepcopy(diffusion).float().to(memory_format=layout).eval()  # BatchNorm shall not learn
    noise = starting_noise(network, n, seed) if noise is None else noise
    _check_images("noise", noise, network.config)
    _check(noise.isfinite().all(), "noise: it holds numbers that are not finite")
    start = noise.to(network.device, torch.float32, memory_format=layout)
    with torch.autocast(network.device.type, torch.bfloat16, enabled=layout is torch.channels_last):
        path = sample(partial(predict, network), start, times, sampler)
        for step, (noisy, image) in enumerate(path, 1):
            if on_step is not None:
                on_step(step, denormalize(network, noisy), denormalize(network, image))
    drawn = denormalize(network, image).contiguous()
    _check((image + drawn).isfinite().all(), "diffusion: answers are not finite; see it_does_not_work.ipynb")
    return drawn


# Not taught: the hardware, checks, caches, the hub, and what a training notes -------------------


def _computes_bf16(device):
    """Whether `device` is a CPU with instructions for bfloat16: AVX-512 BF16, which all with AMX have too."""
    return device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()


def _layout(user):
    """The order of the numbers in memory that is fast for `user`, an accelerator or a model."""
    fast = _computes_bf16(user.device) and getattr(user, "mixed_precision", "bf16") == "bf16"
    return torch.channels_last if fast else torch.preserve_format


@cache
def _agrees(device):
    """Whether `device` finds the CPU's gradients: with some versions of PyTorch, Apple's GPU does not."""
    with torch.random.fork_rng(devices=[]):
        network, images, gradients = Residual(3, 8), torch.rand(4, 3, 8, 8), []
    for place in ("cpu", device):
        loss = network.to(place)(images.to(place)).square().mean()
        gradients.append(torch.autograd.grad(loss, network.parameters()))
    agrees = all(torch.allclose(one, two.cpu(), rtol=0.01, atol=1e-4) for one, two in zip(*gradients))
    if not agrees:
        warnings.warn(f"{device} gives wrong gradients, the CPU is used; try a newer PyTorch", stacklevel=4)
    return agrees


def _device():
    """Where to compute: CUDA, Apple's GPU where it computes right, else the CPU."""
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available() and _agrees("mps")
    return PartialState(not gpu or parse_flag_from_env("ACCELERATE_USE_CPU")).device


def _accelerator(**options):
    """Accelerate, set up for the machine at hand: where to compute, and how precisely.

    In 16 bits where CUDA or the CPU does so natively: bfloat16, or float16 with scaled gradients.
    Several processes, started by torchrun, share each batch. Accelerate's environment variables
    go first, and before them `options`, which are its own.
    """
    device = torch.device("cpu") if options.get("cpu") else _device()
    cuda_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    native = "bf16" if cuda_bf16 or _computes_bf16(device) else "fp16" if device.type == "cuda" else "no"
    precision = parse_choice_from_env("ACCELERATE_MIXED_PRECISION", native)
    options = {"dataloader_config": DataLoaderConfiguration(split_batches=True), **options}
    AcceleratorState._reset_state()  # else it keeps the precision of the first one in this process
    return Accelerator(**{"cpu": device.type == "cpu", "mixed_precision": precision, **options})


def _check(right, sentence, error=ValueError):
    if not right:
        raise error(sentence)


def _whole_number(name, value, least=1):
    """`value` if it is a whole number of `least` or more; else TypeError or ValueError with its name."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    _check(whole, f"{name} must be a whole number, not {value!r}", TypeError)
    _check(value >= least, f"{name} must be {least} or more, not {value}")
    return int(value)


def _check_recipe(recipe):
    """A recipe as plain numbers, which a checkpoint can hold; TypeError or ValueError say what is wrong."""
    unknown = sorted(recipe.keys() - GPU_RECIPE.keys())
    _check(not unknown, f"a recipe has no {unknown}, only {list(GPU_RECIPE)}", TypeError)
    _whole_number("epochs", recipe["epochs"])
    numbers = {name: n for name, n in recipe.items() if isinstance(n, (int, float, np.generic))}
    plain = {name: type(GPU_RECIPE[name])(n) for name, n in numbers.items() if 0 <= n < math.inf}
    wrong = {name: n for name, n in recipe.items() if plain.get(name, "") != n or (name, n) == ("lr", 0)}
    rule = "a recipe needs numbers of 0 or more, lr > 0, ema_decay < 1"
    _check(not wrong and plain["ema_decay"] < 1, f"{rule}: {wrong or recipe}")
    _check(torch.is_grad_enabled(), "training needs gradients: leave torch.no_grad() first", RuntimeError)
    return plain


def _check_widths(widths, image_size):
    """`widths` as whole numbers; TypeError or ValueError unless they make a network for that size."""
    _check(np.ndim(widths) == 1, f"widths must be a list of whole numbers, not {widths!r}", TypeError)
    whole, deep = [_whole_number("widths", width) for width in widths], len(widths) - 1
    halved = f"image_size={image_size} cannot be halved {deep} times, which {deep + 1} widths need"
    _check(deep >= 0 and image_size % 2**deep == 0, f"{halved}; try a multiple of {2**deep}")
    _check(whole[0] % 2 == 0, f"widths: the first must be even, half of it is for sines, not {whole[0]}")
    return whole


def _check_images(name, images, config):
    """Raise ValueError unless `images` are a tensor (N, channels, S, S) for a model with this `config`."""
    size = config.channels, config.image_size, config.image_size
    fits = torch.is_tensor(images) and images.is_floating_point() and images.shape[1:] == size
    found = f" {images.dtype}, {tuple(images.shape)}" if hasattr(images, "shape") else ""
    _check(fits, f"{name}: a Tensor of {('N', *size)} floats is needed, not {type(images).__name__}{found}")


def _check_data(data, n):
    """Raise TypeError or ValueError unless `data` are pictures, and fill a batch of `n`."""
    if hasattr(data, "shape"):
        fits = data.ndim == 4 and data.shape[1] == 3 and data.dtype in (np.float32, torch.float32)
        _check(fits, f"data: float32 of shape (N, 3, S, S) is needed, not {data.dtype}, {tuple(data.shape)}")
        low, high = (data.min(), data.max()) if len(data) else (0, 1)
        _check(0 <= low and high <= 1, f"data: values must lie in [0, 1], not from {low} to {high}")
    _check(len(data) >= n, f"data: {len(data)} pictures do not fill one batch; batch_size={n} is too large")


HIDDEN = ".", "__MACOSX", "@eaDir", "$RECYCLE.BIN"  # files and folders of the system begin so
# What Pillow opens only with other programs, tables of weather data, and films.
NOT_ALONE = {"EPS", "WMF", "HDF5", "GRIB", "BUFR", "MPEG"}
TABLES = {".parquet", ".arrow", ".tar"}
SPLITS = {"train", "training", "valid", "validation", "val", "dev", "test", "testing", "eval"}


def _files(folder):
    """All files in `folder` and the folders in it, sorted; hidden ones and the system's own are left out.

    Links are followed, and each folder is entered once, even when a link leads back into it. A
    folder that may not be read is passed over with a warning.
    """

    def warn(error):
        warnings.warn(f"folder: {Path(error.filename).name!r} is left out ({error.strerror})", stacklevel=5)

    found, seen = [], set()
    for here, folders, names in os.walk(os.path.abspath(folder), onerror=warn, followlinks=True):
        new = os.path.realpath(here) not in seen
        seen.add(os.path.realpath(here))
        folders[:] = [name for name in folders if new and not name.startswith(HIDDEN)]
        found += [Path(here, name) for name in names if new and not name.startswith(HIDDEN)]
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def _pictures(files):
    """Those of `files` that Pillow opens on its own, by their endings."""
    kinds, opened = Image.registered_extensions(), Image.OPEN.keys() - NOT_ALONE
    return [path for path in files if kinds.get(path.suffix.lower()) in opened]


def _of_split(files, split):
    """Those of `files` that `split` asks for. Where all lie in folders train, test …, these are splits."""
    folder = os.path.commonpath([path.parent for path in files])
    parts = [path.relative_to(folder).parts[0] for path in files]
    parts = parts if SPLITS.issuperset(parts) else ["train"] * len(files)
    chosen = datasets.ReadInstruction.from_spec(split).to_absolute(Counter(parts))
    named = {name: [path for path, part in zip(files, parts) if part == name] for name in {*parts}}
    return [path for some in chosen for path in named[some.splitname][some.from_ : some.to]]


def _rows(files):
    """Pictures' files as a table. A name that is not UTF-8 fits into none, so that file's bytes go there."""
    names = [(path, str(path).encode(errors="replace").decode()) for path in files]
    rows = [{"path": name, "bytes": None if name == str(path) else path.read_bytes()} for path, name in names]
    return datasets.Dataset.from_dict({"image": rows}, datasets.Features(image=datasets.Image(decode=False)))


@cache
def _unzipped(path, changed):
    """A folder with the content that the zip file `path` has since `changed`. It lasts until we end."""
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    _read(path, shutil.unpack_archive, path, folder.name, "zip")
    return folder


def _cache(path, files):
    """Where `datasets` keeps its copy of the folder `path`: states of its `files` have places of their own.

    It may overlook that a folder has changed; and what another process is reading stays as it is.
    """
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.exists()]
    home = Path(datasets.config.HF_DATASETS_CACHE, "course", datasets.fingerprint.Hasher.hash(str(path)))
    with suppress(FileNotFoundError):  # another process does the same
        for old in sorted(home.glob("*"), key=os.path.getmtime)[:-2]:
            shutil.rmtree(old, ignore_errors=True)
    return home / datasets.fingerprint.Hasher.hash(state)


def _read(source, reader, *arguments, **options):
    """What a library's `reader` returns; ValueError says in one line what went wrong with `source`."""
    try:
        return reader(*arguments, **options)
    except Exception as error:  # it passes on what any of its own readers raises
        if type(error) is not ValueError:  # such as an unknown split
            shutil.rmtree(options.get("cache_dir", ""), ignore_errors=True)  # the copy may be torn
        why = _reason(error.__cause__ or error)  # "An error occurred" says too little
        raise ValueError(f"source: no pictures can be loaded from {str(source)!r}: {why}") from error


def _load(source, split, streaming):
    """The rows of `source`: files of pictures are listed here, tables and the hub are left to `datasets`.

    Raises TypeError, ValueError, FileNotFoundError or ConnectionError when nothing can be loaded.
    """
    _check(isinstance(split, str), f"split must be text such as 'train[:80%]', not {split!r}", TypeError)
    if isinstance(source, (list, tuple)):
        return _rows([Path(file).expanduser().absolute() for file in source])
    named = isinstance(source, (str, os.PathLike)) and source != ""
    _check(named, f"source: a folder, a file, a list of files or a name is needed, not {source!r}", TypeError)
    read = partial(_read, source, datasets.load_dataset, split=split)
    path = Path(source).expanduser().absolute()
    if not path.exists():
        _ask_hub(str(source))
        return read(str(source), streaming=streaming and "[" not in split)
    if path.suffix.lower() == ".zip":
        path = Path(_unzipped(path, path.stat().st_mtime_ns).name)
    files, card = _files(path) if path.is_dir() else [path], path / "README.md"
    pictures, endings = _pictures(files), Counter(file.suffix.lower() or "no ending" for file in files)
    _check(pictures or path.is_dir(), f"source: {path.name!r} is no folder, no zip file and no picture")
    table = card.is_file() and "configs:" in card.read_text(errors="replace")  # it says which files
    table = table or TABLES & {file.suffix for file in files if file.stem != "metadata"}
    others = endings - Counter(file.suffix.lower() for file in pictures)
    if others and not table:
        told = dict(others.most_common(5))
        warnings.warn(f"source: {others.total()} files are left out; Pillow opens no {told}", stacklevel=4)
    if table or not pictures:
        _check(not {*"*?["} & {*str(path)}, f"source: rename {path.name!r}, for tables without * ? [")
        return read(str(path), cache_dir=_cache(path, files))
    return _rows(_of_split(pictures, split))


def _read_picture(file, size):
    """One picture, as a row of `open_pictures` holds it, as uint8 array (3, size, size).

    Photos come upright, whichever way the camera was held. Raises `_Unreadable` that names the
    file when it is not a picture, or not a whole one.
    """
    try:
        picture = datasets.Image().decode_example(file or {"path": None, "bytes": None})
    except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
        name = Path((file or {}).get("path") or "a picture").name
        why = "it is no picture" if isinstance(error, UnidentifiedImageError) else _reason(error)
        raise _Unreadable(f"{name} cannot be read ({why})") from error
    with picture:
        return np.asarray(square_rgb(picture, size)).transpose(2, 0, 1)


class _Unreadable(ValueError):
    """Said of a file that is no picture, or not a whole one."""


def _tell_unreadable(source, count, bad):
    """Warn of the files in `bad`, a list of reasons; ValueError when `count`, the number of others, is 0."""
    left_out = f"{len(bad)} of {len(bad) + count} pictures are left out, the first: {bad[0]}" if bad else ""
    if bad:
        warnings.warn(f"source: {left_out}", stacklevel=3)
    _check(count, f"source: there is no picture in {str(source)!r} that can be read; {left_out}".rstrip("; "))


def _eight_bits(picture):
    """The grey values of a PIL picture of 16 bits or more, or of floats, as bytes.

    White is 65,535 in 16 bits; in others 1, 255 or 65,535, whichever the largest value comes up to.
    """
    pixels = np.nan_to_num(np.asarray(picture), posinf=0)
    top = 65535 if picture.mode.startswith("I;16") else pixels.max()
    scale = 255 if top <= 1 else 1 if top <= 255 else 1 / 256
    return (pixels * scale).clip(0, 255).astype(np.uint8)


def _reason(error):
    """The first line of what an error says."""
    return (str(error) or repr(error)).splitlines()[0]


def _ask_hub(name, kind="dataset", token=None, cache_dir=None):
    """Make sure, within seconds, that the hub (or the cache) has the data set or model `name`, "owner/name".

    Raises FileNotFoundError when it has none that you may see, ConnectionError without a network.
    """
    _check(name.count("/") == 1, f"there is no folder or file {name!r}", FileNotFoundError)
    if kind == "model" and huggingface_hub.try_to_load_from_cache(name, "config.json", cache_dir):
        return
    try:
        huggingface_hub.HfApi(token=token).repo_info(name, repo_type=kind, timeout=4)
    except (huggingface_hub.errors.RepositoryNotFoundError, huggingface_hub.errors.GatedRepoError) as error:
        sentence = f"there is no folder {name!r}, and no {kind} of that name on the hub that is open to you"
        raise FileNotFoundError(f"{sentence}; if it is private, log in first") from error
    except Exception as error:  # the hub's clients have no common class for a network that is down
        sentence = f"the hub cannot be reached for {name!r} ({_reason(error)}); what ships with the course"
        raise ConnectionError(f"{sentence}, TOY_FACES and TOY_MODEL, needs no network") from error


def _seed(*numbers):
    """One seed for PyTorch out of several whole numbers, say a seed and a step."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _own_order(loader, recipe):
    """A loader like `loader`, which stays as it is, and a function that sets the order of an epoch."""
    fits = getattr(loader, "batch_size", None) and hasattr(loader.dataset, "__len__") and len(loader)
    _check(fits, "loader must be a DataLoader with batches, of a data set with a length", TypeError)
    if recipe["warmup_steps"] >= recipe["epochs"] * len(loader):
        warnings.warn("warmup_steps: the training ends before the rate has come up to lr", stacklevel=3)
    names = "batch_size", "drop_last", "num_workers", "collate_fn"
    sampler, options = copy.copy(loader.sampler), {name: getattr(loader, name) for name in names}
    seed = loader.generator.initial_seed() if loader.generator else recipe["seed"]
    sampler.generator = torch.Generator()
    loader = torch.utils.data.DataLoader(loader.dataset, sampler=sampler, **options)
    return loader, lambda epoch: sampler.generator.manual_seed(_seed(seed, epoch))
