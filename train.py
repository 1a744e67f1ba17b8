"""Train the diffusion model of lesson 04 from the command line, on one or several GPUs or hosts.

    python train.py --output my_model                                     one process
    torchrun --nproc_per_node 2 train.py --output my_model                two on this machine

The same command again carries on from the last checkpoint, also with another number of
processes. `--batch-size` is that of all processes together.
"""

import argparse
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from tqdm.auto import tqdm

from diffusion_utils import (
    GPU_RECIPE,
    TOY_FACES,
    Diffusion,
    DiffusionConfig,
    Training,
    _accelerator,
    _device,
    _reason,
    _tell_unreadable,
    _Unreadable,
    _whole_number,
    generate,
    get_data,
    get_loader,
    l1_loss,
    mix,
    schedule,
    show,
)
from diffusion_course.long_runs import carry_on, checkpoints
from diffusion_course.images import Pictures
from diffusion_course.samplers import PURE_NOISE, time_of


def whole_number(text):
    return _whole_number("it", int(text))


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument(
    "--output", type=Path, required=True, help="folder for the model, two pictures and checkpoints/"
)
parser.add_argument(
    "--data", default=TOY_FACES, help="folder, or name of a data set on the hub (default: toy faces)"
)
parser.add_argument("--split", default="train")
parser.add_argument("--limit", type=whole_number, default=3000, help="how many pictures (default: 3000)")
parser.add_argument(
    "--lazy", action="store_true", help="take all pictures, and decode each when it is needed"
)
parser.add_argument("--size", type=whole_number, default=64, help="pixels (default: 64)")
parser.add_argument(
    "--widths", type=whole_number, nargs="+", default=[32, 64, 96, 128], help="channels of each level"
)
parser.add_argument("--block-depth", type=whole_number, default=2, help="blocks of each level (default: 2)")
parser.add_argument(
    "--predicts",
    choices=["noise", "v"],
    default="noise",
    help="what the network is asked for: noise, L1, or v, squared",
)
parser.add_argument(
    "--late", type=float, default=1.0, help="with v: above 1, much noise comes more often (default: 1)"
)
parser.add_argument(
    "--start-from",
    help="a trained model, folder or name on the hub; it brings size, widths, depth and what it predicts",
)
parser.add_argument("--batch-size", type=whole_number, default=64)
parser.add_argument("--checkpoint-every", type=whole_number, default=1000, help="steps (default: 1000)")
for name, default in GPU_RECIPE.items():
    kind = {"action": "store_true"} if default is False else {"type": type(default), "default": default}
    parser.add_argument("--" + name.replace("_", "-"), help=f"of the recipe (default: {default})", **kind)


def v_loss(diffusion, images, late=1.0):
    """The mean squared error of v for a batch (N, 3, S, S): that of the noise, over signal_rate².

    Large things, such as hair and hats, are decided where there is much noise, and weigh more in it
    than in `l1_loss` of the noise. The larger a picture is, the more noise hides them: with `late`
    above 1 such times come more often, and times run on behind 1, to a signal rate of 0.005, where
    nothing can be seen any more. Salimans & Ho 2022, section 4; Hoogeboom et al. 2023; Lin et al. 2024.
    """
    image = diffusion.norm(images)
    noise, chance = torch.randn_like(image), torch.rand(len(image), 1, 1, 1, device=image.device)
    time = time_of(PURE_NOISE) * (1 - chance**late)
    predicted_noise = diffusion.answer(mix(image, noise, time), time)
    return ((predicted_noise - noise) / schedule(time)[1]).square().mean()


def compiles(device):
    """Whether `torch.compile` works on `device`: it wants a C compiler and, for CUDA, Triton. Lesson 11."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception:  # whatever the compiler, which is not ours, runs into
        return False
    return True


def refusal(output, start):
    """Why the folder `output` cannot be used for a training that starts from `start`; None when it can be."""
    kept, note = output / "checkpoints", output / "checkpoints" / "start_from.txt"
    start = str(Path(start).resolve()) if start and Path(start).exists() else start or "new weights"
    try:
        others = output.exists() and (
            output.is_file() or {path.name for path in output.iterdir()} - {kept.name}
        )
        if others and not checkpoints(kept):
            return f"{output} is not a folder of this program; name a new one"
        kept.mkdir(parents=True, exist_ok=True)
        before = note.read_text(encoding="utf-8") if note.exists() and checkpoints(kept) else start
        if before != start:
            return f"{output} holds a training that started from {before}, not from {start}; name a new one"
        note.write_text(start, encoding="utf-8")
    except OSError as error:
        return f"cannot write into {output}: {_reason(error)}"


def readable(pictures):
    """Those of `pictures` that can be decoded. It takes a while, but a training should not end at one of them."""
    good, bad = [], []
    for i in tqdm(range(len(pictures)), desc="looking through", unit=" pictures", delay=1):
        try:
            pictures[i]
            good.append(i)
        except _Unreadable as error:
            bad.append(str(error))  # the error itself would keep the file open
    _tell_unreadable("--data", len(good), bad)
    return torch.utils.data.Subset(pictures, good)


def main():
    options = parser.parse_args()
    wrong = refusal(options.output, options.start_from)
    if wrong:
        parser.error(f"--output: {wrong}")
    recipe = {name: getattr(options, name) for name in GPU_RECIPE}
    if options.start_from:
        diffusion = Diffusion.from_pretrained(options.start_from)
    else:
        torch.manual_seed(options.seed)
        shape = DiffusionConfig(options.size, options.widths, options.block_depth, predicts=options.predicts)
        diffusion = Diffusion(shape)
        torch.nn.init.zeros_(diffusion.unet.out.weight)  # the first answer is 0, as in lesson 04
        torch.nn.init.zeros_(diffusion.unet.out.bias)
    where = {"split": options.split, "size": diffusion.config.image_size, "seed": options.seed}
    data = (
        readable(Pictures(options.data, **where))
        if options.lazy
        else get_data(options.data, limit=options.limit, **where)
    )
    compiled = torch.cuda.is_available() and compiles(_device())
    accelerator = _accelerator(dynamo_backend="inductor" if compiled else "no")
    loss = partial(v_loss, late=options.late) if diffusion.config.predicts == "v" else l1_loss
    loader = get_loader(data, options.batch_size)
    training = Training(diffusion, loader, loss=loss, accelerator=accelerator, **recipe)
    for _ in carry_on(training, options.output / "checkpoints", options.checkpoint_every):
        pass
    if accelerator.is_main_process:
        with tempfile.TemporaryDirectory() as draft:  # it would remove other models from where it saves
            diffusion.save_pretrained(draft)
            shutil.copytree(draft, options.output, dirs_exist_ok=True)
        show(generate(diffusion, n=10, seed=0), n=10, path=options.output / "samples.png")
        plt.figure(figsize=(6, 3), layout="constrained")
        plt.plot(training.history["loss"], linewidth=0.5)
        plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 1))
        plt.savefig(options.output / "loss.png")
        plt.close()
    accelerator.wait_for_everyone()
    time.sleep(0.1)  # for Gloo's thread to let go of that; at the very end it would wait for Python's lock
    accelerator.end_training()  # a process that just leaves may crash the others


if __name__ == "__main__":
    main()
