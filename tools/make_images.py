"""Draw the pictures of the README and of the models' cards, with the models that ship.

    python tools/make_images.py

Each lesson's own picture is what its cell with the tag "cover" shows, and the small ones at the top of the
page of help what its cells with tags such as "fault-noise" show: run `make lessons` first.
"""

import base64
import io
import sys

import torch
from lessons import HELP, LESSONS, ROOT, cells
from PIL import Image

IMAGES = ROOT / "images"
sys.path.insert(0, str(ROOT))
from diffusion_utils import (  # noqa: E402
    LARGE_MODEL,
    SHORT_MODEL,
    TOY_MODEL,
    Diffusion,
    denormalize,
    generate,
    starting_noise,
)
from diffusion_course.objectives import FEW_STEPS  # noqa: E402
from diffusion_course.conditioning import WORDS_MODEL, Conditional, ask  # noqa: E402
from diffusion_course.latents import CODES_MODEL, FACE_CODES, codes_of, load_coder, pictures_of  # noqa: E402
from diffusion_course.quality import labelled_faces  # noqa: E402
from diffusion_course.samplers import FROM_PURE_NOISE  # noqa: E402

ASKED = [  # one row each on the card of the model that is asked in words
    "a smiling face with round glasses and blue hair, yellow background",
    "a sad person with a red cap and long white hair",
    "a white afro, sunglasses, an open mouth, a green hoodie",
    "a bald head and a full beard, very dark skin, light blue background",
]


def strip(folder, rows, seed, scale):
    """Some moments of `rows` drawings, from noise to face."""
    diffusion = Diffusion.from_pretrained(folder)
    film = [denormalize(diffusion, starting_noise(diffusion, rows, seed))]
    options = dict(n=rows, seed=seed, exact=True, **FROM_PURE_NOISE)
    drawn = generate(diffusion, on_step=lambda step, noisy, image: film.append(noisy), **options)
    film[-1] = drawn  # the last picture without its last noise
    moments = [film[step] for step in (0, 8, 10, 11, 12, 13, 14, 15, 17, 20)]
    return picture(torch.stack(moments, dim=1), scale)


def picture(grid, scale):
    """Pictures (rows, columns, 3, S, S) in [0, 1] side by side, enlarged."""
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


def faults():
    """The pictures at the top of the page of help, small, by their names in images/."""
    tags = [tag for cell in cells(HELP, "code") for tag in cell.metadata.get("tags", [])]
    pictures = {f"{tag.replace('-', '_')}.png": cover(HELP, tag) for tag in tags}
    return {
        name: whole.resize((240, round(240 * whole.height / whole.width))) for name, whole in pictures.items()
    }


if __name__ == "__main__":
    strip(LARGE_MODEL, rows=3, seed=10, scale=2).save(IMAGES / "noise_to_face.png", optimize=True)
    sheets = [(TOY_MODEL, {}, 3), (SHORT_MODEL, {}, 3), (LARGE_MODEL, FROM_PURE_NOISE, 2)]
    sheets += [(folder, {"steps": steps}, 3) for steps, folder in FEW_STEPS.items()]
    for folder, options, scale in sheets:
        forty = generate(Diffusion.from_pretrained(folder), n=40, seed=1, exact=True, **options)
        picture(forty.unflatten(0, (4, 10)), scale).save(folder / "samples.png", optimize=True)
    diffusion = Conditional.from_pretrained(WORDS_MODEL)
    rows = [ask(diffusion, sentence, n=10, seed=1, exact=True) for sentence in ASKED]
    picture(torch.stack(rows), 3).save(WORDS_MODEL / "samples.png", optimize=True)
    coder, diffusion = load_coder(), Conditional.from_pretrained(CODES_MODEL)
    rows = [pictures_of(coder, ask(diffusion, sentence, n=10, seed=1, exact=True)) for sentence in ASKED]
    picture(torch.stack(rows), 2).save(CODES_MODEL / "samples.png", optimize=True)
    faces = labelled_faces("test", 64)[0][:10]
    rows = torch.stack([faces, pictures_of(coder, codes_of(coder, faces))])
    picture(rows, 2).save(FACE_CODES / "samples.png", optimize=True)
    for lesson in LESSONS:
        cover(lesson).save(IMAGES / f"{lesson.stem}.png", optimize=True)
    for name, small in faults().items():
        small.save(IMAGES / name, optimize=True)
