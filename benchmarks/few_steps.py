"""Three ways to few steps, from one teacher: distillation (lesson 13), reflow, and consistency tuning.

    python benchmarks/few_steps.py

Each learns in 1,488 steps of 32; the teacher is lesson 13's, trained for v. Distillation halves the steps in
four rounds. Reflow draws 3,000 pairs of noise and picture with the teacher, and learns the ways between them
(Liu et al. 2022). Consistency tuning wants the same picture at neighbouring times of a way, which draw nearer
to each other in four rounds (Song et al. 2023). Pixel distance and kernel distance (lesson 07) of 400 samples
to 1,000 held-out faces.
"""

import copy
from functools import partial

import torch
from common import fresh, judged, publish

RECIPE = dict(lr=1e-3, warmup_steps=50, cosine_decay=True, ema_decay=0.98)
COUNTS = (20, 4, 2, 1)


def velocity_error(student, noisy, time, image):
    """How far the answer is from the velocity that leads to `image`."""
    from diffusion_utils import predict, schedule

    return (predict(student, noisy, time)[1] - image) / schedule(time)[0]


def distillation(teacher, loader):
    from more.flow import distill

    return dict(distill(teacher, loader, epochs=4, **RECIPE))


def reflow(teacher, loader):
    from diffusion_utils import Training, generate, mix, starting_noise

    noise = starting_noise(teacher, 3000, seed=0)
    image = teacher.norm(torch.cat([generate(teacher, noise=some) for some in noise.split(500)]))
    pairs = torch.utils.data.TensorDataset(noise, image)

    def loss(student, pair):
        noise, image = pair
        time = torch.rand(len(image), 1, 1, 1)
        return velocity_error(student, mix(image, noise, time), time, image).square().mean()

    loader = torch.utils.data.DataLoader(pairs, 32, shuffle=True, drop_last=True)
    student = copy.deepcopy(teacher).requires_grad_(True)
    for _ in Training(student, loader, loss=loss, epochs=16, **RECIPE):
        pass
    return dict.fromkeys(COUNTS, student)


def consistency(teacher, loader):
    from diffusion_utils import Training, mix, predict

    def loss(points, student, images):
        image = teacher.norm(images)
        noise, left = torch.randn_like(image), torch.randint(points, (len(image), 1, 1, 1))
        time, before = (left + 1) / points, left / points
        with torch.no_grad():
            guess = predict(student, mix(image, noise, before), before)[1]
        guess = torch.where(left > 0, guess, image)
        return velocity_error(student, mix(image, noise, time), time, guess).square().mean()

    student = copy.deepcopy(teacher).requires_grad_(True)
    for points in (4, 8, 16, 32):
        for _ in Training(student, loader, loss=partial(loss, points), epochs=4, **RECIPE):
            pass
    return dict.fromkeys(COUNTS, student)


def learned(way):
    """`(pixel distance, kernel distance, its error bar)` for each of COUNTS; `way` None is the teacher alone."""
    from diffusion_utils import Diffusion, generate, get_data, get_loader
    from more.flow import FEW_STEPS

    teacher = Diffusion.from_pretrained(FEW_STEPS[20]).eval().requires_grad_(False)
    students = (
        way(teacher, get_loader(get_data(size=32), 32, seed=0)) if way else dict.fromkeys(COUNTS, teacher)
    )
    counts = [steps for steps in COUNTS if steps in students]
    drawn = [generate(students[steps], n=400, steps=steps, seed=1) for steps in counts]
    return dict(zip(counts, zip(*judged(drawn))))


if __name__ == "__main__":
    rows = []
    for name, way in (("none", None), *((way.__name__, way) for way in (distillation, reflow, consistency))):
        result = fresh(learned, way)
        for steps, (pixels, kernel, bar) in result.items():
            rows.append([name, steps, f"{pixels:.2f}", f"{kernel:.2f} ± {bar:.2f}"])
            print(*rows[-1], flush=True)
    publish("Few steps", ["way", "steps", "pixel distance", "kernel distance"], rows)
