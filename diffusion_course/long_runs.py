"""What a training run of hours or days needs around its loop.

Lesson 11  prepare_folder, stop_button, ignore_signals, enough_memory, progress, same_gradients, compiles,
           finish, Loop, saved_steps, carry_on

    training = Training(diffusion, loader, epochs=2000)
    for step in carry_on(training, "my_checkpoints"):
        ...

`training` is a `Training` of lesson 04.
"""

import signal
import threading
import time
import warnings
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast, gather_object
from filelock import FileLock, Timeout
from torch.utils.data import DistributedSampler
from tqdm.auto import tqdm

from diffusion_course.checkpoints import FILES, load_checkpoint, remove, save_checkpoint
from diffusion_utils import Residual


@contextmanager
def prepare_folder(training, folder):
    """Make the folder, lock it, tidy it up, load the newest checkpoint; say now what would fail later. Lesson 11.

    Within it no other training run can use the folder. The lock goes when the process ends, however it
    ends. Raises what `carry_on` raises at its start.
    """
    lock, main = FileLock(folder / ".lock"), training.accelerator.is_main_process
    try:
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=False)
    except OSError as error:
        busy = "another training run is at work in it"
        reason = busy if isinstance(error, Timeout) else error
        raise OSError(f"cannot write into {folder}: {reason}") from error
    try:
        for draft in folder.glob("unfinished-" + 8 * "[0-9a-f]") if main else ():  # of one that was killed
            names = {path.name for path in draft.glob("[!.]*")}
            if draft.is_dir() and not draft.is_symlink() and names <= set(FILES):
                remove(draft)
        load_checkpoint(training, folder)
        steps = gather_object([training.step])
        if len(set(steps)) > 1:
            raise ValueError(
                f"all hosts need to see the same {folder}, which leads them to the steps {steps}"
            )
        yield
    finally:
        if main:
            with suppress(OSError):  # Windows removes the file itself
                (folder / ".lock").unlink()
            lock.release()


@contextmanager
def stop_button():
    """Within it, Ctrl-C, Jupyter's stop button and SIGTERM only set the event that it yields. Lesson 11.

    (Clusters send SIGTERM some seconds before they take the machine away.) A second time they interrupt, as
    always. Where several processes train together, and in threads, all stays as it is.
    """
    pressed = threading.Event()
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def press(number=None, frame=None):  # from now on all is as usual
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


def ignore_signals(init, number):
    """The start of a loader's worker: signals, which often go to all processes, are for the main one. Lesson 11."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if init is not None:
        init(number)


@contextmanager
def enough_memory(batch_size):
    """Say what to do when the GPU's memory does not hold a batch. Lesson 11."""
    try:
        yield
    except RuntimeError as error:  # Apple's GPU has no error class of its own for this
        if "out of memory" not in str(error):
            raise
        less = f"try batch_size={batch_size // 2} in get_loader"
        raise RuntimeError(f"batch_size={batch_size} needs more memory than the GPU has; {less}") from error


def progress(training):
    """A progress bar that starts where the training run is; it counts the images of all processes. Lesson 11."""
    size, main = training.loader.total_batch_size, training.accelerator.is_main_process
    total, done = len(training) * size, training.step * size
    return tqdm(total=total, initial=done, unit=" images", mininterval=1, disable=not main)


def same_gradients(device):
    """Whether `device` finds the CPU's gradients: with some versions of PyTorch, Apple's GPU does not. Lesson 11."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Residual(3, 8)
        images = torch.rand(8, 64, 64, 3).permute(0, 3, 1, 2)  # many numbers, in an unusual order
    gradients = []
    for place in ("cpu", device):
        loss = network.to(place)(images.to(place)).square().mean()
        gradients.append(torch.autograd.grad(loss, network.parameters()))
    return all(torch.allclose(one, two.cpu(), rtol=0.01, atol=1e-4) for one, two in zip(*gradients))


def compiles(device):
    """Whether `torch.compile` works on `device`: it wants a C compiler and, for CUDA, Triton. Lesson 11."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(2, device=device))
    except Exception:  # whatever the compiler, which is not ours, runs into
        return False
    return True


def finish(training, together=True):
    """Give the averaged weights to the model; `together`, all processes get the same. Lesson 11.

    A run of so few steps that BatchNorm's statistics are not there yet, which forget a tenth in each, says so.
    """
    for buffer in training.average.module.buffers() if together else ():
        broadcast(buffer)  # BatchNorm's statistics, from the first process to all
    training.finish()
    counts = any(hasattr(part, "running_mean") for part in training.diffusion.modules())
    sentence = ""
    if training.step < len(training):
        sentence = f"Stopped after {training.step} of {len(training)} steps."
    elif training.step < 45 and counts:
        sentence = f"{training.step} steps are few: BatchNorm knows the images' colours after 45 or so."
    if sentence and training.accelerator.is_main_process:
        tqdm.write(sentence)


def saved_steps(training, folder, every):
    """Take the steps of `carry_on`, one by one, and save every so many of them. Lesson 11."""
    left = False
    main, size = training.accelerator.is_main_process, training.loader.total_batch_size
    workers = training.loader.base_dataloader
    workers.worker_init_fn = partial(ignore_signals, workers.worker_init_fn)
    if not same_gradients(training.accelerator.device):
        warnings.warn(
            "this GPU's gradients are wrong; set ACCELERATE_USE_CPU=1, or try a newer PyTorch", stacklevel=2
        )
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
                due = last or step % every == 0
                if due or step % 100 == 0:
                    training.check_finite()
                    loss = np.mean(training.history["loss"][-50:])
                    bar.set_postfix(step=step, loss=f"{loss:.3f}", refresh=False)
                if main and due:
                    save_checkpoint(training, folder)
                if last:
                    break
    finish(training, together=not left)


class Loop:
    """What can be looped over again and again: each loop takes a new `generator()`. Lesson 11.

    Python closes a generator after a `break` only where no name holds it any longer; in this loop none does.
    """

    def __init__(self, generator):
        self.generator = generator

    def __iter__(self):
        return self.generator()


def carry_on(training, folder, every=1000):
    """Loop over `training`, and keep its state in `folder`: the same loop again carries on. Lesson 11.

        for step in carry_on(training, "my_checkpoints"):
            ...

    A checkpoint is written every `every` steps, at the end, when the loop is left by `break`, and when the
    stop button is pressed or SIGTERM comes. Without a cosine, you may ask for more epochs later. `folder` may
    hold other things; none of them is ever removed. `training.history` gets the "seconds" that it all took. In
    the end the model holds the averaged weights.

    On a CPU a training run that was stopped or killed ends with the same bits as one that was not. That is
    not promised with another number of threads or processes, another CPU, precision or version of PyTorch;
    nor for a loss that counts its calls, nor for a data set, a sampler or a batch sampler that throws dice of its
    own without a seed that follows from the epoch and the image's number.

    Raises ValueError for a checkpoint of another training run, for a DistributedSampler, since Accelerate shares
    the batches itself, or when hosts see different folders; FloatingPointError for a loss or weights that are not
    finite; OSError, at the start where that can be known, when a checkpoint cannot be written, or another training
    run uses the folder; RuntimeError when a batch does not fit into the GPU's memory. (After a `break`, Python can
    only print an error, not raise it.)
    """
    if isinstance(training.sampler, DistributedSampler):
        raise ValueError("loader: leave out its DistributedSampler; the processes share each batch already")
    return Loop(partial(saved_steps, training, Path(folder).expanduser().absolute(), every))
