"""Lesson 11: a training that is stopped, killed or disturbed, and goes on; train.py; several processes."""

import json
import math
import re
import shutil
import signal
import sys
import threading
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
    run,
    same,
    tiny,
)

import train as command
from diffusion_utils import GPU_RECIPE, Diffusion, DiffusionConfig, Training, generate, l1_loss, schedule
from diffusion_course import long_training
from diffusion_course.long_runs import carry_on, checkpoints, stop_button
from diffusion_course.samplers import PURE_NOISE, time_of


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These networks are too small to share among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also where a shell in the background has switched it off for the tests."""
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, usual)


@pytest.fixture(scope="module")
def uninterrupted():
    """The plain loop, without any folder."""
    training = Training(tiny(), loader(), epochs=5, lr=5e-3)
    for _ in training:
        pass
    return training.diffusion, training.history


def fails(*arguments):
    raise AssertionError("no step should be taken")


def at_step(step, act):
    """A loss that does something else in one step of a training; the first is 1."""
    calls = []

    def loss(diffusion, images):
        calls.append(1)
        value = l1_loss(diffusion, images)
        return act(value) if len(calls) == step else value

    return loss


def press(value=None):
    """Press Ctrl-C, or Jupyter's stop button."""
    signal.raise_signal(signal.SIGINT)
    return value


# Stopped and gone on with ---------------------------------------------------------------


def test_what_a_checkpoint_holds(tmp_path, uninterrupted):
    diffusion, history = go_on(tmp_path)
    assert names(tmp_path) == ["step-00000016", "step-00000020"]  # the last two
    assert [path.name for path in checkpoints(tmp_path)] == names(tmp_path)
    last = tmp_path / "step-00000020"
    assert names(last) == ["checkpoint.json", "config.json", "model.safetensors", "training.pt"]
    state = torch.load(last / "training.pt", weights_only=True)
    assert same(Diffusion.from_pretrained(last), diffusion) and same(state["average"], diffusion)
    assert not same(state["raw"], diffusion)
    assert state["history"]["loss"] == history["loss"] == uninterrupted[1]["loss"]
    assert state["history"]["lr"] == history["lr"] and 0 < state["history"]["seconds"] <= history["seconds"]
    recipe = GPU_RECIPE | {"lr": 5e-3, "epochs": "any"}
    assert state["settings"].items() >= recipe.items() and state["settings"]["widths"] == [8, 16]
    assert json.loads((last / "checkpoint.json").read_text()) == {"step": 20}
    assert same(diffusion, uninterrupted[0])


def test_more_epochs_carry_on_bit_for_bit(tmp_path, uninterrupted):
    go_on(tmp_path, epochs=2)
    diffusion, history = go_on(tmp_path, epochs=5)
    assert same(diffusion, uninterrupted[0])
    assert history["loss"] == uninterrupted[1]["loss"] and history["lr"] == uninterrupted[1]["lr"]


@pytest.mark.parametrize("every, expected", [(3, [18, 20]), (7, [14, 20]), (1000, [20]), (1, [19, 20])])
def test_every_so_many_steps(tmp_path, every, expected):
    """In the middle of an epoch too, and at the end."""
    go_on(tmp_path, every=every)
    assert names(tmp_path) == [f"step-{step:08}" for step in expected]


def test_a_finished_training_returns_at_once(tmp_path):
    once, history = go_on(tmp_path)
    before = contents(tmp_path)
    again, history_again = go_on(tmp_path, loss=fails)  # would fail if called
    assert same(once, again) and history_again["loss"] == history["loss"] and contents(tmp_path) == before


@pytest.mark.parametrize("step", [1, 4, 7, 8])
def test_the_stop_button_saves_and_returns(tmp_path, uninterrupted, capsys, step):
    stopped, history = go_on(tmp_path, loss=at_step(step, press))
    assert len(history["loss"]) == step
    assert f"Stopped after {step} of 20 steps" in capsys.readouterr().out
    assert not stopped.unet.out.weight.isnan().any() and generate(stopped, n=1, steps=1).shape == (1, 3, 8, 8)
    assert names(tmp_path)[-1] == f"step-{step:08}"
    assert same(stopped, Diffusion.from_pretrained(tmp_path / f"step-{step:08}"))  # the averaged weights
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    diffusion, history = go_on(tmp_path)
    assert same(diffusion, uninterrupted[0]) and history["loss"] == uninterrupted[1]["loss"]


@pytest.mark.parametrize("stop", [1, 6, 8, 19])
def test_break_saves(tmp_path, uninterrupted, capsys, stop):
    training = Training(tiny(), loader(), epochs=5, lr=5e-3)
    for step in carry_on(training, tmp_path, every=4):
        if step == stop:
            break
    assert names(tmp_path)[-1] == f"step-{stop:08}" and training.step == stop
    assert f"Stopped after {stop} of 20 steps" in capsys.readouterr().out
    assert same(training.diffusion, training.average.module)
    assert [type(loss) for loss in training.history["loss"]] == [float] * stop
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    seen, again = [], Training(tiny(), loader(), epochs=5, lr=5e-3)
    for step in carry_on(again, tmp_path, every=4):
        seen.append(step)
    assert seen == list(range(stop + 1, 21))
    assert same(again.diffusion, uninterrupted[0]) and again.history["loss"] == uninterrupted[1]["loss"]


def test_the_stop_button_in_the_body(tmp_path, uninterrupted):
    """Pressed while the reader's own code runs: that code ends, the step after it is the last."""
    training, seen = Training(tiny(), loader(), epochs=5, lr=5e-3), []
    for step in carry_on(training, tmp_path):
        if step == 5:
            press()
        seen.append(step)
    assert seen[:5] == [1, 2, 3, 4, 5] and training.step == seen[-1] <= 6
    assert names(tmp_path) == [f"step-{training.step:08}"]
    assert same(go_on(tmp_path)[0], uninterrupted[0])


def test_an_error_in_the_body(tmp_path, uninterrupted):
    """It comes through as it is, and what was learned is not lost."""
    training = Training(tiny(), loader(), epochs=5, lr=5e-3)
    with pytest.raises(ZeroDivisionError):
        for step in carry_on(training, tmp_path):
            1 / (step - 3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert names(tmp_path) == ["step-00000003"]
    assert same(go_on(tmp_path)[0], uninterrupted[0])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sigterm_is_a_stop_button_too(tmp_path, uninterrupted, capsys, number):
    usual = signal.getsignal(signal.SIGTERM)
    stopped, history = go_on(tmp_path, loss=at_step(6, lambda loss: signal.raise_signal(number) or loss))
    assert len(history["loss"]) == 6 and "Stopped after 6 of 20 steps" in capsys.readouterr().out
    assert names(tmp_path)[-1] == "step-00000006" and signal.getsignal(signal.SIGTERM) == usual
    assert same(go_on(tmp_path)[0], uninterrupted[0])


def test_two_trainings_in_one_folder(tmp_path, uninterrupted):
    """The second is refused, whatever becomes of the first the folder is free after it, and nothing is left."""
    first, second = (Training(tiny(), loader(), epochs=5, lr=5e-3) for _ in range(2))
    for step in carry_on(first, tmp_path, every=4):
        if step == 6:
            before = contents(tmp_path)
            with pytest.raises(
                OSError, match="folder: cannot write into .*: another training is at work in it"
            ):
                next(carry_on(second, tmp_path))
            assert contents(tmp_path) == before and second.step == 0
            go_on(tmp_path / "other", epochs=1)  # another folder, even in this one, is free
            break
    assert names(tmp_path) == ["other", "step-00000004", "step-00000006"]
    assert names(tmp_path / "other") == ["step-00000004"]
    with pytest.raises(ZeroDivisionError):
        for step in carry_on(second, tmp_path):
            1 / (step - 8)
    assert same(go_on(tmp_path)[0], uninterrupted[0]) and ".lock" not in names(tmp_path)


def test_a_lock_of_a_process_that_is_gone(tmp_path, uninterrupted):
    """What it left of its lock stops nobody."""
    go_on(tmp_path, epochs=1)
    (tmp_path / ".lock").write_text("of one that was killed")
    assert same(go_on(tmp_path)[0], uninterrupted[0]) and ".lock" not in names(tmp_path)


def test_a_second_press_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_button():
        press()
        press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_a_thread(tmp_path):
    histories = []
    thread = threading.Thread(target=lambda: histories.append(go_on(tmp_path, epochs=1)[1]))
    thread.start()
    thread.join()
    assert len(histories[0]["loss"]) == 4


def test_the_recipe_may_hold_numbers_of_numpy(tmp_path, uninterrupted):
    numbers = dict(
        lr=np.float64(5e-3), seed=np.int64(0), ema_decay=np.float64(0.999), warmup_steps=np.int32(0)
    )
    go_on(tmp_path, epochs=np.int64(2), every=np.int64(4), **numbers)
    diffusion, history = go_on(tmp_path, **numbers)
    assert same(diffusion, uninterrupted[0]) and history["loss"] == uninterrupted[1]["loss"]


def test_other_models_carry_on(tmp_path):
    """A model without a config, and batches of several things."""

    def training():
        torch.manual_seed(0)
        images = torch.as_tensor(loader().dataset)
        pairs = torch.utils.data.TensorDataset(images, images.mean((1, 2, 3)))
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 1))

        def loss(model, batch):
            return torch.nn.functional.mse_loss(model(batch[0]).flatten(), batch[1])

        return Training(model, torch.utils.data.DataLoader(pairs, 8, shuffle=True), loss=loss, epochs=3)

    whole = training()
    for _ in whole:
        pass
    for step in carry_on(training(), tmp_path):
        if step == 5:
            break
    again = training()
    assert list(carry_on(again, tmp_path)) == [6, 7, 8, 9, 10, 11, 12]
    assert same(again.diffusion, whole.diffusion) and again.history["loss"] == whole.history["loss"]


# What is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("options, message", [
    ({"lr": 1e-3}, r"lr=0.005, not 0.001"),
    ({"seed": 1, "ema_decay": 0.5}, r"ema_decay=0.999, not 0.5; seed=0, not 1"),
    ({"cosine_decay": True}, r"cosine_decay=False, not True; epochs=any, not 5|epochs=any, not 5; .*cosine_decay=False, not True"),
    ({"weight_decay": 0, "warmup_steps": 3}, r"weight_decay=0.0001, not 0.0; warmup_steps=0, not 3"),
    ({"epochs": 1}, r"8 steps done, more than 4"),
])  # fmt: skip
def test_another_training_is_refused_by_name(tmp_path, options, message):
    go_on(tmp_path, epochs=2)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        go_on(tmp_path, **options)
    assert len(str(error.value).splitlines()) == 1 and contents(tmp_path) == before
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


def test_a_cosine_is_bound_to_its_epochs(tmp_path):
    go_on(tmp_path, epochs=2, cosine_decay=True)
    assert len(go_on(tmp_path, epochs=2, cosine_decay=True, loss=fails)[1]["loss"]) == 8
    with pytest.raises(ValueError, match="epochs=2, not 5"):
        go_on(tmp_path, epochs=5, cosine_decay=True)


def test_other_data_and_other_widths_are_refused(tmp_path):
    def training(diffusion=None, batches=None):
        return Training(diffusion or tiny(), batches or loader(), epochs=2, lr=5e-3)

    go_on(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="pictures=32, not 40; fingerprint="):
        list(carry_on(training(batches=loader(count=40)), tmp_path))
    other = loader()
    other.dataset[0] += 0.01
    with pytest.raises(ValueError, match=r"another training: fingerprint="):
        list(carry_on(training(batches=other), tmp_path))
    with pytest.raises(ValueError, match=r"batch_size=8, not 16"):
        list(carry_on(training(batches=loader(batch_size=16)), tmp_path))
    wider = Diffusion(DiffusionConfig(8, (16, 16), 1))
    with pytest.raises(ValueError, match=r"widths=\[8, 16\], not \[16, 16\]"):
        list(carry_on(training(wider), tmp_path))
    with pytest.raises(ValueError, match="predicts=noise, not v"):
        list(carry_on(training(tiny(predicts="v")), tmp_path))


def change(path, do):
    state = torch.load(path, weights_only=True)
    do(state)
    torch.save(state, path)


def shrink(state):
    for memory in state["optimizer"]["state"].values():
        memory["exp_avg"] = torch.zeros(1)


@pytest.mark.parametrize("do, sentence", [
    (shrink, "another training: weights of other shapes"),
    (lambda state: state["settings"].pop("fingerprint"), r"another training: fingerprint=None, not \d+"),
    (lambda state: state["settings"].update(batches=5), "another training: batches=5, not 4"),
])  # fmt: skip
def test_a_checkpoint_that_was_changed_is_refused(tmp_path, do, sentence):
    go_on(tmp_path, epochs=1)
    change(tmp_path / "step-00000004" / "training.pt", do)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        go_on(tmp_path, loss=fails)
    assert contents(tmp_path) == before


def test_hosts_that_see_different_folders(tmp_path, monkeypatch):
    """Each of them would go on from a step of its own."""
    monkeypatch.setattr(long_training, "gather_object", lambda steps: [*steps, 4])
    with pytest.raises(
        ValueError, match=r"all hosts need to see the same one, but .* leads them to steps \[0, 4\]"
    ):
        go_on(tmp_path, loss=fails)
    assert names(tmp_path) == []


def test_checkpoints_of_the_former_layout_are_refused(tmp_path):
    """As the course wrote them: two models, and training.pt."""
    for step in ("step-00000004", "step-00000008"):
        tiny().save_pretrained(tmp_path / step)
        tiny().save_pretrained(tmp_path / step / "raw")
        torch.save({"settings": {}, "history": {"loss": [0.5] * 4}}, tmp_path / step / "training.pt")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match="folder: .* is of an earlier version of the course; take another folder"
    ) as error:
        go_on(tmp_path, loss=fails)
    assert len(str(error.value).splitlines()) == 1 and contents(tmp_path) == before


def test_a_torn_checkpoint_is_passed_over(tmp_path, uninterrupted):
    go_on(tmp_path, epochs=3)
    torn = tmp_path / "step-00000012" / "training.pt"
    for content in (torn.read_bytes()[:100], torn.read_bytes()[:-1000], b"", None):
        torn.unlink() if content is None else torn.write_bytes(content)
        with pytest.warns(UserWarning, match="step-00000012 cannot be read, taking the one before") as warned:
            assert go_on(tmp_path, epochs=3)[1]["loss"] == uninterrupted[1]["loss"][:12]
        assert all("\n" not in str(warning.message) for warning in warned)
        assert same(
            go_on(tmp_path, epochs=3, loss=fails)[0], Diffusion.from_pretrained(torn.parent)
        )  # written anew
    weights = tmp_path / "step-00000012" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])  # training.pt holds them too
    assert go_on(tmp_path, epochs=3, loss=fails)[1]["loss"] == uninterrupted[1]["loss"][:12]
    assert same(go_on(tmp_path)[0], uninterrupted[0])
    for torn in tmp_path.glob("*/training.pt"):
        torn.write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="no checkpoint in .* can be read; take another folder"),
    ):
        go_on(tmp_path)


@pytest.mark.parametrize("step, every", [(10, 4), (1, 4), (12, 4), (20, 1000)])
def test_a_loss_that_is_not_finite(tmp_path, step, every):
    poisoned = at_step(step, lambda loss: loss * math.nan)
    with pytest.raises(
        FloatingPointError, match=rf"loss is nan at step {step}, with a learning rate of 0.005"
    ):
        go_on(tmp_path, every=every, loss=poisoned)
    assert names(tmp_path) == [
        f"step-{done:08}" for done in range(every, step, every)
    ]  # nothing of it is kept


def test_a_loss_that_is_not_finite_is_seen_soon(tmp_path):
    """Within 100 steps, also where checkpoints are rare."""
    training = Training(tiny(), loader(), epochs=1000, loss=at_step(8, lambda loss: loss * math.inf))
    with pytest.raises(
        FloatingPointError, match="loss is inf at step 8.*see notebooks/it_does_not_work.ipynb"
    ):
        for _ in carry_on(training, tmp_path, every=4000):
            pass
    assert training.step <= 100 and not names(tmp_path)


def test_weights_that_are_not_finite_are_not_kept(tmp_path, uninterrupted):
    """The loss of this step is fine, its gradient is not; with the next step all is lost."""
    poisoned = at_step(8, lambda loss: loss + (loss - loss.detach()).abs().sqrt())
    with pytest.raises(
        FloatingPointError, match="weights are not finite after step 8; see notebooks/it_does_not_work.ipynb"
    ):
        go_on(tmp_path, loss=poisoned)
    assert names(tmp_path) == ["step-00000004"]
    assert same(go_on(tmp_path)[0], uninterrupted[0])


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files there")
def test_a_full_disk(tmp_path, uninterrupted):
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
    before = contents(tmp_path)
    output = finished(run(program))
    said = re.findall(
        r"^folder: cannot write .*step-00000012: .+ Last checkpoint: .*step-00000008$", output, re.M
    )
    assert len(said) == 4, output
    assert contents(tmp_path) == before
    assert same(go_on(tmp_path)[0], uninterrupted[0])


def test_a_name_that_is_taken(tmp_path):
    go_on(tmp_path, epochs=1)
    (tmp_path / "step-00000008").write_text("mine")
    before = contents(tmp_path)
    sentence = "folder: cannot write .*step-00000008: .* Last checkpoint: .*step-00000004"
    with pytest.raises(OSError, match=sentence) as error:
        go_on(tmp_path)
    assert len(str(error.value).splitlines()) == 1 and contents(tmp_path) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="folder: ") as error:
        go_on(tmp_path / "file", loss=fails)
    assert len(str(error.value).splitlines()) == 1 and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind, gpu", [(torch.OutOfMemoryError, "CUDA"), (RuntimeError, "MPS backend")])
def test_out_of_memory(tmp_path, kind, gpu):
    def loss(*arguments):
        raise kind(f"{gpu} out of memory. Tried to allocate …")

    sentence = "batch_size=8 needs more memory than the GPU has; try batch_size=4 .*see notebooks/it_does_not_work.ipynb"
    with pytest.raises(RuntimeError, match=sentence) as error:
        go_on(tmp_path, loss=loss)
    assert type(error.value.__cause__) is kind
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# Other things in the folder -------------------------------------------------------------


def strange_things(folder, elsewhere):
    """What people keep beside and in their checkpoints; returns all of it, with what is in it."""
    for name in (
        "unfinished-00000000",
        "unfinished-photos",
        "unfinished",
        "step-photos",
        "step-00000099",
        "photos",
    ):
        (folder / name).mkdir()
        good(folder / name, 1)
    for name, mark in [("step-odd", "no JSON"), ("step-odder", "[4]"), ("step-00000098", '{"step": "x"}')]:
        (folder / name).mkdir()
        (folder / name / "checkpoint.json").write_text(mark)
    (folder / "step-00000001.log").write_text("step 1")
    (folder / "step-00000002").write_text("a file, no folder")
    (folder / "notes.txt").write_text("do not touch")
    elsewhere.mkdir()
    good(elsewhere, 1)
    if sys.platform != "win32":  # symbolic links need rights there
        (folder / "step-00000777").symlink_to(elsewhere)
        (folder / "unfinished-link").symlink_to(elsewhere)
    return contents(folder) | contents(elsewhere)


def test_strange_things_in_the_folder_stay(tmp_path, uninterrupted):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    go_on(folder, epochs=1)
    shutil.copytree(folder / "step-00000004", folder / "step-00000004-best")
    shutil.copytree(folder / "step-00000004", folder / "step-best")
    copies = contents(folder / "step-00000004-best") | contents(folder / "step-best")
    good(folder / "step-00000004", 1)  # in a checkpoint that will be removed
    kept = strange_things(folder, elsewhere)
    kept = {path: content for path, content in kept.items() if path.parent.name != "step-00000004"} | copies
    photo = {path: content for path, content in contents(folder).items() if path.name == "good_0.png"}

    diffusion, history = go_on(folder)
    assert same(diffusion, uninterrupted[0]) and history["loss"] == uninterrupted[1]["loss"]
    after = contents(folder) | contents(elsewhere)
    assert (kept | photo).items() <= after.items()
    assert names(folder / "step-00000004") == ["good_0.png"]  # the checkpoint in it is gone
    new = {path.parent.name for path in after.keys() - (kept | photo).keys()}
    assert new == {"step-00000016", "step-00000020"} == {path.name for path in checkpoints(folder)}

    again, _ = go_on(folder, loss=fails)
    assert same(again, diffusion) and (contents(folder) | contents(elsewhere)) == after


def test_what_a_killed_training_left_is_cleared_away(tmp_path, uninterrupted):
    """Its unfinished checkpoint, and nothing else: no photo in it, and none of its copies."""
    go_on(tmp_path, epochs=1)
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "unfinished-0123abcd")
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "unfinished-4567abcd")
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "unfinished-symphony")
    good(tmp_path / "unfinished-4567abcd", 1)
    kept = contents(tmp_path / "unfinished-symphony") | contents(tmp_path / "step-00000004")
    go_on(tmp_path, epochs=1, loss=fails)
    assert names(tmp_path) == ["step-00000004", "unfinished-4567abcd", "unfinished-symphony"]
    assert (
        names(tmp_path / "unfinished-4567abcd") == ["good_0.png"]
        and kept.items() <= contents(tmp_path).items()
    )
    assert same(go_on(tmp_path)[0], uninterrupted[0])


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights there")
def test_a_checkpoint_behind_a_link_stays(tmp_path, uninterrupted):
    """A link is none of ours, whatever it leads to."""
    go_on(tmp_path / "other", epochs=2)
    (tmp_path / "folder").mkdir()
    for path in checkpoints(tmp_path / "other"):
        (tmp_path / "folder" / path.name).symlink_to(path)
    (tmp_path / "folder" / "step-00000012").symlink_to(tmp_path / "other")
    before = contents(tmp_path / "other")
    assert checkpoints(tmp_path / "folder") == []
    diffusion, _ = go_on(tmp_path / "folder", every=10)
    assert same(diffusion, uninterrupted[0]) and contents(tmp_path / "other") == before
    assert {"step-00000010", "step-00000020"} == {path.name for path in checkpoints(tmp_path / "folder")}


# Precision and compiling ----------------------------------------------------------------


@pytest.mark.parametrize(
    "cuda, works, backend", [(True, True, "inductor"), (True, False, "no"), (False, True, "no")]
)
def test_train_py_compiles_where_it_can(monkeypatch, tmp_path, cuda, works, backend):
    class Enough(Exception):
        pass

    def accelerator(**options):
        assert options == {"dynamo_backend": backend}
        raise Enough

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(command, "_device", lambda: "cuda:1")
    monkeypatch.setattr(command, "compiles", lambda device: works and device == "cuda:1")  # its own GPU
    monkeypatch.setattr(command, "_accelerator", accelerator)
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", str(tmp_path / "new"), *SMALL])
    with pytest.raises(Enough):
        command.main()


def test_half_precision_and_compiling_on_a_cpu(tmp_path):
    """What a GPU gets, as far as a CPU can do it: bfloat16, and the network traced by dynamo."""
    program = f"""
import torch
from accelerate import Accelerator
from helpers import go_on, loader, names, tiny
from diffusion_utils import Training, _accelerator
from diffusion_course.long_runs import carry_on
folder = {str(tmp_path)!r}
diffusion, seen = tiny(), []
accelerator = _accelerator(mixed_precision="bf16", dynamo_backend="eager")
training = Training(diffusion, loader(), accelerator=accelerator, epochs=30, lr=5e-3)
handle = diffusion.unet.out.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
with torch.no_grad():
    loss = training.loss(torch.rand(8, 3, 8, 8))
handle.remove()
assert type(training.loss).__name__ == "OptimizedModule" and loss.dtype == torch.float32
assert seen == [torch.bfloat16], seen
for _ in carry_on(training, folder, every=60):
    pass
history = training.history
assert len(history["loss"]) == 120
assert sum(history["loss"][-8:]) < 0.9 * sum(history["loss"][:8]), history["loss"]
assert all(p.dtype == torch.float32 for p in diffusion.parameters())
diffusion.eval()
assert diffusion.unet(torch.rand(1, 16, 8, 8)).dtype == torch.float32  # as it was before
assert diffusion(torch.rand(1, 3, 8, 8))[1].dtype == torch.float32
print("done")
"""
    assert "done" in finished(run(program))
    # with another precision, as on another machine, it goes on from there
    diffusion, history = go_on(tmp_path, epochs=31)
    assert len(history["loss"]) == 124 and sum(history["loss"][-4:]) < 0.9 * sum(history["loss"][:4])
    assert all(parameter.dtype == torch.float32 for parameter in diffusion.parameters())


@pytest.mark.parametrize("compiler", [
    "no such compiler",
    pytest.param("g++", marks=pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("g++"), reason="there is no g++ for Linux here")),
])  # fmt: skip
def test_compiling_is_tried_before_it_is_switched_on(tmp_path, compiler):
    program = "from train import compiles; print(compiles('cpu'))"
    output = finished(run(program, CXX=compiler, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)))
    assert output.split()[-1] == str(compiler == "g++")


# Killed ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
def test_killed_at_any_moment(tmp_path):
    """Killed again and again, by turns with SIGKILL and SIGTERM, also while a checkpoint is written.

    The end is the same to the bit, and a second training in the folder is refused meanwhile.
    benchmarks/kill.py does it with 20 trainings.
    """
    equal, writing = kill_and_compare(tmp_path, times=4)
    assert equal and len(writing) == 4


# The command line -----------------------------------------------------------------------

SMALL = ["--size", "16", "--limit", "300", "--widths", "8", "16", "--block-depth", "1", "--batch-size", "32",
         "--lr", "2e-3", "--checkpoint-every", "9"]  # fmt: skip


def test_the_options_are_the_recipe():
    options = command.parser.parse_args(["--output", "x"])
    assert {name: getattr(options, name) for name in GPU_RECIPE} == GPU_RECIPE
    given = "--output x --epochs 3 --lr 1e-3 --weight-decay 0.1 --ema-decay 0.9 --warmup-steps 7 --cosine-decay --seed 2"
    options = command.parser.parse_args(given.split())
    recipe = dict(
        epochs=3, lr=1e-3, weight_decay=0.1, ema_decay=0.9, warmup_steps=7, cosine_decay=True, seed=2
    )
    assert {name: getattr(options, name) for name in GPU_RECIPE} == recipe and options.output == Path("x")
    assert {name: type(getattr(options, name)) for name in GPU_RECIPE} == {
        n: type(v) for n, v in GPU_RECIPE.items()
    }
    assert options.checkpoint_every == 1000 and options.batch_size == 64


def test_v_is_an_option(monkeypatch, tmp_path):
    """The loss is the squared error of v, which a network that answers 0 makes as large as v itself."""
    given = ["train.py", "--output", str(tmp_path / "new"), *SMALL, "--predicts", "v", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", given)
    command.main()
    diffusion = Diffusion.from_pretrained(tmp_path / "new")
    assert diffusion.config.predicts == "v"
    images, sent = torch.rand(8, 3, 16, 16), []
    diffusion.eval().combine.register_forward_pre_hook(lambda module, inputs: sent.append(inputs))
    torch.manual_seed(5)
    loss = command.v_loss(diffusion, images, late=2)
    torch.manual_seed(5)
    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), time_of(PURE_NOISE) * (1 - torch.rand(8, 1, 1, 1) ** 2)
    noise_rate, signal_rate = schedule(time)
    v = diffusion.unet(diffusion.combine(signal_rate * image + noise_rate * noise, noise_rate**2))
    torch.testing.assert_close(loss, (v - (signal_rate * noise - noise_rate * image)).square().mean())
    assert all(torch.allclose(one, two) for one, two in zip(*sent))


@pytest.mark.parametrize("kind", ["file", "photos", "model"])
def test_an_output_with_other_things_is_refused(monkeypatch, tmp_path, capsys, kind):
    """Before anything is loaded or trained; and it is left as it is."""
    output = tmp_path / "output"
    if kind == "file":
        output.write_text("a file")
    else:
        output.mkdir()
        good(output) if kind == "photos" else tiny().save_pretrained(output)
    before = contents(tmp_path)
    for name in ("get_data", "Training", "carry_on"):
        monkeypatch.setattr(command, name, fails)
    monkeypatch.setattr(sys, "argv", ["train.py", "--output", str(output), *SMALL])
    with pytest.raises(SystemExit) as error:
        command.main()
    assert error.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith(f"--output: {output} is not a folder of this program; name a new one")
    assert contents(tmp_path) == before and names(tmp_path) == ["output"]


def refused(monkeypatch, capsys, *arguments):
    """The last line of what train.py says when it ends before anything is loaded."""
    for name in ("get_data", "Training", "carry_on"):
        monkeypatch.setattr(command, name, fails)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as error:
        command.main()
    assert error.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_an_output_with_a_folder_of_that_name(monkeypatch, tmp_path, capsys):
    """A folder checkpoints/ alone does not make it ours; one with a checkpoint does."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("mine")
    said = refused(monkeypatch, capsys, "--output", tmp_path)
    assert said.endswith(f"--output: {tmp_path} is not a folder of this program; name a new one")
    assert (tmp_path / "config.json").read_text() == "mine" and names(tmp_path) == [
        "checkpoints",
        "config.json",
    ]
    go_on(tmp_path / "checkpoints", epochs=1)
    assert command.refusal(tmp_path, None) is None


def test_an_output_that_cannot_be(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    said = refused(monkeypatch, capsys, "--output", tmp_path / "file" / "below")
    assert f"--output: cannot write into {tmp_path / 'file' / 'below'}: " in said


def test_another_start(tmp_path):
    """What was trained from one model is not gone on with when another is named."""
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    tiny().save_pretrained(one)
    output = tmp_path / "output"
    assert (
        command.refusal(output, one) is None and command.refusal(output, two) is None
    )  # nothing is trained yet
    assert command.refusal(output, one) is None
    go_on(output / "checkpoints", epochs=1)
    assert command.refusal(output, one) is None
    sentence = f"{output} holds a training that started from {one}, not from {{}}; name a new one"
    assert command.refusal(output, two) == sentence.format(two)
    assert command.refusal(output, None) == sentence.format("new weights")


@pytest.mark.parametrize(
    "option", ["--limit", "--size", "--widths", "--block-depth", "--batch-size", "--checkpoint-every"]
)
@pytest.mark.parametrize("value", ["0", "-1", "2.5", "many"])
def test_options_that_are_no_numbers(monkeypatch, tmp_path, capsys, option, value):
    said = refused(monkeypatch, capsys, "--output", tmp_path / "new", option, value)
    assert f"argument {option}" in said and not names(tmp_path)


def test_lazy_leaves_out_what_is_broken(tmp_path):
    good(tmp_path, 3)
    (tmp_path / "bad.png").write_text("no picture")
    pictures = command.Pictures(tmp_path, size=8)
    with pytest.warns(UserWarning, match="1 of 4 pictures are left out, the first: bad.png cannot be read"):
        assert len([*command.readable(pictures)]) == 3


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
    assert {"model.safetensors", "config.json", "samples.png", "loss.png", "checkpoints"} == set(names(two))
    assert generate(Diffusion.from_pretrained(two), n=1, steps=1).shape == (1, 3, 16, 16)

    # one process goes on where two have stopped
    finished(run(None, TRAIN, "--output", str(two), *SMALL, "--epochs", "7"))
    assert (
        state_of(two)["history"]["loss"][: 6 * 9] == together
        and len(state_of(two)["history"]["loss"]) == 7 * 9
    )

    # and another training starts from their weights, and takes over their sizes
    more = tmp_path / "more"
    finished(
        run(None, TRAIN, "--output", str(more), "--start-from", str(two), "--limit", "300", "--epochs", "1")
    )
    state = state_of(more)
    assert state["settings"]["image_size"] == 16 and list(state["settings"]["widths"]) == [8, 16]
    assert np.mean(state["history"]["loss"]) < 0.8 * together[0]


def test_the_processes_agree(tmp_path):
    """Same order as alone, each picture once an epoch, the same weights at the end."""
    program = tmp_path / "program.py"
    program.write_text("""
import sys, torch, numpy as np
from accelerate import PartialState
from helpers import tiny
from diffusion_utils import Training, get_loader, l1_loss
from diffusion_course.long_runs import carry_on
data = np.arange(32, dtype=np.float32)[:, None, None, None] / 32 * np.ones((1, 3, 8, 8), dtype=np.float32)
seen = []
def loss(diffusion, images):
    seen.append((images[:, 0, 0, 0] * 32).tolist())
    return l1_loss(diffusion, images)
torch.manual_seed(0)
diffusion = tiny()
training = Training(diffusion, get_loader(data, 8), loss=loss, epochs=3, lr=5e-3)
for _ in carry_on(training, f"{sys.argv[1]}/{PartialState().num_processes}"):
    pass
torch.save((seen, diffusion.state_dict(), training.history["loss"]),
           f"{sys.argv[1]}/{PartialState().num_processes}-{PartialState().process_index}.pt")
training.accelerator.wait_for_everyone()
training.accelerator.end_training()
""")
    finished(run(None, str(program), str(tmp_path)))
    finished(run(None, *TORCHRUN, str(program), str(tmp_path)))
    alone, left, right = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert [a + b for a, b in zip(left[0], right[0], strict=True)] == alone[0]
    assert all(sorted(sum(alone[0][i : i + 4], [])) == list(range(32)) for i in (0, 4, 8))
    assert same(left[1], right[1]) and left[2] == right[2]
    assert names(tmp_path / "2") == ["step-00000012"]
