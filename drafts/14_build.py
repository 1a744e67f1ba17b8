import sys, json, os
sys.path.insert(0, "/root/note")
from nbtool import code, md, load, save
P = "/work/main/notebooks/14_few_steps.ipynb"
old = load("/work/main/notebooks/13_what_to_predict.ipynb")
first = dict(next(c for c in old["cells"] if c["cell_type"] == "code"))
C = []
def M(s): C.append(md(s))
def K(s, **meta): C.append(code(s, **meta))

M(r'''# 14 · Draw in one step

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/diffusion-course/blob/v1/notebooks/14_few_steps.ipynb)

**What you'll do:** teach a student, in two ways, to draw in one step what takes its teacher twenty.

**What you'll learn**
- why a network needs many steps, and a student does not;
- **progressive distillation**: take two steps in one, again and again;
- **consistency distillation**: give one image for a whole path;
- what is gained and what is lost, by eye and by numbers, next to a teacher drawn as well as it can be;
- whether four tricks that make faces crisper are one and the same.

**What you'll need:** lessons [12](12_better_samplers.ipynb) and [13](13_what_to_predict.ipynb), and the distances of lesson [07](07_measuring_quality.ipynb). The teacher ships with the course.

**Time:** about seven minutes on two CPU cores; a GPU is not needed. Reading: 30 minutes.''')
C.append(first)
K(r'''import copy
import math
from functools import partial

import torch
from IPython.display import clear_output
from ipywidgets import SelectionSlider, interact
from matplotlib import pyplot as plt
from torch import nn

from diffusion_utils import CPU_SHAPE, Diffusion, DiffusionConfig, Training, average_weights, ddim
from diffusion_utils import denormalize, generate, get_data, get_loader, mix, predict, sample, schedule
from diffusion_utils import starting_noise
from diffusion_course.conditioning import Guided  # lesson 15 builds it
from diffusion_course.distillation import FEW_STEPS
from diffusion_course.objectives import prediction_loss
from diffusion_course.quality import face_features, kernel_distance, labelled_faces, load_classifier
from diffusion_course.quality import paired_difference, pixel_distance, published
from diffusion_course.samplers import DPMSolver, heun, karras_times''', jupyter={"source_hidden": True})

M(r'''## The teacher at its best

A student should be measured against the best that its teacher can do. Our teacher is the network of lesson 04, trained for the velocity for 40 minutes. With twenty evaluations, it draws best with 2M and times that are even in $\log\sigma$. Here it is, and with DDIM: twenty steps, four, one.''')
K(r'''def show_rows(rows):
    figure, axes = plt.subplots(len(rows), 8, figsize=(9.8, 1.03 * len(rows)), squeeze=False)
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images):
            axis.imshow(image.cpu().permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.2)
    plt.show()''')
K(r'''teacher = Diffusion.from_pretrained(FEW_STEPS[20]).eval().requires_grad_(False)
start = starting_noise(teacher, 400, seed=1)
best = generate(teacher, noise=start, steps=karras_times(19, math.inf), sampler=DPMSolver())
rows = {"teacher, 2M, 20": best}
rows |= {f"DDIM, {steps}": generate(teacher, noise=start[:8], steps=steps) for steps in (20, 4, 1)}
show_rows(rows)''')
M(r'''Why does it need many steps? Because at the first one it can only say what all faces that fit have in common. With pure noise that is nearly the mean of all faces, the last row. It is the right answer to the question, but it is no face. Only as the noise gives way does one face win.

And yet from a given noise sample, the teacher always arrives at the *same* face. What if another network, a **student**, were asked for that one directly? Not "what would the face look like, on average" but "where will the teacher be". That question has one answer, and no mean in it.

## Take two steps in one

Begin modestly. The teacher takes two steps of DDIM, from $z$ to $z'$ and on to $z''$. Which image $\tilde x$ would have led there in *one*? As in lesson 12, a step with the guess $\tilde x$ is $z'' = \frac{s''}{s} z + \left(a'' - \frac{s''}{s} a\right) \tilde x$. Solve it for $\tilde x$. At time 0, where `generate` keeps the guessed image, the second guess is the aim.''')
K(r'''def half_steps(predict, noisy, time, next_time):
    pass''')
K(r'''predictor = partial(predict, teacher)
now, middle, then = (torch.full((8, 1, 1, 1), value) for value in (1.0, 0.75, 0.5))
aim = half_steps(predictor, start[:8], now, then)
there, _ = ddim(predictor, start[:8], now, middle)
twice, _ = ddim(predictor, there, middle, then)
noise_rate, signal_rate = schedule(now)
once, _ = ddim(lambda *_: ((start[:8] - signal_rate * aim) / noise_rate, aim), start[:8], now, then)
assert torch.allclose(once, twice, atol=1e-3)  # one step to `aim` leads where two steps lead
show_rows({"one step's guess": denormalize(teacher, predictor(start[:8], now)[1]), "of two steps": denormalize(teacher, aim)})''')
M(r'''The aim of two steps is a little more of a face. A student that learns to give the lower row does in one step what its teacher does in two. The loss compares velocities, at the times that the student will meet and no others: a velocity that is off by $e$ makes an image that is off by $s\,e$, so the difference of the images is divided by $s$. The absolute error will do, since there is one right answer now, and mean and median are the same.

The teacher has to predict the velocity (or the image). At time 1, where the student's most important step begins, a *noise* that is off by 0.01 is an image that is off by a half.''')
K(r'''def check_teacher(teacher):
    pass''')
K(r'''def distillation_loss(teacher, steps):
    pass''')
M(r'''Then the student becomes the teacher, and its own student needs half as many steps again: sixteen, eight, four, two, one. This is **progressive distillation** (Salimans & Ho 2022). Each student starts as a copy of its teacher, so little is left to learn, and a short training run will do.''')
K(r'''def distill(teacher, loader, steps=(8, 4, 2, 1), **recipe):
    pass''')
K(r'''loader = get_loader(get_data(size=32), batch_size=32, seed=0)
recipe = dict(lr=1e-3, warmup_steps=50, cosine_decay=True, ema_decay=0.98)
halved = {}
for steps, student in distill(teacher, loader, steps=(8, 4, 2, 1), epochs=4, **recipe):
    halved[steps] = student.cpu().requires_grad_(False)
    print(f"a student that draws in {steps} steps")''')
M(r'''## One image for a whole path

Four rounds, and each student inherits the mistakes of the one before. Can it be done in one go? Here is one path of the teacher, in ten points from noise to face, and below what the teacher guesses at each of them.''')
K(r'''times = [step / 10 for step in range(10, -1, -1)]
points = [start[:1], *(noisy for noisy, _ in sample(predictor, start[:1], times, heun))]


def along_the_path(model):
    guesses = [predict(model, noisy, torch.full((1, 1, 1, 1), now))[1] for noisy, now in zip(points, times)]
    return denormalize(model, torch.cat(guesses))


rows = {"path": denormalize(teacher, torch.cat(points)), "teacher's guess": along_the_path(teacher)}
show_rows({name: images[[0, 1, 2, 3, 4, 6, 8, 10]] for name, images in rows.items()})''')
M(r'''Mist first, and then the face. But all these points lead to the *same* face. So let us ask the student for the same image everywhere on the path: it should be **consistent** (Song et al. 2023). Nobody needs to walk the whole path for that. Cut it into pieces; at one end of a piece, the student shall give what it gives itself at the other end, a little nearer to the face. At time 0, where everything is decided, it shall give the teacher's guess, and from there the face spreads up the path, piece by piece.

Three things keep it from chasing its own tail. The teacher takes the step along the piece, with Heun, so that it leads where the path leads. The answer at the nearer end counts as given, without a gradient. And it comes from a slow average of the student's weights.''')
K(r'''def consistency_loss(teacher, target, pieces):
    pass''')
K(r'''def distill_consistency(teacher, loader, pieces=(8, 16), **recipe):
    pass''')
M(r'''**Predict first:** after as many steps of training as the four students above had together, what will the new student's guesses along the path look like?''')
K(r'''consistent = distill_consistency(teacher, loader, epochs=8, **recipe).cpu().requires_grad_(False)
rows |= {"student's guess": along_the_path(consistent), "student of halving": along_the_path(halved[1])}
show_rows({name: images[[0, 1, 2, 3, 4, 6, 8, 10]] for name, images in rows.items()})
jumps = {name: float((images[0] - images[-1]).abs().mean()) for name, images in rows.items() if name != "path"}
print({name: round(jump, 3) for name, jump in jumps.items()}, "difference of the first guess and the last")
assert jumps["student's guess"] < jumps["teacher's guess"] / 2''')
M(r'''TODO text

## Side by side

All of the rows below begin in the same noise.''')
K(r'''rows = {"teacher, 2M, 20": best, "teacher, DDIM, 20": generate(teacher, noise=start)}
rows |= {f"halving, {steps}": generate(halved[steps], noise=start) for steps in (4, 2, 1)}
rows |= {f"consistency, {steps}": generate(consistent, noise=start, steps=steps) for steps in (4, 2, 1)}
show_rows(rows)''', tags=["cover"])
K(r'''classifier = load_classifier()
reference = face_features(classifier, labelled_faces("test")[0])
real = torch.from_numpy(get_data(split="test", size=32, limit=1000))
features = {name: face_features(classifier, images) for name, images in rows.items()}
scores = {}
print(f"{'':20}  pixels  kernel  more than the teacher at its best  variation")
for name, images in rows.items():
    pixels, kernel = pixel_distance(images, real), kernel_distance(features[name], reference)
    more, bar = paired_difference(features[name], features["teacher, 2M, 20"], reference)
    scores[name] = pixels, kernel, more, bar, float(images.std())
    print(f"{name:20} {pixels:7.2f} {kernel:7.2f} {more:12.2f} ± {bar:.2f} {images.std():23.3f}")
print(f"variation of real faces: {real.std():.3f}")''')
M(r'''TODO text

## Students with more time

...

## What is lost, and other ways

What is lost? Steps in between: a student of one step has no film to show, and cannot be stopped half way to change something as in lesson 09. The student of halving makes nothing of two steps either, since it has never met another time than 1; the consistent one can.

There are more ways to few steps. In **reflow** (Liu et al. 2022) the trained model draws pairs of noise and image, and a second training run learns the straight lines between them. *Shortcut models* (Frans et al. 2024) are told how long their step shall be.

**MeanFlow** (Geng et al. 2025) needs no teacher. It asks the network for the *average* velocity between two times $r$ and $t$; for $r=0$ and $t=1$ that is the whole way, one step. Nobody knows that average, but it has to fit the velocity at $t$: written as $(t-r)\,\bar u = \int_r^t v$ and differentiated by $t$, it gives $\bar u = v - (t-r)\,\frac{d\bar u}{dt}$. The right side can be computed in training, with one forward-mode derivative of the network itself, and is what the left side learns.

**Adversarial distillation** (Sauer et al. 2023; Yin et al. 2024) lets a second network judge: a *discriminator* learns to tell the student's images from real ones, and the student learns to pass. A discriminator does not forgive a blur, so the images are crisp, and they can be better than the teacher's. The price is that of all adversarial training: two networks that have to be kept in balance, and a student that may leave out what is rare. The fast versions of large text-to-image models mostly come from a mixture of both ideas.

`benchmarks/few_steps.py` has tried three ways on our teacher, with one training run of about equal length each; "a second look" is the appendix.''')
K(r'''ways = {}
for way, steps, pixels, kernel in published("Few steps"):
    ways.setdefault(way, {})[int(steps)] = float(kernel.split(" ± ")[0])
plt.figure(figsize=(6, 3.2))
for way, by_steps in ways.items():
    plt.loglog(list(by_steps), list(by_steps.values()), "o-", label=way)
plt.gca().set(xlabel="evaluations", ylabel="kernel distance", xticks=[1, 2, 4, 20], xticklabels=[1, 2, 4, 20])
plt.minorticks_off()
plt.yticks([1, 2, 5, 10], [1, 2, 5, 10])
plt.legend(fontsize=8)
plt.show()''')
M(r'''## Four tricks, one effect?

TODO''')
C.pop()
M(r'''## Four tricks, one effect?

The student of halving is crisper than it has been taught to be when it takes steps half as long; the appendix shows it. Lesson 12 carried a guess on in the direction in which it was moving. **Guidance** with a scale above 1 (lesson [15](15_conditions.ipynb)) carries it on from a guess without a condition to one with it, and **autoguidance** (Karras et al. 2024) from the guess of a worse network to that of a better one. All four step *past* a guess, away from a worse one, and all make images crisper. Is it one effect, an overshoot that cancels the softness of means?

Test it: from the same noise, draw with and without each trick, and look at the *change*. If it is one effect, the changes of one face should look alike: their cosine should be near 1, and that of changes of different faces near 0. (Guidance needs a condition; autoguidance, the same formula, stands for it. The worse network has two epochs of training.)''')
K(r'''class Overshoot:
    def __init__(self, share):
        self.share, self.last = share, None

    def __call__(self, predict, noisy, time, next_time):
        _, image = predict(noisy, time)
        guess = image if self.last is None else image + self.share * (image - self.last)
        self.last = image
        noise_rate, signal_rate = schedule(time)
        return mix(guess, (noisy - signal_rate * guess) / noise_rate, next_time), guess


torch.manual_seed(0)
worse = Diffusion(DiffusionConfig(**CPU_SHAPE, predicts="v"))
options = dict(epochs=2, lr=3e-3, warmup_steps=30, cosine_decay=True, ema_decay=0.95)
for _ in Training(worse, loader, loss=prediction_loss, **options):
    pass
worse = worse.cpu().eval()''')
K(r'''some = start[:200]
plain, four = generate(teacher, noise=some), generate(halved[4], noise=some)
tricks = {
    "extrapolation": (plain, generate(teacher, noise=some, sampler=Overshoot(1.0))),
    "autoguidance": (plain, generate(Guided(teacher, worse, guidance_scale=1.5), noise=some)),
    "half steps": (four, generate(halved[4], noise=some, steps=8)),
    "sharpening": (plain, plain + 0.5 * (plain - nn.functional.avg_pool2d(plain, 3, 1, 1, count_include_pad=False))),
}
changes = {name: after - before for name, (before, after) in tricks.items()}
show_rows({"without": plain} | {name: 0.5 + 3 * change for name, change in changes.items()})''')
K(r'''def cosine(one, other):
    return float(nn.functional.cosine_similarity(one.flatten(1), other.flatten(1)).mean())


alike = torch.tensor([[cosine(one, other) for other in changes.values()] for one in changes.values()])
chance = torch.tensor([[cosine(one, other.roll(1, 0)) for other in changes.values()] for one in changes.values()])
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for axis, values, title in zip(axes, (alike, chance), ("changes of the same face", "of different faces")):
    axis.imshow(values, vmin=-1, vmax=1, cmap="RdBu_r")
    axis.set(title=title, xticks=range(4), yticks=range(4), xticklabels=changes, yticklabels=changes)
    axis.tick_params(axis="x", labelrotation=20)
    for (row, column), value in [((i, j), float(values[i, j])) for i in range(4) for j in range(4)]:
        axis.text(column, row, f"{value:.2f}", ha="center", va="center")
plt.show()
for name, (before, after) in tricks.items():
    pair = [face_features(classifier, images.clip(0, 1)) for images in (after, before)]
    more, bar = paired_difference(*pair, reference)
    print(f"{name:14} variation {before.std():.3f} to {after.std():.3f}, kernel distance {more:+.2f} ± {bar:.2f}")''')
M(r'''TODO

## Appendix: half a step

The student of four was taught steps of a quarter. Ask it for *eight* steps, each half as long. **Predict first:** will its faces be the same, worse, or better?''')
K(r'''rows = {"2M, 20": best, "student of 4, in 4": generate(halved[4], noise=start), "in 8": generate(halved[4], noise=start, steps=8)}
show_rows(rows)
eight = face_features(classifier, rows["in 8"])
more, bar = paired_difference(eight, features["halving, 4"], reference)
print(f"kernel distance of eight half steps, less that of four whole ones: {more:.2f} ± {bar:.2f}")
one, two = predictor(start[:8], now)[1], predictor(there, middle)[1]
share = float(((aim - one) * (two - one)).sum() / (two - one).square().sum())
print(f"the aim is {1 - share:.0%} of the first guess and {share:.0%} of the second")
assert 0 < share < 1 and torch.allclose(aim, one + share * (two - one), atol=1e-3)''')
M(r'''How? Solve the equation above for $\tilde x$, and it turns out to be a mean of the teacher's two guesses. The second comes later, when there is less noise, and so it is crisper. A student sees a little ahead of its teacher. In steps of the length that it was taught, both arrive at the same place. In steps half as long it is asked again before it has gone the whole way, looks ahead again, and goes too far: edges and contrast grow. That is a fault, but its teacher has the opposite one, since it answers with a mean where it does not know. The two faults cancel, and only here and once: no law says that they are equally large.

The students that ship were made with that detour: a second student of four learned what the first draws in eight, and only then came two steps and one.

## On your own

**Exercise 1.** Consistency models draw in two steps as follows: guess the image, mix it with *fresh* noise for the next time, guess again. Write that step, `renoise(predict, noisy, time, next_time)`, with `torch.randn_like`.''')
K(r'''def renoise(predict, noisy, time, next_time):
    return ...''')
K(r'''if renoise(predictor, start[:8], now, middle) is ...:
    print("Exercise 1 is waiting for you.")
else:
    torch.manual_seed(0)
    mixed, guessed = renoise(predictor, start[:8], now, middle)
    assert torch.allclose(guessed, predictor(start[:8], now)[1], atol=1e-4), "the guess at the image comes back, too"
    fresh = (mixed - schedule(middle)[1] * guessed) / schedule(middle)[0]
    assert abs(fresh.std() - 1) < 0.05 and abs(cosine(fresh, start[:8])) < 0.1, "is the noise fresh, and of the next time?"
    show_rows({f"{steps} steps": generate(consistent, noise=start[:8], steps=steps, sampler=renoise) for steps in (1, 2, 4)})
    print("Exercise 1: correct.")''')
M(r'''<details><summary>Solution</summary>

```python
def renoise(predict, noisy, time, next_time):
    _, image = predict(noisy, time)
    return mix(image, torch.randn_like(image), next_time), image
```

From the second row on, part of the face is decided anew.
</details>''')
M(r'''**Exercise 2.** How consistent is a model? Write `inconsistency(model, count)`: the mean absolute difference of the guesses at the two ends of the *first* of `count` equal pieces of the teacher's path (one step of Heun), for the noise `start[:100]`, in normalised colours. Is the consistent student less so than the teacher, with 16 pieces?''')
K(r'''def inconsistency(model, count):
    return ...''')
K(r'''if inconsistency(teacher, 16) is ...:
    print("Exercise 2 is waiting for you.")
else:
    when, next_when = torch.ones(100, 1, 1, 1), torch.full((100, 1, 1, 1), 15 / 16)
    moved, _ = heun(predictor, start[:100], when, next_when)
    expected = float((predict(teacher, start[:100], when)[1] - predict(teacher, moved, next_when)[1]).abs().mean())
    mine = float(inconsistency(teacher, 16))
    assert abs(mine - expected) < 0.01 * expected, f"{mine:.4f}, not {expected:.4f}, for the teacher"
    print(f"teacher {mine:.3f}, student {float(inconsistency(consistent, 16)):.3f}")
    print("Exercise 2: correct.")''')
M(r'''<details><summary>Solution</summary>

```python
def inconsistency(model, count):
    time = torch.ones(100, 1, 1, 1)
    next_time = time - 1 / count
    there, _ = heun(predictor, start[:100], time, next_time)
    return (predict(model, start[:100], time)[1] - predict(model, there, next_time)[1]).abs().mean()
```
</details>''')
M(r'''**Exercise 3.** A contest. Network and images are given; how low can you bring the kernel distance in a *single* step? Put your model into `contestant`. It counts when it is better than the lesson's student of halving, and is not the one that ships. And then look at its faces.''')
K(r'''contestant = ...''')
K(r'''if contestant is ...:
    print("Exercise 3 is waiting for you.")
else:
    assert sum(p.numel() for p in contestant.parameters()) == teacher.num_parameters()
    ours = contestant.unet.out.weight.cpu()
    assert not torch.equal(ours, Diffusion.from_pretrained(FEW_STEPS[1]).unet.out.weight), "train one of your own"
    images = generate(contestant, noise=start, steps=1).cpu()
    more, bar = paired_difference(face_features(classifier, images), features["halving, 1"], reference)
    show_rows({"yours": images, "the lesson's": generate(halved[1], noise=start[:8])})
    assert more < 0, f"yours is {more:.2f} ± {bar:.2f} farther away"
    print(f"nearer by {-more:.2f} ± {bar:.2f}")
    print("Exercise 3: correct.")''')
M(r'''<details><summary>Solution</summary>

The simplest of many: the last student has not finished learning. Let it go on.

```python
contestant = copy.deepcopy(halved[1]).requires_grad_(True)
for _ in Training(contestant, loader, loss=distillation_loss(halved[2], 1), epochs=8, **recipe):
    pass
```
</details>''')
M(r'''## Where to read on

- Salimans & Ho (2022), [Progressive Distillation for Fast Sampling of Diffusion Models](https://arxiv.org/abs/2202.00512): the students.
- Song et al. (2023), [Consistency Models](https://arxiv.org/abs/2303.01469), and Lu & Song (2024), [Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models](https://arxiv.org/abs/2410.11081): one image for a path, and how it works at scale.
- Liu et al. (2022), [Flow Straight and Fast](https://arxiv.org/abs/2209.03003): reflow. Frans et al. (2024), [One Step Diffusion via Shortcut Models](https://arxiv.org/abs/2410.12557). Geng et al. (2025), [Mean Flows for One-step Generative Modeling](https://arxiv.org/abs/2505.13447).
- Sauer et al. (2023), [Adversarial Diffusion Distillation](https://arxiv.org/abs/2311.17042), and Yin et al. (2024), [Improved Distribution Matching Distillation](https://arxiv.org/abs/2405.14867).
- Karras et al. (2024), [Guiding a Diffusion Model with a Bad Version of Itself](https://arxiv.org/abs/2406.02507): autoguidance.

[← 13 · What should the network answer?](13_what_to_predict.ipynb) · [15 · Ask for what you want →](15_conditions.ipynb)''')
meta = {k: v for k, v in old["metadata"].items() if k not in ("widgets",)}
nb = dict(cells=C, metadata=meta, nbformat=4, nbformat_minor=5)
seen = set()
for i, c in enumerate(C):
    if c["id"] in seen: c["id"] = c["id"][:6] + f"{i:02}"
    seen.add(c["id"])
save(nb, P)
