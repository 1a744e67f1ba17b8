import sys, copy
sys.path.insert(0, "/root/note")
from nbtool import load, save, md, code, lines
P = "/work/main/notebooks/04_training.ipynb"
import subprocess, json
old = json.loads(subprocess.check_output(["git", "-C", "/work/main", "show", "438b47a:notebooks/04_training.ipynb"]))
C = old["cells"]
def src(i): return "".join(C[i]["source"])
def keep(i):
    cell = copy.deepcopy(C[i])
    if cell["cell_type"] == "code":
        cell["outputs"], cell["execution_count"] = [], None
    return cell
def definition(start):
    found = [i for i, c in enumerate(C) if c["cell_type"] == "code" and src(i).startswith(start)]
    assert len(found) == 1, (start, found)
    return keep(found[0])
def imports(text):
    cell = code(text); cell["metadata"] = {"jupyter": {"source_hidden": True}}; cell["id"] = C[2]["id"]; return cell

cells = []
add = cells.append

head = md("""
# 04 · Train a network to see the noise

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/diffusion-course/blob/v1/notebooks/04_training.ipynb)

**What you'll do:** train a diffusion model from scratch until it draws faces that look back at you.

**What you'll learn**
- the game that teaches a network to see noise;
- the training loop, fifteen lines of PyTorch;
- a test that finds bugs in seconds, and what `train()` and `eval()` change;
- why to draw with an average of the weights.

**What you'll need:** lessons [01](01_data_loading.ipynb) to [03](03_combine_and_unet.ipynb).

**Time:** five to six minutes on two CPU cores, nearly all of it in one cell. Reading: 30 minutes.
""")
add(head)
add(keep(1))
add(imports("""
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from matplotlib import pyplot as plt
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig, PreTrainedModel, get_scheduler

import diffusion_utils
from diffusion_utils import CPU_RECIPE, CPU_SHAPE, ROOT, TOY_FACES, TOY_MODEL, Combine, UNet
from diffusion_utils import DiffusionConfig, Training  # built at the end of this lesson
from diffusion_utils import denormalize, generate, get_data, get_loader, mix, predict, sample, schedule, show
from diffusion_course.long_runs import carry_on  # lesson 11 builds it
from diffusion_course.optimizers import even_l1_loss, muon  # and these
from diffusion_course.quality import pixel_distance, published  # these are built in lesson 07
"""))
add(md("""
## The guessing game

Training a diffusion model is a guessing game. Take a face. Mix in noise, as in lesson 02, at a random time. Show the network the mixture and tell it how much noise there is. It has to say *which* noise. We mixed it ourselves, so we know the answer, and nobody has to label anything.

Here a trained network plays it with faces it has never seen. The last row is the guess minus the noise, three times as strong. Grey means right; the mistakes lie along edges.
"""))
add(code("""
trained = diffusion_utils.Diffusion.from_pretrained(TOY_MODEL)
unseen = torch.from_numpy(get_data(split="test", limit=8, size=32))
torch.manual_seed(0)
time = torch.linspace(0, 1, 8).view(8, 1, 1, 1)
with torch.no_grad():
    image, noise = trained.norm(unseen), torch.randn(unseen.shape)
    noisy = mix(image, noise, time)
    guess = trained.predict_noise(noisy, time)
"""))
add(code("""
rows = {"face": unseen, "mixture": denormalize(trained, noisy)}
rows |= {"noise": noise / 6 + 0.5, "guess": guess / 6 + 0.5, "mistakes": (guess - noise) / 2 + 0.5}
figure, axes = plt.subplots(5, 8, figsize=(9, 5.8), layout="constrained")
for line, (name, images) in zip(axes, rows.items()):
    for axis, image in zip(line, images):
        axis.imshow(image.clip(0, 1).permute(1, 2, 0))
        axis.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
for axis, moment in zip(axes[0], time.flatten()):
    axis.set_title(f"time {moment:.2f}", fontsize=9)
plt.show()
"""))
add(md("""
`Diffusion` puts the layers of lesson 03 together, and its `forward` plays one round: normalise, make noise, pick a time for each image, mix, guess. For now the network's output *is* the guess; the three `if`s wait for lesson [13](13_what_to_predict.ipynb). `PreTrainedModel`, from [transformers](https://huggingface.co/docs/transformers), can be saved and loaded, and `config` holds the sizes.
"""))
add(definition("class Diffusion(PreTrainedModel)"))
add(md("""
With a CUDA GPU you get the article's full model for 64×64 pixels; without one, 32×32 and the light network from the end of lesson 03.
"""))
add(code("""
cuda = torch.cuda.is_available()
device = "cuda" if cuda else "cpu"
config = DiffusionConfig() if cuda else DiffusionConfig(**CPU_SHAPE)
source = TOY_FACES  # or a folder of your images
data = get_data(source, size=config.image_size)
loader = get_loader(data, batch_size=64 if cuda else 32, seed=0)
print(f"{len(data)} images, {len(loader)} batches an epoch")
show(data, n=8)
"""))
add(keep(11))
add(md("""
## The loss

How wrong was the guess? The article takes the mean absolute difference, the **L1 loss**:

$$L = \\frac{1}{n}\\sum_i \\left|\\,\\text{noise}_i - \\text{predicted\\_noise}_i\\,\\right|$$

Most papers square the difference. A network in doubt then does best with the mean of all possible answers; with L1 it is their median. Lesson [06](06_why_it_works.ipynb) shows what that changes.
"""))
add(keep(13))
add(keep(14))
add(keep(15))
add(md("""
It is the mean of $|x|$ for normally distributed $x$, $\\sqrt{2/\\pi} \\approx 0.798$. Remember this number: a loss of 0.8 means *nothing learned yet*.

## The loop

One step of learning: guess, measure, compute the gradients, move each weight a little against its gradient, forget the gradients. How far a weight moves is up to the **optimizer**, here **AdamW**, and to the learning rate `lr`. This is the article's training, complete:
"""))
add(keep(17))
add(md("""
### Can it learn anything at all?

Give a network the same eight faces again and again. If it cannot learn even *these*, there is a bug, and you have found it in seconds. **Predict first:** will the loss go to 0 in 60 steps?
"""))
add(keep(19))
add(md("""
It falls fast, then slowly. A network that knows the eight faces by heart could subtract them and be left with the noise, but that takes far more than 60 steps.

### A mistake worth making once

Suppose somebody has called `eval()`, and the line `diffusion.train()` is missing. Nothing complains, and the loss falls:
"""))
add(code("""
torch.manual_seed(0)
forgetful = Diffusion(config).to(device).eval()  # and nobody calls train()
optimizer = torch.optim.AdamW(forgetful.parameters(), lr=2e-3)
losses = []
for _ in range(20):
    loss = l1_loss(forgetful, next(iter(loader)).to(device))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} … {losses[-1]:.2f}, means learned: {forgetful.norm.running_mean.tolist()}")
assert forgetful.norm.num_batches_tracked == 0 and losses[-1] < losses[0]
"""))
add(md("""
But `norm` has learned nothing. The images were never normalised: they are not centred at 0, and too faint under their noise.
"""))
add(keep(23))
add(md("""
Just as common is the reverse, drawing *without* `eval()`. BatchNorm then takes its means from the batch. Training batches mix all noise levels, but while drawing all images share one, so the network meets means that it does not know. Is that the reason? The last row below draws in `train()` mode as well, but in a crowd of 400 faces, which have all noise levels.
"""))
add(code("""
others = torch.from_numpy(get_data(split="test", limit=400, size=32))
other_times = torch.linspace(0, 1, 400).view(400, 1, 1, 1)
crowd = mix(trained.norm(others), torch.randn(others.shape), other_times)


def predict_in_crowd(noisy, time):
    noise, image = predict(trained, torch.cat((noisy, crowd)), torch.cat((time, other_times)))
    return noise[:8], image[:8]
"""))
add(code("""
alone, rows = partial(predict, trained), []
for name, guess in (("eval()", alone), ("train()", alone), ("in a crowd", predict_in_crowd)):
    trained.train(name != "eval()")
    start = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # what `generate` of lesson 05 does, but in either mode
        *_, (_, faces) = sample(guess, start, torch.linspace(1, 0, 21).tolist())
    rows.append(denormalize(trained, faces))
    show(rows[-1], n=8, titles=[name] * 8)
right, wrong, mended = rows
assert (mended - right).abs().mean() < 0.3 * (wrong - right).abs().mean()
"""))
add(md("""
It is. `generate`, which lesson [05](05_sampling.ipynb) builds, draws with a copy in `eval()` mode, and your model stays as it was.

## Smoother weights: EMA

Each step follows one random batch, so the weights jitter around the place they are heading for. An **exponential moving average** (EMA) is a second set of weights, which moves a little towards the current ones after each step:

$$\\text{average} \\leftarrow d \\cdot \\text{average} + (1 - d) \\cdot \\text{weights}$$

With $d = 0.97$ and a single jittery weight:
"""))
add(keep(29))
add(md("""
## The real run

`Training` is the same loop, made ready for GPUs, interruptions and 16 bits. It also keeps the average, and changes the learning rate: up during the first 100 steps (**warm-up**), then down to 0 along a **cosine**. You loop over it, and the body of the loop is yours; [its code](#Inside-Training) comes last.

Three things are borrowed from lesson [11](11_long_training_runs.ipynb):

- `carry_on` saves the run in a folder. Stop it and run the cell again, and it goes on where it was.
- `muon` is an optimizer that gets more out of each step than AdamW.
- `even_l1_loss` is our loss with the times spread evenly over each batch, so that no batch is easy by chance.

A GPU trains for 20 epochs. The article's 2,000 take hours, so you ask for them: `FULL = True`, and on Colab a `folder` in your Google Drive.
"""))
add(code("""
FULL = False  # with a GPU: the article's 2,000 epochs instead of 20
folder = "my_checkpoints"  # with other settings or other images, take another one
if cuda:
    recipe = {"epochs": 2000 if FULL else 20}
else:
    recipe = CPU_RECIPE | {"epochs": 40, "lr": 5e-3, "optimizer": muon, "loss": even_l1_loss}
recipe["epochs"] = max(1, recipe["epochs"] * 3000 // len(data))  # fewer images, as many steps
"""))
add(md("""
No GPU has been timed yet. For an estimate, count the operations of one image, forward and backward, and assume a tenth of the speed in 16 bits that the maker states:
"""))
add(code("""
with FlopCounterMode(display=False) as counter:
    l1_loss(Diffusion(DiffusionConfig()), torch.rand(2, 3, 64, 64)).backward()
operations = 64 * counter.get_total_flops() / 2  # of a batch
print(f"full model: {operations / 64e9:.1f} billion operations an image")
for gpu, speed in {"T4 (free Colab)": 65e12, "A100": 312e12}.items():
    seconds = operations / (0.1 * speed)  # of a step; an epoch has 46
    epochs = f"20 epochs {46 * 20 * seconds:.0f} s, 2,000 epochs {46 * 2000 * seconds / 3600:.1f} h"
    print(f"{gpu}: {epochs}; a checkpoint every {4000 * seconds / 60:.0f} min")
"""))
add(md("""
One trick at the start: the last layer is set to zero, so that the first answer is 0, the best for a network that knows nothing. Now get yourself a cup of tea. After 1/16, 1/8, 1/4, 1/2 and all of the run, you will see faces drawn from the same noise with the averaged weights.
"""))
run = code("""
torch.manual_seed(0)
diffusion = Diffusion(config)
nn.init.zeros_(diffusion.unet.out.weight)
nn.init.zeros_(diffusion.unet.out.bias)
training = Training(diffusion, loader, **recipe)
moments = [len(training) // part for part in (16, 8, 4, 2, 1)]
samples = training.history.setdefault("samples", {})  # kept in the folder, too
for step in carry_on(training, folder, every=4000 if cuda else 1000):
    if step in moments:
        averaged = generate(training.average.module, n=200, seed=1).cpu()
""")
# (rewritten below)
run = code("""
torch.manual_seed(0)
diffusion = Diffusion(config)
nn.init.zeros_(diffusion.unet.out.weight)
nn.init.zeros_(diffusion.unet.out.bias)
training = Training(diffusion, loader, **recipe)
shown = [len(training) // part for part in (16, 8, 4, 2, 1)]
for step in carry_on(training, folder, every=4000 if cuda else 1000):
    if step in shown:
        show(generate(training.average.module, seed=1), titles=[f"step {step}"])
    if step in (shown[2], shown[4]):  # for later: 200 faces of the raw weights, and 200 of their average
        models = diffusion, training.average.module
        faces = [generate(model, n=200, seed=1).cpu() for model in models]
        training.history.setdefault("faces", []).append(faces)
""")
run["metadata"] = {"tags": ["cover"]}
add(run)
add(md("""
## What happened?

The loss falls steeply from 0.8, then slowly. The blue line is its mean over 50 steps.
"""))
add(code("""
history = training.history
mean = np.convolve(history["loss"], np.ones(50) / 50, mode="valid")
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
left.plot(history["loss"], color="0.85")
left.plot(np.arange(len(mean)) + 49, mean)
left.set(xlabel="step", ylabel="loss", ylim=(0, 1))
right.plot(history["lr"])
right.set(xlabel="step", ylabel="learning rate")
plt.show()
print(f"loss of the first step {history['loss'][0]:.3f}, of the last 50 {mean[-1]:.3f}")
assert abs(history["loss"][0] - np.sqrt(2 / np.pi)) < 0.02
"""))
add(md("""
Here are five faces, drawn with the raw weights and with their average, a quarter of the way and at the end. **Predict first:** when do the two differ more?
"""))
add(code("""
for when, pair in zip(("a quarter", "the end"), history["faces"]):
    for weights, faces in zip(("raw", "EMA"), pair):
        show(faces, titles=[f"{when}, {weights}"] * 5)
"""))
add(md("""
While the learning rate is high, the raw weights jump about. By the end it has fallen to 0, and the average changes nothing. It pays off most where the rate never falls, as in the article's recipe.

## How good is it?

The loss says how well noise is guessed, not how good the faces are. `pixel_distance` of lesson [07](07_measuring_quality.ipynb) compares 200 drawn faces with 1,000 unseen ones in coarse shapes and colours; smaller is better. What 200 real faces score is called the **floor**. All numbers come from this one run.
"""))
add(code("""
unseen = get_data(split="test", limit=1000, size=config.image_size) if source == TOY_FACES else data
(early_raw, early), (late_raw, faces) = history["faces"]
sets = {"a quarter, raw": early_raw, "a quarter, EMA": early, "the end, raw": late_raw, "the end, EMA": faces}
sets |= {"real": data[:200], "real, but brighter": (data[:200] + 0.1).clip(0, 1)}
distance = {name: pixel_distance(images, unseen) for name, images in sets.items()}
for name, value in distance.items():
    print(f"{name:18}  {value:.2f}")
"""))
add(code("""
for row in range(3):
    show(faces[8 * row :], n=8)
if source == TOY_FACES and not cuda:  # what the text says of these numbers
    assert distance["real"] < distance["the end, EMA"] < distance["real, but brighter"]
    assert distance["a quarter, raw"] > 1.5 * distance["a quarter, EMA"]
    assert abs(distance["the end, raw"] - distance["the end, EMA"]) < 0.3
"""))
add(md("""
The faces are whole: eyes where they belong, a mouth, hair or a hat, one background. Some pairs of eyes do not match, glasses are soft, and hats melt into hair. The score sees colours, not eyes: real faces with 0.1 added to every colour get a worse mark than the drawn ones.

How much of this is Muon's work? Below, the upper two rows were trained with the article's AdamW, the lower two with Muon, for equally many steps and drawn from equal noise.
"""))
add(code("""
plt.figure(figsize=(12, 6))
plt.imshow(plt.imread(ROOT / "images" / "optimizers.png"), interpolation="nearest")
plt.axis("off")
plt.show()
for optimizer, _, _, pixels, _ in published("Optimizers"):
    print(f"{optimizer:5}  pixel distance {pixels}, three training runs")
"""))
add(md("""
By this score, little: the ranges overlap. By eye, Muon's glasses and edges of hair are a little crisper in most pairs.

## Save it, use it

The model goes to the folder `my_model`, next to this notebook. Write `"my_model"` instead of `TOY_MODEL` in lessons [00](00_introduction.ipynb) and [05](05_sampling.ipynb), and they draw with *your* model.
"""))
add(keep(64))
add(md("""
Images of your own: lesson [10](10_your_own_images.ipynb). Mist instead of faces: [It does not work](it_does_not_work.ipynb).

## Inside Training

You have the whole method; on a first reading, skip to [On your own](#On-your-own). Here is the code that was borrowed above. First, what a saved model needs to be rebuilt:
"""))
add(definition("class DiffusionConfig"))
add(md("""
Where a file lacks weights, transformers fills in random ones. We would rather be told. `class Diffusion(Diffusion)` means: the class above, and one method more.
"""))
add(definition("class Diffusion(Diffusion)"))
add(md("""
All that affects the result of a run is its **recipe**; the defaults are the article's.
"""))
add(definition("@dataclass"))
add(md("""
The average begins with random weights, which it should soon forget. So $d$ begins small, as $(1+n)/(10+n)$ after $n$ steps. BatchNorm's running means are copied as they are; strictly they belong to the raw weights, but once the learning rate is small, the two hardly differ.
"""))
add(definition("def average_weights"))
add(md("""
The optimizer is a function, so that you can bring another. `pick_accelerator` looks at the machine and tells [Accelerate](https://huggingface.co/docs/accelerate) where to compute, and in how many bits.
"""))
add(definition("def adamw"))
add(definition("def pick_accelerator"))
add(md("""
So that a run can resume anywhere, each epoch gets a seed for the order of its images, and each step one for its noise. `Loss` makes a module of the loss, as Accelerate expects.
"""))
add(definition("def seed_of"))
add(keep(40))
add(definition("class Loss"))
add(md("""
`Training` holds all that changes during a run: the model and its average, the optimizer, the learning rate, the number of steps taken.
"""))
add(definition("class Training:"))
add(md("""
`take_step` is the step you know, then the next learning rate, then the average. `check_finite` stops a run that has gone wrong. `finish` gives the averaged weights to the model.
"""))
add(definition("class Training(Training):\n    def take_step"))
add(md("""
`__iter__` is the loop. With `yield` it hands the number of each step to *your* `for` loop. A run that resumes in the middle of an epoch skips the batches already `done`.
"""))
add(definition("class Training(Training):\n    def __iter__"))
add(md("Eight faces again:"))
add(keep(50))
add(md("""
## On your own

**Exercise 1.** In an EMA with $d = 0.99$, after how many steps has the share of an old value fallen to one half? Give a formula or a number.
"""))
for i in range(66, 77):
    add(keep(i))
add(md("""
## Where to read on

- Ho, Jain & Abbeel (2020), [Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239), algorithm 1: the game.
- Kingma et al. (2021), [Variational Diffusion Models](https://arxiv.org/abs/2107.00630): times spread evenly over a batch.
- Izmailov et al. (2018), [Averaging Weights](https://arxiv.org/abs/1803.05407): why averages are good.
- Loshchilov & Hutter (2019), [Decoupled Weight Decay Regularization](https://arxiv.org/abs/1711.05101): AdamW.

[← 03 · Build the network](03_combine_and_unet.ipynb) · [05 · Draw new faces →](05_sampling.ipynb)
"""))

def edit(start, before, after):
    found = [c for c in cells if "".join(c["source"]).startswith(start)]
    assert len(found) == 1, start
    text = "".join(found[0]["source"])
    assert before in text, (start, before)
    found[0]["source"] = lines(text.replace(before, after))

exec(open("/tmp/h04/edits04.py").read())
ids = [c["id"] for c in cells]
assert len(set(ids)) == len(ids)
nb = old | {"cells": cells}
nb["metadata"].pop("widgets", None)
save(nb, P)
