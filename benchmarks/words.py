"""A sentence as a bag of words, as one vector, and as words that each position of an image looks at (lesson 16).

    python benchmarks/words.py        half an hour of one thread

The same small U-Net three times, trained for about 1,200 steps on the latents of the shipped autoencoder, with captions of
hats, hair and clothes that are written anew in each step. In the bag, the vectors of the words are added up; "one vector"
hands on what the text encoder makes of the start token, and nothing else; with cross-attention the network sees all
words. Below them the model that ships, which is larger and was trained for longer, on captions of all attributes.

Prompts such as "a face with a blue beanie and long pink hair", and "… with a blue beanie, wearing a pink hoodie": all
pairs of six colours, eight times each. A face is right if both things are nearer to their own colour than to the
other's; two coins would be right in a quarter. Real faces: those that have two of the colours, through the autoencoder.
Pixel and kernel distance (lesson 07): 400 faces drawn from captions of held-out faces. Six faces each for two more
prompts go to images/words.png, one row for each model.
"""

import random
import time
from itertools import permutations

import torch
from common import ROOT, fresh, judged, publish
from PIL import Image
from torch import nn

STEPS, BATCH = 1200, 64
SPOKEN_OF = ("hair_style", "hair_color", "hat", "hat_color", "clothes", "clothes_color")
COLORS = ("black", "grey", "white", "pink", "blue", "violet")  # of hats, hair and clothes alike
PAIRS = 8 * list(permutations(COLORS, 2))
PROMPTS = {
    ("hat_color", "hair_color"): "a face with a {} beanie and long {} hair",
    ("hat_color", "clothes_color"): "a face with a {} beanie, wearing a {} hoodie",
}
PATCHES = {"hat_color": (slice(6, 14), slice(26, 38)), "clothes_color": (slice(59, 64), slice(6, 58))}
WAYS = ("bag of words", "one vector", "cross-attention")
SHIPPED = "cross-attention, shipped"


def labelled(split, size=64):
    """Faces and their labels, of which only those in SPOKEN_OF are left."""
    from diffusion_course.toy import ATTRIBUTES, attribute_faces

    faces, labels = attribute_faces(split, size)
    silent = [column for column, name in enumerate(ATTRIBUTES) if name not in SPOKEN_OF]
    labels[:, silent] = 0
    return faces, labels


# Three ways to read ---------------------------------------------------------------------


def readers():
    """What takes the text encoder's place: {name: class}. Each gives words, mask and a vector for the whole."""
    from diffusion_course.attention import TextEncoder

    class BagOfWords(nn.Module):
        """The sum of the vectors of all words, the start token's among them, brought to one length."""

        def __init__(self, count, width=128):
            super().__init__()
            self.embedding = nn.Embedding(count + 1, width, padding_idx=0)
            self.norm = nn.LayerNorm(width)

        def forward(self, tokens):
            pooled = self.norm(self.embedding(tokens).sum(dim=1))
            return pooled[:, None], tokens[:, :1] > 0, pooled

    class OneVector(TextEncoder):
        def forward(self, tokens):
            words, mask, pooled = super().forward(tokens)
            return words[:, :1], mask[:, :1], pooled

    return dict(zip(WAYS, (BagOfWords, OneVector, TextEncoder)))


def new(way):
    """A small model before training, with the shipped autoencoder, which stays as it is."""
    from diffusion_course.latents import TextToImage, TextToImageConfig
    from diffusion_course.toy import VOCABULARY

    torch.manual_seed(0)
    model = TextToImage(TextToImageConfig(VOCABULARY, widths=(32, 64, 96)))
    model.encoder = readers()[way](len(VOCABULARY) + 2)
    model.autoencoder = shipped().autoencoder
    return model


def shipped():
    from diffusion_course.latents import TEXT_MODEL, TextToImage

    return TextToImage.from_pretrained(TEXT_MODEL).float().eval().requires_grad_(False)


# Training -------------------------------------------------------------------------------


def words_loss(model, batch):
    """The flow loss, with a new caption for each image; some of it is left out, and one in fourteen is empty."""
    from diffusion_course.attention import tokens
    from diffusion_course.conditioning import drop_labels
    from diffusion_course.latents import flow_loss
    from diffusion_course.toy import VOCABULARY, caption

    latents, labels = batch
    dice = random.Random(int(torch.randint(2**31, ())))
    rows = drop_labels(labels, everything=0.03).cpu()
    prompts = ["" if dice.random() < 0.07 else caption(row, dice, vague=0.15) for row in rows]
    numbers = tokens(prompts, VOCABULARY)
    longest = int((numbers > 0).sum(dim=1).max())
    return flow_loss(model, (latents, numbers[:, :longest].to(latents.device)))


def muon_for_hidden(model, recipe):
    """Muon for the weights between hidden layers, AdamW for those at the edges of the network."""
    from diffusion_course.optimizers import Muon

    edges = ("embedding", "positions", "conv_in", "conv_out", "time1", "shortcut")
    hidden, others = [], []
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            at_edge = weight.ndim < 2 or any(edge in name for edge in edges)
            (others if at_edge else hidden).append(weight)
    return Muon(hidden, others, recipe.lr, recipe.weight_decay)


def trained(way):
    """`(model, seconds of processor time)`."""
    from diffusion_course.latents import encode
    from diffusion_utils import Training

    model = new(way)
    faces, labels = labelled("train")
    data = torch.utils.data.TensorDataset(encode(model.autoencoder, faces), labels)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True)
    recipe = dict(
        epochs=round(STEPS / len(loader)), lr=2e-3, weight_decay=0.01, ema_decay=0.995, warmup_steps=100
    )
    start = time.process_time()
    training = Training(
        model, loader, loss=words_loss, optimizer=muon_for_hidden, cosine_decay=True, **recipe
    )
    for step in training:
        if step % 100 == 0:
            loss = float(sum(training.history["loss"][-100:])) / 100
            seconds = time.process_time() - start
            print(f"{way}: step {step} of {len(training)}, loss {loss:.3f}, {seconds:.0f} s", flush=True)
    return model.cpu().eval().requires_grad_(False), time.process_time() - start


# Judging --------------------------------------------------------------------------------


def patch(images, name):
    """The mean colour (N, 3) of the place where a hat, or clothes, are."""
    rows, columns = PATCHES[name]
    return images[:, :, rows, columns].mean(dim=(2, 3))


def scores(images, name):
    """How well each colour fits the thing `name` on each image: (N, colours), the largest fits best."""
    from diffusion_course.quality import face_features, load_classifier
    from diffusion_course.toy import ATTRIBUTES, LABELS

    if name == "hair_color":  # lesson 07's classifier knows it
        classifier = load_classifier().cpu()
        return classifier.heads[name](face_features(classifier, images).float())
    faces, labels = labelled("train")
    numbers = labels[:, list(ATTRIBUTES).index(name)] - 1 - LABELS.index((name, ATTRIBUTES[name][0]))
    means = [patch(faces[numbers == color], name).mean(dim=0) for color in range(len(ATTRIBUTES[name]))]
    return -torch.cdist(patch(images, name), torch.stack(means))


def pair_shares(images, pairs, things):
    """In which share of `images` both things are right, only the first, only the second, and neither."""
    from diffusion_course.toy import ATTRIBUTES

    firsts, seconds = zip(*pairs)
    rows = range(len(images))
    right = []
    for name, own, other in zip(things, (firsts, seconds), (seconds, firsts)):
        fits = scores(images, name)
        column = {color: place for place, color in enumerate(ATTRIBUTES[name])}
        own_fits = fits[rows, [column[color] for color in own]]
        other_fits = fits[rows, [column[color] for color in other]]
        right.append(own_fits > other_fits)
    first, second = right
    cases = (first & second, first & ~second, ~first & second, ~first & ~second)
    return [case.float().mean().item() for case in cases]


def real_pairs(autoencoder, things):
    """`(images, pairs)`: real faces with two of COLORS, and long hair or a hoodie as in the prompts; decoded latents."""
    from diffusion_course.latents import decode, encode
    from diffusion_course.toy import ATTRIBUTES, LABELS

    kind, wanted = {"hair_color": ("hair_style", "long"), "clothes_color": ("clothes", "hoodie")}[things[1]]
    columns = [list(ATTRIBUTES).index(name) for name in (*things, kind)]
    images, pairs = [], []
    for split in ("test", "train"):
        faces, labels = labelled(split)
        for face, row in zip(faces, labels[:, columns].tolist()):
            one, other, found = (LABELS[number - 1][1] if number else None for number in row)
            if one != other and {one, other} <= {*COLORS} and found == wanted:
                images.append(face)
                pairs.append((one, other))
    return decode(autoencoder, encode(autoencoder, torch.stack(images))), pairs


def draw(model, prompts, n=5, scale=2.0):
    from diffusion_course.attention import text_to_image
    from diffusion_course.samplers import DPMSolver
    from diffusion_utils import pick_accelerator

    with pick_accelerator().autocast():  # in 16 bits, where the machine has them
        images = text_to_image(model, prompts, n, guidance_scale=scale, steps=12, sampler=DPMSolver(), seed=0)
    return images.float()


def judge(model):
    """Cells of the table, and the first faces."""
    from diffusion_course.toy import caption

    pairs = {}
    for things, text in PROMPTS.items():
        pairs[things] = pair_shares(draw(model, [text.format(*pair) for pair in PAIRS]), PAIRS, things)
    dice = random.Random(0)
    drawn = draw(model, [caption(row, dice) for row in labelled("test")[1][:400]])
    (pixel,), (kernel,), (bar,) = judged([drawn], 64)
    hair, clothes = pairs.values()
    cells = [
        *(f"{share:.0%}" for share in hair),
        f"{clothes[0]:.0%}",
        f"{pixel:.2f}",
        f"{kernel:.2f} ± {bar:.2f}",
    ]
    faces = [
        draw(model, text, n=6) for text in ("a red hat and long blue hair", "a blue hat and long pink hair")
    ]
    return cells, torch.cat(faces)


def measure(way):
    """The row of the table, and the first faces."""
    model, seconds = (shipped(), None) if way == SHIPPED else trained(way)
    count = sum(weight.numel() for part in (model.unet, model.encoder) for weight in part.parameters())
    cells, faces = judge(model)
    row = [way, f"{count / 1e6:.2f}", f"{seconds:.0f}" if seconds else "", *cells]
    print(row, flush=True)
    return row, faces


def real():
    """The row of real faces, and how many have each kind of pair."""
    autoencoder = shipped().autoencoder
    shares, counts = [], []
    for things in PROMPTS:
        images, pairs = real_pairs(autoencoder, things)
        shares.append(pair_shares(images, pairs, things))
        counts.append(len(images))
    cells = [*(f"{share:.0%}" for share in shares[0]), f"{shares[1][0]:.0%}"]
    return ["real faces", "", "", *cells, "", ""], counts


if __name__ == "__main__":
    results = [fresh(measure, way) for way in (*WAYS, SHIPPED)]
    real_row, counts = fresh(real)
    rows = [row for row, _ in results] + [real_row]
    images = torch.stack([faces for _, faces in results])
    sheet = images.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(ROOT / "images" / "words.png")
    columns = ["what the network sees", "parameters, millions", "seconds of processor time"]
    columns += ["hat and hair right", "hat only", "hair only", "neither", "hat and clothes right"]
    columns += ["pixel distance", "kernel distance"]
    summary = "; ".join(f"{row[3]} ({row[0]})" for row in rows)
    note = f"About {STEPS:,} steps, one training run each. {len(PAIRS)} faces for each kind of pair; "
    note += f"{counts[0]} and {counts[1]} real ones."
    publish("Words", columns, rows, summary=f"Hat and hair in the right colours: {summary}.", note=note)
