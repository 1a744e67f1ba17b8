"""Lesson 15: what is told reaches the network, guidance is its formula, sentences are understood."""

import math
import random

import pytest
import torch
from helpers import same, tiny

from diffusion_utils import Diffusion, DiffusionConfig, Training, generate
from diffusion_course.conditioning import (
    ANSWERS,
    LENGTH,
    NAMES,
    SIZE,
    VOCABULARY,
    WORDS_MODEL,
    Asked,
    Bag,
    Conditional,
    Guided,
    Sentence,
    ask,
    caption,
    conditional_loss,
    leave_out,
    tokens,
    told_faces,
    translation_loss,
    wish,
)
from diffusion_course.quality import HEADS, attributes, labelled_faces, load_classifier


def small(ordered=False, predicts="v", **options):
    torch.manual_seed(0)
    shape = {"image_size": 8, "widths": (8, 16), "block_depth": 1, **options}
    vocabulary = VOCABULARY if ordered else [f"{name}: {calls[0]}" for name, calls in ANSWERS]
    return Conditional(DiffusionConfig(**shape, predicts=predicts, vocabulary=vocabulary, ordered=ordered))


def awake(diffusion):
    """A model whose blocks listen, as after a training."""
    with torch.no_grad():
        for name, weight in diffusion.named_parameters():
            if ".told." in name:
                weight.normal_(std=0.3)
    return diffusion.eval()


@pytest.fixture(scope="module")
def faces():
    return told_faces("test")


# What can be said -----------------------------------------------------------------------


def test_each_attribute_of_the_classifier_can_be_said():
    assert {name: len(NAMES[name]) for name in HEADS} == HEADS
    assert len(set(map(str, ANSWERS))) == len(ANSWERS) == sum(map(len, NAMES.values()))


def test_told_faces_are_the_labels(faces):
    images, said = faces
    _, labels = labelled_faces("test")
    assert images.shape == (1000, 3, 32, 32) and said.shape == (1000, len(NAMES))
    for column, (name, values) in enumerate(NAMES.items()):
        first = 1 + ANSWERS.index((name, values[0]))
        if name in labels:
            assert torch.equal(said[:, column], first + labels[name])
        else:
            there = said[:, column][said[:, column] > 0]
            assert there.min() == first and there.max() == first + len(values) - 1
    bare = labels["hat"] == 0
    assert torch.equal(said[:, list(NAMES).index("hat_color")] == 0, bare)


def test_a_wish_is_said_as_of_a_face(faces):
    _, said = faces
    row = said[labels_with_hat(said)][0]
    wanted = {name: calls[0] for name, calls in (ANSWERS[number - 1] for number in row)}
    assert torch.equal(wish(**wanted)[0], row)
    assert not wish().any()


def labels_with_hat(said):
    return said[:, list(NAMES).index("hat_color")] > 0


def test_leave_out():
    torch.manual_seed(0)
    said = torch.arange(1, 13).repeat(4000, 1)
    left = leave_out(said)
    count = (left > 0).sum(dim=1)
    assert ((left == said) | (left == 0)).all()
    assert 0.1 < (count == 0).float().mean() < 0.2 and (count == 12).float().mean() > 0.15
    assert all((count == number).any() for number in range(13))
    assert not leave_out(said, everything=1).any()


# The network ----------------------------------------------------------------------------


def test_at_first_it_is_the_unconditional_network():
    diffusion = small(predicts="noise").eval()
    plain = tiny().eval()
    plain.load_state_dict({name: diffusion.state_dict()[name] for name in plain.state_dict()})
    noisy, time = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 1, 1)
    answer = diffusion.answer(noisy, time, wish(hat="cap"))
    assert torch.allclose(answer, plain.answer(noisy, time), atol=1e-6)
    assert not diffusion.load_state_dict(plain.state_dict(), strict=False).unexpected_keys


@pytest.mark.parametrize("ordered", [False, True])
def test_what_is_told_counts_face_by_face(ordered):
    diffusion = awake(small(ordered))
    noisy, time = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1), torch.full((3, 1, 1, 1), 0.5)
    said = torch.zeros(3, LENGTH, dtype=torch.long)
    said[1, 0], said[2, 0] = 5, 6
    with torch.no_grad():
        nothing, one, other = diffusion.answer(noisy, time, said)
        assert not torch.allclose(one, other, atol=1e-3) and not torch.allclose(one, nothing, atol=1e-3)
        assert torch.allclose(diffusion.answer(noisy, time)[0], nothing, atol=1e-6)
        alone = diffusion.answer(noisy, time, said[1:2])  # the same for all
    assert torch.allclose(alone, one.expand(3, -1, -1, -1), atol=1e-6)


def test_saved_and_loaded(tmp_path):
    diffusion = awake(small(ordered=True))
    diffusion.save_pretrained(tmp_path)
    again = Conditional.from_pretrained(tmp_path)
    assert same(diffusion, again) and again.config.vocabulary == VOCABULARY and again.config.ordered
    with pytest.raises(ValueError, match="weights are missing, or do not fit"):
        Diffusion.from_pretrained(tmp_path)


def test_order():
    torch.manual_seed(0)
    bag, sentence = Bag(20), Sentence(20)
    one, other = torch.tensor([[3, 4, 5, 6, 0, 0]]), torch.tensor([[5, 4, 3, 6, 0, 0]])
    assert torch.allclose(bag(one), bag(other), atol=1e-5)
    assert not torch.allclose(sentence(one), sentence(other), atol=1e-3)
    longer = torch.cat((one, torch.zeros(1, 9, dtype=torch.long)), dim=1)
    assert torch.allclose(sentence(one), sentence(longer), atol=1e-5)
    for encoder in (bag, sentence):
        assert encoder(one).shape == (1, SIZE) and not encoder(torch.zeros(2, 7, dtype=torch.long)).any()


def test_the_loss_is_that_of_the_velocity():
    """A network that answers with the noise it was given has none; wrong by the same, it costs more near noise."""

    class Knows(torch.nn.Module):
        norm = torch.nn.Identity()

        def answer(self, noisy, time, said):
            torch.manual_seed(0)
            return torch.randn(noisy.shape)

    torch.manual_seed(0)
    assert conditional_loss(Knows(), (torch.zeros(6, 3, 8, 8), torch.zeros(6, 12, dtype=torch.long))) == 0


def test_trains():
    diffusion = small()
    colors = torch.rand(32, 3, 1, 1).expand(-1, -1, 8, 8).contiguous()
    pictures = torch.utils.data.TensorDataset(colors, torch.randint(1, 80, (32, 12)))
    rows = torch.utils.data.DataLoader(pictures, 8, shuffle=True)
    training = Training(diffusion, rows, loss=conditional_loss, epochs=20, lr=5e-3)
    for _ in training:
        pass
    loss = training.history["loss"]
    assert sum(loss[-20:]) < 0.9 * sum(loss[:20])
    assert diffusion.unet.middle[0].told.weight.any()


# Guidance -------------------------------------------------------------------------------


def test_guidance_is_its_formula():
    diffusion = awake(small())
    noisy, time = torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.5)
    asked = Asked(diffusion, wish(hat="cap"))
    with torch.no_grad():
        told, free = asked.answer(noisy, time), diffusion.answer(noisy, time)
        for strength in (0, 0.5, 1, 3.0):
            guided = Guided(asked, diffusion, strength).answer(noisy, time)
            assert torch.allclose(guided, free + strength * (told - free), atol=1e-6)
        for between in ((0.6, 1.0), (0.0, 0.4)):  # not now
            assert torch.equal(Guided(asked, diffusion, 3.0, between).answer(noisy, time), told)


def test_wrapped_models_draw_like_any_other():
    diffusion = awake(small())
    asked = Asked(diffusion, wish(hat="cap"))
    free = generate(diffusion, 3, steps=4, seed=0, exact=True)
    one = generate(asked, 3, steps=4, seed=0, exact=True)
    assert torch.allclose(
        generate(Guided(asked, diffusion, 0), 3, steps=4, seed=0, exact=True), free, atol=1e-5
    )
    assert torch.allclose(
        generate(Guided(asked, diffusion, 1), 3, steps=4, seed=0, exact=True), one, atol=1e-5
    )
    assert not torch.allclose(one, free, atol=1e-2)
    rows = torch.cat((wish(), wish(hat="cap"), wish()))
    each = generate(Asked(diffusion, rows), 3, steps=4, seed=0, exact=True)
    assert torch.allclose(each[1], one[1], atol=1e-5) and torch.allclose(
        each[[0, 2]], free[[0, 2]], atol=1e-5
    )


def test_ask():
    diffusion = awake(small(ordered=True))
    drawn = ask(diffusion, "a red hat", n=2, strength=1.5, steps=3, seed=0, exact=True)
    asked = Asked(diffusion, tokens("a red hat", VOCABULARY))
    same_way = generate(Guided(asked, diffusion, 1.5), 2, steps=3, seed=0, exact=True)
    assert torch.allclose(drawn, same_way, atol=1e-6)
    assert len(ask(diffusion, ["a red hat", "blue hair", "a cap"], steps=2)) == 3
    otherwise = ask(diffusion, "a red hat", n=2, strength=1.5, avoid="a beard", steps=3, seed=0, exact=True)
    assert not torch.allclose(drawn, otherwise, atol=1e-3)


# Words ----------------------------------------------------------------------------------


def test_captions_are_known_sentences(faces):
    """All words are in the vocabulary, and no sentence is too long; each attribute that is said is in it."""
    dice = random.Random(0)
    torch.manual_seed(0)
    sentences = [caption(row, dice, vague=0.2) for row in leave_out(faces[1], everything=0)]
    assert tokens(sentences, VOCABULARY).shape == (1000, LENGTH)
    assert len(set(sentences)) > 900
    used = {word for sentence in sentences for word in sentence.replace(",", " ,").split()}
    assert used == set(VOCABULARY), set(VOCABULARY) - used


@pytest.mark.parametrize("wanted, words", [
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
    (dict(smile="sad"), ["a sad face", "a sad person", "an unhappy face", "a frowning face", "sad", "frowning"]),
    (dict(), ["a face", "a person", "a portrait"]),
])  # fmt: skip
def test_a_caption_says_it(wanted, words):
    dice, found = random.Random(0), set()
    for _ in range(60):
        sentence = caption(wish(**wanted)[0], dice)
        found |= {word for word in words if word in sentence}
        assert any(word in sentence for word in words) or wanted == dict(smile="sad"), sentence
    assert found == set(words)


def test_vague_captions():
    dice = random.Random(0)
    sentences = [caption(wish(hat="cap", glasses="round glasses")[0], dice, vague=1) for _ in range(20)]
    assert all("hat" in sentence and "glasses" in sentence for sentence in sentences)
    assert not any("cap" in sentence or "round" in sentence for sentence in sentences)


def test_tokens():
    vocabulary = [",", "blue", "hair", "hat", "red"]
    assert tokens("Red hat, blue hair!", vocabulary)[0, :6].tolist() == [5, 4, 1, 2, 3, 0]
    assert tokens(["hat"], vocabulary).shape == (1, LENGTH)


def test_a_sentence_learns_to_say_the_same():
    torch.manual_seed(0)
    bag, sentence = Bag(len(ANSWERS)), Sentence(len(VOCABULARY))
    _, said = told_faces("test")
    rows = torch.utils.data.DataLoader(said, 50, shuffle=True)

    def loss(encoder, batch):
        return translation_loss(bag, encoder, batch)

    training = Training(sentence, rows, loss=loss, epochs=10, lr=3e-3)
    for _ in training:
        pass
    assert training.history["loss"][-1] < 0.5 * training.history["loss"][0]


# The model that ships ---------------------------------------------------------------------


def test_the_shipped_model_does_as_asked(faces):
    """What its card says, on fewer faces: mean accuracy over ten attributes, asked in words."""
    diffusion = Conditional.from_pretrained(WORDS_MODEL)
    assert diffusion.config.vocabulary == VOCABULARY
    said = faces[1][:100].clone()
    said[:, [list(NAMES).index(name) for name in ("hat_color", "clothes_color")]] = 0
    dice = random.Random(1)
    drawn = ask(diffusion, [caption(row, dice) for row in said], strength=2, steps=12, seed=0)
    seen, (_, labels) = attributes(load_classifier(), drawn), labelled_faces("test")
    right = [(seen[name] == labels[name][:100]).float().mean().item() for name in HEADS]
    assert sum(right) / len(right) > 0.7


# Bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("call, error, message", [
    (lambda: wish(eyes="blue"), ValueError, "there is no attribute 'eyes', only skin_tone, hair_style"),
    (lambda: wish(hat="crown"), ValueError, "hat cannot be 'crown', only no hat, beanie, cap, brimmed hat"),
    (lambda: tokens("a zebra with a zebra and a moon", VOCABULARY), ValueError, "does not know: zebra, moon"),
    (lambda: tokens("", VOCABULARY), ValueError, "it says nothing"),
    (lambda: tokens(" , !", VOCABULARY), ValueError, "it says nothing"),
    (lambda: tokens("hat " * 49, VOCABULARY), ValueError, "49 words and commas; 48 are the most"),
    (lambda: tokens([7], VOCABULARY), TypeError, "text is needed, not 7"),
    (lambda: Guided(tiny(), tiny(), "much"), ValueError, "strength must be a number such as 2, not 'much'"),
    (lambda: Guided(tiny(), tiny(), math.nan), ValueError, "strength must be a number such as 2, not nan"),
    (lambda: Conditional(DiffusionConfig()), ValueError, "a Conditional needs a vocabulary"),
])  # fmt: skip
def test_says_what_is_wrong(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
