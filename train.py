"""Train the diffusion model of lesson 04 from the command line, on one or several GPUs or hosts.

    python train.py --output my_model                                     one process
    torchrun --nproc_per_node 2 train.py --output my_model                two on this machine

The same command again carries on from the last checkpoint, also with another number of
processes. `--batch-size` is that of all processes together.
"""

import argparse
from pathlib import Path

import torch
from matplotlib import pyplot as plt

from diffusion_utils import (
    GPU_RECIPE,
    TOY_FACES,
    Diffusion,
    DiffusionConfig,
    Training,
    _accelerator,
    _device,
    generate,
    get_data,
    get_loader,
    show,
)
from more.long_training import carry_on, compiles
from more.pictures import Pictures

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--output", type=Path, required=True, help="folder for the model, two pictures and checkpoints/"
)
parser.add_argument(
    "--data", default=TOY_FACES, help="folder, or name of a data set on the hub (default: toy faces)"
)
parser.add_argument("--split", default="train")
parser.add_argument("--limit", type=int, default=3000, help="how many pictures (default: 3000)")
parser.add_argument(
    "--lazy", action="store_true", help="take all pictures, and decode each when it is needed"
)
parser.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 96, 128], help="channels of each level")
parser.add_argument("--block-depth", type=int, default=2, help="blocks of each level (default: 2)")
parser.add_argument(
    "--start-from", help="a trained model, folder or name on the hub; it brings size, widths and depth"
)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--checkpoint-every", type=int, default=1000, help="steps (default: 1000)")
for name, default in GPU_RECIPE.items():
    kind = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
    parser.add_argument("--" + name.replace("_", "-"), help=f"of the recipe (default: {default})", **kind)


def main():
    options = parser.parse_args()
    foreign = options.output.exists() and not (options.output / "checkpoints").is_dir()
    if foreign and (options.output.is_file() or any(options.output.iterdir())):
        parser.error(f"--output: {options.output} is not a folder of this program; name a new one")
    (options.output / "checkpoints").mkdir(parents=True, exist_ok=True)
    recipe = {name: getattr(options, name) for name in GPU_RECIPE}
    if options.start_from:
        diffusion = Diffusion.from_pretrained(options.start_from)
    else:
        torch.manual_seed(options.seed)
        diffusion = Diffusion(DiffusionConfig(options.size, options.widths, options.block_depth))
        torch.nn.init.zeros_(diffusion.unet.out.weight)  # the first answer is 0, as in lesson 04
        torch.nn.init.zeros_(diffusion.unet.out.bias)
    where = {"split": options.split, "size": diffusion.config.image_size, "seed": options.seed}
    data = (
        Pictures(options.data, **where)
        if options.lazy
        else get_data(options.data, limit=options.limit, **where)
    )
    compiled = torch.cuda.is_available() and compiles(_device())
    accelerator = _accelerator(dynamo_backend="inductor" if compiled else "no")
    training = Training(diffusion, get_loader(data, options.batch_size), accelerator=accelerator, **recipe)
    for _ in carry_on(training, options.output / "checkpoints", options.checkpoint_every):
        pass
    if accelerator.is_main_process:
        diffusion.save_pretrained(options.output)
        show(generate(diffusion, n=10, seed=0), n=10, path=options.output / "samples.png")
        plt.figure(figsize=(6, 3), layout="constrained")
        plt.plot(training.history["loss"], linewidth=0.5)
        plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 1))
        plt.savefig(options.output / "loss.png")
    accelerator.wait_for_everyone()
    accelerator.end_training()  # a process that just leaves may crash the others


if __name__ == "__main__":
    main()
