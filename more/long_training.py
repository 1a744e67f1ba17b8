"""What a training of hours or days needs around its loop, in the order of lesson 10.

Lesson 10  fast_accelerator, compiles, fingerprint, settings, checkpoints, remove, save_checkpoint,
           load_checkpoint, look, stop_button, enough_memory, progress, finish, carry_on

    training = Training(diffusion, loader, accelerator=fast_accelerator(), **GPU_RECIPE)
    for step in carry_on(training, "my_checkpoints"):
        ...

`training` is always a `Training` of lesson 04.
"""

import json
import math
import signal
import threading
import time
import uuid
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration, broadcast
from safetensors.torch import save_model
from tqdm.auto import tqdm

from diffusion_utils import _reason, _whole_number

MARK = "checkpoint.json"  # what it is, and of which step; written first, and removed last
FILES = "config.json", "model.safetensors", "training.pt", MARK  # all that a checkpoint holds


def fast_accelerator(**options):
    """Accelerate, set up for the machine at hand: where to compute, and how precisely. Lesson 10.

    A CPU computes in 32 bits, a CUDA GPU in bfloat16 where it does so natively, else in float16
    with scaled gradients. Several processes, started by torchrun, share each batch. `options`
    are Accelerate's own, and go first.
    """
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bf16" if bf16 else "fp16" if cuda else "no"
    share = DataLoaderConfiguration(split_batches=True)
    return Accelerator(
        **{"cpu": not cuda, "mixed_precision": precision, "dataloader_config": share, **options}
    )


def compiles(device):
    """Whether `torch.compile` works on `device`: it wants a C compiler and, for CUDA, Triton. Lesson 10."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception:  # whatever the compiler, which is not ours, runs into
        return False
    return True


def fingerprint(pictures):
    """A number that tells one data set from another, by 16 of its pictures. Lesson 10."""
    some = [pictures[int(i)] for i in np.linspace(0, len(pictures) - 1, 16)]
    parts = [part for item in some for part in (item if isinstance(item, tuple) else [item])]
    return zlib.crc32(b"".join(np.asarray(part).tobytes() for part in parts))


def settings(training):
    """All that a training's result depends on, by name. Lesson 10.

    With a cosine that includes the number of epochs; without one, more may be asked for later.
    """
    config, loader, recipe = getattr(training.diffusion, "config", None), training.loader, training.recipe
    names = ("image_size", "widths", "block_depth", "channels", "predicts") if config else ()
    shape = {name: getattr(config, name) for name in names}
    shape["parameters"] = sum(parameter.numel() for parameter in training.diffusion.parameters())
    pictures = {"pictures": len(loader.dataset), "fingerprint": fingerprint(loader.dataset)}
    pictures |= {"batch_size": loader.total_batch_size, "batches": len(loader)}
    return shape | pictures | {**recipe, "epochs": recipe["epochs"] if recipe["cosine_decay"] else "any"}


def checkpoints(folder):
    """The checkpoints in `folder`, oldest first. What only looks like one is not among them. Lesson 10."""
    found = [path for path in sorted(Path(folder).glob("step-*")) if not path.is_symlink()]
    steps = {
        path: f"step-{json.loads((path / MARK).read_text())['step']:08}"
        for path in found
        if (path / MARK).is_file()
    }
    return [path for path in found if steps.get(path) == path.name]


def remove(checkpoint):
    """Remove a checkpoint, whole or not. What else lies in its folder stays, and so does the folder. Lesson 10."""
    for name in FILES:
        (checkpoint / name).unlink(missing_ok=True)
    if not any(checkpoint.iterdir()):
        checkpoint.rmdir()


def save_checkpoint(training, folder, keep=2):
    """Write the checkpoint `step-...` into `folder`, and keep the last ones. Lesson 10.

        config.json, model.safetensors    the averaged weights, for `from_pretrained`
        training.pt                       both sets of weights, optimizer, learning rate, history
        checkpoint.json                   the step

    It is written under another name and then renamed, so that what is called `step-...` is
    whole. Raises OSError when it cannot be written; what was there before stays.
    """
    final, draft = (
        Path(folder, f"step-{training.step:08}"),
        Path(folder, f"unfinished-{uuid.uuid4().hex[:8]}"),
    )
    average = training.average.module
    try:
        draft.mkdir(parents=True)
        (draft / MARK).write_text(json.dumps({"step": training.step}))
        if hasattr(average, "config"):
            average.config.save_pretrained(draft)
        save_model(average, str(draft / "model.safetensors"), metadata={"format": "pt"})
        state = {name: part.state_dict() for name, part in _parts(training).items()}
        torch.save(
            state | {"settings": settings(training), "history": training.history}, draft / "training.pt"
        )
        if final in checkpoints(folder):
            remove(final)
        draft.replace(final)
    except Exception as error:  # torch and safetensors have classes of their own for a full disk
        if draft.exists():
            remove(draft)
        last = (checkpoints(folder) or [None])[-1]
        raise OSError(f"folder: cannot write {final}: {_reason(error)}. Last checkpoint: {last}") from error
    for old in checkpoints(folder)[:-keep]:
        remove(old)


def _parts(training):
    """The parts of a training that change, by name; each has a state_dict."""
    parts = {"raw": training.diffusion, "average": training.average.module, "optimizer": training.optimizer,
             "rates": training.rates, "scaler": training.accelerator.scaler}  # fmt: skip
    return {name: part for name, part in parts.items() if part is not None}


def load_checkpoint(training, folder):
    """Go on from the newest checkpoint in `folder`, if there is one. Lesson 10.

    One that cannot be read is passed over with a warning. Raises ValueError when none can be
    read, or when the training had other settings, and names them.
    """
    found, now = checkpoints(folder), settings(training)
    old = [path for path in Path(folder).glob("step-" + 8 * "[0-9]") if (path / "raw").is_dir()]
    if old:
        raise ValueError(
            f"folder: {folder} holds checkpoints of an earlier version of the course; take another folder"
        )
    for checkpoint in reversed(found):
        try:
            state = torch.load(checkpoint / "training.pt", map_location="cpu", weights_only=True)
            then, history = state["settings"], state["history"]
        except Exception as error:  # a torn file makes torch, zip and pickle raise all kinds of errors
            warnings.warn(
                f"{checkpoint} cannot be read, taking the one before: {_reason(error)}", stacklevel=3
            )
            continue
        other = [f"{name}={then.get(name)}, not {now[name]}" for name in now if then.get(name) != now[name]]
        step = len(history["loss"])
        other += [f"{step} steps done, more than {len(training)}"] if step > len(training) else []
        if other:
            raise ValueError(
                f"folder: {folder} holds another training: {'; '.join(other)}. Take another folder"
            )
        for name, part in _parts(training).items():
            part.load_state_dict(state[name])
        training.average.n_averaged.fill_(step)
        training.step, training.history = step, history
        return
    if found:
        raise ValueError(f"folder: no checkpoint in {folder} can be read; take another folder")


def look(training):
    """Fetch the losses from the device; returns the mean of the last 50. Lesson 10.

    Raises FloatingPointError that names the step when one is not finite.
    """
    losses = training.history["loss"]
    for step, loss in enumerate(losses):
        losses[step] = float(loss)
        if not math.isfinite(losses[step]):
            rate = training.history["lr"][step]
            raise FloatingPointError(
                f"the loss is {losses[step]} at step {step}, with a learning rate of {rate:.2g}; try a lower lr"
            )
    return float(np.mean(losses[-50:]))


@contextmanager
def stop_button():
    """Within it, Ctrl-C and Jupyter's stop button only set the event that it yields. Lesson 10.

    Pressed a second time they interrupt, as always. Where several processes train together,
    and in threads, all stays as it is.
    """
    pressed, usual = threading.Event(), signal.getsignal(signal.SIGINT)

    def press(number, frame):
        pressed.set()
        signal.signal(signal.SIGINT, usual)

    alone = PartialState().num_processes == 1 and threading.current_thread() is threading.main_thread()
    if alone:
        signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        if alone and signal.getsignal(signal.SIGINT) is press:
            signal.signal(signal.SIGINT, usual)


@contextmanager
def enough_memory(batch_size):
    """Say what to do when the GPU's memory does not hold a batch. Lesson 10."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RuntimeError(
            f"batch_size={batch_size} needs more memory than the GPU has; "
            f"try batch_size={batch_size // 2} in get_loader"
        ) from error


def progress(training):
    """A progress bar that starts where the training is; it counts the images of all processes. Lesson 10."""
    size, main = training.loader.total_batch_size, training.accelerator.is_main_process
    total, done = len(training) * size, training.step * size
    return tqdm(total=total, initial=done, unit=" images", mininterval=1, disable=not main)


def finish(training):
    """Give the averaged weights to the model, the same in each process. Lesson 10."""
    for buffer in training.average.module.buffers():
        broadcast(buffer)  # BatchNorm's statistics, from the first process to all
    training.finish()
    if training.step < len(training) and training.accelerator.is_main_process:
        tqdm.write(f"Stopped after {training.step} of {len(training)} steps.")


def carry_on(training, folder, every=1000):
    """Loop over `training`, and keep its state in `folder`: the same loop again carries on. Lesson 10.

        for step in carry_on(training, "my_checkpoints"):
            ...

    A checkpoint is written every `every` steps, at the end, when the loop is left by `break`,
    and when the stop button is pressed. On a CPU a training that was stopped or killed ends
    with the same bits as one that was not. Without a cosine, more epochs may be asked for
    later. `folder` may hold other things; none of them is ever removed. `training.history`
    gets the "seconds" that it all took. In the end the model holds the averaged weights.

    Raises ValueError for a checkpoint of another training, FloatingPointError for a loss that
    is not finite, OSError when a checkpoint cannot be written, RuntimeError when a batch does
    not fit into the GPU's memory.
    """
    every, main = _whole_number("every", every), training.accelerator.is_main_process
    load_checkpoint(training, folder)
    start = time.perf_counter() - training.history.get("seconds", 0)
    size = training.loader.total_batch_size
    with progress(training) as bar, stop_button() as stop, enough_memory(size):
        try:
            for step in training:
                bar.update(size)
                yield step
                training.history["seconds"] = time.perf_counter() - start
                last = stop.is_set() or step == len(training)
                if last or step % every == 0 or step % 100 == 0:
                    bar.set_postfix(step=step, loss=f"{look(training):.3f}", refresh=False)
                if main and (last or step % every == 0):
                    save_checkpoint(training, folder)
                if last:
                    break
        except GeneratorExit:  # a break in the loop around this one
            look(training)
            if main:
                save_checkpoint(training, folder)
    finish(training)
