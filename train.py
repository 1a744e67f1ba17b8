"""Train the diffusion model of lesson 04 from the command line, on one or several GPUs or hosts.

    python train.py --output my_model                                     one process
    torchrun --nproc_per_node 2 train.py --output my_model                two on this machine

The same command again carries on from the last checkpoint, also with another number of
processes. `--batch-size` is that of all processes together.
"""

import math
import os
import tempfile
import time
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from transformers.hf_argparser import HfArg, HfArgumentParser

from diffusion_course.images import LazyImages, any_images
from diffusion_course.long_runs import carry_on, compiles
from diffusion_course.objectives import prediction_loss
from diffusion_course.optimizers import even_l1_loss, muon
from diffusion_course.samplers import PURE_NOISE, karras_times
from diffusion_utils import (
    TOY_FACES,
    Diffusion,
    DiffusionConfig,
    Recipe,
    Training,
    generate,
    get_data,
    get_loader,
    pick_accelerator,
    show,
)


@dataclass
class Options:
    """What may be said on the command line, besides the fields of the recipe."""

    output: str = HfArg(help="a new folder for the model, two images and checkpoints/")
    data: str = HfArg(default=str(TOY_FACES), help="folder, or name of a data set on the hub")
    split: str = HfArg(default="train", help="of the data set")
    limit: int = HfArg(default=3000, help="how many images")
    lazy: bool = HfArg(default=False, help="take all images, and decode each when it is needed")
    size: int = HfArg(default=None, help="pixels; of a new network, 64")
    widths: list[int] = HfArg(default=None, help="channels of each level; of a new network, 32 64 96 128")
    block_depth: int = HfArg(default=None, help="blocks of each level; of a new network, 2")
    predicts: str = HfArg(default=None, help="noise (with the L1 loss), image, v or flow (the squared one)")
    late: float = HfArg(default=1.0, help="not with noise: above 1, much noise comes more often")
    muon: bool = HfArg(default=False, help="Muon and even times, both of lesson 11, instead of AdamW")
    start_from: str = HfArg(default=None, help="a trained model, folder or name on the hub, with its config")
    batch_size: int = HfArg(default=64, help="of all processes together")
    checkpoint_every: int = HfArg(default=1000, help="steps")


class Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Says what is taken by default, and leaves the lines of the description as they are."""


parser = HfArgumentParser([Options, Recipe], description=__doc__, epilog=str(Recipe()), formatter_class=Help)


def prepare(output, start):
    """Make the folder `output`; end the program if it is not one of training runs that start from `start`."""
    note = output / "start_from.txt"
    before = note.read_text(encoding="utf-8") if note.is_file() else start
    if output.exists() and not note.is_file() and (output.is_file() or any(output.iterdir())):
        parser.error(f"--output: {output} is not a folder of this program; name a new one")
    if before != start:
        parser.error(f"--output: {output} holds a run that started from {before}, not from {start}")
    output.mkdir(parents=True, exist_ok=True)


def build(options, seed):
    """A new model, or the one that `options` name; and what takes the place of its usual loss and optimizer."""
    shape = {"image_size": options.size}
    shape |= {name: getattr(options, name) for name in ("widths", "block_depth", "predicts")}
    shape = {name: value for name, value in shape.items() if value is not None}
    if options.start_from:
        diffusion = Diffusion.from_pretrained(options.start_from)
        own = {name: getattr(diffusion.config, name) for name in shape}
        if own != shape:
            parser.error(f"the model to start from has {own}, not {shape}; leave that out")
    else:
        torch.manual_seed(seed)
        diffusion = Diffusion(DiffusionConfig(**shape))
        torch.nn.init.zeros_(diffusion.unet.out.weight)  # the first answer is 0, as in lesson 04
        torch.nn.init.zeros_(diffusion.unet.out.bias)
    sockets = {"optimizer": muon, "loss": even_l1_loss} if options.muon else {}
    if diffusion.config.predicts != "noise":
        diffusion.config.times = karras_times(20, math.inf, PURE_NOISE)  # it learns and draws from there
        sockets["loss"] = partial(prediction_loss, late=options.late, largest_sigma=PURE_NOISE)
    return diffusion, sockets


def save(training, output):
    """Write the model, a row of its images and the curve of its loss into `output`."""
    # What is saved is whole before it takes an older model's place; and transformers removes other models there.
    with tempfile.TemporaryDirectory(dir=output, prefix=".draft-") as draft:
        training.diffusion.save_pretrained(draft)
        for path in Path(draft).iterdir():
            path.replace(output / path.name)
    show(generate(training.diffusion, n=10, seed=0), n=10, path=output / "samples.png")
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.plot(training.history["loss"], linewidth=0.5)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, 1))
    figure.savefig(output / "loss.png")


def main():
    options, recipe = parser.parse_args_into_dataclasses(look_for_args_file=False)
    options.data = os.path.expanduser(options.data)
    options.start_from = options.start_from and os.path.expanduser(options.start_from)
    output, start = Path(options.output).expanduser(), options.start_from or "new weights"
    start = str(Path(start).resolve()) if Path(start).exists() else start
    compiled = torch.cuda.is_available() and compiles(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    accelerator = pick_accelerator(dynamo_backend="inductor" if compiled else "no")
    if accelerator.is_main_process:
        prepare(output, start)
    diffusion, sockets = build(options, recipe.seed)
    if options.late != 1 and diffusion.config.predicts == "noise" or not 0 < options.late < math.inf:
        parser.error("--late: a number above 0, for a network that predicts something else than noise")
    choice = dict(size=diffusion.config.image_size, seed=recipe.seed)
    if options.lazy:
        data = LazyImages(any_images(options.data, options.split), **choice)
    else:
        data = get_data(options.data, split=options.split, limit=options.limit, **choice)
    loader = get_loader(data, options.batch_size)
    training = Training(diffusion, loader, accelerator=accelerator, **sockets, **vars(recipe))
    if accelerator.is_main_process:
        (output / "start_from.txt").write_text(start, encoding="utf-8")
    more = "" if options.lazy or len(data) < options.limit else ", and perhaps more beyond --limit"
    steps = f"{len(training.loader)} steps an epoch, {len(training):,} in all"
    accelerator.print(f"{len(data):,} images{more}; {steps}")
    for _ in carry_on(training, output / "checkpoints", options.checkpoint_every):
        pass
    if accelerator.is_main_process:
        save(training, output)
    accelerator.wait_for_everyone()
    time.sleep(0.1)  # for Gloo's thread to let go of that; at the very end it would wait for Python's lock
    accelerator.end_training()  # a process that just leaves may crash the others


if __name__ == "__main__":
    main()
