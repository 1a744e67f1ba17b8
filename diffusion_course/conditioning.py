"""Draw what a condition says: labels at the entrance of a network, guidance at its exit, in the order of lesson 15.

Lesson 15  labels:    LabelEmbedding, drop_labels, FiLMResidual, ConditionalUNet, ConditionalDiffusion
           training:  conditional_loss
           guidance:  Conditioned, Guided

The condition of an image is a row of labels (L,): whole numbers, of which 1 is the first entry of the model's
vocabulary, and 0 says nothing.

    generate(Guided(Conditioned(diffusion, labels), diffusion, guidance_scale=2), n=5)
"""

import torch
from torch import nn

from diffusion_course.objectives import prediction_loss
from diffusion_utils import Diffusion, DiffusionConfig, Residual, UNet, schedule

SIZE = 96  # numbers in which a condition reaches the network


# Labels ---------------------------------------------------------------------------------


class LabelEmbedding(nn.Module):
    """The sum of a vector for each label, in any order: (N, L) gives (N, size), of zeros gives zeros. Lesson 15."""

    def __init__(self, count, size=SIZE):
        super().__init__()
        self.embedding = nn.Embedding(count + 1, size, padding_idx=0)

    def forward(self, labels):
        return self.embedding(labels).sum(dim=1)


def drop_labels(labels, everything=0.1):
    """Condition dropout: set some of `labels` (N, L) to 0, in some rows few, in some many, in a tenth all. Lesson 15."""
    share = torch.rand(len(labels), 1, device=labels.device) ** 2
    share[torch.rand(len(labels), device=labels.device) < everything] = 1
    return labels * (torch.rand(labels.shape, device=labels.device) >= share)


class FiLMResidual(Residual):
    """A Residual with a condition: after its first convolution each channel is scaled and shifted. Lesson 15.

    forward: x (N, channel_in, S, S) and condition (N, size). At first the condition changes nothing.
    Perez et al. 2018.
    """

    def __init__(self, channel_in, channel_out, size=SIZE):
        super().__init__(channel_in, channel_out)
        self.film = nn.Linear(size, 2 * channel_out)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x, condition):
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        norm, first, activation, second = self.s
        hidden = first(norm(x)) * (1 + scale) + shift
        return self.cnn(x) + second(activation(hidden))


class ConditionalUNet(UNet):
    """The U-Net of lesson 03 with a condition in each block: forward(x, condition (N, size)). Lesson 15.

    The weights of a UNet fit.
    """

    def __init__(self, *shape, size=SIZE):
        super().__init__(*shape)
        for part in (self.down, self.middle, self.up):
            for i, layer in enumerate(part):
                if isinstance(layer, Residual):
                    part[i] = FiLMResidual(layer.cnn.in_channels, layer.cnn.out_channels, size)


class ConditionalConfig(DiffusionConfig):
    """A DiffusionConfig with a `vocabulary`, the list of what a condition can say. Lesson 15."""

    _auto_class = None  # a saved model does not bring its program along

    def __init__(self, vocabulary=(), **options):
        super().__init__(**options)
        self.vocabulary = list(vocabulary)


class ConditionalDiffusion(Diffusion):
    """A diffusion model with a condition. Lesson 15.

    `predict_noise(noisy, time, labels)` takes labels (N, L), or (1, L) for all images, or what `encode_condition` has
    made of them; without labels it is unconditional. A subclass may have another `encoder_class`, which turns them
    into (N, SIZE).
    """

    config_class = ConditionalConfig
    encoder_class = LabelEmbedding
    _auto_class = None

    def __init__(self, config):
        super().__init__(config)
        self.encoder = self.encoder_class(len(config.vocabulary))
        self.unet = ConditionalUNet(config.widths, config.block_depth, config.channels)
        self.mixer = nn.Sequential(nn.Linear(SIZE + config.widths[0], SIZE), nn.SiLU())
        self.post_init()

    def encode_condition(self, labels=None):
        if labels is None:
            labels = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        return (labels if labels.is_floating_point() else self.encoder(labels),)

    def network(self, noisy, time, labels=None):
        noise_rate, _ = schedule(time)
        embedding = self.encode_condition(labels)[0].expand(len(noisy), -1)
        condition = self.mixer(torch.cat((embedding, self.combine.embed(noise_rate**2)), dim=1))
        return self.unet(self.combine(noisy, noise_rate**2), condition)


# Training -------------------------------------------------------------------------------


def conditional_loss(diffusion, batch):
    """The mean squared error of what the network predicts, with some labels dropped. Lesson 15.

    `batch`: images (N, C, S, S) in [0, 1] and their labels (N, L). Times near pure noise, where large things
    are decided, come more often than in lesson 04.
    """
    images, labels = batch
    return prediction_loss(diffusion, (images, drop_labels(labels)), late=1.5)


# Guidance -------------------------------------------------------------------------------


class Conditioned(nn.Module):
    """A model with its condition, `labels` (1, L) or (N, L): `generate` takes it like any other. Lesson 15.

    Without labels it is unconditional. In eval mode, as in a drawing, they are encoded once for all steps.
    """

    def __init__(self, diffusion, labels=None):
        super().__init__()
        self.diffusion, self.encoded = diffusion, None
        self.labels = labels if labels is None else labels.to(diffusion.device)
        self.config, self.norm, self.device = diffusion.config, diffusion.norm, diffusion.device

    def train(self, mode=True):
        self.encoded = None  # each drawing begins with eval()
        return super().train(mode)

    def condition(self):
        encode = getattr(self.diffusion, "encode_condition", lambda labels: (labels,))
        if self.training or torch.is_grad_enabled():
            return encode(self.labels)
        self.encoded = encode(self.labels) if self.encoded is None else self.encoded
        return self.encoded

    def predict_noise(self, noisy, time):
        return self.diffusion.predict_noise(noisy, time, *self.condition())


class Guided(nn.Module):
    """Go from what `unconditional` predicts to what `conditioned` does, and beyond: classifier-free guidance. Lesson 15.

    Both are models that `generate` takes, as is this one; where they are one network, it predicts for both in one
    batch. `guidance_scale`: 0 is `unconditional`, 1 is `conditioned`, and more goes beyond. `guidance_interval`: the
    times at which there is guidance, the smaller first; at others `conditioned` predicts alone, by default
    below 0 and above 1, where there is hardly any noise or nothing else. Ho & Salimans 2022, equation 6, whose w is
    `guidance_scale` - 1; Kynkäänniemi et al. 2024 (the interval); Karras et al. 2024 (`unconditional` may be a worse
    model).
    """

    def __init__(self, conditioned, unconditional, guidance_scale=2.0, guidance_interval=(0.0, 1.0)):
        super().__init__()
        low, high = guidance_interval
        if low > high:
            raise ValueError(f"guidance_interval: the smaller time comes first, not {guidance_interval}")
        if unconditional is getattr(conditioned, "diffusion", None) and hasattr(
            unconditional, "encode_condition"
        ):
            unconditional = Conditioned(unconditional)
        self.conditioned, self.unconditional = conditioned, unconditional
        self.guidance_scale, self.guidance_interval = guidance_scale, guidance_interval
        self.config, self.norm, self.device = conditioned.config, conditioned.norm, conditioned.device

    def in_one_batch(self, noisy, time):
        """Both predictions of one network, for the images and once more for the images."""
        parts = []
        for pair in zip(self.conditioned.condition(), self.unconditional.condition()):
            parts.append(torch.cat([part.expand(len(noisy), *part.shape[1:]) for part in pair]))
        twice = torch.cat((noisy, noisy)), torch.cat((time, time))
        return self.conditioned.diffusion.predict_noise(*twice, *parts).chunk(2)

    def predict_noise(self, noisy, time):
        low, high = self.guidance_interval
        if self.guidance_scale == 1 or not low <= float(time.max()) <= high:
            return self.conditioned.predict_noise(noisy, time)
        networks = [getattr(model, "diffusion", None) for model in (self.conditioned, self.unconditional)]
        if networks[0] is networks[1] and hasattr(networks[0], "encode_condition"):
            conditioned, unconditional = self.in_one_batch(noisy, time)
        else:
            conditioned = self.conditioned.predict_noise(noisy, time)
            unconditional = self.unconditional.predict_noise(noisy, time)
        return unconditional + self.guidance_scale * (conditioned - unconditional)
