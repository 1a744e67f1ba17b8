"""Rows of images, for looking at them side by side.

Lesson 05  show_rows

    show_rows({"real": faces, "drawn": generate(diffusion)})
"""

import torch
from matplotlib import pyplot as plt


def show_rows(rows, titles=(), n=8):
    """Show the first `n` of each of `rows`, {name: images (N, 3, S, S)}, its name at the left. Lesson 05.

    `titles` stand above the columns.
    """
    columns = min(n, len(next(iter(rows.values()))))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(columns + 1.2, 1.08 * len(rows) + 0.1), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items()):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axis, image in zip(line, images):
            axis.imshow(torch.as_tensor(image).cpu().permute(1, 2, 0).clip(0, 1))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize=9)
    figure.tight_layout(pad=0.3)
    plt.show()
