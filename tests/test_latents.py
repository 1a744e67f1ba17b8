"""Lesson 17: latents are images, each cell is decoded at its place, and diffusion draws latents."""

import pytest
import torch
from helpers import same, train
from safetensors.torch import save_file

from diffusion_course.latents import (
    LATENT_MODEL,
    Autoencoder,
    autoencoder_loss,
    decode,
    encode,
    load_autoencoder,
)
from diffusion_course.objectives import prediction_loss
from diffusion_course.quality import (
    HEADS,
    attributes,
    face_features,
    kernel_distance,
    labelled_faces,
    load_classifier,
)
from diffusion_course.text import TextDiffusion, text_to_image
from diffusion_course.toy import ATTRIBUTES, VOCABULARY
from diffusion_utils import Diffusion, DiffusionConfig, generate, get_loader


@pytest.fixture(scope="module")
def held_out():
    return labelled_faces("test", size=64)


@pytest.fixture(scope="module")
def shipped():
    return load_autoencoder()


def small():
    torch.manual_seed(0)
    return Autoencoder(width=8)


# The autoencoder ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 20, 64])
def test_there_and_back(size):
    images = torch.rand(3, 3, size, size)
    latents = small().encode(images)
    assert latents.shape == (3, 4, size // 4, size // 4) and 0 < latents.min() and latents.max() < 1
    assert small().decode(latents).shape == images.shape


def test_latents_have_a_fixed_size():
    """However large the weights before them: the encoder cannot drown the noise."""
    images, quiet, loud = torch.rand(16, 3, 16, 16), small(), small()
    with torch.no_grad():
        loud.encoder[3].weight *= 100
    torch.testing.assert_close(quiet.encode(images), loud.encode(images), atol=0.02, rtol=0)


class Off(torch.nn.Module):
    """What it decodes is too light by the same everywhere."""

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents + 0.25


class Grey(Off):
    def decode(self, latents):
        return torch.full_like(latents, 0.5)


def test_the_loss_is_of_colours_and_edges():
    torch.testing.assert_close(autoencoder_loss(Off(), torch.rand(4, 3, 8, 8), noise=0), torch.tensor(0.25))
    stripes = torch.zeros(4, 3, 8, 8)
    stripes[..., ::2] = 1
    torch.testing.assert_close(autoencoder_loss(Grey(), stripes, noise=0), torch.tensor(0.5 + 1))


def test_the_noise_is_on_the_latents():
    autoencoder, inputs, images = small().eval(), [], torch.rand(64, 3, 8, 8)
    autoencoder.decoder.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    autoencoder_loss(autoencoder, images, noise=0.1)
    assert (inputs[0] - autoencoder.encode(images)).std().item() == pytest.approx(0.1, rel=0.1)


def test_it_learns():
    batches = get_loader(labelled_faces("test", size=16)[0][:64], 16, seed=0)
    losses = train(Autoencoder(width=8), batches, loss=autoencoder_loss, epochs=40, lr=5e-3)["loss"]
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


def test_saved_and_loaded(tmp_path):
    weights = Autoencoder()
    save_file(weights.state_dict(), tmp_path / "model.safetensors")
    again = load_autoencoder(tmp_path)
    assert same(again, weights) and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


# Diffusion of latents -------------------------------------------------------------------


def test_the_same_model_draws_latents():
    torch.manual_seed(0)
    latents = (torch.rand(64, 4, 1, 1) * 0.2 + 0.4).expand(-1, -1, 8, 8).contiguous()
    config = DiffusionConfig(image_size=8, channels=4, widths=(8, 16), block_depth=1, predicts="v")
    diffusion = Diffusion(config)
    losses = train(diffusion, get_loader(latents, 16), loss=prediction_loss, epochs=20, lr=5e-3)["loss"]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    drawn = generate(diffusion, n=8, steps=4, seed=0)
    assert drawn.shape == (8, 4, 8, 8) and drawn.mean().item() == pytest.approx(0.5, abs=0.1)


# What ships -----------------------------------------------------------------------------


def test_the_shipped_autoencoder(shipped, held_out):
    images, classes = held_out
    rebuilt = decode(shipped, encode(shipped, images))
    assert (rebuilt - images).abs().mean() < 0.04
    classifier = load_classifier()
    reference = face_features(classifier, images)
    assert kernel_distance(face_features(classifier, rebuilt[:500]), reference[500:]) < 0.3
    seen = attributes(classifier, rebuilt)
    assert sum((seen[name] == classes[name]).float().mean() for name in HEADS) > 0.85 * len(HEADS)


def test_a_latent_is_local(shipped, held_out):
    latents = encode(shipped, held_out[0][:1])
    other = latents.clone()
    other[:, :, 8, 8] = 1 - other[:, :, 8, 8]
    change = (decode(shipped, other) - decode(shipped, latents)).abs()
    assert change[:, :, 32:36, 32:36].mean() > 20 * change[:, :, :, :8].mean()


def test_the_whole_of_it(shipped):
    """Blue hair when the prompt says so, not otherwise; and in all of 64×64 pixels."""
    diffusion, classifier = TextDiffusion.from_pretrained(LATENT_MODEL), load_classifier()
    config = diffusion.config
    assert (config.channels, config.image_size, config.predicts) == (4, 16, "v")
    assert config.vocabulary == VOCABULARY
    shares, blue = [], ATTRIBUTES["hair_color"].index("blue")
    for color in ("blue", "black"):
        prompt = f"a smiling face with long {color} hair"
        images = decode(shipped, text_to_image(diffusion, prompt, n=16, steps=10, seed=0))
        assert images.shape == (16, 3, 64, 64)
        shares.append((attributes(classifier, images)["hair_color"] == blue).float().mean())
    assert shares[0] > 0.5 > 0.1 > shares[1]
