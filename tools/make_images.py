"""Draw, with the model that ships, the strip at the top of the README and the sheet of its card.

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

forty = generate(diffusion, n=40, seed=1).reshape(4, 10, 3, 32, 32)
sheet = forty.permute(0, 3, 1, 4, 2).reshape(4 * 32, 10 * 32, 3)
sheet = Image.fromarray((sheet * 255).round().byte().numpy())
sheet.resize((sheet.width * 3, sheet.height * 3), Image.Resampling.NEAREST).save(TOY_MODEL / "samples.png", optimize=True)
