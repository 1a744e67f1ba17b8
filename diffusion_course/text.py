"""Draw what a prompt says: words as a condition, in the order of lesson 15.

Lesson 15  prompt_tokens, tokens, translation_loss, TextEncoder, TextDiffusion, text_to_image
Lesson 17  read_off

A prompt becomes LENGTH tokens, whole numbers, of which 1 is the first word of the model's vocabulary, and 0 is
nothing.

    diffusion = TextDiffusion.from_pretrained(WORDS_MODEL)
    text_to_image(diffusion, "a smiling face with round glasses and blue hair", n=5)
"""

import random
import re

import torch
from torch import nn

from diffusion_course.conditioning import (
    SIZE,
    ConditionalDiffusion,
    Conditioned,
    Guided,
    LabelEmbedding,
    drop_labels,
)
from diffusion_utils import ROOT, generate

WORDS_MODEL = ROOT / "pretrained" / "toy_faces_words_32"  # a TextDiffusion
LENGTH = 48  # the most words and commas of a prompt


def prompt_tokens(prompt, vocabulary):
    """The tokens of a prompt, LENGTH whole numbers in a list. Lesson 15.

    Commas count as words, other signs are left out. Raises ValueError for a prompt without words, for one that
    is too long, and for words that `vocabulary` does not have.
    """
    words = re.findall(r"[^\s,.;:!?]+|,", prompt.lower())
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary]
    if unknown:
        raise ValueError(f"prompt: the model does not know: {', '.join(unknown)}")
    if not set(words) - {","}:
        raise ValueError("prompt: it has no words; say what you want to see")
    if len(words) > LENGTH:
        raise ValueError(f"prompt: {len(words)} words and commas; {LENGTH} are the most")
    return [1 + vocabulary.index(word) for word in words] + [0] * (LENGTH - len(words))


def tokens(prompts, vocabulary):
    """The tokens of a prompt, or of several: (N, LENGTH). Raises what `prompt_tokens` raises. Lesson 15."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    return torch.tensor([prompt_tokens(prompt, vocabulary) for prompt in prompts])


def translation_loss(label_embedding, write, vocabulary):
    """A loss for a text encoder: how far its output is from what `label_embedding` makes of the labels. Lesson 15.

    `write(row, dice)` writes a prompt for a row of labels, as `caption` does. The loss takes the encoder and
    a batch of labels (N, L): the mean squared error, as a share of the embedding's variance.
    """

    def loss(text_encoder, labels):
        labels, dice = drop_labels(labels), random.Random(int(torch.randint(2**31, ())))
        prompts = [write(row, dice) for row in labels.cpu()]
        output = text_encoder(tokens(prompts, vocabulary).to(labels.device))
        with torch.no_grad():
            target = label_embedding(labels)
        return (output - target).square().mean() / target.var()

    return loss


class TextEncoder(nn.Module):
    """What a prompt says, the order of its words included: (N, L) gives (N, size), of zeros gives zeros. Lesson 15.

    Two convolutions over a word and its neighbours, then a vector for each word, and their sum as in
    `LabelEmbedding`.
    """

    def __init__(self, count, size=SIZE, width=128, reach=2):
        super().__init__()
        self.embedding = nn.Embedding(count + 1, width, padding_idx=0)
        self.cnns = nn.ModuleList(nn.Conv1d(width, width, 2 * reach + 1, padding=reach) for _ in range(2))
        self.out = nn.Linear(width, size)

    def forward(self, tokens):
        mask = (tokens > 0)[:, :, None].float()
        x = self.embedding(tokens)
        for cnn in self.cnns:
            x = (x + cnn(nn.functional.silu(x).transpose(1, 2)).transpose(1, 2)) * mask
        return (self.out(nn.functional.silu(x)) * mask).sum(dim=1)


class TextDiffusion(ConditionalDiffusion):
    """A diffusion model whose condition is a prompt; the vocabulary of its config is words. Lesson 15."""

    encoder_class = TextEncoder


def text_to_image(
    diffusion, prompt, n=5, *, negative_prompt="", guidance_scale=2.0, guidance_interval=(0.0, 1.0), **options
):
    """Draw `n` images as `prompt` says, or one for each of several prompts. Lesson 15.

    `diffusion`: a model whose vocabulary is words; `negative_prompt`: what should not be seen; scale and
    interval: see `Guided`; `options`: those of `generate`. Raises what `tokens` and `generate` raise.
    """
    conditioned = Conditioned(diffusion, tokens(prompt, diffusion.config.vocabulary))
    unconditional = diffusion
    if negative_prompt:
        unconditional = Conditioned(diffusion, tokens(negative_prompt, diffusion.config.vocabulary))
    count = n if isinstance(prompt, str) else len(prompt)
    return generate(Guided(conditioned, unconditional, guidance_scale, guidance_interval), count, **options)


@torch.no_grad()
def read_off(text_encoder, write, vocabulary, count, captions=20):
    """A frozen LabelEmbedding for `count` labels, each with the vector that `text_encoder` makes of it alone. Lesson 17.

    That is the mean over so many `captions` that say nothing else; `write`: see `translation_loss`.
    """
    embedding = LabelEmbedding(count).requires_grad_(False)
    device, dice = next(text_encoder.parameters()).device, random.Random(0)
    for number in range(1, count + 1):
        prompts = [write(torch.tensor([number]), dice) for _ in range(captions)]
        output = text_encoder(tokens(prompts, vocabulary).to(device))
        embedding.embedding.weight[number] = output.mean(dim=0).cpu()
    return embedding
