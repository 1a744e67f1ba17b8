import json, re, sys
sys.path.insert(0, "/root/note")
from nbtool import code, md, load, save
P = "/work/main/notebooks/12_better_samplers.ipynb"
old = load(P)
first = next(c for c in old["cells"] if c["cell_type"] == "code")
C = []
def M(s): C.append(md(s))
def K(s, **meta): C.append(code(s, **meta))

M(r'''# 12 · Better steps

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/diffusion-course/blob/v1/notebooks/12_better_samplers.ipynb)

**What you'll do:** draw with eight calls of the network what took twenty.

**What you'll learn**
- DDPM, which adds fresh noise at every step, and DDIM, which adds none;
- why a step of DDIM is a turn, and what it gets wrong;
- how Heun looks ahead, how DPM-Solver++ remembers, and why the last look belongs at time 0;
- where to put the steps, and where the noise should begin.

**What you'll need:** lessons [05](05_sampling.ipynb) and [06](06_why_it_works.ipynb), and the kernel distance of lesson [07](07_measuring_quality.ipynb). The trained models ship with the course.

**Time:** about four minutes on two CPU cores; a GPU is not needed. Reading: 30 minutes.''')
C.append(first)
K(r'''import math
from functools import partial

import numpy as np
import torch
from IPython.display import clear_output
from ipywidgets import Dropdown, IntSlider, interact
from matplotlib import pyplot as plt

from diffusion_utils import LARGE_MODEL, SHORT_MODEL, TOY_MODEL, Diffusion, ddim, denormalize
from diffusion_utils import generate, mix, pick_accelerator, predict, sample, schedule, show, starting_noise
from diffusion_course import samplers
from diffusion_course.quality import face_features, kernel_distance, labelled_faces, load_classifier
from diffusion_course.quality import paired_difference, pixel_distance
from diffusion_course.distillation import FEW_STEPS  # lesson 13 builds it''', jupyter={"source_hidden": True})

M(r'''## What an evaluation is worth

Drawing takes time in one place, the network. Each call of it is one **evaluation**, and DDIM makes one per step. Here are faces of the 64×64 model after 4, 8 and 20 evaluations, from the same eight noise samples.''')
K(r'''def show_rows(rows):
    count = len(next(iter(rows.values())))
    figure, axes = plt.subplots(len(rows), count, figsize=(count + 1.3, 1.03 * len(rows)), squeeze=False)
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images):
            axis.imshow(image.cpu().permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.2)
    plt.show()''')
K(r'''large = Diffusion.from_pretrained(LARGE_MODEL).requires_grad_(False)
noise = starting_noise(large, 8, seed=3)
show_rows({f"DDIM, {steps}": generate(large, noise=noise, steps=steps) for steps in (4, 8, 20)})''')
M(r'''Four steps leave hats and hair smeared at their edges. What is the best that can be made of eight evaluations? Two things can change: the *step* that `sample` of lesson 05 takes, and the list of times.

## A world with a known answer

How wrong is a step? On faces nobody can say, since nobody knows the true path. So let an image be a single grey pixel, one number, and let the data be three clouds of such numbers; `size` is the standard deviation of each. Then the perfect network is a formula. A noisy number belongs more or less likely to each cloud, each cloud has its own best guess, and their mean is the answer.''')
K(r'''centres = torch.tensor([-1.5, 0.0, 1.5]).double()


def perfect(noisy, time, centres=centres, size=0.3):
    noise_rate, signal_rate = schedule(time)
    variance = (signal_rate * size) ** 2 + noise_rate**2
    offsets = noisy - signal_rate * centres  # from each of the clouds, (N, 1, 1, 3)
    likely = (-offsets.square() / (2 * variance)).softmax(dim=3)
    guesses = centres + signal_rate * size**2 / variance * offsets
    image = (likely * guesses).sum(dim=3, keepdim=True)
    return (noisy - signal_rate * image) / noise_rate, image''')

M(r'''## Fresh noise at every step: DDPM

The first diffusion models drew like this (Ho et al. 2020). Guess the image, $\hat x$. *If* that guess is right, what was seen one step earlier? Bayes' rule gives a Gaussian for it, and a step of **DDPM** draws from that Gaussian:

$$z' = a'\,\hat x + \sqrt{s'^2 - \tau^2}\;\hat\varepsilon + \tau\;\text{fresh noise}, \qquad \tau = \eta\,\frac{s'}{s}\sqrt{1 - a^2/a'^2}$$

Here $a$ and $s$ are the signal rate and the noise rate now, $a'$ and $s'$ those of the next time, a hat means a guess, and $\eta$ (eta) is 1. The image gets its share $a'$. The noise gets the variance $s'^2$ that belongs to the next time, a part of it fresh and the rest from the guess. J. Song et al. (2020) saw that the sum is right for any smaller $\tau$ as well, and turned $\eta$ down to 0: no fresh noise at all. That is **DDIM**.''')
K(r'''class Ancestral:
    def __init__(self, eta=1.0, seed=None):
        pass''')
K(r'''def even(steps):
    return [(steps - step) / steps for step in range(steps + 1)]


def path(step, times, start, predictor=perfect):
    return torch.stack([start] + [noisy for noisy, _ in sample(predictor, start, times, step)])


def landscape(axis):
    times, places = torch.linspace(1, 0, 101).double().view(-1, 1, 1), torch.linspace(-3, 3, 121).double()
    noise_rate, signal_rate = schedule(times)
    deviation = ((0.3 * signal_rate) ** 2 + noise_rate**2).sqrt()
    hills = torch.distributions.Normal(signal_rate * centres, deviation).log_prob(places[:, None]).exp()
    axis.imshow(hills.mean(2).T, extent=(1, 0, -3, 3), origin="lower", aspect="auto", cmap="Blues")
    axis.set(xlabel="time", ylim=(-2.5, 2.5))


start = torch.randn(500, 1, 1, 1, generator=torch.Generator().manual_seed(1)).double()
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained", sharey=True)
for axis, (name, eta) in zip(axes, {"DDPM": 1.0, "DDIM": 0.0}.items()):
    landscape(axis)
    axis.plot(even(300), path(Ancestral(eta, seed=0), even(300), start)[:, :14].flatten(1), linewidth=0.7)
    axis.set(title=f"{name}, 300 steps")
axes[0].set_ylabel("noisy number")
plt.show()''')
M(r'''Blue is how many noisy numbers lie where; on the right end it has split into the three clouds. With steps as small as these, the jittery paths follow the **reverse SDE** of lesson 06, the smooth ones the **probability-flow ODE** (Song et al. 2021; Anderson 1982), and both lead to the same distribution.

**Predict first:** and with few steps? Let the data be a single cloud of standard deviation 0.5. Then only one thing can go wrong, the spread of what is drawn. Will it be too large or too small?''')
K(r'''one_cloud = partial(perfect, centres=torch.zeros(1).double(), size=0.5)
many = torch.randn(50_000, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
noise_rate, signal_rate = schedule(0.0)
right = float((0.25 * signal_rate**2 + noise_rate**2).sqrt())
counts = (3, 5, 10, 20, 50, 100)
spreads = {"DDPM": [], "DDIM": []}
for steps in counts:
    for name, eta in (("DDPM", 1.0), ("DDIM", 0.0)):
        ends = path(Ancestral(eta, seed=0), even(steps), many, one_cloud)[-1]
        spreads[name].append(float(ends.std()))''')
K(r'''plt.figure(figsize=(5.5, 2.8))
for name, values in spreads.items():
    plt.semilogx(counts, values, "o-", label=name)
plt.axhline(right, color="0.5", linestyle=":", label="right")
plt.gca().set(xlabel="steps", ylabel="standard deviation at time 0", xticks=counts, xticklabels=counts)
plt.minorticks_off()
plt.legend()
plt.show()
print(f"20 steps: DDPM {spreads['DDPM'][3]:.3f}, DDIM {spreads['DDIM'][3]:.3f}; right is {right:.3f}")
assert all(ddpm < ddim_ < right for ddpm, ddim_ in zip(spreads["DDPM"], spreads["DDIM"]))''')
M(r'''Too small, and DDPM is off by more: it takes the guess for certain, so it leaves out the spread of all the images that might have been meant. (Bao et al. 2022 work out how much to add.) With few steps, fresh noise costs; with many it can help, because it washes out earlier errors (Karras et al. 2022).

On faces, the dial $\eta$ shows something else. **Predict first:** eight times the *same* starting noise; what do $\eta=0$, $0.5$ and $1$ draw?''')
K(r'''same = noise[:1].expand(8, -1, -1, -1)
rows = {f"η = {eta}": generate(large, noise=same, sampler=Ancestral(eta, seed=0)) for eta in (0.0, 0.5, 1.0)}
show_rows(rows)
differences = [float(images.std(dim=0).mean()) for images in rows.values()]
assert differences[0] < 0.01 < differences[1] < differences[2]''')
M(r'''With $\eta = 0$ the start decides everything, which the walks of lesson [09](09_controlling_generation.ipynb) live on. With fresh noise it decides less and less. For few steps, we leave the dice and follow the ODE.

## A step is a turn

Since $a^2 + s^2 = 1$, the two rates are the cosine and the sine of an angle $\alpha$. It grows with time, from 18 degrees to almost 90. As it grows, $z = \cos\alpha\;x + \sin\alpha\;\varepsilon$ moves with the **velocity** $v = \cos\alpha\;\varepsilon - \sin\alpha\;x$.''')
K(r'''def angle(time):
    return None


def velocity(noise, image, time):
    return None''')
M(r'''**Predict first:** DDIM from one angle to another, $\delta$ apart, can be written with nothing but $z$, $v$ and $\delta$. How? Think of the hand of a clock.''')
K(r'''time, next_time = torch.full((500, 1, 1, 1), 0.8), torch.full((500, 1, 1, 1), 0.5)
predicted_noise, predicted_image = perfect(start, time)
turn = angle(next_time) - angle(time)
turned = turn.cos() * start + turn.sin() * velocity(predicted_noise, predicted_image, time)
assert torch.allclose(turned, ddim(perfect, start, time, next_time)[0], atol=1e-6)
degrees = angle(torch.linspace(0, 1, 11)).rad2deg()
print("angles in degrees:", degrees.round().int().tolist())
assert torch.allclose(degrees.diff(), degrees.diff().mean(), atol=1e-3)  # equal turns for equal times''')
M(r'''A turn: $z' = \cos\delta\; z + \sin\delta\; \hat v$. If the guesses stayed the same all the way, one single turn would do. They do not: the less noise there is, the more the network sees. So what we follow is a differential equation, $dz/d\alpha = \hat v(z, \alpha)$. A step takes the velocity at its start for that of the whole way, and that is its error.

In grey, ten paths in 2,000 steps; in colour, the same in four. **Predict first:** will the coloured ends lie farther out than the grey ones, or not far enough?''')
K(r'''fine, coarse = (path(ddim, even(steps), start) for steps in (2000, 4))
chosen = start.flatten().argsort()[25::50]
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
landscape(axis)
axis.plot(even(2000), fine[:, chosen].flatten(1), color="0.4", linewidth=2.5)
axis.plot(even(4), coarse[:, chosen].flatten(1), "o-", markersize=4, linewidth=1)
axis.set(ylabel="noisy number")
plt.show()''')
K(r'''inside = (coarse[-1].abs() < fine[-1].abs()).double().mean()
print(f"with four steps {inside:.0%} of the points end nearer to the middle")
assert inside > 0.9''')
M(r'''Not far enough. At the start the best guess is the middle of everything, and a long step holds on to it for too long. How far is the image that comes back, on average, from the one that a thousand steps lead to?''')
K(r'''goal = perfect(path(samplers.heun, even(1000), start)[-1], torch.zeros(500, 1, 1, 1))[1]


def distance(image):
    return float((image - goal).abs().mean())


def error(step, times):
    *_, (_, image) = sample(perfect, start, times, step)
    return distance(image)


evaluations = (4, 6, 8, 10, 20, 40, 80)
errors = {"DDIM": [error(ddim, even(count)) for count in evaluations]}
print(f"error of DDIM with 40 evaluations {errors['DDIM'][5]:.3f}, with 80 {errors['DDIM'][6]:.3f}")
assert abs(errors["DDIM"][5] / errors["DDIM"][6] - 2) < 0.2''')
M(r'''Twice as many steps, half of the error: DDIM is of **order one**.

## Look ahead: Heun

The error comes from taking the direction at the start for that of the whole step. So take the step, ask again where it led, and then do it once more from the start with the *mean* of both directions. That is Heun's method, from 1900. On an arc one thing needs care: a direction turns along with the hand. To compare the second velocity with the first, it has to be carried back, as $\cos\delta\; v' + \sin\delta\; z'$.''')
K(r'''def heun(predict, noisy, time, next_time):
    pass''')
M(r'''Two evaluations a step. Karras et al. (2022) brought it to diffusion, along another axis: exercise 1.

## Remember: DPM-Solver++

Can the second direction be had for free? Divide the noisy image by its noise rate, and write $\lambda = \log(a/s)$:

$$\frac{z}{s} = \frac{a}{s}\,\hat x + \hat\varepsilon = e^{\lambda}\,\hat x + \hat\varepsilon$$

A small step of the ODE changes the rates and keeps the two guesses. So on the right only $e^\lambda$ changes, and its derivative is itself:

$$\frac{d(z/s)}{d\lambda} = e^\lambda\,\hat x$$

The guessed noise has dropped out. Let us not take it on trust: along a fine path, the slope of $z/s$ should be $e^\lambda \hat x$.''')
K(r'''def log_ratio(time):
    pass''')
K(r'''moments = torch.tensor(even(800)).double()
noisy = path(samplers.heun, even(800), start).flatten(1)
guesses = perfect(noisy.reshape(-1, 1, 1, 1), moments.repeat_interleave(500).view(-1, 1, 1, 1))[1].view(801, 500)
ratios = log_ratio(moments)
scaled = noisy / schedule(moments)[0][:, None]
slopes = torch.gradient(scaled, spacing=(ratios,), dim=0)[0]
expected = ratios.exp()[:, None] * guesses
difference = (slopes - expected)[1:-1].abs().max()
print(f"largest difference {difference:.4f}, largest slope {expected.abs().max():.1f}")
assert difference < 0.02''')
M(r'''So $z'/s' = z/s + \int e^\lambda\,\hat x\,d\lambda$, and all that we do not know is how the guess moves on the way. DDIM holds the guess from the step's beginning. But one step ago there was another guess. If it goes on moving like that, then in the middle of the next step it will be about

$$\hat x_\text{middle} = \hat x + \frac{h}{2\,h_\text{before}}\,(\hat x - \hat x_\text{before})$$

where $h$ is the step's length in $\lambda$. Here is the guess along one path, and what both methods take for it.''')
K(r'''knots = slice(None, None, 100)  # eight steps
point = int((guesses[-1] - guesses[400]).argmax())
held = guesses[knots, point]
lengths = ratios[knots].diff()
carried = held[:-1].clone()
carried[1:] += lengths[1:] / lengths[:-1] / 2 * held[:-1].diff()
plt.figure(figsize=(5.5, 3))
plt.plot(ratios, guesses[:, point], color="0.6", linewidth=3, label="the guess on the way")
plt.stairs(held[:-1], ratios[knots], baseline=None, color="C0", label="DDIM")
plt.stairs(carried, ratios[knots], baseline=None, color="C1", label="with memory")
plt.gca().set(xlabel="λ", ylabel="guess")
plt.legend()
plt.show()
middles = np.interp((ratios[knots][1:] + ratios[knots][:-1]) / 2, ratios, guesses[:, point])
off = [float(np.abs(middles - taken.numpy())[1:].mean()) for taken in (held[:-1], carried)]
print(f"in the middle of a step, off by {off[0]:.3f} and {off[1]:.3f}")
assert off[1] < off[0] / 2''')
M(r'''DDIM's stairs always lag behind; with memory they cut through the curve. This is **DPM-Solver++ 2M** (Lu et al. 2022): of order two, and *multistep*, since it remembers. A step with a memory is an object; `sample` copies it, so that each drawing begins without one.''')
K(r'''class DPMSolver:
    pass''')
M(r'''## The last look belongs at time 0

`DPMSolver` asks where a step *ends*, and once more before the first. So eight evaluations make seven steps, and the last looks at the noisy image of time 0. DDIM asks where a step begins. Done like that, 2M would make eight steps, and return its last guess carried half a step ahead. **Predict first:** which is nearer to the goal?''')
K(r'''def asked_early(count):
    times = even(count)
    (_, image_before), (_, image) = list(sample(perfect, start, times[:-1], DPMSolver()))[-2:]
    before_last, last, end = (float(log_ratio(now)) for now in times[-3:])
    return distance(image + (end - last) / (last - before_last) / 2 * (image - image_before))


errors["Heun"] = [error(heun, even(count // 2)) for count in evaluations]
errors["2M, last look early"] = [asked_early(count) for count in evaluations]
errors["2M"] = [error(DPMSolver(), even(count - 1)) for count in evaluations]''')
K(r'''plt.figure(figsize=(5.5, 3.2))
for name, values in errors.items():
    plt.loglog(evaluations, values, "o-", label=name)
plt.gca().set(xlabel="evaluations", ylabel="distance to the goal", xticks=evaluations, xticklabels=evaluations)
plt.minorticks_off()
plt.grid(alpha=0.3)
plt.legend()
plt.show()
order = {name: math.log2(values[-2] / values[-1]) for name, values in errors.items()}
print({name: round(value, 1) for name, value in order.items()})
assert abs(order["2M, last look early"] - 1) < 0.3 and errors["2M"][3] < errors["2M, last look early"][3] / 2
assert abs(order["Heun"] - 2) < 0.3 and abs(order["2M"] - 2) < 0.3
assert errors["2M"][3] < 1.5 * errors["DDIM"][6]  # 10 evaluations against 80''')
M(r'''A guess that is carried ahead is only of order one, however good the path. With its last look at time 0, 2M is of **order two**: twice as many evaluations leave about a quarter of the error, and ten of them come about as near as eighty of DDIM.

## Where to put the steps

So far all turns were equal. Many samplers count in $\sigma = s/a$, the noise per unit of image, which falls from 50 to 0.33 in our schedule. Karras et al. take times at which $\sigma^{1/\rho}$ is even. The larger $\rho$ (rho), the more steps lie where there is little noise; in the limit they are even in $\log\sigma = -\lambda$.''')
K(r'''def time_of(sigma):
    pass''')
K(r'''def karras_times(steps, rho=7.0, largest=None):
    pass''')
K(r'''log = partial(karras_times, rho=math.inf)
grids = {"even in time": even, "even in log σ": log}
grids |= {"Karras, ρ = 7": karras_times, "Karras, ρ = 2": partial(karras_times, rho=2)}
plt.figure(figsize=(7, 1.8))
for row, times_for in enumerate(grids.values()):
    plt.plot(times_for(10), [row] * 11, "o-", markersize=4)
plt.yticks(range(len(grids)), grids)
plt.gca().set(xlabel="time", xlim=(1.03, -0.03))
plt.gca().invert_yaxis()
plt.show()''')
K(r'''print(f"{'error with 10 evaluations':26}", *(f"{name:>15}" for name in grids))
for name, step, steps in (("DDIM", ddim, 10), ("Heun", heun, 5), ("2M", DPMSolver(), 9)):
    values = [error(step, times_for(steps)) for times_for in grids.values()]
    print(f"{name:26}", *(f"{value:15.3f}" for value in values))
    assert min(values) == values[0]''')
M(r'''On points, equal turns are the best of the four for each method.

## Now the network

Back to faces, of 32×32, and to networks, which are not perfect. A step goes wrong where the guess changes under way. So we draw in 40 equal turns, and note how far the guess moves in each, as a share of all its moving, for a network that predicts noise and for one that predicts $v$. **Predict first:** where will most of the moving happen, near pure noise, in the middle, or near the end?''')
K(r'''diffusion = Diffusion.from_pretrained(TOY_MODEL).requires_grad_(False)
teacher = Diffusion.from_pretrained(FEW_STEPS[20]).requires_grad_(False)  # predicts v, see lesson 13
face_noise = starting_noise(diffusion, 160, seed=1)


def moving(predictor, noisy):
    guesses = torch.stack([image for _, image in sample(predictor, noisy, even(40))])
    moved = guesses.diff(dim=0).flatten(2).norm(dim=2).mean(dim=1)
    return (moved / moved.sum()).cpu()


moves = {"points": moving(perfect, start)}
for name, model in {"faces, predicting noise": diffusion, "faces, predicting v": teacher}.items():
    moves[name] = moving(partial(predict, model.eval()), face_noise[:40])''')
K(r'''plt.figure(figsize=(6, 2.6))
for name, moved in moves.items():
    plt.plot(even(40)[1:-1], moved, "o-", markersize=3, label=name)
plt.gca().set(xlabel="time", ylabel="share of all moving", xlim=(1.02, -0.02))
plt.legend()
plt.show()
early = {name: float(moved[:3].sum()) for name, moved in moves.items()}
print({name: f"{share:.0%}" for name, share in early.items()}, "from the first guess to the fourth")
assert early["points"] < 0.15 < early["faces, predicting v"] < early["faces, predicting noise"]
assert [round(math.tan(angle(torch.tensor(now)))) for now in even(40)[:3]] == [50, 20, 12]''')
M(r'''The network that predicts noise moves most in its very first turns. Mostly that is no news of the face: near time 1 an error of its noise counts fifty times in the image, a turn later twenty times, then twelve. The one that predicts $v$ has no such start (lesson [13](13_what_to_predict.ipynb) says why), and yet its guess, too, moves more at the beginning than that for points: what 1,024 pixels have in common shows through noise that hides each of them.

So small steps at the start should pay. But there are *two* questions, and they are not the same:

1. **How near** do we come to where very many steps would lead?
2. **How good** are the faces? That is the kernel distance of lesson 07.''')
K(r'''classifier = load_classifier()
reference = face_features(classifier, labelled_faces("test")[0])


def judge(sampler, times, model=diffusion, goal=None):
    images = generate(model, noise=face_noise, steps=times, sampler=sampler)
    features = face_features(classifier, images)
    near = math.nan if goal is None else float((images - goal).abs().mean())
    return near, kernel_distance(features, reference), features, images''')
K(r'''goal_images = judge(DPMSolver(), log(50))[3]
counts = (4, 6, 8, 12, 20)
judged = {
    "DDPM": [judge(Ancestral(seed=0), even(count)) for count in counts],
    "DDIM": [judge(ddim, even(count), goal=goal_images) for count in counts],
    "2M": [judge(DPMSolver(), even(count - 1), goal=goal_images) for count in counts],
    "DDIM, log σ": [judge(ddim, log(count), goal=goal_images) for count in counts],
    "Heun, log σ": [judge(heun, log(count // 2), goal=goal_images) for count in counts],
    "2M, log σ": [judge(DPMSolver(), log(count - 1), goal=goal_images) for count in counts],
}''')
M(r'''All of these faces began in the same noise, so kernel distances are compared pairwise, with `paired_difference` of lesson 07.''')
K(r'''figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for name, values in judged.items():
    style = {"linestyle": "-" if "log" in name else ":", "marker": "o", "markersize": 4}
    left.loglog(counts, [value[0] for value in values], label=name, **style)
    right.plot(counts, [value[1] for value in values], **style)
for axis, label in ((left, "mean difference from the goal"), (right, "kernel distance")):
    axis.set(xlabel="evaluations", ylabel=label, xticks=counts, xticklabels=counts)
    axis.minorticks_off()
left.legend(fontsize=8)
plt.show()''', tags=["cover"])
K(r'''eight, twenty = judged["2M, log σ"][2], judged["DDIM"][4]
gain, bar = paired_difference(twenty[2], eight[2], reference)
print(f"2M with 8 evaluations: {eight[1]:.2f}, DDIM with 20: {twenty[1]:.2f}; lead {gain:.2f} ± {bar:.2f}")
print(f"difference from the goal {eight[0]:.4f} and {twenty[0]:.4f}")
late, bar_late = paired_difference(eight[2], judged["2M, log σ"][4][2], reference)
print(f"2M with 20 leads 2M with 8 by {late:.2f} ± {bar_late:.2f}")
assert gain > 2 * bar and eight[0] < twenty[0] and abs(late) < 0.1''')
M(r'''Dotted lines are for even times, solid ones for times that are even in $\\log\\sigma$. With small steps at the start *and* with memory, eight evaluations come nearer to the goal than twenty of DDIM, and the faces are better. That is what we came for. But in that row the faces hardly change from four evaluations to twenty. What distance is left there is not the solver's fault: it is how far the network's own goal lies from real faces.

It can even be the other way round. Here is the model that lesson 04's loop leaves after 16 epochs, with eight evaluations of 2M. **Predict first:** which times come nearer to this model's goal, and which draw the better faces?''')
K(r'''short = Diffusion.from_pretrained(SHORT_MODEL).requires_grad_(False)
short_goal = judge(DPMSolver(), log(50), short)[3]
short_rows = {"even": judge(DPMSolver(), even(7), short, short_goal)}
short_rows["log σ"] = judge(DPMSolver(), log(7), short, short_goal)
for name, (near, kernel, *_) in short_rows.items():
    print(f"2M, {name:6} difference from its goal {near:.3f}, kernel distance {kernel:.2f}")
gain, bar = paired_difference(short_rows["log σ"][2], short_rows["even"][2], reference)
print(f"even times lead by {gain:.2f} ± {bar:.2f}")
assert short_rows["log σ"][0] < short_rows["even"][0] / 3 and gain > 0''')
M(r'''Times that are even in $\log\sigma$ come much nearer to its goal, and its faces score worse, if by little: where the path of this network leads in the end is a worse place than where a long first step happens to land. So no sampler is good in itself, only for a network.

## Where the noise begins

One thing we have taken for granted: at time 1 we begin with pure noise. But `schedule` ends at a signal rate of 0.02. In training, a fiftieth of the image was still there; in a drawing it is not. For a single pixel a fiftieth is nothing. But a face of 64×64 has 4,096 of them, and their mean has only a sixty-fourth of the noise.

**Predict first:** faces are mixed with noise, at time 1. How much does the mean red of a noisy image know of the mean red of its face? Everything would be a correlation of 1, nothing one of 0. On the right there is more noise still, a $\sigma$ of 200 instead of 50.''')
K(r'''real = labelled_faces("test", 64)[0]
normalised = large.norm(real)
static = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
red = normalised[:, 0].mean((1, 2))
known = {}
figure, axes = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained", sharey=True)
for axis, sigma in zip(axes, (50, samplers.PURE_NOISE)):
    seen = mix(normalised, static, time_of(sigma))[:, 0].mean((1, 2))
    known[sigma] = float(torch.stack([red, seen]).corrcoef()[0, 1])
    axis.plot(red, seen, ".", markersize=2)
    axis.set(title=f"σ = {sigma:.0f}: correlation {known[sigma]:.2f}", xlabel="mean red of the face")
axes[0].set_ylabel("of the noisy image")
plt.show()
assert known[50] > 0.4 > 0.25 > abs(known[samplers.PURE_NOISE])''')
M(r'''In what looks like snow, a good part of the answer can be read. So in training a network learns to take the mean colour of a noisy image as a hint. When it draws from pure noise, it takes the chance colour of the noise as one, and that varies less than the mean colour of noisy faces did. How much less? Say mean colours are Gaussian with standard deviation 0.5, and the noise of 4,096 pixels leaves a sixty-fourth in the mean. The ODE keeps proportions, so the drawn colours lack what the start lacks.''')
K(r'''rates = torch.linspace(0, 0.1, 101)
spread = (1 / 64) / ((0.5 * rates) ** 2 + (1 - rates**2) / 64**2).sqrt()
plt.figure(figsize=(5.5, 2.6))
plt.plot(rates, spread)
for rate, name in ((0.005, "σ = 200"), (0.02, "time 1"), (0.068, "Stable Diffusion 1")):
    plt.plot(rate, np.interp(rate, rates, spread), "o", label=f"{name}: {np.interp(rate, rates, spread):.2f}")
plt.gca().set(xlabel="signal rate where a drawing begins", ylabel="spread of mean colours", ylim=(0, 1.05))
plt.legend()
plt.show()
assert 0.8 < spread[20] < 0.9 and spread[68] < 0.5''')
M(r'''Real faces would be 1. Our schedule loses a sixth at 64×64. That of Stable Diffusion 1 ends at a signal rate of 0.068 and loses more than a half: its images are of middle brightness, whatever the prompt. For a long time people helped themselves with an offset in the noise (Guttenberg 2023), until Lin et al. (2023) found the cause. (Its latents have 64×64 numbers a channel, too; the 0.5 is our assumption.)

Their remedy is to let both, training and drawing, begin where nothing is left of the image. The formula of `schedule` goes on beyond 1; at time 1.012 the angle is 89.7 degrees, and $\sigma$ is 200. (A network that predicts noise has nothing to say there, since its answer is what it sees. So the large network predicts $v$, and in its training times went up to there.) Here is what it draws with each beginning, from the same noise.''')
K(r'''assert abs(time_of(200) - 1.012) < 5e-4 and abs(math.degrees(math.atan(200)) - 89.7) < 0.05
from_200 = partial(log, largest=samplers.PURE_NOISE)
large_noise = starting_noise(large, 64, seed=1)
fast = large.to(memory_format=torch.channels_last)


def draw(step, times):
    with pick_accelerator().autocast():  # in 16 bits, where the machine has them
        return generate(fast, noise=large_noise, steps=times, sampler=step).cpu()


drawn = {"2M from time 1": draw(DPMSolver(), log(19))}
drawn["2M from σ = 200"] = draw(DPMSolver(), from_200(19))
show_rows({name: images[:8] for name, images in drawn.items()})''')
M(r'''The eye finds little: a hat here, hair there. The numbers below find more.

## What the plain call costs

A model's `config.json` holds the times that a plain `generate(large)` takes: these, from $\sigma=200$ on. The step it takes is DDIM. What is lost by it?''')
K(r'''drawn["plain call: DDIM from σ = 200"] = draw(ddim, from_200(20))
drawn["DDIM, even, from time 1"] = draw(ddim, even(20))
features = {name: face_features(classifier, images) for name, images in drawn.items()}
best = "2M from σ = 200"
for name, images in drawn.items():
    behind, bar = paired_difference(features[name], features[best], reference)
    kernel = kernel_distance(features[name], reference)
    print(f"{name:30} pixel distance {pixel_distance(images, real):.2f}, kernel distance {kernel:.2f}, behind {behind:.2f} ± {bar:.2f}")
    assert name == best or behind > 0''')
M(r'''So the plain call loses something against 2M with as many evaluations, but less than a wrong beginning would. `generate(large, steps=from_200(19), sampler=DPMSolver())` is the better call. (64 faces, one model; the bars are those of differences.)''')
M(r'''## Try it''')
K(r'''choices = {"DDIM": ddim, "DDPM": Ancestral(1.0, seed=0), "Heun (twice as many)": heun}
choices |= {"DPM-Solver++ 2M (one more)": DPMSolver()}
places = grids | {"even in log σ, from 200": from_200}


def redraw(steps, sampler, times):
    print("drawing …")
    images = generate(large, noise=noise, steps=places[times](steps), sampler=choices[sampler])
    clear_output(wait=True)
    show(images, n=8)


interact(
    redraw,
    steps=IntSlider(7, 1, 30, description="steps", continuous_update=False),
    sampler=Dropdown(options=list(choices), value="DPM-Solver++ 2M (one more)", description="sampler"),
    times=Dropdown(options=list(places), value="even in log σ, from 200", description="times"),
);''')
M(r'''Without a kernel: 2M with 3, 5 and 8 evaluations, and DDIM with 8 and 20.''')
K(r'''rows = {f"2M, {count}": generate(large, noise=noise, steps=from_200(count - 1), sampler=DPMSolver()) for count in (3, 5, 8)}
rows |= {f"DDIM, {count}": generate(large, noise=noise, steps=from_200(count)) for count in (8, 20)}
show_rows(rows)''')
M(r'''## On your own

**Exercise 1.** Karras et al. step along $\sigma$ instead of the angle. There, $z/a = \hat x + \sigma\,\hat\varepsilon$ moves with the guessed noise as its velocity: $d(z/a)/d\sigma = \hat\varepsilon$. Write Heun's method for it, `heun_along_sigma(predict, noisy, time, next_time)`. It returns the next noisy image and its second guess. (Their algorithm 1 is this, and one more evaluation at the end.)''')
K(r'''def heun_along_sigma(predict, noisy, time, next_time):
    return ...''')
K(r'''if heun_along_sigma(perfect, start, torch.ones(500, 1, 1, 1), torch.full((500, 1, 1, 1), 0.9)) is ...:
    print("Exercise 1 is waiting for you.")
else:
    mine = [error(heun_along_sigma, even(count // 2)) for count in evaluations]
    its_order = math.log2(mine[-2] / mine[-1])
    assert 1.5 < its_order < 2.5, f"its order is {its_order:.2f}, not about two: do you take the mean of both noises?"
    print(f"error with 10 evaluations: {mine[3]:.3f}; along the arc {errors['Heun'][3]:.3f}")
    print("Exercise 1: correct.")''')
M(r'''<details><summary>Solution</summary>

```python
def heun_along_sigma(predict, noisy, time, next_time):
    noise, image = predict(noisy, time)
    next_noise, next_image = predict(mix(image, noise, next_time), next_time)
    noise_rate, signal_rate = schedule(time)
    next_noise_rate, next_signal_rate = schedule(next_time)
    change = next_noise_rate / next_signal_rate - noise_rate / signal_rate
    scaled = noisy / signal_rate + change * (noise + next_noise) / 2
    return next_signal_rate * scaled, next_image
```

In few even steps it fails: the first step goes from a $\sigma$ of 50 to one of 4 or less, and the noise that is guessed at its end gets half of the weight. With their times, and more steps, it does well.
</details>''')
M(r'''**Exercise 2.** Is memory worth it with three evaluations? With two? Find the smallest number of evaluations at which the error of 2M on the points is less than a third of DDIM's, and call it `smallest`.''')
K(r'''smallest = ...''')
K(r'''if smallest is ...:
    print("Exercise 2 is waiting for you.")
else:
    assert smallest > 1, "with one evaluation there is no step"
    ratio = [error(DPMSolver(), even(k - 1)) / error(ddim, even(k)) for k in (max(2, smallest - 1), smallest)]
    assert ratio[1] < 1 / 3 and (smallest == 2 or ratio[0] >= 1 / 3), f"the ratios are {ratio}"
    print("Exercise 2: correct.")''')
M(r'''<details><summary>Solution</summary>

```python
ratios = {k: error(DPMSolver(), even(k - 1)) / error(ddim, even(k)) for k in range(2, 11)}
smallest = min(k for k, ratio in ratios.items() if ratio < 1 / 3)
```
</details>''')
M(r'''**Exercise 3.** One number. When it draws, a network meets noisy images that it made itself, and they are not quite like those of its training (Ning et al. 2023). Wrap `predict`: in `scaled(factor)` the guessed noise is divided by `factor`, and the image follows from it as in lesson 05. Draw the faces of `face_noise` with DDIM in 20 even steps and a factor of 1.01. Is the kernel distance larger or smaller than without? Put it into `kernel_scaled`.''')
K(r'''def scaled(factor):
    return ...


kernel_scaled = ...''')
K(r'''if kernel_scaled is ...:
    print("Exercise 3 is waiting for you.")
else:
    middle = torch.full((8, 1, 1, 1), 0.5)
    noise_2, image_2 = scaled(2.0)(face_noise[:8], middle)
    once = predict(diffusion, face_noise[:8], middle)[0]
    assert torch.allclose(2 * noise_2, once, atol=1e-3), "a factor of 2 should halve the noise"
    assert torch.allclose(mix(image_2, noise_2, middle), face_noise[:8], atol=1e-3), "image and noise do not fit"
    *_, (_, check) = sample(scaled(1.01), face_noise, even(20))
    check = kernel_distance(face_features(classifier, denormalize(diffusion, check)), reference)
    assert abs(kernel_scaled - check) < 0.05, f"it should be {check:.2f}: 20 steps, all of the noise, in colours?"
    print(f"kernel distance {kernel_scaled:.2f} with a factor of 1.01, {twenty[1]:.2f} without")
    print("Exercise 3: correct.")''')
M(r'''<details><summary>Solution</summary>

```python
def scaled(factor):
    def predict_scaled(noisy, time):
        noise_rate, signal_rate = schedule(time)
        guessed = predict(diffusion, noisy, time)[0] / factor
        return guessed, (noisy - noise_rate * guessed) / signal_rate

    return predict_scaled


*_, (_, image) = sample(scaled(1.01), face_noise, even(20))
kernel_scaled = kernel_distance(face_features(classifier, denormalize(diffusion, image)), reference)
```
</details>''')
M(r'''## Where to read on

- Ho et al. (2020), [Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239), and J. Song et al. (2020), [Denoising Diffusion Implicit Models](https://arxiv.org/abs/2010.02502): the first two samplers, and the dial between them (equation 16).
- Y. Song et al. (2021), [Score-Based Generative Modeling through Stochastic Differential Equations](https://arxiv.org/abs/2011.13456): SDE and ODE; Anderson (1982) ran an SDE backwards first. Bao et al. (2022), [Analytic-DPM](https://arxiv.org/abs/2201.06503): the spread that DDPM leaves out.
- Karras et al. (2022), [Elucidating the Design Space of Diffusion-Based Generative Models](https://arxiv.org/abs/2206.00364): Heun, $\rho$, and a clear view of what is a choice and what is not.
- Lu et al. (2022), [DPM-Solver++](https://arxiv.org/abs/2211.01095): memory instead of evaluations. Salimans & Ho (2022), [Progressive Distillation](https://arxiv.org/abs/2202.00512), appendix D: the angle, and DDIM as a turn.
- Lin et al. (2023), [Common Diffusion Noise Schedules and Sample Steps are Flawed](https://arxiv.org/abs/2305.08891): where the noise begins. Guttenberg (2023), [Diffusion with Offset Noise](https://www.crosslabs.org/blog/diffusion-with-offset-noise): the help before.
- Ning et al. (2023), [Elucidating the Exposure Bias in Diffusion Models](https://arxiv.org/abs/2308.15321): the one number of exercise 3.

[← 11 · Let it run, and let it crash](11_long_training_runs.ipynb) · [13 · What should the network answer? →](13_what_to_predict.ipynb)''')

nb = dict(cells=C, metadata={k: v for k, v in old["metadata"].items() if k != "widgets"}, nbformat=4, nbformat_minor=5)
seen = set()
for i, c in enumerate(C):
    if c["id"] in seen: c["id"] = c["id"][:6] + f"{i:02}"
    seen.add(c["id"])
save(nb, P)
