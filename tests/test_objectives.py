"""Lesson 13: what a network is asked for."""

import pytest
import torch
from helpers import loader, tiny, train

from diffusion_course.objectives import prediction_loss, targets
from diffusion_course.optimizers import even_l1_loss
from diffusion_course.samplers import time_of
from diffusion_utils import Diffusion, generate, mix, predict, schedule

PREDICTS = "noise", "image", "v", "flow"


@pytest.fixture
def game():
    """Noise, images and times, in 64 bits."""
    torch.manual_seed(0)
    noise, image = torch.randn(2, 6, 3, 8, 8, dtype=torch.float64)
    return noise, image, torch.linspace(0, 1, 6, dtype=torch.float64).reshape(6, 1, 1, 1)


def test_definitions(game):
    noise, image, time = game
    noise_rate, signal_rate = schedule(time)
    right = targets(*game)
    assert tuple(right) == PREDICTS and right["noise"] is noise and right["image"] is image
    assert torch.equal(right["v"], signal_rate * noise - noise_rate * image)
    assert torch.equal(right["flow"], noise - image)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_each_output_says_all(game, predicts):
    """A network with the right output leads to the right noise and the right image."""
    noise, image, time = game
    diffusion = tiny(predicts=predicts).double()
    diffusion.network = lambda noisy, time: targets(*game)[predicts]
    predicted = predict(diffusion, mix(image, noise, time), time)
    torch.testing.assert_close(predicted, (noise, image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("predicts", PREDICTS)
def test_it_draws_and_is_saved(tmp_path, predicts):
    diffusion = tiny(predicts=predicts)
    diffusion.save_pretrained(tmp_path)
    again = Diffusion.from_pretrained(tmp_path)
    assert again.config.predicts == predicts
    drawn = generate(again, n=2, steps=2, seed=0)
    assert torch.equal(drawn, generate(diffusion, n=2, steps=2, seed=0))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_the_loss_of_an_output_of_0(predicts, power):
    diffusion = tiny(predicts=predicts)
    torch.nn.init.zeros_(diffusion.unet.out.weight)
    torch.nn.init.zeros_(diffusion.unet.out.bias)
    images = torch.rand(64, 3, 8, 8)
    torch.manual_seed(1)
    loss = prediction_loss(diffusion, images, power)
    torch.manual_seed(1)
    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), 1 - torch.rand(64, 1, 1, 1)
    torch.testing.assert_close(loss, targets(noise, image, time)[predicts].abs().pow(power).mean())


@pytest.mark.parametrize(
    "batch, condition", [(torch.rand(5, 3, 8, 8), ()), ([torch.rand(5, 3, 8, 8), 7], (7,))]
)
def test_times_and_conditions(batch, condition):
    """With `late` much noise comes more often, from the largest sigma on; a condition goes to the network."""
    diffusion, calls = tiny(predicts="v"), []
    diffusion.network = lambda noisy, *inputs: calls.append(inputs) or 0 * noisy
    for options in ({}, {"late": 1.5}, {"late": 1.5, "largest_sigma": 200.0}):
        torch.manual_seed(1)
        prediction_loss(diffusion, batch, **options)
    even, late, later = (time for time, *_ in calls)
    assert all(tuple(given) == condition for _, *given in calls)
    torch.testing.assert_close(late, 1 - (1 - even) ** 1.5)
    torch.testing.assert_close(later, time_of(200.0) * late)


@pytest.mark.parametrize("loss", [even_l1_loss, prediction_loss])
def test_images_of_another_size_are_refused(loss):
    for size in ((16, 16), (16, 8), (8, 16)):
        with pytest.raises(ValueError, match="image_size=8"):
            loss(tiny(), torch.rand(4, 3, *size))


@pytest.mark.parametrize("predicts", PREDICTS)
def test_all_can_be_learned(predicts):
    losses = train(tiny(predicts=predicts), loader(), loss=prediction_loss, epochs=30, lr=5e-3)["loss"]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
