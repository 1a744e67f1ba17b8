"""Make the pictures in notebooks and folders smaller: PNG with a palette of 256 colours, where that halves them or nearly.

    python tools/smaller.py notebooks/*.ipynb images/*.png pretrained/*/*.png

`tools/run_lessons.py` does it for each lesson that it runs. A picture that has 256 colours or fewer, as most plots
have, keeps all its pixels; a sheet of faces keeps its sharp edges, and the eye does not miss the other colours.
"""

import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

PNG = "image/png"
STATE = "application/vnd.jupyter.widget-state+json"


def smaller(png):
    """The bytes of a PNG file with a palette, or `png` itself where that saves less than two fifths."""
    image = Image.open(io.BytesIO(png))
    if image.mode == "P":
        return png
    packed = io.BytesIO()
    image.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=0).save(
        packed, "PNG", optimize=True
    )
    return packed.getvalue() if len(packed.getvalue()) < 0.6 * len(png) else png


def outputs(notebook):
    """All outputs of a notebook: those of its cells, and those that its sliders keep."""
    for cell in notebook.cells:
        yield from cell.get("outputs", [])
    for widget in notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {}).values():
        yield from widget["state"].get("outputs", [])


def shrink(notebook):
    """Make the pictures of a notebook smaller, in place."""
    for output in outputs(notebook):
        data = output.get("data", {})
        if PNG in data:
            png = base64.b64decode(data[PNG])
            packed = smaller(png)
            if packed != png:
                data[PNG] = base64.b64encode(packed).decode()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        if path.suffix == ".ipynb":
            notebook = nbformat.read(path, as_version=4)
            shrink(notebook)
            nbformat.write(notebook, path)
        else:
            path.write_bytes(smaller(path.read_bytes()))
