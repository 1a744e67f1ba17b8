"""Text to image by latent diffusion, in the order of lesson 17.

Lesson 17  latents:    ConvBlock, Autoencoder, activations, autoencoder_loss, encode, decode
           network:    ConditionedBlock, Level, embed_time, AttentionUNet
           system:     TextToImage, line_times, flow_loss

A latent is an image, too: a quarter as wide and high, four numbers in [0, 1] in each place. So whatever draws images
draws latents; only a decoder must stand behind it.

    model = TextToImage.from_pretrained(TEXT_MODEL)
    text_to_image(model, "a smiling face with round glasses and blue hair", n=5)

Images are float32 tensors (N, 3, S, S) with values in [0, 1], as everywhere in the course, here mostly with S = 64;
latents are (N, 4, S/4, S/4) in [0, 1].
"""

import math

import torch
from torch import nn

from diffusion_course.attention import LENGTH, SpatialAttention, TextEncoder
from diffusion_utils import ROOT, Diffusion, DiffusionConfig, mix, schedule

TEXT_MODEL = ROOT / "pretrained" / "text_to_image_64"  # a TextToImage
SCALE = 0.1  # the deviation of latents, around 0.5


# Latents --------------------------------------------------------------------------------


class ConvBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut: (N, channel_in, S, S) to (N, channel_out, S, S). Lesson 17.

    As lesson 03's Residual, but with GroupNorm, which does not look at the other images of a batch. Wu & He 2018.
    """

    def __init__(self, channel_in, channel_out):
        super().__init__()
        self.shortcut = nn.Identity() if channel_in == channel_out else nn.Conv2d(channel_in, channel_out, 1)
        self.norm1 = nn.GroupNorm(8, channel_in)
        self.conv1 = nn.Conv2d(channel_in, channel_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channel_out)
        self.conv2 = nn.Conv2d(channel_out, channel_out, 3, padding=1)

    def forward(self, x):
        hidden = self.conv1(nn.functional.silu(self.norm1(x)))
        hidden = self.conv2(nn.functional.silu(self.norm2(hidden)))
        return self.shortcut(x) + hidden


class Autoencoder(nn.Module):
    """Two networks: one turns images into latents, the other latents into images. Lesson 17.

    `encode`: (N, 3, S, S) gives (N, channels, S/4, S/4) in [0, 1], S a multiple of 4; `decode` goes back. Rombach et al.
    2022, in small.
    """

    def __init__(self, width=96, fine_width=48, channels=4):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, width, 3, padding=1),
            ConvBlock(width, width),
            ConvBlock(width, width),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, channels, 1),
            nn.BatchNorm2d(channels, affine=False),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            ConvBlock(width, width),
            ConvBlock(width, width),
            nn.Conv2d(width, 4 * fine_width, 1),
            nn.PixelShuffle(2),
            ConvBlock(fine_width, fine_width),
            nn.GroupNorm(8, fine_width),
            nn.SiLU(),
            nn.Conv2d(fine_width, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def encode(self, images):
        return (0.5 + SCALE * self.encoder(2 * images - 1)).clip(0, 1)

    def decode(self, latents):
        return self.decoder((latents - 0.5) / SCALE) / 2 + 0.5


def activations(layers, images):
    """What the ReLUs among the `layers` of a classifier put out for `images`, a list of tensors. Lesson 17."""
    outputs = []
    for layer in layers:
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            outputs.append(images)
    return outputs


def autoencoder_loss(layers, perceptual=0.05, noise=0.12):
    """A loss for an Autoencoder: how far rebuilt images are from images (N, 3, S, S). Lesson 17.

    Mean absolute differences: of the pixels, of the steps from each pixel to its neighbours, and, with the weight
    `perceptual`, of what the `layers` of a frozen classifier see (Johnson et al. 2016). `noise`, in deviations, lies on the
    latents, since those that will be drawn are never quite right.
    """

    def loss(autoencoder, images):
        latents = autoencoder.encode(images)
        rebuilt = autoencoder.decode(latents + SCALE * noise * torch.randn_like(latents))
        error = rebuilt - images
        pixels = error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        with torch.no_grad():
            targets = activations(layers, images)
        pairs = zip(activations(layers, rebuilt), targets)
        shares = [(seen - target).abs().mean() / target.mean() for seen, target in pairs]
        return pixels + perceptual * sum(shares)

    return loss


@torch.no_grad()
def encode(autoencoder, images, batch_size=100):
    """The latents of many images, (N, channels, S/4, S/4), on the CPU. Lesson 17.

    `images` (N, 3, S, S): a tensor on any device or an array. The autoencoder is put in eval mode.
    """
    autoencoder.eval()
    device = next(autoencoder.parameters()).device
    parts = torch.as_tensor(images).split(batch_size)
    return torch.cat([autoencoder.encode(part.to(device)).cpu() for part in parts])


@torch.no_grad()
def decode(autoencoder, latents, batch_size=100):
    """The images of many latents, (N, 3, S, S) in [0, 1], float32 on the CPU, also of a network in 16 bits. Lesson 17."""
    autoencoder.eval()
    weight = next(autoencoder.parameters())
    parts = latents.split(batch_size)
    return torch.cat([autoencoder.decode(part.to(weight)).clip(0, 1).float().cpu() for part in parts])


# Network --------------------------------------------------------------------------------


class ConditionedBlock(ConvBlock):
    """A ConvBlock whose channels are scaled and shifted by a condition (N, size): FiLM of lesson 15. Lesson 17."""

    def __init__(self, channel_in, channel_out, size):
        super().__init__(channel_in, channel_out)
        self.film = nn.Linear(size, 2 * channel_out)
        for layer in (self.film, self.conv2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x, condition):
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(nn.functional.silu(self.norm1(x)))
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.shortcut(x) + self.conv2(nn.functional.silu(hidden))


class Level(nn.Module):
    """One level of the U-Net, on the way down or up: a block, and where `attends`, attention. Lesson 17."""

    def __init__(self, channel_in, channel_out, text_width, size, attends):
        super().__init__()
        self.block = ConditionedBlock(channel_in, channel_out, size)
        self.attention = SpatialAttention(channel_out, text_width) if attends else None

    def forward(self, x, condition, words, mask):
        x = self.block(x, condition)
        return x if self.attention is None else self.attention(x, words, mask)


def embed_time(time):
    """Sines and cosines of times (N,) at 32 frequencies from 1 to 1000: (N, 64). Vaswani et al. 2017. Lesson 17."""
    frequencies = torch.linspace(0.0, math.log(1000), 32, device=time.device).exp()
    angles = time[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class AttentionUNet(nn.Module):
    """The U-Net of latent diffusion, which looks at the words of a prompt on all levels but the first. Lesson 17.

    forward: x (N, channels, S, S), time (N,) and what a TextEncoder gives for N prompts give (N, channels, S, S), at first
    zeros. S must be divisible by 2 ** (len(widths) - 1). Ho et al. 2020, Rombach et al. 2022, in small.
    """

    def __init__(self, widths=(64, 128, 192), channels=4, text_width=128, size=256):
        super().__init__()
        self.time1 = nn.Linear(64, size)
        self.time2 = nn.Linear(size, size)
        self.text = nn.Linear(text_width, size)
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(widths):
            self.down.append(Level(width, width, text_width, size, attends=i > 0))
            self.up.insert(0, Level(2 * width, width, text_width, size, attends=i > 0))
        for width, below in zip(widths, widths[1:]):
            self.shrink.append(nn.Conv2d(width, below, 3, stride=2, padding=1))
            self.grow.insert(0, nn.Conv2d(below, width, 3, padding=1))
        self.middle = ConditionedBlock(widths[-1], widths[-1], size)
        self.norm_out = nn.GroupNorm(8, widths[0])
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x, time, words, mask, pooled):
        embedding = self.time2(nn.functional.silu(self.time1(embed_time(time))))
        condition = nn.functional.silu(embedding + self.text(pooled))
        x, skips = self.conv_in(x), []
        for i, level in enumerate(self.down):
            x = level(x, condition, words, mask)
            skips.append(x)
            x = self.shrink[i](x) if i < len(self.shrink) else self.middle(x, condition)
        for i, level in enumerate(self.up):
            x = level(torch.cat((x, skips.pop()), dim=1), condition, words, mask)
            if i < len(self.grow):
                x = self.grow[i](nn.functional.interpolate(x, scale_factor=2, mode="nearest"))
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


# System ---------------------------------------------------------------------------------


def line_times(steps, last=0.995, first=0.001):
    """Times at which the share of noise on the line of lesson 13 falls evenly from `last` to `first`. Lesson 17.

    `first` is not 0, where solvers that divide by the noise rate would fail.
    """
    shares = torch.linspace(last, first, steps + 1, dtype=torch.float64)
    start, end = math.acos(0.95), math.acos(0.02)
    return ((torch.atan2(shares, 1 - shares) - start) / (end - start)).tolist()


class TextToImageConfig(DiffusionConfig):
    """A DiffusionConfig with a `vocabulary`, the words of a prompt, and `wordings`, see `reworded`. Lesson 17."""

    model_type = "course_text_to_image"
    _auto_class = None  # a saved model does not bring its program along

    def __init__(self, vocabulary=(), wordings=(), **options):
        shape = {"image_size": 16, "channels": 4, "widths": (64, 128, 192), "predicts": "flow"}
        super().__init__(**shape | {"times": line_times(20)} | options)
        self.vocabulary, self.wordings = list(vocabulary), list(wordings)


class TextToImage(Diffusion):
    """Text encoder, network and autoencoder in one: `generate` draws latents, `decode` makes images of them. Lesson 17.

    `network(noisy, time, tokens)` takes the tokens (N, L) of prompts, or (1, L) for all, or the three things that
    `encode_condition` has made of them; without any it draws anything. It predicts noise - latent, and looks at noisy
    latents as they lie on the straight line between the two.
    """

    config_class = TextToImageConfig
    _auto_class = None

    def __init__(self, config):
        super().__init__(config)
        del self.combine
        self.unet = AttentionUNet(config.widths, config.channels)
        self.encoder = TextEncoder(len(config.vocabulary) + 2)  # two start tokens, one for mirrored images
        self.autoencoder = Autoencoder(channels=config.channels)
        self.post_init()

    def encode_condition(self, tokens=None):
        if tokens is None:
            tokens = torch.zeros(1, 1 + LENGTH, dtype=torch.long, device=self.device)
            tokens[:, 0] = len(self.config.vocabulary) + 1
        return self.encoder(tokens)

    def network(self, noisy, time, tokens=None, mask=None, pooled=None):
        encoded = self.encode_condition(tokens) if mask is None else (tokens, mask, pooled)
        words, mask, pooled = (part.expand(len(noisy), *part.shape[1:]) for part in encoded)
        noise_rate, signal_rate = schedule(time)
        length = noise_rate + signal_rate
        return self.unet(noisy / length, (noise_rate / length).flatten(), words, mask, pooled)

    def decode(self, latents):
        return decode(self.autoencoder, latents)


def flow_loss(diffusion, batch):
    """The mean squared error of the velocity, for latents (N, 4, S, S) and the tokens (N, L) of their prompts. Lesson 17.

    The share of noise is a sigmoid of normal numbers of mean 0.3 and deviation 1, so most lie in the middle, where most is
    decided; they are spread evenly within the batch. Esser et al. 2024, section 3.1.
    """
    latents, tokens = batch
    latents = diffusion.norm(latents)
    noise = torch.randn_like(latents)
    places = torch.randperm(len(latents), device=latents.device) + torch.rand(1, device=latents.device)
    odds = (0.3 + torch.special.ndtri(places / len(latents))).exp()  # of noise against signal
    start, end = math.acos(0.95), math.acos(0.02)
    time = ((odds.atan() - start) / (end - start)).view(-1, 1, 1, 1)
    output = diffusion.network(mix(latents, noise, time), time, tokens)
    return (output - (noise - latents)).square().mean()
