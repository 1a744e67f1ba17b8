"""Lesson 04: the loss, the training step, the average of the weights, and the loop."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import loader, same, tiny
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from diffusion_utils import (
    CPU_RECIPE,
    GPU_RECIPE,
    Training,
    _seed,
    average_weights,
    generate,
    l1_loss,
    train,
    training_step,
)


def weights(model):
    """A copy of them, as they are now."""
    return copy.deepcopy(model.state_dict())


# The parts ------------------------------------------------------------------------------


def test_l1_loss():
    diffusion, images = tiny(), torch.rand(4, 3, 8, 8)
    torch.manual_seed(1)
    noise, predicted_noise = diffusion(images)
    torch.manual_seed(1)
    assert torch.isclose(l1_loss(diffusion, images), (noise - predicted_noise).abs().mean())


def test_training_step():
    diffusion, images = tiny().train(), torch.rand(4, 3, 8, 8)
    optimizer = torch.optim.SGD(diffusion.parameters(), lr=0.1)
    torch.manual_seed(1)
    noise, predicted_noise = diffusion(images)
    expected = (noise - predicted_noise).abs().mean()
    expected.backward()
    moved = diffusion.unet.out.weight - 0.1 * diffusion.unet.out.weight.grad
    optimizer.zero_grad()

    rates = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    training = SimpleNamespace(
        diffusion=diffusion, loss=partial(l1_loss, diffusion), optimizer=optimizer, rates=rates,
        average=average_weights(diffusion, 0.9), accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    torch.manual_seed(1)
    loss = training_step(training, images)
    assert torch.isclose(loss, expected) and not loss.requires_grad
    assert torch.allclose(diffusion.unet.out.weight, moved, atol=1e-6)
    assert all(parameter.grad is None for parameter in diffusion.parameters())
    assert rates.get_last_lr() == [0.05]
    assert training.average.n_averaged == 1 and same(
        training.average.module, diffusion
    )  # the first is copied


def test_average_weights():
    diffusion = tiny()
    average = average_weights(diffusion, ema_decay=0.5)
    bias = diffusion.unet.out.bias
    expected = None
    for n in range(30):
        with torch.no_grad():
            bias.copy_(torch.full((3,), float(n)))
        diffusion(torch.rand(2, 3, 8, 8))  # moves BatchNorm's statistics
        average.update_parameters(diffusion)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = float(n) if n == 0 else decay * expected + (1 - decay) * n
    assert average.module.unet.out.bias.tolist() == pytest.approx([expected] * 3)
    assert torch.equal(average.module.norm.running_mean, diffusion.norm.running_mean)
    assert average.module.norm.num_batches_tracked == 30


# The loop -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted():
    """The two sets of weights at the end of 12 steps, and the history."""
    training = Training(tiny(), loader(), epochs=3, lr=5e-3, ema_decay=0.9)
    for step in training:
        raw = weights(training.diffusion) if step == 12 else None
    return raw, weights(training.diffusion), training.history


def test_each_round_is_a_finished_step():
    training = Training(tiny(), loader(), epochs=2, lr=5e-3)
    assert len(training) == 8 and training.step == 0 and training.history == {"loss": [], "lr": []}
    before, averaged = weights(training.diffusion), weights(training.average.module)
    for count, step in enumerate(training, 1):
        assert step == training.step == count == training.average.n_averaged
        assert len(training.history["loss"]) == len(training.history["lr"]) == count
        assert torch.is_tensor(training.history["loss"][-1])  # nobody has waited for it
        assert all(parameter.grad is None for parameter in training.diffusion.parameters())
        for model, then in [(training.diffusion, before), (training.average.module, averaged)]:
            assert not torch.equal(model.unet.out.weight, then["unet.out.weight"])
            assert model.norm.num_batches_tracked == count
        before, averaged = weights(training.diffusion), weights(training.average.module)
    assert count == 8 and all(type(loss) is float for loss in training.history["loss"])
    assert same(training.diffusion, averaged) and not same(before, averaged)
    assert list(training) == []  # all steps are done


def test_break_and_go_on(uninterrupted):
    """In the middle of an epoch too; what the body of the loop draws changes nothing."""
    training, steps = Training(tiny(), loader(), epochs=3, lr=5e-3, ema_decay=0.9), []
    for stop in (2, 4, 7, 20):
        for step in training:
            steps.append(step)
            torch.rand(step)
            generate(training.average.module, n=1, steps=1)
            raw = weights(training.diffusion)
            if step == stop:
                break
        if stop == 7:
            assert training.step == 7 and same(training.diffusion, raw)  # break leaves the raw weights
            assert not same(training.diffusion, training.average.module)
    assert steps == list(range(1, 13))
    assert same(raw, uninterrupted[0]) and same(training.diffusion, uninterrupted[1])
    assert training.history == uninterrupted[2]


def test_finish_after_a_break():
    training = Training(tiny(), loader(), epochs=3, lr=5e-3)
    for step in training:
        if step == 5:
            break
    averaged = weights(training.average.module)
    training.finish()
    assert same(training.diffusion, averaged) and training.step == 5
    assert [type(loss) for loss in training.history["loss"]] == [float] * 5


def test_the_loop_is_the_articles():
    """With the defaults and no averages: L1 loss, AdamW with these numbers, one step a batch."""
    seen = []

    def loss(diffusion, images):
        seen.append(images.clone())
        return l1_loss(diffusion, images)

    training = Training(tiny(), loader(), loss=loss, epochs=2)
    for step in training:
        raw = weights(training.diffusion) if step == 8 else None

    diffusion, criterion = tiny().train(), torch.nn.L1Loss()
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=2e-4, weight_decay=1e-4, fused=True)
    losses = []
    for step, data in enumerate(seen):
        torch.manual_seed(_seed(0, step, 0))
        noise, pred_noise = diffusion(data)
        loss = criterion(noise, pred_noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert same(raw, diffusion) and losses == training.history["loss"]
    for epoch in (seen[:4], seen[4:]):  # each picture once in an epoch
        shown = torch.cat(epoch).flatten(1)[:, 0].sort().values
        assert torch.equal(shown, torch.as_tensor(loader().dataset).flatten(1)[:, 0].sort().values)


class Noting(Accelerator):
    """An accelerator that keeps what it is given to prepare."""

    def prepare(self, *things):
        self.noted = things
        return super().prepare(*things)


def test_train_with_the_defaults_of_the_article():
    accelerator = Noting(cpu=True)
    history = train(tiny(), loader(), epochs=1, accelerator=accelerator)
    game, optimizer, batches = accelerator.noted
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.AdamW and group["lr"] == 2e-4 and group["weight_decay"] == 1e-4
    assert group["betas"] == (0.9, 0.999) and len(group["params"]) == len(list(game.parameters()))
    assert set(history["lr"]) == {2e-4} and len(history["loss"]) == len(batches) == 4
    assert GPU_RECIPE == dict(epochs=2000, lr=2e-4, weight_decay=1e-4, ema_decay=0.999, warmup_steps=0,
                              cosine_decay=False, seed=0)  # fmt: skip
    assert Training(tiny(), loader()).recipe == GPU_RECIPE and CPU_RECIPE.keys() == GPU_RECIPE.keys()


def test_the_accelerator_is_a_socket():
    accelerator = Accelerator(cpu=True)
    training = Training(tiny(), loader(), accelerator=accelerator, epochs=1)
    assert training.accelerator is accelerator and Training(tiny(), loader()).accelerator is not accelerator


# The pictures' order --------------------------------------------------------------------


def orders(batches, **recipe):
    """The pictures of each epoch in the order in which they are shown, each as its first number."""
    shown = []

    def loss(diffusion, images):
        shown.extend(images[:, 0, 0, 0].tolist())
        return diffusion.unet.out.bias.sum()

    for _ in Training(tiny(), batches, loss=loss, epochs=2, **recipe):
        pass
    half = len(shown) // 2
    return shown[:half], shown[half:]


def test_the_order_follows_from_the_loaders_seed():
    first, second = orders(loader(seed=0))
    assert first != second and sorted(first) == sorted(second)
    assert orders(loader(seed=0)) == orders(loader(seed=0), seed=5) == (first, second)
    assert orders(loader(seed=1)) != (first, second)
    assert (
        orders(loader(seed=None), seed=3)
        == orders(loader(seed=None), seed=3)
        != orders(loader(seed=None), seed=4)
    )


@pytest.mark.parametrize("seed", [7, None])
def test_the_loader_is_left_as_it_was(seed):
    batches = loader(seed=seed)
    parts = {name: getattr(batches, name) for name in ("generator", "sampler", "batch_sampler", "dataset")}
    inner = batches.sampler.generator
    state = batches.generator.get_state() if batches.generator else None
    pictures = batches.dataset.copy()
    train(tiny(), batches, epochs=2)
    assert all(getattr(batches, name) is part for name, part in parts.items())
    assert batches.sampler.generator is inner and np.array_equal(batches.dataset, pictures)
    if seed is None:
        assert batches.generator is None
    else:
        assert torch.equal(batches.generator.get_state(), state)
        assert torch.equal(torch.cat(list(batches)), torch.cat(list(loader(seed=seed))))


def test_the_noise_follows_from_the_seed():
    one, two, other = (train(tiny(), loader(), epochs=1, seed=seed)["loss"] for seed in (0, 0, 1))
    assert one == two != other


# Other models and losses ----------------------------------------------------------------


def test_an_autoencoder():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 192), nn.Unflatten(1, (3, 8, 8)))
    training = Training(model, loader(), loss=lambda model, images: nn.functional.mse_loss(model(images), images),
                        epochs=30, lr=5e-3, ema_decay=0.9)  # fmt: skip
    for _ in training:
        pass
    assert np.mean(training.history["loss"][-8:]) < 0.3 * np.mean(training.history["loss"][:8])
    assert same(model, training.average.module)


def test_batches_of_pictures_and_labels():
    images = torch.as_tensor(loader().dataset)
    labels = (images[:, 0, 0, 0] > 0.5).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    batches, shapes = DataLoader(TensorDataset(images, labels), 8, shuffle=True), set()

    def loss(model, batch):
        images, labels = batch
        shapes.add((tuple(images.shape), tuple(labels.shape), labels.dtype))
        return nn.functional.cross_entropy(model(images), labels)

    history = train(model, batches, epochs=80, loss=loss, lr=1e-2, ema_decay=0.5)
    assert shapes == {((8, 3, 8, 8), (8,), torch.int64)} and history["loss"][-1] < 0.5 * history["loss"][0]
    assert (model(images).argmax(1) == labels).double().mean() > 0.9


def test_a_loader_in_order_and_one_that_keeps_the_rest():
    images = torch.as_tensor(loader().dataset)
    seen = []

    def loss(diffusion, images):
        seen.append(images)
        return l1_loss(diffusion, images)

    training = Training(tiny(), DataLoader(images, 12), loss=loss, epochs=2)
    assert list(training) == [1, 2, 3, 4, 5, 6] and len(training) == 6
    assert torch.equal(torch.cat(seen), torch.cat([images, images])) and len(seen[2]) == 8


# The recipe -----------------------------------------------------------------------------


def test_numbers_of_numpy_are_kept_as_plain_ones():
    recipe = dict(epochs=np.int64(2), lr=np.float32(0.25), ema_decay=np.float64(0.5), warmup_steps=np.int32(3),
                  cosine_decay=np.bool_(True), seed=np.uint8(1), weight_decay=0)  # fmt: skip
    kept = Training(tiny(), loader(), **recipe).recipe
    assert kept == dict(
        epochs=2, lr=0.25, ema_decay=0.5, warmup_steps=3, cosine_decay=True, seed=1, weight_decay=0.0
    )
    assert {name: type(value) for name, value in kept.items()} == {n: type(v) for n, v in GPU_RECIPE.items()}


# train ----------------------------------------------------------------------------------


def test_train():
    diffusion = tiny()
    history = train(
        diffusion, loader(), epochs=60, lr=5e-3, warmup_steps=10, cosine_decay=True, ema_decay=0.9
    )
    assert len(history["loss"]) == len(history["lr"]) == 60 * 4
    assert history["lr"][0] == 0 and max(history["lr"]) == pytest.approx(5e-3) == history["lr"][10]
    assert history["lr"][-1] < 1e-5
    assert np.mean(history["loss"][-20:]) < 0.7 * np.mean(history["loss"][:4])
    assert diffusion.training and diffusion.norm.num_batches_tracked == 240  # never left in eval mode
    # one colour a picture is what it was shown, and what it learned
    drawn = generate(diffusion, n=50, seed=0)
    assert drawn.std(dim=(2, 3)).mean() < 0.6 * drawn.std()


def test_train_is_the_loop(uninterrupted):
    """It ends with the averaged weights, and draws what the average drew at the last step."""
    diffusion = tiny()
    history = train(diffusion, loader(), epochs=3, lr=5e-3, ema_decay=0.9)
    assert same(diffusion, uninterrupted[1]) and history == uninterrupted[2]
    training = Training(tiny(), loader(), epochs=3, lr=5e-3, ema_decay=0.9)
    for step in training:
        if step == len(training):
            raw, averaged = (
                generate(model, seed=0) for model in (training.diffusion, training.average.module)
            )
    assert torch.equal(generate(diffusion, seed=0), averaged) and not torch.equal(raw, averaged)
    assert raw.shape == averaged.shape == (5, 3, 8, 8)


def test_train_is_repeatable():
    losses = []
    for seed in (5, 6):
        diffusion = tiny()
        torch.manual_seed(seed)  # what was drawn before does not matter
        losses.append(train(diffusion, loader(), epochs=2)["loss"])
    assert losses[0] == losses[1]
    assert all(math.isfinite(loss) for loss in losses[0])


def test_train_epochs():
    with pytest.raises(ValueError, match="epochs must be 1 or more"):
        train(tiny(), loader(), epochs=0)
