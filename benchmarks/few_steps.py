"""Ways to few steps, from one teacher: distillation and consistency distillation (lesson 14), and reflow.

    python benchmarks/few_steps.py                  all ways
    python benchmarks/few_steps.py "teacher, 2M"    only this one; the others keep what was measured before

The teacher is the one that ships, trained for v; without a name of its own, it is drawn by DDIM. "teacher, 2M" is the
same one, drawn as well as it can be: 2M, even in log sigma, with its last evaluation at time 0 (lesson 12). Each way
is one training run of 1,488 steps of 32. Distillation halves the steps in four rounds. With a second look it has one
round more, 1,860 steps: a second student learns in four steps what the first student of four draws in eight. Reflow
draws 3,000 pairs of noise and image with the teacher, and learns the ways between them (Liu et al. 2022). Pixel
distance and kernel distance (lesson 07) of 400 samples to 1,000 held-out faces; all begin in the same noise.
"""

import copy
import math
import sys
from functools import partial

import torch
from common import fresh, judged, publish

RECIPE = dict(lr=1e-3, warmup_steps=50, cosine_decay=True, ema_decay=0.98)
COUNTS = (20, 4, 2, 1)


def distillation(teacher, loader, steps=(8, 4, 2, 1)):
    from diffusion_course.distillation import distill

    return dict(distill(teacher, loader, steps, epochs=4, **RECIPE))


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


def consistency(teacher, loader):
    from diffusion_course.distillation import distill_consistency

    return dict.fromkeys(COUNTS, distill_consistency(teacher, loader, epochs=8, **RECIPE))


def learned(way):
    """`(pixel distance, kernel distance, its error bar)` for each of COUNTS; `way` None is the teacher alone."""
    from diffusion_course.distillation import FEW_STEPS
    from diffusion_utils import Diffusion, generate, get_data, get_loader

    teacher = Diffusion.from_pretrained(FEW_STEPS[20]).eval().requires_grad_(False)
    students = dict.fromkeys(COUNTS, teacher)
    if way:
        students = way(teacher, get_loader(get_data(size=32), 32, seed=0))
    counts = [steps for steps in COUNTS if steps in students]
    drawn = [generate(students[steps], n=400, steps=steps, seed=1).cpu() for steps in counts]
    return dict(zip(counts, zip(*judged(drawn))))


def at_its_best():
    """What `learned` gives, for the teacher in 20, 8 and 4 evaluations of 2M."""
    from diffusion_course.distillation import FEW_STEPS
    from diffusion_course.samplers import DPMSolver, karras_times
    from diffusion_utils import Diffusion, generate

    teacher = Diffusion.from_pretrained(FEW_STEPS[20])
    counts = (20, 8, 4)
    drawn = [
        generate(teacher, n=400, steps=karras_times(count - 1, math.inf), seed=1, sampler=DPMSolver()).cpu()
        for count in counts
    ]
    return dict(zip(counts, zip(*judged(drawn))))


WAYS = {
    "teacher, 2M": at_its_best,
    "none": partial(learned, None),
    "distillation": partial(learned, distillation),
    "distillation, a second look": partial(learned, partial(distillation, steps=(8, 4, 4, 2, 1))),
    "reflow": partial(learned, reflow),
    "consistency": partial(learned, consistency),
}


def measured_before():
    """What results.md holds: its rows, {way: [row, ...]}, and when and where they were measured."""
    from diffusion_course.quality import published, results

    rows = {}
    for name, steps, *rest in published("Few steps"):
        rows.setdefault(name, []).append([name, int(steps), *rest])
    return rows, results()["Few steps (CPU)"].strip().split("; Python")[0]


if __name__ == "__main__":
    names = sys.argv[1:] or list(WAYS)
    table, before = measured_before()
    for name in names:
        result = fresh(WAYS[name])
        table[name] = [
            [name, steps, f"{pixels:.2f}", f"{kernel:.2f} ± {bar:.2f}"]
            for steps, (pixels, kernel, bar) in result.items()
        ]
    rows = [row for name in WAYS for row in table[name]]
    summary = "; ".join(f"{kernel} ({name})" for name, steps, _, kernel in rows if steps == 1)
    best = table["teacher, 2M"][0]
    summary = f"1 step: kernel distance {summary}; the teacher in 20 evaluations of 2M {best[-1]}."
    kept = [name for name in WAYS if name not in names]
    note = f"Kept from {before}: {'; '.join(kept)}." if kept else ""
    columns = ["way", "evaluations", "pixel distance", "kernel distance"]
    publish("Few steps", columns, rows, summary, note)
