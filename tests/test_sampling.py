"""Lesson 05: predict, denormalize, starting_noise and generate."""

import pytest
import torch
from diffusers import DDIMScheduler
from test_model import tiny

from diffusion_utils import denormalize, generate, predict, schedule, starting_noise


def model():
    diffusion = tiny()
    for _ in range(20):
        diffusion(0.1 * torch.rand(8, 3, 8, 8) + torch.tensor([0.2, 0.4, 0.6]).reshape(3, 1, 1))
    return diffusion.eval()


def test_predict_inverts_the_mixture():
    diffusion = model()
    time = torch.tensor([0.0, 0.5, 0.9]).reshape(3, 1, 1, 1)
    noisy = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        noise, image = predict(diffusion, noisy, time)
    noise_rate, signal_rate = schedule(time)
    assert torch.allclose(signal_rate * image + noise_rate * noise, noisy, atol=1e-5)


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
    generate(diffusion, n=2, steps=steps, seed=4, on_step=lambda step, noisy, image: path.append((noisy, image)))

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


@pytest.mark.parametrize("options, error, message", [
    (dict(steps=0), ValueError, "steps must be 1 or more, not 0"),
    (dict(n=0), ValueError, "n must be 1 or more, not 0"),
    (dict(steps=2.5), TypeError, "steps must be a whole number, not 2.5"),
    (dict(n="five"), TypeError, "n must be a whole number, not 'five'"),
    (dict(steps=-1), ValueError, "steps must be 1 or more"),
])  # fmt: skip
def test_generate_says_what_is_wrong(options, error, message):
    with pytest.raises(error, match=message):
        generate(model(), **options)
