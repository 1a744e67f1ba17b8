"""What a training of hours or days needs around its loop, in the order of lesson 11.

Lesson 11  fingerprint, settings, checkpoints, remove, parts, save_checkpoint,
           load_checkpoint, prepare_folder, fetch_losses, stop_button, enough_memory, progress,
           finish, carry_on

    training = Training(diffusion, loader, **GPU_RECIPE)
    for step in carry_on(training, "my_checkpoints"):
        ...

`training` is always a `Training` of lesson 04.
"""

import json
import os
import signal
import threading
import time
import warnings
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast, gather_object
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from diffusion_utils import _check, _reason, _whole_number

# What says that a folder is a checkpoint, and of which step (written first, and removed last); and where to find help.
MARK, HELP = "checkpoint.json", "notebooks/it_does_not_work.ipynb"
FILES = "config.json", "model.safetensors", "training.pt", MARK  # all that a checkpoint holds


def fingerprint(pictures):
    """A number that tells one data set from another, by 16 of its items. Lesson 11.

    An item may be a picture, or a tuple, list or dict of arrays, tensors and numbers.
    """
    with torch.random.fork_rng(devices=[]):  # a data set that turns its pictures at random
        torch.manual_seed(0)
        parts = [pictures[int(i)] for i in np.linspace(0, len(pictures) - 1, 16)]
    checksum = 0
    while parts:
        part = parts.pop()
        if isinstance(part, (tuple, list, dict)):
            parts += part.values() if isinstance(part, dict) else part
        else:
            part = part.detach().cpu().float() if isinstance(part, torch.Tensor) else part
            checksum = zlib.crc32(np.asarray(part).tobytes(), checksum)
    return checksum


def settings(training):
    """All that a training's result depends on, by name. Lesson 11.

    With a cosine that includes the number of epochs; without one, more may be asked for later.
    """
    config, loader, recipe = getattr(training.diffusion, "config", None), training.loader, training.recipe
    names = "image_size", "widths", "block_depth", "channels", "predicts"
    shape = {name: getattr(config, name) for name in names if hasattr(config, name)}
    shape["parameters"] = sum(parameter.numel() for parameter in training.diffusion.parameters())
    pictures = {"pictures": len(loader.dataset), "fingerprint": fingerprint(loader.dataset)}
    pictures |= {"batch_size": loader.total_batch_size, "batches": len(loader)}
    return shape | pictures | {**recipe, "epochs": recipe["epochs"] if recipe["cosine_decay"] else "any"}


def checkpoints(folder):
    """The checkpoints in `folder`, oldest first. What only looks like one is not among them. Lesson 11."""
    found = sorted(Path(folder).glob("step-*"))
    return [path for path in found if path.name == f"step-{_step(path):08}" and not path.is_symlink()]


def _step(path):
    """The step of the checkpoint that was written into the folder `path`; -1 where that holds none."""
    try:
        return int(json.loads((path / MARK).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def remove(checkpoint):
    """Remove a checkpoint, whole or not. What else lies in its folder stays, and so does the folder. Lesson 11."""
    for name in FILES:
        (checkpoint / name).unlink(missing_ok=True)
    if not any(checkpoint.iterdir()):
        checkpoint.rmdir()


def parts(training):
    """The parts of a training that change, by name; each has a state_dict. Lesson 11."""
    named = {"raw": training.diffusion, "average": training.average.module, "optimizer": training.optimizer,
             "rates": training.rates, "scaler": training.accelerator.scaler}  # fmt: skip
    return {name: part for name, part in named.items() if part is not None}


def save_checkpoint(training, folder, keep=2):
    """Write the checkpoint `step-...` into `folder`, and keep the last ones. Lesson 11.

        config.json, model.safetensors    the averaged weights, for `from_pretrained`
        training.pt                       both sets of weights, optimizer, learning rate, history
        checkpoint.json                   the step

    It is written under another name and then renamed, so that what is called `step-...` is
    whole. Raises OSError when it cannot be written; what was there before stays.
    """
    final = Path(folder, f"step-{training.step:08}")
    draft, average = Path(folder, f"unfinished-{os.urandom(4).hex()}"), training.average.module
    state = {name: part.state_dict() for name, part in parts(training).items()}
    state |= {"settings": settings(training), "history": training.history}
    state |= {"precision": training.accelerator.mixed_precision}
    try:
        draft.mkdir(parents=True)
        (draft / MARK).write_text(json.dumps({"step": training.step}), encoding="utf-8")
        if hasattr(getattr(average, "config", None), "save_pretrained"):
            average.config.save_pretrained(draft)
        safetensors.torch.save_model(average, str(draft / "model.safetensors"), metadata={"format": "pt"})
        torch.save(state, draft / "training.pt")
        for path in draft.iterdir():  # have it all on the disk before it gets its name: a power cut may come
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if final in checkpoints(folder):
            remove(final)
        draft.replace(final)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # what a full disk may lead to
        last = f"Is the disk full? Last checkpoint: {(checkpoints(folder) or [None])[-1]}"
        raise OSError(f"folder: cannot write {final}: {_reason(error)}. {last}") from error
    finally:
        if draft.exists():
            remove(draft)
    for old in checkpoints(folder)[:-keep]:
        remove(old)


def load_checkpoint(training, folder):
    """Go on from the newest checkpoint in `folder`, if there is one. Lesson 11.

    One that cannot be read is passed over with a warning; one made in another precision goes on,
    with a note. Raises ValueError when none can be read, or when the training had other
    settings, and names them.
    """
    found, now = checkpoints(folder), settings(training)
    shapes = [parameter.shape for parameter in training.diffusion.parameters()]
    for path in reversed(found):
        try:
            state = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
            then, history, memory = state["settings"], state["history"], state["optimizer"]["state"].items()
            memory = [(value.shape, shapes[i]) for i, own in memory for value in own.values()]
        except Exception as error:  # a torn file makes torch, zip and pickle raise all kinds of errors
            warnings.warn(f"{path} cannot be read, taking the one before: {_reason(error)}", stacklevel=3)
            continue
        step = len(history["loss"])
        other = [f"{name}={then.get(name)}, not {now[name]}" for name in now if then.get(name) != now[name]]
        other += [f"{step} steps done, more than {len(training)}"] if step > len(training) else []
        other += [] if all(kept in ((), shape) for kept, shape in memory) else ["weights of other shapes"]
        _check(not other, f"folder: {folder} holds another training: {'; '.join(other)}. Take another folder")
        for name in parts(training).keys() & state.keys():  # another machine may need no scaler, or need one
            parts(training)[name].load_state_dict(state[name])
        before, precision = state.get("precision"), training.accelerator.mixed_precision
        if before not in (None, precision):  # a checkpoint of before this was noted says nothing
            tqdm.write(f"Goes on with mixed_precision={precision}; up to step {step} it was {before}.")
        training.average.n_averaged.fill_(step)
        training.step, training.history = step, history
        return
    _check(not found, f"folder: no checkpoint in {folder} can be read; take another folder")


@contextmanager
def prepare_folder(training, folder):
    """Make the folder, lock it, tidy it up, load the newest checkpoint; say now what will fail later. Lesson 11.

    Within it no other training can use the folder. The lock goes when the process ends, however it
    ends. Raises what `carry_on` raises at its start.
    """
    old = [path for path in Path(folder).glob("step-" + 8 * "[0-9]") if (path / "raw").is_dir()]
    _check(not old, f"folder: {folder} is of an earlier version of the course; take another folder")
    lock, main = FileLock(Path(folder, ".lock")), training.accelerator.is_main_process
    try:
        if main:
            Path(folder).mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
    except OSError as error:
        why = "another training is at work in it" if isinstance(error, Timeout) else _reason(error)
        raise OSError(f"folder: cannot write into {folder}: {why}") from error
    try:
        for draft in Path(folder).glob("unfinished-" + 8 * "[0-9a-f]"):  # of one that was killed
            if main and _step(draft) >= 0 and not draft.is_symlink():
                remove(draft)
        load_checkpoint(training, folder)
        steps = gather_object([training.step])
        alone = f"folder: all hosts need to see the same one, but {folder} leads them to steps {steps}"
        _check(len(set(steps)) == 1, alone)
        yield
    finally:
        if main:
            with suppress(OSError):  # Windows removes the file itself
                Path(folder, ".lock").unlink()
            lock.release()


def fetch_losses(training):
    """Fetch the losses from the device; returns the mean of the last 50. Lesson 11.

    Raises FloatingPointError that names the step when one is not finite, or a weight is not.
    """
    losses, rates = training.history["loss"], training.history["lr"]
    seen = next((i for i in range(len(losses), 0, -1) if isinstance(losses[i - 1], float)), 0)
    for i in range(seen, len(losses)):
        losses[i] = float(losses[i])
        where = f"the loss is {losses[i]} at step {i + 1}, with a learning rate of {rates[i]:.2g}"
        _check(np.isfinite(losses[i]), f"{where}; try a lower lr, see {HELP}", FloatingPointError)
    finite = all(weights.isfinite().all() for weights in training.diffusion.parameters())
    _check(finite, f"weights are not finite after step {len(losses)}; see {HELP}", FloatingPointError)
    return float(np.mean(losses[-50:]))


@contextmanager
def stop_button():
    """Within it, Ctrl-C, Jupyter's stop button and SIGTERM only set the event that it yields. Lesson 11.

    (Clusters and Colab send SIGTERM some seconds before they take the machine away.) A second
    time they interrupt, as always. Where several processes train together, and in threads, all
    stays as it is.
    """
    pressed, usual = threading.Event(), {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def press(number=None, frame=None):  # from then on all is as usual
        pressed.set()
        for number, handler in usual.items():
            if signal.getsignal(number) is press:
                signal.signal(number, handler)

    if PartialState().num_processes == 1 and threading.current_thread() is threading.main_thread():
        for number in usual:
            signal.signal(number, press)
    try:
        yield pressed
    finally:
        press()


@contextmanager
def enough_memory(batch_size):
    """Say what to do when the GPU's memory does not hold a batch. Lesson 11."""
    try:
        yield
    except RuntimeError as error:  # Apple's GPU has no error class of its own for this
        if "out of memory" not in str(error):
            raise
        less = f"try batch_size={batch_size // 2} in get_loader, or see {HELP}"
        raise RuntimeError(f"batch_size={batch_size} needs more memory than the GPU has; {less}") from error


def progress(training):
    """A progress bar that starts where the training is; it counts the images of all processes. Lesson 11."""
    size, main = training.loader.total_batch_size, training.accelerator.is_main_process
    total, done = len(training) * size, training.step * size
    return tqdm(total=total, initial=done, unit=" images", mininterval=1, disable=not main)


def finish(training, together=True):
    """Give the averaged weights to the model; `together`, all processes get the same. Lesson 11."""
    for buffer in training.average.module.buffers() if together else ():
        broadcast(buffer)  # BatchNorm's statistics, from the first process to all
    training.finish()
    if training.step < len(training) and training.accelerator.is_main_process:
        tqdm.write(f"Stopped after {training.step} of {len(training)} steps.")


def carry_on(training, folder, every=1000):
    """Loop over `training`, and keep its state in `folder`: the same loop again carries on. Lesson 11.

        for step in carry_on(training, "my_checkpoints"):
            ...

    A checkpoint is written every `every` steps, at the end, when the loop is left by `break`,
    and when the stop button is pressed or SIGTERM comes. On a CPU a training that was stopped or killed ends
    with the same bits as one that was not. Without a cosine, more epochs may be asked for
    later. `folder` may hold other things; none of them is ever removed. `training.history`
    gets the "seconds" that it all took. In the end the model holds the averaged weights.

    Raises ValueError for a checkpoint of another training, or when hosts see different folders;
    FloatingPointError for a loss or weights that are not finite; OSError, at the start where that
    can be known, when a checkpoint cannot be written, or another training uses the folder;
    RuntimeError when a batch does not fit into the GPU's memory. (After a `break`, Python can only
    print an error, not raise it.)
    """
    every, main = _whole_number("every", every), training.accelerator.is_main_process
    size, left = training.loader.total_batch_size, False
    with prepare_folder(training, folder), stop_button() as stop, enough_memory(size):
        start = time.perf_counter() - training.history.get("seconds", 0)
        with progress(training) as bar:
            for step in training:
                bar.update(size)
                try:
                    yield step
                except GeneratorExit:  # a break in the loop around this one, or an error
                    left = True
                training.history["seconds"] = time.perf_counter() - start
                last = left or stop.is_set() or step == len(training)
                if last or step % every == 0 or step % 100 == 0:
                    bar.set_postfix(step=step, loss=f"{fetch_losses(training):.3f}", refresh=False)
                if main and (last or step % every == 0):
                    save_checkpoint(training, folder)
                if last:
                    break
    finish(training, together=not left)
