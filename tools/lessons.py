"""Where the lessons and the modules are, and how to read them: what tools and tests share."""

from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "diffusion_utils.py"
MODULES = [CORE, *sorted((ROOT / "more").glob("[a-z]*.py"))]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def cells(path, kind):
    """The cells of a lesson that are of one kind, "code" or "markdown"."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]
