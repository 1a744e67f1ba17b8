"""Draw the strip at the top of the README with the model that ships: from noise to faces.

    python tools/make_images.py
"""

import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from diffusion_utils import TOY_MODEL, Diffusion, denormalize, generate, starting_noise  # noqa: E402

ROWS, SEED, SCALE = 3, 11, 3
STEPS = [0, 4, 6, 8, 10, 12, 14, 16, 18, 20]

diffusion = Diffusion.from_pretrained(TOY_MODEL)
film = [denormalize(diffusion, starting_noise(diffusion, ROWS, SEED))]
generate(diffusion, n=ROWS, seed=SEED, on_step=lambda step, noisy, image: film.append(noisy))
film[-1] = generate(diffusion, n=ROWS, seed=SEED)  # the last picture without its last noise
rows = torch.cat([torch.cat([film[step][row] for step in STEPS], dim=2) for row in range(ROWS)], dim=1)
picture = Image.fromarray((rows * 255).round().byte().permute(1, 2, 0).numpy())
picture = picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST)
picture.save(ROOT / "images" / "noise_to_face.png", optimize=True)
