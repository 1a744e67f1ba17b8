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

    def forward(self, noisy, time):
        return self.diffusion.answer(noisy, time)


def network(diffusion):
    """`diffusion.answer` for one picture, as an ONNX model with weights in 32 bits."""
    size, channels = diffusion.config.image_size, diffusion.config.channels
    example = torch.zeros(1, channels, size, size), torch.full((1, 1, 1, 1), 0.5)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # it warns about its own inner parts
        names = dict(input_names=["noisy", "time"], output_names=["noise"])
        program = torch.onnx.export(
            Answer(diffusion), example, dynamo=True, opset_version=20, verbose=False, **names
        )
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
    """The folders of the diffusion models that ship, small pictures first."""
    configs = {path.parent: json.loads(path.read_text("utf-8")) for path in SHIPPED.glob("*/config.json")}
    folders = [folder for folder, config in configs.items() if config["model_type"] == "course_diffusion"]
    return sorted(folders, key=lambda folder: (configs[folder]["image_size"], folder.name))


def export(folder, target):
    """Write the model in `folder` to `target`; returns what the page must know about it."""
    diffusion = Diffusion.from_pretrained(folder)
    file = target / f"{folder.name}.onnx"
    file.write_bytes(halve(network(diffusion)).SerializeToString())
    title = (folder / "README.md").read_text("utf-8").split("\n# ")[1].splitlines()[0]
    return {
        "name": folder.name,
        "title": title,
        "file": f"models/{file.name}",
        "bytes": file.stat().st_size,
        "weights": sum(weight.numel() for weight in diffusion.parameters()),
        "image_size": diffusion.config.image_size,
        "mean": diffusion.norm.running_mean.tolist(),
        "deviation": diffusion.norm.running_var.sqrt().tolist(),
    }


def main(target, folders):
    target.mkdir(parents=True, exist_ok=True)
    models = [export(folder, target) for folder in folders]
    (target / "models.json").write_text(json.dumps(models, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site" / "models", shipped())
