"""Lesson 18: patches and back, blocks that begin as the identity, and a transformer in the U-Net's place."""

import pytest
import torch
from helpers import awake, same
from torch import nn

from diffusion_course.attention import text_to_image, tokens
from diffusion_course.latents import TextToImageConfig
from diffusion_course.transformer import DiffusionTransformer, DiT, DiTBlock, patchify, unpatchify

WORDS = ["red", "blue", "cap"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return awake(DiffusionTransformer(TextToImageConfig(WORDS, image_size=4)))


def test_patches_and_back():
    images = torch.arange(2 * 3 * 6 * 6.0).view(2, 3, 6, 6)
    patches = patchify(images, patch=2)
    assert patches.shape == (2, 9, 12)
    assert torch.equal(patches[1, 5], images[1, :, 2:4, 4:6].flatten())  # the second row, its last
    assert torch.equal(unpatchify(patches, patch=2), images)


def test_a_block_begins_as_the_identity():
    x, condition = torch.randn(2, 5, 12), torch.randn(2, 8)
    block = DiTBlock(12, 8, heads=2)
    assert torch.equal(block(x, condition), x)
    assert not torch.allclose(awake(block)(x, condition), x, atol=1e-2)


def test_a_block_by_hand():
    """Each half sees its input normalised, scaled and shifted, and goes through its gate."""
    block, x, condition = awake(DiTBlock(12, 8, heads=2)), torch.randn(2, 5, 12), torch.randn(2, 8)
    output = block(x, condition)
    scale1, shift1, gate1, scale2, shift2, gate2 = block.modulation(condition).view(2, 6, 1, 12).unbind(1)
    x = x + gate1 * block.attention(nn.functional.layer_norm(x, (12,)) * (1 + scale1) + shift1)
    hidden = block.hidden1(nn.functional.layer_norm(x, (12,)) * (1 + scale2) + shift2)
    torch.testing.assert_close(output, x + gate2 * block.hidden2(nn.functional.gelu(hidden)))


def network(**options):
    torch.manual_seed(0)
    sizes = dict(image_size=8, channels=4, patch=2, width=24, depth=2, heads=2, text_width=6, size=16)
    return DiT(**sizes | options)


@pytest.mark.parametrize("size, channels, patch", [(8, 4, 2), (8, 3, 4), (6, 1, 1)])
def test_shapes(size, channels, patch):
    """It begins with zeros, whatever goes in."""
    images, words = torch.randn(2, channels, size, size), torch.randn(2, 3, 6)
    mask, pooled = torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 6)
    unet = network(image_size=size, channels=channels, patch=patch)
    output = unet(images, torch.rand(2), words, mask, pooled)
    assert torch.equal(output, torch.zeros_like(images))


def test_what_it_looks_at():
    """Time, prompt and every place count; words that only pad a prompt do not."""
    unet = awake(network())
    images, time, words, pooled = (
        torch.randn(1, 4, 8, 8),
        torch.rand(1),
        torch.randn(1, 3, 6),
        torch.randn(1, 6),
    )
    mask = torch.tensor([[True, True, False]])
    output = unet(images, time, words, mask, pooled)
    padding, word, corner = words.clone(), words.clone(), images.clone()
    padding[:, 2] += 9
    word[:, 1] += 1
    corner[:, :, 7, 7] += 1
    assert torch.equal(unet(images, time, padding, mask, pooled), output)
    others = [
        unet(images, time + 0.3, words, mask, pooled),
        unet(images, time, word, mask, pooled),
        unet(images, time, words, mask, pooled + 1),
        unet(corner, time, words, mask, pooled),
    ]
    assert all(not torch.allclose(other[:, :, 0, 0], output[:, :, 0, 0], atol=1e-4) for other in others)


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = DiffusionTransformer.from_pretrained(tmp_path)
    assert same(again, model) and again.config.vocabulary == WORDS and type(again.unet) is DiT


def test_it_draws_prompts(model):
    images = text_to_image(model, ["red cap", ""], steps=2, seed=0)
    assert images.shape == (2, 3, 16, 16) and 0 <= images.min() and images.max() <= 1
    noisy, time = torch.randn(2, 4, 4, 4), torch.rand(2, 1, 1, 1)
    empty = model.predict_noise(noisy, time, tokens("", WORDS))
    torch.testing.assert_close(model.predict_noise(noisy, time), empty)
    assert not torch.allclose(model.predict_noise(noisy, time, tokens("red cap", WORDS)), empty, atol=1e-4)
