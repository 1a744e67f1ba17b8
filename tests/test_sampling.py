"""Lesson 05: predict, denormalize, starting_noise, ddim, sample and generate."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler
from helpers import tiny

from diffusion_utils import (
    LARGE_MODEL,
    TOY_MODEL,
    Diffusion,
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


MODELS = {
    "small": model,
    "trained": lambda: Diffusion.from_pretrained(TOY_MODEL),
    "article": the_articles_model,
}


@pytest.mark.parametrize(
    "name, counts",
    [("small", [1, 2, 3, 7, 10, 13, 20, 30, 49, 100]), ("trained", [5, 20]), ("article", [20])],
)
def test_the_same_as_the_article_to_the_bit(name, counts):
    diffusion = MODELS[name]()
    n = 1 if name == "article" else 2
    for steps in counts:
        torch.manual_seed(steps)
        drawn = generate(diffusion, n, steps)  # no seed: the noise of the global generator, as there
        torch.manual_seed(steps)
        with torch.no_grad():
            size = diffusion.config.image_size
            expected = the_article_draws(diffusion, n, steps, torch.randn(n, 3, size, size))
        assert 0 < drawn.std() and torch.equal(drawn, expected), steps


# What it is made of ---------------------------------------------------------------------


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_predict_inverts_the_mixture(predicts):
    diffusion = model(predicts=predicts)
    time = torch.tensor([0.0, 0.5, 0.9]).reshape(3, 1, 1, 1)
    noisy = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        noise, image = predict(diffusion, noisy, time)
    noise_rate, signal_rate = schedule(time)
    assert torch.allclose(signal_rate * image + noise_rate * noise, noisy, atol=1e-5)
    assert torch.equal(mix(image, noise, time), signal_rate * image + noise_rate * noise)
    assert torch.equal(noise, diffusion.predict_noise(noisy, time))


def test_denormalize_is_the_inverse_of_norm():
    diffusion = model()
    images = 0.1 * torch.rand(5, 3, 8, 8) + 0.3
    assert torch.allclose(denormalize(diffusion, diffusion.norm(images)), images, atol=1e-4)
    assert denormalize(diffusion, torch.full((1, 3, 8, 8), 1e6)).max() == 1  # clipped


def test_starting_noise():
    diffusion = model()
    assert torch.equal(starting_noise(diffusion, 4, seed=7), starting_noise(diffusion, 4, seed=7))
    assert not torch.equal(starting_noise(diffusion, 4, seed=7), starting_noise(diffusion, 4, seed=8))
    torch.manual_seed(3)
    expected = torch.randn(4, 3, 8, 8)
    torch.manual_seed(3)
    assert torch.equal(starting_noise(diffusion, 4), expected)


def at(time, n=2):
    return torch.full((n, 1, 1, 1), time)


@torch.no_grad()
def test_ddim():
    predictor = partial(predict, model())
    noisy = torch.randn(2, 3, 8, 8)
    noise, image = predictor(noisy, at(0.8))
    after, clean = ddim(predictor, noisy, at(0.8), at(0.3))
    assert torch.equal(clean, image) and torch.equal(after, mix(image, noise, at(0.3)))
    stay, _ = ddim(predictor, noisy, at(0.8), at(0.8))
    assert torch.allclose(stay, noisy, atol=1e-5)


@torch.no_grad()
def test_ddim_with_all_the_answers():
    """Where the prediction is right, one step of any width lands where it should."""
    image, noise = torch.randn(2, 2, 3, 8, 8)
    for time, next_time in [(1.0, 0.0), (0.9, 0.2), (0.2, 0.9)]:
        after, clean = ddim(lambda *_: (noise, image), mix(image, noise, at(time)), at(time), at(next_time))
        assert torch.equal(after, mix(image, noise, at(next_time))) and torch.equal(clean, image)


@pytest.mark.parametrize(
    "times, count",
    [([], 0), ([1.0], 0), ([1.0, 0.0], 1), ([1, 0.7, 0.2, 0], 3), (torch.linspace(1, 0, 6), 5)],
)
@torch.no_grad()
def test_sample_goes_along_the_times(times, count):
    calls, diffusion, start = [], model(), torch.randn(2, 3, 8, 8)
    kept = start.clone()

    def predictor(noisy, time):
        calls.append((noisy, time))
        return predict(diffusion, noisy, time)

    steps = list(sample(predictor, start, times))
    assert len(steps) == len(calls) == count
    assert [time.flatten().tolist() for _, time in calls] == [
        pytest.approx([float(t)] * 2) for t in times[:count]
    ]
    assert all(time.shape == (2, 1, 1, 1) for _, time in calls) and torch.equal(start, kept)
    for (noisy, time), (after, image), next_time in zip(calls, steps, times[1:]):
        noise, expected = predict(diffusion, noisy, time)
        assert torch.equal(image, expected) and torch.allclose(
            after, mix(image, noise, at(float(next_time))), atol=1e-5
        )
    assert all(
        torch.equal(before[0], noisy) for before, (noisy, _) in zip(steps, calls[1:])
    )  # each goes on from the one before


@torch.no_grad()
def test_sample_takes_one_step_at_a_time():
    calls, diffusion = [], model()
    steps = sample(lambda *x: calls.append(1) or predict(diffusion, *x), torch.randn(2, 3, 8, 8), [1, 0.5, 0])
    assert not calls
    next(steps)
    assert len(calls) == 1


@torch.no_grad()
def test_generate_is_sample_with_colours():
    diffusion, path = model(), []
    images = generate(diffusion, n=2, steps=6, seed=3, on_step=lambda *step: path.append(step))
    times = [(6 - step) / 6 for step in range(7)]
    steps = list(sample(partial(predict, diffusion), starting_noise(diffusion, 2, seed=3), times))
    assert len(steps) == len(path) == 6 and torch.equal(denormalize(diffusion, steps[-1][1]), images)
    for (noisy, image), (_, noisy_colours, image_colours) in zip(steps, path):
        assert torch.equal(denormalize(diffusion, noisy), noisy_colours)
        assert torch.equal(denormalize(diffusion, image), image_colours)


@torch.no_grad()
def test_times_backwards_go_back():
    """From an image to its noise and back to the image: inversion."""
    predictor = partial(predict, Diffusion.from_pretrained(TOY_MODEL))
    down = [(50 - step) / 50 for step in range(5, 51)]  # from 0.9 to 0
    start = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    *_, (clean, _) = sample(predictor, start, down)
    *_, (noise, _) = sample(predictor, clean, down[::-1])
    *_, (again, _) = sample(predictor, noise, down)
    assert (again - clean).abs().mean() < 0.1 * clean.std()
    assert (noise - start).abs().mean() < 0.3 < (noise - clean).abs().mean()


@torch.no_grad()
def test_a_step_of_our_own():
    """One that asks twice, at half the way too: four of them go where eight of DDIM go."""
    diffusion, start, calls = model(), torch.randn(2, 3, 8, 8), []

    def predictor(noisy, time):
        calls.append(time)
        return predict(diffusion, noisy, time)

    def halves(predict, noisy, time, next_time):
        middle = (time + next_time) / 2
        noisy, _ = ddim(predict, noisy, time, middle)
        return ddim(predict, noisy, middle, next_time)

    eight = list(sample(predictor, start, [(8 - step) / 8 for step in range(9)]))
    assert len(calls) == 8
    four = list(sample(predictor, start, [(4 - step) / 4 for step in range(5)], step=halves))
    assert len(calls) == 16 and len(four) == 4
    for ours, theirs in zip(four, eight[1::2]):
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(ours, theirs))
    coarse = list(sample(predictor, start, [(4 - step) / 4 for step in range(5)], step=ddim))
    assert not torch.allclose(coarse[-1][0], four[-1][0], atol=1e-2)
    assert torch.equal(
        coarse[-1][0], list(sample(predictor, start, [1, 0.75, 0.5, 0.25, 0]))[-1][0]
    )  # it is the default


def test_the_times_of_the_article_to_the_bit():
    """With each number of steps, a step is asked to go from and to where the article's loop goes."""
    noisy = torch.zeros(1, 1, 1, 1)
    for steps in range(1, 150):
        times = [(steps - step) / steps for step in range(steps + 1)]
        went = sample(None, noisy, times, step=lambda predict, noisy, *way: (noisy, way))
        for step, (_, (time, next_time)) in enumerate(went):
            expected = torch.full((1, 1, 1, 1), (steps - step) / steps)
            assert torch.equal(time, expected) and torch.equal(next_time, expected - 1 / steps), (steps, step)


def test_generate():
    diffusion = model()
    before = torch.get_rng_state()
    images = generate(diffusion, n=3, steps=4, seed=1)
    assert images.shape == (3, 3, 8, 8) and images.min() >= 0 and images.max() <= 1
    assert not images.requires_grad
    assert torch.equal(images, generate(diffusion, n=3, steps=4, seed=1))
    assert torch.equal(images, generate(diffusion, steps=4, noise=starting_noise(diffusion, 3, seed=1)))
    assert torch.equal(before, torch.get_rng_state())  # a seed leaves the global generator alone


@pytest.mark.parametrize("training", [True, False])
def test_generate_leaves_the_mode(training):
    diffusion = model().train(training)
    statistics = diffusion.norm.running_mean.clone()
    images = generate(diffusion, n=2, steps=2, seed=0)
    assert diffusion.training is training and diffusion.unet.training is training
    assert torch.equal(statistics, diffusion.norm.running_mean)
    assert torch.equal(images, generate(model(), n=2, steps=2, seed=0))  # drawn in eval mode either way

    def fail(*arguments):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        generate(diffusion, on_step=fail)
    assert diffusion.training is training


def test_on_step():
    diffusion, seen = model(), []
    images = generate(diffusion, n=2, steps=5, seed=0, on_step=lambda *arguments: seen.append(arguments))
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5]
    assert all(noisy.shape == image.shape == (2, 3, 8, 8) for _, noisy, image in seen)
    assert torch.equal(seen[-1][2], images)


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_the_same_as_ddim_of_diffusers(steps):
    """Their DDIM, with our rates and eta = 0, follows the same path."""
    diffusion, path = model(), []
    generate(
        diffusion, n=2, steps=steps, seed=4, on_step=lambda step, noisy, image: path.append((noisy, image))
    )

    scheduler = DDIMScheduler(num_train_timesteps=steps, clip_sample=False)
    times = torch.arange(1, steps + 1) / steps
    scheduler.alphas_cumprod = schedule(times)[1] ** 2
    scheduler.final_alpha_cumprod = schedule(torch.tensor(0.0))[1] ** 2
    scheduler.set_timesteps(steps)
    noisy = starting_noise(diffusion, 2, seed=4)
    for (our_noisy, our_image), t in zip(path, scheduler.timesteps):
        with torch.no_grad():
            noise, _ = predict(diffusion, noisy, times[t].expand(2, 1, 1, 1))
        step = scheduler.step(noise, t, noisy)
        noisy = step.prev_sample
        assert torch.allclose(denormalize(diffusion, noisy), our_noisy, atol=1e-4)
        assert torch.allclose(denormalize(diffusion, step.pred_original_sample), our_image, atol=1e-4)


@pytest.mark.parametrize(
    "steps", [{"steps": 4}, {"steps": 5, "times": [1.1, 1.0, 0.4, 0.0]}, {"times": [1.0, 0.0]}]
)
def test_steps_and_times_of_the_config(tmp_path, steps):
    """`generate` takes as many steps as the config says, along its times; a list of times goes before both."""
    model(**steps).save_pretrained(tmp_path)
    diffusion, count = Diffusion.from_pretrained(tmp_path), steps.get("steps", 20)
    times = steps.get("times", [1.0, 0.0])
    own = [times[0], *(0,) * (count - 1), times[-1]]
    for i in range(1, count):
        whole, part = divmod(i * (len(times) - 1) / count, 1)
        own[i] = times[int(whole)] + part * (times[int(whole) + 1] - times[int(whole)])
    drawn = generate(diffusion, n=2, seed=0)
    assert torch.allclose(drawn, generate(diffusion, n=2, seed=0, steps=own), atol=1e-5)
    assert torch.equal(drawn, generate(diffusion, n=2, seed=0, steps=count))
    other = generate(diffusion, n=2, seed=0, steps=[1.0, 0.5, 0.0])
    assert torch.equal(other, generate(model(), n=2, seed=0, steps=2)) and not torch.equal(other, drawn)


def test_the_large_model_draws_by_itself():
    """From pure noise, which its config knows: the first time lies behind 1, the last is 0, one step a number."""
    config = DiffusionConfig.from_pretrained(LARGE_MODEL)
    assert config.steps == len(config.times) - 1 == 20 and config.times[0] > 1.01 and config.times[-1] == 0


def test_drawing_is_exact():
    """No 16 bits by itself; with PyTorch's own autocast nearly the same."""
    diffusion = Diffusion.from_pretrained(TOY_MODEL)
    exact = generate(diffusion, n=2, steps=5, seed=0)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert torch.equal(exact, generate(diffusion, n=2, steps=5, seed=0))
    with torch.autocast("cpu", torch.bfloat16):
        short = generate(diffusion, n=2, steps=5, seed=0)
    assert not torch.equal(short, exact) and (short - exact).abs().mean() < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_numbers_draw(tmp_path, dtype):
    Diffusion.from_pretrained(TOY_MODEL).to(dtype).save_pretrained(tmp_path)
    other, expected = Diffusion.from_pretrained(tmp_path, dtype=dtype), Diffusion.from_pretrained(TOY_MODEL)
    drawn, expected = (generate(model, n=2, steps=5, seed=0) for model in (other, expected))
    assert other.dtype == dtype and drawn.dtype == torch.float32
    assert (drawn - expected).abs().mean() < 0.05


def test_drawing_leaves_a_training_model_alone():
    """The mode of each of its parts, also while others draw in threads."""
    diffusion = model().train()
    diffusion.unet.down[0].eval()
    before = [module.training for module in diffusion.modules()]
    with ThreadPoolExecutor(4) as pool:
        drawings = [pool.submit(generate, diffusion, 1, 3, seed=0) for _ in range(8)]
        during = [module.training for module in diffusion.modules()]
        drawn = [drawing.result() for drawing in drawings]
    assert all(torch.equal(images, drawn[0]) for images in drawn)
    assert before == during == [module.training for module in diffusion.modules()]


def test_an_output_that_is_not_finite_is_refused():
    diffusion = model()
    torch.nn.init.constant_(diffusion.unet.out.bias, torch.nan)
    with pytest.raises(
        ValueError, match="diffusion: its output is not finite; see notebooks/it_does_not_work"
    ):
        generate(diffusion)
