"""Out into the world, in the order of lesson 19: the course's models under other people's tools, and changed a little.

Lesson 19  diffusers:    scheduler_betas, draw_with, save_pipeline, draw_for
           fine-tuning:  add_word, tuning_loss, LoRA, add_lora, merge_lora, save_learned
           control:      ControlledLevel, add_control, edges, set_control, roughen, control_loss

    draw_with(diffusion, DDIMScheduler(trained_betas=scheduler_betas(), timestep_spacing="trailing"), n=5, seed=0)

diffusers itself is imported nowhere here: its schedulers and pipelines come as arguments.
"""

import copy
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from diffusion_course import attention, latents, samplers
from diffusion_utils import ROOT, ddim, denormalize, sample, schedule, starting_noise

PIPELINE = ROOT / "pretrained" / "face_pipeline"  # what save_pipeline copies
CONTROL = ROOT / "pretrained" / "face_control" / "control.safetensors"  # what add_control adds, trained

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

    It does what a pipeline of diffusers does: set the times, then ask the network and take a step for each. Raises
    ValueError for a scheduler with another schedule, or for another prediction than noise.
    """
    options = scheduler.config
    if options.get("trained_betas") is None or options.get("prediction_type") != "epsilon":
        raise ValueError("scheduler: make it with trained_betas=scheduler_betas(), prediction_type='epsilon'")
    network = copy.deepcopy(diffusion).float().eval()
    scheduler.set_timesteps(steps)
    noisy = starting_noise(network, n, seed) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        time = (timestep.to(noisy) + 1).expand(n, 1, 1, 1) / scheduler.config.num_train_timesteps
        predicted_noise = network.predict_noise(scheduler.scale_model_input(noisy, timestep), time)
        noisy = scheduler.step(predicted_noise, timestep, noisy).prev_sample
    return denormalize(network, noisy)


# The parts of a TextToImage, under the names that they have in Stable Diffusion: the definitions that each consists of.
PARTS = {
    "unet": [attention.Attention, attention.SpatialAttention, latents.ConvBlock, latents.ConditionedBlock,
             latents.Level, latents.embed_time, latents.AttentionUNet],
    "text_encoder": [attention.Attention, attention.TransformerBlock, attention.TextEncoder],
    "vae": [latents.ConvBlock, latents.Autoencoder],
}  # fmt: skip


def save_pipeline(model, folder):
    """Write a TextToImage as a folder that DiffusionPipeline of diffusers opens, without this course. Lesson 19.

    Raises RuntimeError where its U-Net is not that of lesson 17, or has LoRA in it: call `merge_lora` first. Raises
    FileExistsError where there is such a folder, unless an earlier call has written it.
    """
    folder, vocabulary = Path(folder), model.config.vocabulary
    # raises where what is written below could not be opened
    latents.AttentionUNet(model.config.widths).load_state_dict(model.unet.state_dict())
    shutil.copytree(PIPELINE, folder, dirs_exist_ok=(folder / "unet" / "face_unet.py").exists())
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"vocabulary": " ".join(vocabulary), "wordings": dict(model.config.wordings)}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    options = [{"widths": model.config.widths}, {"count": len(vocabulary) + 2}, {}]
    for name, part, arguments in zip(PARTS, (model.unet, model.encoder, model.autoencoder), options):
        (folder / name).mkdir(exist_ok=True)
        base = PARTS[name][-1].__name__
        wrapper = f"class Face{base}({base}, ModelMixin, ConfigMixin):\n    __init__ = register_to_config({base}.__init__)\n"
        sources = [(folder / "head.txt").read_text(), *map(inspect.getsource, PARTS[name]), wrapper]
        (folder / name / f"face_{name}.py").write_text("\n\n".join(sources), encoding="utf-8")
        (folder / name / "config.json").write_text(json.dumps(arguments))
        save_file(part.state_dict(), folder / name / "diffusion_pytorch_model.safetensors", {"format": "pt"})


@torch.no_grad()
def draw_for(pipeline, prompt, noise, steps=20, sampler=ddim, negative_prompt="", guidance_scale=7.5):
    """Draw as `prompt` says with a Stable Diffusion pipeline of diffusers, but with a sampler of ours. Lesson 19.

    `noise` (1, channels, S, S): latents to start from, in 32 bits. Returns the image (1, 3, 8 S, 8 S) in [0, 1].
    """
    text = torch.cat(pipeline.encode_prompt(prompt, noise.device, 1, True, negative_prompt))
    # the noise rate / signal rate at each of its times, rising
    sigmas = (1 / pipeline.scheduler.alphas_cumprod.double().cpu() - 1).sqrt().numpy()

    def predict(noisy, time):
        noise_rate, signal_rate = schedule(time)
        timestep = np.interp(float((noise_rate / signal_rate).max()), sigmas, range(len(sigmas)))
        both = torch.cat((noisy, noisy)).to(text.dtype)
        conditioned, unconditional = pipeline.unet(both, timestep, text).sample.float().chunk(2)
        output = unconditional + guidance_scale * (conditioned - unconditional)
        if pipeline.scheduler.config.prediction_type == "v_prediction":
            output = noise_rate * noisy + signal_rate * output
        return output, (noisy - noise_rate * output) / signal_rate

    places = np.linspace(len(sigmas) - 1, 0, steps + 1)
    times = [samplers.time_of(sigma) for sigma in np.interp(places, range(len(sigmas)), sigmas)]
    *_, (_, latent) = sample(predict, noise, times, sampler)
    image = pipeline.vae.decode(latent.to(text.dtype) / pipeline.vae.config.scaling_factor).sample.float()
    return (image / 2 + 0.5).clip(0, 1)


# Fine-tuning ----------------------------------------------------------------------------


def add_word(model, word):
    """Add a word to the vocabulary of a TextToImage; its vector is random, but always the same. Lesson 19.

    Raises ValueError for one that no prompt could hold, or that is read as another one.
    """
    count, old = len(model.config.vocabulary), model.encoder.embedding.weight
    if attention.tokens(word, [*model.config.vocabulary, word], model.config.wordings)[0, 1] != count + 1:
        raise ValueError(f"word: {word!r} would not be read; take a new one, in small letters")
    row = torch.randn(1, old.shape[1], generator=torch.Generator().manual_seed(count)) * old[1:].std().item()
    weight = torch.cat((old[: count + 1], row.to(old), old[count + 1 :]))  # start tokens stay the last
    model.encoder.embedding = nn.Embedding.from_pretrained(weight.detach(), padding_idx=0)
    model.config.vocabulary = [*model.config.vocabulary, word]


def tuning_loss(model, batch):
    """`flow_loss`, but mean and deviation of latents stay those of the faces that the model comes from. Lesson 19."""
    model.norm.eval()
    return latents.flow_loss(model, batch)


class LoRA(nn.Module):
    """A frozen linear layer or convolution, and beside it a change of low rank that learns: W + B·A. Lesson 19.

    Hu et al. 2021. A has `rank` rows, B as many columns; B starts at zero, so at first nothing has changed. Of a convolution, A
    is one of the same kernel, and B is 1×1. `scale` turns the change down, to 0, or up.
    """

    def __init__(self, layer, rank=4):
        super().__init__()
        self.layer, self.scale = layer.requires_grad_(False), 1.0
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)
        else:
            shape = dict(kernel_size=layer.kernel_size, stride=layer.stride, padding=layer.padding)
            self.down = nn.Conv2d(layer.in_channels, rank, bias=False, **shape)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.layer(x) + self.scale * self.up(self.down(x))

    @torch.no_grad()
    def merged(self):
        """The layer with the change added to its weights: the same function, at the old cost."""
        layer = copy.deepcopy(self.layer)
        change = self.up.weight.flatten(1) @ self.down.weight.flatten(1)
        layer.weight += self.scale * change.view_as(layer.weight)
        return layer


def add_lora(module, rank=4, kinds=(nn.Linear, nn.Conv2d)):
    """Freeze `module`, and put a LoRA around each layer of these kinds inside it. Lesson 19."""
    module.requires_grad_(False)
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if type(layer) in kinds:
                setattr(parent, name, LoRA(layer, rank))


def merge_lora(module):
    """Put layers with merged weights in the place of all LoRA inside `module`. Lesson 19."""
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, LoRA):
                setattr(parent, name, layer.merged())


def save_learned(model, path):
    """Save the weights of `model` that learn, in 16 bits; `load_state_dict(…, strict=False)` takes them. Lesson 19.

    `merge_lora` leaves none of those of `add_lora`. Raises ValueError where no weight learns.
    """
    weights = {name: weight.half() for name, weight in model.named_parameters() if weight.requires_grad}
    if not weights:
        raise ValueError("model: none of its weights learns; save them before merge_lora")
    save_file(weights, path)


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
        control = nn.functional.adaptive_avg_pool2d(self.control, x.shape[2:])
        control = control.repeat(len(x) // len(control), 1, 1, 1)  # guidance asks for all images twice
        seen = self.branch(x + self.control_in(control), condition, words, mask)
        return self.level(x, condition, words, mask) + self.joint(seen)


def add_control(unet, channels=16, count=2):
    """Freeze an AttentionUNet, and give its first levels on the way down a ControlledLevel each. Lesson 19."""
    unet.requires_grad_(False)
    for i, level in enumerate(unet.down[:count]):
        unet.down[i] = ControlledLevel(level, channels)


def edges(images, least=0.15):
    """Where a pixel differs from its right or lower neighbour: (N, 3, S, S) gives (N, 1, S, S), zeros and ones. Lesson 19."""
    right = nn.functional.pad(images.diff(dim=3), (0, 1))
    down = nn.functional.pad(images.diff(dim=2), (0, 0, 0, 1))
    return (torch.maximum(right.abs(), down.abs()).amax(dim=1, keepdim=True) > least).float()


def set_control(model, lines):
    """Give lines (N or 1, 1, S, S) to all ControlledLevel of a model, folded to the size of its latents. Lesson 19.

    Raises ValueError if the model has none.
    """
    levels = [module for module in model.modules() if isinstance(module, ControlledLevel)]
    if not levels:
        raise ValueError("model: nothing in it listens to lines; call add_control(model.unet) first")
    for level in levels:
        level.control = nn.functional.pixel_unshuffle(lines, 4)


def roughen(lines):
    """Lines as a hand might have drawn them: every second image with thick ones, and all with gaps. Lesson 19."""
    thick = nn.functional.max_pool2d(lines, 3, stride=1, padding=1)
    lines = torch.where(torch.rand(len(lines), 1, 1, 1, device=lines.device) < 0.5, lines, thick)
    cells, share = torch.rand(len(lines), 1, 5, 5), 0.7 * torch.rand(len(lines), 1, 1, 1)
    return lines * nn.functional.interpolate((cells > share).to(lines), size=lines.shape[2:])


def control_loss(model, batch):
    """`tuning_loss` for latents, tokens and lines (N, 1, S, S), which are made rough. Lesson 19."""
    set_control(model, roughen(batch[2]))
    return tuning_loss(model, batch[:2])  # latents and tokens
