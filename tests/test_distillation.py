"""Lesson 14: students that draw in few steps."""

import copy
from functools import partial

import pytest
import torch
from helpers import loader, same, tiny, train

from diffusion_course.distillation import (
    FEW_STEPS,
    consistency_loss,
    distill,
    distill_consistency,
    distillation_loss,
    two_steps_in_one,
)
from diffusion_utils import Diffusion, ddim, generate, mix, predict, schedule


def test_at_the_end_the_aim_is_the_last_guess():
    predictor = partial(predict, tiny(predicts="v").eval())
    noisy, time = torch.randn(2, 3, 8, 8), torch.full((2, 1, 1, 1), 0.5)
    there, _ = ddim(predictor, noisy, time, time / 2)
    _, last = predictor(there, time / 2)
    assert torch.equal(two_steps_in_one(predictor, noisy, time, 0 * time), last)


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


@pytest.fixture(scope="module")
def teacher():
    """Whatever its students learn, it stays as it was."""
    teacher = tiny(predicts="v")
    train(teacher, loader(), epochs=25, lr=1e-2)
    before = copy.deepcopy(teacher.state_dict())
    yield teacher
    assert same(teacher, before) and teacher.config.steps == 20


def off(model, teacher, steps):
    """How far what the model draws in one step is from what the teacher draws in so many."""
    noise = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    aim = generate(teacher, noise=noise, steps=steps)
    return float((generate(model, noise=noise, steps=1) - aim).abs().mean())


def test_distill(teacher):
    students = dict(distill(teacher, loader(), (2, 1), epochs=40, lr=5e-3))
    assert list(students) == [2, 1] and not students[1].training
    assert [student.config.steps for student in students.values()] == [2, 1]
    assert off(students[1], teacher, steps=4) < 0.7 * off(teacher, teacher, steps=4)


def test_distill_consistency(teacher):
    """The student draws in one step what its teacher draws in many."""
    student = distill_consistency(teacher, loader(), (2, 4), epochs=40, lr=5e-3)
    assert student.config.steps == 1 and not student.training
    assert off(student, teacher, steps=20) < 0.7 * off(teacher, teacher, steps=20)


def test_a_teacher_that_predicts_noise_is_refused():
    with pytest.raises(ValueError, match="teacher: it predicts noise"):
        next(distill(tiny(), loader()))
    with pytest.raises(ValueError, match="teacher: it predicts noise"):
        distill_consistency(tiny(), loader())


@pytest.mark.parametrize("pieces", [1, 4])
def test_what_a_consistent_student_is_asked_for(pieces):
    """On the last piece the teacher's guess, else the target's where a step of the teacher leads."""
    teacher, target, student = (tiny(predicts="v").eval() for _ in range(3))
    for model in (teacher, target, student):
        torch.nn.init.normal_(model.unet.out.weight, std=0.1)  # three different networks
    images = torch.rand(64, 3, 8, 8)
    torch.manual_seed(1)
    loss = consistency_loss(teacher, target, pieces)(student, images)
    torch.manual_seed(1)
    with torch.no_grad():
        image = teacher.norm(images)
        left = torch.randint(pieces, (64, 1, 1, 1))
        time, noise = (left + 1) / pieces, torch.randn_like(image)
        noisy = mix(image, noise, time)
        there, teachers = ddim(partial(predict, teacher), noisy, time, left / pieces)
        aim = torch.where(left == 0, teachers, predict(target, there, left / pieces)[1])
        off = (predict(student, noisy, time)[1] - aim) / schedule(time)[0]
    torch.testing.assert_close(loss, off.abs().mean())
    loss.backward()
    assert student.unet.out.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for model in (teacher, target) for weight in model.parameters())


@pytest.mark.parametrize("steps", FEW_STEPS)
def test_what_ships(steps):
    diffusion = Diffusion.from_pretrained(FEW_STEPS[steps])
    assert diffusion.config.steps == steps
    assert diffusion.config.predicts == "v" and diffusion.config.image_size == 32
    faces = generate(diffusion, n=8, seed=0)
    assert 0.15 < faces.std() < 0.3 and faces.mean(dim=(2, 3)).std(dim=0).min() > 0.03
