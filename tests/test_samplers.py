"""Lesson 12: steps other than DDIM, against diffusers' schedulers of the same name and against exact answers."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from helpers import tiny

from diffusion_course.samplers import (
    PURE_NOISE,
    Ancestral,
    DPMSolver,
    heun,
    karras_times,
    time_of,
)
from diffusion_utils import (
    LARGE_MODEL,
    DiffusionConfig,
    ddim,
    denormalize,
    generate,
    predict,
    sample,
    schedule,
    starting_noise,
)

STEPS = 7
TIMES = [(STEPS - step) / STEPS for step in range(STEPS + 1)]


MEAN, DEVIATION = 0.3, 0.5


def gaussian(noisy, time):
    """The best guess where images are a Gaussian around MEAN."""
    noise_rate, signal_rate = schedule(time)
    share = DEVIATION**2 * signal_rate / ((DEVIATION * signal_rate) ** 2 + noise_rate**2)
    image = MEAN + share * (noisy - signal_rate * MEAN)
    return (noisy - signal_rate * image) / noise_rate, image


def closed(noisy, time):
    """A guess that is no straight line."""
    noise_rate, signal_rate = schedule(time)
    image = gaussian(noisy, time)[1] + 0.1 * (3 * noisy).sin()
    return (noisy - signal_rate * image) / noise_rate, image


def start(n=2):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ours(step, times=TIMES):
    return [noisy for noisy, _ in sample(closed, start(), times, step)]


def column(time, n=2):
    return torch.full((n, 1, 1, 1), float(time))


# Against diffusers ----------------------------------------------------------------------


def sigmas(times=TIMES):
    noise_rate, signal_rate = schedule(torch.tensor(times, dtype=torch.float64))
    return noise_rate / signal_rate


def test_dpm_solver_is_that_of_diffusers():
    options = dict(solver_type="midpoint", lower_order_final=False, final_sigmas_type="sigma_min")
    scheduler = DPMSolverMultistepScheduler(solver_order=2, **options)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas, scheduler.timesteps = sigmas(), torch.arange(STEPS)
    noisy = start()
    for t, own in zip(range(STEPS), ours(DPMSolver()), strict=True):
        noisy = scheduler.step(closed(noisy, column(TIMES[t]))[0], scheduler.timesteps[t], noisy).prev_sample
        assert torch.allclose(noisy, own, atol=1e-5)


def test_ddpm_is_that_of_diffusers():
    scheduler = DDPMScheduler(num_train_timesteps=STEPS, clip_sample=False, variance_type="fixed_small")
    scheduler.alphas_cumprod = schedule(torch.tensor(TIMES[::-1][1:], dtype=torch.float64))[1] ** 2
    scheduler.set_timesteps(STEPS)
    noisy, generator = start(), torch.Generator().manual_seed(5)
    for t, own in zip(range(STEPS - 1), ours(Ancestral(1.0, seed=5))):  # their last step ends elsewhere
        noise, _ = closed(noisy, column(TIMES[t]))
        noisy = scheduler.step(noise, STEPS - 1 - t, noisy, generator=generator).prev_sample
        assert torch.allclose(noisy, own, atol=1e-5)


# What they are --------------------------------------------------------------------------


def test_without_dice_it_is_ddim():
    assert all(torch.allclose(own, other, atol=1e-6) for own, other in zip(ours(Ancestral(0.0)), ours(ddim)))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_dice_keep_the_variance(eta):
    """Where image and noise are guessed right, what comes is mixed with the rates of the next time."""
    image, noise = torch.zeros(20000, 1, 1, 1), torch.randn(20000, 1, 1, 1)
    step = Ancestral(eta, seed=0)
    time, next_time = column(0.8, 20000), column(0.3, 20000)
    noisy, _ = step(lambda noisy, time: (noise, image), noise, time, next_time)
    assert noisy.var().sqrt() == pytest.approx(float(schedule(0.3)[0]), rel=0.02)


# The order, on a Gaussian in closed form --------------------------------------------------


def end_of_path(noisy):
    """Where the probability-flow ODE leads from `noisy` at time 1, and the best guess there: a map of Gaussians."""
    (noise_rate, signal_rate), (last_noise_rate, last_signal_rate) = schedule(column(1)), schedule(column(0))
    deviation = ((DEVIATION * signal_rate) ** 2 + noise_rate**2).sqrt()
    last_deviation = ((DEVIATION * last_signal_rate) ** 2 + last_noise_rate**2).sqrt()
    last = last_signal_rate * MEAN + last_deviation / deviation * (noisy - signal_rate * MEAN)
    return last, gaussian(last, column(0))[1]


def errors(step, times):
    """How far the noisy image and the image that comes back are from the end of the path."""
    *_, drawn = sample(gaussian, start(), times, step)
    return [float((one - right).abs().mean()) for one, right in zip(drawn, end_of_path(start()))]


@pytest.mark.parametrize("rho", [0, math.inf], ids=["even in time", "even in log sigma"])
@pytest.mark.parametrize("step, few, many, order", [
    (ddim, 80, 160, 1.0), (heun, 40, 80, 2.0), (DPMSolver(), 79, 159, 2.0),
])  # fmt: skip
def test_order(step, few, many, order, rho):
    """80 and 160 evaluations: half of the error, or a quarter, in the noisy image and in the one that is returned."""

    def times(count):
        return karras_times(count, rho) if rho else [1 - step / count for step in range(count + 1)]

    for one, other in zip(errors(step, times(few)), errors(step, times(many))):
        assert math.log2(one / other) == pytest.approx(order, abs=0.2)


# Drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [DPMSolver(), Ancestral(1.0, seed=3)])
def test_one_step_serves_many_drawings(step):
    """What it remembers within a drawing is not seen by the next one, nor by those in other threads."""
    first = ours(step)
    assert all(torch.equal(one, two) for one, two in zip(first, ours(step)))
    assert not torch.allclose(first[-1], ours(ddim)[-1], atol=1e-4)
    *_, (more, _) = sample(closed, start(5), TIMES, step)  # of another size
    assert more.shape == (5, 3, 4, 4)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(drawn[-1], first[-1]) for drawn in pool.map(ours, [step] * 20))


# Times ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [1, 2, 7.0, math.inf])
def test_karras_times(rho):
    times = karras_times(9, rho)
    assert len(times) == 10 and times[0] == pytest.approx(1, abs=1e-6) and abs(times[-1]) < 1e-6
    values = sigmas(times)
    even = values.log() if rho == math.inf else values ** (1 / rho)
    assert torch.allclose(even.diff(), even.diff().mean().expand(9), rtol=1e-3)
    assert time_of(float(sigmas([0.37])[0])) == pytest.approx(0.37, abs=1e-6)


def test_karras_from_pure_noise():
    times = karras_times(9, math.inf, PURE_NOISE)
    assert 1 < times[0] < 1.02 and abs(times[-1]) < 1e-6
    assert float(sigmas(times)[0]) == pytest.approx(PURE_NOISE, rel=1e-2)
    config = DiffusionConfig.from_pretrained(LARGE_MODEL)
    assert config.times == karras_times(20, math.inf, PURE_NOISE) and config.steps == 20


# With a model, and bad input --------------------------------------------------------------


def test_generate_takes_a_sampler():
    """And asks the network once at each of the times, the last of them 0."""
    diffusion, evaluated = tiny().eval(), []
    noise = starting_noise(diffusion, 2, seed=1)

    def spy(noisy, time):
        evaluated.append(float(time[0]))
        return predict(diffusion, noisy, time)

    drawn = generate(diffusion, noise=noise, steps=STEPS, sampler=DPMSolver())
    with torch.no_grad():
        *_, (_, image) = sample(spy, noise, TIMES, DPMSolver())
    assert torch.equal(drawn, denormalize(diffusion, image)) and evaluated == pytest.approx(TIMES, abs=1e-6)
    assert not torch.allclose(drawn, generate(diffusion, noise=noise, steps=STEPS), atol=1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda: karras_times(5, largest=0.1), "largest must be a finite sigma above 0.33, not 0.1"),
    (lambda: karras_times(5, largest=math.inf), "largest must be a finite sigma above 0.33, not inf"),
    (lambda: karras_times(5, largest=math.nan), "largest must be a finite sigma above 0.33, not nan"),
    (lambda: Ancestral(1.5), r"eta must lie in \[0, 1\], not 1.5"),
])  # fmt: skip
def test_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
