"""Lesson 16: captions and tokens, attention as PyTorch has it, an encoder that knows order, and prompts that draw."""

import random

import pytest
import torch
from helpers import awake
from torch import nn

from diffusion_course.attention import (
    LENGTH,
    Attention,
    SpatialAttention,
    TextEncoder,
    TransformerBlock,
    reworded,
    text_to_image,
    tokens,
)
from diffusion_course.conditioning import Conditioned, Guided, drop_labels
from diffusion_course.latents import TextToImage, TextToImageConfig
from diffusion_course.toy import VOCABULARY, WORDINGS, attribute_faces, caption, face_labels
from diffusion_utils import generate

# Captions -------------------------------------------------------------------------------


@pytest.mark.parametrize("attributes, phrases", [
    (dict(hat="cap", hat_color="orange"), ["an orange cap", "an orange baseball cap"]),
    (dict(hat_color="red"), ["a red hat"]),
    (dict(hat="no hat"), ["no hat"]),
    (dict(hair_style="afro", hair_color="blue"), ["a blue afro"]),
    (dict(hair_style="afro"), ["an afro"]),
    (dict(hair_style="braids", hair_color="white"), ["white braids"]),
    (dict(hair_style="long", hair_color="ginger"), ["long ginger hair", "long red hair"]),
    (dict(hair_style="bald"), ["a bald head"]),
    (dict(clothes="hoodie", clothes_color="green"), ["a green hoodie"]),
    (dict(clothes_color="green"), ["green clothes"]),
    (dict(smile="sad"), ["sad", "unhappy", "frowning"]),
    (dict(), ["a face", "a person", "a portrait"]),
])  # fmt: skip
def test_a_caption_has_it(attributes, phrases):
    dice = random.Random(0)
    captions = [caption(face_labels(**attributes)[0], dice) for _ in range(60)]
    assert all(any(phrase in text for phrase in phrases) for text in captions)
    assert all(any(phrase in text for text in captions) for phrase in phrases)


def test_vague_captions():
    dice, labels = random.Random(0), face_labels(hat="cap", glasses="round glasses")[0]
    captions = [caption(labels, dice, vague=1) for _ in range(20)]
    assert all("hat" in text and "glasses" in text for text in captions)
    assert not any("cap" in text or "round" in text for text in captions)


def test_captions_are_prompts():
    """All words are in the vocabulary, and each word of it is used."""
    dice = random.Random(0)
    torch.manual_seed(0)
    rows = drop_labels(attribute_faces("test")[1], everything=0)
    captions = [caption(row, dice, vague=0.2) for row in rows]
    assert tokens(captions, VOCABULARY).shape == (1000, 1 + LENGTH) and len(set(captions)) > 900
    assert set(" ".join(captions).replace(",", " ,").split()) == set(VOCABULARY)


# Tokens ---------------------------------------------------------------------------------


def test_tokens():
    vocabulary = [",", "blue", "hair", "hat", "red"]
    assert tokens("Red hat, blue hair!", vocabulary)[0, :7].tolist() == [6, 5, 4, 1, 2, 3, 0]
    assert tokens(["hat", "red hat"], vocabulary).shape == (2, 1 + LENGTH)
    assert tokens("", vocabulary).tolist() == [[6] + LENGTH * [0]]


@pytest.mark.parametrize("prompt, expected", [
    ("A man in a red cap, without a beard", "a person wearing a red cap, no beard"),
    ("a dark-skinned woman, her mouth wide open", "a dark skin person, an open mouth"),
    ("grey hair cut in a bob in front of a blue wall", "grey  bob on a blue background"),
    ("Could you please draw green eyes, shades and a huge grin?", "   , sunglasses and smiling, an open mouth?"),
    ("a top hat on purple hair", "a brimmed hat on purple hair"),
    ("a bushy beard, on purple", "a full beard, lavender background"),
    ("grey beard, long wavy hair, orange background", "a full beard, wavy hair, coral background"),
])  # fmt: skip
def test_everyday_words(prompt, expected):
    assert reworded(prompt, WORDINGS) == expected
    assert torch.equal(tokens(prompt, VOCABULARY, WORDINGS), tokens(expected, VOCABULARY))


def test_captions_are_not_reworded():
    dice = random.Random(0)
    captions = [caption(row, dice, vague=0.2) for row in attribute_faces("test")[1][:200]]
    assert [reworded(text, WORDINGS) for text in captions] == captions


def test_unknown_words_and_too_many():
    with pytest.warns(UserWarning, match="does not know these words: zebra, moon$"):
        read = tokens("a zebra + a red zebra hat & a moon", VOCABULARY)
    assert torch.equal(read, tokens("a a red hat a", VOCABULARY))
    with pytest.warns(UserWarning, match="does not know these words: Красная, 帽子, casquet_té, 9$".lower()):
        read = tokens("Красная red 帽子, casquet_té 9", VOCABULARY)
    assert torch.equal(read, tokens("red,", VOCABULARY))
    with pytest.raises(ValueError, match="49 words and commas; 48 are the most"):
        tokens("hat " * 49, VOCABULARY)


# Attention ------------------------------------------------------------------------------


def attention(width=16, **options):
    torch.manual_seed(0)
    return awake(Attention(width, **options)).requires_grad_(False)


@pytest.mark.parametrize("heads", [1, 4])
def test_it_is_pytorchs(heads):
    ours = attention(heads=heads)
    theirs = nn.MultiheadAttention(16, heads, batch_first=True).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key.weight, ours.value.weight)))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
        x, context = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
        mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
        expected, weights = theirs(x, context, context, key_padding_mask=~mask, average_attn_weights=False)
    torch.testing.assert_close(ours(x, context, mask), expected)
    torch.testing.assert_close(ours.weights(x, context, mask), weights)
    assert not weights[1, :, :, 4:].any()


def test_another_width_of_context():
    layer = attention(context_width=6, heads=2)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 3, 6)
    assert layer(x, context).shape == (2, 5, 16)
    torch.testing.assert_close(layer.weights(x, context).sum(dim=3), torch.ones(2, 2, 5))


def test_at_first_it_changes_nothing():
    x, words, mask = torch.randn(2, 16, 4, 4), torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(SpatialAttention(16, text_width=8)(x, words, mask), x)
    rows = torch.randn(2, 5, 16)
    assert torch.equal(TransformerBlock(16)(rows), rows)


def test_places_look_at_places_and_at_words():
    torch.manual_seed(0)
    layer = awake(SpatialAttention(16, text_width=8))
    x, words, mask = torch.randn(1, 16, 4, 4), torch.randn(1, 3, 8), torch.tensor([[True, True, False]])
    result = layer(x, words, mask)
    assert result.shape == x.shape
    elsewhere = x.clone()
    elsewhere[:, :, 3, 3] += 1
    assert not torch.allclose(layer(elsewhere, words, mask)[:, :, 0, 0], result[:, :, 0, 0], atol=1e-4)
    other, hidden = words.clone(), words.clone()
    other[:, 1] += 1
    hidden[:, 2] += 1
    assert not torch.allclose(layer(x, other, mask), result, atol=1e-4)
    assert torch.equal(layer(x, hidden, mask), result)


# The text encoder -----------------------------------------------------------------------


def encoder(**options):
    torch.manual_seed(0)
    return awake(TextEncoder(20, width=16, depth=2, **options)).requires_grad_(False)


def test_words_mask_and_the_whole():
    words, mask, pooled = encoder()(torch.tensor([[19, 4, 5, 0], [19, 0, 0, 0]]))
    assert words.shape == (2, 4, 16) and torch.equal(pooled, words[:, 0])
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]


def test_order_counts_and_later_words_are_seen():
    one, other = (encoder()(torch.tensor([row]))[0] for row in ([19, 3, 4, 5], [19, 3, 5, 4]))
    assert not torch.allclose(one[:, :2], other[:, :2], atol=1e-3)


def test_zeros_behind_a_prompt_do_not_count():
    short, long = (encoder()(torch.tensor([[19, 3, 4] + zeros * [0]])) for zeros in (0, 9))
    torch.testing.assert_close(short[0], long[0][:, :3])
    torch.testing.assert_close(short[2], long[2])


# Drawing --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = TextToImageConfig(VOCABULARY, image_size=8, widths=(8, 16))
    return awake(TextToImage(config))


def test_text_to_image(model):
    options = dict(steps=2, seed=0)
    drawn = text_to_image(model, "a red hat", n=2, guidance_scale=1.5, **options)
    assert drawn.shape == (2, 3, 32, 32) and 0 <= drawn.min() and drawn.max() <= 1
    prompt, nothing = (Conditioned(model, tokens(text, VOCABULARY)) for text in ("a red hat", ""))
    assert torch.equal(drawn, model.decode(generate(Guided(prompt, nothing, 1.5), 2, **options)))
    other = text_to_image(model, "a red hat", 2, guidance_scale=1.5, negative_prompt="a beard", **options)
    assert not torch.allclose(drawn, other, atol=1e-3)


def test_several_prompts(model):
    several = text_to_image(model, ["a red hat", "", "a cap"], steps=2, seed=0)
    assert len(several) == 3
    anything = text_to_image(model, "", n=3, steps=2, seed=0)
    torch.testing.assert_close(several[1], anything[1], atol=1e-4, rtol=0)
    with pytest.warns(UserWarning, match="does not know these words: zebra"):
        unknown = text_to_image(model, "a red zebra hat", n=1, steps=2, seed=0)
    assert torch.equal(unknown, text_to_image(model, "a red hat", n=1, steps=2, seed=0))
