"""What several tests share: small images, models and training runs, and programs that run on their own."""

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion_course.conditioning import ConditionalConfig, ConditionalDiffusion, Guided
from diffusion_course.long_runs import carry_on
from diffusion_course.toy import LABELS
from diffusion_utils import ROOT, Diffusion, DiffusionConfig, Training, get_loader

TRAIN = str(ROOT / "train.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
BROWSER_OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files, and prints nothing."""

    def log_message(self, *_):
        pass


@contextmanager
def serving(folder):
    """A plain static server of the files in `folder`; within it, its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@contextmanager
def chromium():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


# Images ---------------------------------------------------------------------------------


def gradient(width=64, height=64):
    """An image in which every pixel is different: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x + 128], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def good(folder, n=3, start=0):
    """Write `n` good images into `folder`."""
    for i in range(start, start + n):
        gradient().save(folder / f"good_{i}.png")


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def contents(folder):
    """All files below `folder`, links included, with what is in them."""
    return {path: path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


# Models and training runs ---------------------------------------------------------------


def tiny(**options):
    torch.manual_seed(0)
    return Diffusion(DiffusionConfig(**{"image_size": 8, "widths": (8, 16), "block_depth": 1, **options}))


def conditional(kind=ConditionalDiffusion, predicts="v", vocabulary=LABELS):
    """A tiny model with a condition, before any training."""
    torch.manual_seed(0)
    shape = {"image_size": 8, "widths": (8, 16), "block_depth": 1}
    return kind(ConditionalConfig(list(map(str, vocabulary)), **shape, predicts=predicts))


def awake(model):
    """A model whose layers of zeros are random, as after training: it follows its condition."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


class InTurn(Guided):
    """Guidance in two calls, one after the other."""

    def in_one_batch(self, noisy, time):
        return self.conditioned.predict_noise(noisy, time), self.unconditional.predict_noise(noisy, time)


def loader(count=32, batch_size=8, seed=0):
    """Images of one colour each."""
    colors = np.random.default_rng(0).random((count, 3, 1, 1), dtype=np.float32)
    return get_loader(colors * np.ones((1, 1, 8, 8), dtype=np.float32), batch_size, seed=seed)


def same(one, two):
    """Whether two models, or two dictionaries of tensors, are equal to the bit."""
    one, two = (model if isinstance(model, dict) else model.state_dict() for model in (one, two))
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def new_training(**options):
    """A new model, as after a restart, and its training run of 20 steps. Four steps are an epoch."""
    return Training(tiny(), loader(), **{"epochs": 5, "lr": 5e-3, **options})


def train(model, batches, **options):
    """Train without a folder; returns the history."""
    training = Training(model, batches, **options)
    for _ in training:
        pass
    return training.history


def go_on(folder, every=4, **options):
    """Train a new model with what `folder` holds; returns it, and the history."""
    training = new_training(**options)
    for _ in carry_on(training, folder, every=every):
        pass
    return training.diffusion, training.history


# Programs in a process of their own -----------------------------------------------------


def run(program, *arguments, **variables):
    """Start Python in a process of its own: Accelerate has one state a process."""
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments, *(["-c", program] if program else [])]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finished(process):
    """What a program that has succeeded printed."""
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


KILLED = """
import sys, torch
from helpers import go_on
print("ready", flush=True)
diffusion, history = go_on(sys.argv[1], epochs=40)
torch.save((diffusion.state_dict(), history["loss"]), f"{sys.argv[1]}.pt")
"""


RIVAL = """
import sys, time
from pathlib import Path
from helpers import go_on
print("ready", flush=True)
while not Path(sys.argv[1], ".lock").exists():
    time.sleep(0.001)
time.sleep(0.05)
go_on(sys.argv[1], epochs=40)
"""


def kill_and_compare(folder, times, seed=0):
    """Stop a training `times` times at random moments, by turns with SIGKILL and SIGTERM, then let it end.

    While it runs for the first time, another one is started in its folder, and has to be refused.
    Returns whether it ended like one that nobody disturbed, to the bit, and for each stop whether a
    checkpoint was left half written.
    """
    folder, rng, writing = Path(folder), np.random.default_rng(seed), []

    def start(name, program=KILLED):
        return run(None, "-c", program, str(folder / name))

    def drafts():
        return set((folder / name).glob("unfinished-*"))

    if not (folder / "whole.pt").exists():
        finished(start("whole"))
    name = f"killed-{seed}"
    while len(writing) < times:
        rival = None if writing else start(name, RIVAL)
        assert not rival or rival.stdout.readline() == "ready\n"
        before, process = drafts(), start(name)
        assert process.stdout.readline() == "ready\n"
        if rival:
            refused = rival.communicate(timeout=300)[0]
            assert rival.returncode == 1 and "another training run is at work in it" in refused, refused
        # a checkpoint takes about as long as an epoch here, so every other kill hits a writing
        time.sleep(rng.uniform(0, 0.5))
        number = (signal.SIGKILL, signal.SIGTERM)[len(writing) % 2]
        process.send_signal(number)
        output = process.communicate()[0]
        writing.append(bool(drafts() - before))
        if number == signal.SIGTERM:  # it saves and stops, if it has begun; and has then no draft left
            assert process.returncode in (0, -number) and not writing[-1], output
    finished(start(name))
    (one, losses), (two, other) = (torch.load(folder / f"{end}.pt") for end in ("whole", name))
    return losses == other and same(one, two), writing
