import sys; sys.path.insert(0,"/root/note")
from nbtool import *
P="/work/main/notebooks/18_transformers.ipynb"
first=load("/work/main/notebooks/17_latent_diffusion.ipynb")
C=[]
def M(s): C.append(md(s))
def K(s,**m): C.append(code(s,**m))
M('''# 18 · Transformers

[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/your-name/diffusion-course/blob/v1/notebooks/18_transformers.ipynb)

**What you'll do:** take the U-Net out of lesson 17's system, put a transformer in its place, and draw with it.

**What you'll learn**
- how an image becomes a row of **patches**, and why a transformer must be told where they lie;
- the block of the **diffusion transformer** (DiT), with adaLN-Zero, in 25 lines;
- what it does better than a U-Net, and what it needs more of;
- why a transformer on plain pixels should predict the image and not the noise.

**What you'll need:** attention from lesson [16](16_words_and_attention.ipynb), the system of lesson [17](17_latent_diffusion.ipynb), and what a network can predict, from lesson [13](13_what_to_predict.ipynb).

**Time:** about three minutes on two CPU cores; a GPU is not needed. Reading: 25 minutes.''')
C.append(first["cells"][1])
K('''import math
from functools import partial

import torch
from matplotlib import pyplot as plt
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import diffusion_course.transformer
from diffusion_utils import predict, sample, show, starting_noise
from diffusion_course.attention import Attention, text_to_image, tokens
from diffusion_course.conditioning import Conditioned
from diffusion_course.latents import TEXT_MODEL, TextToImage, TextToImageConfig, embed_time
from diffusion_course.quality import labelled_faces, published
from diffusion_course.samplers import DPMSolver
from diffusion_course.toy import VOCABULARY
from diffusion_course.transformer import DIT_MODEL''')
M('''Stable Diffusion 1 and XL draw with a U-Net. Stable Diffusion 3, Flux, and the models that draw videos draw with a **transformer**: the blocks that read our prompts in lesson 16, and that write the answers of a chat bot. This lesson builds one. Here is what it draws.''')
K('''model = diffusion_course.transformer.DiffusionTransformer.from_pretrained(DIT_MODEL).requires_grad_(False)
settings = dict(steps=15, sampler=DPMSolver(), seed=0)
for prompt in ("a smiling face with round glasses and blue hair", "a bald head, a moustache, a red turtleneck"):
    print(prompt)
    show(text_to_image(model, prompt, n=8, **settings), n=8)''', tags=["cover"])
M('''## An image as a sentence

A transformer reads a row of vectors. For a prompt, each word is one. For an image, we cut it into **patches**, row by row, and write the numbers of each patch one behind the other.''')
K('''def patchify(images, patch):
    pass


def unpatchify(patches, patch):
    pass''')
K('''faces, _ = labelled_faces("test", 64)
patches = patchify(faces[2:3], 8)
print(tuple(faces[2:3].shape), "→", tuple(patches.shape))
assert torch.equal(unpatchify(patches, 8), faces[2:3])
squares = patches[0].unflatten(1, (3, 8, 8))
figure, axes = plt.subplots(8, 8, figsize=(3, 3), gridspec_kw=dict(wspace=0.15, hspace=0.15))
for axis, square in zip(axes.flat, squares):
    axis.imshow(square.permute(1, 2, 0), interpolation="nearest")
    axis.axis("off")
plt.show()''')
M('''This face is a sentence of 64 words now, 192 numbers each. Our transformer will read latents of lesson 17, 16×16 with four channels, in patches of 2×2: again 64 words, of 16 numbers.

## Where is what?

A convolution knows its neighbours. Attention does not: it compares each vector with all others, wherever they stand.

**Predict first:** shuffle the patches before attention, and put what comes out back into order. Is anything different?''')
K('''torch.manual_seed(0)
attention = Attention(16, heads=4)
attention.out.reset_parameters()  # it starts with zeros
row = torch.randn(1, 64, 16)
order = torch.randperm(64)
plain = attention(row)
shuffled = attention(row[:, order])[:, order.argsort()]
print(f"largest difference {(plain - shuffled).abs().max():.1e}")
assert torch.allclose(plain, shuffled, atol=1e-6)''')
M('''Nothing. For a transformer a face and its shuffled patches are the same. So each place gets a vector of its own, which is added to its patch; as for words, training finds these vectors. They need not be told that places are neighbours. They learn it: below are the vectors of the shipped model, compared. Each square shows how similar the vector of one place, marked, is to those of all places.''')
K('''places = nn.functional.normalize(model.unet.positions, dim=1)
similar = places @ places.T
figure, axes = plt.subplots(1, 5, figsize=(8, 1.8))
for axis, place in zip(axes, (0, 18, 27, 36, 61)):
    axis.imshow(similar[place].view(8, 8), vmin=-1, vmax=1, cmap="RdBu_r")
    axis.plot(place % 8, place // 8, "k.", markersize=4)
    axis.axis("off")
plt.show()
next_to = similar.view(8, 8, 8, 8).diagonal(offset=1, dim1=1, dim2=3).diagonal(dim1=0, dim2=1).mean()
print(f"similarity of neighbours {next_to:.2f}, of any two {similar.mean():.2f}")
assert next_to > similar.mean() + 0.1''')
M('''## The block

The block is lesson 16's `TransformerBlock`: attention between all, then a small network for each, both beside a shortcut. Only: how does it learn the time? Lesson 15's answer was FiLM, a scale and a shift for each channel, made from the condition. Here they follow the normalisation, so the method is called **adaptive layer norm**, adaLN. A third number comes with them, a **gate**, by which the branch is multiplied before it joins the shortcut.

All these numbers come from one linear layer that starts with zeros. Then the gates are closed, and each block hands on what it got. A deep network that starts as the identity is easy to train; that is the *Zero* in **adaLN-Zero**.''')
K('''class DiTBlock:
    pass''')
K('''block = DiTBlock(16, size=8, heads=4)
row, condition = torch.randn(2, 64, 16), torch.randn(2, 8)
assert torch.equal(block(row, condition), row)  # the gates are closed
print("At first the block is the identity.")''')
M('''## The whole

Patches go in by a linear layer and get their places. The words of the prompt join the same row, behind them. In every block patches look at patches and at words, and words at patches; no cross-attention is needed. (Stable Diffusion 3 does the same, with separate weights for patches and words.) Time and the vector for the whole prompt enter by adaLN. In the end the words are dropped, and a linear layer makes the numbers of each patch.''')
K('''class DiT(nn.Module):
    def __init__(
        self, image_size=16, channels=4, patch=2, width=192, depth=8, heads=6, text_width=128, size=256
    ):
        pass''')
K('''class DiT(DiT):
    def forward(self, x, time, words, mask, pooled):
        pass''')
M('''It takes and gives what lesson 17's `AttentionUNet` does. So the system needs one new line.''')
K('''class DiffusionTransformer:
    pass''')
K('''def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def work(diffusion):
    """Millions of multiplications for one prediction."""
    inputs = torch.zeros(1, 4, 16, 16), torch.full((1, 1, 1, 1), 0.5), tokens("a face", VOCABULARY)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        diffusion.eval().predict_noise(*inputs)
    return counter.get_total_flops() / 2e6


torch.manual_seed(0)
systems = {"U-Net": TextToImage, "DiT": DiffusionTransformer}
systems = {name: kind(TextToImageConfig(VOCABULARY)) for name, kind in systems.items()}
for name, system in systems.items():
    print(f"{name:5} {count(system.unet):9,} parameters, {work(system):4.0f} million multiplications")
assert 0.8 < count(systems["DiT"].unet) / count(systems["U-Net"].unet) < 1.3''')
M('''About the same number of parameters, and a different use of them. The U-Net spends its work at the top, on 16×16 places with few channels. The transformer spends the same on every patch, at every depth, and each of its layers sees the whole image.

## Against the U-Net

Both networks, from nothing, for ten minutes of one core's time each, on the same latents with the same captions, loss and optimizer; three training runs of each (`benchmarks/transformer.py`).''')
K('''for name, parameters, steps, right, coarse, kernel in published("Transformer"):
    print(f"{name:6} {steps:>16} steps   as in the prompt {right}   pixel {coarse}   kernel {kernel}")''')
M('''@TABLE@

So why does everybody use transformers? They have no notion of places but what they learn: with little data and little time that is a handicap, and our 3,000 faces are very little. With a thousand times as much of both it turns into an advantage, since nothing that was built in stands in the way. A transformer is also one block repeated. It can be made wider or deeper without a new design, it runs at the full speed of a GPU, and what has been learned about training language models holds for it, too.

## What a patch looks at

An attention map of lesson 16, now between patches. Below is a face while it is drawn, after half of the steps. For one patch, marked white, brightness says how much it looks at each other patch, averaged over all heads of a block.''')
K('''prompt = "a smiling face with round glasses and blue hair"
conditioned = Conditioned(model.eval(), tokens(prompt, VOCABULARY))
with torch.no_grad():
    path = list(sample(partial(predict, conditioned), starting_noise(model, 1, seed=1), model.config.times))
noisy, guess = path[10]
time = torch.full((1, 1, 1, 1), model.config.times[11])
rows = {}
hooks = []
for depth, block in enumerate(model.unet.blocks):
    keep = lambda module, inputs, options, depth=depth: rows.update({depth: (inputs[0], options["mask"])})
    hooks.append(block.attention.register_forward_pre_hook(keep, with_kwargs=True))
with torch.no_grad():
    model.predict_noise(noisy, time, tokens(prompt, VOCABULARY))
for hook in hooks:
    hook.remove()''')
K('''face = model.decode(0.5 + 0.1 * guess)[0].permute(1, 2, 0)
figure, axes = plt.subplots(3, 5, figsize=(8, 5))
for line, place in zip(axes, (26, 12, 59)):
    line[0].imshow(face)
    for axis, depth in zip(line[1:], (0, 2, 4, 7)):
        row, mask = rows[depth]
        with torch.no_grad():
            map_ = model.unet.blocks[depth].attention.weights(row, row, mask)[0, :, place, :64].mean(0).view(8, 8)
        axis.imshow(face, alpha=0.4)
        axis.imshow(map_, extent=(-0.5, 63.5, 63.5, -0.5), cmap="inferno", alpha=0.75)
        axis.set_title(f"block {depth + 1}", fontsize=8)
    for axis in line:
        axis.plot(8 * (place % 8) + 3.5, 8 * (place // 8) + 3.5, "ws", markersize=6, fillstyle="none")
        axis.axis("off")
plt.show()''')
M('''@MAPS@

## Straight on pixels

Can a transformer do without latents? Patches of 4×4 pixels have 48 numbers. A finding of Li & He (2025) is that then it matters very much *what it predicts*. The patches of images, seen as points among all rows of 48 numbers, lie near a thin surface: neighbouring pixels are alike. Patches of noise fill all 48 dimensions. A network that must put out noise has to carry all 48 numbers through its layers. One that puts out the image needs to carry only what distinguishes images.

So two transformers were trained on 32×32 pixels: one with 192 numbers for each patch, plenty, and one with only 24, fewer than a patch has. Each predicts the image, v or the noise; the loss is the same for all.''')
K('''for predicts, width, coarse, kernel in published("Patches of pixels"):
    print(f"{width:>3} numbers for a patch, predicts {predicts:5}: pixel distance {coarse}, kernel distance {kernel}")''')
M('''![Ten faces each: image, v and noise at 24 numbers, then at 192](../images/dit_pixels.png)

@PIXELS@

## On your own

**Exercise 1.** *What do smaller patches cost?* Attention compares each patch with each. Write `comparisons(size, patch)`: how many pairs of patches an image of `size` × `size` has, a patch with itself included. What happens when patches are half as wide?''')
K('''def comparisons(size, patch):
    return ...''')
K('''if comparisons(16, 2) is ...:
    print("Exercise 1 is waiting for you.")
else:
    assert comparisons(16, 2) == 64**2 and comparisons(32, 4) == 64**2
    assert comparisons(64, 4) == 16 * comparisons(64, 8)
    print(f"Half as wide: {comparisons(64, 4) / comparisons(64, 8):.0f} times as many.")
    print("Exercise 1: correct.")''')
M('''<details><summary>Solution</summary>

```python
def comparisons(size, patch):
    return (size // patch) ** 4
```
</details>''')
M('''**Exercise 2.** *Close a block.* Each block adds something to its row, or would do without it be the same? Write `without(model, depth)`: a copy of `model` whose block number `depth`, counted from 0, hands on what it gets. The cell draws without the first, a middle and the last block.''')
K('''def without(model, depth):
    return ...''')
K('''if without(model, 0) is ...:
    print("Exercise 2 is waiting for you.")
else:
    drawn = {depth: text_to_image(without(model, depth), prompt, n=6, **settings) for depth in (0, 4, 7)}
    whole = text_to_image(model, prompt, n=6, **settings)
    assert torch.equal(whole, text_to_image(model, prompt, n=6, **settings)), "the model itself must stay as it is"
    for depth, images in drawn.items():
        assert not torch.equal(images, whole), f"block {depth} still does something"
        show(images, n=6, titles=[f"without block {depth + 1}"])
    print("Exercise 2: correct.")''')
M('''<details><summary>Solution</summary>

A block whose gates are closed is the identity; so set the layer that makes them to zero.

```python
import copy


def without(model, depth):
    changed = copy.deepcopy(model)
    modulation = changed.unet.blocks[depth].modulation
    nn.init.zeros_(modulation.weight)
    nn.init.zeros_(modulation.bias)
    return changed
```
</details>''')
M('''**Exercise 3.** *Places that need no training.* The first DiT has fixed vectors for places: sines and cosines of the row, then sines and cosines of the column. Write `fixed_places(side, width)`: (side², width), where a quarter of the numbers are sines of the row at frequencies from 1 to 1/100, evenly in the logarithm, a quarter its cosines, and the other half the same for the column.''')
K('''def fixed_places(side, width):
    return ...''')
K('''if fixed_places(8, 16) is ...:
    print("Exercise 3 is waiting for you.")
else:
    vectors = fixed_places(8, 192)
    assert vectors.shape == (64, 192)
    assert torch.allclose(vectors[0], torch.tensor([0.0] * 48 + [1.0] * 48).repeat(2)), "place 0 has sines 0, cosines 1"
    alike = nn.functional.normalize(vectors, dim=1)[27] @ nn.functional.normalize(vectors, dim=1).T
    assert alike[28] > alike[30] and torch.isclose(alike[28], alike[35], atol=1e-4), "rows and columns count the same"
    plt.figure(figsize=(2, 2))
    plt.imshow(alike.view(8, 8), vmin=-1, vmax=1, cmap="RdBu_r")
    plt.axis("off")
    plt.show()
    print("Exercise 3: correct.")''')
M('''<details><summary>Solution</summary>

```python
def fixed_places(side, width):
    frequencies = torch.linspace(0, -math.log(100), width // 4).exp()
    angles = torch.arange(side)[:, None] * frequencies
    line = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows = line[:, None].expand(-1, side, -1)
    columns = line[None].expand(side, -1, -1)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)
```
</details>''')
M('''## Where to read on

- Peebles & Xie (2023), [Scalable Diffusion Models with Transformers](https://arxiv.org/abs/2212.09748): DiT and adaLN-Zero.
- Esser et al. (2024), [Scaling Rectified Flow Transformers for High-Resolution Image Synthesis](https://arxiv.org/abs/2403.03206): Stable Diffusion 3, with patches and words in one row.
- Dosovitskiy et al. (2021), [An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929): patches as words.
- Li & He (2025), [Back to Basics: Let Denoising Generative Models Denoise](https://arxiv.org/abs/2511.13720): transformers on plain pixels, which predict the image.

[← 17 · Latent diffusion](17_latent_diffusion.ipynb)''')
first["cells"]=C; first["metadata"].pop("widgets",None)
save(first,P)
