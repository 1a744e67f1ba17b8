"""Where and how precisely it computes, by itself and when chosen; what is not here is simulated."""

import shutil
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from helpers import finished, go_on, names, new_training, run, same
from torch import nn

import diffusion_utils
from diffusion_course import long_runs
from diffusion_course.long_runs import carry_on, same_gradients
from diffusion_utils import TOY_MODEL, Diffusion, generate, pick_accelerator


@pytest.fixture
def native(monkeypatch):
    """A CPU that computes with bfloat16. (Where it does not, PyTorch does so slowly.)"""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


# What is chosen -------------------------------------------------------------------------


@pytest.mark.parametrize("machine, expected", [
    (dict(cuda=True, bf16=True), ("bf16", False)),
    (dict(cuda=True), ("fp16", False)),  # a T4
    (dict(mps=True), ("no", False)),
    (dict(), ("no", True)),
    (dict(cpu_bf16=True), ("bf16", True)),
    (dict(cuda=True, bf16=True, chosen="no"), ("no", False)),  # the variable goes first
    (dict(cpu_bf16=True, chosen="no"), ("no", True)),
])  # fmt: skip
def test_precision_and_place(monkeypatch, machine, expected):
    """Of which nothing is computed: these are the options that Accelerate gets."""
    monkeypatch.setattr(diffusion_utils, "Accelerator", lambda **options: options)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in machine)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: "bf16" in machine)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "cpu_bf16" in machine)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    if "chosen" in machine:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", machine["chosen"])
    options = pick_accelerator(dynamo_backend="inductor")
    assert (options["mixed_precision"], options["cpu"], options["dynamo_backend"]) == (*expected, "inductor")
    assert options["dataloader_config"].split_batches


class Wrong(nn.Conv2d):
    """On the second device its gradient is another one, though its output is the same."""

    def __init__(self, *channels):
        super().__init__(*channels, 3)
        self.devices = 0

    def to(self, device):
        self.devices += 1
        return self

    def forward(self, images):
        output = super().forward(images)
        return output if self.devices == 1 else output.detach() + 1e-3 * (output - output.detach())


def test_the_same_gradients(monkeypatch, tmp_path):
    before = torch.get_rng_state()
    assert same_gradients("cpu") and torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(long_runs, "Residual", Wrong)
    assert not same_gradients("cpu")
    with pytest.warns(UserWarning, match="gradients are wrong; set ACCELERATE_USE_CPU=1, or try a newer"):
        go_on(tmp_path, epochs=1)


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU")
def test_on_apple():
    """A short training run and a drawing on Apple's GPU, in a process of its own; the loss is that of the CPU."""
    program = """
from helpers import loader, tiny, train
from diffusion_course.long_runs import same_gradients
from diffusion_utils import generate
diffusion = tiny()
losses = train(diffusion, loader(), epochs=20, lr=5e-3)["loss"]
print(same_gradients(diffusion.device), sum(losses[-20:]), *generate(diffusion, n=2, seed=0).shape)
"""
    there, here = (finished(run(program, ACCELERATE_USE_CPU=cpu)).split() for cpu in "01")
    assert there[0] == here[0] == "True" and float(there[1]) == pytest.approx(float(here[1]), rel=0.2)


@pytest.mark.parametrize("compiler", [
    "no such compiler",
    pytest.param("g++", marks=pytest.mark.skipif(
        sys.platform != "linux" or not shutil.which("g++"), reason="there is no g++ for Linux here")),
])  # fmt: skip
def test_compiling_is_tried_before_it_is_switched_on(tmp_path, compiler):
    program = "from diffusion_course.long_runs import compiles; print(compiles('cpu'))"
    output = finished(run(program, CXX=compiler, TORCHINDUCTOR_CACHE_DIR=str(tmp_path)))
    assert output.split()[-1] == str(compiler == "g++")


# What comes of it -----------------------------------------------------------------------


def test_training_in_16_bits(native, tmp_path, monkeypatch):
    training, kinds = new_training(epochs=30), set()
    diffusion = training.diffusion
    weights = [weight for weight in diffusion.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    diffusion.unet.out.register_forward_hook(lambda module, inputs, output: kinds.add(output.dtype))
    list(training)
    assert kinds == {torch.bfloat16} and all(weight.dtype == torch.float32 for weight in weights)
    assert all(value.is_contiguous() for value in diffusion.state_dict().values())
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    exact = new_training(epochs=30)
    assert all(weight.is_contiguous() for weight in exact.diffusion.parameters())
    list(exact)
    one, two = (torch.tensor(run.history["loss"][-40:]).mean() for run in (training, exact))
    assert one != two and abs(one - two) < 0.05 * two
    diffusion.save_pretrained(tmp_path)
    assert same(Diffusion.from_pretrained(tmp_path), diffusion)


@pytest.mark.parametrize("again", ["a new one", "the same object"])
def test_broken_off_in_16_bits(native, tmp_path, capsys, monkeypatch, again):
    """The same bits, with a break in the middle of an epoch; and in another precision it goes on, with a note."""
    whole, _ = go_on(tmp_path / "whole")
    training = new_training()
    for step in carry_on(training, tmp_path / "broken"):
        if step == 10:
            break
    training = new_training() if again == "a new one" else training
    list(carry_on(training, tmp_path / "broken"))
    assert same(training.diffusion, whole) and "precision" not in capsys.readouterr().out
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    _, history = go_on(tmp_path / "whole", epochs=6)
    assert "Goes on in another precision than bf16, as up to step 20." in capsys.readouterr().out
    assert len(history["loss"]) == 24 and "step-00000024" in names(tmp_path / "whole")


def test_half_precision_and_compiling_on_a_cpu(native, tmp_path, monkeypatch):
    """What a GPU gets, as far as a CPU can do it: bfloat16, and the network traced by dynamo."""
    training = new_training(accelerator=pick_accelerator(dynamo_backend="eager"), epochs=30)
    list(carry_on(training, tmp_path, every=60))
    losses = training.history["loss"]
    assert (
        type(training.loss).__name__ == "OptimizedModule" and training.accelerator.mixed_precision == "bf16"
    )
    assert len(losses) == 120 and sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert training.diffusion.eval()(torch.rand(1, 3, 8, 8))[1].dtype == torch.float32  # as it was before
    # without compiling and in another precision, as on another machine, it goes on from there
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    _, history = go_on(tmp_path, epochs=31)
    assert history["loss"][:120] == losses and sum(history["loss"][-4:]) < 0.9 * sum(losses[:4])


def test_drawing(native):
    """In 32 bits by itself, in 16 within `torch.autocast`; nothing of the model is changed."""
    diffusion, kinds = Diffusion.from_pretrained(TOY_MODEL), []
    before = {name: value.clone() for name, value in diffusion.state_dict().items()}
    diffusion.unet.out.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    exact = generate(diffusion, n=8, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        fast = generate(diffusion, n=8, seed=0)
    assert kinds == 20 * [torch.float32] + 20 * [torch.bfloat16]
    assert fast.dtype == torch.float32 and 0 < (fast - exact).abs().mean() < 0.01 and same(before, diffusion)
