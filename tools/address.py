"""Change the public address of the course, in badges, in the first cell of the lessons and in the README.

    python tools/address.py owner/name

The address is kept in pyproject.toml, under [tool.course]; everything else is written from it.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"


def course():
    """The settings [tool.course]: repository and version."""
    section = PROJECT.read_text(encoding="utf-8").split("[tool.course]")[1].split("\n[")[0]
    return dict(re.findall(r'^(\w+) = "(.*)"$', section, re.MULTILINE))


def rewrite(new):
    """Put the address `new` in place of the one in pyproject.toml, everywhere."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        raise SystemExit(f"REPO: {new!r} is not of the form owner/name")
    old = course()["repository"]
    first_cell = ROOT / "tools" / "first_cell.py"
    others = first_cell, ROOT / "README.md", ROOT / "web" / "index.html", PROJECT
    for path in [*sorted((ROOT / "notebooks").glob("*.ipynb")), *others]:
        text = path.read_text(encoding="utf-8")
        text = text.replace(f"github.com/{old}", f"github.com/{new}")  # in links and in the first cell
        text = text.replace(f"/github/{old}/", f"/github/{new}/")  # in the badges
        text = text.replace(f"/codespaces/new/{old}", f"/codespaces/new/{new}")
        text = text.replace(old.replace("/", ".github.io/"), new.replace("/", ".github.io/"))  # the site
        if path == PROJECT:
            text = text.replace(f'repository = "{old}"', f'repository = "{new}"')
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    rewrite(sys.argv[1])
