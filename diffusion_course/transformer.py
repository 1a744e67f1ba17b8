"""A transformer in the U-Net's place, in the order of lesson 18.

Lesson 18  patchify, unpatchify, DiTBlock, DiT, DiffusionTransformer

    model = DiffusionTransformer.from_pretrained(DIT_MODEL)
    text_to_image(model, "a smiling face with round glasses and blue hair", n=5)
"""

import math

import torch
from torch import nn

from diffusion_course.attention import Attention
from diffusion_course.latents import TextToImage, embed_time
from diffusion_utils import ROOT

DIT_MODEL = ROOT / "pretrained" / "dit_64"  # a DiffusionTransformer


def patchify(images, patch):
    """Cut images (N, C, S, S) into patches, row by row: (N, (S/patch)², C·patch²). Lesson 18."""
    return nn.functional.pixel_unshuffle(images, patch).flatten(2).transpose(1, 2)


def unpatchify(patches, patch):
    """Put patches (N, L², C·patch²) together again: (N, C, L·patch, L·patch). Lesson 18."""
    side = math.isqrt(patches.shape[1])
    return nn.functional.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (side, side)), patch)


class DiTBlock(nn.Module):
    """A TransformerBlock whose two halves are scaled, shifted and gated by a condition: adaLN-Zero. Lesson 18.

    forward: x (N, L, width), condition (N, size), mask (N, L) give (N, L, width); at first, x itself, since the gates are
    closed. Peebles & Xie 2023, section 3.2.
    """

    def __init__(self, width, size, heads=6):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = Attention(width, heads=heads)
        self.attention.out.reset_parameters()  # zeros behind a closed gate would never learn
        self.hidden1 = nn.Linear(width, 4 * width)
        self.hidden2 = nn.Linear(4 * width, width)
        self.modulation = nn.Linear(size, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x, condition, mask=None):
        parts = self.modulation(condition)[:, None].chunk(6, dim=2)
        scale1, shift1, gate1, scale2, shift2, gate2 = parts
        x = x + gate1 * self.attention(self.norm(x) * (1 + scale1) + shift1, mask=mask)
        hidden = self.hidden1(self.norm(x) * (1 + scale2) + shift2)
        return x + gate2 * self.hidden2(nn.functional.gelu(hidden))


class DiT(nn.Module):
    """A transformer over the patches of an image and the words of a prompt, in one row. Lesson 18.

    forward: as AttentionUNet of lesson 17. Patches and words look at each other in every block, as in Stable
    Diffusion 3 (Esser et al. 2024), though with the same weights for both; time and prompt also come in by adaLN-Zero.
    """

    def __init__(
        self, image_size=16, channels=4, patch=2, width=192, depth=8, heads=6, text_width=128, size=256
    ):
        super().__init__()
        self.patch = patch
        self.time1 = nn.Linear(64, size)
        self.time2 = nn.Linear(size, size)
        self.text = nn.Linear(text_width, size)
        self.words_in = nn.Linear(text_width, width)
        self.patches_in = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(0.1 * torch.randn((image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(DiTBlock(width, size, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.patches_out = nn.Linear(width, channels * patch**2)
        nn.init.zeros_(self.patches_out.weight)
        nn.init.zeros_(self.patches_out.bias)

    def forward(self, x, time, words, mask, pooled):
        embedding = self.time2(nn.functional.silu(self.time1(embed_time(time))))
        condition = nn.functional.silu(embedding + self.text(pooled))
        patches = self.patches_in(patchify(x, self.patch)) + self.positions
        mask = torch.cat((mask.new_ones(patches.shape[:2]), mask), dim=1)
        row = torch.cat((patches, self.words_in(words)), dim=1)
        for block in self.blocks:
            row = block(row, condition, mask)
        return unpatchify(self.patches_out(self.norm(row[:, : patches.shape[1]])), self.patch)


class DiffusionTransformer(TextToImage):
    """A TextToImage whose network is a DiT. Lesson 18."""

    def __init__(self, config):
        super().__init__(config)
        self.unet = DiT(config.image_size, config.channels)
        self.post_init()
