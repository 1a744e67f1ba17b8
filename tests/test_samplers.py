"""Lesson 12: steps other than DDIM, against diffusers' schedulers of the same name and against exact answers."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from helpers import tiny

from diffusion_course.samplers import (
    PURE_NOISE,
    Ancestral,
    DPMSolver,
    angle,
    heun,
    karras_times,
    log_ratio,
    time_of,
    velocity,
)
from diffusion_utils import (
    LARGE_MODEL,
    DiffusionConfig,
    ddim,
    denormalize,
    generate,
    mix,
    predict,
    sample,
    schedule,
    starting_noise,
)

STEPS = 7
TIMES = [(STEPS - step) / STEPS for step in range(STEPS + 1)]


def closed(noisy, time):
    """A guess in closed form, as precise as the numbers that come in: colours around 0.3, with a spread of 0.5."""
    noise_rate, signal_rate = schedule(time)
    variance = (0.5 * signal_rate) ** 2 + noise_rate**2
    image = 0.3 + 0.25 * signal_rate / variance * (noisy - 0.3 * signal_rate) + 0.1 * (3 * noisy).sin()
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
    scheduler = DPMSolverMultistepScheduler(
        solver_order=2, solver_type="midpoint", lower_order_final=False, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas, scheduler.timesteps = sigmas(), torch.arange(STEPS)
    noisy = start()
    for t, own in zip(range(STEPS), ours(DPMSolver()), strict=True):
        noisy = scheduler.step(closed(noisy, column(TIMES[t]))[0], scheduler.timesteps[t], noisy).prev_sample
        assert torch.allclose(noisy, own, atol=1e-5)


def test_ddpm_is_that_of_diffusers():
    scheduler = DDPMScheduler(num_train_timesteps=STEPS, clip_sample=False, variance_type="fixed_small")
    rates = schedule(torch.tensor(TIMES[::-1][1:], dtype=torch.float64))[1] ** 2
    scheduler.alphas_cumprod = rates
    scheduler.set_timesteps(STEPS)
    noisy, generator = start(), torch.Generator().manual_seed(5)
    for t, own in zip(range(STEPS - 1), ours(Ancestral(1.0, seed=5))):  # their last step ends elsewhere
        noise, _ = closed(noisy, column(TIMES[t]))
        noisy = scheduler.step(noise, STEPS - 1 - t, noisy, generator=generator).prev_sample
        assert torch.allclose(noisy, own, atol=1e-5)


# What they are --------------------------------------------------------------------------


def test_ddim_is_a_turn():
    noisy, time, next_time = start(), column(0.7), column(0.2)
    noise, image = closed(noisy, time)
    turn = angle(next_time) - angle(time)
    turned = turn.cos() * noisy + turn.sin() * velocity(noise, image, time)
    assert torch.allclose(turned, ddim(closed, noisy, time, next_time)[0], atol=1e-6)
    assert torch.allclose(angle(torch.tensor([0.0, 1.0])).cos(), torch.tensor([0.95, 0.02]), atol=1e-6)


def test_without_dice_it_is_ddim():
    for own, other in zip(ours(Ancestral(0.0)), ours(ddim)):
        assert torch.allclose(own, other, atol=1e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_dice_keep_the_variance(eta):
    """Where image and noise are guessed right, what comes is mixed with the rates of the next time."""
    image, noise = torch.zeros(20000, 1, 1, 1), torch.randn(20000, 1, 1, 1)
    step = Ancestral(eta, seed=0)
    time, next_time = column(0.8, 20000), column(0.3, 20000)
    noisy, _ = step(lambda noisy, time: (noise, image), noise, time, next_time)
    assert noisy.var().sqrt() == pytest.approx(float(schedule(0.3)[0]), rel=0.02)


# The order, on a Gaussian in closed form --------------------------------------------------

MEAN, DEVIATION = 0.3, 0.5


def gaussian(noisy, time):
    """The best guess where images are a Gaussian around MEAN."""
    noise_rate, signal_rate = schedule(time)
    share = DEVIATION**2 * signal_rate / ((DEVIATION * signal_rate) ** 2 + noise_rate**2)
    image = MEAN + share * (noisy - signal_rate * MEAN)
    return (noisy - signal_rate * image) / noise_rate, image


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
@pytest.mark.parametrize(
    "make, steps, order",
    [
        (lambda: ddim, lambda evaluations: evaluations, 1.0),
        (lambda: heun, lambda evaluations: evaluations // 2, 2.0),
        (DPMSolver, lambda evaluations: evaluations - 1, 2.0),
    ],
    ids=["ddim", "heun", "2M"],
)
def test_order(make, steps, order, rho):
    """Twice as many evaluations: half of the error, or a quarter, in the noisy image and in the one that is returned."""

    def times(count):
        return karras_times(count, rho) if rho else [1 - step / count for step in range(count + 1)]

    few, many = (errors(make(), times(steps(evaluations))) for evaluations in (80, 160))
    for one, other in zip(few, many):
        assert math.log2(one / other) == pytest.approx(order, abs=0.2)


def test_evaluations():
    """2M asks once at each of the times, the last of them 0."""
    evaluated = []

    def spy(noisy, time):
        evaluated.append(float(time[0]))
        return gaussian(noisy, time)

    list(sample(spy, start(), TIMES, DPMSolver()))
    assert evaluated == pytest.approx(TIMES, abs=1e-6)


def test_the_noise_drops_out():
    """d(noisy / noise_rate) / d log_ratio = signal_rate / noise_rate · image, along the path: what 2M follows."""
    small, time = 1e-4, column(0.5).double()
    noise, image = gaussian(start(), time)
    per_time = angle(torch.tensor(1.0)) - angle(torch.tensor(0.0))
    moved = start() + small * per_time * velocity(noise, image, time)
    change = moved / schedule(time + small)[0] - start() / schedule(time)[0]
    slope = change / (log_ratio(time + small) - log_ratio(time))
    assert torch.allclose(slope, log_ratio(time).exp() * image, rtol=1e-3, atol=1e-3)


# Drawing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [DPMSolver(), Ancestral(1.0, seed=3)])
def test_one_step_serves_many_drawings(step):
    """What it remembers within a drawing is not seen by the next one, nor by those in other threads."""
    first, second = ours(step), ours(step)
    assert all(torch.equal(one, two) for one, two in zip(first, second))
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
    assert torch.allclose(sigmas(times).log().diff(), sigmas(times).log().diff().mean().expand(9), rtol=1e-2)
    assert DiffusionConfig.from_pretrained(LARGE_MODEL).times == karras_times(20, math.inf, PURE_NOISE)


# With a model, and bad input --------------------------------------------------------------


def test_generate_takes_a_sampler():
    diffusion, times = tiny().eval(), [1, 0.75, 0.5, 0.25, 0]
    noise = starting_noise(diffusion, 2, seed=1)
    drawn = generate(diffusion, noise=noise, steps=4, sampler=DPMSolver())
    with torch.no_grad():
        *_, (_, image) = sample(partial(predict, diffusion), noise, times, DPMSolver())
    assert torch.equal(drawn, denormalize(diffusion, image))
    assert not torch.allclose(drawn, generate(diffusion, noise=noise, steps=4), atol=1e-4)
    assert torch.equal(drawn, generate(diffusion, noise=noise, steps=times, sampler=DPMSolver()))


@pytest.mark.parametrize("call, message", [
    (lambda: karras_times(5, largest=0.1), "largest must be a finite sigma above 0.33, not 0.1"),
    (lambda: karras_times(5, largest=math.inf), "largest must be a finite sigma above 0.33, not inf"),
    (lambda: karras_times(5, largest=math.nan), "largest must be a finite sigma above 0.33, not nan"),
    (lambda: Ancestral(1.5), r"eta must lie in \[0, 1\], not 1.5"),
])  # fmt: skip
def test_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mix_and_velocity_belong_together():
    """The velocity is how `mix` changes with the angle."""
    image, noise, small = start(), start(2) + 1, 1e-4
    time = column(0.4).double()
    per_time = angle(torch.tensor(1.0)) - angle(torch.tensor(0.0))
    moved = (mix(image, noise, time + small) - mix(image, noise, time - small)) / (2 * small * per_time)
    assert torch.allclose(moved, velocity(noise, image, time), atol=1e-4)
