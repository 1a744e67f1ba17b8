"""Draw latents instead of pixels: latent diffusion, in the order of lesson 17.

Lesson 17  Autoencoder, autoencoder_loss, load_autoencoder, encode, decode

A latent is an image, too: 16×16 cells, four numbers in [0, 1] in each. So whatever draws images
draws latents, with `channels=4`; only a decoder must stand behind it.

    autoencoder, diffusion = load_autoencoder(), TextDiffusion.from_pretrained(LATENT_MODEL)
    decode(autoencoder, text_to_image(diffusion, "a smiling face with blue hair"))

Images are float32 tensors (N, 3, S, S) with values in [0, 1], as everywhere in the course, here
mostly with S = 64; latents are (N, 4, S/4, S/4).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from diffusion_utils import ROOT, Residual, pick_accelerator

FACE_AUTOENCODER = ROOT / "pretrained" / "face_codes"  # an Autoencoder
LATENT_MODEL = (
    ROOT / "pretrained" / "toy_faces_words_codes"
)  # a TextDiffusion of lesson 15 that draws latents


class Autoencoder(nn.Module):
    """Two networks: one turns images into latents, the other latents into images. Lesson 17.

    `encode`: (N, 3, S, S) gives (N, channels, S/4, S/4) in [0, 1], S a multiple of 4; `decode` goes back. Both
    first fold blocks of 4×4 pixels into 48 channels, or unfold them last. Rombach et al. 2022, in small.
    """

    def __init__(self, width=64, channels=4):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            Residual(48, width),
            Residual(width, width),
            nn.Conv2d(width, channels, kernel_size=1),
            nn.BatchNorm2d(channels, affine=False),
            nn.Sigmoid(),
        )
        self.decoder = nn.Sequential(
            Residual(channels, width),
            Residual(width, width),
            Residual(width, width),
            nn.Conv2d(width, 48, kernel_size=3, padding=1),
            nn.PixelShuffle(4),
        )

    def encode(self, images):
        return self.encoder(images)

    def decode(self, latents):
        return self.decoder(latents)


def autoencoder_loss(autoencoder, images, noise=0.03):
    """How far rebuilt images are from `images` (N, 3, S, S), in their colours and in their edges. Lesson 17.

    Mean absolute differences: of the pixels, and of the steps from each pixel to its neighbours. A
    little `noise` lies on the latents, since those that will be drawn are never quite right.
    """
    latents = autoencoder.encode(images)
    error = autoencoder.decode(latents + noise * torch.randn_like(latents)) - images
    return error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()


def load_autoencoder(folder=FACE_AUTOENCODER):
    """The Autoencoder whose weights lie in `folder`, in eval mode, on the GPU if there is one. Lesson 17.

    Raises FileNotFoundError without `model.safetensors` there, RuntimeError when weights are
    missing or of another shape.
    """
    autoencoder = Autoencoder()
    autoencoder.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return autoencoder.to(pick_accelerator().device).eval().requires_grad_(False)


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
    """The images of many latents, (N, 3, S, S) in [0, 1], on the CPU. Lesson 17."""
    autoencoder.eval()
    device = next(autoencoder.parameters()).device
    parts = latents.split(batch_size)
    return torch.cat([autoencoder.decode(part.to(device)).clip(0, 1).cpu() for part in parts])
