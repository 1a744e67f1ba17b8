"""What is each part worth? Lesson 04's training again and again, each time with one part left out or replaced.

    python benchmarks/ablation.py

Lesson 04's network, recipe and images, three training runs of each. Pixel distance and kernel distance (lesson 07)
of 400 samples to 1,000 held-out faces.
"""

import torch
from common import fresh, judged, middle, publish, spread, start_at_zero

PARTS = (
    "nothing",
    "the skips of the U-Net",
    "the shortcuts of the blocks",
    "the noise embedding",
    "the average of the weights",
    "the cosine schedule, for the linear one",
    "the absolute error, for the squared one",
)


def linear_schedule(time):
    """That of Ho et al. 2020 with continuous time: the noise comes in steps that grow evenly. Song et al. 2021."""
    signal_rate = torch.as_tensor(-(19.9 * time**2) / 4 - 0.1 * time / 2).exp()
    return (1 - signal_rate**2).sqrt(), signal_rate


def squared_loss(diffusion, images):
    noise, predicted_noise = diffusion(images)
    return torch.nn.functional.mse_loss(predicted_noise, noise)


def without_skips(blocks):
    for block in blocks:  # what comes by the skip are the last channels of a block's input on the way up
        skip = block.cnn.out_channels
        block.register_forward_pre_hook(
            lambda _, x, skip=skip: torch.cat((x[0][:, :-skip], torch.zeros_like(x[0][:, -skip:])), 1)
        )


def without_embedding(combine):
    colours = combine.cnn.out_channels
    combine.register_forward_hook(
        lambda _, x, out: torch.cat((out[:, :colours], torch.zeros_like(out[:, colours:])), 1)
    )


def switch_off(part, diffusion):
    """Switch a part of the network off."""
    from diffusion_utils import Residual

    if part == "the skips of the U-Net":
        without_skips([block for block in diffusion.unet.up if isinstance(block, Residual)])
    if part == "the shortcuts of the blocks":
        for block in [block for block in diffusion.unet.modules() if isinstance(block, Residual)]:
            for parameter in block.cnn.parameters():
                torch.nn.init.zeros_(parameter.requires_grad_(False))
    if part == "the noise embedding":
        without_embedding(diffusion.combine)


def without(part, seed):
    """`(pixel distance, kernel distance)` of the training without `part`."""
    import diffusion_utils
    from diffusion_utils import (
        CPU_RECIPE,
        CPU_SHAPE,
        Diffusion,
        DiffusionConfig,
        Training,
        generate,
        get_data,
        get_loader,
        l1_loss,
    )

    if part == "the cosine schedule, for the linear one":
        diffusion_utils.schedule = linear_schedule  # in this process, which ends with the training
    torch.manual_seed(seed)
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE)))
    switch_off(part, diffusion)
    loss = squared_loss if part == "the absolute error, for the squared one" else l1_loss
    training = Training(
        diffusion, get_loader(get_data(size=32), 32), loss=loss, **CPU_RECIPE | dict(seed=seed)
    )
    for step in training:
        if step == len(training) and part == "the average of the weights":
            break  # the raw weights stay
    drawn = generate(diffusion.to(memory_format=torch.contiguous_format), n=400, seed=seed).cpu()
    (pixels,), (kernel,), _ = judged([drawn])
    return pixels, kernel


if __name__ == "__main__":
    rows = []
    for part in PARTS:
        pixels, kernels = zip(*(fresh(without, part, seed) for seed in range(3)))
        rows.append([part, spread(pixels), spread(kernels)])
        print(*rows[-1], flush=True)
    summary = "; ".join(f"{middle(kernel)} ({part})" for part, _, kernel in rows)
    columns = ["left out", "pixel distance, three training runs", "kernel distance"]
    publish("Ablation", columns, rows, summary=f"Kernel distance {summary}.")
