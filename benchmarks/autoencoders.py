"""Autoencoder, VAEs and diffusion as generators (lesson 08), most of them with equally many images.

    python benchmarks/autoencoders.py        a quarter of an hour on one core

Networks, losses, the loop and the five metrics are lesson 08's own, read from its notebook. Autoencoder and VAEs are
trained three times each. They draw from N(0, I) and, "fitted", from a Gaussian fitted to their latents; 400 faces each
time, compared with 1,000 held-out ones.
"""

import ast

import nbformat
from common import ROOT, fresh, middle, publish, spread

LESSON = ROOT / "notebooks" / "08_autoencoders_and_vaes.ipynb"
DEFINITIONS = ast.FunctionDef, ast.ClassDef, ast.ImportFrom, ast.Import
VALUES = (
    "faces, labels",
    "held_out, held_out_labels",
    "mean_face",
    "device",
    "recipe",
    "terms",
    "classifier, detector",
    "reference",
)
LOSSES = {"AE": "rebuilding_loss", "VAE": "elbo_loss", "VAE, best s": "best_s_loss"}
METRICS = "kernel distance", "fault rate", "recall", "pixel distance", "sharpness"


def lesson_08():
    """The functions, classes and imports of lesson 08, and the values that they use, as a namespace."""
    beginnings = tuple(f"{name} = " for name in VALUES)
    names = {}
    for cell in nbformat.read(LESSON, as_version=4).cells[2:]:
        nodes = ast.parse(cell.source).body if cell.cell_type == "code" else []
        kept = [n for n in nodes if isinstance(n, DEFINITIONS) or ast.unparse(n).startswith(beginnings)]
        exec(compile(ast.Module(kept, []), str(LESSON), "exec"), names)
    return names


def both_ways(lesson, name, model, seed):
    """`{name: the five metrics}` of what `model` draws from N(0, I), and from a Gaussian fitted to its latents."""
    latents = lesson["drawn_latents"](model, lesson["faces"])
    ways = {
        name: lesson["random_latents"](400, seed=100 + seed),
        f"{name}, fitted": lesson["fitted_latents"](latents, 400, seed=100 + seed),
    }
    return {way: lesson["measure"](lesson["decode_latents"](model, drawn)) for way, drawn in ways.items()}


def trained(seed):
    """The same of one autoencoder and two VAEs, trained from `seed`."""
    lesson = lesson_08()
    rows = {}
    for name, loss in LOSSES.items():
        network = lesson["FaceAutoencoder" if name == "AE" else "VAE"]
        model, _ = lesson["train"](network, lesson[loss], seed=seed)
        rows |= both_ways(lesson, name, model, seed)
    return rows


def shipped(seed):
    """The same of the models that come with the course, and of 400 real faces."""
    from diffusion_utils import SHORT_MODEL, TOY_MODEL, Diffusion, generate

    lesson = lesson_08()
    patient = lesson["VAE"]()
    patient.load_state_dict(lesson["load_file"](ROOT / "pretrained" / "face_vae" / "model.safetensors"))
    rows = both_ways(lesson, "VAE, 56 epochs", patient.eval(), seed)
    for name, path in (("diffusion", SHORT_MODEL), ("diffusion, an hour", TOY_MODEL)):
        rows[name] = lesson["measure"](generate(Diffusion.from_pretrained(path), n=400, seed=100 + seed))
    rows["real"] = lesson["measure"](lesson["faces"][400 * seed : 400 * (seed + 1)])
    return rows


if __name__ == "__main__":
    runs = [fresh(trained, seed) | fresh(shipped, seed) for seed in range(3)]
    rows = []
    for name in runs[0]:
        rows.append([name, *(spread([run[name][metric] for run in runs]) for metric in METRICS)])
        print(*rows[-1], flush=True)
    summary = "; ".join(f"{middle(row[1])} ({row[0]})" for row in rows)
    note = (
        "47,616 training images each, but for the VAE of 56 epochs (166,656) and the diffusion model of an hour "
        "(1,177,600). These two, `diffusion` and the real faces are three times 400 faces of one model."
    )
    publish("Autoencoders", ["model", *METRICS], rows, summary=f"Kernel distance {summary}.", note=note)
