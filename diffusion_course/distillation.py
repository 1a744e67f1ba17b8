"""Students that draw in few steps, in the order of lesson 14.

Lesson 14  two_steps_in_one, distillation_loss, check_teacher, distill, consistency_loss, distill_consistency

    for steps, student in distill(teacher, loader, steps=(8, 4, 2, 1), epochs=4, lr=1e-3):
        show(generate(student, seed=0))
    student = distill_consistency(teacher, loader, epochs=8, lr=1e-3)

Noise and images are normalised tensors (N, C, S, S), times (N, 1, 1, 1) in [0, 1], as in
lessons 02 and 05; the rates are those of `schedule`.
"""

import copy
from functools import partial

import torch

from diffusion_utils import ROOT, Training, average_weights, ddim, mix, predict, schedule

# Models that ship, by the steps they draw in: a teacher that predicts v, and what its students have learned.
FEW_STEPS = {20: ROOT / "pretrained" / "toy_faces_32_v"}
FEW_STEPS |= {steps: ROOT / "pretrained" / f"toy_faces_32_in_{steps}" for steps in (4, 2, 1)}


def two_steps_in_one(predict, noisy, time, next_time):
    """The image that leads in one step of DDIM to where two steps of half the length lead. Lesson 14.

    `predict(noisy, time)` gives noise and image, as in `sample`. At time 0, where a drawing ends with the
    guessed image, it is the guess of the second. Salimans & Ho 2022, appendix G.
    """
    middle = (time + next_time) / 2
    there, _ = ddim(predict, noisy, time, middle)
    end, image = ddim(predict, there, middle, next_time)
    noise_rate, signal_rate = schedule(time)
    next_noise_rate, next_signal_rate = schedule(next_time)
    shrink = next_noise_rate / noise_rate
    way = (end - shrink * noisy) / (next_signal_rate - shrink * signal_rate)
    return torch.where(next_time > 0, way, image)


def distillation_loss(teacher, steps):
    """A loss for a student that does in `steps` steps what `teacher` does in twice as many. Lesson 14.

    The mean absolute difference of v. Salimans & Ho 2022, algorithm 2.
    """

    def loss(student, images):
        with torch.no_grad():
            image = teacher.to(images.device).norm(images)
            left = torch.randint(steps, (len(images), 1, 1, 1), device=image.device)  # steps after this one
            time, next_time = (left + 1) / steps, left / steps
            noisy = mix(image, torch.randn_like(image), time)
            target = two_steps_in_one(partial(predict, teacher), noisy, time, next_time)
        _, guess = predict(student, noisy, time)
        noise_rate, _ = schedule(time)
        return ((guess - target) / noise_rate).abs().mean()

    return loss


def check_teacher(teacher):
    """ValueError for a teacher that predicts noise: where all is noise, that says nothing of the image. Lesson 14."""
    if teacher.config.predicts == "noise":
        raise ValueError(
            "teacher: it predicts noise, which at time 1 says nothing of the image; take one for v"
        )


def distill(teacher, loader, steps=(8, 4, 2, 1), **recipe):
    """Halve the steps again and again; yield `(steps, student)` after each round. Lesson 14.

    `teacher` draws well in twice as many steps as the first of `steps`. Each student is a copy of its teacher, and
    becomes the teacher of the next; its config knows its steps. A number may stand twice: the second student learns
    what the first draws in twice as many steps, which is crisper. `recipe`: as for `Training`.
    Raises what `check_teacher` raises.
    """
    check_teacher(teacher)
    teacher = copy.deepcopy(teacher).eval()
    for count in steps:
        student = copy.deepcopy(teacher).requires_grad_(True)
        student.config.steps = count
        for _ in Training(student, loader, loss=distillation_loss(teacher, count), **recipe):
            pass
        teacher = student.eval()
        yield count, student


def consistency_loss(teacher, target, pieces):
    """A loss for a student that gives the same image everywhere on a path of `teacher`. Lesson 14.

    The path is cut into `pieces`. At the noisy end of a piece the student shall give the image that `target`, a slow
    average of it, gives at the other end, where a step of the teacher leads; on the last piece, the teacher's own
    guess. The mean absolute difference of v. Song et al. 2023, algorithm 2.
    """

    def loss(student, images):
        with torch.no_grad():
            image = teacher.to(images.device).norm(images)
            left = torch.randint(pieces, (len(images), 1, 1, 1), device=image.device)  # pieces after this one
            time, next_time = (left + 1) / pieces, left / pieces
            noisy = mix(image, torch.randn_like(image), time)
            there, last_guess = ddim(partial(predict, teacher), noisy, time, next_time)
            _, guess = predict(target.to(images.device), there, next_time)
            aim = torch.where(left > 0, guess, last_guess)
        _, guess = predict(student, noisy, time)
        noise_rate, _ = schedule(time)
        return ((guess - aim) / noise_rate).abs().mean()

    return loss


def distill_consistency(teacher, loader, pieces=(8, 16), **recipe):
    """Train one student that draws in any number of steps, one included; it begins as `teacher`. Lesson 14.

    One training run for each number of `pieces` that the paths are cut into. `recipe`: as for `Training`. Raises what
    `check_teacher` raises.
    """
    check_teacher(teacher)
    teacher = copy.deepcopy(teacher).eval()
    student = copy.deepcopy(teacher).requires_grad_(True)
    student.config.steps = 1
    for count in pieces:
        average = average_weights(student, ema_decay=0.95)
        loss = consistency_loss(teacher, average.module.eval(), count)
        for _ in Training(student, loader, loss=loss, **recipe):
            average.update_parameters(student)
    return student.eval()
