"""Where the lessons and the modules are, and how to read them: what tools and tests share."""

from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "diffusion_utils.py"
MODULES = [CORE, *sorted((ROOT / "diffusion_course").glob("[a-z]*.py"))]
LESSONS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
HELP = ROOT / "notebooks" / "it_does_not_work.ipynb"  # a page to look things up, no lesson
NOTEBOOKS = [*LESSONS, HELP]


def cells(path, kind):
    """The cells of a notebook that are of one kind, "code" or "markdown"."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]
