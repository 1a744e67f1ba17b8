"""Words and attention, in the order of lesson 16.

Lesson 16  words:      prompt_tokens, reworded, tokens, LENGTH
           attention:  Attention, TransformerBlock, TextEncoder
           images:     SpatialAttention, text_to_image

A prompt becomes tokens: whole numbers, a start token first, then one for each word; 0 is nothing. A text encoder makes
of them what the networks of lesson 17 look at.

    model = TextToImage.from_pretrained(TEXT_MODEL)  # of lesson 17
    text_to_image(model, "a smiling face with round glasses and blue hair", n=5)
"""

import re
import warnings

import torch
from torch import nn

from diffusion_course.conditioning import Conditioned, Guided
from diffusion_utils import generate

LENGTH = 48  # the most words and commas of a prompt


# Words ----------------------------------------------------------------------------------


def prompt_tokens(prompt, vocabulary):
    """The tokens of a prompt: 1 + LENGTH whole numbers in a list. Lesson 16.

    The start token is len(vocabulary) + 1; 1 is the first word of `vocabulary`. Commas count as words, other signs are
    left out, and so are words that `vocabulary` does not have, with a warning that names them. Of an empty
    prompt nothing but the start token is left. Raises ValueError for a prompt that is too long.
    """
    words = re.findall(r"[\w'-]+|,", prompt.lower())
    unknown = [word for word in dict.fromkeys(words) if word not in vocabulary]
    if unknown:
        warnings.warn(f"prompt: the model does not know these words: {', '.join(unknown)}", stacklevel=3)
    words = [word for word in words if word in vocabulary]
    if len(words) > LENGTH:
        raise ValueError(f"prompt: {len(words)} words and commas; {LENGTH} are the most")
    start = len(vocabulary) + 1
    return [start] + [1 + vocabulary.index(word) for word in words] + [0] * (LENGTH - len(words))


def reworded(prompt, wordings):
    """The prompt, with what people say put into words of the vocabulary: `wordings` is [[phrase, words], …]. Lesson 16."""
    prompt = prompt.lower()
    for phrase, words in wordings:
        prompt = re.sub(rf"\b{phrase}\b", words, prompt)
    return prompt


def tokens(prompts, vocabulary, wordings=()):
    """The tokens of a prompt, or of several: (N, 1 + LENGTH). Raises what `prompt_tokens` raises. Lesson 16."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    prompts = [reworded(prompt, wordings) for prompt in prompts]
    return torch.tensor([prompt_tokens(prompt, vocabulary) for prompt in prompts])


# Attention ------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention: each row of `x` looks at all rows of `context`, or of `x` itself. Lesson 16.

    forward: x (N, L, width) and context (N, M, context_width) give (N, L, width), at first zeros. `mask` (N, M) is
    True where there is something to look at. `weights`: how much each looks at each, (N, heads, L, M); the
    sum over M is 1. Vaswani et al. 2017, section 3.2.
    """

    def __init__(self, width, context_width=None, heads=4):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context_width or width, width, bias=False)
        self.value = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def split(self, x):
        """(N, L, width) to (N, heads, L, width / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def weights(self, x, context, mask=None):
        query, key = self.split(self.query(x)), self.split(self.key(context))
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        return scores.softmax(dim=3)

    def forward(self, x, context=None, mask=None):
        context = x if context is None else context
        mean = self.weights(x, context, mask) @ self.split(self.value(context))
        return self.out(mean.transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Attention between all words, then a small network for each, both beside a shortcut. Lesson 16.

    forward: x (N, L, width) and mask (N, L) give (N, L, width). Vaswani et al. 2017; normalised first, as in Xiong et
    al. 2020.
    """

    def __init__(self, width, heads=4):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.hidden1 = nn.Linear(width, 4 * width)
        self.hidden2 = nn.Linear(4 * width, width)
        nn.init.zeros_(self.hidden2.weight)
        nn.init.zeros_(self.hidden2.bias)

    def forward(self, x, mask=None):
        x = x + self.attention(self.norm1(x), mask=mask)
        return x + self.hidden2(nn.functional.gelu(self.hidden1(self.norm2(x))))


class TextEncoder(nn.Module):
    """A transformer that reads a prompt; each word looks at all others, also at later ones. Lesson 16.

    forward: tokens (N, L), zeros only at the end, give `(words, mask, pooled)`: a vector for each token (N, L, width),
    where there is one (N, L), and the vector of the start token (N, width), which stands for the whole prompt.
    """

    def __init__(self, count, width=128, depth=4, heads=4, length=1 + LENGTH):
        super().__init__()
        self.embedding = nn.Embedding(count + 1, width, padding_idx=0)
        angles = torch.arange(length)[:, None] * torch.logspace(0, -2, width // 2)
        self.positions = nn.Parameter(torch.cat((angles.sin(), angles.cos()), dim=1))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        mask = tokens > 0
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        words = self.norm(x)
        return words, mask, words[:, 0]


# Images ---------------------------------------------------------------------------------


class SpatialAttention(nn.Module):
    """The pixels of a feature map look at each other, then at the words of the prompt. Lesson 16.

    forward: x (N, channels, S, S), words (N, L, text_width), mask (N, L) give (N, channels, S, S); at first, x itself.
    Self- and cross-attention as in Rombach et al. 2022.
    """

    def __init__(self, channels, text_width=128, heads=4):
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.self_attention = Attention(channels, heads=heads)
        self.norm2 = nn.GroupNorm(8, channels)
        self.cross_attention = Attention(channels, text_width, heads)

    def forward(self, x, words, mask):
        size = x.shape[2:]
        pixels = self.norm1(x).flatten(2).transpose(1, 2)
        x = x + self.self_attention(pixels).transpose(1, 2).unflatten(2, size)
        pixels = self.norm2(x).flatten(2).transpose(1, 2)
        return x + self.cross_attention(pixels, words, mask).transpose(1, 2).unflatten(2, size)


def text_to_image(
    model, prompt, n=5, *, negative_prompt="", guidance_scale=2.0, guidance_interval=(0.0, 1.0), **options
):
    """Draw `n` images as `prompt` says, or one for each of several prompts: (n, 3, S, S) in [0, 1]. Lesson 16.

    `model`: one of lesson 17. An empty prompt draws anything. `negative_prompt`: what should not be seen; scale and
    interval: see `Guided`; `options`: those of `generate`. Raises what `tokens` and `generate` raise.
    """
    words = model.config.vocabulary, model.config.wordings
    conditioned = Conditioned(model, tokens(prompt, *words))
    unconditional = Conditioned(model, tokens(negative_prompt, *words))
    count = n if isinstance(prompt, str) else len(prompt)
    guided = Guided(conditioned, unconditional, guidance_scale, guidance_interval)
    return model.decode(generate(guided, count, **options))
