"""Write the models that ship as ONNX files, for the page that draws in the reader's browser.

    python tools/export_onnx.py [folder]

Without a folder they go to site/models/. Beside them lies models.json, which tells the page what
each network takes and how its pictures are turned into colours.
"""

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
from diffusion_utils import Diffusion  # noqa: E402

SHIPPED = ROOT / "pretrained"


class Answer(nn.Module):
    """The network alone, as export wants it: `forward` is `diffusion.answer`."""

    def __init__(self, diffusion):
        super().__init__()
        self.diffusion = diffusion.eval()

    def forward(self, noisy, time, *words):
        return self.diffusion.answer(noisy, time, *words)


def load(folder):
    """The model in `folder`; one that is asked in words is lesson 15's."""
    if "vocabulary" not in json.loads((folder / "config.json").read_text("utf-8")):
        return Diffusion.from_pretrained(folder)
    from diffusion_course.conditioning import Conditional

    return Conditional.from_pretrained(folder)


def inputs(diffusion):
    """What the network takes for one picture, by name."""
    size, channels = diffusion.config.image_size, diffusion.config.channels
    found = {"noisy": torch.zeros(1, channels, size, size), "time": torch.full((1, 1, 1, 1), 0.5)}
    if hasattr(diffusion.config, "vocabulary"):
        from diffusion_course.conditioning import LENGTH

        found["words"] = torch.zeros(1, LENGTH, dtype=torch.long)
    return found


def network(diffusion):
    """`diffusion.answer` for one picture, as an ONNX model with weights in 32 bits."""
    taken = inputs(diffusion)
    options = dict(input_names=list(taken), output_names=["noise"], opset_version=20, verbose=False)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it warns about its own inner parts
        program = torch.onnx.export(Answer(diffusion), tuple(taken.values()), dynamo=True, **options)
    return program.model_proto


def halve(model):
    """Keep the weights of convolutions in 16 bits: half the file. They are computed with in 32, as before.

    All else stays as it is: the frequencies of `Combine` reach 6,283, where float16 is off by whole turns.
    """
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) == 4:
            name, values = weight.name, numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    for node in nodes:
        del node.metadata_props[:]  # where in PyTorch it came from
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def shipped():
    """The folders of the diffusion models that ship and draw pictures, not codes; small pictures first."""
    configs = {path.parent: json.loads(path.read_text("utf-8")) for path in SHIPPED.glob("*/config.json")}
    kind = "course_diffusion"
    folders = [
        folder
        for folder, config in configs.items()
        if config["model_type"] == kind and config.get("channels", 3) == 3
    ]
    return sorted(folders, key=lambda folder: (configs[folder]["image_size"], folder.name))


def export(folder, target):
    """Write the model in `folder` to `target`; returns what the page must know about it."""
    diffusion = load(folder)
    file = target / f"{folder.name}.onnx"
    file.write_bytes(halve(network(diffusion)).SerializeToString())
    title = (folder / "README.md").read_text("utf-8").split("\n# ")[1].splitlines()[0]
    about = {
        "name": folder.name,
        "title": title,
        "file": f"models/{file.name}",
        "bytes": file.stat().st_size,
        "weights": sum(weight.numel() for weight in diffusion.parameters()),
        "image_size": diffusion.config.image_size,
        "steps": getattr(diffusion.config, "steps", 20),  # students of lesson 13 have learned another number
        "largest_sigma": getattr(diffusion.config, "largest_sigma", None),  # see lesson 12
        "mean": diffusion.norm.running_mean.tolist(),
        "deviation": diffusion.norm.running_var.sqrt().tolist(),
    }
    if "words" in inputs(diffusion):
        about |= {"vocabulary": diffusion.config.vocabulary, "length": inputs(diffusion)["words"].shape[1]}
    return about


def main(target, folders):
    target.mkdir(parents=True, exist_ok=True)
    models = [export(folder, target) for folder in folders]
    (target / "models.json").write_text(json.dumps(models, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site" / "models", shipped())
