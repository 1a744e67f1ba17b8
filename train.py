"""Train the diffusion model of lesson 04 from the command line, on one or several GPUs or hosts.

    python train.py --output my_model                                     one process
    torchrun --nproc_per_node 2 train.py --output my_model                two on this machine

The same command again carries on from the last checkpoint, also with another number of
processes. `--batch-size` is that of all processes together.
"""

import argparse
import math
import os
import shutil
import tempfile
import time
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from matplotlib import pyplot as plt

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
    adamw,
    generate,
    get_data,
    get_loader,
    l1_loss,
    pick_accelerator,
    show,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
add = parser.add_argument
add("--output", required=True, help="a new folder for the model, two images and checkpoints/")
add("--data", default=TOY_FACES, help="folder, or name of a data set on the hub (default: toy faces)")
add("--split", default="train")
add("--limit", type=int, default=3000, help="how many images (default: 3000)")
add("--lazy", action="store_true", help="take all images, and decode each when it is needed")
add("--size", type=int, default=64, help="pixels (default: 64)")
add("--widths", type=int, nargs="+", default=[32, 64, 96, 128], help="channels of each level")
add("--block-depth", type=int, default=2, help="blocks of each level (default: 2)")
add("--predicts", default="noise", help="noise (with the L1 loss), image, v or flow (with the squared one)")
add("--late", type=float, default=1.0, help="not with noise: above 1, much noise comes more often")
add("--muon", action="store_true", help="Muon and even times, both of lesson 11, instead of AdamW")
add("--start-from", help="a trained model, folder or name on the hub; its config goes before these options")
add("--batch-size", type=int, default=64)
add("--checkpoint-every", type=int, default=1000, help="steps (default: 1000)")
for field in fields(Recipe):
    kind = {"action": "store_true"} if field.type is bool else {"type": field.type, "default": field.default}
    add("--" + field.name.replace("_", "-"), help=f"of the recipe (default: {field.default})", **kind)


def refusal(output, start):
    """Why the folder `output` cannot be used for a training run that starts from `start`, or None."""
    note = output / "start_from.txt"
    before = note.read_text(encoding="utf-8") if note.is_file() else start
    if output.exists() and not note.is_file() and (output.is_file() or any(output.iterdir())):
        return f"{output} is not a folder of this program; name a new one"
    if before != start:
        return f"{output} holds a training run that started from {before}, not from {start}; name a new one"


def build(options):
    """A new model, or the one that `options` name, and the loss that it needs."""
    if options.start_from:
        diffusion = Diffusion.from_pretrained(options.start_from)
    else:
        torch.manual_seed(options.seed)
        shape = options.size, options.widths, options.block_depth
        diffusion = Diffusion(DiffusionConfig(*shape, predicts=options.predicts))
        torch.nn.init.zeros_(diffusion.unet.out.weight)  # the first answer is 0, as in lesson 04
        torch.nn.init.zeros_(diffusion.unet.out.bias)
    if diffusion.config.predicts == "noise":
        return diffusion, even_l1_loss if options.muon else l1_loss
    diffusion.config.times = karras_times(20, math.inf, PURE_NOISE)  # it learns and draws from there
    return diffusion, partial(prediction_loss, late=options.late, largest_sigma=PURE_NOISE)


def save(training, output):
    """Write the model, a row of its images and the curve of its loss into `output`."""
    with tempfile.TemporaryDirectory() as draft:  # it would remove other models from where it saves
        training.diffusion.save_pretrained(draft)
        shutil.copytree(draft, output, dirs_exist_ok=True)
    show(generate(training.diffusion, n=10, seed=0), n=10, path=output / "samples.png")
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.plot(training.history["loss"], linewidth=0.5)
    axis.set(xlabel="step", ylabel="loss", ylim=(0, 1))
    figure.savefig(output / "loss.png")


def main():
    options = parser.parse_args()
    output, start = Path(options.output).expanduser(), options.start_from or "new weights"
    start = str(Path(start).resolve()) if Path(start).exists() else start
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    compiled = torch.cuda.is_available() and compiles(device)
    accelerator = pick_accelerator(dynamo_backend="inductor" if compiled else "no")
    if accelerator.is_main_process:
        reason = refusal(output, start)
        if reason:
            parser.error(f"--output: {reason}")
        output.mkdir(parents=True, exist_ok=True)
    diffusion, loss = build(options)
    if options.late != 1 and diffusion.config.predicts == "noise" or not 0 < options.late < math.inf:
        parser.error("--late: a number above 0, for a network that predicts something else than noise")
    size = diffusion.config.image_size
    if options.lazy:
        data = LazyImages(any_images(options.data, options.split), size=size, seed=options.seed)
    else:
        data = get_data(options.data, split=options.split, limit=options.limit, size=size, seed=options.seed)
    recipe = {field.name: getattr(options, field.name) for field in fields(Recipe)}
    loader = get_loader(data, options.batch_size)
    optimizer = muon if options.muon else adamw
    training = Training(diffusion, loader, loss=loss, optimizer=optimizer, accelerator=accelerator, **recipe)
    if accelerator.is_main_process:
        (output / "start_from.txt").write_text(start, encoding="utf-8")
    more = "" if options.lazy or len(data) < options.limit else ", and perhaps more beyond --limit"
    accelerator.print(
        f"{len(data):,} images{more}; {len(training.loader)} steps an epoch, {len(training):,} in all"
    )
    for _ in carry_on(training, output / "checkpoints", options.checkpoint_every):
        pass
    if accelerator.is_main_process:
        save(training, output)
    accelerator.wait_for_everyone()
    time.sleep(0.1)  # for Gloo's thread to let go of that; at the very end it would wait for Python's lock
    accelerator.end_training()  # a process that just leaves may crash the others


if __name__ == "__main__":
    main()
