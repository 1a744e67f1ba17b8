"""Lesson 17: codes are pictures, what is written is read at its place, and diffusion draws codes."""

import random

import pytest
import torch
from helpers import same
from safetensors.torch import save_file

from diffusion_utils import DiffusionConfig, Training, generate, get_loader
from diffusion_course.objectives import Answering, target_loss
from diffusion_course.conditioning import (
    ANSWERS,
    NAMES,
    VOCABULARY,
    WORDS_MODEL,
    Conditional,
    Sentence,
    ask,
    caption,
    tokens,
    told_faces,
)
from diffusion_course.latents import CODES_MODEL, Coder, coder_loss, codes_of, load_coder, pictures_of, read_off
from diffusion_course.quality import HEADS, attributes, face_features, kernel_distance, labelled_faces, load_classifier


@pytest.fixture(scope="module")
def held_out():
    return labelled_faces("test", size=64)


@pytest.fixture(scope="module")
def coder():
    return load_coder()


def small():
    torch.manual_seed(0)
    return Coder(width=8)


# The coder ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 20, 64])
def test_there_and_back(size):
    images = torch.rand(3, 3, size, size)
    codes = small().encode(images)
    assert codes.shape == (3, 4, size // 4, size // 4) and 0 < codes.min() and codes.max() < 1
    assert small().decode(codes).shape == images.shape


def test_codes_have_a_size_of_their_own():
    """However large the weights before them: the encoder cannot drown the noise."""
    images, quiet, loud = torch.rand(16, 3, 16, 16), small(), small()
    with torch.no_grad():
        loud.encoder[3].weight *= 100
    torch.testing.assert_close(quiet.encode(images), loud.encode(images), atol=0.02, rtol=0)


def test_the_loss_is_of_colours_and_edges():
    """Pictures that are off by the same everywhere have the right edges; the loss is what they are off by."""

    class Off(torch.nn.Module):
        def encode(self, images):
            return images

        def decode(self, codes):
            return codes + 0.25

    images = torch.rand(4, 3, 8, 8)
    torch.testing.assert_close(coder_loss(Off(), images, noise=0), torch.tensor(0.25))
    stripes = torch.zeros(4, 3, 8, 8)
    stripes[..., ::2] = 1

    class Grey(Off):
        def decode(self, codes):
            return torch.full_like(codes, 0.5)

    torch.testing.assert_close(coder_loss(Grey(), stripes, noise=0), torch.tensor(0.5 + 1))


def test_the_noise_is_on_the_codes():
    seen = []
    coder = small().eval()
    coder.decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(64, 3, 8, 8)
    coder_loss(coder, images, noise=0.1)
    off = (seen[0] - coder.encode(images)).std().item()
    assert off == pytest.approx(0.1, rel=0.1)


def test_it_learns():
    coder = Coder(width=8)
    faces = labelled_faces("test", size=16)[0][:64]
    training = Training(coder, get_loader(faces, 16, seed=0), loss=coder_loss, epochs=40, lr=5e-3)
    losses = [training.history["loss"][-1] for _ in training]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_many_pictures():
    coder, images = small(), torch.rand(7, 3, 8, 8)
    codes = codes_of(coder, images, batch_size=3)
    assert not coder.training and not codes.requires_grad
    torch.testing.assert_close(codes, coder.encode(images))
    torch.testing.assert_close(codes_of(coder, images.numpy()), codes)
    pictures = pictures_of(coder, 3 * codes, batch_size=2)
    torch.testing.assert_close(pictures, coder.decode(3 * codes).clip(0, 1))
    assert 0 <= pictures.min() and pictures.max() <= 1


def test_saved_and_loaded(tmp_path):
    weights = Coder()
    save_file(weights.state_dict(), tmp_path / "model.safetensors")
    again = load_coder(tmp_path)
    assert same(again, weights) and not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    with pytest.raises(FileNotFoundError):
        load_coder(tmp_path / "nowhere")
    save_file(small().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_coder(tmp_path)


# Diffusion on codes ---------------------------------------------------------------------


def test_the_same_model_draws_codes():
    torch.manual_seed(0)
    codes = torch.rand(64, 4, 1, 1).expand(-1, -1, 8, 8) * 0.2 + 0.4
    config = dict(image_size=8, channels=4, widths=(8, 16), block_depth=1)
    diffusion = Answering(DiffusionConfig(**config, target="v"))
    loader = torch.utils.data.DataLoader(codes, 16, shuffle=True, drop_last=True)
    training = Training(diffusion, loader, loss=target_loss, epochs=20, lr=5e-3)
    losses = [training.history["loss"][-1] for _ in training]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    drawn = generate(diffusion, n=8, steps=4, seed=0)
    assert drawn.shape == (8, 4, 8, 8) and drawn.mean().item() == pytest.approx(0.5, abs=0.1)


def test_read_off_is_the_mean_of_captions_that_say_one_thing():
    torch.manual_seed(0)
    sentence = Sentence(len(VOCABULARY))
    bag = read_off(sentence, count=3)
    assert not bag(torch.zeros(1, 12, dtype=torch.long)).any()
    number = 1 + ANSWERS.index(("background", ["mint"]))
    alone = torch.tensor([number * (name == "background") for name in NAMES])
    torch.manual_seed(0)
    wanted = bag(alone[None])[0]
    captions = {caption(alone, random.Random(seed)) for seed in range(200)}
    possible = sentence(tokens(sorted(captions), VOCABULARY)).detach()
    assert (wanted > possible.min(dim=0).values - 1e-4).all()
    assert (wanted < possible.max(dim=0).values + 1e-4).all()


def test_the_bag_says_what_sentences_say():
    reader = Conditional.from_pretrained(WORDS_MODEL).encoder.requires_grad_(False)
    _, said = told_faces("test")
    dice = random.Random(0)
    words = reader(tokens([caption(row, dice) for row in said[:100]], VOCABULARY))
    assert (read_off(reader)(said[:100]) - words).square().mean() < 0.05 * words.var()


# What ships -----------------------------------------------------------------------------


def test_the_coder_that_ships(coder, held_out):
    images, labels = held_out
    rebuilt = pictures_of(coder, codes_of(coder, images))
    assert (rebuilt - images).abs().mean() < 0.04
    classifier = load_classifier()
    reference = face_features(classifier, images)
    assert kernel_distance(face_features(classifier, rebuilt[:500]), reference[500:]) < 0.3
    seen = attributes(classifier, rebuilt)
    assert sum((seen[name] == labels[name]).float().mean() for name in HEADS) > 0.85 * len(HEADS)


def test_a_code_is_local(coder, held_out):
    codes = codes_of(coder, held_out[0][:1])
    other = codes.clone()
    other[:, :, 8, 8] = 1 - other[:, :, 8, 8]
    change = (pictures_of(coder, other) - pictures_of(coder, codes)).abs()
    assert change[:, :, 32:36, 32:36].mean() > 20 * change[:, :, :, :8].mean()


def test_the_model_that_ships_draws_codes():
    config = Conditional.from_pretrained(CODES_MODEL).config
    assert (config.channels, config.image_size, config.predicts) == (4, 16, "v")
    assert config.vocabulary == VOCABULARY


def test_the_whole_of_it(coder):
    """Blue hair when blue hair is asked for, not otherwise; and in all of 64×64 pixels."""
    diffusion, classifier = Conditional.from_pretrained(CODES_MODEL), load_classifier()
    shares, blue = [], [calls[0] for calls in NAMES["hair_color"]].index("blue")
    for color in ("blue", "black"):
        codes = ask(diffusion, f"a smiling face with long {color} hair", n=16, steps=10, seed=0)
        images = pictures_of(coder, codes)
        assert images.shape == (16, 3, 64, 64)
        shares.append((attributes(classifier, images)["hair_color"] == blue).float().mean())
    assert shares[0] > 0.5 > 0.1 > shares[1]
