"""Out into the world, in the order of lesson 19: the course's models under other people's tools, and changed a little.

Lesson 19  diffusers:    scheduler_betas, draw_with
           fine-tuning:  LoRA, add_lora, merge_lora
           control:      ControlledLevel, add_control

    draw_with(diffusion, DDIMScheduler(trained_betas=scheduler_betas(), timestep_spacing="trailing"), n=5, seed=0)
"""

import copy

import torch
from torch import nn

from diffusion_utils import denormalize, schedule, starting_noise

# diffusers ------------------------------------------------------------------------------


def scheduler_betas(count=1000):
    """The β of each of `count` discrete times, which are ours from 1 / count to 1, as diffusers' schedulers take them. Lesson 19.

    Ho et al. 2020: ᾱ is our signal_rate², and β = 1 - ᾱ / (ᾱ one time before).
    """
    _, signal_rate = schedule(torch.arange(1, count + 1, dtype=torch.float64) / count)
    alphas = torch.cat((torch.ones(1, dtype=torch.float64), signal_rate**2))
    return (1 - alphas[1:] / alphas[:-1]).numpy()


@torch.no_grad()
def draw_with(diffusion, scheduler, n=5, steps=20, seed=None):
    """Draw `n` images (n, C, S, S) in [0, 1] by a scheduler of diffusers made with `scheduler_betas()`. Lesson 19.

    It does what a pipeline of diffusers does: set the times, then ask the network and take a step for each.
    """
    network = copy.deepcopy(diffusion).float().eval()
    scheduler.set_timesteps(steps)
    noisy = starting_noise(network, n, seed) * scheduler.init_noise_sigma
    count = scheduler.config.num_train_timesteps
    for timestep in scheduler.timesteps:
        time = torch.full((n, 1, 1, 1), (float(timestep) + 1) / count, device=network.device)
        predicted_noise = network.predict_noise(scheduler.scale_model_input(noisy, timestep), time)
        noisy = scheduler.step(predicted_noise, timestep, noisy).prev_sample
    return denormalize(network, noisy)


# Fine-tuning ----------------------------------------------------------------------------


class LoRA(nn.Module):
    """A frozen linear layer or convolution, and beside it a change of low rank that learns: W + B·A. Lesson 19.

    Hu et al. 2021. A has `rank` rows, B as many columns; B starts at zero, so at first nothing has changed. Of a convolution, A
    is one of the same kernel, and B is 1×1.
    """

    def __init__(self, layer, rank=4):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            shape = dict(kernel_size=layer.kernel_size, stride=layer.stride, padding=layer.padding)
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))

    @torch.no_grad()
    def merged(self):
        """The layer with the change added to its weights: the same function, at the old cost."""
        layer = copy.deepcopy(self.layer)
        change = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        layer.weight += change.view_as(layer.weight)
        return layer


def add_lora(module, rank=4, kinds=(nn.Linear, nn.Conv2d)):
    """Freeze `module`, and put a LoRA around each of its layers of these kinds; returns those, in order. Lesson 19."""
    module.requires_grad_(False)
    layers = [(name, layer) for name, layer in module.named_modules() if type(layer) in kinds]
    loras = []
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        loras.append(LoRA(layer, rank))
        setattr(module.get_submodule(parent), child, loras[-1])
    return loras


def merge_lora(module):
    """Put layers with merged weights in the place of all LoRA of `module`. Lesson 19."""
    loras = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LoRA)]
    for name, layer in loras:
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.merged())


# Control --------------------------------------------------------------------------------


class ControlledLevel(nn.Module):
    """A frozen level of an AttentionUNet, and beside it a copy that also sees a control image, and learns. Lesson 19.

    `control` (N or 1, channels, S, S) is set before drawing. What the copy sees joins through a 1×1 convolution that starts at
    zero, so at first nothing changes. Zhang et al. 2023 (ControlNet), in small.
    """

    def __init__(self, level, channels):
        super().__init__()
        self.level = level.requires_grad_(False)
        self.branch = copy.deepcopy(level).requires_grad_(True)
        self.control_in = nn.Conv2d(channels, level.block.conv1.in_channels, 3, padding=1)
        width = level.block.conv2.out_channels
        self.joint = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.joint.weight)
        nn.init.zeros_(self.joint.bias)
        self.control = None

    def forward(self, x, condition, words, mask):
        control = nn.functional.adaptive_avg_pool2d(self.control, x.shape[2:]).expand(len(x), -1, -1, -1)
        seen = self.branch(x + self.control_in(control), condition, words, mask)
        return self.level(x, condition, words, mask) + self.joint(seen)


def add_control(unet, channels=16):
    """Freeze an AttentionUNet, and give the levels of its way down a ControlledLevel each; returns those. Lesson 19."""
    unet.requires_grad_(False)
    levels = [ControlledLevel(level, channels) for level in unet.down]
    unet.down = nn.ModuleList(levels)
    return levels
