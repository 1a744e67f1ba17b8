"""Ask for what you want: attributes, guidance and words, in the order of lesson 15.

Lesson 15  attributes: told_faces, wish, Bag, ToldResidual, ToldUNet, Conditional, leave_out, conditional_loss
           guidance:   Asked, Guided
           words:      caption, tidy, tokens, Sentence, translation_loss, ask

What is said of a face is a row of numbers (L,), in which 0 is nothing: 12 numbers of attributes, of
which 1 is the first entry of ANSWERS; or LENGTH numbers of words, of which 1 is the first of VOCABULARY.

    diffusion = Conditional.from_pretrained(WORDS_MODEL)
    ask(diffusion, "a smiling face with round glasses and blue hair", n=5, strength=2)
    generate(Guided(Asked(diffusion, words), diffusion, strength=2), n=5)
"""

import math
import random
import re

import torch
from torch import nn

from diffusion_utils import ROOT, TOY_FACES, Diffusion, Residual, UNet, _check, _load, generate, mix, schedule
from diffusion_course.quality import labelled_faces

WORDS_MODEL = ROOT / "pretrained" / "toy_faces_words_32"  # a Conditional that understands sentences

# What can be said of a face: for each attribute its values, in the order of their class numbers, and for each
# value what it may be called; the first is its name.
NAMES = {
    "skin_tone": "pale/porcelain, fair, light, tan/tanned, bronze, brown, dark, very dark",
    "hair_style": "bald, buzzed/cropped, short, side-parted/parted, quiff, bob, long, wavy, curly, afro, bun, braids",
    "hair_color": "black, dark brown, brown, auburn, ginger/red, blond/blonde, grey/gray, white, pink, blue, violet/purple",
    "beard": "no beard, stubble, a moustache/a mustache, a goatee, a full beard/a beard",
    "glasses": "no glasses, round glasses, square glasses, sunglasses/dark glasses",
    "hat": "no hat, beanie/woolly hat, cap/baseball cap, brimmed hat/sun hat",
    "hat_color": "white, grey/gray, black, navy, blue, teal/turquoise, green, yellow, orange, red, pink, violet/purple",
    "mouth": "a closed mouth, an open mouth",
    "smile": "sad/unhappy/frowning, serious/calm, smiling/happy/cheerful",
    "clothes": "t-shirt/tee, shirt, striped shirt/striped jumper, hoodie, turtleneck, jacket/coat",
    "clothes_color": "white, grey/gray, black, navy, blue, teal/turquoise, green, yellow, orange, red, pink, violet/purple",
    "background": "cream/beige, light blue/sky, mint, rose/pink, lavender/lilac, yellow/golden, coral, teal/turquoise, blue, dark blue/night",
}  # fmt: skip
NAMES = {name: [value.split("/") for value in values.split(", ")] for name, values in NAMES.items()}
ANSWERS = [(name, calls) for name, values in NAMES.items() for calls in values]
VAGUE = {
    "round glasses": "glasses",
    "square glasses": "glasses",
    "beanie": "hat",
    "cap": "hat",
    "brimmed hat": "hat",
}
FRAME = "a an face person portrait with wearing and , on background hair skin head brows hat glasses clothes"
VOCABULARY = sorted({word for _, calls in ANSWERS for call in [FRAME, *calls] for word in call.split()})
LENGTH = 48  # the most words and commas of a sentence
SIZE = 96  # numbers in which a network is told what to draw


# Attributes -----------------------------------------------------------------------------


def told_faces(split="train", size=32):
    """The toy faces of a split, and what can be said of each. Lesson 15.

    Returns `(faces, said)`: (N, 3, size, size) in [0, 1], and (N, 12) numbers of ANSWERS from 1 on, one
    for each attribute in NAMES. Of the colour of a hat that is not there nothing is said: 0.
    """
    faces, labels = labelled_faces(split, size)
    rows, said = _load(TOY_FACES, split, streaming=False), []
    for name, values in NAMES.items():
        label = labels[name] if name in labels else torch.tensor(rows[name][:])
        said.append(1 + ANSWERS.index((name, values[0])) + label)
    said = torch.stack(said, dim=1)
    column = list(NAMES).index("hat_color")
    said[labels["hat"] == 0, column] = 0
    return faces, said


def wish(**wanted):
    """What is `wanted`, as in wish(hat="cap", hat_color="red"), as numbers (1, 12). Lesson 15.

    Raises ValueError that names an attribute, or a value, that does not exist.
    """
    for name, value in wanted.items():
        _check(name in NAMES, f"wish: there is no attribute {name!r}, only {', '.join(NAMES)}")
        values = [calls[0] for calls in NAMES[name]]
        _check(value in values, f"wish: {name} cannot be {value!r}, only {', '.join(values)}")
    numbers = {(name, calls[0]): number for number, (name, calls) in enumerate(ANSWERS, 1)}
    return torch.tensor([[numbers.get((name, wanted.get(name)), 0) for name in NAMES]])


class Bag(nn.Module):
    """The sum of what each number says, in any order: (N, L) gives (N, size), of zeros gives zeros. Lesson 15."""

    def __init__(self, count, size=SIZE):
        super().__init__()
        self.embedding = nn.Embedding(count + 1, size, padding_idx=0)

    def forward(self, said):
        return self.embedding(said).sum(dim=1)


class ToldResidual(Residual):
    """A Residual that is told something: after its first convolution each channel is scaled and shifted.

    forward: x (N, channel_in, S, S) and told (N, size). At first it does as if nothing was said.
    Perez et al. 2018, FiLM. Lesson 15.
    """

    def __init__(self, channel_in, channel_out, size=SIZE):
        super().__init__(channel_in, channel_out)
        self.told = nn.Linear(size, 2 * channel_out)
        nn.init.zeros_(self.told.weight)
        nn.init.zeros_(self.told.bias)

    def forward(self, x, told):
        scale, shift = self.told(told)[:, :, None, None].chunk(2, dim=1)
        norm, first, activation, second = self.s
        hidden = first(norm(x)) * (1 + scale) + shift
        return self.cnn(x) + second(activation(hidden))


class ToldUNet(UNet):
    """The U-Net of lesson 03, each block of which is told something. Lesson 15.

    forward: x as in UNet, told (N, size). The weights of a UNet fit.
    """

    def __init__(self, *shape, size=SIZE):
        super().__init__(*shape)
        for part in (self.down, self.middle, self.up):
            for i, layer in enumerate(part):
                if isinstance(layer, Residual):
                    part[i] = ToldResidual(layer.cnn.in_channels, layer.cnn.out_channels, size)

    def forward(self, x, told):
        skips = []
        for layer in self.down:
            x = layer(x, told) if isinstance(layer, Residual) else layer(x)
            if isinstance(layer, Residual):
                skips.append(x)
        for layer in self.middle:
            x = layer(x, told)
        for layer in self.up:
            x = torch.cat((x, skips.pop()), dim=1) if isinstance(layer, Residual) else x
            x = layer(x, told) if isinstance(layer, Residual) else layer(x)
        return self.out(x)


class Conditional(Diffusion):
    """A diffusion model that can be told what to draw. Lesson 15.

    `config`: a DiffusionConfig with `vocabulary`, a list of what can be said, and `ordered`: whether
    the order counts, as in sentences. `answer(noisy, time, said)` is told `said` (N, L) or (1, L), whose
    numbers count from 1 in the vocabulary, 0 is nothing; without it any face will do.
    """

    def __init__(self, config):
        _check(hasattr(config, "vocabulary"), "config: a Conditional needs a vocabulary=[...]")
        super().__init__(config)
        encoder = Sentence if getattr(config, "ordered", False) else Bag
        self.encoder = encoder(len(config.vocabulary))
        self.unet = ToldUNet(config.widths, config.block_depth, config.channels)
        self.mixer = nn.Sequential(nn.Linear(SIZE + config.widths[0], SIZE), nn.SiLU())
        self.post_init()

    def answer(self, noisy, time, said=None):
        noise_rate, signal_rate = schedule(time)
        said = torch.zeros(1, 1, dtype=torch.long, device=noisy.device) if said is None else said
        wanted = self.encoder(said).expand(len(noisy), -1)
        told = self.mixer(torch.cat((wanted, self.combine.embed(noise_rate**2)), dim=1))
        output = self.unet(self.combine(noisy, noise_rate**2), told)
        return noise_rate * noisy + signal_rate * output if self.config.predicts == "v" else output


def leave_out(said, everything=0.1):
    """Forget some of `said` (N, L): from some faces little, from some a lot, from a tenth all. Lesson 15."""
    share = torch.rand(len(said), 1, device=said.device) ** 2
    share[torch.rand(len(said), device=said.device) < everything] = 1
    return said * (torch.rand(said.shape, device=said.device) >= share)


def conditional_loss(diffusion, batch):
    """The mean squared error of the velocity, v, for faces of which some things are told. Lesson 15.

    `batch`: pictures (N, 3, S, S) in [0, 1] and what can be said of them (N, L). Times near pure
    noise, where large things are decided, come more often than in lesson 04.
    """
    images, said = batch
    image = diffusion.norm(images)
    noise, time = torch.randn_like(image), 1 - torch.rand(len(image), 1, 1, 1, device=image.device) ** 1.5
    wrong = diffusion.answer(mix(image, noise, time), time, leave_out(said)) - noise
    _, signal_rate = schedule(time)
    return (wrong / signal_rate).square().mean()


# Guidance -------------------------------------------------------------------------------


class Asked(nn.Module):
    """A model that is told `said` (1, L) or (N, L) whenever it is asked; it draws like any other. Lesson 15."""

    def __init__(self, diffusion, said):
        super().__init__()
        self.diffusion, self.config, self.norm = diffusion, diffusion.config, diffusion.norm
        self.device, self.said = diffusion.device, said.to(diffusion.device)

    def answer(self, noisy, time):
        return self.diffusion.answer(noisy, time, self.said)


class Guided(nn.Module):
    """Go from the answer of `free` to that of `asked`, and beyond: classifier-free guidance. Lesson 15.

    Both are models that `generate` takes, as is this one. `strength`: 0 is `free`, 1 is `asked`, and
    more goes beyond it. `between`: the times at which there is guidance; at others `asked` alone is.
    Ho & Salimans 2022, equation 6; Kynkäänniemi et al. 2024 (`between`); Karras et al. 2024 (`free` may be
    a worse model). Raises ValueError unless `strength` is a finite number.
    """

    def __init__(self, asked, free, strength=2.0, between=(0.0, 1.0)):
        super().__init__()
        number = isinstance(strength, (int, float)) and math.isfinite(strength)
        _check(number, f"strength must be a number such as 2, not {strength!r}")
        self.asked, self.free, self.strength, self.between = asked, free, strength, between
        self.config, self.norm, self.device = asked.config, asked.norm, asked.device

    def answer(self, noisy, time):
        asked, (low, high) = self.asked.answer(noisy, time), self.between
        if self.strength == 1 or not low <= float(time.max()) <= high:
            return asked
        free = self.free.answer(noisy, time)
        return free + self.strength * (asked - free)


# Words ----------------------------------------------------------------------------------


def caption(said, dice, vague=0.0):
    """A sentence that says what `said` (12,) does, in words and an order that `dice` choose. Lesson 15.

    `dice`: a random.Random. With a chance of `vague` a cap is just a hat, and round glasses are glasses.
    """
    told, loose = dict.fromkeys(NAMES, ""), dice.random() < vague
    for name, calls in [ANSWERS[number - 1] for number in said.tolist() if number]:
        told[name] = VAGUE[calls[0]] if loose and calls[0] in VAGUE else dice.choice(calls)
    color, style, worn = told["hair_color"], told["hair_style"], []
    things = [f"{told['skin_tone']} skin"] if told["skin_tone"] else []
    things += [told[name] for name in ("beard", "glasses", "mouth") if told[name]]
    if style == "bald":
        things += ["a bald head", f"{color} brows"] if color else ["a bald head"]
    elif style in ("quiff", "bob", "afro", "bun", "braids"):
        things.append(f"{'' if style == 'braids' else 'a'} {color} {style}")
    elif style or color:
        things.append(f"{style} {color} hair")
    for article, what, noun in (("a", "hat", "hat"), ("a" if told["clothes"] else "", "clothes", "clothes")):
        if told[what] or told[f"{what}_color"]:
            thing = f"{article} {told[f'{what}_color']} {told[what] or noun}"
            dice.choice((things, worn)).append("no hat" if told[what] == "no hat" else thing)
    dice.shuffle(things)
    background = [f"a {told['background']} background"] if told["background"] else []
    if dice.random() < 0.3:  # a list, such as "blue hair, smiling, a red cap"
        parts = [told["smile"], *things, *worn, *background]
        dice.shuffle(parts)
        return tidy(", ".join(filter(None, parts))) or "a face"
    groups = {"with": things, "wearing": worn, "on": background}
    groups = [f"{word} {dice.choice((' and ', ', ')).join(some)}" for word, some in groups.items() if some]
    dice.shuffle(groups)
    subject = f"a {told['smile']} {dice.choice(('face', 'face', 'person', 'portrait'))}"
    return tidy(dice.choice((" ", ", ")).join([subject, *groups]))


def tidy(sentence):
    """The sentence without spaces that are too many, and with "an" before a vowel. Lesson 15."""
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(sentence.split()))


def tokens(sentences, vocabulary):
    """The numbers of the words of a sentence, or of several, as (N, LENGTH), from 1 on, then zeros. Lesson 15.

    Commas count as words, other signs are left out. Raises TypeError for what is no text, ValueError for a
    sentence without words, for one that is too long, and for words that `vocabulary` does not have.
    """
    sentences = [sentences] if isinstance(sentences, str) else sentences
    numbers, rows = {word: number for number, word in enumerate(vocabulary, 1)}, []
    for sentence in sentences:
        _check(isinstance(sentence, str), f"sentence: text is needed, not {sentence!r}", TypeError)
        words = re.findall(r"[^\s,.;:!?]+|,", sentence.lower())
        unknown = list(dict.fromkeys(word for word in words if word not in numbers))
        _check(not unknown, f"sentence: the network does not know: {', '.join(unknown)}")
        _check(set(words) - {","}, "sentence: it says nothing; say what you want to see")
        _check(len(words) <= LENGTH, f"sentence: {len(words)} words and commas; {LENGTH} are the most")
        rows.append([numbers[word] for word in words] + [0] * (LENGTH - len(words)))
    return torch.tensor(rows)


class Sentence(nn.Module):
    """What a sentence says, its order included: (N, L) gives (N, size), of zeros gives zeros. Lesson 15.

    Each word looks at its neighbours, twice, as pixels do; then all say what they have to say, and it is
    summed up as in `Bag`.
    """

    def __init__(self, count, size=SIZE, width=128, reach=2):
        super().__init__()
        self.embedding = nn.Embedding(count + 1, width, padding_idx=0)
        self.looks = nn.ModuleList(nn.Conv1d(width, width, 2 * reach + 1, padding=reach) for _ in range(2))
        self.says = nn.Linear(width, size)

    def forward(self, words):
        there = (words > 0)[:, None, :].float()
        x = self.embedding(words).transpose(1, 2)
        for look in self.looks:
            x = (x + look(nn.functional.silu(x))) * there
        return (self.says(nn.functional.silu(x).transpose(1, 2)) * there.transpose(1, 2)).sum(dim=1)


def translation_loss(bag, sentence, said):
    """How far what a `sentence` encoder makes of captions is from what the `bag` makes of `said` (N, L). Lesson 15.

    The mean squared error, as a share of the bag's variance.
    """
    said, dice = leave_out(said), random.Random(int(torch.randint(2**31, ())))
    words = tokens([caption(row, dice, vague=0.15) for row in said.cpu()], VOCABULARY)
    with torch.no_grad():
        goal = bag(said)
    return (sentence(words.to(said.device)) - goal).square().mean() / goal.var()


def ask(diffusion, sentence, n=5, strength=2.0, *, avoid="", between=(0.0, 1.0), **options):
    """Draw `n` faces as `sentence` says, or one for each of several sentences. Lesson 15.

    `diffusion`: a Conditional whose vocabulary is words; `strength` and `between`: see `Guided`; `avoid`: a
    sentence that says what should not be seen; `options`: those of `generate`. Raises what `tokens`,
    `Guided` and `generate` raise.
    """
    words = tokens(sentence, diffusion.config.vocabulary)
    free = Asked(diffusion, tokens(avoid, diffusion.config.vocabulary)) if avoid else diffusion
    n = n if len(words) == 1 else len(words)
    return generate(Guided(Asked(diffusion, words), free, strength, between), n, **options)
