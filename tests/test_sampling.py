"""Lesson 05: predict, denormalize, starting_noise, ddim, sample and generate."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from helpers import tiny

from diffusion_utils import (
    TOY_MODEL,
    Diffusion,
    DiffusionConfig,
    ddim,
    denormalize,
    generate,
    predict,
    sample,
    schedule,
    starting_noise,
)


def model(**options):
    """One that has seen images, and answers with something."""
    diffusion = tiny(**options)
    for _ in range(20):
        diffusion(0.1 * torch.rand(8, 3, 8, 8) + torch.tensor([0.2, 0.4, 0.6]).reshape(3, 1, 1))
    return diffusion.eval()


# Against the article's own loop ---------------------------------------------------------


def the_article_draws(diffusion, n, N, image):
    """The article's `generate` to the letter, but for the number of steps, and the noise as an argument."""

    def schedule(time):
        t = 0.3175604292915215 + time * 1.2332345639299847
        return t.sin(), t.cos()

    device = image.device
    for i in range(N):
        time = torch.full(size=(n, 1, 1, 1), fill_value=(N - i) / N, dtype=torch.float32, device=device)
        noise_r, image_r = schedule(time)
        combine = diffusion.combine(image, noise_r**2)
        pred_noise = diffusion.unet(combine)
        pred_image = (image - noise_r * pred_noise) / image_r
        time = time - (1 / N)
        noise_r, image_r = schedule(time)
        image = image_r * pred_image + noise_r * pred_noise
    mean = diffusion.norm.running_mean.reshape(1, 3, 1, 1)
    std = (diffusion.norm.running_var**0.5).reshape(1, 3, 1, 1)
    pred_image = mean + pred_image * std
    pred_image = pred_image.clip(0.0, 1.0)
    return pred_image


def the_articles_model():
    torch.manual_seed(0)
    diffusion = Diffusion(DiffusionConfig())
    diffusion.norm.running_mean.fill_(0.5)
    diffusion.norm.running_var.fill_(1e-3)
    return diffusion.eval()


@pytest.mark.parametrize("make, n, counts", [
    (model, 2, [1, 2, 3, 7, 10, 13, 20, 30, 49, 100]),
    (lambda: Diffusion.from_pretrained(TOY_MODEL), 2, [5, 20]),
    (the_articles_model, 1, [20]),
])  # fmt: skip
@torch.no_grad()
def test_the_same_as_the_article_to_the_bit(make, n, counts):
    diffusion = make()
    for steps in counts:
        torch.manual_seed(steps)
        drawn = generate(diffusion, n, steps)  # no seed: the noise of the global generator, as there
        torch.manual_seed(steps)
        expected = the_article_draws(diffusion, n, steps, torch.randn(drawn.shape))
        assert 0 < drawn.std() and torch.equal(drawn, expected), steps


def test_the_times_of_the_article_to_the_bit():
    """With each number of steps, a step is asked to go from and to where the article's loop goes."""
    noisy = torch.zeros(1, 1, 1, 1)
    for steps in range(1, 150):
        times = [(steps - step) / steps for step in range(steps + 1)]
        went = sample(None, noisy, times, step=lambda predict, noisy, *way: (noisy, way))
        for step, (_, (time, next_time)) in enumerate(went):
            expected = torch.full((1, 1, 1, 1), (steps - step) / steps)
            assert torch.equal(time, expected) and torch.equal(next_time, expected - 1 / steps), (steps, step)


# What it is made of ---------------------------------------------------------------------


def at(time):
    return torch.full((2, 1, 1, 1), float(time))


@pytest.mark.parametrize("times", [[], [1.0], [1, 0.7, 0.2, 0], torch.linspace(1, 0, 6), [0.2, 0.9]])
@torch.no_grad()
def test_sample_goes_along_the_times(times):
    """One step at a time, each from where the one before it ended; also backwards, and with a step of our own."""
    diffusion, start, calls = model(), torch.randn(2, 3, 8, 8), []
    kept = start.clone()

    def step(predictor, noisy, time, next_time):
        calls.append((noisy, time, next_time))
        return ddim(predictor, noisy, time, next_time)

    path, noisy = sample(partial(predict, diffusion), start, times, step), start
    for count, (now, then) in enumerate(pairwise(times)):
        assert len(calls) == count
        after, image = next(path)
        assert torch.equal(calls[-1][0], noisy) and torch.equal(calls[-1][1], at(now))
        torch.testing.assert_close(calls[-1][2], at(then))
        expected = ddim(partial(predict, diffusion), noisy, at(now), at(then))
        torch.testing.assert_close((after, image), expected, atol=1e-5, rtol=0)
        noisy = after
    assert not list(path) and torch.equal(start, kept)


def test_generate():
    diffusion = model()
    before = torch.get_rng_state()
    images = generate(diffusion, n=3, steps=4, seed=1)
    assert images.shape == (3, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert not images.requires_grad
    assert torch.equal(images, generate(diffusion, n=3, steps=4, seed=1))
    assert torch.equal(images, generate(diffusion, steps=4, noise=starting_noise(diffusion, 3, seed=1)))
    assert not torch.equal(images, generate(diffusion, n=3, steps=4, seed=2))
    assert torch.equal(before, torch.get_rng_state())  # a seed leaves the global generator alone


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_same_as_ddim_of_diffusers(steps):
    """Their DDIM, with our rates and eta = 0, follows the path that `on_step` is shown; its last image is returned."""
    diffusion, path = model(), []
    drawn = generate(diffusion, n=2, steps=steps, seed=4, on_step=lambda *step: path.append(step))
    assert [step for step, *_ in path] == list(range(1, steps + 1)) and torch.equal(drawn, path[-1][2])
    scheduler = DDIMScheduler(num_train_timesteps=steps, clip_sample=False)
    times = torch.arange(1, steps + 1) / steps
    scheduler.alphas_cumprod = schedule(times)[1] ** 2
    scheduler.final_alpha_cumprod = schedule(torch.tensor(0.0))[1] ** 2
    scheduler.set_timesteps(steps)
    noisy = starting_noise(diffusion, 2, seed=4)
    for (_, our_noisy, our_image), t in zip(path, scheduler.timesteps, strict=True):
        with torch.no_grad():
            noise, _ = predict(diffusion, noisy, times[t].expand(2, 1, 1, 1))
        step = scheduler.step(noise, t, noisy)
        noisy = step.prev_sample
        assert torch.allclose(denormalize(diffusion, noisy), our_noisy, atol=1e-4)
        assert torch.allclose(denormalize(diffusion, step.pred_original_sample), our_image, atol=1e-4)


@pytest.mark.parametrize("steps, times, own", [
    (4, [1.0, 0.0], [1.0, 0.75, 0.5, 0.25, 0.0]),
    (6, [1.1, 1.0, 0.4, 0.0], [1.1, 1.05, 1.0, 0.7, 0.4, 0.2, 0.0]),
])  # fmt: skip
def test_steps_and_times_of_the_config(tmp_path, steps, times, own):
    """`generate` takes as many steps as the config says, along its times; a list of times goes before both."""
    model(steps=steps, times=times).save_pretrained(tmp_path)
    diffusion = Diffusion.from_pretrained(tmp_path)
    drawn = generate(diffusion, n=2, seed=0)
    assert torch.allclose(drawn, generate(diffusion, n=2, seed=0, steps=own), atol=1e-5)
    assert torch.equal(drawn, generate(diffusion, n=2, seed=0, steps=steps))
    other = generate(diffusion, n=2, seed=0, steps=[1.0, 0.5, 0.0])
    assert torch.equal(other, generate(model(), n=2, seed=0, steps=2)) and not torch.equal(other, drawn)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_numbers_draw(tmp_path, dtype):
    Diffusion.from_pretrained(TOY_MODEL).to(dtype).save_pretrained(tmp_path)
    other, expected = Diffusion.from_pretrained(tmp_path, dtype=dtype), Diffusion.from_pretrained(TOY_MODEL)
    drawn, expected = (generate(model, n=2, steps=5, seed=0) for model in (other, expected))
    assert other.dtype == dtype and drawn.dtype == torch.float32
    assert (drawn - expected).abs().mean() < 0.05


def test_drawing_leaves_a_training_model_alone():
    """The mode of each of its parts and its statistics, also while others draw in threads, or something goes wrong."""
    diffusion = model().train()
    diffusion.unet.down[0].eval()
    modes = [module.training for module in diffusion.modules()]
    statistics = diffusion.norm.running_mean.clone()
    with ThreadPoolExecutor(4) as pool:
        drawings = [pool.submit(generate, diffusion, 1, 3, seed=0) for _ in range(8)]
        assert modes == [module.training for module in diffusion.modules()]
        drawn = [drawing.result() for drawing in drawings]
    with pytest.raises(TypeError):
        generate(diffusion, on_step=1)
    assert modes == [module.training for module in diffusion.modules()]
    assert torch.equal(statistics, diffusion.norm.running_mean)
    expected = generate(model(), 1, 3, seed=0)  # drawn in eval mode
    assert all(torch.equal(images, expected) for images in drawn)


def test_an_output_that_is_not_finite_is_refused():
    diffusion = model()
    torch.nn.init.constant_(diffusion.unet.out.bias, torch.nan)
    with pytest.raises(ValueError, match="diffusion: its output is not finite; see notebooks/it_does"):
        generate(diffusion)
