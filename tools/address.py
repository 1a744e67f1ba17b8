"""Change the public address of the course, in badges, in the first cell of the lessons and in the README.

    python tools/address.py owner/name

The address is kept in pyproject.toml, under [tool.course], as the version is under [project]; everything else is
written from it.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "pyproject.toml"


def course():
    """The repository, and the tag that belongs to the version, such as "v1"."""
    settings = dict(re.findall(r'^(repository|version) = "(.*)"', PROJECT.read_text("utf-8"), re.MULTILINE))
    return {"repository": settings["repository"], "version": f"v{settings['version'].removeprefix('v')}"}


def rewrite(new):
    """Write the address `new` instead of the one in pyproject.toml, everywhere."""
    if not re.fullmatch(r"[a-zA-Z0-9][\w-]*/\w[\w.-]*", new, re.ASCII):
        raise SystemExit(f"REPO: {new!r} is not of the form owner/name")
    old = course()["repository"]
    first_cell = ROOT / "tools" / "first_cell.py"
    pages = ROOT / "web" / "index.html", ROOT / "web" / "field" / "index.html"
    others = first_cell, ROOT / "README.md", *pages, PROJECT
    for path in [*sorted((ROOT / "notebooks").glob("*.ipynb")), *others]:
        text = path.read_text(encoding="utf-8")
        # in links, in the first cell and in the badges; no other repository whose name begins alike
        text = re.sub(
            rf"(github(?:\.com)?/|codespaces/new/){re.escape(old)}(?![\w-]|\.\w)", rf"\g<1>{new}", text
        )
        text = text.replace(old.replace("/", ".github.io/"), new.replace("/", ".github.io/"))  # the site
        if path == PROJECT:
            text = text.replace(f'repository = "{old}"', f'repository = "{new}"')
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("REPO is missing: make address REPO=owner/name")
    rewrite(sys.argv[1])
