"""The text-to-image model that ships (lesson 17), held against what it was made for.

    python benchmarks/text_to_image.py        a quarter of an hour of one thread

1,000 faces without a prompt, and 1,000 from captions of the held-out faces, with guidance: pixel and kernel distance
(lesson 07) to these 1,000, and which attributes are as in the prompt. Pairs, as in words.py: a hat and hair of two
colours. Copies: in how many faces the nearest training face, or its mirror image, lies nearer in lesson 07's features
than a third of the second nearest.
"""

import random
import sys

import torch
from common import judged, publish
from words import PAIRS, PROMPTS, pair_shares

COUNT, SCALE, STEPS = 1000, 1.5, 20


def draw(model, prompts, n=5, scale=SCALE):
    from diffusion_course.attention import text_to_image
    from diffusion_course.samplers import DPMSolver
    from diffusion_utils import pick_accelerator

    options = dict(guidance_scale=scale, steps=STEPS, sampler=DPMSolver(), seed=0)
    with pick_accelerator().autocast():  # in 16 bits, where the machine has them
        return text_to_image(model, prompts, n, **options).float()


def share_as_asked(images):
    """The share of each of lesson 07's attributes that is as on the held-out faces, by name."""
    from diffusion_course.quality import HEADS, attributes, labelled_faces, load_classifier

    seen, classes = attributes(load_classifier(), images), labelled_faces("test", 32)[1]
    return {name: (seen[name] == classes[name][: len(images)]).float().mean().item() for name in HEADS}


def copies(images):
    """How many of `images` lie nearer to a training face, or its mirror image, than a third of the next one."""
    from diffusion_course.quality import face_features, labelled_faces, load_classifier

    classifier, faces = load_classifier(), labelled_faces("train", 64)[0]
    features = face_features(classifier, images).double()
    nearest = []
    for some in (faces, faces.flip(3)):
        distances = torch.cdist(features, face_features(classifier, some).double())
        nearest.append(distances.topk(2, largest=False).values)
    nearest = torch.cat(nearest, dim=1).sort(dim=1).values
    # A face and its own mirror image may be the two nearest: the second of each set counts, whichever is nearer.
    return int((nearest[:, 0] < nearest[:, 2] / 3).sum())


def main(folder=None):
    from diffusion_course.latents import TEXT_MODEL, TextToImage, decode, encode
    from diffusion_course.quality import labelled_faces
    from diffusion_course.toy import attribute_faces, caption

    model = TextToImage.from_pretrained(folder or TEXT_MODEL).requires_grad_(False).eval()
    held_out, dice = labelled_faces("test", 64)[0], random.Random(0)
    prompts = [caption(row, dice) for row in attribute_faces("test")[1][:COUNT]]
    free = draw(model, "", COUNT, scale=1)
    captioned = draw(model, prompts)
    rebuilt = decode(model.autoencoder, encode(model.autoencoder, held_out[:500]))
    rows = []
    for name, images, left_out in (
        ("nothing", free, 0),
        ("a caption", captioned, 0),
        ("real faces, decoded", rebuilt, 500),
    ):
        (pixel,), (kernel,), (bar,) = judged([images], 64, left_out)
        shares = share_as_asked(images)
        mean, smile = sum(shares.values()) / len(shares), shares["smile"]
        marks = ["", ""] if name == "nothing" else [f"{mean:.3f}", f"{smile:.2f}"]
        rows.append([name, len(images), f"{pixel:.2f}", f"{kernel:.2f} ± {bar:.2f}", *marks, copies(images)])
        print(*rows[-1], flush=True)
    pairs = {}
    for things, text in PROMPTS.items():
        images = draw(model, [text.format(*pair) for pair in PAIRS], scale=2.0)
        pairs[things] = pair_shares(images, PAIRS, things)[0]
    (hair, clothes), calls = pairs.values(), STEPS
    columns = [
        "asked for",
        "faces",
        "pixel distance",
        "kernel distance",
        "attributes as asked",
        "smiles",
        "copies",
    ]
    summary = f"As asked {rows[1][4]} (real faces {rows[2][4]}), kernel distance {rows[1][3]}, without a prompt {rows[0][3]}."
    note = f"{calls} steps of DPM-Solver++ 2M, {calls + 1} evaluations, guidance scale {SCALE}. "
    note += f"Colours of hat and hair both right: {hair:.0%}; of hat and clothes: {clothes:.0%} ({len(PAIRS)} faces each)."
    publish("Text to image", columns, rows, summary=summary, note=note)


if __name__ == "__main__":
    main(*sys.argv[1:])
