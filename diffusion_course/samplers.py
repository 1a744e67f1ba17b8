"""Better steps from noise to picture, in the order of lesson 12.

Lesson 12  angle, velocity, heun, dpm_solver, time_of, karras, heun_along_sigma, ancestral

A step is what `sample` and `generate` of lesson 05 take: `step(predict, noisy, time, next_time)`
gives the next noisy picture and a guess at the clean one.

    generate(diffusion, n=5, steps=8, sampler=dpm_solver())
    sample(partial(predict, diffusion), noise, karras(8), heun)
"""

import math

import torch

from diffusion_utils import _check, _whole_number, mix, schedule

PURE_NOISE = 200.0  # the sigma at which nothing is seen of a picture, not even its mean colour


def angle(time):
    """Where on the quarter circle `time` lies: noise_rate is its sine, signal_rate its cosine. Lesson 12."""
    noise_rate, signal_rate = schedule(time)
    return torch.atan2(noise_rate, signal_rate)


def velocity(noise, image, time):
    """How a noisy picture changes as its angle grows: signal_rate · noise - noise_rate · image. Lesson 12."""
    noise_rate, signal_rate = schedule(time)
    return signal_rate * noise - noise_rate * image


def heun(predict, noisy, time, next_time):
    """A step along the arc with the mean of two velocities, here and there. Lesson 12.

    Two evaluations a step. Heun's method, for the angle in place of EDM's sigma (Karras et al.
    2022, algorithm 1).
    """
    noise, image = predict(noisy, time)
    there = mix(image, noise, next_time)
    next_noise, next_image = predict(there, next_time)
    turn = angle(next_time) - angle(time)
    carried = turn.cos() * velocity(next_noise, next_image, next_time) + turn.sin() * there
    mean = (velocity(noise, image, time) + carried) / 2
    return turn.cos() * noisy + turn.sin() * mean, next_image


def dpm_solver():
    """A step that remembers the last guess, and where guesses are heading: DPM-Solver++ 2M. Lesson 12.

    One evaluation a step. Each call of `dpm_solver()` gives a step with a memory of its own; a
    drawing that begins anew is noticed. Lu et al. 2022, algorithm 2.
    """
    last = {}

    def step(predict, noisy, time, next_time):
        _, image = predict(noisy, time)
        (noise_rate, signal_rate), (next_noise, next_signal) = schedule(time), schedule(next_time)
        now, then = (signal_rate / noise_rate).log(), (next_signal / next_noise).log()
        guess = image
        going_on = last and last["image"].shape == image.shape and torch.allclose(last["time"], time)
        if going_on:  # else a new drawing begins
            guess = image + (then - now) / (now - last["log_rate"]) / 2 * (image - last["image"])
        last.update(time=next_time, log_rate=now, image=image)
        shrink = next_noise / noise_rate
        return shrink * noisy + (next_signal - shrink * signal_rate) * guess, guess

    return step


def time_of(sigma):
    """The time at which noise_rate / signal_rate is `sigma`, a number. Lesson 12."""
    first, last = float(angle(0.0)), float(angle(1.0))
    return (math.atan(sigma) - first) / (last - first)


def karras(steps, rho=7.0, largest=None):
    """Times from 1 to 0 whose sigma = noise_rate / signal_rate, to the power 1 / rho, is even. Lesson 12.

    Larger `rho`: more steps where there is little noise; `math.inf` is even in log sigma, and so in the
    logarithm of the signal-to-noise ratio. `largest`: the first sigma, in place of that at time 1, which is
    50; PURE_NOISE lies behind it. Returns steps + 1 numbers. Karras et al. 2022, equation 5.
    Raises TypeError or ValueError for `steps` that are not a whole number of 1 or more, for `rho` of 0
    or less, and for a `largest` sigma that is not above the last one.
    """
    steps = _whole_number("steps", steps)
    _check(rho > 0, f"rho must be larger than 0, not {rho}")
    high, low = math.tan(angle(1.0)) if largest is None else largest, math.tan(angle(0.0))
    _check(high > low, f"largest must be a sigma above {low:.2f}, not {largest}")
    shares = [step / steps for step in range(steps + 1)]
    if rho == math.inf:
        return [time_of(high ** (1 - share) * low**share) for share in shares]
    ends = high ** (1 / rho), low ** (1 / rho)
    return [time_of((ends[0] + (ends[1] - ends[0]) * share) ** rho) for share in shares]


# Twenty steps from pure noise, for a network that was trained there: `generate(diffusion, **FROM_PURE_NOISE)`.
FROM_PURE_NOISE = dict(steps=karras(20, math.inf, PURE_NOISE), sampler=dpm_solver())


def heun_along_sigma(predict, noisy, time, next_time):
    """A step along sigma = noise_rate / signal_rate, with the mean of two noises. Lesson 12.

    Two evaluations a step; with few steps from a large sigma it fails. Karras et al. 2022, algorithm 1
    without its dice.
    """
    noise, image = predict(noisy, time)
    next_noise, next_image = predict(mix(image, noise, next_time), next_time)
    (noise_rate, signal_rate), (next_noise_rate, next_signal) = schedule(time), schedule(next_time)
    shrink = next_signal / signal_rate
    return shrink * noisy + (next_noise_rate - shrink * noise_rate) * (noise + next_noise) / 2, next_image


def ancestral(eta=1.0, seed=None):
    """A step that also adds fresh noise: with `eta` = 1 that of DDPM, with 0 DDIM. Lesson 12.

    The same `seed` gives the same noise; None takes PyTorch's global generator. One
    evaluation a step. Song et al. 2020, equations 12 and 16. Raises ValueError unless 0 ≤ eta ≤ 1.
    """
    _check(0 <= eta <= 1, f"eta must lie in [0, 1], not {eta}")
    generator = None if seed is None else torch.Generator().manual_seed(seed)

    def step(predict, noisy, time, next_time):
        noise, image = predict(noisy, time)
        (noise_rate, signal_rate), (next_noise, next_signal) = schedule(time), schedule(next_time)
        fresh = eta * next_noise / noise_rate * (1 - (signal_rate / next_signal) ** 2).sqrt()
        new = torch.randn(noisy.shape, generator=generator, dtype=noisy.dtype).to(noisy.device)
        return next_signal * image + (next_noise**2 - fresh**2).sqrt() * noise + fresh * new, image

    return step
