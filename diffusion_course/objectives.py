"""What a network may be asked for, and how few steps it then needs, in the order of lesson 13.

Lesson 13  targets:    targets, noise_and_image, Answering, target_loss, line_time
           few steps:  half_steps, distillation_loss, distill

    diffusion = Answering(DiffusionConfig(**CPU_SHAPE, target="flow"))
    for step in Training(diffusion, loader, loss=target_loss, **CPU_RECIPE):
        ...

Noise and pictures are normalised tensors (N, 3, S, S), times (N, 1, 1, 1) in [0, 1], as in
lessons 02 and 05; the rates are those of `schedule`.
"""

import copy
from functools import partial

import torch

from diffusion_utils import ROOT, Diffusion, Training, _check, ddim, mix, predict, schedule
from diffusion_course.samplers import velocity

# Models that ship, by the steps they draw in: a teacher that predicts v, and what its students have learned.
FEW_STEPS = {20: ROOT / "pretrained" / "toy_faces_32_v"}
FEW_STEPS |= {steps: ROOT / "pretrained" / f"toy_faces_32_in_{steps}" for steps in (4, 2, 1)}


def targets(noise, image, time):
    """The right answers to the four questions that a network can be asked: {name: (N, 3, S, S)}. Lesson 13.

    "noise" (Ho et al. 2020), "picture", "v" (Salimans & Ho 2022), "flow" (Liu et al. 2022, Lipman et al. 2022).
    """
    return {"noise": noise, "picture": image, "v": velocity(noise, image, time), "flow": noise - image}


def noise_and_image(target, answer, noisy, time):
    """`(noise, image)` that follow from a network's `answer` to the question `target`, at `noisy`. Lesson 13."""
    noise_rate, signal_rate = schedule(time)
    if target == "noise":
        return answer, (noisy - noise_rate * answer) / signal_rate
    if target == "picture":
        return (noisy - signal_rate * answer) / noise_rate, answer
    if target == "v":
        return noise_rate * noisy + signal_rate * answer, signal_rate * noisy - noise_rate * answer
    _check(target == "flow", f"target must be 'noise', 'picture', 'v' or 'flow', not {target!r}")
    both = signal_rate + noise_rate
    return (noisy + signal_rate * answer) / both, (noisy - noise_rate * answer) / both


class Answering(Diffusion):
    """The diffusion model whose network is asked for `config.target`, one of the four. Lesson 13.

    `network(noisy, time)` is the network's own answer; `answer` makes noise of it, so that all that draws with
    a `Diffusion` draws with this one.
    """

    def network(self, noisy, time):
        return self.unet(self.combine(noisy, schedule(time)[0] ** 2))

    def answer(self, noisy, time):
        return noise_and_image(self.config.target, self.network(noisy, time), noisy, time)[0]


def target_loss(diffusion, images, power=2):
    """How wrong the answer is: its mean squared difference from the right one (power 1: absolute). Lesson 13."""
    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), torch.rand(len(image), 1, 1, 1, device=image.device)
    right = targets(noise, image, time)[diffusion.config.target]
    wrong = diffusion.network(mix(image, noise, time), time) - right
    return wrong.abs().pow(power).mean()


def line_time(time):
    """Where on the straight line from picture to noise `time` lies: the share of noise, in [0, 1]. Lesson 13."""
    noise_rate, signal_rate = schedule(time)
    return noise_rate / (noise_rate + signal_rate)


def half_steps(ask, noisy, time, next_time):
    """The picture that leads in one step of DDIM to where two steps of half the length lead. Lesson 13.

    `ask(noisy, time)` gives noise and picture, as `partial(predict, diffusion)`. At time 0, where a
    drawing ends with the guessed picture, it is the guess of the second. Salimans & Ho 2022, appendix G.
    """
    middle = (time + next_time) / 2
    there, _ = ddim(ask, noisy, time, middle)
    end, image = ddim(ask, there, middle, next_time)
    (noise_rate, signal_rate), (next_noise, next_signal) = schedule(time), schedule(next_time)
    shrink = next_noise / noise_rate
    return torch.where(next_time > 0, (end - shrink * noisy) / (next_signal - shrink * signal_rate), image)


def distillation_loss(teacher, steps):
    """A loss for a student that does in `steps` steps what `teacher` does in twice as many. Lesson 13.

    The mean absolute difference of v. Salimans & Ho 2022, algorithm 2.
    """
    ask = partial(predict, teacher)

    def loss(student, images):
        with torch.no_grad():
            image = teacher.norm(images)
            left = torch.randint(
                steps, (len(images), 1, 1, 1), device=image.device
            )  # steps that remain after this
            time, next_time = (left + 1) / steps, left / steps
            noisy = mix(image, torch.randn_like(image), time)
            right = half_steps(ask, noisy, time, next_time)
        wrong = (predict(student, noisy, time)[1] - right) / schedule(time)[0]
        return wrong.abs().mean()

    return loss


def distill(teacher, loader, steps=(8, 4, 2, 1), **recipe):
    """Halve the steps again and again; yield `(steps, student)` after each round. Lesson 13.

    `teacher` draws well in twice as many steps as the first of `steps`, and predicts v: noise alone says nothing
    of the picture where all is noise. Each student is a copy of its teacher, and becomes the teacher
    of the next. A number may stand twice: the second student learns what the first draws in twice as many steps,
    which is crisper. `recipe`: as for `Training`.
    """
    teacher = copy.deepcopy(teacher).eval()
    for count in steps:
        student = copy.deepcopy(teacher).requires_grad_(True)
        for _ in Training(student, loader, loss=distillation_loss(teacher, count), **recipe):
            pass
        teacher = student.eval()
        yield count, student
