"""Three ways to few steps, from one teacher: distillation (lesson 13), reflow, and consistency distillation.

    python benchmarks/few_steps.py

Each learns in 1,488 steps of 32; the teacher is lesson 13's, trained for v. Distillation halves the steps in
four rounds. With a second look it has one round more, 1,860 steps: a second student learns in four steps what
the first student of four draws in eight. Reflow draws 3,000 pairs of noise and image with the teacher, and
learns the ways between them (Liu et al. 2022). Consistency distillation cuts each way into pieces, 8 and then 16,
and wants the same image at both ends of a piece; the target is the guess of an average of the student's
last weights, where one step of the teacher leads (Song et al. 2023, algorithm 2). Pixel distance and kernel
distance (lesson 07) of 400 samples to 1,000 held-out faces.
"""

import copy
from functools import partial

import torch
from common import fresh, judged, publish
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

RECIPE = dict(lr=1e-3, warmup_steps=50, cosine_decay=True, ema_decay=0.98)
COUNTS = (20, 4, 2, 1)


def velocity_error(student, noisy, time, image):
    """How far the output is from the velocity that leads to `image`."""
    from diffusion_utils import predict, schedule

    return (predict(student, noisy, time)[1] - image) / schedule(time)[0]


def distillation(teacher, loader, steps=(8, 4, 2, 1)):
    from diffusion_course.distillation import distill

    return dict(distill(teacher, loader, steps, epochs=4, **RECIPE))


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
    from diffusion_utils import Training, ddim, mix, predict

    student, predictor = copy.deepcopy(teacher).requires_grad_(True), partial(predict, teacher)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.95), use_buffers=True).eval()

    def loss(points, student, images):
        image, left = teacher.norm(images), torch.randint(points, (len(images), 1, 1, 1))
        time, before = (left + 1) / points, left / points
        noisy = mix(image, torch.randn_like(image), time)
        with torch.no_grad():
            average.update_parameters(student)
            there, last = ddim(predictor, noisy, time, before)
            guess = torch.where(left > 0, predict(average.module, there, before)[1], last)
        return velocity_error(student, noisy, time, guess).abs().mean()

    for points in (8, 16):
        for _ in Training(student, loader, loss=partial(loss, points), epochs=8, **RECIPE):
            pass
    return dict.fromkeys(COUNTS, student)


def learned(way):
    """`(pixel distance, kernel distance, its error bar)` for each of COUNTS; `way` None is the teacher alone."""
    from diffusion_course.distillation import FEW_STEPS
    from diffusion_utils import Diffusion, generate, get_data, get_loader

    teacher = Diffusion.from_pretrained(FEW_STEPS[20]).eval().requires_grad_(False)
    students = (
        way(teacher, get_loader(get_data(size=32), 32, seed=0)) if way else dict.fromkeys(COUNTS, teacher)
    )
    counts = [steps for steps in COUNTS if steps in students]
    drawn = [generate(students[steps], n=400, steps=steps, seed=1) for steps in counts]
    return dict(zip(counts, zip(*judged(drawn))))


if __name__ == "__main__":
    rows = []
    second_look = partial(distillation, steps=(8, 4, 4, 2, 1))
    ways = {"none": None, "distillation": distillation, "distillation, a second look": second_look}
    ways |= {"reflow": reflow, "consistency": consistency}
    for name, way in ways.items():
        result = fresh(learned, way)
        for steps, (pixels, kernel, bar) in result.items():
            rows.append([name, steps, f"{pixels:.2f}", f"{kernel:.2f} ± {bar:.2f}"])
            print(*rows[-1], flush=True)
    summary = "; ".join(f"{kernel} ({name})" for name, steps, _, kernel in rows if steps == 1)
    columns = ["way", "steps", "pixel distance", "kernel distance"]
    publish("Few steps", columns, rows, summary=f"1 step: kernel distance {summary}.")
