"""Train the diffusion model of lesson 04 from the command line, on one or several GPUs or hosts.

    python train.py --output my_model                                     one process
    torchrun --nproc_per_node 2 train.py --output my_model                two on this machine

The same command again carries on from the last checkpoint, also with another number of
processes. `--batch-size` is that of all processes together.
"""

import argparse
from pathlib import Path

import torch
from accelerate import PartialState
from matplotlib import pyplot as plt

from diffusion_utils import (
    TOY_FACES,
    Diffusion,
    DiffusionConfig,
    Pictures,
    generate,
    get_data,
    get_loader,
    show,
    train,
)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, required=True, help="folder for the model, two pictures and checkpoints/")
parser.add_argument("--data", default=TOY_FACES, help="folder, or name of a data set on the hub (default: toy faces)")
parser.add_argument("--split", default="train")
parser.add_argument("--limit", type=int, default=3000, help="how many pictures (default: 3000)")
parser.add_argument("--lazy", action="store_true", help="take all pictures, and decode each when it is needed")
parser.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 96, 128], help="channels of each level")
parser.add_argument("--block-depth", type=int, default=2, help="blocks of each level (default: 2)")
parser.add_argument("--start-from", help="a trained model, folder or name on the hub; it brings size, widths and depth")
parser.add_argument("--epochs", type=int, default=2000)
parser.add_argument("--batch-size", type=int, default=64)
parser.add_argument("--lr", type=float, default=2e-4, help="learning rate (default: 2e-4)")
parser.add_argument("--warmup-steps", type=int, default=0)
parser.add_argument("--cosine-decay", action="store_true", help="let the learning rate fall to 0")
parser.add_argument("--ema-decay", type=float, default=0.999)
parser.add_argument("--checkpoint-every", type=int, default=100, help="epochs (default: 100)")
parser.add_argument("--seed", type=int, default=0)


def main():
    options = parser.parse_args()
    if options.start_from:
        diffusion = Diffusion.from_pretrained(options.start_from)
    else:
        torch.manual_seed(options.seed)
        diffusion = Diffusion(DiffusionConfig(options.size, options.widths, options.block_depth))
        torch.nn.init.zeros_(diffusion.unet.out.weight)  # the first answer is 0, as in lesson 04
        torch.nn.init.zeros_(diffusion.unet.out.bias)
    where = {"split": options.split, "size": diffusion.config.image_size, "seed": options.seed}
    data = Pictures(options.data, **where) if options.lazy else get_data(options.data, limit=options.limit, **where)
    history = train(
        diffusion, get_loader(data, options.batch_size), options.epochs, lr=options.lr,
        warmup_steps=options.warmup_steps, cosine_decay=options.cosine_decay, ema_decay=options.ema_decay,
        checkpoint_dir=options.output / "checkpoints", checkpoint_every=options.checkpoint_every, seed=options.seed,
    )  # fmt: skip
    if PartialState().is_main_process:
        diffusion.save_pretrained(options.output)
        show(generate(diffusion, n=10, seed=0), n=10, path=options.output / "samples.png")
        plt.figure(figsize=(6, 3), layout="constrained")
        plt.plot(history["loss"], linewidth=0.5)
        plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 1))
        plt.savefig(options.output / "loss.png")


if __name__ == "__main__":
    main()
