"""What a network may be asked for, in the order of lesson 13.

Lesson 13  targets, line_time, prediction_loss

    diffusion = Diffusion(DiffusionConfig(**CPU_SHAPE, predicts="flow"))
    for step in Training(diffusion, loader, loss=prediction_loss, **CPU_RECIPE):
        ...

Noise and images are normalised tensors (N, C, S, S), times (N, 1, 1, 1) in [0, 1], as in
lessons 02 and 05; the rates are those of `schedule`.
"""

import torch

from diffusion_course.samplers import time_of, velocity
from diffusion_utils import mix, schedule


def targets(noise, image, time):
    """What a network can be asked for: {name: the right output, (N, C, S, S)}. Lesson 13.

    "noise" (Ho et al. 2020), "image", "v" (Salimans & Ho 2022), "flow" (Lipman et al. 2022, Liu et al. 2022, Albergo &
    Vanden-Eijnden 2022).
    The names are those that `predicts` of `DiffusionConfig` may have.
    """
    return {"noise": noise, "image": image, "v": velocity(noise, image, time), "flow": noise - image}


def line_time(time):
    """Where on the straight line from image to noise `time` lies: the share of noise, in [0, 1]. Lesson 13."""
    noise_rate, signal_rate = schedule(time)
    return noise_rate / (noise_rate + signal_rate)


def prediction_loss(diffusion, batch, power=2, late=1.0, largest_sigma=None):
    """The mean squared error of the network's own output, whatever it predicts; power 1: absolute. Lesson 13.

    `batch`: images (N, C, S, S), or a list of them and of what else the network takes, its condition. With `late`
    above 1, much noise comes more often: there it is decided what is large, and the larger an image, the more
    noise it takes to hide it (Hoogeboom et al. 2023). `largest_sigma`: where times begin, instead of at time 1;
    behind PURE_NOISE of lesson 12 nothing is seen any more (Lin et al. 2023).
    """
    images, *condition = [batch] if isinstance(batch, torch.Tensor) else batch
    if images.shape[2:] != (diffusion.config.image_size, diffusion.config.image_size):
        raise ValueError(f"images: {tuple(images.shape)}, but image_size={diffusion.config.image_size}")
    image = diffusion.norm(images)
    noise, chance = torch.randn_like(image), torch.rand(len(image), 1, 1, 1, device=image.device)
    last = 1.0 if largest_sigma is None else time_of(largest_sigma)
    time = last * (1 - chance**late)
    target = targets(noise, image, time)[diffusion.config.predicts]
    output = diffusion.network(mix(image, noise, time), time, *condition)
    return (output - target).abs().pow(power).mean()
