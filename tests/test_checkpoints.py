"""Lesson 11: a training run that is stopped, killed or disturbed, and goes on; train.py; several processes."""

import json
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
from collections import namedtuple
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    TORCHRUN,
    TRAIN,
    contents,
    finished,
    go_on,
    good,
    kill_and_compare,
    loader,
    names,
    new_training,
    run,
    same,
    tiny,
)
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from tqdm import tqdm

import train as command
from diffusion_course import long_runs
from diffusion_course.checkpoints import (
    checkpoints,
    fingerprint,
    load_checkpoint,
    name_of,
    plain,
    save_checkpoint,
)
from diffusion_course.long_runs import carry_on, stop_button
from diffusion_utils import Diffusion, DiffusionConfig, Recipe, Training, generate, l1_loss


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These networks are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also where a shell in the background has switched it off for the tests; and so after each."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, usual)


@pytest.fixture(scope="module")
def whole():
    """The run that nobody disturbs: the plain loop, without any folder."""
    training = new_training()
    list(training)
    return training


def ends_as(whole, folder):
    """Whether the run in `folder`, carried on to its end, has the bits of the undisturbed one, losses included."""
    diffusion, history = go_on(folder)
    loss, lr = (whole.history[name] == history[name] for name in ("loss", "lr"))
    return same(diffusion, whole.diffusion) and loss and lr


@wraps(l1_loss)
def fails(*arguments):
    raise AssertionError("no step should be taken")


def at_step(step, act):
    """`l1_loss`, but what it returns goes through `act` in one step; the first is 1."""
    calls = []

    @wraps(l1_loss)
    def loss(diffusion, images):
        calls.append(1)
        value = l1_loss(diffusion, images)
        return act(value) if len(calls) == step else value

    return loss


def press(value=None, number=signal.SIGINT):
    """Press Ctrl-C, or Jupyter's stop button."""
    signal.raise_signal(number)
    return value


# Stopped and gone on with ---------------------------------------------------------------


def test_what_a_checkpoint_holds(tmp_path, whole):
    diffusion, history = go_on(tmp_path)
    last = tmp_path / "step-00000020"
    assert checkpoints(tmp_path) == [tmp_path / "step-00000016", last] == sorted(tmp_path.iterdir())
    assert names(last) == ["checkpoint.json", "config.json", "model.safetensors", "training.pt"]
    state = torch.load(last / "training.pt", weights_only=True)
    assert same(Diffusion.from_pretrained(last), diffusion) and same(state["average"], diffusion)
    assert same(diffusion, whole.diffusion) and not same(state["raw"], diffusion)
    assert state["history"]["loss"] == history["loss"] == whole.history["loss"]
    assert 0 < state["history"]["seconds"] <= history["seconds"]
    own = {"epochs": "any", "loss": "l1_loss", "optimizer": "AdamW", "widths": [8, 16]}
    assert state["settings"].items() >= (asdict(Recipe(lr=5e-3)) | own).items()
    assert json.loads((last / "checkpoint.json").read_text()) == {"step": 20}
    again, _ = go_on(tmp_path, loss=fails)  # a finished run takes no step
    assert same(again, diffusion)


def test_more_epochs_carry_on_bit_for_bit(tmp_path, whole):
    go_on(tmp_path, epochs=2)
    assert ends_as(whole, tmp_path)


@pytest.mark.parametrize("every, expected", [(3, [18, 20]), (7, [14, 20]), (1000, [20]), (1, [19, 20])])
def test_every_so_many_steps(tmp_path, every, expected):
    """In the middle of an epoch too, and at the end."""
    go_on(tmp_path, every=every)
    assert names(tmp_path) == [f"step-{step:08}" for step in expected]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 6, 8])
def test_the_stop_button_saves_and_returns(tmp_path, whole, capsys, step, number):
    """Ctrl-C, Jupyter's button, and SIGTERM; in a step, which is finished first."""
    usual = signal.getsignal(signal.SIGTERM)
    stopped, history = go_on(tmp_path, loss=at_step(step, partial(press, number=number)))
    assert len(history["loss"]) == step and f"Stopped after {step} of 20 steps" in capsys.readouterr().out
    assert names(tmp_path)[-1] == f"step-{step:08}" and signal.getsignal(signal.SIGTERM) == usual
    assert same(stopped, Diffusion.from_pretrained(tmp_path / f"step-{step:08}"))  # the averaged weights
    assert generate(stopped, n=1, steps=1).shape == (1, 3, 8, 8)
    assert ends_as(whole, tmp_path)


@pytest.mark.parametrize("again", ["a new one", "the same object"])
@pytest.mark.parametrize("stop, wrap", [(1, iter), (6, tqdm), (8, enumerate), (19, zip)])
def test_break_saves(tmp_path, whole, capsys, stop, wrap, again):
    """Also where something else holds the loop; and another run may begin."""
    training = new_training()
    loop = carry_on(training, tmp_path, every=4)
    for _ in wrap(loop):
        if training.step == stop:
            break
    assert names(tmp_path)[-1] == f"step-{stop:08}"
    assert f"Stopped after {stop} of 20 steps" in capsys.readouterr().out
    assert same(training.diffusion, training.average.module)
    assert [type(loss) for loss in training.history["loss"]] == [float] * stop
    training = new_training() if again == "a new one" else training
    assert list(carry_on(training, tmp_path, every=4)) == list(range(stop + 1, 21))
    assert same(training.diffusion, whole.diffusion) and training.history["loss"] == whole.history["loss"]


def test_the_stop_button_in_the_body(tmp_path, whole):
    """Pressed while the reader's own code runs: that code ends, and the step is the last or the next to last."""
    training, steps = new_training(), []
    for step in carry_on(training, tmp_path):
        if step == 5:
            press()
        steps.append(step)
    assert steps[:5] == [1, 2, 3, 4, 5] and training.step == steps[-1] <= 6
    assert names(tmp_path) == [f"step-{training.step:08}"] and ends_as(whole, tmp_path)


def test_an_error_in_the_body(tmp_path, whole):
    """It comes through as it is, and what was learned is not lost."""
    with pytest.raises(ZeroDivisionError):
        for step in carry_on(new_training(), tmp_path):
            1 / (step - 3)
    assert names(tmp_path) == ["step-00000003"] and ends_as(whole, tmp_path)


@pytest.mark.parametrize("folder", ["here", "~/here"])
def test_another_folder_of_work_in_the_loop(tmp_path, whole, monkeypatch, folder):
    """A folder that is named from here, or from home, stays where it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    for step in carry_on(new_training(), folder, every=4):
        os.chdir(tmp_path / "elsewhere")
        if step == 10:
            break
    assert names(tmp_path) == ["elsewhere", "here"] and not names(tmp_path / "elsewhere")
    assert ends_as(whole, tmp_path / "here")


def test_two_runs_in_one_folder(tmp_path, whole):
    """The second is refused; whatever becomes of the first, the folder is free after it, and nothing is left."""
    second = new_training()
    for step in carry_on(new_training(), tmp_path, every=4):
        if step == 6:
            before = contents(tmp_path)
            with pytest.raises(OSError, match="cannot write into .*: another training run is at work in it"):
                next(iter(carry_on(second, tmp_path)))
            assert contents(tmp_path) == before and second.step == 0
            go_on(tmp_path / "other", epochs=1)  # another folder, even in this one, is free
            break
    assert names(tmp_path) == ["other", "step-00000004", "step-00000006"]
    (tmp_path / ".lock").write_text("of one that was killed")
    assert ends_as(whole, tmp_path) and ".lock" not in names(tmp_path)


def test_a_second_press_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_button():
        press()
        press()


def test_training_in_a_thread(tmp_path):
    histories = []
    thread = threading.Thread(target=lambda: histories.append(go_on(tmp_path, epochs=1)[1]))
    thread.start()
    thread.join()
    assert len(histories[0]["loss"]) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="no process groups there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_processes(tmp_path, number):
    """As clusters and terminals send them; the workers of a loader leave them to the main process."""
    program = f"""
import os, signal, subprocess, time, torch
from helpers import tiny
from diffusion_utils import Training
from diffusion_course.long_runs import carry_on
signal.signal(signal.SIGINT, signal.default_int_handler)
os.setpgrp()
loader = torch.utils.data.DataLoader(torch.rand(320, 3, 8, 8), 8, num_workers=2)
training = Training(tiny(), loader, epochs=9)
for step in carry_on(training, {str(tmp_path)!r}):
    if step == 3:
        subprocess.run(["kill", "-{int(number)}", "--", f"-{{os.getpgrp()}}"], start_new_session=True)
        time.sleep(0.5)
print("steps", step)
"""
    last = re.search(r"steps ([34])$", finished(run(program)).strip())[1]
    assert names(tmp_path) == [f"step-0000000{last}"]


# What is kept ---------------------------------------------------------------------------


def test_numbers_of_numpy(tmp_path, whole):
    """In the recipe; a checkpoint has Python's own."""
    numbers = dict(lr=np.float64(5e-3), seed=np.int64(0), ema_decay=np.float64(0.999))
    go_on(tmp_path, epochs=2, every=np.int64(4), **numbers)
    assert ends_as(whole, tmp_path)


@pytest.mark.parametrize("thing, read", [
    (Path("x"), "x"), (np.datetime64("2020-01-01"), "2020-01-01"), (np.array(["a", "b"]), ["a", "b"]),
    (signal.SIGINT, 2), (namedtuple("Pair", "x y")(1, np.int8(2)), (1, 2)), (np.str_("x"), "x"), ({3}, "{3}"),
    ({1: [np.float32(0.5), (np.True_, None, 7)]}, {1: [0.5, (True, None, 7)]}), (np.float32(0.5), 0.5),
    (torch.ones(1, requires_grad=True) * 2, torch.tensor([2.0])), (np.arange(3)[::-1], torch.tensor([2, 1, 0])),
])  # fmt: skip
def test_whatever_the_history_holds_can_be_read_again(tmp_path, thing, read):
    torch.save(plain({"history": thing}), tmp_path / "state.pt")
    again = torch.load(tmp_path / "state.pt", weights_only=True)["history"]
    assert type(again) is type(read)
    assert torch.equal(again, read) if torch.is_tensor(read) else again == read


class Dice(list):
    """Images that are other ones each time; it holds the functions that throw."""

    def __getitem__(self, index):
        throw = super().__getitem__(index)
        return torch.full((3, 8, 8), throw())


@pytest.mark.parametrize(
    "throw", [random.random, np.random.rand, lambda: torch.rand(()).item(), np.random.default_rng().random]
)
def test_data_that_throw_dice_go_on(tmp_path, throw):
    for _ in range(2):
        for step in carry_on(Training(tiny(), DataLoader(Dice([throw] * 32), 8), epochs=3), tmp_path):
            if step == 5:
                break
    assert names(tmp_path) == ["step-00000005", "step-00000012"]


def test_names_and_fingerprints():
    assert name_of(partial(l1_loss, power=2, teacher=tiny())) == "l1_loss {'power': 2}"
    assert name_of(l1_loss) == "l1_loss" and name_of(torch.nn.L1Loss()) == "L1Loss"
    images = loader().dataset
    pairs = TensorDataset(torch.as_tensor(images), torch.arange(len(images)))
    assert fingerprint(images) == fingerprint(images.copy()) != fingerprint(images[::-1])
    assert fingerprint(pairs) != fingerprint(images)
    assert fingerprint([{"image": 1}] * 2) == fingerprint([[1]] * 2)
    assert fingerprint([None] * 2) == fingerprint([None] * 3) != fingerprint([object()] * 2)


def test_other_models_carry_on(tmp_path):
    """A model without a config, and batches of several things."""
    images = torch.as_tensor(loader().dataset)
    pairs = DataLoader(TensorDataset(images, images.mean((1, 2, 3))), 8, shuffle=True)

    def loss(model, batch):
        return torch.nn.functional.mse_loss(model(batch[0]).flatten(), batch[1])

    def training():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1))
        return Training(model, pairs, loss=loss, epochs=3)

    undisturbed, again = training(), training()
    list(undisturbed)
    for step in carry_on(training(), tmp_path):
        if step == 5:
            break
    assert list(carry_on(again, tmp_path)) == [6, 7, 8, 9, 10, 11, 12]
    assert same(again.diffusion, undisturbed.diffusion)
    assert again.history["loss"] == undisturbed.history["loss"]


# What is refused ------------------------------------------------------------------------


def squared(diffusion, images):
    return l1_loss(diffusion, images).square()


def sgd(model, recipe):
    return torch.optim.SGD(model.parameters(), recipe.lr)


def betas(model, recipe):
    return torch.optim.AdamW(model.parameters(), recipe.lr, betas=(0.5, 0.9), fused=True)


def turned():
    batches = loader()
    batches.dataset[0] += 0.01
    return batches


@pytest.mark.parametrize("options, message", [
    ({"lr": 1e-3}, "lr=0.005, not 0.001"),
    ({"seed": 1, "ema_decay": 0.5}, "ema_decay=0.999, not 0.5; seed=0, not 1"),
    ({"cosine_decay": True}, "epochs=any, not 5; .*cosine_decay=False, not True|cosine_decay=False, not True; epochs=any"),
    ({"weight_decay": 0, "warmup_steps": 3}, "weight_decay=0.0001, not 0; warmup_steps=0, not 3"),
    ({"epochs": 1}, "8 steps done, more than 4"),
    ({"loss": squared}, "loss=l1_loss, not squared"),
    ({"loss": partial(l1_loss, late=2)}, "loss=l1_loss, not l1_loss {'late': 2}"),
    ({"optimizer": sgd}, "optimizer=AdamW, not SGD"),
    ({"optimizer": betas}, r"run: optimizer_numbers=\{'betas': \(0.9, 0.999\), .*not \{'betas': \(0.5, 0.9\)"),
    ({"loader": loader(count=40)}, "images=32, not 40; fingerprint="),
    ({"loader": turned()}, r"training run: fingerprint=\d+, not \d+\. Take another folder$"),
    ({"loader": loader(batch_size=16)}, "batch_size=8, not 16"),
    ({"loader": loader(seed=1)}, "order_seed=0, not 1"),
    ({"loader": DataLoader(loader().dataset, 8)}, "sampler=RandomSampler, not SequentialSampler"),
    ({"diffusion": Diffusion(DiffusionConfig(8, (16, 16), 1))}, r"widths=\[8, 16\], not \[16, 16\]"),
    ({"diffusion": tiny(predicts="v")}, "predicts=noise, not v"),
])  # fmt: skip
def test_another_run_is_refused_by_name(tmp_path, options, message):
    go_on(tmp_path, epochs=2)
    before = contents(tmp_path)
    parts = options.get("diffusion", tiny()), options.get("loader", loader())
    recipe = {name: value for name, value in options.items() if name not in ("diffusion", "loader")}
    with pytest.raises(ValueError, match=message) as error:
        list(carry_on(Training(*parts, **{"epochs": 5, "lr": 5e-3, **recipe}), tmp_path))
    assert len(str(error.value).splitlines()) == 1 and contents(tmp_path) == before


def test_checkpoints_that_lack_a_newer_setting_go_on(tmp_path, whole):
    go_on(tmp_path, epochs=2)
    path = tmp_path / "step-00000008" / "training.pt"
    state = torch.load(path, weights_only=True)
    del state["settings"]["optimizer_numbers"], state["settings"]["augment_seed"]
    torch.save(state, path)
    assert ends_as(whole, tmp_path)


def test_a_distributed_sampler_is_refused(tmp_path):
    """Each process would see a part of its part."""
    data = loader().dataset
    sampler = DistributedSampler(data, num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="loader: leave out its DistributedSampler"):
        carry_on(Training(tiny(), DataLoader(data, 8, sampler=sampler)), tmp_path)


def test_few_steps_are_named(tmp_path, capsys):
    go_on(tmp_path)
    assert "20 steps are few: BatchNorm" in capsys.readouterr().out
    go_on(tmp_path, epochs=12)
    assert "few" not in capsys.readouterr().out


def test_a_cosine_is_bound_to_its_epochs(tmp_path):
    go_on(tmp_path, epochs=2, cosine_decay=True)
    assert len(go_on(tmp_path, epochs=2, cosine_decay=True, loss=fails)[1]["loss"]) == 8
    with pytest.raises(ValueError, match="epochs=2, not 5"):
        go_on(tmp_path, epochs=5, cosine_decay=True)


def test_hosts_that_see_different_folders(tmp_path, monkeypatch):
    """Each of them would go on from a step of its own."""
    monkeypatch.setattr(long_runs, "gather_object", lambda steps: [*steps, 4])
    with pytest.raises(ValueError, match=r"all hosts need to see the same .* the steps \[0, 4\]"):
        go_on(tmp_path, loss=fails)
    assert names(tmp_path) == []


def test_a_torn_checkpoint_is_passed_over(tmp_path, whole):
    go_on(tmp_path, epochs=3)
    torn = tmp_path / "step-00000012" / "training.pt"
    for content in (torn.read_bytes()[:100], torn.read_bytes()[:-1000], b"", None):
        torn.unlink() if content is None else torn.write_bytes(content)
        with pytest.warns(UserWarning, match=r"step-00000012 cannot be read \(\w+\), taking the one before$"):
            assert go_on(tmp_path, epochs=3)[1]["loss"] == whole.history["loss"][:12]
        again = go_on(tmp_path, epochs=3, loss=fails)[0]  # it was written anew
        assert same(again, Diffusion.from_pretrained(torn.parent))
    weights = tmp_path / "step-00000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])  # training.pt holds them too
    assert ends_as(whole, tmp_path)
    (tmp_path / "step-00000020" / "checkpoint.json").write_text("")
    assert ends_as(whole, tmp_path)  # what was not whole has another name now
    assert len(list(tmp_path.glob("step-00000020-*"))) == 1
    for torn in tmp_path.glob("*/training.pt"):
        torn.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no checkpoint in .* can be read"):
        go_on(tmp_path)


def test_a_torn_later_checkpoint_does_not_count(tmp_path):
    go_on(tmp_path, epochs=2)
    (tmp_path / "step-00000008" / "training.pt").write_bytes(b"")
    training = new_training()
    with pytest.warns(UserWarning, match="step-00000008 cannot be read"):
        load_checkpoint(training, tmp_path)
    training.history["loss"] = training.history["loss"][-2:]  # the step does not follow from it
    next(iter(training))
    save_checkpoint(training, tmp_path, keep=1)
    assert names(tmp_path) == ["step-00000005", "step-00000008"]
    shutil.rmtree(tmp_path / "step-00000008")
    training = new_training()
    load_checkpoint(training, tmp_path)
    assert training.step == 5 and len(training.history["loss"]) == 3


def test_a_torn_checkpoint_does_not_cost_an_older_whole_one(tmp_path):
    go_on(tmp_path, epochs=2)
    (tmp_path / "step-00000008" / "training.pt").write_bytes(b"")
    for _ in range(2):
        with pytest.warns(UserWarning, match="step-00000008 cannot be read"):
            training = new_training()
            load_checkpoint(training, tmp_path)
        training.step = 12
        save_checkpoint(training, tmp_path)
        assert names(tmp_path) == ["step-00000004", "step-00000008", "step-00000012"]
        shutil.rmtree(tmp_path / "step-00000012")


@pytest.mark.parametrize("step, every", [(10, 4), (1, 4), (12, 4), (20, 1000), (6, 5)])
@pytest.mark.parametrize("act", [
    lambda loss: loss * math.nan,
    lambda loss: loss + (loss - loss.detach()).abs().sqrt(),  # it is fine, and its gradient is not
])  # fmt: skip
def test_nothing_that_is_not_finite_is_kept(tmp_path, step, every, act):
    with pytest.raises(FloatingPointError, match="loss or weights are not finite at step"):
        go_on(tmp_path, every=every, loss=at_step(step, act))
    assert names(tmp_path) == [f"step-{done:08}" for done in range(every, step, every)][-2:]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files there")
def test_a_full_disk(tmp_path, whole):
    """Full in the mark, in the config, the weights and training.pt; what is left is looked at after each."""
    program = f"""
import resource
from helpers import contents, go_on, names
folder = {str(tmp_path)!r}
before, (_, most) = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
for size in (10, 100, 20_000, 100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        go_on(folder)
    except OSError as error:
        print(error)
    assert contents(folder) == before, (size, names(folder))
    assert names(folder) == ["step-00000004", "step-00000008"], (size, names(folder))
"""
    go_on(tmp_path, epochs=2)
    output = finished(run(program))
    sentence = r"^cannot write .*step-00000012: .+ Is the disk full\? Last checkpoint: .*step-00000008$"
    assert len(re.findall(sentence, output, re.M)) == 4, output
    assert ends_as(whole, tmp_path)


def test_names_that_are_taken(tmp_path):
    """The folder's, which is seen before the first step, and that of a checkpoint. Nothing is overwritten."""
    go_on(tmp_path, epochs=1)
    (tmp_path / "step-00000008").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(OSError, match="cannot write into .*step-00000008: "):
        go_on(tmp_path / "step-00000008", loss=fails)
    with pytest.raises(OSError, match="cannot write .*step-00000008: .* Last checkpoint: .*step-00000004"):
        go_on(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind, gpu", [(torch.OutOfMemoryError, "CUDA"), (RuntimeError, "MPS backend")])
def test_out_of_memory(tmp_path, kind, gpu):
    @wraps(l1_loss)
    def loss(*arguments):
        raise kind(f"{gpu} out of memory. Tried to allocate …")

    sentence = "batch_size=8 needs more memory than the GPU has; try batch_size=4"
    with pytest.raises(RuntimeError, match=sentence) as error:
        go_on(tmp_path, loss=loss)
    assert type(error.value.__cause__) is kind


# Other things in the folder -------------------------------------------------------------


def test_strange_things_in_the_folder_stay(tmp_path, whole):
    """What people keep beside and in their checkpoints, and what only looks like one."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    elsewhere.mkdir()
    good(elsewhere, 1)
    go_on(folder, epochs=1)
    old = folder / "step-00000004"
    for name in ("step-00000004-best", "step-best"):
        shutil.copytree(old, folder / name)
    ours = contents(old)  # this checkpoint will be removed, but not what was put into it
    for name in ("unfinished-00000000", "unfinished-photos", "unfinished", "step-photos", "step-00000099"):
        (folder / name).mkdir()
        good(folder / name, 1)
    for name, mark in [("step-odd", "no JSON"), ("step-odder", "[4]"), ("step-00000098", '{"step": "x"}')]:
        (folder / name).mkdir()
        (folder / name / "checkpoint.json").write_text(mark)
    for name in ("step-00000001.log", "step-00000002", "notes.txt"):
        (folder / name).write_text("do not touch")
    if sys.platform != "win32":  # symbolic links need rights there
        (folder / "step-00000777").symlink_to(elsewhere)
        (folder / "step-00000012").symlink_to("nowhere")
        (folder / "unfinished-link").symlink_to(elsewhere)
    good(old, 1)
    kept = {path: content for path, content in contents(tmp_path).items() if path not in ours}

    assert ends_as(whole, folder)
    after = contents(tmp_path)
    assert sys.platform == "win32" or len([*folder.glob("step-00000012-*")]) == 1  # the link, renamed
    assert kept.items() <= after.items() and names(old) == ["good_0.png"]
    new = {path.parent.name for path in after.keys() - kept.keys()}
    assert new == {"step-00000016", "step-00000020"} == {path.name for path in checkpoints(folder)}
    go_on(folder, loss=fails)
    assert contents(tmp_path) == after


def test_what_a_killed_run_left_is_cleared_away(tmp_path, whole):
    """Its unfinished checkpoint, at whatever moment it was killed, and nothing else: not one with a photo in it."""
    go_on(tmp_path, epochs=1)
    for name in ("0123abcd", "4567abcd", "00000001", "symphony"):
        shutil.copytree(tmp_path / "step-00000004", tmp_path / f"unfinished-{name}")
    (tmp_path / "unfinished-00000002").mkdir()
    good(tmp_path / "unfinished-4567abcd", 1)
    for name in ("training.pt", "checkpoint.json"):
        (tmp_path / "unfinished-00000001" / name).unlink()
    (tmp_path / "unfinished-00000001" / ".tmpXy12").write_text("of safetensors")
    before = contents(tmp_path)
    go_on(tmp_path, epochs=1, loss=fails)
    assert names(tmp_path) == ["step-00000004", "unfinished-4567abcd", "unfinished-symphony"]
    assert contents(tmp_path) == {
        path: before[path] for path in before if path.parent.name in names(tmp_path)
    }
    assert ends_as(whole, tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_a_checkpoint_behind_a_link_stays(tmp_path, whole):
    """A link is none of ours, whatever it leads to."""
    go_on(tmp_path / "other", epochs=2)
    (tmp_path / "folder").mkdir()
    for path in checkpoints(tmp_path / "other"):
        (tmp_path / "folder" / path.name).symlink_to(path)
    (tmp_path / "folder" / "step-00000012").symlink_to(tmp_path / "other")
    before = contents(tmp_path / "other")
    assert checkpoints(tmp_path / "folder") == []
    diffusion, _ = go_on(tmp_path / "folder", every=10)
    assert same(diffusion, whole.diffusion) and contents(tmp_path / "other") == before
    assert {"step-00000010", "step-00000020"} == {path.name for path in checkpoints(tmp_path / "folder")}


# Killed ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
def test_killed_at_any_moment(tmp_path):
    """Killed again and again, by turns with SIGKILL and SIGTERM, also while a checkpoint is written.

    The end is the same to the bit, and a second run in the folder is refused meanwhile.
    benchmarks/kill.py does it with 20 runs.
    """
    equal, writing = kill_and_compare(tmp_path, times=4)
    assert equal and len(writing) == 4


# The command line -----------------------------------------------------------------------

SMALL = ["--size", "16", "--limit", "300", "--widths", "8", "16", "--block-depth", "1", "--batch-size", "32",
         "--lr", "2e-3", "--checkpoint-every", "9"]  # fmt: skip


def test_the_options_are_the_recipe():
    def recipe_of(arguments):
        return command.parser.parse_args_into_dataclasses(["--output", "x", *arguments.split()])[1]

    assert recipe_of("") == Recipe()
    given = "--epochs 3 --lr 1e-3 --weight-decay 0.1 --ema-decay 0.9 --warmup-steps 7 --cosine-decay --seed 2"
    assert recipe_of(given) == Recipe(3, 1e-3, 0.1, 0.9, 7, True, 2)


def train_py(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    command.main()


def refused(monkeypatch, capsys, *arguments):
    """The last line of what train.py says when it ends before anything is loaded."""
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as error:
        for name in ("get_data", "LazyImages", "Training", "carry_on"):
            patch.setattr(command, name, fails)
        train_py(patch, *arguments)
    assert error.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_train_py(monkeypatch, tmp_path, capsys, predicts):
    """With images that are decoded when they are needed; a network that learned from pure noise draws from there."""
    options = ["--predicts", predicts, *(["--late", "2", "--lazy", "--muon"] if predicts == "v" else [])]
    faces = tmp_path / "faces"
    faces.mkdir()
    good(faces, 40)
    train_py(monkeypatch, "--output", tmp_path / "new", "--data", faces, "--epochs", 2, *SMALL, *options)
    assert "\n40 images; 1 steps an epoch, 2 in all\n" in f"\n{capsys.readouterr().out}"
    diffusion = Diffusion.from_pretrained(tmp_path / "new")
    assert diffusion.config.predicts == predicts and (diffusion.config.times[0] > 1) == (predicts == "v")
    assert generate(diffusion, n=1).shape == (1, 3, 16, 16)
    settings = state_of(tmp_path / "new")["settings"]
    assert settings["optimizer"] == ("AdamW" if predicts == "noise" else "Muon")
    assert settings["loss"].startswith("l1_loss" if predicts == "noise" else "prediction_loss {'late': 2.0")


def test_a_late_that_would_do_nothing_is_refused(monkeypatch, tmp_path, capsys):
    assert "--late" in refused(monkeypatch, capsys, "--output", tmp_path / "new", "--late", "2")
    for late in ("0", "-1", "inf", "nan"):
        options = "--output", tmp_path / "new", f"--late={late}", "--predicts", "v"
        assert "--late" in refused(monkeypatch, capsys, *options)


@pytest.mark.parametrize("fill", [
    lambda output: output.write_text("a file"),
    lambda output: [output.mkdir(), good(output)],
    lambda output: tiny().save_pretrained(output),
    lambda output: go_on(output / "checkpoints", epochs=1),  # of another program
])  # fmt: skip
def test_an_output_with_other_things_is_refused(monkeypatch, tmp_path, capsys, fill):
    """Before anything is loaded or trained; and it is left as it is."""
    output = tmp_path / "output"
    fill(output)
    before = contents(tmp_path)
    line = refused(monkeypatch, capsys, "--output", output, *SMALL)
    assert line.endswith(f"--output: {output} is not a folder of this program; name a new one")
    assert contents(tmp_path) == before and names(tmp_path) == ["output"]


def half_written(diffusion, folder):
    Path(folder, "model.safetensors").write_bytes(b"half")
    raise OSError("the disk is full")


def test_another_start(monkeypatch, tmp_path, capsys):
    """What was trained from one model is not gone on with when another is named."""
    one, output = tmp_path / "one", tmp_path / "output"
    tiny().save_pretrained(one)
    start = ["--output", output, "--limit", 40, "--batch-size", 20, "--epochs", 1, "--start-from"]
    train_py(monkeypatch, *start, one)
    assert "40 images, and perhaps more beyond --limit; 2 steps" in capsys.readouterr().out
    assert state_of(output)["settings"]["image_size"] == 8
    train_py(monkeypatch, *start, one)  # it is complete, and only loaded
    sentence = f"{output} holds a run that started from {one}, not from {tmp_path}"
    assert refused(monkeypatch, capsys, *start, tmp_path).endswith(sentence)
    assert "not from new weights" in refused(monkeypatch, capsys, *start[:-1])
    monkeypatch.setenv("HOME", str(tmp_path))
    train_py(monkeypatch, *start, "~/one", "--size", 8)
    with pytest.raises(SystemExit):
        train_py(
            monkeypatch, "--output", tmp_path / "new", "--start-from", one, "--size", 64, "--predicts", "v"
        )
    line = "from has {'image_size': 8, 'predicts': 'noise'}, not {'image_size': 64, 'predicts': 'v'}; leave that out"
    assert line in capsys.readouterr().err
    before = contents(output)
    monkeypatch.setattr(Diffusion, "save_pretrained", half_written)
    with pytest.raises(OSError, match="the disk is full"):
        train_py(monkeypatch, *start, one)
    assert contents(output) == before


@pytest.mark.parametrize("cuda, works, backend", [(1, True, "inductor"), (1, False, "no"), (0, True, "no")])
def test_train_py_compiles_where_it_can(monkeypatch, tmp_path, cuda, works, backend):
    def accelerator(dynamo_backend):
        raise InterruptedError(dynamo_backend)

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(command, "compiles", lambda device: works and device == "cuda:1")  # its own GPU
    monkeypatch.setattr(command, "pick_accelerator", accelerator)
    with pytest.raises(InterruptedError, match=backend):
        train_py(monkeypatch, "--output", tmp_path / "new", *SMALL)


# Several processes ----------------------------------------------------------------------


def state_of(folder):
    return torch.load(sorted((folder / "checkpoints").glob("step-*"))[-1] / "training.pt", weights_only=True)


def test_two_processes_train_like_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = run(None, TRAIN, "--output", str(one), *SMALL, "--epochs", "6")
    second = run(None, *TORCHRUN, TRAIN, "--output", str(two), *SMALL, "--epochs", "6")
    finished(first)
    finished(second)
    alone, together = (state_of(folder)["history"]["loss"] for folder in (one, two))
    assert len(alone) == len(together) == 6 * 9
    assert np.mean(together[-9:]) == pytest.approx(np.mean(alone[-9:]), rel=0.1)
    assert np.mean(together[-9:]) < 0.8 * together[0]
    files = {"model.safetensors", "config.json", "diffusion_utils.py", "samples.png", "loss.png"}
    assert {*files, "checkpoints", "start_from.txt"} == set(names(two))
    assert generate(Diffusion.from_pretrained(two), n=1, steps=1).shape == (1, 3, 16, 16)

    # one process goes on where two have stopped
    finished(run(None, TRAIN, "--output", str(two), *SMALL, "--epochs", "7"))
    losses = state_of(two)["history"]["loss"]
    assert losses[: 6 * 9] == together and len(losses) == 7 * 9


def test_the_processes_agree(tmp_path):
    """Same order as alone, each image once an epoch, the same weights at the end."""
    program = tmp_path / "program.py"
    program.write_text("""
import os, sys, torch
from accelerate import PartialState
from helpers import go_on
from diffusion_utils import l1_loss
seen = []
def loss(diffusion, images):
    seen.append(images[:, 0, 0, 0].tolist())
    return l1_loss(diffusion, images)
folder = f"{sys.argv[1]}/{os.environ.get('WORLD_SIZE', 1)}"
diffusion, history = go_on(folder, every=1000, epochs=3, loss=loss)
torch.save((seen, diffusion.state_dict(), history["loss"]), f"{folder}-{os.environ.get('RANK', 0)}.pt")
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
""")
    finished(run(None, str(program), str(tmp_path)))
    finished(run(None, *TORCHRUN, str(program), str(tmp_path)))
    alone, left, right = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert [a + b for a, b in zip(left[0], right[0], strict=True)] == alone[0]
    images = sorted(loader().dataset[:, 0, 0, 0].tolist())
    assert all(sorted(sum(alone[0][i : i + 4], [])) == images for i in (0, 4, 8))
    assert same(left[1], right[1]) and left[2] == right[2]
    assert names(tmp_path / "2") == ["step-00000012"]
