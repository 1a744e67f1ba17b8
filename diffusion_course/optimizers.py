"""A better use of each gradient, in the order of lesson 11.

Lesson 11  even_times, even_l1_loss, orthogonalize, Muon, muon

    training = Training(diffusion, loader, loss=even_l1_loss, optimizer=muon, **CPU_RECIPE)
"""

import torch
from torch import nn

from diffusion_utils import Residual, mix


def even_times(count, device=None):
    """Random times (count, 1, 1, 1) in [0, 1) that lie evenly apart, in random order. Lesson 11.

    So no batch is easier or harder than others by chance. Kingma et al. 2021, appendix I.1.
    """
    places = torch.randperm(count, device=device) + torch.rand(1, device=device)
    return (places / count).view(-1, 1, 1, 1)


def even_l1_loss(diffusion, images):
    """`l1_loss` of lesson 04 with the times of `even_times`: the same on average, with less jitter. Lesson 11."""
    if images.shape[2:] != (diffusion.config.image_size, diffusion.config.image_size):
        raise ValueError(f"images: {tuple(images.shape)}, but image_size={diffusion.config.image_size}")
    image = diffusion.norm(images)
    noise = torch.randn_like(image)
    time = even_times(len(image), image.device)
    return nn.functional.l1_loss(diffusion.predict_noise(mix(image, noise, time), time), noise)


def orthogonalize(matrix, steps=5):
    """Bring all singular values of `matrix` (M, N) near 1 and keep its singular vectors. Lesson 11.

    A Newton–Schulz iteration, in bfloat16 where the machine computes with it, with the coefficients of Jordan et al.
    2024, which lift small values fast and leave all of them somewhere between 0.7 and 1.2.
    """
    wide = matrix.T if len(matrix) > len(matrix.T) else matrix  # the smaller side first is cheaper
    x = wide / (wide.norm() + 1e-7)
    if matrix.is_cuda or torch.cpu._is_avx512_bf16_supported():  # elsewhere bfloat16 is ten times slower
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if len(matrix) > len(matrix.T) else x).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """Orthogonalised momentum for the weights `hidden`, of two or more dimensions; AdamW for the `others`. Lesson 11.

    Jordan et al. 2024, with Nesterov's momentum. The weights of a convolution (out, in, k, k) count as a matrix
    (out, in·k·k); steps are scaled as in Liu et al. 2025, so that both parts can share one learning rate.
    """

    def __init__(self, hidden, others, lr, weight_decay=0.01, momentum=0.95):
        groups = [{"params": hidden, "weight_decay": 0.01}, {"params": others}]
        super().__init__(groups, lr, weight_decay=weight_decay)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure=None):
        hidden = self.param_groups[0]
        for weight in hidden["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
                state["step"] = torch.tensor(0.0)  # AdamW, which loads the state, looks for it
            state["momentum"].lerp_(weight.grad, 1 - self.momentum)
            direction = weight.grad.lerp(state["momentum"], self.momentum).flatten(1)
            size = 0.2 * max(direction.shape) ** 0.5
            weight.mul_(1 - hidden["lr"] * hidden["weight_decay"])
            weight.sub_(orthogonalize(direction).view_as(weight), alpha=hidden["lr"] * size)
            weight.grad = None  # so AdamW passes it by
        return super().step(closure)


def muon(model, recipe):
    """Muon for the convolutions of all Residual blocks, AdamW for the rest; an optimizer for `Training`. Lesson 11."""
    blocks = nn.ModuleList(module for module in model.modules() if isinstance(module, Residual))
    hidden = [weight for weight in blocks.parameters() if weight.ndim == 4]
    places = {id(weight) for weight in hidden}
    others = [weight for weight in model.parameters() if id(weight) not in places]
    return Muon(hidden, others, recipe.lr, recipe.weight_decay)
