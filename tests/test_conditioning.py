"""Lesson 15: labels of toy faces, a condition in each block, guidance as its formula."""

import pytest
import torch
from helpers import InTurn, awake, conditional, loader, same, tiny, train

from diffusion_course.conditioning import (
    SIZE,
    ConditionalDiffusion,
    Conditioned,
    Guided,
    LabelEmbedding,
    conditional_loss,
    drop_labels,
)
from diffusion_course.quality import HEADS, labelled_faces
from diffusion_course.toy import ATTRIBUTES, LABELS, SYNONYMS, attribute_faces, face_labels
from diffusion_utils import Diffusion, generate

# Labels ---------------------------------------------------------------------------------


def test_each_attribute_of_the_classifier_has_labels():
    assert {name: len(ATTRIBUTES[name]) for name in HEADS} == HEADS
    assert len(set(LABELS)) == len(LABELS) == sum(map(len, ATTRIBUTES.values()))
    assert all(set(SYNONYMS[name]) <= set(values) for name, values in ATTRIBUTES.items())


def test_labels_of_faces():
    images, labels = attribute_faces("test")
    _, classes = labelled_faces("test")
    assert images.shape == (1000, 3, 32, 32) and labels.shape == (1000, len(ATTRIBUTES))
    for column, (name, values) in zip(labels.T, ATTRIBUTES.items()):
        numbers = column - 1 - LABELS.index((name, values[0]))
        if name in classes:
            assert torch.equal(numbers, classes[name])
        else:
            assert numbers[column > 0].min() == 0 and numbers.max() == len(values) - 1
    without_color = labels[:, list(ATTRIBUTES).index("hat_color")] == 0
    assert torch.equal(without_color, classes["hat"] == 0)
    row = labels[~without_color][0]
    assert torch.equal(face_labels(**dict(LABELS[number - 1] for number in row))[0], row)
    assert not face_labels().any()


def test_a_value_that_does_not_exist():
    with pytest.raises(ValueError, match="hat cannot be 'crown', only no hat, beanie, cap, brimmed hat"):
        face_labels(hat="crown")


# The network ----------------------------------------------------------------------------


def test_the_order_of_labels_does_not_count():
    embedding, labels = LabelEmbedding(20), torch.tensor([[3, 4, 0]])
    assert embedding(labels).shape == (1, SIZE) and not embedding(0 * labels).any()
    assert torch.allclose(embedding(labels), embedding(labels.flip(1)))


def test_drop_labels():
    torch.manual_seed(0)
    labels = torch.arange(1, 13).repeat(4000, 1)
    left = drop_labels(labels)
    count = (left > 0).sum(dim=1)
    assert ((left == labels) | (left == 0)).all()
    assert 0.1 < (count == 0).float().mean() < 0.2 and (count == 12).float().mean() > 0.15
    assert all((count == number).any() for number in range(13))
    assert not drop_labels(labels, everything=1).any()


def test_at_first_it_is_the_unconditional_network():
    diffusion, plain = conditional(predicts="noise").eval(), tiny().eval()
    assert not diffusion.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    noisy, time = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 1, 1)
    noise = diffusion.predict_noise(noisy, time, face_labels(hat="cap"))
    assert torch.allclose(noise, plain.predict_noise(noisy, time), atol=1e-6)


def test_each_image_has_its_condition():
    diffusion = awake(conditional())
    noisy, time = torch.randn(1, 3, 8, 8).expand(3, -1, -1, -1), torch.full((3, 1, 1, 1), 0.5)
    labels = torch.tensor([[0, 0], [5, 0], [6, 0]])
    with torch.no_grad():
        nothing, one, other = diffusion.predict_noise(noisy, time, labels)
        assert not torch.allclose(one, other, atol=1e-3) and not torch.allclose(one, nothing, atol=1e-3)
        assert torch.allclose(diffusion.predict_noise(noisy, time)[0], nothing, atol=1e-6)
        shared = diffusion.predict_noise(noisy, time, labels[1:2])
    assert torch.allclose(shared, one.expand(3, -1, -1, -1), atol=1e-6)


def test_saved_and_loaded(tmp_path):
    diffusion = awake(conditional())
    diffusion.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    again = ConditionalDiffusion.from_pretrained(tmp_path)
    assert same(diffusion, again) and again.config.vocabulary == list(map(str, LABELS))
    with pytest.raises(ValueError, match="weights are missing"):
        Diffusion.from_pretrained(tmp_path)


def test_trains():
    images = torch.as_tensor(loader().dataset)
    rows = torch.utils.data.TensorDataset(images, torch.randint(1, 80, (len(images), 12)))
    diffusion = conditional()
    batches = torch.utils.data.DataLoader(rows, 8, shuffle=True)
    loss = train(diffusion, batches, loss=conditional_loss, epochs=20, lr=5e-3)["loss"]
    assert sum(loss[-20:]) < 0.9 * sum(loss[:20])
    assert diffusion.unet.middle[0].film.weight.any()


# Guidance -------------------------------------------------------------------------------


def test_guidance_is_its_formula():
    diffusion = awake(conditional())
    noisy, time = torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.5)
    cap = Conditioned(diffusion, face_labels(hat="cap"))
    with torch.no_grad():
        conditioned, unconditional = cap.predict_noise(noisy, time), diffusion.predict_noise(noisy, time)
        for scale in (0, 0.5, 1, 3.0):
            noise = Guided(cap, diffusion, scale).predict_noise(noisy, time)
            assert torch.allclose(noise, unconditional + scale * (conditioned - unconditional), atol=1e-6)
        for interval in ((0.6, 1.0), (0.0, 0.4)):
            guided = Guided(cap, diffusion, 3.0, guidance_interval=interval)
            assert torch.equal(guided.predict_noise(noisy, time), conditioned)


def test_wrapped_models_draw_like_any_other():
    diffusion, cap = awake(conditional()), face_labels(hat="cap")
    conditioned = Conditioned(diffusion, cap)
    rows = torch.cat((face_labels(), cap, face_labels()))
    models = {"any": diffusion, "cap": conditioned, "each": Conditioned(diffusion, rows)}
    drawn = {name: generate(model, 3, steps=4, seed=0) for name, model in models.items()}
    assert not torch.allclose(drawn["cap"], drawn["any"], atol=1e-2)
    assert torch.allclose(drawn["each"][1], drawn["cap"][1], atol=1e-5)
    assert torch.allclose(drawn["each"][[0, 2]], drawn["any"][[0, 2]], atol=1e-5)


@pytest.mark.parametrize("kind", ["any", "negative", "each", "another network"])
def test_guidance_in_one_batch_draws_the_same(kind):
    """And the condition is encoded once for each of the two, not in each step."""
    diffusion, cap = awake(conditional()), face_labels(hat="cap")
    other = awake(conditional())  # for autoguidance
    torch.nn.init.normal_(other.unet.out.weight, std=0.1)
    unconditional = {"any": diffusion, "another network": Conditioned(other, cap)}
    unconditional = unconditional.get(kind, Conditioned(diffusion, face_labels(smile="sad")))
    conditioned = Conditioned(diffusion, cap.repeat(3, 1) if kind == "each" else cap)
    calls = []
    LabelEmbedding.forward, usual = lambda *it: calls.append(1) or usual(*it), LabelEmbedding.forward
    try:
        together = generate(Guided(conditioned, unconditional, 3.0), 3, steps=6, seed=0)
    finally:
        LabelEmbedding.forward = usual
    in_turn = generate(InTurn(conditioned, unconditional, 3.0), 3, steps=6, seed=0)
    assert (together - in_turn).abs().mean() < 1e-6 and len(calls) == 2
    assert not torch.allclose(together, generate(conditioned, 3, steps=6, seed=0), atol=1e-2)


def test_what_was_encoded_is_forgotten_before_the_next_drawing():
    diffusion = awake(conditional())
    model = Conditioned(diffusion, face_labels(hat="cap")).eval()
    before = generate(model, 2, steps=2, seed=0)
    with torch.no_grad():
        model.predict_noise(torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.5))  # it remembers the code
        diffusion.encoder.embedding.weight.mul_(-1)
    after = generate(model, 2, steps=2, seed=0)
    fresh = generate(Conditioned(diffusion, face_labels(hat="cap")), 2, steps=2, seed=0)
    assert torch.equal(after, fresh) and not torch.allclose(after, before, atol=1e-3)


def test_gradients_flow_through_a_condition():
    model = Conditioned(awake(conditional()), face_labels(hat="cap")).eval()
    noisy, time = torch.randn(1, 3, 8, 8), torch.full((1, 1, 1, 1), 0.5)
    with torch.no_grad():
        model.predict_noise(noisy, time)  # it remembers a code without a gradient
    for _ in range(2):  # what was encoded has no gradient to be used twice
        model.predict_noise(noisy, time).sum().backward()
    assert model.diffusion.encoder.embedding.weight.grad.any()


def test_an_interval_the_wrong_way_round():
    diffusion = conditional()
    with pytest.raises(ValueError, match=r"guidance_interval: the smaller time comes first, not \(1, 0\)"):
        Guided(Conditioned(diffusion, face_labels()), diffusion, guidance_interval=(1, 0))
