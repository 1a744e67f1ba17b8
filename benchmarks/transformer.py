"""A transformer against a U-Net, and what a transformer on pixels should predict (lesson 18).

    python benchmarks/transformer.py          fifty minutes of one thread
    python benchmarks/transformer.py pixels   the second table only

Latents: AttentionUNet and DiT, each with a text encoder of its own, from nothing, three training runs of four minutes of
processor time each; captions, loss and optimizer as in words.py. Attributes, pixel and kernel distance (lesson 07) of 400 faces
from captions of held-out faces.

Pixels: a small DiT straight on 32×32 pixels, in patches of 4×4 (48 numbers each, which go through 24),
without a prompt, that predicts image, v or noise, all with the squared error of v. Equal steps; 400 faces each. The first
faces go to images/dit_pixels.png: one row for each.
"""

import random
import sys
import time

import torch
from common import ROOT, fresh, judged, middle, publish, spread
from PIL import Image
from words import draw, muon_for_hidden, words_loss

SECONDS, SEEDS = 240, (0, 1, 2)
PIXEL_STEPS, WIDTHS, PREDICTS = 700, (24,), ("image", "v", "noise")


# Latents --------------------------------------------------------------------------------


def new(name, seed):
    from diffusion_course.latents import TEXT_MODEL, TextToImage, TextToImageConfig
    from diffusion_course.toy import VOCABULARY
    from diffusion_course.transformer import DiffusionTransformer

    torch.manual_seed(seed)
    model = {"U-Net": TextToImage, "DiT": DiffusionTransformer}[name](TextToImageConfig(VOCABULARY))
    model.autoencoder = TextToImage.from_pretrained(TEXT_MODEL).autoencoder.requires_grad_(False)
    return model


def train(model, loader, loss, optimizer, steps, seed, seconds=None):
    """Take `steps` steps, or as many as fit into `seconds` of processor time, which ten steps are tried for."""
    from diffusion_utils import Training

    recipe = dict(lr=2e-3, weight_decay=0.01, ema_decay=0.995, warmup_steps=100, cosine_decay=True, seed=seed)
    if seconds:
        first = {name: weight.clone() for name, weight in model.state_dict().items()}
        for step in Training(model, loader, loss=loss, optimizer=optimizer, epochs=1, **recipe):
            if step == 5:
                start = time.process_time()
            if step == 25:
                steps = round(20 * seconds / (time.process_time() - start))
                break
        model.load_state_dict(first)
    epochs = max(1, round(steps / len(loader)))
    return len(list(Training(model, loader, loss=loss, optimizer=optimizer, epochs=epochs, **recipe)))


def latents(name, seed):
    """`(steps, attributes as in the prompt, pixel distance, kernel distance)` after one training run."""
    from diffusion_course.latents import encode
    from diffusion_course.quality import HEADS, attributes, labelled_faces, load_classifier
    from diffusion_course.toy import attribute_faces, caption

    model = new(name, seed)
    faces, labels = attribute_faces("train", 64)
    data = torch.utils.data.TensorDataset(encode(model.autoencoder, faces), labels)
    loader = torch.utils.data.DataLoader(data, 64, shuffle=True, drop_last=True)
    steps = train(model, loader, words_loss, muon_for_hidden, None, seed, SECONDS)
    model = model.cpu().eval().requires_grad_(False)
    dice, classes = random.Random(0), labelled_faces("test", 32)[1]
    drawn = draw(model, [caption(row, dice) for row in attribute_faces("test")[1][:400]])
    seen = attributes(load_classifier(), drawn)
    right = [(seen[key] == classes[key][:400]).float().mean().item() for key in HEADS]
    (pixel,), (kernel,), _ = judged([drawn], 64)
    print(name, seed, steps, sum(right) / len(right), pixel, kernel, flush=True)
    return steps, sum(right) / len(right), pixel, kernel


def latent_table():
    rows = []
    for name in ("U-Net", "DiT"):
        model = new(name, 0)
        count = sum(weight.numel() for weight in model.unet.parameters())
        results = zip(*(fresh(latents, name, seed) for seed in SEEDS))
        digits = (0, 3, 2, 2)
        rows.append([name, f"{count / 1e6:.1f}", *(spread(values, n) for values, n in zip(results, digits))])
    columns = ["network", "million parameters", "steps", "attributes as in the prompt", "pixel distance"]
    summary = ", ".join(
        f"{row[0]} {middle(row[3])} as in the prompt, kernel distance {middle(row[5])}" for row in rows
    )
    note = f"{SECONDS} seconds of processor time, batches of 64; median and range of three training runs."
    publish("Transformer", [*columns, "kernel distance"], rows, summary=f"{summary}.", note=note)


# Pixels ---------------------------------------------------------------------------------


def pixel_model(predicts, width, seed=0):
    """A Diffusion on 32×32 pixels whose network is a DiT with patches of 4×4, `width` numbers for each."""
    from diffusion_course.transformer import DiT
    from diffusion_utils import Diffusion, DiffusionConfig, schedule

    class PixelDiT(Diffusion):
        def __init__(self, config):
            super().__init__(config)
            shape = dict(patch=4, width=width, depth=6, heads=4, text_width=8, size=128)
            self.unet = DiT(32, 3, **shape)

        def network(self, noisy, time):
            nothing = torch.zeros(len(noisy), 1, 8, device=noisy.device)
            mask = torch.zeros(len(noisy), 1, dtype=torch.bool, device=noisy.device)
            noise_rate, signal_rate = schedule(time)
            share = noise_rate / (noise_rate + signal_rate)
            return self.unet(noisy, share.flatten(), nothing, mask, nothing[:, 0])

    torch.manual_seed(seed)
    return PixelDiT(DiffusionConfig(image_size=32, predicts=predicts))


def v_loss(diffusion, images):
    """The squared error of v, whatever the network predicts."""
    from diffusion_utils import mix, schedule

    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), torch.rand(len(image), 1, 1, 1, device=image.device)
    noisy, (noise_rate, signal_rate) = mix(image, noise, time), schedule(time)
    predicted_noise = diffusion.predict_noise(noisy, time)
    predicted_image = (noisy - noise_rate * predicted_noise) / signal_rate
    off = signal_rate * (predicted_noise - noise) - noise_rate * (predicted_image - image)
    return off.square().mean()


def pixels(predicts, width):
    """`(row, the first faces)`."""
    from diffusion_utils import generate, get_data, get_loader

    model = pixel_model(predicts, width)
    loader = get_loader(get_data(size=32), 64, seed=0)
    train(model, loader, v_loss, muon_for_hidden, PIXEL_STEPS, 0)
    faces = generate(model, 400, seed=1)
    (pixel,), (kernel,), (bar,) = judged([faces])
    row = [predicts, width, f"{pixel:.2f}", f"{kernel:.2f} ± {bar:.2f}"]
    print(*row, flush=True)
    return row, faces[:10]


def pixel_table():
    results = [fresh(pixels, predicts, width) for width in WIDTHS for predicts in PREDICTS]
    images = torch.stack([faces for _, faces in results])
    sheet = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    sheet = sheet.repeat_interleave(3, dim=0).repeat_interleave(3, dim=1)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(ROOT / "images" / "dit_pixels.png")
    rows = [row for row, _ in results]
    columns = ["predicts", "numbers for a patch of 48", "pixel distance", "kernel distance"]
    summary = "; ".join(f"{row[0]} at {row[1]}: {row[2]}" for row in rows)
    note = f"{PIXEL_STEPS} steps of 64, one training run each."
    publish("Patches of pixels", columns, rows, summary=f"Pixel distance: {summary}.", note=note)


if __name__ == "__main__":
    if sys.argv[1:] != ["pixels"]:
        latent_table()
    pixel_table()
