"""Do drawn faces follow the lines of a sketch? Trains the control that ships (lesson 19), and measures it.

    python benchmarks/control.py              ten minutes of one thread
    python benchmarks/control.py --measure    only measure what ships

The edges of 100 held-out faces, whole and made rough like a sketch, and no words. A line is followed where the drawn
face has an edge at most one pixel away. By chance: the same, with the edges of another face. A face follows if seven
tenths of its lines do.
"""

import random
import sys

import torch
from common import publish

COUNT, STEPS = 100, 12
RECIPE = dict(epochs=6, lr=1e-3, ema_decay=0.99, warmup_steps=50, cosine_decay=True)


def load(path=None):
    from safetensors.torch import load_file

    from diffusion_course.latents import TEXT_MODEL, TextToImage
    from diffusion_course.wild import add_control

    model = TextToImage.from_pretrained(TEXT_MODEL).requires_grad_(False)
    torch.manual_seed(0)
    add_control(model.unet)
    if path is not None:
        model.load_state_dict(load_file(path), strict=False)
    return model


def train(path):
    """Train what add_control adds on the edges of the training faces, half of them without words; save it."""
    from torch.utils.data import DataLoader, TensorDataset

    from diffusion_course.attention import tokens
    from diffusion_course.conditioning import drop_labels
    from diffusion_course.latents import encode
    from diffusion_course.toy import VOCABULARY, attribute_faces, caption
    from diffusion_course.wild import control_loss, edges, save_learned
    from diffusion_utils import Training

    model, dice = load(), random.Random(0)
    faces, labels = attribute_faces("train", 64)
    prompts = [caption(row, dice) for row in drop_labels(labels, everything=0.5)]
    data = TensorDataset(encode(model.autoencoder, faces), tokens(prompts, VOCABULARY), edges(faces))
    loader = DataLoader(data, 32, shuffle=True, drop_last=True)
    training = Training(model, loader, loss=control_loss, **RECIPE)
    for step in training:
        if step % 93 == 0:
            print(f"step {step}: loss {float(sum(training.history['loss'][-93:])) / 93:.3f}", flush=True)
    path.parent.mkdir(exist_ok=True)
    save_learned(model, path)
    print(f"{sum(weight.numel() for weight in model.parameters() if weight.requires_grad):,} weights learned")


def followed(images, lines):
    """The share of the lines (N, 1, S, S) of each image that have an edge of it at most a pixel away: (N,)."""
    from diffusion_course.wild import edges

    near = torch.nn.functional.max_pool2d(edges(images), 3, stride=1, padding=1)
    return (near * lines).sum(dim=(1, 2, 3)) / lines.sum(dim=(1, 2, 3))


def main(measure_only):
    from diffusion_course.attention import text_to_image
    from diffusion_course.quality import labelled_faces
    from diffusion_course.samplers import DPMSolver
    from diffusion_course.wild import CONTROL, edges, roughen, set_control
    from diffusion_utils import pick_accelerator

    if not measure_only:
        train(CONTROL)
    model, rows = load(CONTROL).eval(), []
    torch.manual_seed(1)
    whole = edges(labelled_faces("test", 64)[0][:COUNT])
    for name, lines in (("whole", whole), ("rough", roughen(whole)), ("none", torch.zeros_like(whole))):
        set_control(model, lines)
        options = dict(guidance_scale=1, steps=STEPS, sampler=DPMSolver(), seed=0)
        with pick_accelerator().autocast():  # in 16 bits, where the machine has them
            images = text_to_image(model, "", COUNT, **options).float()
        shares = followed(images, lines if name == "rough" else whole)
        chance = followed(images, whole.roll(1, 0))
        rows.append([name, f"{shares.mean():.2f}", f"{chance.mean():.2f}", int((shares > 0.7).sum())])
    summary = f"Of {COUNT} held-out faces' edges {rows[0][3]} are followed, of rough ones {rows[1][3]}, without control {rows[2][3]}"
    publish("Control", ["lines", "followed", "by chance", "faces that follow"], rows, summary)


if __name__ == "__main__":
    main("--measure" in sys.argv[1:])
