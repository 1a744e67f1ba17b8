"""Odd and broken input: what comes of it, and the sentence that a user gets."""

import json
import logging
import math
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import same, tiny
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, TensorDataset

import diffusion_utils
from diffusion_course.quality import FaceClassifier, face_features, pixel_distance
from diffusion_utils import (
    TOY_MODEL,
    Diffusion,
    DiffusionConfig,
    generate,
    train,
)

# Sources, arguments, arrays, checkpoints: one sentence -----------------------------------


def folder_with(tmp_path, **files):
    for name, content in files.items():
        (tmp_path / name.replace("__", ".")).write_bytes(content)
    return tmp_path


SENTENCES = {
    "a size that cannot be halved": (lambda t: DiffusionConfig(60), ValueError, "image_size=60 cannot be halved 3 times, which 4 widths need; try a multiple of 8"),
    "steps 0": (lambda t: generate(tiny(), steps=0), ValueError, "steps must be 1 or more, not 0"),
    "steps -20": (lambda t: generate(tiny(), steps=-20), ValueError, "steps must be 1 or more, not -20"),
    "steps 2.5": (lambda t: generate(tiny(), steps=2.5), TypeError, "steps must be a whole number, not 2.5"),
    "n 0": (lambda t: generate(tiny(), n=0), ValueError, "n must be 1 or more, not 0"),
    "no model there": (lambda t: Diffusion.from_pretrained(t), OSError, "there is no model that can be loaded .*no file named"),
    "torn safetensors": (lambda t: Diffusion.from_pretrained(torn(t)), ValueError, r"there is no model that can be loaded \(.+\)"),
    "other widths": (lambda t: Diffusion.from_pretrained(other_widths(t)), ValueError, "weights are missing, or do not fit config.json"),
    "a pickle that runs code": (lambda t: Diffusion.from_pretrained(pickled(t)), ValueError, r"there is no model that can be loaded \(.+\)"),
    "a misspelt option": (lambda t: Diffusion.from_pretrained(saved(t), devize="cpu"), TypeError, "unexpected keyword argument 'devize'"),
    "a config with another target": (lambda t: Diffusion.from_pretrained(target(t)), ValueError, r"there is no model that can be loaded \(predicts must be 'noise' or 'v', not 'fog'\)"),
    "another target": (lambda t: DiffusionConfig(predicts="fog"), ValueError, "predicts must be 'noise' or 'v', not 'fog'"),
    "widths of nothing": (lambda t: DiffusionConfig(widths=()), ValueError, "image_size=64 cannot be halved -1 times, which 0 widths need"),
    "block_depth 0": (lambda t: DiffusionConfig(block_depth=0), ValueError, "block_depth must be 1 or more, not 0"),
    "an image_size of text": (lambda t: DiffusionConfig("64"), TypeError, "image_size must be a whole number, not '64'"),
    "channels 0": (lambda t: DiffusionConfig(channels=0), ValueError, "channels must be 1 or more, not 0"),
    "generate, seed -1": (lambda t: generate(tiny(), seed=-1), ValueError, "seed must be 0 or more, not -1"),
    "generate, seed 1.5": (lambda t: generate(tiny(), seed=1.5), TypeError, "seed must be a whole number, not 1.5"),
    "generate, seed of text": (lambda t: generate(tiny(), seed="a"), TypeError, "seed must be a whole number, not 'a'"),
    # noise and weights to draw from
    "noise of NumPy": (lambda t: draw(np.zeros((1, 3, 8, 8), np.float32)), ValueError, r"noise: a Tensor of \('N', 3, 8, 8\) floats is needed, not ndarray float32, \(1, 3, 8, 8\)"),
    "noise of whole numbers": (lambda t: draw(torch.zeros(1, 3, 8, 8, dtype=int)), ValueError, "noise: a Tensor .* not Tensor torch.int64"),
    "noise of another size": (lambda t: draw(torch.randn(1, 3, 16, 16)), ValueError, r"noise: .* not Tensor torch.float32, \(1, 3, 16, 16\)"),
    "noise of one channel": (lambda t: draw(torch.randn(1, 1, 8, 8)), ValueError, r"noise: .* not Tensor torch.float32, \(1, 1, 8, 8\)"),
    "noise without N": (lambda t: draw(torch.randn(3, 8, 8)), ValueError, r"noise: .* not Tensor torch.float32, \(3, 8, 8\)"),
    "noise that is a list": (lambda t: draw([0.5]), ValueError, "noise: .* is needed, not list$"),
    "noise with a NaN": (lambda t: draw(torch.full((1, 3, 8, 8), np.nan)), ValueError, "noise: it holds numbers that are not finite"),
    "weights that are NaN": (lambda t: generate(broken()), ValueError, "diffusion: answers are not finite; see it_does_not_work.ipynb"),
    # a network that cannot be
    "an odd first width": (lambda t: DiffusionConfig(8, (7, 14), 1), ValueError, "widths: the first must be even, .* not 7"),
    "a width of 0": (lambda t: DiffusionConfig(8, (0, 8), 1), ValueError, "widths must be 1 or more, not 0"),
    "a later width of -8": (lambda t: DiffusionConfig(8, (8, -8), 1), ValueError, "widths must be 1 or more, not -8"),
    "a width of 8.5": (lambda t: DiffusionConfig(8, (8.5, 16), 1), TypeError, "widths must be a whole number, not 8.5"),
    "widths of text": (lambda t: DiffusionConfig(8, "ab", 1), TypeError, "widths must be a list of whole numbers, not 'ab'"),
    "widths as a number": (lambda t: DiffusionConfig(8, 16, 1), TypeError, "widths must be a list of whole numbers, not 16"),
    "no widths": (lambda t: DiffusionConfig(8, None, 1), TypeError, "widths must be a list of whole numbers, not None"),
    "block_depth -1": (lambda t: DiffusionConfig(block_depth=-1), ValueError, "block_depth must be 1 or more, not -1"),
    "image_size 0": (lambda t: DiffusionConfig(0), ValueError, "image_size must be 1 or more, not 0"),
    "image_size -16": (lambda t: DiffusionConfig(-16), ValueError, "image_size must be 1 or more, not -16"),
    "image_size None": (lambda t: DiffusionConfig(None), TypeError, "image_size must be a whole number, not None"),
    "such widths in a file": (lambda t: Diffusion.from_pretrained(config(t, widths=[7, 14])), ValueError, r"no model that can be loaded \(widths: the first must be even"),
    "such a size in a file": (lambda t: Diffusion.from_pretrained(config(t, image_size="8")), TypeError, "image_size must be a whole number, not '8'"),
    # a folder that holds no model of the course
    "no config.json": (lambda t: Diffusion.from_pretrained(without(t, "config.json")), OSError, r"no model that can be loaded \(there is no file named config.json\)"),
    "no weights": (lambda t: Diffusion.from_pretrained(without(t, "model.safetensors")), OSError, r"no model that can be loaded \(.*no file named model.safetensors"),
    "a model of another kind": (lambda t: Diffusion.from_pretrained(config(t, model_type="bert")), ValueError, r"no model that can be loaded \(config.json is of another kind of model, 'bert'\)"),
    "a torn config.json": (lambda t: Diffusion.from_pretrained(folder_with(saved(t), config__json=b"{")), OSError, r"no model that can be loaded \(.*config"),
    "a torn file, by its name": (lambda t: Diffusion.from_pretrained(torn(t)), ValueError, r"no model that can be loaded \(model.safetensors: .+\)"),
    "many weights missing": (lambda t: Diffusion.from_pretrained(few(t)), ValueError, r"weights are missing, .*: \['[^']+', '[^']+', '[^']+'\] and \d+ more$"),
    "weights too many": (lambda t: Diffusion.from_pretrained(few(t, extra=torch.zeros(1))), ValueError, "weights are missing, or do not fit config.json"),
    "a mistyped folder": (lambda t: Diffusion.from_pretrained("models/faces/large"), FileNotFoundError, "there is no folder or file 'models/faces/large'"),
    # what cannot be trained
    "pictures of 16×16 for a model of 8×8": (lambda t: fit(torch.rand(8, 3, 16, 16)), ValueError, r"images: .* \('N', 3, 8, 8\) floats is needed, not Tensor torch.float32, \(4, 3, 16, 16\)"),
    "pictures of odd size": (lambda t: fit(torch.rand(8, 3, 7, 7)), ValueError, r"images: .*\(4, 3, 7, 7\)"),
    "pictures that are not square": (lambda t: fit(torch.rand(8, 3, 8, 4)), ValueError, r"images: .*\(4, 3, 8, 4\)"),
    "batches of pairs": (lambda t: fit(TensorDataset(torch.rand(8, 3, 8, 8), torch.rand(8))), ValueError, "images: a Tensor .* is needed, not list$"),
    # distances
    "a distance of one picture": (lambda t: pixel_distance(faces()[:1], faces()), ValueError, "features: at least 2 pictures are needed, not 1"),
    "a distance of none": (lambda t: pixel_distance(faces()[:0], faces()), ValueError, "features: at least 2 pictures are needed, not 0"),
    "a distance to one": (lambda t: pixel_distance(faces(), faces()[:1]), ValueError, "reference: at least 2 pictures are needed, not 1"),
    "a distance of NaN": (lambda t: pixel_distance(faces(value=np.nan), faces()), ValueError, "features holds numbers that are not finite"),
}  # fmt: skip


def draw(noise):
    return generate(tiny(), steps=1, noise=noise)


def broken():
    diffusion = tiny()
    diffusion.unet.out.weight.data.fill_(math.nan)
    return diffusion


def fit(pictures):
    return train(tiny(), DataLoader(pictures, 4), 1)


def config(folder, **changes):
    path = saved(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def without(folder, name):
    (saved(folder) / name).unlink()
    return folder


def few(folder, **more):
    """A model with two of its weights, or with all and some more."""
    path = saved(folder) / "model.safetensors"
    weights = load_file(path)
    kept = weights if more else dict(list(weights.items())[:2])
    save_file({**kept, **more}, path, metadata={"format": "pt"})
    return folder


def saved(folder):
    tiny().save_pretrained(folder)
    return folder


def target(folder):
    config = saved(folder) / "config.json"
    config.write_text(config.read_text().replace('"noise"', '"fog"'))
    return folder


def torn(folder):
    tiny().save_pretrained(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return folder


def other_widths(folder):
    tiny().save_pretrained(folder)
    DiffusionConfig(8, (16, 16), 1).save_pretrained(folder)
    return folder


class Evil:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def pickled(folder):
    tiny().config.save_pretrained(folder)
    torch.save({**tiny().state_dict(), "evil": Evil()}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", SENTENCES)
def test_one_clear_sentence(tmp_path, monkeypatch, name):
    call, kind, sentence = SENTENCES[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=sentence) as error:
        call(tmp_path)
    assert type(error.value) is kind and len(str(error.value).splitlines()) == 1
    cause, context = error.value.__cause__, error.value.__context__
    assert context is cause  # what a library has raised is kept as the cause, and nothing else is in between
    assert not Path("pwned").exists()


def test_a_pickle_of_tensors_loads(tmp_path):
    diffusion = tiny()
    diffusion.config.save_pretrained(tmp_path)
    torch.save(diffusion.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = Diffusion.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in diffusion.state_dict().items())


# Silently wrong, once: now right ------------------------------------------------------------


# Errors of our own, and what a library says ---------------------------------------------------


@pytest.mark.parametrize("change", [few, other_widths, torn])
def test_nothing_is_printed_before_the_sentence(tmp_path, caplog, change):
    logger, said = logging.getLogger("transformers"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    folder = change(tmp_path)
    logger.addHandler(handler)
    with pytest.raises(ValueError):
        Diffusion.from_pretrained(folder)
    logger.removeHandler(handler)
    assert not said and not logging.getLogger("transformers.modeling_utils").disabled


def test_the_hub_gets_the_token(monkeypatch):
    seen = []

    def hub(token=None):
        seen.append(token)
        raise RuntimeError("stop")

    monkeypatch.setattr(diffusion_utils.huggingface_hub, "HfApi", hub)
    with pytest.raises(ConnectionError):
        Diffusion.from_pretrained("me/private", token="hf_mine")
    assert seen == ["hf_mine"]


@pytest.mark.parametrize("options", [{}, {"local_files_only": True}])
def test_a_model_in_a_cache_of_ones_own(tmp_path, options):
    place = tmp_path / "models--me--it"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    tiny().save_pretrained(place / "snapshots" / ("a" * 40))
    assert same(Diffusion.from_pretrained("me/it", cache_dir=tmp_path, **options), tiny())


# Numbers of other kinds -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_models_of_other_numbers_draw(tmp_path, dtype):
    Diffusion.from_pretrained(TOY_MODEL).to(dtype).save_pretrained(tmp_path)
    other, expected = Diffusion.from_pretrained(tmp_path, dtype=dtype), Diffusion.from_pretrained(TOY_MODEL)
    drawn, expected = (generate(model, n=2, steps=5, seed=0) for model in (other, expected))
    assert other.dtype == dtype and drawn.dtype == torch.float32
    assert (drawn - expected).abs().mean() < 0.05


def test_other_default_numbers(monkeypatch):
    expected = generate(Diffusion.from_pretrained(TOY_MODEL), n=1, steps=2, noise=torch.zeros(1, 3, 32, 32))
    torch.set_default_dtype(torch.float64)
    try:
        noise = torch.zeros(1, 3, 32, 32)
        assert noise.dtype == torch.float64
        drawn = generate(Diffusion.from_pretrained(TOY_MODEL), n=1, steps=2, noise=noise)
        assert generate(tiny(), n=2, steps=2, seed=0).shape == (2, 3, 8, 8)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(drawn, expected, atol=1e-5)


def test_features_of_pictures_in_64_bits():
    assert face_features(FaceClassifier(), np.random.default_rng(0).random((3, 3, 32, 32))).shape == (3, 64)


# A training beside a drawing ------------------------------------------------------------------


def test_the_mode_of_each_part_stays():
    diffusion = tiny().train()
    diffusion.unet.down[0].eval()
    before = [module.training for module in diffusion.modules()]
    generate(diffusion, n=1, steps=1)
    assert [module.training for module in diffusion.modules()] == before


def test_drawing_in_threads_leaves_a_training_model_in_train_mode():
    diffusion = tiny().train()
    threads = [threading.Thread(target=generate, args=(diffusion, 1, 3)) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen = [diffusion.training for _ in range(100)]
    for thread in threads:
        thread.join()
    assert all(seen) and all(module.training for module in diffusion.modules())
