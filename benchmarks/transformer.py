"""A transformer against a U-Net, and what a transformer on pixels should predict (lesson 18).

    python benchmarks/transformer.py           fifty minutes of one thread
    python benchmarks/transformer.py race      one of its tables: race, shipped or pixels

Race: AttentionUNet and DiT on latents, each with a text encoder of its own, from nothing; captions, loss and optimizer as in
words.py. As many whole passes through the training images as come nearest to four minutes of processor time, for
which twenty steps are tried first, three training runs of each; then one more of the DiT, with the U-Net's number of
steps. images/dit_race.png: faces of the first run of each.

Judged are 400 faces from captions of held-out faces: the share of lesson 07's ten attributes that its classifier finds as
on the held-out face (real faces, and real faces with the captions of others, are its ceiling and its chance), pixel and kernel
distance. Shipped: the two models that ship, judged alike.

Pixels: a small DiT straight on 32×32 pixels, in patches of 4×4, 48 numbers each, whose vectors are 24 numbers
long. Without a prompt; it predicts image, v or noise, all with the squared error of v, in equal steps; 400 faces each.
As a control, one with vectors of 96 numbers predicts noise, too.
images/dit_pixels.png: the first faces of each.
"""

import random
import sys
import time

import torch
from common import ROOT, fresh, judged, middle, publish, spread
from PIL import Image, ImageDraw, ImageFont
from text_to_image import share_as_asked
from words import draw, muon_for_hidden, words_loss

SECONDS, SEEDS, COUNT = 240, (0, 1, 2), 400
PROMPT = "a smiling face with round glasses and blue hair"
PIXEL_STEPS, PIXELS = 690, [("image", 24), ("v", 24), ("noise", 24), ("noise", 96)]


def train(model, loader, loss, optimizer, steps, seed, seconds=None):
    """`(steps, seconds of processor time)`: whole passes through the data, nearest to `steps` or to what fits into `seconds`."""
    from diffusion_utils import Training

    recipe = dict(lr=2e-3, weight_decay=0.01, ema_decay=0.995, warmup_steps=100, cosine_decay=True, seed=seed)
    if seconds:
        first = {name: weight.clone() for name, weight in model.state_dict().items()}
        for step in Training(model, loader, loss=loss, optimizer=optimizer, epochs=1, **recipe):
            if step == 5:
                start = time.process_time()
            if step == 25:
                steps = 20 * seconds / (time.process_time() - start)
                break
        model.load_state_dict(first)
    epochs, start = max(1, round(steps / len(loader))), time.process_time()
    steps = len(list(Training(model, loader, loss=loss, optimizer=optimizer, epochs=epochs, **recipe)))
    return steps, time.process_time() - start


def save_rows(path, rows, scale):
    """Save faces as an image: {label: (N, 3, S, S)}, one row each, `scale` times as large, its label at the left."""
    images = torch.stack(list(rows.values()))
    sheet = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).mul(255).round().byte()
    faces = Image.fromarray(sheet.repeat_interleave(scale, dim=0).repeat_interleave(scale, dim=1).numpy())
    font, height = ImageFont.load_default(14), faces.height // len(rows)
    left = 12 + max(round(font.getlength(label)) for label in rows)
    canvas = Image.new("RGB", (left + faces.width, faces.height), "white")
    canvas.paste(faces, (left, 0))
    for row, label in enumerate(rows):
        place = left - 6, height * row + height // 2
        ImageDraw.Draw(canvas).text(place, label, "black", font, anchor="rm")
    canvas.save(ROOT / "images" / path, optimize=True)


# Latents --------------------------------------------------------------------------------


def new(name, seed):
    from diffusion_course.latents import TEXT_MODEL, TextToImage, TextToImageConfig
    from diffusion_course.toy import VOCABULARY
    from diffusion_course.transformer import DiffusionTransformer

    torch.manual_seed(seed)
    model = (TextToImage if name == "U-Net" else DiffusionTransformer)(TextToImageConfig(VOCABULARY))
    model.autoencoder = TextToImage.from_pretrained(TEXT_MODEL).autoencoder.requires_grad_(False)
    return model


def judge(images):
    """`(attributes as in the prompt, pixel distance, kernel distance)` of images of the first held-out captions."""
    shares = share_as_asked(images).values()
    (pixel,), (kernel,), _ = judged([images], 64)
    return sum(shares) / len(shares), pixel, kernel


def draw_captions(model):
    """An image for a caption of each of the first held-out faces."""
    from diffusion_course.toy import attribute_faces, caption

    dice = random.Random(0)
    return draw(model, [caption(row, dice) for row in attribute_faces("test")[1][:COUNT]])


def race(name, seed, steps=None):
    """One training run: `(steps, seconds, attributes as in the prompt, pixel distance, kernel distance)`, some faces."""
    from diffusion_course.latents import encode
    from diffusion_course.toy import attribute_faces

    model = new(name, seed)
    faces, labels = attribute_faces("train", 64)
    data = torch.utils.data.TensorDataset(encode(model.autoencoder, faces), labels)
    loader = torch.utils.data.DataLoader(data, 64, shuffle=True, drop_last=True)
    spent = train(model, loader, words_loss, muon_for_hidden, steps, seed, None if steps else SECONDS)
    model = model.cpu().eval().requires_grad_(False)
    numbers = *spent, *judge(draw_captions(model))
    print(name, seed, *numbers, flush=True)
    return numbers, draw(model, PROMPT, n=8)


def race_table():
    results = {name: [fresh(race, name, seed) for seed in SEEDS] for name in ("U-Net", "DiT")}
    equal_steps = results["U-Net"][0][0][0]
    results["DiT, equal steps"] = [fresh(race, "DiT, equal steps", SEEDS[0], equal_steps)]
    save_rows("dit_race.png", {name: runs[0][1] for name, runs in results.items()}, scale=1)
    rows = []
    for name, runs in results.items():
        count = sum(weight.numel() for weight in new(name, 0).unet.parameters())
        steps, seconds, *_ = runs[0][0]
        scores = zip(*(numbers[2:] for numbers, _ in runs))
        cells = [spread(values, digits) for values, digits in zip(scores, (3, 2, 2))]
        cells = cells if len(runs) > 1 else map(middle, cells)
        rows.append([name, f"{count / 1e6:.1f}", steps, f"{seconds:.0f}", *cells])
    columns = ["network", "million parameters", "steps", "seconds of processor time"]
    columns += ["attributes as in the prompt", "pixel distance", "kernel distance"]
    summary = "; ".join(
        f"{row[0]} {middle(row[4])} as in the prompt, kernel distance {middle(row[6])}" for row in rows
    )
    note = f"Whole passes through the training images, nearest to {SECONDS} seconds of processor time, in batches of 64; "
    note += "then as many as the U-Net's. Steps and seconds are those of the first training run. "
    note += "Median and range of three; with equal steps one."
    publish("Transformer", columns, rows, summary=f"{summary}.", note=note)


def shipped(name):
    """The row of a model that ships."""
    from diffusion_course.latents import TEXT_MODEL, TextToImage
    from diffusion_course.transformer import DIT_MODEL, DiffusionTransformer

    kind, folder = {"U-Net": (TextToImage, TEXT_MODEL), "DiT": (DiffusionTransformer, DIT_MODEL)}[name]
    model = kind.from_pretrained(folder).float().eval().requires_grad_(False)
    right, pixel, kernel = judge(draw_captions(model))
    return [f"{name}, shipped", f"{right:.3f}", f"{pixel:.2f}", f"{kernel:.2f}"]


def bounds():
    """The rows of real faces through the autoencoder, with their own attributes and with those of the next."""
    from diffusion_course.latents import TEXT_MODEL, TextToImage, decode, encode
    from diffusion_course.quality import labelled_faces

    autoencoder = TextToImage.from_pretrained(TEXT_MODEL).float().eval().requires_grad_(False).autoencoder
    faces = decode(autoencoder, encode(autoencoder, labelled_faces("test", 64)[0][:COUNT]))
    rows = []
    for name, images in (("real faces", faces), ("real faces, captions of others", faces.roll(1, 0))):
        shares = share_as_asked(images).values()
        rows.append([name, f"{sum(shares) / len(shares):.3f}", "–", "–"])
    return rows


def shipped_table():
    rows = [fresh(shipped, "U-Net"), fresh(shipped, "DiT"), *fresh(bounds)]
    columns = ["faces by", "attributes as in the prompt", "pixel distance", "kernel distance"]
    summary = "; ".join(f"{row[0]} {row[1]}" for row in rows)
    note = f"{COUNT} faces from captions; 12 steps of DPM-Solver++ 2M, guidance scale 2."
    publish("Transformer, shipped", columns, rows, summary=f"As in the prompt: {summary}.", note=note)


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
    """`(row, steps, the first faces)`."""
    from diffusion_utils import generate, get_data, get_loader

    model = pixel_model(predicts, width)
    loader = get_loader(get_data(size=32), 64, seed=0)
    steps, _ = train(model, loader, v_loss, muon_for_hidden, PIXEL_STEPS, 0)
    faces = generate(model, COUNT, seed=1)
    (pixel,), (kernel,), (bar,) = judged([faces])
    row = [predicts, width, f"{pixel:.2f}", f"{kernel:.2f} ± {bar:.2f}"]
    print(*row, flush=True)
    return row, steps, faces[:8]


def pixel_table():
    results = [fresh(pixels, predicts, width) for predicts, width in PIXELS]
    save_rows("dit_pixels.png", {f"{row[0]}, width {row[1]}": faces for row, _, faces in results}, scale=2)
    rows = [row for row, _, _ in results]
    columns = ["predicts", "numbers for a patch of 48", "pixel distance", "kernel distance"]
    summary = "; ".join(f"{row[0]} at {row[1]}: {row[2]}" for row in rows)
    note = f"{results[0][1]} steps of 64, one training run each."
    publish("Patches of pixels", columns, rows, summary=f"Pixel distance: {summary}.", note=note)


if __name__ == "__main__":
    tables = {"race": race_table, "shipped": shipped_table, "pixels": pixel_table}
    for name in sys.argv[1:] or tables:
        tables[name]()
