"""Where and how precisely it computes, by itself and when asked; what is not here is simulated."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from helpers import finished, go_on, loader, names, run, same, tiny
from torch import nn

import diffusion_utils
from diffusion_utils import TOY_MODEL, Diffusion, Training, _accelerator, _agrees, _device, generate, train
from diffusion_course.long_runs import carry_on


@pytest.fixture
def native(monkeypatch):
    """A CPU that computes with bfloat16. (Where it does not, PyTorch does so slowly.)"""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")


@pytest.fixture
def asked(monkeypatch):
    """What Accelerate is asked for."""
    monkeypatch.setattr(diffusion_utils, "Accelerator", lambda **options: options)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")


def computer(monkeypatch, gpu):
    """A machine with `gpu`, "cuda" or "mps", of which nothing can be computed."""
    state = lambda cpu: SimpleNamespace(device=torch.device("cpu" if cpu else gpu))  # noqa: E731
    monkeypatch.setattr(diffusion_utils, "PartialState", state)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: gpu == "mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu == "cuda")


# What is chosen -------------------------------------------------------------------------


@pytest.mark.parametrize("bf16, precision", [(True, "bf16"), (False, "fp16")])  # the second is a T4
def test_cuda(monkeypatch, asked, bf16, precision):
    computer(monkeypatch, "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    options = _accelerator()
    assert (options["mixed_precision"], options["cpu"]) == (precision, False)
    assert options["dataloader_config"].split_batches
    options = _accelerator(dynamo_backend="inductor", mixed_precision="no", cpu=True)  # ours go first
    assert (options["mixed_precision"], options["dynamo_backend"], options["cpu"]) == ("no", "inductor", True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert _accelerator()["mixed_precision"] == "no"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert _accelerator()["cpu"] and _device().type == "cpu"


@pytest.mark.parametrize("right", [True, False])
def test_apple(monkeypatch, asked, right):
    """Its GPU is used where it finds the CPU's gradients, in 32 bits."""
    computer(monkeypatch, "mps")
    monkeypatch.setattr(diffusion_utils, "_agrees", lambda device: right)
    assert _device().type == ("mps" if right else "cpu")
    assert _accelerator()["cpu"] is not right and _accelerator()["mixed_precision"] == "no"


def test_a_cpu(asked, monkeypatch):
    assert _accelerator()["mixed_precision"] == "no"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert _accelerator()["mixed_precision"] == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert _accelerator()["mixed_precision"] == "no"


def test_a_pytorch_that_does_not_say(monkeypatch):
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not diffusion_utils._computes_bf16(torch.device("cpu"))


def test_the_same_gradients(monkeypatch):
    class Wrong(nn.Conv2d):
        """On the second device its gradient is another one, though its answer is the same."""

        def to(self, device):
            self.devices = getattr(self, "devices", 0) + 1
            return self

        def forward(self, images):
            answer = super().forward(images)
            return answer if self.devices == 1 else answer.detach() + 1e-3 * (answer - answer.detach())

    _agrees.cache_clear()
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _agrees("cpu")
    assert torch.equal(torch.get_rng_state(), before)
    _agrees.cache_clear()
    monkeypatch.setattr(diffusion_utils, "Residual", lambda *channels: Wrong(*channels, 3))
    with pytest.warns(UserWarning, match="cpu gives wrong gradients, the CPU is used"):
        assert not _agrees("cpu")
    assert not _agrees("cpu")  # and it is said once
    _agrees.cache_clear()


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU")
def test_on_apple():
    """A short training and a drawing on Apple's GPU, in a process of its own; the loss is that of the CPU."""
    program = """
from helpers import loader, tiny
from diffusion_utils import _agrees, generate, train
print(_agrees("mps"))
diffusion = tiny()
losses = train(diffusion, loader(), epochs=20, lr=5e-3)["loss"]
print(diffusion.device.type, sum(losses[-20:]), *generate(diffusion, n=2, seed=0).shape)
"""
    agrees, there = finished(run(program, ACCELERATE_USE_CPU="0")).split("\n")[-3:-1]
    _, here = finished(run(program)).split("\n")[-3:-1]
    assert there.split()[0] == ("mps" if agrees == "True" else "cpu") and here.split()[0] == "cpu"
    assert float(there.split()[1]) == pytest.approx(float(here.split()[1]), rel=0.2)


# What comes of it -----------------------------------------------------------------------


def channels_last(module):
    return [w.is_contiguous(memory_format=torch.channels_last) for w in module.parameters() if w.ndim == 4]


def test_training_in_16_bits(native, tmp_path):
    diffusion, seen = tiny(), []
    training = Training(diffusion, loader(), epochs=30, lr=5e-3)
    assert training.accelerator.mixed_precision == "bf16" and all(channels_last(diffusion))
    diffusion.unet.out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for _ in training:
        pass
    assert set(seen) == {torch.bfloat16} and all(w.dtype == torch.float32 for w in diffusion.parameters())
    assert all(weights.is_contiguous() for weights in diffusion.state_dict().values())
    exact = train(tiny(), loader(), accelerator=_accelerator(mixed_precision="no"), epochs=30, lr=5e-3)
    one, two = (torch.tensor(losses[-40:]).mean() for losses in (training.history["loss"], exact["loss"]))
    assert one != two and abs(one - two) < 0.05 * two
    diffusion.save_pretrained(tmp_path)
    assert same(Diffusion.from_pretrained(tmp_path), diffusion)


def test_asked_for_32_bits_it_stays_as_it_is(native):
    diffusion, seen = tiny(), []
    diffusion.unet.out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    training = Training(diffusion, loader(), accelerator=_accelerator(mixed_precision="no"), epochs=1)
    next(iter(training))
    assert seen == [torch.float32] and all(weights.is_contiguous() for weights in diffusion.parameters())


def test_killed_in_16_bits(native, tmp_path):
    """The same bits, with a break in the middle of an epoch."""
    one, _ = go_on(tmp_path / "one")
    for step in carry_on(Training(tiny(), loader(), epochs=5, lr=5e-3), tmp_path / "two"):
        if step == 10:
            break
    two, _ = go_on(tmp_path / "two")
    assert same(one, two)


def test_on_in_another_precision(native, tmp_path, capsys, monkeypatch):
    go_on(tmp_path, epochs=5)
    assert "mixed_precision" not in capsys.readouterr().out
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    _, history = go_on(tmp_path, epochs=10)
    assert "Goes on with mixed_precision=no; up to step 20 it was bf16." in capsys.readouterr().out
    assert len(history["loss"]) == 40 and "step-00000040" in names(tmp_path)


def test_drawing(native):
    """Fast by itself, exact when asked; nothing of the model is changed."""
    diffusion = Diffusion.from_pretrained(TOY_MODEL)
    before, seen = {name: value.clone() for name, value in diffusion.state_dict().items()}, []
    diffusion.unet.out.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    fast, exact = generate(diffusion, n=8, seed=0), generate(diffusion, n=8, seed=0, exact=True)
    assert seen == 20 * [torch.bfloat16] + 20 * [torch.float32]
    assert fast.dtype == torch.float32 and fast.is_contiguous() and not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.01
    assert same(before, diffusion) and not any(channels_last(diffusion.unet.down[0].s))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(generate(diffusion, n=8, seed=0, exact=True), exact)


def test_exact_is_what_other_cpus_do(monkeypatch):
    diffusion = Diffusion.from_pretrained(TOY_MODEL)
    plain = generate(diffusion, n=3, steps=4, seed=0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert torch.equal(generate(diffusion, n=3, steps=4, seed=0, exact=True), plain)
