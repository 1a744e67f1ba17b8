"""Lesson 19: diffusers' schedulers drive our networks, and networks are changed a little."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from diffusion_course.attention import tokens
from diffusion_course.latents import TextToImage, TextToImageConfig
from diffusion_course.wild import LoRA, add_control, add_lora, draw_with, merge_lora, scheduler_betas
from diffusion_utils import TOY_MODEL, Diffusion, generate, schedule

WORDS = ["red", "blue", "cap"]


@pytest.fixture(scope="module")
def toy():
    return Diffusion.from_pretrained(TOY_MODEL).requires_grad_(False)


def small_model():
    torch.manual_seed(0)
    model = TextToImage(TextToImageConfig(WORDS, widths=(8, 16), image_size=8))
    for weight in model.parameters():  # many are zero at first
        nn.init.normal_(weight, std=0.1)
    return model.eval()


def output(model):
    torch.manual_seed(1)
    noisy, time = torch.randn(3, 4, 8, 8), torch.rand(3, 1, 1, 1)
    return model.network(noisy, time, tokens("red cap", WORDS))


# diffusers ------------------------------------------------------------------------------


def test_betas_are_those_of_the_schedule():
    scheduler = DDIMScheduler(trained_betas=scheduler_betas(100))
    _, signal_rate = schedule(torch.arange(1, 101) / 100)
    torch.testing.assert_close(scheduler.alphas_cumprod, signal_rate**2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [4, 20])
def test_ddim_of_diffusers_draws_the_same_faces(toy, steps):
    scheduler = DDIMScheduler(trained_betas=scheduler_betas(), timestep_spacing="trailing", clip_sample=False)
    faces = draw_with(toy, scheduler, n=2, steps=steps, seed=0)
    torch.testing.assert_close(faces, generate(toy, 2, steps, seed=0), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", [DDPMScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_draw_faces(toy, kind):
    options = {"clip_sample": False} if kind is DDPMScheduler else {}
    scheduler = kind(trained_betas=scheduler_betas(), timestep_spacing="trailing", **options)
    torch.manual_seed(0)
    faces = draw_with(toy, scheduler, n=4, steps=20, seed=0)
    assert faces.shape == (4, 3, 32, 32) and 0.1 < faces.std() < 0.4


# Fine-tuning ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Linear(6, 5), (3, 7, 6)),
        (nn.Conv2d(6, 5, 3, padding=1), (3, 6, 8, 8)),
        (nn.Conv2d(6, 5, 3, stride=2, padding=1), (3, 6, 8, 8)),
        (nn.Conv2d(6, 5, 1), (3, 6, 8, 8)),
    ],
)
def test_lora_begins_as_the_layer_and_can_be_merged(layer, shape):
    lora, x = LoRA(layer, rank=2), torch.randn(shape)
    assert torch.equal(lora(x), layer(x))
    nn.init.normal_(lora.up.weight)
    assert not torch.allclose(lora(x), layer(x), atol=1e-2)
    torch.testing.assert_close(lora.merged()(x), lora(x), atol=1e-5, rtol=1e-5)
    assert [name for name, weight in lora.named_parameters() if weight.requires_grad] == [
        "down.weight",
        "up.weight",
    ]


def test_a_whole_network_with_lora():
    model = small_model()
    before, count = output(model), sum(weight.numel() for weight in model.unet.parameters())
    loras = add_lora(model.unet, rank=1)
    assert torch.equal(output(model), before)
    learning = sum(weight.numel() for weight in model.unet.parameters() if weight.requires_grad)
    assert 0 < learning < 0.4 * count and len(loras) == sum(isinstance(m, LoRA) for m in model.modules())
    for lora in loras:
        nn.init.normal_(lora.up.weight, std=0.1)
    changed = output(model)
    assert not torch.allclose(changed, before, atol=1e-3)
    merge_lora(model.unet)
    assert not any(isinstance(module, LoRA) for module in model.modules())
    torch.testing.assert_close(output(model), changed, atol=1e-4, rtol=1e-4)


# Control --------------------------------------------------------------------------------


def test_control_begins_without_a_change_and_learns():
    model = small_model()
    before = output(model)
    levels = add_control(model.unet, channels=2)
    for level in levels:
        level.control = torch.randn(1, 2, 8, 8)
    assert torch.equal(output(model), before)
    learning = [name for name, weight in model.unet.named_parameters() if weight.requires_grad]
    assert learning and all(".branch." in n or ".control_in." in n or ".joint." in n for n in learning)
    output(model).square().mean().backward()
    assert all(level.joint.weight.grad.abs().sum() > 0 for level in levels)
    for level in levels:
        nn.init.normal_(level.joint.weight, std=0.1)
    one = output(model)
    for level in levels:
        level.control = torch.randn(1, 2, 8, 8)
    assert not torch.allclose(output(model), one, atol=1e-4)
