"""Draw codes in place of pixels: latent diffusion, in the order of lesson 17.

Lesson 17  coder:  Coder, coder_loss, load_coder
           codes:  codes_of, pictures_of, read_off

A code is a picture, too: 16×16 cells, four numbers in [0, 1] in each. So whatever draws pictures
draws codes, with `channels=4`; only a decoder must stand behind it.

    coder = load_coder()
    pictures_of(coder, ask(Conditional.from_pretrained(CODES_MODEL), "a smiling face with blue hair"))

Pictures are float32 tensors (N, 3, S, S) with values in [0, 1], as everywhere in the course, here
mostly with S = 64; codes are (N, 4, S/4, S/4).
"""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from diffusion_utils import ROOT, Residual, _device
from diffusion_course.conditioning import ANSWERS, NAMES, VOCABULARY, Bag, caption, tokens

FACE_CODES = ROOT / "pretrained" / "face_codes"  # a Coder
CODES_MODEL = ROOT / "pretrained" / "toy_faces_words_codes"  # a Conditional of lesson 15 that draws codes


class Coder(nn.Module):
    """Two networks: one turns pictures into codes, the other codes into pictures. Lesson 17.

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

    def decode(self, codes):
        return self.decoder(codes)


def coder_loss(coder, images, noise=0.03):
    """How far rebuilt pictures are from `images` (N, 3, S, S), in their colours and in their edges. Lesson 17.

    Mean absolute differences: of the pixels, and of the steps from each pixel to its neighbours. A
    little `noise` lies on the codes, since those that will be drawn are never quite right.
    """
    codes = coder.encode(images)
    wrong = coder.decode(codes + noise * torch.randn_like(codes)) - images
    return wrong.abs().mean() + wrong.diff(dim=2).abs().mean() + wrong.diff(dim=3).abs().mean()


def load_coder(folder=FACE_CODES):
    """The Coder whose weights lie in `folder`, in eval mode, on the GPU if there is one. Lesson 17.

    Raises FileNotFoundError without `model.safetensors` there, RuntimeError when weights are
    missing or of another shape.
    """
    coder = Coder()
    coder.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return coder.to(_device()).eval().requires_grad_(False)


@torch.no_grad()
def codes_of(coder, images, batch_size=100):
    """The codes of many pictures, (N, channels, S/4, S/4), on the CPU. Lesson 17.

    `images` (N, 3, S, S): a tensor on any device or an array. The coder is put in eval mode.
    """
    coder.eval()
    device = next(coder.parameters()).device
    return torch.cat(
        [coder.encode(part.to(device)).cpu() for part in torch.as_tensor(images).split(batch_size)]
    )


@torch.no_grad()
def pictures_of(coder, codes, batch_size=100):
    """The pictures of many codes, (N, 3, S, S) in [0, 1], on the CPU. Lesson 17."""
    coder.eval()
    device = next(coder.parameters()).device
    return torch.cat([coder.decode(part.to(device)).clip(0, 1).cpu() for part in codes.split(batch_size)])


@torch.no_grad()
def read_off(sentence, count=20):
    """A `Bag` of attributes that says what a `sentence` encoder makes of each of ANSWERS alone. Lesson 17.

    Of each answer it takes the mean over `count` captions that say nothing else. The bag is frozen.
    """
    bag, dice = Bag(len(ANSWERS)).requires_grad_(False), random.Random(0)
    for number, (name, _) in enumerate(ANSWERS, 1):
        alone = torch.tensor([number * (name == other) for other in NAMES])
        words = tokens([caption(alone, dice) for _ in range(count)], VOCABULARY)
        bag.embedding.weight[number] = (
            sentence(words.to(next(sentence.parameters()).device)).mean(dim=0).cpu()
        )
    return bag
