"""Ways to few steps, from one teacher: distillation and consistency distillation (lesson 14), and reflow; one run each.

    python benchmarks/few_steps.py        half an hour on two CPU cores

The teacher is the one that ships, trained for v, drawn as well as it can be with 20 evaluations (2M, even in log
sigma), and by DDIM with even steps. The students learn in 1,488 steps of 32. Distillation halves the steps in four
rounds; with a second look it has one round more, 1,860 steps: a second student learns in four steps what the
first student of four draws in eight. Reflow draws 3,000 pairs of noise and image with the teacher, and learns the
ways between them (Liu et al. 2022). Pixel distance and kernel distance (lesson 07) of 400 samples to 1,000
held-out faces; all begin in the same noise.
"""

import copy
import math
from functools import partial

import torch
from common import fresh, judged, publish

RECIPE = dict(lr=1e-3, warmup_steps=50, cosine_decay=True, ema_decay=0.98)
COUNTS = (20, 4, 2, 1)


def distillation(teacher, loader, steps=(8, 4, 2, 1)):
    from diffusion_course.distillation import distill

    return dict(distill(teacher, loader, steps, epochs=4, **RECIPE))


def consistency(teacher, loader):
    from diffusion_course.distillation import distill_consistency

    return dict.fromkeys((4, 2, 1), distill_consistency(teacher, loader, epochs=8, **RECIPE))


def reflow(teacher, loader):
    from diffusion_utils import Training, generate, mix, predict, schedule, starting_noise

    noise = starting_noise(teacher, 3000, seed=0)
    image = teacher.norm(torch.cat([generate(teacher, noise=some) for some in noise.split(500)]))
    pairs = torch.utils.data.TensorDataset(noise, image)

    def loss(student, pair):
        noise, image = pair
        time = torch.rand(len(image), 1, 1, 1, device=image.device)
        _, guess = predict(student, mix(image, noise, time), time)
        return ((guess - image) / schedule(time)[0]).square().mean()

    loader = torch.utils.data.DataLoader(pairs, 32, shuffle=True, drop_last=True)
    student = copy.deepcopy(teacher).requires_grad_(True)
    for _ in Training(student, loader, loss=loss, epochs=16, **RECIPE):
        pass
    return dict.fromkeys(COUNTS, student)


def learned(way, best=False):
    """`{steps: (pixel distance, kernel distance, its error bar)}`; `way` None is the teacher alone, `best` by 2M."""
    from diffusion_course.distillation import FEW_STEPS
    from diffusion_course.samplers import DPMSolver, karras_times
    from diffusion_utils import Diffusion, generate, get_data, get_loader

    teacher = Diffusion.from_pretrained(FEW_STEPS[20]).eval().requires_grad_(False)
    students = dict.fromkeys(COUNTS, teacher)
    if way:
        students = way(teacher, get_loader(get_data(size=32), 32, seed=0))
    counts = [steps for steps in COUNTS if steps in students and not (best and steps < 4)]
    if best:
        options = {
            steps: dict(steps=karras_times(steps - 1, math.inf), sampler=DPMSolver()) for steps in counts
        }
    else:
        options = {steps: dict(steps=steps) for steps in counts}
    drawn = [generate(students[steps], n=400, seed=1, **options[steps]).cpu() for steps in counts]
    return dict(zip(counts, zip(*judged(drawn))))


WAYS = {
    "teacher, 2M": partial(learned, None, best=True),
    "teacher, DDIM": partial(learned, None),
    "distillation": partial(learned, distillation),
    "distillation, a second look": partial(learned, partial(distillation, steps=(8, 4, 4, 2, 1))),
    "consistency": partial(learned, consistency),
    "reflow": partial(learned, reflow),
}


def write(results):
    """Publish what `learned` gave for each of WAYS."""
    rows = []
    for name, result in results.items():
        for steps, (pixels, kernel, bar) in result.items():
            rows.append([name, steps, f"{pixels:.2f}", f"{kernel:.2f} ± {bar:.2f}"])
    best = next(kernel for name, steps, _, kernel in rows if (name, steps) == ("teacher, 2M", 20))
    summary = "; ".join(f"{kernel} ({name})" for name, steps, _, kernel in rows if steps == 1)
    columns = ["way", "evaluations", "pixel distance", "kernel distance"]
    summary = f"1 step: kernel distance {summary}; the teacher in 20 evaluations of 2M {best}."
    publish("Few steps", columns, rows, summary=summary)


if __name__ == "__main__":
    write({name: fresh(way) for name, way in WAYS.items()})
