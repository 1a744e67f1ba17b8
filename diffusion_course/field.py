"""Why guessing noise draws from a distribution, shown on points in the plane. Lesson 06, in its order.

A point is an image with two channels and one pixel: (N, 2, 1, 1). So all that draws faces draws points, and
all that is exact for points is exact for faces (N, 3, S, S). Noisy points are normalised, as in lesson 05;
`time` is (N, 1, 1, 1).
"""

import math

import torch
from torch import nn

from diffusion_utils import Diffusion, DiffusionConfig, schedule

# The time at which only 3 % of noise is left: a lonely point has no neighbours that tell what it was.
LAST = -0.2331721


def toy_points(name="spiral", n=1000, seed=0):
    """`n` points (n, 2, 1, 1) in [0, 1]: a "spiral", a "smiley", or five "clouds" of unequal weight. Lesson 06."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.rand(n, generator=generator)
    angle = 2 * math.pi * turn
    circle = torch.stack((angle.cos(), angle.sin()), dim=1)
    if name == "spiral":
        turns = 3 * math.pi * turn.sqrt()
        points = torch.stack((turns.cos(), turns.sin()), dim=1) * turn.sqrt()[:, None]
    elif name == "clouds":
        cloud = torch.multinomial(torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3]), n, True, generator=generator)
        middle = 2 * math.pi * cloud / 5
        points = 0.75 * torch.stack((middle.sin(), middle.cos()), dim=1)
    elif name == "smiley":
        mouth = 0.55 * torch.stack(((math.pi * turn).cos(), -(math.pi * turn).sin()), dim=1)
        eye = torch.tensor([0.35, 0.35]) * torch.stack((turn.sub(0.5).sign(), torch.ones(n)), dim=1)
        part = torch.multinomial(torch.tensor([0.6, 0.25, 0.15]), n, True, generator=generator)
        points = torch.stack((0.9 * circle, mouth, eye))[part, torch.arange(n)]
    else:
        raise ValueError(f"name: 'spiral', 'smiley' or 'clouds', not {name!r}")
    points = points + 0.04 * torch.randn(n, 2, generator=generator)
    return (0.5 + 0.45 * points).clip(0, 1).view(n, 2, 1, 1)


def weights_behind(data, noisy, time):
    """How probable it is that each of `data` (M, …) lies behind each of `noisy` (N, …): (N, M). Lesson 06.

    Bayes' rule for Gaussian noise, where all of `data` are equally probable; each row adds up to 1.
    """
    noise_rate, signal_rate = schedule(time.flatten(1))
    distances = torch.cdist(noisy.flatten(1), data.flatten(1) * signal_rate[0])  # of one time for all
    return (-distances.square() / (2 * noise_rate.square())).softmax(dim=1)


def perfect_predict(data):
    """The `predict` of a perfect network that was trained on `data` (M, …) and nothing else. Lesson 06.

    Its image is the mean of all that may lie behind the noisy one, E[image | noisy], which has the smallest squared
    error; its noise follows from that.
    """

    def predict(noisy, time):
        noise_rate, signal_rate = schedule(time)
        image = (weights_behind(data, noisy, time) @ data.flatten(1)).view_as(noisy)
        return (noisy - signal_rate * image) / noise_rate, image

    return predict


def log_density(data, noisy, time):
    """log p_t at `noisy` (N, …): p_t is `data` (M, …), blurred by the noise of `time`; gives (N,). Lesson 06."""
    noise_rate, signal_rate = schedule(time.flatten(1))
    distances = (noisy.flatten(1)[:, None] - signal_rate[:, :, None] * data.flatten(1)).square().sum(dim=2)
    normal = noisy[0].numel() * (noise_rate * math.sqrt(2 * math.pi)).log()
    return torch.logsumexp(-distances / (2 * noise_rate.square()) - normal, dim=1) - math.log(len(data))


class PointDiffusion(Diffusion):
    """The diffusion model of lesson 04 with a small network for points: four layers of 64 numbers. Lesson 06.

    It sees the point, its sines and cosines at three frequencies, and the logarithm of sigma.
    """

    def __init__(self, config=None, predicts="v", width=64):
        settings = dict(channels=2, predicts=predicts, width=width, steps=40, times=[1.0, LAST])
        super().__init__(config or DiffusionConfig(1, [2], **settings))
        width = self.config.width
        self.unet = nn.Sequential(  # on one pixel, a convolution is a layer of a plain network
            nn.Conv2d(15, width, kernel_size=1),
            nn.SiLU(),
            nn.Conv2d(width, width, kernel_size=1),
            nn.SiLU(),
            nn.Conv2d(width, width, kernel_size=1),
            nn.SiLU(),
            nn.Conv2d(width, 2, kernel_size=1),
        )

    def network(self, noisy, time):
        noise_rate, signal_rate = schedule(time)
        waves = [torch.cat(((k * noisy).sin(), (k * noisy).cos()), dim=1) for k in (1, 2, 4)]
        return self.unet(torch.cat((noisy, *waves, (noise_rate / signal_rate).log() / 4), dim=1))


def langevin(predict, noisy, time, steps=100, size=0.1, generator=None):
    """Walk `steps` times up the score and a little at random; ends as draws from p_t. Lesson 06.

    Song & Ermon 2019, algorithm 1, for one noise level.
    """
    noise_rate, _ = schedule(time)
    step = size * noise_rate.square()
    for _ in range(steps):
        score = -predict(noisy, time)[0] / noise_rate
        noisy = noisy + step / 2 * score + step.sqrt() * torch.randn(noisy.shape, generator=generator)
    return noisy
