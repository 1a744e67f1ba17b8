"""Write the models that ship as packed ONNX files, for the page that draws in the reader's browser.

    python tools/export_onnx.py [folder]

Without a folder they go to site/models/. Beside them lies models.json, which tells the page what
each network takes and how its images are turned into colours.
"""

import gzip
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from lessons import ROOT
from onnx import TensorProto, helper, numpy_helper
from torch import nn

sys.path.insert(0, str(ROOT))
from diffusion_course.attention import LENGTH  # noqa: E402
from diffusion_course.latents import TextToImage  # noqa: E402
from diffusion_utils import Diffusion  # noqa: E402

SHIPPED = ROOT / "pretrained"


class Predictor(nn.Module):
    """The network alone, as export wants it: `forward` is `diffusion.predict_noise`."""

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion

    def forward(self, noisy, time, *condition):
        return self.diffusion.predict_noise(noisy, time, *condition)


class Decoder(nn.Module):
    """What makes an image of a latent, as export wants it."""

    def __init__(self, diffusion):
        super().__init__()
        self.autoencoder = diffusion.autoencoder

    def forward(self, latents):
        return self.autoencoder.decode(latents).clip(0, 1)


def load(folder):
    """The model in `folder`; one that takes a prompt is lesson 17's."""
    if "vocabulary" not in json.loads((folder / "config.json").read_text("utf-8")):
        return Diffusion.from_pretrained(folder).eval()
    return TextToImage.from_pretrained(folder).eval()


def inputs(diffusion):
    """What the network takes for one image, by name: a wave that the page can compute too."""
    size, channels = diffusion.config.image_size, diffusion.config.channels
    wave = torch.arange(channels * size * size, dtype=torch.float64).sin().float()
    tensors = {"noisy": wave.view(1, channels, size, size), "time": torch.full((1, 1, 1, 1), 0.5)}
    if hasattr(diffusion.config, "vocabulary"):
        tensors["tokens"] = torch.zeros(1, 1 + LENGTH, dtype=torch.long)
        tensors["tokens"][:, 0] = 1 + len(diffusion.config.vocabulary)  # the start token
    return tensors


@torch.no_grad()
def known_output(module, tensors):
    """What `module` gives for `tensors`, in 48 places: the page compares its own with it, before it draws."""
    numbers = module(*tensors.values()).flatten()
    return [round(number, 4) for number in numbers[:: len(numbers) // 48].tolist()][:48]


def program(module, tensors, output):
    """A module for one image, as an ONNX model with weights in 32 bits; `tensors`: its inputs, by name."""
    options = dict(input_names=list(tensors), output_names=[output], opset_version=20, verbose=False)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it warns about its own inner parts
        return torch.onnx.export(module, tuple(tensors.values()), dynamo=True, **options).model_proto


def halve(model):
    """Keep the weights of convolutions, and others that fit in 16 bits, in 15: half the file. They are computed with in 32.

    All else stays as it is: the frequencies of `Combine` reach 6,283, where float16 is off by whole turns.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1:
            name, values = weight.name, numpy_helper.to_array(weight)
            half = values.astype(np.float16)
            if values.ndim == 4 or np.array_equal(half, values):
                bits = half.view(np.uint16)
                half = ((bits + (bits >> 1 & 1)) & 0xFFFE).view(np.float16)  # the nearest that ends in 0
                weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
                casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    for node in nodes:
        del node.metadata_props[:]  # where in PyTorch it came from
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def packed(model):
    """The bytes of a model, first those in even places, then those in odd ones, as gzip packs them.

    The upper bytes of numbers in 16 bits, sign and exponent, are much alike; among the lower ones they would be lost.
    """
    data = model.SerializeToString()
    return gzip.compress(data[::2] + data[1::2], mtime=0)


def shipped():
    """The folders of the diffusion models for the page: what follows prompts first, then small images first, then faces."""
    configs = {path.parent: json.loads(path.read_text("utf-8")) for path in SHIPPED.glob("*/config.json")}
    order = [["TextToImage"], ["Diffusion"]]
    folders = [folder for folder, config in configs.items() if config.get("architectures") in order]

    def place(folder):
        config = configs[folder]
        kind = order.index(config["architectures"])
        return kind, config["image_size"], not folder.name.startswith("toy_faces"), folder.name

    return sorted(folders, key=place)


def export(folder, target):
    """Write the model in `folder` to `target`; returns what the page must know about it."""
    diffusion = load(folder)
    file = target / f"{folder.name}.onnx.gz"
    model = program(Predictor(diffusion), inputs(diffusion), "noise")
    file.write_bytes(packed(halve(model)))
    title = (folder / "README.md").read_text("utf-8").split("\n# ")[1].splitlines()[0]
    about = {
        "name": folder.name,
        "title": title,
        "file": f"models/{file.name}",
        "bytes": file.stat().st_size,
        "weights": sum(weight.numel() for weight in diffusion.parameters()),
        "image_size": diffusion.config.image_size,
        "steps": diffusion.config.steps,  # students of lesson 14 have learned another number than 20
        "times": diffusion.config.times,  # see lesson 12
        "mean": diffusion.norm.running_mean.tolist(),
        "deviation": diffusion.norm.running_var.sqrt().tolist(),
        "answer": known_output(Predictor(diffusion), inputs(diffusion)),
    }
    if hasattr(diffusion.config, "vocabulary"):
        decoder = target / f"{folder.name}_decoder.onnx.gz"
        latents = {"latents": 0.5 + inputs(diffusion)["noisy"] / 10}
        model = program(Decoder(diffusion), latents, "images")
        decoder.write_bytes(packed(halve(model)))
        about |= {"vocabulary": diffusion.config.vocabulary, "length": 1 + LENGTH}
        about |= {"wordings": diffusion.config.wordings}
        about |= {"decoder": f"models/{decoder.name}", "decoder_bytes": decoder.stat().st_size}
        about |= {"decoder_answer": known_output(Decoder(diffusion), latents)}
    return about


def main(target, folders):
    target.mkdir(parents=True, exist_ok=True)
    models = [export(folder, target) for folder in folders]
    (target / "models.json").write_text(json.dumps(models, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site" / "models", shipped())
