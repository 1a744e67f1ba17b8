"""What a long training needs besides its loop; `train` in diffusion_utils.py calls it all.

Lesson 04  compiles, fast_accelerator, seed_from, fingerprint, checkpoints, record,
           save_checkpoint, load_checkpoint, stop_button, enough_memory

`training` is always a `diffusion_utils.Training`.
"""

import math
import shutil
import signal
import threading
import time
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration


def compiles(device):
    """Whether `torch.compile` works on `device`: it wants a C compiler and, for CUDA, Triton. Lesson 04."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception:
        return False
    return True


def fast_accelerator():
    """Accelerate, set up for the machine at hand: where to compute, and how precisely. Lesson 04.

    A CPU computes in 32 bits. A CUDA GPU computes in bfloat16 where it does so natively, else
    in float16 with scaled gradients, and compiles the network if it can.
    Several processes, started by torchrun, share each batch.
    """
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return Accelerator(
        cpu=not cuda,
        mixed_precision="bf16" if bf16 else "fp16" if cuda else "no",
        dynamo_backend="inductor" if cuda and compiles(PartialState().device) else "no",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )


def seed_from(*numbers):
    """One seed for PyTorch out of several whole numbers, say a seed and a step. Lesson 04."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def fingerprint(pictures):
    """A number that tells one data set of pictures from another, by 16 of them. Lesson 04."""
    some = np.linspace(0, len(pictures) - 1, 16).astype(int)
    return zlib.crc32(b"".join(np.asarray(pictures[int(i)]).tobytes() for i in some))


def checkpoints(folder):
    """The checkpoints in `folder`, oldest first; none where `folder` is None. Lesson 04."""
    return sorted(Path(folder).glob("step-*")) if folder else []


def record(training, losses, checkpoint_dir=None):
    """Add the losses of some steps, scalar tensors, to the history. Lesson 04.

    Raises FloatingPointError that names the step when one is not finite.
    """
    history, now = training.history, time.perf_counter()
    history["seconds"] += now - training.clock
    training.clock = now
    for loss in training.accelerator.reduce(torch.stack(losses), "mean").tolist():
        step = len(history["loss"])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}, with a learning rate of {history['lr'][step]:.2g}; "
                f"try a lower lr. Last checkpoint: {(checkpoints(checkpoint_dir) or [None])[-1]}"
            )
        history["loss"].append(loss)


def save_checkpoint(training, folder):
    """Write the checkpoint `step-...` into `folder`, and keep the last two. Lesson 04.

        config.json, model.safetensors    the averaged weights, for `from_pretrained`
        raw/                              the weights as they are, likewise
        training.pt                       settings, history, optimizer, learning rate

    It is written as "unfinished" and then renamed, so that what is called `step-...` is
    whole. Raises OSError when it cannot be written; what was there before stays.
    """
    final, draft = Path(folder, f"step-{training.done:08}"), Path(folder, "unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        training.average.module.save_pretrained(draft)
        training.diffusion.save_pretrained(draft / "raw")
        state = {"settings": training.settings, "history": training.history}
        parts = {name: part.state_dict() for name, part in training.parts.items()}
        torch.save(state | parts, draft / "training.pt")
        shutil.rmtree(final, ignore_errors=True)
        draft.replace(final)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)
        last = (checkpoints(folder) or [None])[-1]
        raise OSError(f"checkpoint_dir: cannot write {final}: {error}. Last checkpoint: {last}") from None
    for old in checkpoints(folder)[:-2]:
        shutil.rmtree(old)


def load_checkpoint(training, folder, resume=True):
    """Go on from the newest checkpoint in `folder`, if there is one. Lesson 04.

    Without `resume`, all of them are deleted instead. One that cannot be read is passed over
    with a warning. Raises ValueError when none can be read, or when the training had other
    settings, and names them.
    """
    found = checkpoints(folder)
    if not resume:
        for checkpoint in found:
            shutil.rmtree(checkpoint, ignore_errors=True)  # another process may be quicker
        return
    for checkpoint in reversed(found):
        try:
            state = torch.load(checkpoint / "training.pt", map_location="cpu", weights_only=True)
            raw, averaged = (type(training.diffusion).from_pretrained(f) for f in (checkpoint / "raw", checkpoint))
        except Exception as error:
            warnings.warn(f"{checkpoint} cannot be read, taking the one before: {error}", stacklevel=3)
            continue
        then, steps = state["settings"], len(state["history"]["loss"])
        other = [f"{name}={then[name]}, not {value}" for name, value in training.settings.items() if then[name] != value]
        other += [f"{steps} steps done, more than {training.steps}"] if steps > training.steps else []
        if other:
            raise ValueError(f"checkpoint_dir: {folder} holds another training: {'; '.join(other)}. "
                             "Take another folder, or start over with resume=False")  # fmt: skip
        training.diffusion.load_state_dict(raw.state_dict())
        training.average.module.load_state_dict(averaged.state_dict())
        training.average.n_averaged.fill_(steps)
        training.history = state["history"]
        for name, part in training.parts.items():
            part.load_state_dict(state[name])
        return
    if found:
        raise ValueError(f"checkpoint_dir: no checkpoint in {folder} can be read; resume=False starts over")


@contextmanager
def stop_button():
    """Within it, Ctrl-C and Jupyter's stop button only set the event that it yields. Lesson 04.

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
        if alone:
            signal.signal(signal.SIGINT, usual)


@contextmanager
def enough_memory(batch_size):
    """Say what to do when the GPU's memory does not hold a batch. Lesson 04."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise RuntimeError(f"batch_size={batch_size} needs more memory than the GPU has; "
                           f"try batch_size={batch_size // 2} in get_loader") from None  # fmt: skip
