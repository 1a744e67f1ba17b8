"""Install what the lessons need and Colab lacks. The first cell of each lesson runs this, on Colab only.

What is there and recent enough stays, torch and numpy above all: another numpy would need a new
start of the kernel, another torch would not know the GPU.
"""

import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
NOT_NEEDED = {"jupyterlab", "nbclient"}  # Colab is a notebook server of its own


def version(name):
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing():
    """The lines of the lessons' part of requirements.txt that this machine does not meet."""
    lessons = REQUIREMENTS.read_text().split("# The tests.")[0]
    wanted = [Requirement(line) for line in lessons.splitlines() if line.strip() and not line.startswith("#")]
    return [str(w) for w in wanted if w.name not in NOT_NEEDED and not (version(w.name) and version(w.name) in w.specifier)]


def main():
    lines = missing()
    if not lines:
        return
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(f"{name}=={version(name)}\n" for name in ("torch", "numpy") if version(name)))
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *lines], check=True)


if __name__ == "__main__":
    main()
