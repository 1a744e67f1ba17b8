"""Faces of 64×64 in the same five minutes: drawn as pixels, and as latents whose autoencoder was trained in them, too.

    python benchmarks/latent.py        a quarter of an hour on two CPU cores

Lesson 17's race by the clock. All three train from nothing, predict the velocity (squared errors, lesson 13), with
lesson 04's recipe and as many epochs as fit into their seconds. The pixels get lesson 04's network. The autoencoder
gets a third of the time and the latents the rest; then the latents alone get one minute, as if the autoencoder had
been there before. Pixel distance and kernel distance (lesson 07) of 200 samples, three times, to 1,000 held-out
faces. The floor: 200 held-out faces through the autoencoder and back, twice, to 600 others. The first ten
faces of each go to images/race.png, row by row as in the table.
"""

import time

import torch
from common import ROOT, fresh, judged, middle, publish, spread, start_at_zero
from PIL import Image

BUDGET, AUTOENCODER, ALONE = 300, 100, 60  # seconds
LATENTS = dict(image_size=16, channels=4, widths=(32, 64, 128), block_depth=1)


def trained(model, data, loss, seconds, batch_size=32, **recipe):
    """Train `model` for about `seconds`; returns the seconds it took and the number of images it saw."""
    from torch.utils.data import DataLoader

    from diffusion_utils import CPU_RECIPE, Training

    recipe = CPU_RECIPE | recipe
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True)
    first = {name: weight.clone() for name, weight in model.state_dict().items()}
    recipe["epochs"] = 2  # they show what an epoch takes; the cosine needs to know its end beforehand
    for _ in range(3):
        model.load_state_dict(first)
        start = time.perf_counter()
        steps = sum(1 for _ in Training(model, loader, loss=loss, **recipe))
        took = time.perf_counter() - start
        if abs(took / seconds - 1) < 0.1:
            break
        recipe["epochs"] = max(1, round(recipe["epochs"] * seconds / took))
    model.eval()
    return took, steps * batch_size


def new(**shape):
    from diffusion_utils import Diffusion, DiffusionConfig

    torch.manual_seed(0)
    return start_at_zero(Diffusion(DiffusionConfig(**shape, predicts="v")))


def pixels():
    from diffusion_course.objectives import prediction_loss
    from diffusion_course.quality import labelled_faces
    from diffusion_utils import CPU_SHAPE, generate

    diffusion = new(**CPU_SHAPE | dict(image_size=64))
    seconds, images = trained(diffusion, labelled_faces("train", 64)[0], prediction_loss, BUDGET)
    drawn = [generate(diffusion, n=200, seed=seed).cpu() for seed in (1, 2, 3)]
    return (seconds, images, judged(drawn, 64)), drawn[0][:10]


def latents():
    """Three rows: the race with the autoencoder's training in it, the latents alone for a minute, and the floor."""
    from diffusion_course.latents import Autoencoder, autoencoder_loss, decode, encode
    from diffusion_course.objectives import prediction_loss
    from diffusion_course.quality import labelled_faces, load_classifier
    from diffusion_utils import generate, get_data

    faces, held_out = labelled_faces("train", 64)[0], torch.from_numpy(get_data(split="test", limit=1000))
    torch.manual_seed(0)
    autoencoder, rows = Autoencoder(), []
    loss = autoencoder_loss(list(load_classifier().cpu().features))
    spent, seen = trained(autoencoder, faces, loss, AUTOENCODER, batch_size=16)
    start = time.perf_counter()
    encoded = encode(autoencoder, faces)
    spent += time.perf_counter() - start
    for seconds in (BUDGET - spent, ALONE):
        diffusion = new(**LATENTS)
        took, images = trained(diffusion, encoded, prediction_loss, seconds)
        drawn = [decode(autoencoder, generate(diffusion, n=200, seed=seed)) for seed in (1, 2, 3)]
        rows.append((took, images, judged(drawn, 64), drawn[0][:10]))
    (took, images, distances, faces), (*alone, faces_alone) = rows
    rebuilt = decode(autoencoder, encode(autoencoder, held_out[:400]))
    return (
        (spent + took, f"{seen:,} + {images:,}", distances),
        alone,
        (spent, seen, judged(rebuilt.split(200), 64, left_out=400)),
        [faces, faces_alone, rebuilt[:10]],
    )


if __name__ == "__main__":
    by_pixels, above = fresh(pixels)
    by_latents, alone, floor, others = fresh(latents)
    sheet = torch.stack([above, *others]).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    Image.fromarray((sheet * 255).round().byte().numpy()).save(ROOT / "images" / "race.png")
    results = {"pixels": by_pixels, "autoencoder, then latents": by_latents}
    results |= {"latents, with the autoencoder given": alone, "held-out faces through the autoencoder": floor}
    rows = []
    for name, (seconds, images, distances) in results.items():
        images = images if isinstance(images, str) else f"{images:,}"
        rows.append([name, f"{seconds:.0f}", images, *(spread(some) for some in distances[:2])])
    columns = [
        "64×64",
        "seconds of training",
        "images seen",
        "pixel distance, three seeds",
        "kernel distance",
    ]
    note = "One training run each; the ranges are those of three sets of 200 faces."
    pixels, latents, _, floor = (f"{middle(row[3])} and {middle(row[4])}" for row in rows)
    words = f"{pixels} of pixels, {latents} of latents; of real faces through the autoencoder {floor}"
    publish("Latents", columns, rows, summary=f"Pixel and kernel distance {words}.", note=note)
