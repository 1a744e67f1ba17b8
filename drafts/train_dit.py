"""Train the text encoder and the U-Net on latents, by the clock; a run can be continued.

python train_text_to_image.py --minutes 85                         from nothing, cosine to a tenth of the rate
python train_text_to_image.py --minutes 120 --resume --hold 0.6    continue: constant for 60 %, then cosine
"""

import argparse
import math
import os
import random
import time

import torch

import sys
sys.path[:0] = ["/root/dit/course"]
from optimizers import Muon, split_parameters
from diffusion_course.attention import tokens
from diffusion_course.conditioning import drop_labels as leave_out
from diffusion_course.latents import TEXT_MODEL, TextToImage, TextToImageConfig
from diffusion_course.toy import VOCABULARY, attribute_faces, caption
from diffusion_course.transformer import DiffusionTransformer


def prompt_tokens(prompts, mirrored):
    rows = tokens(prompts, VOCABULARY)
    rows[:, 0] += mirrored.long()
    return rows[:, : int((rows > 0).sum(dim=1).max())]

MUON_RATE, ADAM_RATE = 2e-3, 1e-3
OUTER = ["embedding", "positions", "patches", "time1"]  # weights that AdamW trains
EMA_DECAY = 0.9995
CHECKPOINT = "resume.pt"


def rate_factor(done, step, hold, end=0.1, warmup=100):
    """Warm-up, then constant for a share `hold` of the time, then half a cosine down to `end`."""
    decayed = min(1, max(0, (done - hold) / (1 - hold)))
    return min(1, (step + 1) / warmup) * (end + (1 - end) * (1 + math.cos(math.pi * decayed)) / 2)


def captions(said, dice):
    """A new caption for each row of `said`, of which some is forgotten; one in fourteen is empty."""
    rows = leave_out(said, everything=0.03)
    return ["" if dice.random() < 0.07 else caption(row, dice, vague=0.15) for row in rows]


def draw_times(count):
    """Times (N,) that are logit-normal, mean 0.3, deviation 1, spread evenly within the batch. Esser et al. 2024."""
    even = (torch.arange(count) + torch.rand(count)) / count
    normal = torch.special.ndtri(even.clip(1e-6, 1 - 1e-6))
    return torch.sigmoid(0.3 + normal)


def flow_loss(model, latents, prompts):
    """The mean squared error of the velocity. Lipman et al. 2023; Liu et al. 2023."""
    times = draw_times(len(latents))
    noise = torch.randn_like(latents)
    at = times[:, None, None, None]
    noisy = (1 - at) * latents + at * noise
    with torch.autocast("cpu", torch.bfloat16):
        answer = model.unet(noisy, times, *model.encoder(prompts))
    return (answer.float() - (noise - latents)).square().mean()


@torch.no_grad()
def encoded(autoencoder, faces):
    """Latents (2, N, 4, 16, 16) of faces and of their mirror images."""
    parts = [torch.cat([autoencoder.encode(x) for x in some.split(100)]) for some in (faces, faces.flip(3))]
    return torch.stack(parts)


def save(path, **content):
    """Write under a temporary name first, so that a whole file is always there."""
    torch.save(content, path + ".new")
    os.replace(path + ".new", path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--hold", type=float, default=0.0)
    options = parser.parse_args()
    torch.set_num_threads(1)

    torch.manual_seed(1)
    model = DiffusionTransformer(TextToImageConfig(VOCABULARY))
    shipped = TextToImage.from_pretrained(TEXT_MODEL)
    model.autoencoder.load_state_dict(shipped.autoencoder.state_dict())
    model.encoder.load_state_dict(shipped.encoder.state_dict())
    model.autoencoder.eval().requires_grad_(False)
    faces, said = attribute_faces("train", 64)
    latents = (encoded(model.autoencoder, faces) - 0.5) / 0.1
    print("latents: mean", latents.mean((0, 1, 3, 4)).tolist(), "deviation", latents.std((0, 1, 3, 4)).tolist())
    parts = torch.nn.ModuleDict({"encoder": model.encoder, "unet": model.unet})
    average = {name: value.clone() for name, value in parts.state_dict().items()}
    hidden, others = split_parameters(parts, OUTER)
    print(sum(w.numel() for w in hidden), "parameters for Muon,", sum(w.numel() for w in others), "for AdamW")
    muon = Muon(hidden, lr=MUON_RATE)
    adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    step, images, before = 0, 0, 0.0
    if options.resume:
        saved = torch.load(CHECKPOINT)
        parts.load_state_dict(saved["raw"])
        average = saved["ema"]
        muon.load_state_dict(saved["muon"])
        adam.load_state_dict(saved["adam"])
        step, images, before = saved["step"], saved["images"], saved["seconds"]
    seed = 1 + step
    torch.manual_seed(seed)
    dice = random.Random(seed)
    start = last_save = time.time()
    session_step, order, losses = 0, torch.tensor([], dtype=torch.long), []
    done = 0.0
    while done < 1:
        factor = rate_factor(done, session_step, options.hold)
        for optimizer, rate in ((muon, MUON_RATE), (adam, ADAM_RATE)):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        if len(order) < options.batch_size:
            order = torch.cat((order, torch.randperm(len(faces))))
        batch, order = order[: options.batch_size], order[options.batch_size :]
        mirrored = torch.rand(len(batch)) < 0.5
        chosen = latents[mirrored.long(), batch]
        prompts = prompt_tokens(captions(said[batch], dice), mirrored)
        loss = flow_loss(model, chosen, prompts)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in parts.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        step, session_step, images = step + 1, session_step + 1, images + len(batch)
        losses.append(loss.item())
        now = time.time()
        done = (now - start) / (60 * options.minutes)
        if session_step % 100 == 0:
            mean = sum(losses) / len(losses)
            losses = []
            print(f"{now - start:6.0f} s  step {step}  images {images}  loss {mean:.4f}  rate {factor:.3f}", flush=True)
        if now - last_save > 300 or done >= 1:
            last_save = now
            counts = dict(step=step, images=images, seconds=before + now - start)
            save(CHECKPOINT, raw=parts.state_dict(), ema=average, muon=muon.state_dict(), adam=adam.state_dict(), **counts)
    print("done", flush=True)


if __name__ == "__main__":
    main()
