"""Draw the pictures of the README and of the models' cards, with the models that ship.

    python tools/make_images.py            all of them
    python tools/make_images.py covers     only those that the lessons show

Each lesson's own picture is what its cell with the tag "cover" shows, and the small ones at the top of the
page of help what its cells with tags such as "fault-noise" show: run `make lessons` first.
"""

import base64
import io
import sys

import torch
from lessons import HELP, LESSONS, ROOT, cells
from PIL import Image
from smaller import smaller

IMAGES = ROOT / "images"
sys.path.insert(0, str(ROOT))
from diffusion_course.distillation import FEW_STEPS  # noqa: E402
from diffusion_course.latents import FACE_AUTOENCODER, LATENT_MODEL, decode, encode, load_autoencoder  # noqa: E402
from diffusion_course.quality import labelled_faces  # noqa: E402
from diffusion_course.text import WORDS_MODEL, TextDiffusion, text_to_image  # noqa: E402
from diffusion_utils import (  # noqa: E402
    LARGE_MODEL,
    SHORT_MODEL,
    TOY_MODEL,
    Diffusion,
    denormalize,
    generate,
    starting_noise,
)

PROMPTS = [  # one row each on the card of a model that follows prompts
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


def strip(folder, rows, seed, scale):
    """Some moments of `rows` drawings, from noise to face."""
    diffusion = Diffusion.from_pretrained(folder)
    film = [denormalize(diffusion, starting_noise(diffusion, rows, seed))]
    drawn = generate(diffusion, rows, seed=seed, on_step=lambda step, noisy, image: film.append(noisy))
    film[-1] = drawn  # the last picture without its last noise
    moments = [film[step] for step in (0, 8, 10, 11, 12, 13, 14, 15, 17, 20)]
    return sheet(torch.stack(moments, dim=1), scale)


def sheet(grid, scale):
    """Images (rows, columns, 3, S, S) in [0, 1] side by side, enlarged."""
    rows, columns, _, size, _ = grid.shape
    pixels = (grid * 255).round().byte().permute(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)
    image = Image.fromarray(pixels.numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


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
        SHORT_MODEL: 3,
        LARGE_MODEL: 2,
        **dict.fromkeys(FEW_STEPS.values(), 3),
    }.items():
        forty = generate(Diffusion.from_pretrained(folder), n=40, seed=1)
        save(sheet(forty.unflatten(0, (4, 10)), scale), folder / "samples.png")
    diffusion = TextDiffusion.from_pretrained(WORDS_MODEL)
    rows = [text_to_image(diffusion, prompt, n=10, seed=1) for prompt in PROMPTS]
    save(sheet(torch.stack(rows), 3), WORDS_MODEL / "samples.png")
    autoencoder, diffusion = load_autoencoder(), TextDiffusion.from_pretrained(LATENT_MODEL)
    latents = [text_to_image(diffusion, prompt, n=10, seed=1) for prompt in PROMPTS]
    save(sheet(torch.stack([decode(autoencoder, row) for row in latents]), 2), LATENT_MODEL / "samples.png")
    faces = labelled_faces("test", 64)[0][:10]
    rows = torch.stack([faces, decode(autoencoder, encode(autoencoder, faces))])
    save(sheet(rows, 2), FACE_AUTOENCODER / "samples.png")


if __name__ == "__main__":
    if sys.argv[1:] != ["covers"]:
        moments = strip(LARGE_MODEL, rows=3, seed=10, scale=2)  # noise would take the palette from the faces
        moments.save(IMAGES / "noise_to_face.png", optimize=True)
        models()
    for name, image in covers().items():
        save(image, IMAGES / name)
