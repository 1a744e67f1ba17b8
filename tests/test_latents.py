"""Lesson 17: latents are images, each cell is decoded at its place, and a network that listens to words draws them."""

import pytest
import torch
from helpers import InTurn, same, train
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from diffusion_course.attention import text_to_image, tokens
from diffusion_course.conditioning import Conditioned, Guided
from diffusion_course.latents import (
    SCALE,
    TEXT_MODEL,
    AttentionUNet,
    Autoencoder,
    ConvBlock,
    TextToImage,
    TextToImageConfig,
    activations,
    autoencoder_loss,
    decode,
    encode,
    flow_loss,
    line_times,
)
from diffusion_course.objectives import line_time
from diffusion_course.quality import labelled_faces
from diffusion_course.samplers import DPMSolver
from diffusion_course.toy import VOCABULARY
from diffusion_utils import generate, get_loader, schedule

WORDS = ["red", "blue", "cap"]


@pytest.fixture(scope="module")
def shipped():
    return TextToImage.from_pretrained(TEXT_MODEL).eval().requires_grad_(False)


def small():
    torch.manual_seed(0)
    return Autoencoder(width=16, fine_width=8)


def small_model():
    torch.manual_seed(0)
    return TextToImage(TextToImageConfig(WORDS, widths=(8, 16), image_size=8))


# The autoencoder ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 20, 64])
def test_there_and_back(size):
    autoencoder, images = small(), torch.rand(3, 3, size, size)
    latents = autoencoder.encode(images)
    assert latents.shape == (3, 4, size // 4, size // 4) and 0 <= latents.min() and latents.max() <= 1
    assert autoencoder.decode(latents).shape == images.shape


def test_latents_have_a_fixed_size():
    """However large the weights before them: the encoder cannot drown the noise."""
    images, quiet, loud = torch.rand(16, 3, 16, 16), small(), small()
    with torch.no_grad():
        loud.encoder[6].weight *= 100
    torch.testing.assert_close(quiet.encode(images), loud.encode(images), atol=0.02, rtol=0)
    assert quiet.encode(images).std().item() == pytest.approx(SCALE, rel=0.1)


def test_a_block_does_not_look_at_the_other_images():
    block, images = ConvBlock(8, 16), torch.randn(4, 8, 8, 8)
    torch.testing.assert_close(block(images)[:1], block(images[:1]), atol=1e-5, rtol=1e-5)


class Shift(nn.Module):
    """What it decodes is `scale` times what it was, and lighter by `shift`."""

    def __init__(self, scale, shift):
        super().__init__()
        self.scale, self.shift = scale, shift

    def encode(self, images):
        return images

    def decode(self, latents):
        return self.scale * latents + self.shift


def test_the_loss_is_of_colours_edges_and_what_a_classifier_sees():
    plain = autoencoder_loss([], noise=0)
    torch.testing.assert_close(plain(Shift(1, 0.25), torch.rand(4, 3, 8, 8)), torch.tensor(0.25))
    stripes, ones, grey = torch.zeros(4, 3, 8, 8), torch.ones(4, 3, 8, 8), Shift(0, 0.5)
    stripes[..., ::2] = 1
    torch.testing.assert_close(plain(grey, stripes), torch.tensor(0.5 + 1))
    seen = autoencoder_loss([nn.ReLU()], perceptual=2, noise=0)  # its activations are the pixels
    torch.testing.assert_close(seen(grey, ones), torch.tensor(0.5 + 2 * 0.5))


def test_activations_are_those_of_all_layers():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU()]
    outputs = activations(layers, torch.rand(2, 3, 12, 12))
    assert [tuple(output.shape) for output in outputs] == [(2, 4, 10, 10), (2, 5, 3, 3)]
    torch.testing.assert_close(outputs[1], nn.Sequential(*layers[2:])(outputs[0]))


def test_the_noise_is_on_the_latents():
    autoencoder, inputs, images = small().eval(), [], torch.rand(64, 3, 8, 8)
    autoencoder.decoder.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    autoencoder_loss([], noise=0.1)(autoencoder, images)
    off = inputs[0] - (autoencoder.encode(images) - 0.5) / SCALE
    assert off.std().item() == pytest.approx(0.1, rel=0.1)


def test_it_learns():
    batches = get_loader(labelled_faces("test", size=16)[0][:64], 16, seed=0)
    losses = train(small(), batches, loss=autoencoder_loss([]), epochs=40, lr=5e-3)["loss"]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_many_images():
    autoencoder, images = small(), torch.rand(7, 3, 8, 8)
    latents = encode(autoencoder, images, batch_size=3)
    assert not autoencoder.training and not latents.requires_grad
    torch.testing.assert_close(latents, autoencoder.encode(images))
    torch.testing.assert_close(encode(autoencoder, images.numpy()), latents)
    decoded = decode(autoencoder, 3 * latents, batch_size=2)
    torch.testing.assert_close(decoded, autoencoder.decode(3 * latents).clip(0, 1))
    assert 0 <= decoded.min() and decoded.max() <= 1
    torch.testing.assert_close(decode(autoencoder.bfloat16(), 3 * latents), decoded, atol=0.05, rtol=0)


# Diffusion of latents -------------------------------------------------------------------


def test_times_lie_evenly_on_the_line():
    shares = line_time(torch.tensor(line_times(10), dtype=torch.float64))
    torch.testing.assert_close(shares, torch.linspace(0.995, 0.001, 11, dtype=torch.float64))
    assert TextToImageConfig(WORDS).times == line_times(20)


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 24)])
def test_the_network_begins_with_zero(widths):
    unet = AttentionUNet(widths, channels=4, text_width=16, size=32)
    words, mask = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.bool)
    output = unet(torch.randn(2, 4, 8, 8), torch.rand(2), words, mask, torch.randn(2, 16))
    assert torch.equal(output, torch.zeros(2, 4, 8, 8))


def test_it_sees_latents_as_they_lie_on_the_line():
    model, seen = small_model(), []
    model.unet.register_forward_pre_hook(lambda module, arguments: seen.extend(arguments[:2]))
    latents, noise, time = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.rand(2, 1, 1, 1)
    noise_rate, signal_rate = schedule(time)
    model.network(signal_rate * latents + noise_rate * noise, time)
    share = noise_rate / (noise_rate + signal_rate)
    torch.testing.assert_close(seen[0], (1 - share) * latents + share * noise)
    torch.testing.assert_close(seen[1], share.flatten())


def test_without_a_prompt_it_is_an_empty_one():
    model, noisy, time = small_model().eval(), torch.randn(3, 4, 8, 8), torch.rand(3, 1, 1, 1)
    for weight in model.parameters():  # many are zero at first
        nn.init.normal_(weight, std=0.1)
    empty = model.predict_noise(noisy, time, tokens("", WORDS))
    torch.testing.assert_close(model.predict_noise(noisy, time), empty)
    assert not torch.allclose(empty, model.predict_noise(noisy, time, tokens("red cap", WORDS)), atol=1e-6)


def test_it_learns_what_a_word_means():
    """Latents are high or low throughout, and the prompt says which."""
    model = small_model()
    model.autoencoder.requires_grad_(False)
    high = torch.arange(64) % 2
    latents = (0.5 + SCALE * (2.0 * high - 1)).view(-1, 1, 1, 1).expand(-1, 4, 8, 8).contiguous()
    rows = tokens([WORDS[number] for number in high.tolist()], WORDS)
    loader = DataLoader(TensorDataset(latents, rows), 16, shuffle=True)
    losses = train(model, loader, loss=flow_loss, epochs=30, lr=3e-3)["loss"]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    model.decode = lambda latents: latents  # see the latents themselves
    low, high = text_to_image(model, WORDS[:2], guidance_scale=1, steps=8, seed=0).mean((1, 2, 3))
    assert low < 0.5 - SCALE / 2 and high > 0.5 + SCALE / 2


def test_saved_and_loaded(tmp_path):
    model = small_model()
    model.save_pretrained(tmp_path)
    again = TextToImage.from_pretrained(tmp_path)
    assert same(again, model) and again.config.vocabulary == WORDS


# What ships -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_any_number_of_steps(shipped, steps):
    """In all of its words."""
    assert shipped.config.vocabulary == VOCABULARY and shipped.dtype == torch.float32
    images = text_to_image(shipped, "a red cap", n=1, steps=steps, sampler=DPMSolver(), seed=0)
    assert images.shape == (1, 3, 64, 64) and images.isfinite().all()


def test_guidance_in_one_batch_draws_the_same(shipped):
    prompts = ["a red cap and a beard", ""]
    models = [Conditioned(shipped, tokens(prompt, shipped.config.vocabulary)) for prompt in prompts]
    together, in_turn = (generate(kind(*models), 2, steps=6, seed=0) for kind in (Guided, InTurn))
    assert (together - in_turn).abs().max() < 1e-6
