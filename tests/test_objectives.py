"""Lesson 13: what a network is asked for, and students that draw in few steps."""

from functools import partial

import pytest
import torch
from helpers import loader, tiny

from diffusion_utils import Diffusion, DiffusionConfig, Training, ddim, generate, mix, predict, schedule
from diffusion_course.objectives import (
    FEW_STEPS,
    Answering,
    distill,
    distillation_loss,
    half_steps,
    line_time,
    noise_and_image,
    target_loss,
    targets,
)
from diffusion_course.samplers import time_of

TARGETS = "noise", "picture", "v", "flow"
SMALL = {"image_size": 8, "widths": (8, 16), "block_depth": 1}


def asked(target):
    torch.manual_seed(0)
    return Answering(DiffusionConfig(**SMALL, target=target))


@pytest.fixture
def game():
    """Noise, pictures and times, in 64 bits."""
    torch.manual_seed(0)
    noise, image = torch.randn(2, 6, 3, 8, 8, dtype=torch.float64)
    return noise, image, torch.linspace(0, 1, 6, dtype=torch.float64).reshape(6, 1, 1, 1)


# Targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_each_answer_says_all(game, target):
    noise, image, time = game
    answer = targets(*game)[target]
    found = noise_and_image(target, answer, mix(image, noise, time), time)
    torch.testing.assert_close(found, (noise, image), atol=1e-6, rtol=0)


def test_definitions(game):
    noise, image, time = game
    noise_rate, signal_rate = schedule(time)
    right = targets(*game)
    assert tuple(right) == TARGETS and right["noise"] is noise and right["picture"] is image
    assert torch.equal(right["v"], signal_rate * noise - noise_rate * image)
    assert torch.equal(right["flow"], noise - image)


def test_an_unknown_target():
    with pytest.raises(ValueError, match="target must be 'noise', 'picture', 'v' or 'flow', not 'colour'"):
        noise_and_image("colour", torch.zeros(1), torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("target", TARGETS)
def test_asked_draws_and_is_saved(tmp_path, target):
    diffusion = asked(target).eval()
    with torch.no_grad():
        for parameter in diffusion.parameters():
            parameter += 0.01
    noisy, time = torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.4)
    answer = diffusion.network(noisy, time)
    found = predict(diffusion, noisy, time)
    expected = noise_and_image(target, answer, noisy, time)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    diffusion.save_pretrained(tmp_path)
    again = Answering.from_pretrained(tmp_path)
    assert again.config.target == target
    assert torch.equal(generate(again, n=2, steps=2, seed=0), generate(diffusion, n=2, steps=2, seed=0))


def test_v_is_that_of_the_core():
    one, other = asked("v").eval(), tiny(predicts="v").eval()
    other.load_state_dict(one.state_dict())
    noisy, time = torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.7)
    torch.testing.assert_close(one.answer(noisy, time), other.answer(noisy, time))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("target", TARGETS)
def test_the_loss_of_an_answer_of_0(target, power):
    diffusion = asked(target)
    torch.nn.init.zeros_(diffusion.unet.out.weight)
    torch.nn.init.zeros_(diffusion.unet.out.bias)
    images = torch.rand(64, 3, 8, 8)
    torch.manual_seed(1)
    loss = target_loss(diffusion, images, power)
    torch.manual_seed(1)
    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), torch.rand(64, 1, 1, 1)
    torch.testing.assert_close(loss, targets(noise, image, time)[target].abs().pow(power).mean())


@pytest.mark.parametrize("target", TARGETS)
def test_all_questions_can_be_learned(target):
    diffusion = asked(target)
    training = Training(diffusion, loader(), loss=target_loss, epochs=30, lr=5e-3)
    losses = [training.history["loss"][-1] for _ in training]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


# The straight line ----------------------------------------------------------------------------


def test_the_line_and_the_arc(game):
    noise, image, time = game
    share = line_time(time)
    torch.testing.assert_close(
        (1 - share) * image + share * noise, mix(image, noise, time) / sum(schedule(time))
    )
    assert float(share[0]) == pytest.approx(0.247, abs=1e-3)
    sigma = float(share[3] / (1 - share[3]))
    assert time_of(sigma) == pytest.approx(float(time[3]), abs=1e-6)


def test_a_step_on_the_line_is_ddim():
    diffusion = tiny().eval()
    noisy = torch.randn(2, 3, 8, 8)
    time, then = torch.full((2, 1, 1, 1), 0.8), torch.full((2, 1, 1, 1), 0.3)
    noise, image = predict(diffusion, noisy, time)
    line = noisy / sum(schedule(time)) + (line_time(then) - line_time(time)) * (noise - image)
    expected, _ = ddim(partial(predict, diffusion), noisy, time, then)
    torch.testing.assert_close(line * sum(schedule(then)), expected, atol=1e-4, rtol=1e-4)


# Few steps ------------------------------------------------------------------------------------


def test_one_step_to_the_aim_is_two_steps(game):
    noise, image, _ = game
    teacher = tiny(predicts="v").double().eval()
    ask = partial(predict, teacher)
    time, then = torch.full((6, 1, 1, 1), 0.8).double(), torch.full((6, 1, 1, 1), 0.4).double()
    noisy = mix(image, noise, time)
    aim = half_steps(ask, noisy, time, then)
    there, _ = ddim(ask, noisy, time, (time + then) / 2)
    end, _ = ddim(ask, there, (time + then) / 2, then)
    step, _ = ddim(lambda z, t: (noise_and_image("picture", aim, z, t)[0], aim), noisy, time, then)
    torch.testing.assert_close(step, end, atol=1e-5, rtol=0)


def test_at_the_end_the_aim_is_the_last_guess():
    ask = partial(predict, tiny(predicts="v").eval())
    noisy, time = torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.5)
    there, _ = ddim(ask, noisy, time, time / 2)
    _, last = ask(there, time / 2)
    assert torch.equal(half_steps(ask, noisy, time, 0 * time), last)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_loss_asks_at_the_students_times_only(steps):
    teacher, student = tiny(predicts="v").eval(), tiny(predicts="v")
    seen = []
    student.combine.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    images = torch.rand(64, 3, 8, 8)
    before = teacher.norm.running_mean.clone()
    loss = distillation_loss(teacher, steps)(student, images)
    loss.backward()
    allowed = schedule(torch.arange(1, steps + 1) / steps)[0] ** 2
    assert torch.isin(seen[0].flatten(), allowed).all() and len(seen[0].unique()) == steps
    assert student.unet.out.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert torch.equal(before, teacher.norm.running_mean)


def test_distill():
    teacher = tiny(predicts="v")
    for _ in Training(teacher, loader(), epochs=25, lr=1e-2):
        pass
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    students = dict(distill(teacher, loader(), (2, 1), epochs=40, lr=5e-3))
    assert list(students) == [2, 1] and not students[1].training
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, weights[name]), name  # left as it was
    noise = torch.randn(64, 3, 8, 8)
    aim = generate(teacher, noise=noise, steps=4)
    off = [
        float((generate(model, noise=noise, steps=1) - aim).abs().mean()) for model in (teacher, students[1])
    ]
    assert off[1] < 0.7 * off[0]


@pytest.mark.parametrize("steps", FEW_STEPS)
def test_what_ships(steps):
    diffusion = Diffusion.from_pretrained(FEW_STEPS[steps])
    assert diffusion.config.predicts == "v" and diffusion.config.image_size == 32
    faces = generate(diffusion, n=8, steps=steps, seed=0)
    assert 0.15 < faces.std() < 0.3 and faces.mean(dim=(2, 3)).std(dim=0).min() > 0.03
