"""A diffusion model for small images: load, add noise, build, train, draw. Lessons 01 to 05, in their order.

Images are float32 arrays or tensors (N, C, S, S) with values in [0, 1]: N images, C channels (three:
red, green, blue), S rows, S columns. This file needs no other of the course; the folders named below lie beside it.
"""

import copy
import math
import os
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from matplotlib import pyplot as plt
from PIL import Image, ImageOps
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PretrainedConfig, PreTrainedModel, get_scheduler

ROOT = Path(__file__).resolve().parent
TOY_FACES = ROOT / "data" / "toy_faces"  # the images that ship with the course
TOY_MODEL = ROOT / "pretrained" / "toy_faces_32"  # the network of lesson 04, trained for over an hour
SHORT_MODEL = ROOT / "pretrained" / "toy_faces_32_short"  # the same after 16 epochs with AdamW, for lesson 07
LARGE_MODEL = ROOT / "pretrained" / "toy_faces_64"  # one of the full size, trained by train.py
# The files of a folder that are taken for images.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}

CPU_SHAPE = dict(image_size=32, widths=(16, 32, 64, 128), block_depth=1)
CPU_RECIPE = dict(epochs=16, lr=3e-3, ema_decay=0.99, warmup_steps=100, cosine_decay=True)


# Lesson 01: data ------------------------------------------------------------------------


def show(images, n=5, path=None, titles=()):
    """Show the first `n` images of (N, C, S, S) in one row, with titles; save them where `path` says. Lesson 01.

    One channel is shown in grey; of more than three, the first three count.
    """
    images = torch.as_tensor(images[:n]).detach().cpu().clip(0, 1)
    figure, axes = plt.subplots(1, len(images), figsize=(1.5 * len(images), 1.7), squeeze=False)
    for axis, image, title in zip(axes[0], images, [*titles, *n * [""]]):
        axis.imshow(image[:3].permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    if path is not None:
        figure.savefig(path)
    plt.close(figure) if plt.get_backend().lower() == "agg" else plt.show(block=False)  # agg has no screen


def get_loader(data, batch_size=64, seed=None):
    """Deal `data` (N, C, S, S) in shuffled batches; the last, incomplete one is dropped. Lesson 01.

    `data`: float32 in [0, 1], an array, a tensor, or a torch Dataset of such images, whose values are not looked
    at. With a `seed` the order is the same in every run. Raises ValueError for values outside [0, 1] and for
    fewer images than a batch.
    """
    if len(data) < batch_size:
        raise ValueError(f"data: {len(data)} images do not fill a batch of batch_size={batch_size}")
    if hasattr(data, "min") and not 0 <= data.min() <= data.max() <= 1:
        raise ValueError(f"data: values must lie in [0, 1], not from {data.min()} to {data.max()}")
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(data, batch_size, shuffle=True, drop_last=True, generator=generator)


def square_rgb(image, size):
    """Turn a PIL image into a `size` × `size` RGB image: cropped, not squashed; white where transparent. Lesson 01.

    Raises ValueError for the modes I, I;16 and F, whose values `convert` would clip at 255.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"image: it has the mode {image.mode}; open it with any_images of lesson 10")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return ImageOps.fit(image.convert("RGB"), (size, size))


def open_images(source, split="train", seed=0):
    """Open a data set of images, shuffled, with one column, "image". Nothing is decoded yet. Lesson 01.

    `source`: a folder of images, a folder in hub layout (with parquet files), a hub id ("owner/name", which is
    streamed), or any `datasets.Dataset`; `any_images` of lesson 10 makes one from zip files and untidy folders.
    Of a folder, hidden files are left out, files in hidden folders are not; links to folders are not followed.
    """
    if isinstance(source, datasets.Dataset):
        rows = source
    elif Path(source).is_dir() and not any(Path(source).rglob("*.parquet")):
        if split != "train":
            raise ValueError(f"split: a folder of images has no {split!r}; name the folder of that split")
        files = sorted(str(path) for path in Path(source).rglob("[!.]*") if path.suffix.lower() in SUFFIXES)
        rows = datasets.Dataset.from_dict({"image": files}, datasets.Features(image=datasets.Image()))
    else:
        rows = datasets.load_dataset(str(source), split=split, streaming=not Path(source).exists())
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"source: {str(source)!r} has no column of images, only {list(rows.features)}")
    name = "image" if "image" in columns else columns[0]
    names = {} if name == "image" else {name: "image"}
    # Renaming decodes what is streamed, and would compress photos anew: so only undecoded files are renamed.
    rows = rows.select_columns(name).cast_column(name, datasets.Image(decode=False)).shuffle(seed=seed)
    return rows.rename_columns(names).cast_column("image", datasets.Image())


def get_data(source=TOY_FACES, *, split="train", limit=3000, size=64, seed=0):
    """Load up to `limit` images as one float32 array (N, 3, size, size) in [0, 1]. Lesson 01.

    `source`: see `open_images`; `seed` fixes which images come, and in which order (a stream is
    shuffled only within a moving buffer of 1,000 rows). `datasets` turns photos upright, as their EXIF tag says.
    Raises ValueError where there is no image, and what Pillow raises for a file that it cannot read.
    """
    rows = islice(open_images(source, split, seed), limit)
    pixels = [np.asarray(square_rgb(row["image"], size)) for row in rows]
    if not pixels:
        raise ValueError(f"source: there is no image in {str(source)!r}")
    return np.divide(np.stack(pixels).transpose(0, 3, 1, 2), np.float32(255), order="C")


# Lesson 02: noise -----------------------------------------------------------------------


def schedule(time):
    """The offset cosine schedule: `(noise_rate, signal_rate)` at `time` in [0, 1]. Lesson 02.

    Their squares add up to 1; signal_rate, in papers √ᾱ, falls from 0.95 at time 0 to 0.02 at time 1.
    The cosine of Nichol & Dhariwal 2021 with the offsets at both ends of Béres' DDIM example for Keras.
    """
    start, end = math.acos(0.95), math.acos(0.02)
    angle = start + torch.as_tensor(time) * (end - start)
    return angle.sin(), angle.cos()


def mix(image, noise, time):
    """The noisy image at `time`: signal_rate · image + noise_rate · noise. Ho et al. 2020, equation 4. Lesson 02."""
    noise_rate, signal_rate = schedule(time)
    return signal_rate * image + noise_rate * noise


# Lesson 03: network ---------------------------------------------------------------------


class Combine(nn.Module):
    """Put a noisy image (N, channels, S, S) and its noise variance (N, 1, 1, 1) into one tensor. Lesson 03.

    forward gives (N, 2·width, S, S): the first half are colours, mixed by a 1×1 convolution; the second half
    are sines and cosines of the variance at frequencies from 1 to 1000. Vaswani et al. 2017, section 3.5.
    """

    def __init__(self, width=32, channels=3):
        super().__init__()
        frequencies = torch.linspace(0.0, math.log(1000), width // 2).exp()
        self.register_buffer("t", 2 * math.pi * frequencies)
        self.cnn = nn.Conv2d(channels, width, kernel_size=1)

    def embed(self, variance):
        angle = self.t * variance.flatten(1)
        return torch.cat((angle.sin(), angle.cos()), dim=1)

    def forward(self, image, variance):
        # (N, 32), then (N, 32, 1, 1), then (N, 32, H, W): the same numbers at each pixel
        embedding = self.embed(variance)[:, :, None, None].expand(-1, -1, *image.shape[2:])
        return torch.cat((self.cnn(image), embedding), dim=1)


class Residual(nn.Module):
    """Two 3×3 convolutions beside a shortcut: (N, channel_in, S, S) to (N, channel_out, S, S). Lesson 03.

    After He et al. 2015; one BatchNorm, and always a 1×1 convolution on the shortcut.
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
    return [Residual(skip + (channel_in if i == 0 else width), width) for i in range(depth)]


class UNet(nn.Module):
    """Down, across the bottom and up again, with skips from each level. Lesson 03.

    forward: (N, 2·widths[0], S, S) gives (N, channels, S, S). `widths` are the channels of each level, the last
    those of the bottom; `block_depth` is how many Residual blocks each level has. S must be divisible by
    2 ** (len(widths) - 1). Arguments after x go to every block: those of lesson 15 take some. Ronneberger et al. 2015.
    """

    def __init__(self, widths=(32, 64, 96, 128), block_depth=2, channels=3):
        super().__init__()
        self.down, self.middle, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        above = 2 * widths[0]
        for width in widths[:-1]:
            self.down.extend([*blocks(above, width, block_depth), nn.AvgPool2d(2)])
            above = width
        self.middle.extend(blocks(above, widths[-1], block_depth))
        for below, width in pairwise(reversed(widths)):
            self.up.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True))
            self.up.extend(blocks(below, width, block_depth, skip=width))
        self.out = nn.Conv2d(widths[0], channels, kernel_size=1)

    def forward(self, x, *condition):
        skips = []
        for layer in self.down:
            x = layer(x, *condition) if isinstance(layer, Residual) else layer(x)
            if isinstance(layer, Residual):
                skips.append(x)
        for layer in self.middle:
            x = layer(x, *condition)
        for layer in self.up:
            if isinstance(layer, Residual):
                x = layer(torch.cat((x, skips.pop()), dim=1), *condition)
            else:
                x = layer(x)
        return self.out(x)


# Lesson 04: training --------------------------------------------------------------------


class DiffusionConfig(PretrainedConfig):
    """All settings of the model; the defaults are the full 64×64 model. Lesson 04.

    `channels`: those of the images. `predicts`: what the network puts out (lesson 13): "noise", "image", "v", which is
    signal_rate · noise - noise_rate · image, or "flow", noise - image. `steps`: how many `generate` takes by
    default. `times`: where they lie, interpolated between these numbers: [1.0, 0.0] is evenly from 1 to 0.
    """

    model_type = "course_diffusion"  # stands in each config.json

    def __init__(self, image_size=64, widths=(32, 64, 96, 128), block_depth=2, predicts="noise", **options):
        options = {"channels": 3, "steps": 20, "times": [1.0, 0.0], **options}
        super().__init__(image_size=image_size, block_depth=block_depth, **options)
        self.widths, self.predicts = list(widths), predicts
        if predicts not in ("noise", "image", "v", "flow"):
            raise ValueError(f"predicts must be 'noise', 'image', 'v' or 'flow', not {predicts!r}")


class Diffusion(PreTrainedModel):
    """The diffusion model: it adds noise to images and predicts that noise. Lesson 04.

    forward is one round of training: `images` (N, C, S, S) in [0, 1] give `(noise, predicted_noise)`.
    `network` is the U-Net's own output for normalised `noisy` images and `time` (N, 1, 1, 1); `predict_noise`
    turns that into noise, whatever the network `predicts`. Ho et al. 2020, algorithm 1, with continuous time.
    """

    config_class = DiffusionConfig

    def __init__(self, config):
        super().__init__(config)
        self.norm = nn.BatchNorm2d(config.channels, affine=False)
        self.unet = UNet(config.widths, config.block_depth, config.channels)
        self.combine = Combine(config.widths[0], config.channels)
        self.post_init()  # transformers' own bookkeeping; from_pretrained needs it

    def _init_weights(self, module):
        """Keep PyTorch's initial weights, which transformers would draw anew."""

    @classmethod
    def from_pretrained(cls, name, *args, **options):
        """Load a model from a folder or the hub; ValueError if weights are missing or left over."""
        model, report = super().from_pretrained(name, *args, **options, output_loading_info=True)
        misfits = sorted(report["missing_keys"]) + sorted(report["unexpected_keys"])
        if misfits:
            raise ValueError(f"{name}: {len(misfits)} weights are missing or unexpected: {misfits[0]} …")
        return model

    def network(self, noisy, time, *condition):
        noise_rate, _ = schedule(time)
        return self.unet(self.combine(noisy, noise_rate**2), *condition)

    def predict_noise(self, noisy, time, *condition):
        output = self.network(noisy, time, *condition)
        noise_rate, signal_rate = schedule(time)
        if self.config.predicts == "image":
            return (noisy - signal_rate * output) / noise_rate
        if self.config.predicts == "v":
            return noise_rate * noisy + signal_rate * output
        if self.config.predicts == "flow":
            return (noisy + signal_rate * output) / (noise_rate + signal_rate)
        return output

    def forward(self, images):
        if images.shape[2:] != (self.config.image_size, self.config.image_size):
            raise ValueError(f"images: {tuple(images.shape)}, but image_size={self.config.image_size}")
        image = self.norm(images)
        noise = torch.randn(image.shape, device=image.device)
        time = torch.rand(len(image), 1, 1, 1, device=image.device)
        return noise, self.predict_noise(mix(image, noise, time), time)


DiffusionConfig.register_for_auto_class()  # a saved model carries this file, so AutoModel opens it
Diffusion.register_for_auto_class("AutoModel")  # without the course


def l1_loss(diffusion, images):
    """How wrong the predicted noise is: the mean absolute difference, for a batch (N, C, S, S). Lesson 04."""
    noise, predicted_noise = diffusion(images)
    return nn.functional.l1_loss(predicted_noise, noise)


def average_weights(diffusion, ema_decay):
    """A copy of `diffusion` that follows it slowly: the EMA of its weights, over fewer steps at first. Lesson 04."""

    def update(averages, weights, _):
        count = int(average.n_averaged)  # it lies on the CPU, so no GPU is waited for
        get_ema_multi_avg_fn(min(ema_decay, (1 + count) / (10 + count)))(averages, weights, count)

    average = AveragedModel(diffusion, multi_avg_fn=update)
    return average


@dataclass
class Recipe:
    """The settings of a training run; the defaults are the article's, and the average is our addition. Lesson 04."""

    epochs: int = 2000
    lr: float = 2e-4
    weight_decay: float = 1e-4
    ema_decay: float = 0.999
    warmup_steps: int = 0
    cosine_decay: bool = False
    seed: int = 0


def adamw(model, recipe):
    """AdamW, the article's optimizer. Loshchilov & Hutter 2019. Lesson 04."""
    return torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, fused=True)


def pick_accelerator(**options):
    """Choose the device, CUDA, Apple's GPU or the CPU, and the precision: 16 bits where it has them. Lesson 04.

    `options` are those of Accelerate's `Accelerator`; they and its environment variables take precedence.
    """
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    native = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"
    if torch.cuda.is_available():
        native = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", native)
    shared = DataLoaderConfiguration(split_batches=True)  # several processes share each batch
    return Accelerator(**dict(cpu=not gpu, mixed_precision=precision, dataloader_config=shared) | options)


def seed_of(*numbers):
    """One seed out of several numbers, say a recipe's seed and a step. Lesson 04."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Loss(nn.Module):
    """A loss as a module, so that Accelerate can run it in 16 bits and in several processes. Lesson 04."""

    def __init__(self, model, loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch):
        return self.loss(self.model, batch)


class Training:
    """A training run, to be looped over: each round takes one step and gives its number, from 1 on. Lesson 04.

        training = Training(diffusion, get_loader(data), epochs=16, lr=3e-3)
        for step in training:
            if step % 100 == 0:
                show(generate(training.average.module, seed=0))

    `diffusion` may be any module for which `loss(diffusion, batch)` gives a scalar; `optimizer(diffusion, recipe)`
    gives a torch.optim.Optimizer; `recipe`: the fields of `Recipe`. Order and noise follow from seeds, epoch and
    step, and so does `Augmented` data (lesson 10): after a `break`, loop over the same object again, and it goes
    on as if unbroken. (Only a `batch_sampler` of your own keeps its own order.) `history` has the loss and the
    learning rate of each step; losses are tensors on the device until the epoch ends. At the end, or when `finish()`
    is called after a `break`, the model has the averaged weights. Raises FloatingPointError, at the end of an epoch,
    for a loss or weights that are not finite.
    """

    def __init__(self, diffusion, loader, *, loss=l1_loss, optimizer=adamw, accelerator=None, **recipe):
        self.recipe = recipe = Recipe(**recipe)
        self.step, self.history, self.finished = 0, {"loss": [], "lr": []}, False
        self.accelerator = accelerator or pick_accelerator()
        in_bf16 = self.accelerator.mixed_precision == "bf16"  # convolutions in bf16 are faster channels last
        layout = torch.channels_last if in_bf16 else torch.contiguous_format
        self.diffusion = diffusion.to(self.accelerator.device, memory_format=layout).train()
        self.average = average_weights(diffusion, recipe.ema_decay)

        self.sampler = loader.sampler  # its order is set anew for each epoch
        self.order_seed = loader.generator.initial_seed() if loader.generator else recipe.seed
        prepared = self.accelerator.prepare(Loss(diffusion, loss), optimizer(diffusion, recipe), loader)
        self.loss, self.optimizer, self.loader = prepared
        kind = "cosine" if recipe.cosine_decay else "constant_with_warmup"
        self.rates = get_scheduler(kind, self.optimizer, recipe.warmup_steps, len(self))

    def __len__(self):
        return self.recipe.epochs * len(self.loader)

    def __iter__(self):
        while self.step < len(self) and not self.finished:
            epoch, done = divmod(self.step, len(self.loader))
            self.loader.set_epoch(epoch)  # for data that augments itself at random, see lesson 10
            self.sampler.generator = torch.Generator().manual_seed(seed_of(self.order_seed, epoch))
            for batch in skip_first_batches(self.loader, done) if done else self.loader:
                torch.manual_seed(seed_of(self.recipe.seed, self.step, self.accelerator.process_index))
                self.take_step(batch)
                yield self.step
            self.check_finite()
        self.finish()

    def take_step(self, batch):
        self.diffusion.train()  # the body of your loop may have called eval()
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        self.accelerator.backward(loss)  # in float16 it scales the loss, lest small gradients become 0
        self.optimizer.step()
        self.history["lr"].append(self.rates.get_last_lr()[0])  # of the first group of weights
        self.rates.step()
        self.average.update_parameters(self.diffusion)
        self.history["loss"].append(self.accelerator.reduce(loss.detach(), "mean"))  # over all processes
        self.step += 1

    def check_finite(self):
        self.history["loss"] = [float(loss) for loss in self.history["loss"]]  # no step waits for it
        values = [torch.tensor(self.history["loss"]), *self.diffusion.state_dict().values()]
        if not all(value.isfinite().all() for value in values):
            raise FloatingPointError(f"loss or weights are not finite at step {self.step}; try a lower lr")

    def finish(self):
        if not self.finished:
            self.check_finite()
            self.diffusion.load_state_dict(self.average.module.state_dict())
            self.diffusion.to(memory_format=torch.contiguous_format)  # the usual layout, on every machine
            self.finished = True


# Lesson 05: sampling --------------------------------------------------------------------


def predict(diffusion, noisy, time):
    """Ask the network once: `(predicted_noise, predicted_image)`, both normalised (N, C, S, S). Lesson 05."""
    noise_rate, signal_rate = schedule(time)
    predicted_noise = diffusion.predict_noise(noisy, time)
    return predicted_noise, (noisy - noise_rate * predicted_noise) / signal_rate


def denormalize(diffusion, image):
    """Undo `diffusion.norm`: normalised (N, C, S, S) back to colours in [0, 1]. Lesson 05."""
    mean, variance = diffusion.norm.running_mean[:, None, None], diffusion.norm.running_var[:, None, None]
    return (mean + image * variance**0.5).clip(0.0, 1.0)


def starting_noise(diffusion, n, seed=None):
    """Pure noise (n, C, S, S) on the model's device; the same on every device for the same `seed`. Lesson 05."""
    shape = n, diffusion.config.channels, diffusion.config.image_size, diffusion.config.image_size
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(diffusion.device)


def ddim(predict, noisy, time, next_time):
    """One step of DDIM: what was predicted is mixed again, for `next_time`. Lesson 05.

    J. Song et al. 2020, equation 12 with σ = 0.
    """
    noise, image = predict(noisy, time)
    return mix(image, noise, next_time), image


def sample(predict, noisy, times, step=ddim):
    """Go from `noisy` along `times`, n + 1 numbers for n steps; yield `(noisy, image)` after each. Lesson 05.

    `predict(noisy, time)` gives noise and image, all normalised; `step` is `ddim` or another of lesson 12.
    """
    step = copy.deepcopy(step)  # it may keep a state (lesson 12); each drawing gets its own
    for now, then in pairwise(times):
        time = torch.full((len(noisy), 1, 1, 1), now, dtype=noisy.dtype, device=noisy.device)
        noisy, image = step(predict, noisy, time, time - (now - then))
        yield noisy, image


@torch.no_grad()
def generate(diffusion, n=5, steps=None, seed=None, *, noise=None, on_step=None, sampler=ddim):
    """Draw `n` images (n, C, S, S) in [0, 1] from noise. Lesson 05.

    `steps`: a number of 1 or more, by default config.steps; or a list of times. `noise` (n, C, S, S): what to start
    from, instead of `n` and `seed`. `on_step(step, noisy, image)` is called after each step, from 1 on, with
    colours in [0, 1]. The model stays as it is: a copy draws, in eval mode and in 32 bits.
    """
    network = copy.deepcopy(diffusion).float().eval()
    noisy = starting_noise(network, n, seed) if noise is None else noise.to(network.device)
    steps = network.config.steps if steps is None else steps
    if isinstance(steps, int | np.integer):  # so many, spread over config.times; a list is taken as it is
        places = np.linspace(0, len(network.config.times) - 1, steps + 1)
        steps = np.interp(places, range(len(network.config.times)), network.config.times).tolist()
    path = sample(partial(predict, network), noisy, steps, sampler)
    for step, (noisy, image) in enumerate(path, 1):
        if on_step is not None:
            on_step(step, denormalize(network, noisy), denormalize(network, image))
    if not image.isfinite().all():
        raise ValueError("diffusion: its output is not finite; see notebooks/it_does_not_work.ipynb")
    return denormalize(network, image)
