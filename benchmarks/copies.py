"""Where do new faces come from? The same network, trained on 10 to 3,000 faces, and how often it copies.

    python benchmarks/copies.py          ten minutes on two CPU cores

Lesson 04's network, loss and optimizer, and as many steps each time; where there are fewer faces, each is seen
more often. A drawn face is a copy if the nearest training face, mirrored or shifted by a pixel if need be, is
less than a third as far, in the features of lesson 07, as the second nearest. The first drawings of the network
that has learned from 100 faces go to images/copies.png, and below them the nearest training faces.
"""

import numpy as np
import torch
from common import ROOT, fresh, publish, start_at_zero
from PIL import Image

COUNTS = 10, 100, 1000, 3000
DRAWN, SHOWN = 400, 8


def variants(faces):
    """Faces (N, 3, S, S) as they are, mirrored, and both shifted by a pixel: (10, N, 3, S, S)."""
    both = [faces, faces.flip(3)]
    shifts = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    return torch.stack([kind.roll(shift, (2, 3)) for kind in both for shift in shifts])


def copies(count):
    """`(percent of copies, some drawn faces and the nearest ones)` of a network trained on `count` faces."""
    from diffusion_course.optimizers import even_l1_loss, muon
    from diffusion_course.quality import face_features, load_classifier
    from diffusion_utils import (
        CPU_RECIPE,
        CPU_SHAPE,
        Diffusion,
        DiffusionConfig,
        Training,
        generate,
        get_data,
        get_loader,
    )

    faces = get_data(size=32)[:count]
    repeated = np.tile(faces, (3000 // count, 1, 1, 1))
    torch.manual_seed(0)
    diffusion = start_at_zero(Diffusion(DiffusionConfig(**CPU_SHAPE)))
    loader = get_loader(repeated, 32, seed=0)
    for _ in Training(diffusion, loader, loss=even_l1_loss, optimizer=muon, **CPU_RECIPE):
        pass
    classifier = load_classifier()
    drawn = generate(diffusion, n=DRAWN, seed=1)
    known = face_features(classifier, variants(torch.from_numpy(faces)).flatten(0, 1))
    distances = torch.cdist(face_features(classifier, drawn), known).view(DRAWN, 10, count).min(dim=1).values
    (nearest, second), (places, _) = (part[:, :2].T for part in distances.sort(dim=1))
    pairs = torch.stack([drawn[:SHOWN], torch.from_numpy(faces)[places[:SHOWN]]])
    return 100 * (nearest < second / 3).float().mean().item(), pairs


if __name__ == "__main__":
    results = {count: fresh(copies, count) for count in COUNTS}
    rows = [(f"{count:,}", f"{share:.1f}") for count, (share, _) in results.items()]
    sheet = results[100][1].permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)  # two rows of SHOWN faces
    Image.fromarray((sheet * 255).round().byte().numpy()).save(ROOT / "images" / "copies.png")
    note = f"{DRAWN} faces from each network, one training run each, 1,488 steps of 32."
    summary = "; ".join(f"{share} % copies ({count} faces)" for count, share in rows) + "."
    publish("Copies", ["training faces", "copies, percent"], rows, summary=summary, note=note)
