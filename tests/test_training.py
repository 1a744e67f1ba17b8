"""Lesson 04: the training step, the average of the weights, the distance, and the loop."""

import math

import numpy as np
import pytest
import torch
from test_model import tiny

import diffusion_utils
from diffusion_utils import average_weights, get_data, get_loader, pixel_distance, train, training_step


def loader(count=32, batch_size=8):
    rng = np.random.default_rng(0)
    colors = rng.random((count, 3, 1, 1), dtype=np.float32)
    return get_loader(colors * np.ones((1, 1, 8, 8), dtype=np.float32), batch_size, seed=0)


def test_training_step():
    diffusion, images = tiny().train(), torch.rand(4, 3, 8, 8)
    optimizer = torch.optim.SGD(diffusion.parameters(), lr=0.1)
    torch.manual_seed(1)
    noise, predicted_noise = diffusion(images)
    expected = (noise - predicted_noise).abs().mean()
    expected.backward()
    moved = diffusion.unet.out.weight - 0.1 * diffusion.unet.out.weight.grad
    optimizer.zero_grad()

    torch.manual_seed(1)
    loss = training_step(diffusion, images, optimizer)
    assert torch.isclose(loss, expected) and not loss.requires_grad
    assert torch.allclose(diffusion.unet.out.weight, moved, atol=1e-6)
    assert all(parameter.grad is None for parameter in diffusion.parameters())


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


def test_pixel_distance_against_the_definition():
    torch.manual_seed(0)
    one, two = torch.rand(300, 3, 32, 32), 0.8 * torch.rand(400, 3, 32, 32) + 0.1
    pooled = [x.reshape(-1, 3, 16, 2, 16, 2).mean((3, 5)).flatten(1).double().numpy() for x in (one, two)]
    values, vectors = np.linalg.eigh(np.cov(pooled[1].T))
    a, b = (x @ vectors[:, ::-1][:, :64] for x in pooled)
    values, vectors = np.linalg.eigh(np.cov(a.T))
    root = vectors * np.sqrt(values) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ np.cov(b.T) @ root).clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * cross
    assert pixel_distance(one, two) == pytest.approx(expected, rel=1e-6)


def test_pixel_distance_behaves():
    real, held_out = get_data(limit=200, size=32), get_data(split="test", limit=1000, size=32)
    assert pixel_distance(held_out, held_out) == pytest.approx(0, abs=1e-4)
    floor = pixel_distance(real, held_out)
    assert 0 < floor < pixel_distance(real + 0.05, held_out) < pixel_distance(real + 0.2, held_out)
    assert floor < pixel_distance(real[:20].repeat(10, axis=0), held_out)  # too little diversity


def test_train():
    diffusion = tiny()
    history = train(diffusion, loader(), epochs=60, lr=5e-3, warmup_steps=10, cosine_decay=True,
                    ema_decay=0.9, sample_every=25)  # fmt: skip
    assert len(history["loss"]) == len(history["lr"]) == 60 * 4
    assert history["lr"][0] == 0 and max(history["lr"]) == pytest.approx(5e-3) == history["lr"][10]
    assert history["lr"][-1] < 1e-5
    assert np.mean(history["loss"][-20:]) < 0.7 * np.mean(history["loss"][:4])
    assert [epoch for epoch, _, _ in history["samples"]] == [25, 50, 60]
    assert all(raw.shape == averaged.shape == (5, 3, 8, 8) for _, raw, averaged in history["samples"])
    assert history["seconds"] > 0
    assert diffusion.training and diffusion.norm.num_batches_tracked == 240  # never left in eval mode
    # at the end the model holds the averaged weights, which is what drew the last samples
    assert torch.equal(diffusion_utils.generate(diffusion, seed=0).cpu(), history["samples"][-1][2])
    # one colour a picture is what it was shown, and what it learned
    drawn = diffusion_utils.generate(diffusion, n=50, seed=0)
    assert drawn.std(dim=(2, 3)).mean() < 0.6 * drawn.std()


def test_train_with_the_defaults_of_the_article(monkeypatch):
    options = {}
    adamw = torch.optim.AdamW
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda p, lr, weight_decay, fused: options.update(lr=lr, wd=weight_decay) or adamw(p, lr)
    )
    history = train(tiny(), loader(), epochs=1)
    assert options == {"lr": 2e-4, "wd": 1e-4} and set(history["lr"]) == {2e-4}
    raw, averaged = history["samples"][-1][1:]
    assert len(history["samples"]) == 1 and raw.shape == averaged.shape


def test_train_is_repeatable():
    losses = []
    for _ in range(2):
        diffusion = tiny()
        torch.manual_seed(5)
        losses.append(train(diffusion, loader(), epochs=2)["loss"])
    assert losses[0] == losses[1]
    assert all(math.isfinite(loss) for loss in losses[0])


def test_train_epochs():
    with pytest.raises(ValueError, match="epochs must be 1 or more"):
        train(tiny(), loader(), epochs=0)
