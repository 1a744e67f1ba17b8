"""Lessons 15 and 17: prompts become tokens, an encoder learns to translate them, and images follow."""

import random
from functools import partial

import pytest
import torch
from helpers import awake, conditional, same, train

from diffusion_course.conditioning import (
    SIZE,
    Conditioned,
    Guided,
    LabelEmbedding,
    drop_labels,
)
from diffusion_course.quality import HEADS, attributes, labelled_faces, load_classifier
from diffusion_course.text import (
    LENGTH,
    WORDS_MODEL,
    TextDiffusion,
    TextEncoder,
    read_off,
    text_to_image,
    tokens,
    translation_loss,
)
from diffusion_course.toy import ATTRIBUTES, LABELS, VOCABULARY, attribute_faces, caption, face_labels
from diffusion_utils import generate


@pytest.fixture(scope="module")
def labels():
    return attribute_faces("test")[1]


@pytest.fixture(scope="module")
def shipped():
    return TextDiffusion.from_pretrained(WORDS_MODEL).requires_grad_(False)


def test_tokens():
    vocabulary = [",", "blue", "hair", "hat", "red"]
    assert tokens("Red hat, blue hair!", vocabulary)[0, :6].tolist() == [5, 4, 1, 2, 3, 0]
    assert tokens(["hat"], vocabulary).shape == (1, LENGTH)


@pytest.mark.parametrize("prompt, words", [
    ("a zebra with a zebra and a moon", "does not know: zebra, moon"),
    ("", "it has no words"),
    (" , !", "it has no words"),
    ("hat " * 49, "49 words and commas; 48 are the most"),
])  # fmt: skip
def test_prompts_that_are_refused(prompt, words):
    with pytest.raises(ValueError, match=words) as caught:
        tokens(prompt, VOCABULARY)
    assert len(str(caught.value).splitlines()) == 1


def test_captions_are_prompts(labels):
    """All words are in the vocabulary, and each word of it is used."""
    dice = random.Random(0)
    torch.manual_seed(0)
    captions = [caption(row, dice, vague=0.2) for row in drop_labels(labels, everything=0)]
    assert tokens(captions, VOCABULARY).shape == (1000, LENGTH) and len(set(captions)) > 900
    used = " ".join(captions).replace(",", " ,").split()
    assert set(used) == set(VOCABULARY)


def test_the_order_of_words_counts():
    torch.manual_seed(0)
    encoder, one, other = (
        TextEncoder(20),
        torch.tensor([[3, 4, 5, 6, 0, 0]]),
        torch.tensor([[5, 4, 3, 6, 0, 0]]),
    )
    assert encoder(one).shape == (1, SIZE) and not encoder(0 * one).any()
    assert not torch.allclose(encoder(one), encoder(other), atol=1e-3)
    longer = torch.cat((one, torch.zeros(1, 9, dtype=torch.long)), dim=1)
    assert torch.allclose(encoder(one), encoder(longer), atol=1e-5)


def test_an_encoder_learns_to_translate(labels):
    torch.manual_seed(0)
    loss = translation_loss(LabelEmbedding(len(LABELS)), partial(caption, vague=0.15), VOCABULARY)
    batches = torch.utils.data.DataLoader(labels, 50, shuffle=True)
    losses = train(TextEncoder(len(VOCABULARY)), batches, loss=loss, epochs=10, lr=3e-3)["loss"]
    assert losses[-1] < 0.5 * losses[0]


def test_saved_and_loaded(tmp_path):
    diffusion = awake(conditional(TextDiffusion, vocabulary=VOCABULARY))
    diffusion.save_pretrained(tmp_path)
    assert same(diffusion, TextDiffusion.from_pretrained(tmp_path))


def test_text_to_image():
    diffusion, options = awake(conditional(TextDiffusion, vocabulary=VOCABULARY)), dict(steps=3, seed=0)
    drawn = text_to_image(diffusion, "a red hat", n=2, guidance_scale=1.5, **options)
    guided = Guided(Conditioned(diffusion, tokens("a red hat", VOCABULARY)), diffusion, 1.5)
    assert torch.equal(drawn, generate(guided, 2, **options))
    assert len(text_to_image(diffusion, ["a red hat", "blue hair", "a cap"], steps=2)) == 3
    other = text_to_image(diffusion, "a red hat", 2, guidance_scale=1.5, negative_prompt="a beard", **options)
    assert not torch.allclose(drawn, other, atol=1e-3)


def test_read_off_is_the_mean_of_captions_with_one_label():
    torch.manual_seed(0)
    encoder = TextEncoder(len(VOCABULARY))
    embedding = read_off(encoder, caption, VOCABULARY, len(LABELS), captions=3)
    assert not embedding(face_labels()).any()
    mint = face_labels(background="mint")
    captions = {caption(mint[0], random.Random(seed)) for seed in range(200)}
    possible = encoder(tokens(sorted(captions), VOCABULARY)).detach()
    assert (embedding(mint)[0] > possible.min(dim=0).values - 1e-4).all()
    assert (embedding(mint)[0] < possible.max(dim=0).values + 1e-4).all()


def test_single_labels_add_up_to_captions(shipped, labels):
    dice = random.Random(0)
    output = shipped.encoder(tokens([caption(row, dice) for row in labels[:100]], VOCABULARY))
    embedding = read_off(shipped.encoder, caption, VOCABULARY, len(LABELS))
    assert (embedding(labels[:100]) - output).square().mean() < 0.05 * output.var()


def test_the_shipped_model_follows_its_prompt(shipped, labels):
    """What its card says, on fewer faces: mean accuracy over ten attributes."""
    assert shipped.config.vocabulary == VOCABULARY
    labels = labels[:100].clone()
    labels[:, [list(ATTRIBUTES).index(name) for name in ("hat_color", "clothes_color")]] = 0
    dice = random.Random(1)
    drawn = text_to_image(shipped, [caption(row, dice) for row in labels], steps=12, seed=0)
    seen, (_, classes) = attributes(load_classifier(), drawn), labelled_faces("test")
    right = [(seen[name] == classes[name][:100]).float().mean().item() for name in HEADS]
    assert sum(right) / len(right) > 0.7
