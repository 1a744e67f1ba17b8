"""Draw the pictures of the README and of the models' cards, with the models that ship.

    python tools/make_images.py            all of them
    python tools/make_images.py covers     only those that the lessons show
    python tools/make_images.py idea       only the drawing of the whole idea and the films from noise to face
    python tools/make_images.py system     only the drawing of lesson 17's system

Each lesson's own picture is what its cell with the tag "cover" shows, and the small ones at the top of the
page of help what its cells with tags such as "fault-noise" show: run `make lessons` first.
"""

import base64
import io
import sys

import numpy as np
import torch
from lessons import HELP, LESSONS, ROOT, cells
from matplotlib import pyplot as plt
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image
from smaller import smaller

IMAGES = ROOT / "images"
sys.path.insert(0, str(ROOT))
from diffusion_course.attention import text_to_image  # noqa: E402
from diffusion_course.distillation import FEW_STEPS  # noqa: E402
from diffusion_course.images import CATS_MODEL  # noqa: E402
from diffusion_course.latents import TEXT_MODEL, TextToImage  # noqa: E402
from diffusion_course.samplers import DPMSolver  # noqa: E402
from diffusion_course.transformer import DIT_MODEL, DiffusionTransformer  # noqa: E402
from diffusion_utils import (  # noqa: E402
    LARGE_MODEL,
    SHORT_MODEL,
    TOY_MODEL,
    Diffusion,
    denormalize,
    generate,
    get_data,
    mix,
    starting_noise,
)

PROMPTS = [  # one row each on the card of the model that follows prompts
    "a smiling face with round glasses and blue hair, yellow background",
    "a sad person with a red cap and long white hair",
    "a white afro, sunglasses, an open mouth, a green hoodie",
    "a bald head and a full beard, very dark skin, light blue background",
]


def save(image, path):
    """Write a PNG file with a palette."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    path.write_bytes(smaller(file.getvalue()))


def film_of(diffusion, n, seed):
    """`n` drawings, from noise to face: (21, n, 3, S, S), the last without its last noise."""
    frames = [denormalize(diffusion, starting_noise(diffusion, n, seed))]
    drawn = generate(diffusion, n, seed=seed, on_step=lambda step, noisy, image: frames.append(noisy))
    return torch.stack([*frames[:-1], drawn])


def strip(film, scale):
    """Some moments of a film side by side, one row for each drawing."""
    return sheet(film[[0, 8, 10, 11, 12, 13, 14, 15, 17, 20]].transpose(0, 1), scale)


def moving(film, scale, path):
    """Write a film as a moving picture that begins anew after a pause."""
    frames = [sheet(moment[None], scale) for moment in film]
    durations = [500, *[150] * (len(frames) - 2), 3000]  # milliseconds
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=70, method=3
    )


def sheet(grid, scale):
    """Images (rows, columns, 3, S, S) in [0, 1] side by side, enlarged."""
    rows, columns, _, size, _ = grid.shape
    pixels = (grid * 255).round().byte().permute(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    image = Image.fromarray(pixels.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


# The drawing of the whole idea ------------------------------------------------------------

MIDDLE = np.array([8.2, 3.9])  # of the island, on a map of 16 × 8
RADII = np.array([3.4, 2.75])
SEA, LAND = np.array([0.78, 0.83, 0.89]), np.array([0.98, 0.92, 0.74])
FACES = [(7.3, 5.5), (9.1, 5.75), (10.5, 4.9), (8.95, 4.2), (10.5, 3.25), (8.8, 2.55), (7.0, 2.4)]
NOISES = [(1.3, 6.6), (14.6, 1.1), (4.6, 0.9)]
DRAWING = [(0.9, 1.1), (2.55, 1.8), (4.15, 2.55), (5.65, 3.3), (7.15, 4.1)]  # from noise to a new face
DROWNING = [(10.5, 4.9), (12.15, 5.25), (13.7, 5.85), (15.2, 6.75)]  # from a face to noise
PURPLE, ORANGE = "#6a2fb5", "#b8480f"


def shore(angle):
    """How far the island reaches in each direction, 1 on average."""
    return 1 + 0.08 * np.sin(2 * angle + 0.5) + 0.06 * np.sin(3 * angle)


def beyond_shore(x, y):
    """How far a place lies outside the island; negative inside."""
    across, up = (x - MIDDLE[0]) / RADII[0], (y - MIDDLE[1]) / RADII[1]
    return np.hypot(across, up) / shore(np.arctan2(up, across)) - 1


def draw_map(axis):
    """The sea, grainier with the distance from the island, and arrows that point to it."""
    x, y = np.meshgrid(np.linspace(0, 16, 320), np.linspace(0, 8, 160))
    distance = beyond_shore(x, y)[..., None]
    share = 1 / (1 + np.exp(14 * distance))
    grain = 0.11 * distance.clip(0, 1) * np.random.default_rng(0).normal(size=(*x.shape, 3))
    pixels = (share * LAND + (1 - share) * SEA + grain).clip(0, 1)
    axis.imshow(pixels, extent=(0, 16, 0, 8), origin="lower", interpolation="nearest", aspect="auto")
    x, y = np.meshgrid(np.arange(0.5, 16, 0.8), np.arange(0.4, 8, 0.8))
    places = np.stack((x, y), axis=-1)[beyond_shore(x, y) > 0.1]
    ways = MIDDLE - places
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    axis.quiver(*places.T, *ways.T, color="#33475c", alpha=0.5, scale=44, width=0.0016, pivot="mid")


def stamp(axis, image, place, edge="white"):
    """One image on the map."""
    picture = OffsetImage(image.permute(1, 2, 0).numpy(), zoom=0.72, interpolation="nearest")
    box = dict(edgecolor=edge, linewidth=1.2, boxstyle="square,pad=0.05")
    axis.add_artist(AnnotationBbox(picture, place, bboxprops=box))


def stamps(axis, images, places, color):
    """Images on the map, with an arrow from each to the next."""
    for start, end in zip(places, places[1:]):
        style = dict(arrowstyle="-|>", color=color, linewidth=2, mutation_scale=14, shrinkA=24, shrinkB=24)
        axis.annotate("", end, start, arrowprops=style)
    for image, place in zip(images, places):
        stamp(axis, image, place, color)


def idea(diffusion, film):
    """The drawing of the whole idea: faces as an island in the space of images, and the ways there and back."""
    figure = plt.figure(figsize=(8, 4), dpi=200)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 16), ylim=(0, 8))
    axis.axis("off")
    draw_map(axis)
    faces = torch.from_numpy(get_data(limit=8))[[1, 0, 2, 3, 5, 7, 6]]
    noise = starting_noise(diffusion, 4, seed=0)
    mean, variance = diffusion.norm.running_mean[:, None, None], diffusion.norm.running_var[:, None, None]
    face = (faces[2] - mean) / variance.sqrt()
    times = torch.tensor([0.35, 0.62, 1.0]).reshape(3, 1, 1, 1)
    drowned = denormalize(diffusion, mix(face, noise[0], times))
    stamps(axis, film[[0, 10, 14, 16, 20], 0], DRAWING, PURPLE)
    stamps(axis, [faces[2], *drowned], DROWNING, ORANGE)
    for image, place in zip([*faces, *denormalize(diffusion, noise[1:])], FACES + NOISES):
        stamp(axis, image, place)
    for place, text, color in [
        ((8.2, 1.2), "the island: images that are faces", "black"),
        ((3.5, 5.7), "nearly every image is noise", "black"),
        ((3.0, 4.55), "reverse process: a network takes\naway a little noise, again and again", PURPLE),
        ((12.0, 7.3), "forward process: we mix in noise", ORANGE),
    ]:
        box = dict(facecolor="white", edgecolor="none", alpha=0.85)
        axis.text(*place, text, color=color, fontsize=8.5, ha="center", va="center", bbox=box)
    return as_image(figure)


def as_image(figure):
    """What a figure shows, as a PIL image."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    return Image.open(file).convert("RGB")


def first_pictures():
    """The drawing of the whole idea, and faces that come out of noise: one still picture and one that moves."""
    diffusion = Diffusion.from_pretrained(LARGE_MODEL)
    film = film_of(diffusion, 8, seed=10)
    save(idea(diffusion, film), IMAGES / "the_idea.png")
    still = strip(film[:, :3], scale=2)  # noise would take the palette from the faces
    still.save(IMAGES / "noise_to_face.png", optimize=True)
    moving(film[:, [0, 6, 1, 7]], 2, IMAGES / "noise_to_face.webp")


# What the lessons show ----------------------------------------------------------------------


def cover(lesson, tag="cover"):
    """What the cell with the `tag` shows, one picture below the other."""
    (cell,) = [cell for cell in cells(lesson, "code") if tag in cell.metadata.get("tags", [])]
    shown = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    parts = [Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB") for png in shown]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return whole


# The drawing of lesson 17's system --------------------------------------------------------

PARTS = [  # title, million parameters here and in Stable Diffusion 1.5, left, bottom, width, height, colour
    ("text encoder", "0.8", "123", 2.9, 4.5, 2.6, 1.5, "#dbe7f6"),
    ("U-Net with attention", "5.4", "860", 6.6, 2.3, 3.1, 1.7, "#f8dfc8"),
    ("decoder", "0.5", "49", 11.2, 2.3, 2.3, 1.7, "#dcefd9"),
]
WAYS = [  # from, to, what is written beside it, and where
    ((1.95, 5.25), (2.9, 5.25), "", (0, 0)),
    ((5.5, 5.25), (8.15, 4.0), "a vector for each word", (7.0, 5.2)),
    ((2.3, 3.1), (6.6, 3.1), "noisy latent", (3.6, 3.35)),
    ((9.7, 3.1), (11.2, 3.1), "latent", (10.45, 3.35)),
    ((13.5, 3.1), (14.3, 3.1), "", (0, 0)),
    ((9.2, 2.3), (7.1, 2.3), "a guess, then a step of the sampler: 15 to 30 times", (8.15, 0.9)),
]


def system(model):
    """The parts of the text-to-image system, and of Stable Diffusion, with what goes from one to the next."""
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    axis.set(xlim=(0, 16), ylim=(0.7, 6.2), aspect="equal")
    axis.axis("off")
    for title, ours, theirs, left, bottom, width, height, color in PARTS:
        axis.add_patch(plt.Rectangle((left, bottom), width, height, color=color, ec="#33475c"))
        text = left + width / 2, bottom + height / 2
        axis.text(*text, f"{title}\n\n\n", ha="center", va="center", fontsize=10, weight="bold")
        axis.text(
            *text,
            f"\nhere {ours} million weights\nStable Diffusion {theirs} million",
            ha="center",
            va="center",
            fontsize=7,
        )
    for start, end, words, place in WAYS:
        bend = "arc3,rad=-0.9" if start[0] > end[0] else "arc3,rad=0"
        style = dict(arrowstyle="-|>", color="#33475c", linewidth=1.5, connectionstyle=bend)
        axis.annotate("", end, start, arrowprops=style)
        axis.text(*place, words, ha="center", fontsize=8)
    axis.text(0.1, 5.25, "round glasses\nand blue hair", va="center", fontsize=10, style="italic")
    latents, images = [], []
    noise = starting_noise(model, 1, seed=3)

    def keep(step, noisy, image):
        latents.append(image)

    prompt = "a smiling face with round glasses and blue hair"
    images = text_to_image(model, prompt, 1, noise=noise, on_step=keep, sampler=DPMSolver())
    pictures = [
        (denormalize(model, noise)[0, :3], (1.5, 3.1), 5),
        (latents[-1][0, :3], (10.45, 4.45), 3.4),
        (images[0], (15.1, 3.1), 1.25),
    ]
    for image, place, zoom in pictures:
        pixels = ((image - 0.5) / 0.6 + 0.5).clip(0, 1) if image.shape[1] == 16 else image
        shown = OffsetImage(pixels.permute(1, 2, 0).numpy(), zoom=zoom, interpolation="nearest")
        axis.add_artist(AnnotationBbox(shown, place, frameon=False))
    file = io.BytesIO()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return Image.open(file)


def covers():
    """Each lesson's picture, and those at the top of the page of help, small, by their names in images/."""
    pictures = {f"{lesson.stem}.png": cover(lesson) for lesson in LESSONS}
    for tag in [tag for cell in cells(HELP, "code") for tag in cell.metadata.get("tags", [])]:
        whole = cover(HELP, tag)
        height = round(240 * whole.height / whole.width)
        pictures[f"{tag.replace('-', '_')}.png"] = whole.resize((240, height))
    return pictures


def models():
    """The sheets on the cards of the models."""
    for folder, scale in {
        TOY_MODEL: 3,
        CATS_MODEL: 3,
        SHORT_MODEL: 3,
        LARGE_MODEL: 2,
        **dict.fromkeys(FEW_STEPS.values(), 3),
    }.items():
        forty = generate(Diffusion.from_pretrained(folder), n=40, seed=1)
        save(sheet(forty.unflatten(0, (4, 10)), scale), folder / "samples.png")
    for kind, folder in ((DiffusionTransformer, DIT_MODEL), (TextToImage, TEXT_MODEL)):
        model = kind.from_pretrained(folder)
        rows = [text_to_image(model, prompt, n=10, sampler=DPMSolver(), seed=1) for prompt in PROMPTS]
        save(sheet(torch.stack(rows), 2), folder / "samples.png")
    save(sheet(torch.stack(rows), 2), IMAGES / "from_a_sentence.png")  # the README's


if __name__ == "__main__":
    parts = sys.argv[1:] or ["idea", "system", "models", "covers"]
    if "idea" in parts:
        first_pictures()
    if "system" in parts:
        save(system(TextToImage.from_pretrained(TEXT_MODEL)), IMAGES / "the_system.png")
    if "models" in parts:
        models()
    if "covers" in parts:
        for name, image in covers().items():
            save(image, IMAGES / name)
