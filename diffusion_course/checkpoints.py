"""What a training run is kept in, so that it can go on: checkpoints, written whole or not at all.

Lesson 11  fingerprint, name_of, settings, step_of, checkpoints, remove, parts, plain,
           write_files, save_checkpoint, restore, load_checkpoint

    save_checkpoint(training, "my_checkpoints")
    load_checkpoint(training, "my_checkpoints")

`training` is a `Training` of lesson 04. `carry_on`, in long_runs.py, calls both at the right moments.
"""

import json
import os
import warnings
import zipfile
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from tqdm.auto import tqdm
from transformers import PretrainedConfig

from diffusion_course.images import Augmented, seeded

MARK = "checkpoint.json"  # says that a folder is a checkpoint, and of which step: written first, removed last
FILES = "config.json", "model.safetensors", "training.pt", MARK  # all that a checkpoint holds


def fingerprint(data):
    """A number that tells one data set from another, by 16 of its items. Lesson 11.

    An item may be an image, or a tuple, list or dict of arrays, tensors and numbers. Of data that is
    augmented (lesson 10), what it starts from counts.
    """
    data = data.data if isinstance(data, Augmented) else data
    with seeded(0):  # for a data set that turns its images at random
        pieces = [data[int(i)] for i in np.linspace(0, len(data) - 1, 16)]
    checksum = 0
    while pieces:
        piece = pieces.pop()
        if isinstance(piece, dict):
            pieces += piece.values()
        elif isinstance(piece, (tuple, list)):
            pieces += piece
        else:
            array = piece.float().numpy(force=True) if torch.is_tensor(piece) else np.asarray(piece)
            array = np.asarray(str(type(piece))) if array.dtype.hasobject else array  # not its address
            checksum = zlib.crc32(array.tobytes(), checksum)
    return checksum


def name_of(function):
    """The name of a function, with the numbers and words that a `partial` gives it. Lesson 11."""
    if not isinstance(function, partial):
        return getattr(function, "__name__", type(function).__name__)
    options = {
        name: value for name, value in function.keywords.items() if isinstance(value, (str, int, float))
    }
    return f"{name_of(function.func)} {options}"


def settings(training):
    """What the result of a training run depends on, by name. Lesson 11.

    With a cosine that includes the number of epochs; without one, you may ask for more later.
    """
    loader, config = training.loader, getattr(training.diffusion, "config", PretrainedConfig()).to_dict()
    own = config.keys() - PretrainedConfig().to_dict().keys() - {"steps", "times"}  # these two only draw
    recipe = vars(training.recipe)
    epochs = training.recipe.epochs if training.recipe.cosine_decay else "any"
    options = training.optimizer.optimizer.defaults
    numbers = [name for name, value in options.items() if type(value) in (int, float, tuple)]
    return {
        **{name: config[name] for name in sorted(own)},
        "parameters": sum(parameter.numel() for parameter in training.diffusion.parameters()),
        "images": len(loader.dataset),
        "fingerprint": fingerprint(loader.dataset),
        "batch_size": loader.total_batch_size,
        "batches": len(loader),
        "sampler": type(training.sampler).__name__,
        "order_seed": training.order_seed,
        "collate_fn": name_of(loader.collate_fn),
        "augment": name_of(getattr(loader.dataset, "augment", None)),
        "augment_seed": getattr(loader.dataset, "seed", None),
        "loss": name_of(training.accelerator.unwrap_model(training.loss).loss),
        "optimizer": type(training.optimizer.optimizer).__name__,
        "optimizer_numbers": {name: options[name] for name in sorted(numbers) if name not in recipe},
        **recipe,
        "epochs": epochs,
    }


def step_of(path):
    """The step of the checkpoint in the folder `path`; -1 where there is none. Lesson 11."""
    try:
        return int(json.loads((path / MARK).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def checkpoints(folder):
    """The checkpoints in `folder`, oldest first. What only looks like one is not among them. Lesson 11."""
    candidates = sorted(Path(folder).glob("step-*"))
    return [path for path in candidates if path.name == f"step-{step_of(path):08}" and not path.is_symlink()]


def remove(checkpoint):
    """Remove a checkpoint, whole or not. What else lies in its folder stays, and so does the folder. Lesson 11."""
    unfinished = [path.name for path in checkpoint.glob(".tmp*")]  # of safetensors
    for name in (*unfinished, *FILES):
        (checkpoint / name).unlink(missing_ok=True)
    if not any(checkpoint.iterdir()):
        checkpoint.rmdir()


def parts(training):
    """The parts of a training run that change, by name; each has a state_dict. Lesson 11."""
    changing = {
        "raw": training.diffusion,
        "average": training.average.module,
        "optimizer": training.optimizer,
        "rates": training.rates,
        "scaler": training.accelerator.scaler,
    }
    return {name: part for name, part in changing.items() if part is not None}


def plain(value):
    """`value` as a checkpoint can hold it, so that it can be read again. Lesson 11.

    Numbers of NumPy become Python's, arrays become tensors; what else there may be, such as a path or a date,
    becomes its text.
    """
    if isinstance(value, dict):
        return dict(map(plain, value.items()))
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.as_tensor(value.copy())
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(map(plain, value))
    if isinstance(value, torch.Tensor):
        return value.detach().as_subclass(torch.Tensor)
    for kind in (bool, int, float, str):  # their subclasses could not be read again
        if isinstance(value, kind):
            return kind(value)
    return value if value is None or isinstance(value, torch.dtype) else str(value)


def write_files(training, folder):
    """Write the four files of a checkpoint, and wait until they are on the disk. Lesson 11."""
    average = training.average.module
    state = {name: part.state_dict() for name, part in parts(training).items()}
    state["settings"], state["history"] = settings(training), training.history
    state["precision"] = training.accelerator.mixed_precision
    (folder / MARK).write_text(json.dumps({"step": training.step}), encoding="utf-8")
    if hasattr(average, "config"):
        average.config.to_json_file(folder / "config.json")
    safetensors.torch.save_model(average, str(folder / "model.safetensors"), metadata={"format": "pt"})
    torch.save(plain(state), folder / "training.pt")
    for path in folder.iterdir():  # a power cut may come
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def save_checkpoint(training, folder, keep=2):
    """Write the checkpoint `step-...` into `folder`, and keep the last ones. Lesson 11.

        config.json, model.safetensors    the averaged weights, for `from_pretrained`
        training.pt                       both sets of weights, optimizer, learning rate, history
        checkpoint.json                   the step

    It is written under another name and then renamed, so that what is called `step-...` is whole.
    Raises OSError when it cannot be written; what was there before stays.
    """
    draft, final = Path(folder, f"unfinished-{os.urandom(4).hex()}"), Path(folder, f"step-{training.step:08}")
    try:
        draft.mkdir(parents=True)
        write_files(training, draft)
        if final in checkpoints(folder):
            remove(final)
        if final.is_dir() or final.is_symlink():  # more lies in it, or it is not whole: it gets another name
            final.rename(f"{final}-{os.urandom(4).hex()}")
        draft.replace(final)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:  # what a full disk may lead to
        last = (checkpoints(folder) or ["none"])[-1]
        raise OSError(f"cannot write {final}: {error}. Is the disk full? Last checkpoint: {last}") from error
    finally:
        if draft.exists():
            remove(draft)
    so_far = [path for path in checkpoints(folder) if path.name <= final.name]
    whole = [path for path in so_far if zipfile.is_zipfile(path / "training.pt")]  # torn ones do not count
    for old in whole[:-keep]:
        remove(old)


def restore(training, state, step):
    """Give each part of a training run the state that it had after `step`. Lesson 11."""
    for weight, average in zip(training.diffusion.parameters(), training.average.parameters()):
        weight.data = (
            average.data.clone()
        )  # in memory as at the start; `finish` orders its numbers differently
    for name in parts(training).keys() & state.keys():  # another machine may need a scaler, or none
        parts(training)[name].load_state_dict(state[name])
    training.step, training.history, training.finished = step, state["history"], False
    training.average.n_averaged.fill_(training.step)


def load_checkpoint(training, folder):
    """Go on from the newest checkpoint in `folder`, if there is one. Lesson 11.

    One that cannot be read is passed over with a warning; one made in another precision goes on, with a
    note. Raises ValueError when none can be read, or when the training run had other settings, and names them.
    """
    candidates, now = checkpoints(folder), settings(training)
    for path in reversed(candidates):
        try:
            state = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
            before, step = state["settings"], step_of(path)
        except Exception as error:  # a torn file makes torch, zip and pickle raise all kinds of errors
            kind = type(error).__name__
            warnings.warn(f"{path} cannot be read ({kind}), taking the one before", stacklevel=3)
            continue
        before.setdefault("optimizer_numbers", now["optimizer_numbers"])  # older checkpoints have none,
        before.setdefault("augment_seed", now["augment_seed"])  # and not this
        # Images that change from call to call tell nothing.
        if before["fingerprint"] != now["fingerprint"] != fingerprint(training.loader.dataset):
            before["fingerprint"] = now["fingerprint"]
        differ = [
            f"{name}={before.get(name)}, not {now[name]}" for name in now if before.get(name) != now[name]
        ]
        if step > len(training):
            differ.append(f"{step} steps done, more than {len(training)}")
        if differ:
            raise ValueError(f"{folder} holds another training run: {'; '.join(differ)}. Take another folder")
        if state["precision"] != training.accelerator.mixed_precision:
            tqdm.write(f"Goes on in another precision than {state['precision']}, as up to step {step}.")
        return restore(training, state, step)
    if candidates:
        raise ValueError(f"no checkpoint in {folder} can be read; take another folder")
