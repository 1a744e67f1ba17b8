import sys
sys.path.insert(0, "/root/note")
from nbtool import code, md, load, save
P = "/work/main/notebooks/13_what_to_predict.ipynb"
old = load(P)
first = next(c for c in old["cells"] if c["cell_type"] == "code")
C = []
def M(s): C.append(md(s))
def K(s, **meta): C.append(code(s, **meta))

M(r'''# 13 · What should the network answer?

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/diffusion-course/blob/v1/notebooks/13_what_to_predict.ipynb)

**What you'll do:** ask one network four different questions, and look at what each of them is good at.

**What you'll learn**
- four questions that a network can be asked, and why an answer to one is an answer to all;
- why the question still matters: each weighs its mistakes in its own way;
- that flow matching is $v$-prediction with another clock, and EDM's preconditioning $v$-prediction with another sign;
- what absolute and squared errors draw.

**What you'll need:** lessons [04](04_training.ipynb), [06](06_why_it_works.ipynb) and [12](12_better_samplers.ipynb), and the distances of lesson [07](07_measuring_quality.ipynb).

**Time:** about three minutes on two CPU cores; a GPU is not needed. Reading: 25 minutes.''')
C.append(first)
K(r'''import math
import re
from functools import partial

import torch
from matplotlib import pyplot as plt
from torch import nn

from diffusion_utils import CPU_RECIPE, CPU_SHAPE, SHORT_MODEL, Diffusion, DiffusionConfig, Training, ddim
from diffusion_utils import generate, get_data, get_loader, mix, predict, schedule, show
from diffusion_course.objectives import even_times  # lesson 11 builds it
from diffusion_course.quality import face_features, kernel_distance, labelled_faces, load_classifier
from diffusion_course.quality import pixel_distance, published
from diffusion_course.samplers import angle, time_of, velocity''', jupyter={"source_hidden": True})

M(r'''## Four questions

In the game of lesson 04 the network sees a noisy image $z = a\,x + s\,\varepsilon$, with the signal rate $a$ and the noise rate $s$, and is asked for the noise $\varepsilon$. Why the noise? It could be asked for

- the **noise** $\varepsilon$ (Ho et al. 2020);
- the **image** $x$;
- the **velocity** $v = a\,\varepsilon - s\,x$, along which lesson 12 turned (Salimans & Ho 2022);
- the **flow** $u = \varepsilon - x$, the straight way from the image to the noise (Lipman et al. 2022, Liu et al. 2022, Albergo & Vanden-Eijnden 2022).''')
K(r'''def targets(noise, image, time):
    pass''')
M(r'''Here is what the network sees of one face at three times, and the four right answers. **Predict first:** which of them change from left to right?''')
K(r'''faces = torch.from_numpy(get_data(size=32, limit=3000))
mean, deviation = faces.mean((0, 2, 3), keepdim=True), faces.std((0, 2, 3), keepdim=True)
face = ((faces[5:6] - mean) / deviation).expand(3, -1, -1, -1)
noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
time = torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1)
noisy, right = mix(face, noise, time), targets(noise, face, time)''')
K(r'''figure, axes = plt.subplots(3, 5, figsize=(6, 3.9), layout="constrained")
for column, (name, images) in zip(axes.T, {"seen": noisy, **right}.items()):
    column[0].set_title(name)
    for axis, image in zip(column, images):
        axis.imshow((image / 5 + 0.5).clip(0, 1).permute(1, 2, 0))
        axis.set(xticks=[], yticks=[])
for axis, label in zip(axes[:, 0], ("time 0.1", "0.5", "0.9")):
    axis.set_ylabel(label, rotation=0, ha="right")
plt.show()
assert all(torch.equal(right[name][0], right[name][2]) for name in ("noise", "image", "flow"))''')
M(r'''Only the velocity does. It is mostly noise where there is little noise to see, and mostly image (as a negative) where there is much: it asks for what is hidden.

Whoever knows one answer knows the others, since $z$ is known, too: two unknowns, two equations. With $a^2+s^2=1$ they are quickly solved. A hat means a guess, and the last column is explained below.

| asked for | noise | image | how an error of the image counts |
|---|---|---|---|
| noise | $\hat\varepsilon$ | $(z - s\,\hat\varepsilon) / a$ | $\text{SNR} = a^2/s^2$ |
| image | $(z - a\,\hat x) / s$ | $\hat x$ | $1$ |
| velocity | $s\,z + a\,\hat v$ | $a\,z - s\,\hat v$ | $1 + \text{SNR}$ |
| flow | $(z + a\,\hat u) / (a + s)$ | $(z - s\,\hat u) / (a + s)$ | $(1 + \sqrt{\text{SNR}})^2$ |''')
K(r'''def image_from(predicts, output, noisy, time):
    noise_rate, signal_rate = schedule(time)
    if predicts == "noise":
        return (noisy - noise_rate * output) / signal_rate
    if predicts == "v":
        return signal_rate * noisy - noise_rate * output
    if predicts == "flow":
        return (noisy - noise_rate * output) / (signal_rate + noise_rate)
    return output''')
K(r'''for name, output in right.items():
    assert torch.allclose(image_from(name, output, noisy, time), face, atol=1e-4)
    diffusion = Diffusion(DiffusionConfig(**CPU_SHAPE, predicts=name))
    diffusion.network = lambda noisy, time, output=output: output  # a network that knows
    assert torch.allclose(diffusion.predict_noise(noisy, time), noise, atol=1e-4)
print("image and noise follow from each of", list(right))''')
M(r'''So a network that is asked any of the four can draw with all that we have. `Diffusion` has the table built in: its config says what the network `predicts`, and `predict_noise`, which all samplers call, turns that into noise.

## What a mistake costs

If all answers say the same, why does it matter which one is asked for? Because no network answers without mistakes. Say that its answer is off by 1. How far off is the *image* that follows from it? **Predict first:** for the noise, at time 1, where the signal rate is 0.02?''')
K(r'''def cost(predicts, time):
    zero = torch.zeros_like(time)
    return (image_from(predicts, zero + 1, zero, time) - image_from(predicts, zero, zero, time)).abs()


line = torch.linspace(0, 1, 1001).double()
noise_rate, signal_rate = schedule(line)
snr = (signal_rate / noise_rate) ** 2
figure, (left, right_) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name in right:
    left.semilogy(line, cost(name, line), label=name)
    right_.loglog(snr, 1 / cost(name, line) ** 2)
left.set(xlabel="time", ylabel="error of the image")
left.legend()
right_.set(xlabel="signal-to-noise ratio", ylabel="how an error of the image counts")
plt.show()
assert 49 < cost("noise", line)[-1] < 51 and max(cost(name, line).max() for name in ("v", "flow")) < 1.01''')
M(r'''Fifty! Near pure noise the question for the noise is too easy: what you see *is* the noise, nearly. A small mistake in the answer means a huge one in the image, and yet it is there that a drawing decides about background, hat and long hair. For the other three, a mistake of 1 costs at most 1.

The loss sees the other side. An image that is off by $d$ comes from an answer that is off by $d/c$, with the cost $c$ from the left plot, so a squared error counts it as $d^2/c^2$. That is the right plot, and the last column of the table, in terms of the **signal-to-noise ratio**, SNR. An image that is off by 0.1 at time 1 counts 0.01 for the velocity and 0.000004 for the noise.''')
K(r'''weights = {"noise": snr, "image": 1 + 0 * snr, "v": 1 + snr, "flow": (1 + snr.sqrt()) ** 2}
for name, weight in weights.items():
    assert torch.allclose(1 / cost(name, line) ** 2, weight)
print({name: f"{0.1**2 * float(weight[-1]):.6f}" for name, weight in weights.items()}, "at time 1")
assert abs(0.01 * weights["v"][-1] - 0.01) < 1e-4 and abs(0.01 * weights["noise"][-1] - 4e-6) < 1e-7''')
M(r'''## Flow is v with another clock

**Flow matching**, or *rectified flow*, forgets schedules. Draw a straight line from an image to a noise sample; a share $t$ of the way along it lies $(1 - t)\,x + t\,\varepsilon$. The network is asked for the direction of the line, $u = \varepsilon - x$. To draw, start at a noise sample and walk against the answers.

Our schedule follows the quarter circle instead. But a point on one and the point on the other in the same direction, seen from the corner, differ in length only. It is the *same* noisy image, brighter or paler. On the line, its share of noise is $t = s/(a+s)$:''')
K(r'''def line_time(time):
    pass''')
K(r'''ways = torch.linspace(0, 1, 9)
noise_rate, signal_rate = schedule(ways)
share = line_time(ways)
plt.figure(figsize=(3.4, 3.4))
plt.plot(signal_rate, noise_rate, "o-", label="quarter circle")
plt.plot(1 - share, share, "o-", label="straight line")
for i in range(9):
    plt.plot([0, signal_rate[i]], [0, noise_rate[i]], color="0.85", linewidth=1, zorder=0)
plt.gca().set(xlabel="share of the image", ylabel="share of the noise", aspect="equal")
plt.legend()
plt.show()
paler = (1 - line_time(time)) * face + line_time(time) * noise
assert torch.allclose(paler, noisy / sum(schedule(time)), atol=1e-5)''')
M(r'''So the steps are the same, too. **Predict first:** walk along the line in four steps, each a piece of the way in the direction that the network says. Compare with four steps of DDIM at the same noise levels. How far apart do they end?''')
K(r'''model = Diffusion.from_pretrained(SHORT_MODEL).eval().requires_grad_(False)
arc = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
walk = arc / sum(schedule(1.0))  # the same noisy image, on the line
times = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]).view(5, 1, 1, 1)
for now, then in zip(times, times[1:]):
    now, then = now.expand(8, 1, 1, 1), then.expand(8, 1, 1, 1)
    arc, _ = ddim(partial(predict, model), arc, now, then)
    predicted_noise, predicted_image = predict(model, walk * sum(schedule(now)), now)  # asked on the arc
    walk = walk + (line_time(then) - line_time(now)) * (predicted_noise - predicted_image)
difference = (walk * sum(schedule(0.0)) - arc).abs().max()
print(f"largest difference of a pixel: {difference:.5f}")
assert difference < 1e-2''')
M(r'''One walk, described twice. And the training? Flow matching draws $t$ evenly, and we draw the angle $\alpha$ evenly, as lesson 12 called it. Between $\alpha$ and $\alpha + d\alpha$, $t = s/(a+s)$ moves by $d\alpha/(a+s)^2$. So with even $t$, an angle comes up in proportion to $1/(a+s)^2$, and an error of the image counts

$$\frac{1}{(a+s)^2}\cdot\left(1+\frac{a}{s}\right)^2 = \frac{1}{s^2} = 1 + \text{SNR}.$$

That is the weight of the velocity with even $\alpha$, exactly. **With squared errors, flow matching is $v$-prediction on the quarter circle** (Kingma & Gao 2023; Gao et al. 2024). What remains different is what the network has to put out, and where the line begins and ends: at no noise and at nothing but noise. Large models such as Stable Diffusion 3 ask for the flow, and draw $t$ more often from the middle (Esser et al. 2024); exercise 3 does.''')
K(r'''how_often = torch.gradient(line_time(line), spacing=(angle(line),))[0]
ratio = (how_often * weights["flow"] / weights["v"])[1:-1]
print(f"flow, even on the line, over v, even on the arc: {ratio.min():.4f} to {ratio.max():.4f}")
assert (ratio - 1).abs().max() < 1e-4''')
M(r'''## EDM in three lines

Karras et al. (2022) write a noisy image as $y = x + \sigma\,\varepsilon$, and wrap the network $F$ so that what goes in and what should come out both have variance 1. For images of variance 1, as ours are, their guess at the image is

$$D(y) = c_\text{skip}\,y + c_\text{out}\,F(c_\text{in}\,y), \qquad c_\text{in} = \tfrac{1}{\sqrt{1+\sigma^2}},\quad c_\text{skip} = \tfrac{1}{1+\sigma^2},\quad c_\text{out} = \tfrac{\sigma}{\sqrt{1+\sigma^2}}.$$

On our circle $\sigma = s/a$ and $1/\sqrt{1+\sigma^2} = a$. So $c_\text{in}\,y = z$, $c_\text{skip}\,y = a\,z$ and $c_\text{out} = s$, and $D = a\,z + s\,F$. The table says $\hat x = a\,z - s\,\hat v$. **EDM's network predicts $-v$**; what is its own is the choice of noise levels in training.''')
K(r'''noise_rate, signal_rate = schedule(time)
sigma, y = noise_rate / signal_rate, noisy / signal_rate
c_in, c_skip, c_out = 1 / (1 + sigma**2).sqrt(), 1 / (1 + sigma**2), sigma / (1 + sigma**2).sqrt()
assert torch.allclose(c_in * y, noisy, atol=1e-5)  # the network sees the same
assert torch.allclose(c_skip * y + c_out * -right["v"], face, atol=1e-4)''')
M(r'''## One training run

Now the network of lesson 04 is asked for the velocity. The loss compares its own output with the right one. Times are drawn evenly apart, as in lesson [11](11_long_training_runs.ipynb). The other arguments are for later lessons: absolute errors, more training where there is much noise, times from beyond 1 as in lesson 12, and a condition that goes to the network.''')
K(r'''def prediction_loss(diffusion, batch):
    pass''')
K(r'''loader = get_loader(faces, batch_size=32, seed=0)
torch.manual_seed(0)
diffusion = Diffusion(DiffusionConfig(**CPU_SHAPE, predicts="v"))
nn.init.zeros_(diffusion.unet.out.weight)  # as in lesson 04: the first answer is 0
nn.init.zeros_(diffusion.unet.out.bias)
training = Training(diffusion, loader, loss=prediction_loss, **CPU_RECIPE)
for step in training:
    if step in (1, 100, 500, len(training)):
        print(f"step {step}: loss {float(training.history['loss'][-1]):.3f}")
assert len(training) == 16 * 93''')
M(r'''Beside it, the model that was trained for the noise for equally many steps, with lesson 04's absolute error. **Predict first:** four steps of DDIM, and twenty: which faces will be blurred?''')
K(r'''def show_rows(rows):
    figure, axes = plt.subplots(len(rows), 8, figsize=(9.3, 1.03 * len(rows)), squeeze=False)
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images):
            axis.imshow(image.cpu().permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.2)
    plt.show()


both = {"noise": model, "v": diffusion}
show_rows({f"{name}, {steps}": generate(both[name], n=8, steps=steps, seed=3) for name in both for steps in (4, 20)})''', tags=["cover"])
M(r'''TODO eye.

One training run of each says little. `benchmarks/targets.py` has trained six kinds, three times each, with the same network, recipe and images. Dots are medians, lines reach from the least to the largest of three; the variation says how much pixels vary, and the dotted line is that of real faces.''')
K(r'''lines = published("Targets")
*kinds, real = lines
columns = {"pixel distance": 3, "kernel distance": 4, "variation": 5}


def numbers(cell):
    return [float(number) for number in re.findall(r"\d+\.\d+", cell)]''')
K(r'''figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for axis, (title, column) in zip(axes, columns.items()):
    for steps, shift, color in (("4", -0.1, "C0"), ("20", 0.1, "C1")):
        for place, row in enumerate(row for row in kinds if row[2] == steps):
            middle, low, high = numbers(row[column])
            axis.plot([place + shift] * 2, [low, high], color=color)
            axis.plot(place + shift, middle, "o", color=color, label=None if place else f"{steps} steps")
    axis.set(title=title, xticks=range(6), xticklabels=[f"{row[0]}\n{row[1][:3]}." for row in kinds[::2]])
    axis.tick_params(labelsize=7)
axes[2].axhline(float(real[5]), color="0.5", linestyle=":")
axes[0].legend(fontsize=7)
plt.show()''')
M(r'''TODO text.

## Absolute or squared?

Lesson [06](06_why_it_works.ipynb) said: the squared error asks for the mean, and only with means does the walk end in the distribution of the data; the absolute error asks for the median, and draws what is rare too rarely. Here is what a minority of faces has, in the same training runs, in twenty steps, as the classifier of lesson 07 sees it. Bars reach from the least to the largest of three. **Predict first:** which of the two will be nearer to the black line, the real faces?''')
K(r'''names = ["glasses", "hats", "open mouths", "beards"]
shown = {("v", "absolute"): "C0", ("v", "squared"): "C1", ("noise", "absolute"): "C2", ("noise", "squared"): "C3"}
drawn = {}
plt.figure(figsize=(7, 3))
for shift, (kind, color) in enumerate(shown.items()):
    (row,) = [row for row in kinds if tuple(row[:3]) == (*kind, "20")]
    drawn[kind] = [numbers(cell) for cell in row[6:10]]
    for place, (middle, low, high) in enumerate(drawn[kind]):
        x = place + 0.18 * (shift - 1.5)
        plt.bar(x, middle, 0.16, color=color, label=None if place else ", ".join(kind))
        plt.plot([x, x], [low, high], color="0.3", linewidth=1)
for place, share in enumerate(real[6:10]):
    plt.plot([place - 0.4, place + 0.4], [float(share)] * 2, "k--")
plt.gca().set(ylabel="share of faces, %", xticks=range(4), xticklabels=names)
plt.legend(fontsize=8)
plt.show()''')
M(r'''TODO text.''')
M(r'''## On your own

**Exercise 1.** A network was asked for the flow, and you need the velocity. Write `velocity_from(flow_output, noisy, time)` in one line, without going through noise and image: only $u$, $z$, $a$ and $s$ occur in it.''')
K(r'''def velocity_from(flow_output, noisy, time):
    noise_rate, signal_rate = schedule(time)
    return ...''')
K(r'''if velocity_from(right["flow"], noisy, time) is ...:
    print("Exercise 1 is waiting for you.")
else:
    off = (velocity_from(right["flow"], noisy, time) - right["v"]).abs().amax(dim=(1, 2, 3))
    assert off.max() < 1e-3, f"at the three times it is off by up to {[round(float(x), 3) for x in off]}"
    print("Exercise 1: correct.")''')
M(r'''<details><summary>Solution</summary>

With $z = a\,x + s\,\varepsilon$ and $u = \varepsilon - x$, look for numbers such that $v = a\,\varepsilon - s\,x = \beta\,z + \gamma\,u$. The noise gives $a = \beta s + \gamma$, the image $-s = \beta a - \gamma$; their sum is $a - s = \beta\,(a + s)$.

```python
def velocity_from(flow_output, noisy, time):
    noise_rate, signal_rate = schedule(time)
    return ((signal_rate - noise_rate) * noisy + flow_output) / (signal_rate + noise_rate)
```
</details>''')
M(r'''**Exercise 2.** The question and the weight are two things. Write `even_loss(diffusion, images)` for a network that is asked for the velocity, but such that the squared error of the *image* weighs the same at all times, as if it had been asked for the image. Draw the noise first and then the times, with `even_times(len(image))`.''')
K(r'''def even_loss(diffusion, images):
    return ...''')
K(r'''if even_loss(diffusion, faces[:32]) is ...:
    print("Exercise 2 is waiting for you.")
else:
    diffusion.cpu().eval()
    torch.manual_seed(1)
    mine = float(even_loss(diffusion, faces[:32]))
    torch.manual_seed(1)
    clean = diffusion.norm(faces[:32])
    drawn_noise, drawn_time = torch.randn_like(clean), even_times(32)
    guess = predict(diffusion, mix(clean, drawn_noise, drawn_time), drawn_time)[1]
    expected = float((guess - clean).square().mean())
    assert abs(mine - expected) < 1e-3 * expected, f"the loss is {mine:.4f}, the squared error of the image {expected:.4f}"
    print("Exercise 2: correct.")''')
M(r'''<details><summary>Solution</summary>

A velocity that is off by 1 costs $s$, so multiply its squared error by $s^2$.

```python
def even_loss(diffusion, images):
    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), even_times(len(image))
    error = diffusion.network(mix(image, noise, time), time) - targets(noise, image, time)["v"]
    return (schedule(time)[0] * error).square().mean()
```
</details>''')
M(r'''**Exercise 3.** Stable Diffusion 3 draws $t$ as the sigmoid of a normal number. Write `middle_times(n)`: `n` times on our arc, shape `(n, 1, 1, 1)`, whose `line_time` is drawn like that. On the line $\sigma = t/(1-t)$, and the angle of lesson 12 is the arc tangent of $\sigma$. (Some of them lie a little outside of [0, 1], where our schedule does not reach.)''')
K(r'''def middle_times(n):
    return ...''')
K(r'''if middle_times(4) is ...:
    print("Exercise 3 is waiting for you.")
else:
    torch.manual_seed(0)
    drawn_times = middle_times(20_000)
    assert drawn_times.shape == (20_000, 1, 1, 1), f"the shape is {tuple(drawn_times.shape)}"
    logits = line_time(drawn_times).logit()
    assert abs(logits.mean()) < 0.05 and abs(logits.std() - 1) < 0.05, f"{logits.mean():.2f} ± {logits.std():.2f}, not 0 ± 1"
    plt.figure(figsize=(5, 2))
    plt.hist(drawn_times.flatten(), 60)
    plt.gca().set(xlabel="time")
    plt.show()
    print("Exercise 3: correct.")''')
M(r'''<details><summary>Solution</summary>

```python
def middle_times(n):
    t = torch.randn(n, 1, 1, 1).sigmoid()
    first, last = angle(torch.tensor(0.0)), angle(torch.tensor(1.0))
    return ((t / (1 - t)).atan() - first) / (last - first)
```
</details>''')
M(r'''## Where to read on

- Salimans & Ho (2022), [Progressive Distillation for Fast Sampling of Diffusion Models](https://arxiv.org/abs/2202.00512): the velocity, and what each question weighs.
- Lipman et al. (2022), [Flow Matching for Generative Modeling](https://arxiv.org/abs/2210.02747), Liu et al. (2022), [Flow Straight and Fast](https://arxiv.org/abs/2209.03003), and Albergo & Vanden-Eijnden (2022), [Building Normalizing Flows with Stochastic Interpolants](https://arxiv.org/abs/2209.15571): the straight line, three times.
- Kingma & Gao (2023), [Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation](https://arxiv.org/abs/2303.00848), and Gao et al. (2024), [Diffusion Meets Flow Matching](https://diffusionflow.github.io): all losses as weights over noise levels.
- Karras et al. (2022), [Elucidating the Design Space of Diffusion-Based Generative Models](https://arxiv.org/abs/2206.00364), section 5: preconditioning. Esser et al. (2024), [Scaling Rectified Flow Transformers](https://arxiv.org/abs/2403.03206): which questions and times were best at scale.

[← 12 · Better steps](12_better_samplers.ipynb) · [14 · Draw in one step →](14_few_steps.ipynb)''')
nb = dict(cells=C, metadata={k: v for k, v in old["metadata"].items() if k != "widgets"}, nbformat=4, nbformat_minor=5)
seen = set()
for i, c in enumerate(C):
    if c["id"] in seen: c["id"] = c["id"][:6] + f"{i:02}"
    seen.add(c["id"])
save(nb, P)
