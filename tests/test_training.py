"""Lesson 04: the loss, the average of the weights, the recipe, and the loop."""

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import loader, new_training, same, tiny, train
from torch import nn
from torch.utils.data import DataLoader

from diffusion_utils import Recipe, Training, average_weights, generate, l1_loss, seed_of


def weights(model):
    """A copy of them, as they are now."""
    return copy.deepcopy(model.state_dict())


def noting(batches, before=l1_loss):
    """A loss that keeps the batches that it was given in `batches`."""

    def loss(diffusion, images):
        batches.append(images)
        return before(diffusion, images)

    return loss


# The parts ------------------------------------------------------------------------------


def test_average_weights():
    diffusion = tiny()
    average, bias, expected = average_weights(diffusion, ema_decay=0.5), diffusion.unet.out.bias, 0.0
    for n in range(30):
        nn.init.constant_(bias, float(n))
        diffusion(torch.rand(2, 3, 8, 8))  # moves BatchNorm's statistics
        average.update_parameters(diffusion)
        decay = min(0.5, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * n
    assert average.module.unet.out.bias.tolist() == pytest.approx([expected] * 3)
    assert torch.equal(average.module.norm.running_mean, diffusion.norm.running_mean)
    assert average.module.norm.num_batches_tracked == 30


def test_the_recipe_of_the_article():
    assert Recipe() == Recipe(2000, 2e-4, 1e-4, 0.999, 0, False, 0)
    training = Training(tiny(), loader())
    (group,) = training.optimizer.param_groups
    assert type(training.optimizer.optimizer) is torch.optim.AdamW and group["betas"] == (0.9, 0.999)
    assert (group["lr"], group["weight_decay"]) == (2e-4, 1e-4)
    assert len(group["params"]) == len(list(training.diffusion.parameters()))
    with pytest.raises(TypeError, match="sample_every"):
        Training(tiny(), loader(), sample_every=25)


# The loop -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted():
    """The two sets of weights at the end of 12 steps, and the history."""
    training = new_training(epochs=3, ema_decay=0.9)
    for step in training:
        raw = weights(training.diffusion) if step == 12 else None
    return raw, weights(training.diffusion), training.history


def test_each_round_is_a_finished_step():
    training = new_training(epochs=2)
    assert len(training) == 8 and training.step == 0 and training.history == {"loss": [], "lr": []}
    models = training.diffusion, training.average.module
    before = [weights(model) for model in models]
    for count, step in enumerate(training, 1):
        assert step == training.step == count == training.average.n_averaged
        assert len(training.history["loss"]) == len(training.history["lr"]) == count
        assert torch.is_tensor(training.history["loss"][-1])  # nobody has waited for it
        for model, old in zip(models, before):
            assert not torch.equal(model.unet.out.weight, old["unet.out.weight"])
            assert model.norm.num_batches_tracked == count
        before = [weights(model) for model in models]
    assert count == 8 and all(type(loss) is float for loss in training.history["loss"])
    assert same(training.diffusion, before[1]) and not same(*before)
    assert list(training) == []  # all steps are done


def test_break_and_go_on(uninterrupted):
    """In the middle of an epoch too; what the body of the loop draws changes nothing, nor its eval()."""
    training, steps = new_training(epochs=3, ema_decay=0.9), []
    for stop in (2, 4, 7, 20):
        for step in training:
            steps.append(step)
            torch.rand(step)
            generate(training.average.module, n=1, steps=1)
            training.diffusion.eval()
            raw = weights(training.diffusion)
            if step == stop:
                break
        if stop == 7:  # break leaves the raw weights
            assert same(training.diffusion, raw) and not same(training.diffusion, training.average.module)
    assert steps == list(range(1, 13))
    assert same(raw, uninterrupted[0]) and same(training.diffusion, uninterrupted[1])
    assert training.history == uninterrupted[2]


def test_finish_happens_once():
    """A second loop over a finished run takes nothing back that came after it."""
    training = new_training(epochs=1)
    list(training)
    nn.init.ones_(training.diffusion.unet.out.bias)
    list(training)
    assert training.diffusion.unet.out.bias.tolist() == [1, 1, 1]


def test_the_loop_is_the_articles():
    """With the defaults and no averages: L1 loss, AdamW with these numbers, one step a batch."""
    batches = []
    training = Training(tiny(), loader(), loss=noting(batches), epochs=2)
    for step in training:
        raw = weights(training.diffusion) if step == 8 else None

    diffusion, losses = tiny().train(), []
    optimizer = torch.optim.AdamW(diffusion.parameters(), lr=2e-4, weight_decay=1e-4, fused=True)
    for step, data in enumerate(batches):
        torch.manual_seed(seed_of(0, step, 0))
        noise, predicted_noise = diffusion(data)
        loss = nn.functional.l1_loss(predicted_noise, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert same(raw, diffusion) and losses == training.history["loss"]
    for epoch in (batches[:4], batches[4:]):  # each image once in an epoch
        images = torch.cat(epoch).flatten(1)[:, 0].sort().values
        assert torch.equal(images, torch.as_tensor(loader().dataset).flatten(1)[:, 0].sort().values)


@pytest.mark.parametrize("lr, poison", [(1e10, 1.0), (5e-3, float("nan")), (5e-3, float("inf"))])
def test_a_loss_or_weights_that_are_not_finite(lr, poison):
    """Noticed at the end of an epoch at the latest, and nothing is averaged over the model."""
    training = new_training(lr=lr, loss=lambda diffusion, images: l1_loss(diffusion, images) * poison)
    with pytest.raises(FloatingPointError, match="not finite at step [48]; try a lower lr"):
        list(training)
    assert not training.finished


def test_a_rate_that_rises_and_falls():
    recipe = dict(epochs=60, lr=5e-3, warmup_steps=10, cosine_decay=True, ema_decay=0.9)
    diffusion = tiny()
    history = train(diffusion, loader(), **recipe)
    assert history["lr"][0] == 0 and max(history["lr"]) == pytest.approx(5e-3) == history["lr"][10]
    assert len(history["lr"]) == len(history["loss"]) == 240 and history["lr"][-1] < 1e-5
    assert np.mean(history["loss"][-20:]) < 0.7 * np.mean(history["loss"][:4])
    assert diffusion.training and diffusion.norm.num_batches_tracked == 240  # never left in eval mode
    # one colour an image is what it was shown, and what it learned
    drawn = generate(diffusion, n=50, seed=0)
    assert drawn.std(dim=(2, 3)).mean() < 0.6 * drawn.std()


# Order and noise ------------------------------------------------------------------------


def orders(batches, **recipe):
    """The images of each of two epochs in the order in which they are shown, each as its first number."""
    shown = []
    train(tiny(), batches, loss=noting(shown), epochs=2, **recipe)
    numbers = torch.cat(shown)[:, 0, 0, 0].tolist()
    return numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]


def test_the_order_follows_from_the_loaders_seed():
    first, second = orders(loader(seed=0))
    assert first != second and sorted(first) == sorted(second)
    assert orders(loader(seed=0)) == orders(loader(seed=0), seed=5) == (first, second)
    assert orders(loader(seed=1)) != (first, second)
    without = [orders(loader(seed=None), seed=seed) for seed in (3, 3, 4)]
    assert without[0] == without[1] != without[2]


def test_the_noise_follows_from_the_seed():
    losses = []
    for before, seed in ((5, 0), (6, 0), (6, 1)):
        diffusion = tiny()
        torch.manual_seed(before)  # what was drawn before does not matter
        losses.append(train(diffusion, loader(), epochs=1, seed=seed)["loss"])
    assert losses[0] == losses[1] != losses[2]


def loaded_from(step):
    """The images that a training run loads which goes on after so many steps, by their places in the data."""
    images, places = torch.as_tensor(loader().dataset), []

    def collate(batch):
        places.extend(batch)
        return images[batch]

    training = Training(tiny(), DataLoader(range(32), 8, shuffle=True, collate_fn=collate), epochs=3)
    training.step = step
    list(training)
    return places


def test_what_was_shown_before_a_break_is_skipped_and_not_loaded():
    whole = loaded_from(0)
    assert sorted(whole) == sorted([*range(32)] * 3)
    assert loaded_from(7) == whole[7 * 8 :]


# Other models, losses, loaders, optimizers, accelerators -----------------------------------


def test_a_loader_in_order_and_one_that_keeps_the_rest():
    images, batches = torch.as_tensor(loader().dataset), []
    training = Training(tiny(), DataLoader(images, 12), loss=noting(batches), epochs=2)
    assert list(training) == [1, 2, 3, 4, 5, 6] and len(training) == 6
    assert torch.equal(torch.cat(batches), torch.cat([images, images])) and len(batches[2]) == 8


def test_optimizer_and_accelerator_are_sockets():
    accelerator = Accelerator(cpu=True)

    def sgd(model, recipe):
        return torch.optim.SGD(model.parameters(), recipe.lr)

    training = new_training(optimizer=sgd, accelerator=accelerator, epochs=2)
    assert training.accelerator is accelerator and new_training().accelerator is not accelerator
    bias = training.diffusion.unet.out.bias
    before = bias.detach().clone()
    next(iter(training))
    torch.testing.assert_close(bias.detach(), before - 5e-3 * bias.grad)
