"""Better steps from noise to image, in the order of lesson 12.

Lesson 12  Ancestral, angle, velocity, heun, log_ratio, DPMSolver, time_of, karras_times

A step is what `sample` and `generate` of lesson 05 take: `step(predict, noisy, time, next_time)` gives the next
noisy image and a guess at the clean one. One that remembers something is an object; each drawing begins with a
copy of it.

    generate(diffusion, n=5, steps=7, sampler=DPMSolver())  # eight evaluations
    list(sample(partial(predict, diffusion), noise, karras_times(8), heun))
"""

import math

import torch

from diffusion_utils import mix, schedule

PURE_NOISE = 200.0  # the sigma at which nothing is seen of an image, not even its mean colour


class Ancestral:
    """A step that also adds fresh noise: with `eta` = 1 that of DDPM, with 0 DDIM. Lesson 12.

    The same `seed` gives the same noise in each drawing; None takes PyTorch's global generator. One
    evaluation a step. Song et al. 2020, equations 12 and 16. Raises ValueError unless 0 ≤ eta ≤ 1.
    """

    def __init__(self, eta=1.0, seed=None):
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], not {eta}")
        self.eta = eta
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, predict, noisy, time, next_time):
        noise, image = predict(noisy, time)
        noise_rate, signal_rate = schedule(time)
        next_noise_rate, next_signal_rate = schedule(next_time)
        most = next_noise_rate / noise_rate * (1 - (signal_rate / next_signal_rate) ** 2).sqrt()
        fresh_rate = self.eta * most
        fresh = torch.randn(noisy.shape, generator=self.generator, dtype=noisy.dtype).to(noisy.device)
        kept_rate = (next_noise_rate**2 - fresh_rate**2).sqrt()
        return next_signal_rate * image + kept_rate * noise + fresh_rate * fresh, image


def angle(time):
    """Where on the quarter circle `time` lies: noise_rate is its sine, signal_rate its cosine. Lesson 12."""
    noise_rate, signal_rate = schedule(time)
    return torch.atan2(noise_rate, signal_rate)


def velocity(noise, image, time):
    """How a noisy image changes as its angle grows: signal_rate · noise - noise_rate · image. Lesson 12."""
    noise_rate, signal_rate = schedule(time)
    return signal_rate * noise - noise_rate * image


def heun(predict, noisy, time, next_time):
    """A step along the arc with the mean of two velocities, here and there. Lesson 12.

    Two evaluations a step. Heun's method, for the angle instead of EDM's sigma (Karras et al.
    2022, algorithm 1).
    """
    noise, image = predict(noisy, time)
    there = mix(image, noise, next_time)
    next_noise, next_image = predict(there, next_time)
    turn = angle(next_time) - angle(time)
    carried = turn.cos() * velocity(next_noise, next_image, next_time) + turn.sin() * there
    mean = (velocity(noise, image, time) + carried) / 2
    return turn.cos() * noisy + turn.sin() * mean, next_image


def log_ratio(time):
    """The logarithm of signal_rate / noise_rate, λ (lambda) in papers: half that of the signal-to-noise ratio. Lesson 12."""
    noise_rate, signal_rate = schedule(time)
    return (signal_rate / noise_rate).log()


class DPMSolver:
    """A step that remembers the last guess, and where guesses are heading: DPM-Solver++ 2M. Lesson 12.

    One evaluation a step, at its end, and one more before the first: so the image belongs to the noisy image that
    comes with it, and both are of order two. Lu et al. 2022, algorithm 2.
    """

    def __init__(self):
        self.guesses = []  # the last two: log_ratio, and the image that was predicted there

    def __call__(self, predict, noisy, time, next_time):
        if not self.guesses:
            self.guesses = [(log_ratio(time), predict(noisy, time)[1])]
        here, image = self.guesses[-1]
        there, middle = log_ratio(next_time), image
        if len(self.guesses) == 2:
            before, image_before = self.guesses[0]
            middle = image + (there - here) / (here - before) / 2 * (image - image_before)
        noise_rate, next_noise_rate = schedule(time)[0], schedule(next_time)[0]
        noisy = next_noise_rate * (noisy / noise_rate + (there.exp() - here.exp()) * middle)
        _, next_image = predict(noisy, next_time)
        self.guesses = [(here, image), (there, next_image)]
        return noisy, next_image


def time_of(sigma):
    """The time at which noise_rate / signal_rate is `sigma`, a number. Lesson 12."""
    first, last = float(angle(0.0)), float(angle(1.0))
    return (math.atan(sigma) - first) / (last - first)


def karras_times(steps, rho=7.0, largest=None):
    """Times from 1 to 0 whose sigma = noise_rate / signal_rate, to the power 1 / rho, is even. Lesson 12.

    Larger `rho`: more steps where there is little noise; `math.inf` is even in log sigma, and so in the
    logarithm of the signal-to-noise ratio. `largest`: the first sigma, instead of that at time 1, which is
    50; PURE_NOISE lies behind it. Returns steps + 1 numbers. Karras et al. 2022, equation 5.
    Raises ValueError for a `largest` that is infinite or not above the last sigma, which is 0.33.
    """
    high, low = math.tan(angle(1.0)) if largest is None else largest, math.tan(angle(0.0))
    if not low < high < math.inf:
        raise ValueError(f"largest must be a finite sigma above {low:.2f}, not {largest}")
    shares = [step / steps for step in range(steps + 1)]
    if rho == math.inf:
        return [time_of(high ** (1 - share) * low**share) for share in shares]
    first, last = high ** (1 / rho), low ** (1 / rho)
    return [time_of((first + (last - first) * share) ** rho) for share in shares]
