"""Lessons 02 to 04: schedule, network and model, against numbers of the original article's code.

`article_reference.json` was written by running the article's class, with the seeds used below.
"""

import hashlib
import json
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
    Diffusion,
    DiffusionConfig,
    generate,
    get_data,
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
    assert schedule(0.5)[0].shape == () and schedule(torch.zeros(2, 1, 1, 1))[1].shape == (2, 1, 1, 1)


def test_four_channels(tmp_path):
    """Network, noise, sampling and saving take any number of channels; the article's three are the default."""
    diffusion = tiny(channels=4)
    noise, predicted_noise = diffusion(torch.rand(5, 4, 8, 8))
    assert noise.shape == predicted_noise.shape == (5, 4, 8, 8)
    assert starting_noise(diffusion, 2, seed=0).shape == starting_noise(diffusion, 2).shape == (2, 4, 8, 8)
    assert generate(diffusion, n=2, steps=3, seed=0).shape == (2, 4, 8, 8)
    diffusion.save_pretrained(tmp_path)
    again = Diffusion.from_pretrained(tmp_path)
    assert again.config.channels == 4 and same(diffusion, again)


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


def test_an_article_checkpoint_loads(tmp_path):
    """A folder as transformers 4 wrote it: pytorch_model.bin and a config without our numbers, which get the article's."""
    diffusion = article_model()
    torch.save(diffusion.state_dict(), tmp_path / "pytorch_model.bin")
    config = {"architectures": ["Diffusion"], "transformers_version": "4.26.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = Diffusion.from_pretrained(tmp_path)
    assert same(diffusion, again) and again.config.channels == 3 and again.config.predicts == "noise"
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
