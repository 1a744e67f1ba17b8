"""Muon of lesson 11: its steps against PyTorch's own, and resumed to the bit."""

import pytest
import torch
from helpers import same, tiny
from torch import nn

from diffusion_course.checkpoints import load_checkpoint, save_checkpoint
from diffusion_course.optimizers import Muon, even_l1_loss, even_times, muon
from diffusion_utils import Recipe, Training, get_data, get_loader


@pytest.fixture(scope="module")
def data():
    return get_data(limit=64, size=16)


def test_even_times():
    """One in each part of [0, 1), at the same place in all, in random order; each time is as likely as any other."""
    torch.manual_seed(0)
    times = even_times(32).flatten()
    gaps = times.sort().values.diff()
    torch.testing.assert_close(gaps, torch.full((31,), 1 / 32))
    assert times.tolist() != sorted(times.tolist()) and 0 <= times.min() and times.max() < 1
    first = torch.stack([even_times(4).flatten()[0] for _ in range(2000)])
    assert abs(first.mean() - 0.5) < 0.03 and abs(first.var() - 1 / 12) < 0.01


def two_weights(*shape):
    first = nn.Parameter(torch.randn(shape))
    return first, nn.Parameter(first.detach().clone())


def steps(one, other, optimizers):
    """Five steps of two optimizers with the same random gradients."""
    for _ in range(5):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
@pytest.mark.parametrize("bf16", [True, False])
def test_hidden_weights_go_as_with_pytorchs_muon(monkeypatch, shape, bf16):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    torch.manual_seed(2)
    ours, theirs = two_weights(*shape)
    start = ours.detach().clone()
    reference = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    steps(ours, theirs, [Muon([ours], [], lr=0.01), reference])
    assert (ours - theirs).norm() < 0.05 * (theirs - start).norm()  # PyTorch's rounds to bfloat16 on its way


def test_a_convolution_counts_as_a_matrix():
    torch.manual_seed(3)
    kernel, matrix = nn.Parameter(torch.randn(8, 6, 3, 3)), nn.Parameter(torch.zeros(8, 54))
    with torch.no_grad():
        matrix.copy_(kernel.flatten(1))
    gradient = torch.randn(8, 6, 3, 3)
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    Muon([kernel, matrix], [], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_the_others_go_as_with_adamw():
    torch.manual_seed(4)
    ours, theirs = two_weights(8)
    reference = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.01)
    steps(ours, theirs, [Muon([], [ours], lr=0.01), reference])
    assert torch.equal(ours, theirs)


def test_every_weight_has_one_place():
    model = tiny(image_size=16)
    hidden, others = (group["params"] for group in muon(model, Recipe(lr=0.1)).param_groups)
    names = {id(weight): name for name, weight in model.named_parameters()}
    assert sorted(map(id, [*hidden, *others])) == sorted(names)
    convolutions = {name for name, weight in model.unet.named_parameters(prefix="unet") if weight.ndim == 4}
    assert {names[id(weight)] for weight in hidden} == convolutions - {"unet.out.weight"}


def test_resumed_to_the_bit(data, tmp_path):
    def training():
        return Training(
            tiny(image_size=16),
            get_loader(data, 16, seed=0),
            loss=even_l1_loss,
            optimizer=muon,
            epochs=2,
            lr=3e-3,
        )

    whole, broken, resumed = training(), training(), training()
    list(whole)
    for step in broken:
        if step == 3:
            break
    save_checkpoint(broken, tmp_path)
    load_checkpoint(resumed, tmp_path)
    assert list(resumed) == [4, 5, 6, 7, 8]
    assert same(whole.diffusion, resumed.diffusion)
    assert whole.history["loss"] == resumed.history["loss"]
