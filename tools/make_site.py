"""Render the README and all lessons as web pages, with links between them.

    python tools/make_site.py [folder]

Without a folder they go to site/.
"""

import re
import shutil
import sys
from pathlib import Path

from address import course
from lessons import LESSONS, ROOT
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Diffusion models, built by hand</title>
<style>body {{ max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 sans-serif }}
img {{ max-width: 100% }} pre {{ overflow-x: auto; background: #f4f4f4; padding: .7rem }}
table {{ border-collapse: collapse }} td, th {{ border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: left }}</style>
</head><body>{}</body></html>
"""


def link_pages(html):
    """Let links to lessons lead to their pages, and those to other files to the public repository."""
    html = re.sub(r'href="(?!https?:)([^"#]*)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', html)
    files = f"https://github.com/{course()['repository']}/tree/{course()['version']}/"
    return re.sub(r'href="(?!https?:|#|[^"]*\.html)(?:\.\./)?([^"]+)"', rf'href="{files}\1"', html)


def make(site):
    (site / "notebooks").mkdir(parents=True, exist_ok=True)
    for path in LESSONS:
        html, _ = HTMLExporter().from_filename(str(path))
        (site / "notebooks" / f"{path.stem}.html").write_text(link_pages(html), encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (site / "index.html").write_text(PAGE.format(link_pages(markdown2html(readme))), encoding="utf-8")
    shutil.copytree(ROOT / "images", site / "images", dirs_exist_ok=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site")
