"""Lesson 12: steps other than DDIM, against diffusers' schedulers of the same name and against exact answers."""

import math
from functools import partial

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler
from helpers import tiny

from diffusion_utils import (
    Diffusion,
    DiffusionConfig,
    ddim,
    generate,
    mix,
    predict,
    sample,
    schedule,
    starting_noise,
)
from diffusion_course.samplers import (
    FROM_PURE_NOISE,
    PURE_NOISE,
    ancestral,
    angle,
    dpm_solver,
    heun,
    heun_along_sigma,
    karras,
    time_of,
    velocity,
)

STEPS = 7
TIMES = [(STEPS - step) / STEPS for step in range(STEPS + 1)]


def ask(noisy, time):
    """A guess in closed form, as precise as the numbers that come in: colours around 0.3, with a spread of 0.5."""
    noise_rate, signal_rate = schedule(time)
    variance = (0.5 * signal_rate) ** 2 + noise_rate**2
    image = 0.3 + 0.25 * signal_rate / variance * (noisy - 0.3 * signal_rate) + 0.1 * (3 * noisy).sin()
    return (noisy - signal_rate * image) / noise_rate, image


def start(n=2):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ours(step, times=TIMES):
    return [noisy for noisy, _ in sample(ask, start(), times, step)]


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
    for t, own in zip(range(STEPS), ours(dpm_solver()), strict=True):
        noisy = scheduler.step(ask(noisy, column(TIMES[t]))[0], scheduler.timesteps[t], noisy).prev_sample
        assert torch.allclose(noisy, own, atol=1e-5)


def test_heun_along_sigma_is_that_of_diffusers():
    """Theirs has the noisy picture divided by the signal rate, and is called twice a step."""
    scheduler = HeunDiscreteScheduler()
    scheduler.set_timesteps(STEPS)
    doubled = torch.cat((sigmas()[:1], sigmas()[1:-1].repeat_interleave(2), sigmas()[-1:].repeat(2)))
    scheduler.sigmas, scheduler.timesteps = doubled, torch.arange(2 * STEPS)
    scheduler._step_index = 0
    signal_rate = [schedule(torch.tensor(time, dtype=torch.float64))[1] for time in TIMES]
    scaled = start() / signal_rate[0]
    for t, own in zip(range(STEPS), ours(heun_along_sigma), strict=True):
        for half in (0, 1):
            rate = signal_rate[t + half]
            noise, _ = ask(scaled * rate, column(TIMES[t + half]))
            scaled = scheduler.step(noise, scheduler.timesteps[2 * t + half], scaled).prev_sample
        assert torch.allclose(scaled * signal_rate[t + 1], own, atol=1e-4), t


def test_ddpm_is_that_of_diffusers():
    scheduler = DDPMScheduler(num_train_timesteps=STEPS, clip_sample=False, variance_type="fixed_small")
    rates = schedule(torch.tensor(TIMES[::-1][1:], dtype=torch.float64))[1] ** 2
    scheduler.alphas_cumprod = rates
    scheduler.set_timesteps(STEPS)
    noisy, generator = start(), torch.Generator().manual_seed(5)
    for t, own in zip(range(STEPS - 1), ours(ancestral(1.0, seed=5))):  # their last step ends elsewhere
        noise, _ = ask(noisy, column(TIMES[t]))
        noisy = scheduler.step(noise, STEPS - 1 - t, noisy, generator=generator).prev_sample
        assert torch.allclose(noisy, own, atol=1e-5)


# What they are --------------------------------------------------------------------------


def test_ddim_is_a_turn():
    noisy, time, then = start(), column(0.7), column(0.2)
    noise, image = ask(noisy, time)
    turn = angle(then) - angle(time)
    turned = turn.cos() * noisy + turn.sin() * velocity(noise, image, time)
    assert torch.allclose(turned, ddim(ask, noisy, time, then)[0], atol=1e-6)
    assert torch.allclose(angle(torch.tensor([0.0, 1.0])).cos(), torch.tensor([0.95, 0.02]), atol=1e-6)


def test_without_dice_it_is_ddim():
    for own, other in zip(ours(ancestral(0.0)), ours(ddim)):
        assert torch.allclose(own, other, atol=1e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_dice_keep_the_variance(eta):
    """Where picture and noise are guessed right, what comes is mixed with the rates of the next time."""
    image, noise = torch.zeros(20000, 1, 1, 1), torch.randn(20000, 1, 1, 1)
    step = ancestral(eta, seed=0)
    time, then = column(0.8, 20000), column(0.3, 20000)
    noisy, _ = step(lambda noisy, time: (noise, image), noise, time, then)
    assert noisy.var().sqrt() == pytest.approx(float(schedule(0.3)[0]), rel=0.02)


@pytest.mark.parametrize(
    "make, each, order", [(lambda: ddim, 1, 1.0), (lambda: heun, 2, 2.0), (dpm_solver, 1, 2.0)]
)
def test_order(make, each, order):
    """Twice as many evaluations: half of the error, or a quarter."""
    goal = ours(heun, [1 - i / 1000 for i in range(1001)])[-1]
    few, many = (
        (ours(make(), [1 - i * each / k for i in range(k // each + 1)])[-1] - goal).norm() for k in (40, 80)
    )
    assert math.log2(few / many) == pytest.approx(order, abs=0.3)


def test_a_solver_notices_a_new_drawing():
    """It remembers within a drawing, and not from one to the next."""
    step = dpm_solver()
    first, second = ours(step), ours(step)
    assert all(torch.equal(one, two) for one, two in zip(first, second))
    assert not torch.allclose(first[-1], ours(ddim)[-1], atol=1e-4)
    *_, (more, _) = sample(ask, start(5), TIMES, step)  # and of another size
    assert more.shape == (5, 3, 4, 4)


# Times ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [1, 2, 7.0, math.inf])
def test_karras(rho):
    times = karras(9, rho)
    assert len(times) == 10 and times[0] == pytest.approx(1, abs=1e-6) and abs(times[-1]) < 1e-6
    values = sigmas(times)
    even = values.log() if rho == math.inf else values ** (1 / rho)
    assert torch.allclose(even.diff(), even.diff().mean().expand(9), rtol=1e-3)
    assert time_of(float(sigmas([0.37])[0])) == pytest.approx(0.37, abs=1e-6)


def test_karras_from_pure_noise():
    times = karras(9, math.inf, PURE_NOISE)
    assert 1 < times[0] < 1.02 and abs(times[-1]) < 1e-6
    assert float(sigmas(times)[0]) == pytest.approx(PURE_NOISE, rel=1e-2)
    assert torch.allclose(sigmas(times).log().diff(), sigmas(times).log().diff().mean().expand(9), rtol=1e-2)
    model = Diffusion(DiffusionConfig(image_size=16, widths=(8, 16), block_depth=1, predicts="v"))
    one, two = (generate(model, n=2, seed=0, exact=exact, **FROM_PURE_NOISE) for exact in (False, True))
    assert torch.allclose(one, two, atol=0.1)  # also in 16 bits


# With a model, and bad input --------------------------------------------------------------


def test_generate_takes_a_sampler():
    diffusion = tiny().eval()
    noise = starting_noise(diffusion, 2, seed=1)
    drawn = generate(diffusion, noise=noise, steps=4, sampler=dpm_solver())
    with torch.no_grad():
        *_, (_, image) = sample(partial(predict, diffusion), noise, [1, 0.75, 0.5, 0.25, 0], dpm_solver())
    mean, std = diffusion.norm.running_mean, diffusion.norm.running_var.sqrt()
    own = (mean.reshape(3, 1, 1) + image * std.reshape(3, 1, 1)).clip(0, 1)
    assert torch.allclose(drawn, own, atol=1e-6)
    assert not torch.allclose(drawn, generate(diffusion, noise=noise, steps=4), atol=1e-4)
    times = [1, 0.75, 0.5, 0.25, 0]
    assert torch.equal(drawn, generate(diffusion, noise=noise, steps=times, sampler=dpm_solver()))


@pytest.mark.parametrize("call, error, message", [
    (lambda: generate(tiny(), sampler="heum"), TypeError, "sampler: 'heum' is no step"),
    (lambda: generate(tiny(), steps=0, sampler=heun), ValueError, "steps must be 1 or more, not 0"),
    (lambda: generate(tiny(), steps=[1.0]), ValueError, "steps: two times make a step"),
    (lambda: karras(0), ValueError, "steps must be 1 or more, not 0"),
    (lambda: karras(2.5), TypeError, "steps must be a whole number, not 2.5"),
    (lambda: karras(5, 0), ValueError, "rho must be larger than 0, not 0"),
    (lambda: karras(5, largest=0.1), ValueError, "largest must be a sigma above 0.33, not 0.1"),
    (lambda: karras(5, largest=math.nan), ValueError, "largest must be a sigma above 0.33, not nan"),
    (lambda: ancestral(1.5), ValueError, r"eta must lie in \[0, 1\], not 1.5"),
    (lambda: ancestral(math.nan), ValueError, r"eta must lie in \[0, 1\], not nan"),
])  # fmt: skip
def test_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_mix_and_velocity_belong_together():
    """The velocity is how `mix` changes with the angle."""
    image, noise, small = start(), start(2) + 1, 1e-4
    time = column(0.4).double()
    per_time = angle(torch.tensor(1.0)) - angle(torch.tensor(0.0))
    moved = (mix(image, noise, time + small) - mix(image, noise, time - small)) / (2 * small * per_time)
    assert torch.allclose(moved, velocity(noise, image, time), atol=1e-4)
