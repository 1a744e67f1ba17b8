"""Lesson 04: a training that is stopped, killed or disturbed, and goes on."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_model import tiny
from test_training import loader

import diffusion_utils
import long_training
from diffusion_utils import Diffusion, generate, train


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


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def go_on(folder, epochs=5, **options):
    """A new model, as after a restart, trained with what `folder` holds."""
    diffusion = tiny()
    options = {"lr": 5e-3, "checkpoint_every": 1, "sample_every": 2, **options}
    history = train(diffusion, loader(), epochs, checkpoint_dir=folder, **options)
    return diffusion, history


@pytest.fixture(scope="module")
def uninterrupted():
    return go_on(None)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_what_a_checkpoint_holds(tmp_path, uninterrupted):
    diffusion, history = go_on(tmp_path)
    assert names(tmp_path) == ["step-00000016", "step-00000020"]  # the last two
    last = tmp_path / "step-00000020"
    assert same(Diffusion.from_pretrained(last), diffusion) and not same(Diffusion.from_pretrained(last / "raw"), diffusion)
    state = torch.load(last / "training.pt", weights_only=True)
    assert state["history"]["loss"] == history["loss"] == uninterrupted[1]["loss"]
    assert state["settings"]["lr"] == 5e-3 and len(state["history"]["samples"]) == 3
    assert same(diffusion, uninterrupted[0])


def test_more_epochs_carry_on_bit_for_bit(tmp_path, uninterrupted):
    go_on(tmp_path, epochs=2)
    diffusion, history = go_on(tmp_path, epochs=5)
    assert same(diffusion, uninterrupted[0])
    assert history["loss"] == uninterrupted[1]["loss"] and history["lr"] == uninterrupted[1]["lr"]


def test_a_finished_training_returns_at_once(tmp_path, monkeypatch):
    finished, history = go_on(tmp_path)
    monkeypatch.setattr(diffusion_utils, "training_step", None)  # would fail if called
    again, history_again = go_on(tmp_path)
    assert same(finished, again) and history_again["loss"] == history["loss"]


@pytest.mark.parametrize("step", [0, 3, 6, 7])
def test_the_stop_button_saves_and_returns(tmp_path, monkeypatch, uninterrupted, capsys, step):
    original, calls = diffusion_utils.training_step, []

    def pressed(*arguments):
        if len(calls) == step:
            signal.raise_signal(signal.SIGINT)
        calls.append(1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion_utils, "training_step", pressed)
        stopped, history = go_on(tmp_path)
    assert len(history["loss"]) == step + 1 and f"Stopped after {step + 1} of 20 steps" in capsys.readouterr().out
    assert not stopped.unet.out.weight.isnan().any() and generate(stopped, n=1, steps=1).shape == (1, 3, 8, 8)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    diffusion, history = go_on(tmp_path)
    assert same(diffusion, uninterrupted[0]) and history["loss"] == uninterrupted[1]["loss"]


def test_a_second_press_interrupts():
    with pytest.raises(KeyboardInterrupt), diffusion_utils.stop_button():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_in_a_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(go_on(None, epochs=1)[1]))
    thread.start()
    thread.join()
    assert len(histories[0]["loss"]) == 4


@pytest.mark.parametrize("options, message", [
    ({"lr": 1e-3}, r"lr=0.005, not 0.001"),
    ({"seed": 1, "ema_decay": 0.5}, r"ema_decay=0.999, not 0.5; seed=0, not 1"),
    ({"cosine_decay": True}, r"cosine_decay=False, not 5"),
    ({"epochs": 1}, r"8 steps done, more than 4"),
])  # fmt: skip
def test_another_training_is_refused_by_name(tmp_path, options, message):
    go_on(tmp_path, epochs=2)
    with pytest.raises(ValueError, match=message):
        go_on(tmp_path, **options)
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


def test_other_data_and_other_widths_are_refused(tmp_path):
    go_on(tmp_path, epochs=1)
    with pytest.raises(ValueError, match="pictures=32, not 40; fingerprint="):
        train(tiny(), loader(count=40), 2, checkpoint_dir=tmp_path, lr=5e-3)
    other = loader()
    other.dataset[0] += 0.01
    with pytest.raises(ValueError, match=r"another training: fingerprint="):
        train(tiny(), other, 2, checkpoint_dir=tmp_path, lr=5e-3)
    wider = Diffusion(diffusion_utils.DiffusionConfig(8, (16, 16), 1))
    with pytest.raises(ValueError, match=r"widths=\[8, 16\], not \[16, 16\]"):
        train(wider, loader(), 2, checkpoint_dir=tmp_path, lr=5e-3)


def test_resume_false_starts_over(tmp_path):
    go_on(tmp_path, epochs=5)
    _, history = go_on(tmp_path, epochs=1, seed=7, resume=False)
    assert names(tmp_path) == ["step-00000004"] and len(history["loss"]) == 4


def test_a_torn_checkpoint_is_passed_over(tmp_path, uninterrupted):
    go_on(tmp_path, epochs=3)
    for torn in (tmp_path / "step-00000012" / "model.safetensors", tmp_path / "step-00000012" / "training.pt"):
        torn.write_bytes(torn.read_bytes()[:100])
        with pytest.warns(UserWarning, match="step-00000012 cannot be read, taking the one before"):
            assert go_on(tmp_path, epochs=3)[1]["loss"] == uninterrupted[1]["loss"][:12]
        go_on(tmp_path, epochs=3)
    for torn in tmp_path.glob("*/training.pt"):
        torn.write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no checkpoint in .* can be read; resume=False"):
        go_on(tmp_path)


def test_a_loss_that_is_not_finite(tmp_path, monkeypatch):
    original, calls = diffusion_utils.training_step, []

    def poisoned(*arguments):
        calls.append(1)
        return original(*arguments) * (math.nan if len(calls) == 10 else 1)

    monkeypatch.setattr(diffusion_utils, "training_step", poisoned)
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 9, with a learning rate of 0.005") as error:
        go_on(tmp_path)
    assert "step-00000008" in str(error.value)
    assert names(tmp_path) == ["step-00000004", "step-00000008"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of files there")
@pytest.mark.parametrize("size", [100, 20_000, 45_000])  # stops in the config, the weights, training.pt
def test_a_full_disk(tmp_path, uninterrupted, size):
    program = f"""
import resource
from test_checkpoints import go_on
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    go_on({str(tmp_path)!r})
except OSError as error:
    print(error)
"""
    go_on(tmp_path, epochs=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    output = finished(run(program))
    assert re.search(r"cannot write .*step-00000012.* Last checkpoint: .*step-00000008", output), output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == before
    assert same(go_on(tmp_path)[0], uninterrupted[0])


def test_out_of_memory(monkeypatch):
    def step(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    monkeypatch.setattr(diffusion_utils, "training_step", step)
    with pytest.raises(RuntimeError, match="batch_size=8 needs more memory than the GPU has; try batch_size=4"):
        go_on(None)


def test_one_figure_in_a_notebook(monkeypatch):
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(("again", len(figure.axes)))

    monkeypatch.setattr(diffusion_utils, "get_ipython", lambda: object())
    monkeypatch.setattr(diffusion_utils, "display", lambda figure, display_id: shown.append("new") or Handle())
    go_on(None)
    assert shown == ["new", ("again", 2), ("again", 2)]


# Precision and compiling ----------------------------------------------------------------


@pytest.mark.parametrize("bf16, compiled, expected", [
    (True, True, ("bf16", "inductor")),
    (False, True, ("fp16", "inductor")),  # a T4
    (True, False, ("bf16", "no")),
    (False, False, ("fp16", "no")),
])  # fmt: skip
def test_what_a_gpu_gets(monkeypatch, bf16, compiled, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(long_training, "PartialState", lambda: SimpleNamespace(device="cuda:1"))
    monkeypatch.setattr(long_training, "compiles", lambda device: compiled and device == "cuda:1")  # its own GPU
    monkeypatch.setattr(long_training, "Accelerator", lambda **options: options)
    options = diffusion_utils.fast_accelerator()
    assert (options["mixed_precision"], options["dynamo_backend"], options["cpu"]) == (*expected, False)


def run(program, *arguments, **variables):
    """Run Python in a process of its own: Accelerate has one state a process."""
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen([sys.executable, *arguments, "-c", program] if program else [sys.executable, *arguments],
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip


def finished(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


def test_half_precision_and_compiling_on_a_cpu():
    """What a GPU gets, as far as a CPU can do it: bfloat16, and the network traced by dynamo."""
    program = """
import torch, diffusion_utils
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from test_model import tiny
from test_training import loader
diffusion_utils.fast_accelerator = lambda: Accelerator(cpu=True, mixed_precision="bf16", dynamo_backend="eager",
                                                       dataloader_config=DataLoaderConfiguration(split_batches=True))
seen = []
original = diffusion_utils.training_step
def step(model, *rest):
    if not seen:
        seen.append(type(model).__name__)
        handle = diffusion.unet.out.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        with torch.no_grad(): model(torch.rand(8, 3, 8, 8))
        handle.remove()
    return original(model, *rest)
diffusion_utils.training_step = step
diffusion = tiny()
history = diffusion_utils.train(diffusion, loader(), 30, lr=5e-3, sample_every=30)
assert seen == ["OptimizedModule", torch.bfloat16], seen
assert sum(history["loss"][-8:]) < 0.9 * sum(history["loss"][:8]), history["loss"]
assert all(p.dtype == torch.float32 for p in diffusion.parameters())
diffusion.eval()
assert diffusion.unet(torch.rand(1, 16, 8, 8)).dtype == torch.float32  # as it was before
assert diffusion(torch.rand(1, 3, 8, 8))[1].dtype == torch.float32
print("done")
"""
    assert "done" in finished(run(program))


@pytest.mark.parametrize("compiler", [
    "no such compiler",
    pytest.param("g++", marks=pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("g++"), reason="there is no g++ for Linux here")),
])  # fmt: skip
def test_compiling_is_tried_before_it_is_switched_on(tmp_path, compiler):
    program = "import long_training; print(long_training.compiles('cpu'))"
    output = finished(run(program, CXX=compiler, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)))
    assert output.split()[-1] == str(compiler == "g++")


# Killed ---------------------------------------------------------------------------------

KILLED = """
import sys, torch
from test_checkpoints import go_on
import diffusion_utils
if sys.argv[1] != "none":
    print("ready", flush=True)
diffusion, history = go_on(sys.argv[2], epochs=40)
torch.save((diffusion.state_dict(), history["loss"]), sys.argv[3])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9 there")
def test_killed_at_any_moment(tmp_path):
    """Killed again and again, also while a checkpoint is written; the end is the same to the bit.

    benchmarks/kill.py does it with 20 trainings.
    """
    equal, writing = kill_and_compare(tmp_path, times=4)
    assert equal and len(writing) == 4


def kill_and_compare(folder, times, seed=0):
    """Kill a training `times` times at random moments, then let it end.

    Returns whether it ended like one that nobody disturbed, to the bit, and for each kill
    whether a checkpoint was being written.
    """
    folder, rng, writing = Path(folder), np.random.default_rng(seed), []

    def arguments(name):
        return ["-c", KILLED, "yes", str(folder / name), str(folder / f"{name}.pt")]

    if not (folder / "whole.pt").exists():
        finished(run(None, *arguments("whole")))
    name = f"killed-{seed}"
    while len(writing) < times:
        process = run(None, *arguments(name))
        assert process.stdout.readline() == "ready\n"
        # a checkpoint takes about as long as an epoch here, so every other kill hits a writing
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        writing.append((folder / name / "unfinished").exists())
    finished(run(None, *arguments(name)))
    (one, losses), (two, other) = (torch.load(folder / f"{end}.pt") for end in ("whole", name))
    return losses == other and all(torch.equal(one[key], two[key]) for key in one), writing


# Several processes ----------------------------------------------------------------------

SMALL = ["--size", "16", "--limit", "300", "--widths", "8", "16", "--block-depth", "1", "--batch-size", "32",
         "--lr", "2e-3", "--checkpoint-every", "1"]  # fmt: skip
TRAIN = str(diffusion_utils.ROOT / "train.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


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
    assert state_of(two)["history"]["loss"][: 6 * 9] == together and len(state_of(two)["history"]["loss"]) == 7 * 9

    # and another training starts from their weights, and takes over their sizes
    more = tmp_path / "more"
    finished(run(None, TRAIN, "--output", str(more), "--start-from", str(two), "--limit", "300", "--epochs", "1"))
    state = state_of(more)
    assert state["settings"]["image_size"] == 16 and list(state["settings"]["widths"]) == [8, 16]
    assert np.mean(state["history"]["loss"]) < 0.8 * together[0]


def test_the_processes_agree(tmp_path):
    """Same order as alone, each picture once an epoch, the same weights at the end."""
    program = tmp_path / "program.py"
    program.write_text("""
import sys, torch, numpy as np, diffusion_utils
from accelerate import PartialState
from test_model import tiny
data = np.arange(32, dtype=np.float32)[:, None, None, None] / 32 * np.ones((1, 3, 8, 8), dtype=np.float32)
seen = []
original = diffusion_utils.training_step
def step(model, images, *rest):
    seen.append((images[:, 0, 0, 0] * 32).tolist())
    return original(model, images, *rest)
diffusion_utils.training_step = step
torch.manual_seed(0)
diffusion = tiny()
diffusion_utils.train(diffusion, diffusion_utils.get_loader(data, 8), 3, lr=5e-3)
torch.save((seen, diffusion.state_dict()), f"{sys.argv[1]}/{PartialState().num_processes}-{PartialState().process_index}.pt")
""")
    finished(run(None, str(program), str(tmp_path)))
    finished(run(None, *TORCHRUN, str(program), str(tmp_path)))
    alone, left, right = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert [a + b for a, b in zip(left[0], right[0], strict=True)] == alone[0]
    assert all(sorted(sum(alone[0][i : i + 4], [])) == list(range(32)) for i in (0, 4, 8))
    assert all(torch.equal(left[1][name], right[1][name]) for name in left[1])
