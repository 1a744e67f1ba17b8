"""A diffusion model for small pictures, in the order in which the course builds it.

Lesson 01  data:      whole_number, open_pictures, square_rgb, get_data, get_loader, show
Lesson 02  noise:     schedule
Lesson 03  network:   Combine, Residual, unet_layers, UNet
Lesson 04  training:  DiffusionConfig, Diffusion, training_step, average_weights,
                      pixel_distance, train
Lesson 05  sampling:  predict, denormalize, starting_noise, generate

Pictures are float32 tensors or arrays of shape (N, 3, S, S): N pictures, three colour
channels (red, green, blue), S rows, S columns. Values lie in [0, 1].
"""

import math
import re
from pathlib import Path

import datasets
import numpy as np
import torch
from matplotlib import pyplot as plt
from PIL import Image, ImageOps
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedModel, get_scheduler
from transformers.utils.logging import disable_progress_bar

# The libraries' own bars, shown for each small file that they read or write.
disable_progress_bar()
datasets.disable_progress_bars()

ROOT = Path(__file__).resolve().parent
TOY_FACES = ROOT / "data" / "toy_faces"  # the pictures that ship with the course
TOY_MODEL = ROOT / "pretrained" / "toy_faces_32"  # the model that lesson 04 trains on them


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


def open_pictures(source, split="train", seed=0):
    """Open a data set of pictures, shuffled by `seed`. Nothing is decoded yet. Lesson 01.

    `source`: a folder in hub layout, a folder of pictures, or a hub id ("owner/name").
    A folder is opened whole; a hub id is streamed, so that only what is read is fetched.

    Returns `(rows, column)`: an iterable of dicts, and the name of the column that holds
    the pictures. Raises FileNotFoundError or ValueError where there are no pictures.
    """
    local = Path(source).exists()
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"source: there is no folder {str(source)!r}")
    mode = "force_redownload" if local else None  # do not take a folder that has changed from a cache
    rows = datasets.load_dataset(str(source), split=split, streaming=not local, download_mode=mode)
    columns = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise ValueError(f"source: {str(source)!r} has no column of pictures, only {list(rows.features)}")
    return rows.select_columns(columns[:1]).shuffle(seed=seed), columns[0]


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

    `source`: a folder in hub layout, a folder of pictures, or a hub id such as
    "lansinuote/gen.1.celeba"; `seed` fixes which pictures come, and in which order.
    Each picture is decoded straight into its place in the array; no pixels go to disk.

    Raises TypeError, ValueError or FileNotFoundError with the argument's name.
    """
    limit, size = whole_number("limit", limit), whole_number("size", size)
    rows, column = open_pictures(source, split, seed)
    if hasattr(rows, "num_rows"):  # a stream does not know its length
        limit = min(limit, rows.num_rows)
    data = np.empty((limit, 3, size, size), dtype=np.float32)
    count = 0
    for row in tqdm(rows.take(limit), total=limit, desc="decoding", unit=" pictures", delay=1):
        data[count] = np.asarray(square_rgb(row[column], size)).transpose(2, 0, 1)
        count += 1
    data = data[:count]
    data /= 255
    return data


def get_loader(data, batch_size=64, seed=None):
    """Deal `data` (N, 3, S, S) in shuffled batches (batch_size, 3, S, S). Lesson 01.

    The last, incomplete batch of an epoch is dropped. With a `seed` the order is the same
    in every run. Raises ValueError when there are fewer pictures than one batch.
    """
    batch_size = whole_number("batch_size", batch_size)
    if len(data) < batch_size:
        raise ValueError(
            f"data: {len(data)} pictures do not fill one batch; batch_size={batch_size} is too large"
        )
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.utils.data.DataLoader(
        data, batch_size, shuffle=True, drop_last=True, generator=generator
    )


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


class Diffusion(PreTrainedModel):
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

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        """Load a model from a folder or from the hub; one that lacks weights is refused.

        Raises ValueError that names the missing weights, OSError where there is no model.
        """
        diffusion, info = super().from_pretrained(
            name, *args, **{**kwargs, "output_loading_info": True}
        )
        if info["missing_keys"]:
            raise ValueError(f"{name} lacks the weights {sorted(info['missing_keys'])}")
        return (diffusion, info) if kwargs.get("output_loading_info") else diffusion


def training_step(diffusion, images, optimizer):
    """Learn from one batch `images` (N, 3, S, S); returns the loss, a scalar. Lesson 04.

    The loss is the mean absolute difference between noise and predicted noise.
    """
    noise, predicted_noise = diffusion(images)
    loss = nn.functional.l1_loss(predicted_noise, noise)
    loss.backward()
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
        decay = min(ema_decay, (1 + int(n)) / (10 + int(n)))
        get_ema_multi_avg_fn(decay)(averages, weights, n)

    return AveragedModel(diffusion, multi_avg_fn=update)


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


def train(diffusion, loader, epochs=2000, *, lr=2e-4, weight_decay=1e-4, warmup_steps=0,
          cosine_decay=False, ema_decay=0.999, sample_every=100):  # fmt: skip
    """Train `diffusion` on the batches of `loader`; it ends with the averaged weights. Lesson 04.

    Runs on CUDA where there is one. The learning rate rises to `lr` within `warmup_steps`
    and, with `cosine_decay`, falls to 0 at the end. Every `sample_every` epochs, and at
    the end, five samples are drawn with raw and averaged weights, the latter shown.

    Returns the history, a dict: "loss" and "lr" hold a number a step, "samples" a tuple
    `(epoch, raw, averaged)` each time pictures were drawn, "seconds" how long it took.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    diffusion.to(device).train()
    average = average_weights(diffusion, ema_decay)
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr, weight_decay=weight_decay)
    rates = get_scheduler("cosine" if cosine_decay else "constant_with_warmup", optimizer,
                          warmup_steps, whole_number("epochs", epochs) * len(loader))  # fmt: skip
    history = {"loss": [], "lr": [], "samples": []}
    with tqdm(total=epochs * len(loader) * loader.batch_size, unit=" images") as bar:
        for epoch in range(1, epochs + 1):
            losses = []
            for images in loader:
                history["lr"] += rates.get_last_lr()
                losses.append(training_step(diffusion, images.to(device), optimizer))
                rates.step()
                average.update_parameters(diffusion)
                bar.update(len(images))
            history["loss"] += torch.stack(losses).tolist()
            bar.set_postfix(epoch=epoch, loss=f"{np.mean(history['loss'][-len(loader):]):.3f}")
            if epoch % sample_every == 0 or epoch == epochs:
                raw, averaged = generate(diffusion, seed=0), generate(average.module, seed=0)
                history["samples"].append((epoch, raw.cpu(), averaged.cpu()))
                show(averaged)
    history["seconds"] = bar.format_dict["elapsed"]
    diffusion.load_state_dict(average.module.state_dict())
    return history


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
