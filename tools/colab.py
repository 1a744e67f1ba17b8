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
NOT_NEEDED = {"jupyterlab"}  # Colab is a notebook server of its own


def version(name):
    """The installed version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing():
    """The lines of requirements.txt that this machine does not meet."""
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    wanted = [need for need in map(Requirement, lines) if need.name not in NOT_NEEDED]
    return [str(need) for need in wanted if not need.specifier.contains(version(need.name) or "0")]


def main():
    lines = missing()
    if not lines:
        return
    with tempfile.TemporaryDirectory() as folder:
        kept = [f"{name}=={version(name)}\n" for name in ("torch", "numpy") if version(name)]
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("".join(kept))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        subprocess.run([*pip, *lines], check=True)


if __name__ == "__main__":
    main()
