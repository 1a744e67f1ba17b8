"""Lessons 02 to 04: schedule, network and model, against numbers of the original article's code.

`article_reference.json` was written by running the article's class, with the seeds used below.
"""

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
from helpers import names, same, tiny
from safetensors.torch import load_file, save_file

from diffusion_course.quality import pixel_distance
from diffusion_utils import (
    LARGE_MODEL,
    SHORT_MODEL,
    TOY_MODEL,
    Combine,
    Diffusion,
    DiffusionConfig,
    Residual,
    UNet,
    generate,
    get_data,
    mix,
    schedule,
    starting_noise,
)

ARTICLE = json.loads((Path(__file__).parent / "article_reference.json").read_text())


def article_model():
    torch.manual_seed(0)
    return Diffusion(DiffusionConfig())


def some_of(tensor):
    return tensor.detach().flatten()[:: tensor.numel() // 8][:8]


def test_schedule():
    time = torch.linspace(0, 1, 5)
    noise_rate, signal_rate = schedule(time)
    assert noise_rate.tolist() == pytest.approx(ARTICLE["noise_rates"], abs=1e-6)
    assert signal_rate.tolist() == pytest.approx(ARTICLE["signal_rates"], abs=1e-6)
    fine = torch.linspace(0, 1, 1001, dtype=torch.float64)
    noise_rate, signal_rate = schedule(fine)
    assert torch.allclose(noise_rate**2 + signal_rate**2, torch.ones(1001, dtype=torch.float64))
    assert (signal_rate.diff() < 0).all()
    assert schedule(0.5)[0].shape == () and schedule(torch.zeros(2, 1, 1, 1))[1].shape == (2, 1, 1, 1)


def test_mix():
    image, noise = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    time = torch.tensor([0.0, 0.3, 0.8, 1.0]).reshape(4, 1, 1, 1)
    noise_rate, signal_rate = schedule(time)
    assert torch.equal(mix(image, noise, time), image * signal_rate + noise * noise_rate)
    assert torch.equal(mix(image, noise, 0.3)[1], mix(image, noise, time)[1])  # a number: the same for all
    assert torch.equal(mix(image, 0 * noise, 0.0), schedule(0.0)[1] * image)
    assert mix(*torch.randn(2, 10_000, 1, 1, 1), 0.6).std().item() == pytest.approx(1, abs=0.03)


def test_combine():
    torch.manual_seed(0)
    combine = Combine(width=12)
    image, variance = torch.rand(2, 3, 8, 8), torch.tensor([0.1, 0.7])
    out = combine(image, variance.view(2, 1, 1, 1))
    angles = 2 * math.pi * 1000 ** torch.linspace(0, 1, 6) * variance[:, None]
    expected = torch.cat((angles.sin(), angles.cos()), dim=1)[:, :, None, None].expand(-1, -1, 8, 8)
    assert torch.equal(out[:, :12], combine.cnn(image))
    torch.testing.assert_close(out[:, 12:], expected, atol=1e-3, rtol=0)


def test_residual():
    block = Residual(4, 6).eval()
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), block.cnn(x) + block.s(x)) and block(x).shape == (2, 6, 5, 5)


@pytest.mark.parametrize("widths, depth, size", [((4, 8, 12), 3, 16), ((4, 4, 4, 4), 2, 8), ((8,), 2, 5)])
def test_unet_shapes(widths, depth, size):
    unet = UNet(widths, depth)
    assert unet(torch.rand(2, 2 * widths[0], size, size)).shape == (2, 3, size, size)
    assert sum(isinstance(layer, Residual) for layer in unet.modules()) == depth * (2 * len(widths) - 1)


def test_four_channels(tmp_path):
    """Network, noise, sampling and saving take any number of channels; the article's three are the default."""
    diffusion = tiny(channels=4)
    noise, predicted_noise = diffusion(torch.rand(5, 4, 8, 8))
    assert noise.shape == predicted_noise.shape == (5, 4, 8, 8)
    assert starting_noise(diffusion, 2, seed=0).shape == starting_noise(diffusion, 2).shape == (2, 4, 8, 8)
    drawn = []
    images = generate(diffusion, n=2, steps=3, seed=0, on_step=lambda *step: drawn.append(step))
    assert images.shape == (2, 4, 8, 8) and all(image.shape == (2, 4, 8, 8) for _, _, image in drawn)
    diffusion.save_pretrained(tmp_path)
    again = Diffusion.from_pretrained(tmp_path)
    assert again.config.channels == 4 and same(diffusion, again)


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_predict_noise(predicts):
    """The network alone: nothing random, and what forward plays its game with."""
    diffusion = tiny(predicts=predicts).eval().requires_grad_(False)
    noisy, time = torch.randn(3, 3, 8, 8), torch.tensor([0.1, 0.5, 1.0]).reshape(3, 1, 1, 1)
    state = torch.get_rng_state()
    predicted_noise, output = diffusion.predict_noise(noisy, time), diffusion.network(noisy, time)
    assert torch.equal(state, torch.get_rng_state())
    noise_rate, signal_rate = schedule(time)
    assert torch.equal(output, diffusion.unet(diffusion.combine(noisy, noise_rate**2)))
    expected = output if predicts == "noise" else noise_rate * noisy + signal_rate * output
    assert torch.equal(predicted_noise, expected)

    images = torch.rand(3, 3, 8, 8)
    torch.manual_seed(6)
    noise, predicted_noise = diffusion(images)
    torch.manual_seed(6)
    assert torch.equal(noise, torch.randn(3, 3, 8, 8))
    time = torch.rand(3, 1, 1, 1)
    expected = diffusion.predict_noise(mix(diffusion.norm(images), noise, time), time)
    assert torch.equal(predicted_noise, expected)


def test_names_and_shapes_of_the_article():
    state = article_model().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == ARTICLE["state_dict"]
    assert list(state) == list(ARTICLE["state_dict"])


def test_initial_weights_of_the_article():
    digest = hashlib.sha256()
    for name, value in article_model().state_dict().items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    assert digest.hexdigest() == ARTICLE["initial_weights_sha256"]


def test_outputs_of_the_article():
    diffusion = article_model().train()
    torch.manual_seed(1)
    images = torch.rand(2, 3, 64, 64)
    torch.manual_seed(2)
    noise, predicted_noise = diffusion(images)
    assert some_of(noise).tolist() == ARTICLE["noise"]
    assert some_of(predicted_noise).tolist() == pytest.approx(ARTICLE["predicted_noise"], abs=1e-5)
    assert diffusion.norm.running_mean.tolist() == pytest.approx(ARTICLE["running_mean"], abs=1e-6)

    diffusion.norm.running_mean.fill_(0.5)
    diffusion.norm.running_var.fill_(1e-5)
    diffusion.eval()
    torch.manual_seed(3)
    assert some_of(generate(diffusion, 2)).tolist() == pytest.approx(ARTICLE["generated"], abs=1e-3)


def test_round_trip(tmp_path):
    diffusion = tiny()
    diffusion(torch.rand(4, 3, 8, 8))  # moves BatchNorm's statistics
    diffusion.save_pretrained(tmp_path)
    again = Diffusion.from_pretrained(tmp_path)
    assert again.config.widths == [8, 16] and again.config.image_size == 8 and not again.training
    assert same(diffusion, again)
    assert torch.equal(generate(diffusion, seed=0), generate(again, seed=0))


def test_an_article_checkpoint_loads(tmp_path):
    """A folder as transformers 4 wrote it: pytorch_model.bin and a config without our numbers."""
    diffusion = article_model()
    torch.save(diffusion.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architectures": ["Diffusion"], "transformers_version": "4.26.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = Diffusion.from_pretrained(tmp_path)
    assert same(diffusion, again) and again.config.channels == 3 and again.config.predicts == "noise"


def test_a_config_without_the_new_numbers_loads(tmp_path):
    """As the course wrote it before a model could have other channels, other targets and times of its own."""
    diffusion = tiny()
    diffusion.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("channels", "predicts", "steps", "times"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = Diffusion.from_pretrained(tmp_path)
    assert again.config.channels == 3 and again.config.predicts == "noise" and same(diffusion, again)
    assert again.config.steps == 20 and again.config.times == [1, 0]


# What is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("change, error, message", [
    (lambda weights: weights.pop("unet.out.bias"), ValueError, "1 weights are missing or unexpected: unet.out.bias …"),
    (lambda weights: [weights.pop(name) for name in list(weights)[3:]], ValueError, r"\d\d weights are missing or "),
    (lambda weights: weights.update(extra=torch.zeros(1)), ValueError, "1 weights are missing or unexpected: extra …"),
    (lambda weights: weights.update({"unet.out.bias": torch.zeros(4)}), RuntimeError, ""),
])  # fmt: skip
def test_half_a_model_is_refused(tmp_path, change, error, message):
    tiny().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(error, match=message):
        Diffusion.from_pretrained(tmp_path)


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_pickle_does_not_run_code(tmp_path, monkeypatch):
    """A folder of transformers 4 holds a pickle; tensors are all that is taken from it."""
    monkeypatch.chdir(tmp_path)
    tiny().config.save_pretrained(tmp_path)
    torch.save({**tiny().state_dict(), "evil": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights"):
        Diffusion.from_pretrained(tmp_path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("predicts", ["picture", "V", None])
def test_unknown_targets_are_refused(predicts):
    with pytest.raises(ValueError, match=f"predicts must be 'noise', 'image', .*, not {predicts!r}"):
        DiffusionConfig(predicts=predicts)


@pytest.mark.parametrize("size", [(16, 16), (7, 7), (8, 4)])
def test_images_of_another_size_are_refused(size):
    with pytest.raises(ValueError, match=r"images: \(4, 3, .*, but image_size=8"):
        tiny()(torch.rand(4, 3, *size))


# What ships -----------------------------------------------------------------------------


@pytest.mark.parametrize("folder, size, parameters", [
    (TOY_MODEL, 32, 520_275), (SHORT_MODEL, 32, 520_275), (LARGE_MODEL, 64, 1_984_547),
])  # fmt: skip
def test_the_shipped_models(folder, size, parameters):
    diffusion = Diffusion.from_pretrained(folder)
    assert diffusion.config.image_size == size and diffusion.num_parameters() == parameters
    assert not diffusion.training and diffusion.dtype == torch.float32
    assert {"config.json", "model.safetensors", "README.md", "samples.png"} <= set(names(folder))
    torch.manual_seed(0)
    images, noise = generate(diffusion, n=50, steps=10, seed=1), torch.rand(50, 3, size, size)
    held_out = get_data(split="test", limit=200, size=size)
    assert pixel_distance(images, held_out) < pixel_distance(noise, held_out) / 3
