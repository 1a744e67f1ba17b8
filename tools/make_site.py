"""Make the web site: the page that draws in the reader's browser, and around it the lessons.

    python tools/make_site.py [folder]

Without a folder it goes to site/. Nothing is executed; what lessons show is what they have saved.
"""

import ast
import gzip
import html
import logging
import re
import shutil
import sys
import tempfile
from pathlib import Path

import export_onnx
import nbformat
from address import course as settings
from lessons import HELP, LESSONS, NOTEBOOKS, ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config
from smaller import STATE
from sync import FIRST_CELL, IMPORTS

WEB = ROOT / "web"
PACKAGES = WEB / "node_modules"
PARTS = {"Build it": 0, "Understand it": 6, "Use it": 10, "Beyond the article": 12}
VIEW = "application/vnd.jupyter.widget-view+json"
BUTTONS = r'<span class="ways"><a href="\1">Open in Colab</a><a href="../../index.html">Draw a face in this browser</a></span>'
BINARIES = ["ort-wasm-simd-threaded", "ort-wasm-simd-threaded.asyncify"]  # the latter knows WebGPU


def check_packages():
    if not PACKAGES.exists():
        raise SystemExit(
            "onnxruntime-web and KaTeX are missing: run `make site`, or `npm ci --prefix web` once"
        )


# The live page ------------------------------------------------------------------------------


def live_page(site, models=None):
    """The page that draws: its files as they are, onnxruntime-web, and the models as ONNX."""
    not_needed = shutil.ignore_patterns("node_modules", "package*.json", "lessons", "mkdocs.yml")
    shutil.copytree(WEB, site, ignore=not_needed, dirs_exist_ok=True)
    shutil.copy(ROOT / "images" / "noise_to_face.png", site)
    shutil.copy(ROOT / "LICENSE", site)
    runtime, package = site / "runtime", PACKAGES / "onnxruntime-web"
    runtime.mkdir(exist_ok=True)
    for name in ["ort.wasm.min.mjs", "ort.webgpu.min.mjs", *(f"{binary}.mjs" for binary in BINARIES)]:
        shutil.copy(package / "dist" / name, runtime)
    for binary in BINARIES:  # packed here, since few servers would do it
        packed = gzip.compress((package / "dist" / f"{binary}.wasm").read_bytes(), 6, mtime=0)
        (runtime / f"{binary}.wasm.gz").write_bytes(packed)
    export_onnx.main(site / "models", models or export_onnx.shipped())


# The lessons --------------------------------------------------------------------------------


def still(widget, states):
    """What a saved slider showed, as plain HTML; None for a widget that is no slider."""
    parts = [states[child.removeprefix("IPY_MODEL_")]["state"] for child in widget.get("children", [])]
    shown = [output for part in parts for output in part.get("outputs", [])]
    if not shown:
        return None
    settings = []
    for part in [part for part in parts if part.get("description")]:
        choices, index = part.get("_options_labels"), part.get("index")
        value = part.get("value") if choices is None else choices[index]
        settings.append(f"<b>{html.escape(part['description'])}</b> {html.escape(str(value))}")
    sentence = f"<p>Saved with {', '.join(settings)}. In JupyterLab or Colab you can move it.</p>"
    return f'<div class="still">{sentence}{as_html(shown)}</div>'


def as_html(outputs):
    """Pictures and text that a cell has put out, as plain HTML."""
    lines = []
    for output in outputs:
        if "image/png" in output.get("data", {}):
            lines.append(f'<img alt="" src="data:image/png;base64,{output["data"]["image/png"].strip()}">')
        else:
            lines.append(f"<pre>{html.escape(output.get('text', ''))}</pre>")
    return "".join(lines)


def collapsed(cell):
    """A code cell that is collapsed in the notebook, as text that unfolds, and below it what the cell has put out."""
    imports = all(isinstance(node, IMPORTS) for node in ast.parse(cell.source).body)
    title = "Set-up" if cell.source == FIRST_CELL else "Imports" if imports else "Code"
    source = f"<details><summary>{title}</summary>\n\n```python\n{cell.source}\n```\n</details>"
    shown = f'\n\n<div class="shown">{as_html(cell.outputs)}</div>' if cell.outputs else ""
    return nbformat.v4.new_markdown_cell(source + shown, id=cell.id)


def plain(notebook):
    """The notebook without what would come from elsewhere: stills instead of widgets, words instead of a badge."""
    address = f"https://{settings()['repository'].replace('/', '.github.io/')}/field/"
    states = notebook.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    hidden = [cell.metadata.get("jupyter", {}).get("source_hidden", False) for cell in notebook.cells]
    notebook.cells = [collapsed(cell) if fold else cell for cell, fold in zip(notebook.cells, hidden)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = cell.source.replace(address, "../../field/index.html")
            cell.source = re.sub(r"\[!\[Open in Colab\][^)]*\)\]\(([^)]*)\)", BUTTONS, cell.source)
            cell.source = re.sub(
                "^#+ .*", lambda heading: heading[0].replace("`", ""), cell.source, flags=re.M
            )
        for output in cell.get("outputs", []):
            view = output.get("data", {}).pop(VIEW, None)
            if view and (picture := still(states[view["model_id"]]["state"], states)):
                output.data["text/html"] = picture
    return notebook


def described(page):
    """Give each picture of a lesson's page a text for those who cannot see it: the heading that it stands under."""
    parts, heading = re.split(r"(<h[1-4].*?</h[1-4]>|<img [^>]*>)", page, flags=re.DOTALL), ""
    for i, part in enumerate(parts):
        if part.startswith("<h"):
            heading = html.escape(html.unescape(re.sub(r"<[^>]*>|¶", "", part)).strip())
        elif part.startswith("<img") and not re.search(r'alt="(?!No description)[^"]', part):
            parts[i] = f'<img alt="Picture under “{heading}”"' + re.sub(r' alt="[^"]*"', "", part[4:])
    return "".join(parts)


def linked(page):
    """Let links to lessons, and to parts of them, lead to their pages, and those to other files to the public repository."""
    page = re.sub(r'href="(?!https?:)([^"#]*)\.ipynb(#[^"]*)?"', r'href="\1.html\2"', page)
    # Where a link leads to a heading, JupyterLab keeps the heading's capitals, and these pages do not.
    places = r'(?<=href=")([^":#]*)#([^"]*)(?=")'
    page = re.sub(places, lambda place: f"{place[1]}#{place[2].lower()}", page)
    files = f"https://github.com/{settings()['repository']}/tree/{settings()['version']}/"
    known = r"https?:|#|\.?/|mailto:|[^\"]*\.(?:html|css|js|png|svg|woff2)"
    return re.sub(rf'href="(?!{known})(?:\.\./)?([^"]+)"', rf'href="{files}\1"', page)


def documents(folder):
    """Lay what the generator takes into `folder`: README, lessons, pictures, and how they are to look."""
    shutil.copy(ROOT / "README.md", folder / "index.md")
    shutil.copytree(ROOT / "images", folder / "images")
    shutil.copytree(WEB / "lessons", folder / "assets")
    shutil.copy(WEB / "icon.svg", folder / "assets")
    (folder / "notebooks").mkdir()
    for path in NOTEBOOKS:
        nbformat.write(plain(nbformat.read(path, as_version=4)), folder / "notebooks" / path.name)
    katex, target = PACKAGES / "katex" / "dist", folder / "assets" / "katex"
    (target / "fonts").mkdir(parents=True)
    for file in katex.glob("fonts/*.woff2"):
        shutil.copy(file, target / "fonts")
    for name in ("katex.min.css", "katex.min.js", "contrib/auto-render.min.js"):
        shutil.copy(katex / name, target)


def navigation():
    """The lessons in their parts, as the generator takes it."""
    nav = [{"Draw a face": "../index.html"}, {"Noise that flows": "../field/index.html"}]
    nav.append({"The course": "index.md"})
    ends = [*PARTS.values(), 100][1:]
    for (part, first), end in zip(PARTS.items(), ends):
        lessons = [path.name for path in LESSONS if first <= int(path.stem[:2]) < end]
        nav.append({part: [f"notebooks/{name}" for name in lessons]})
    return [*nav, {"Help": [f"notebooks/{HELP.name}"]}]


def course(site):
    """README and lessons as pages with contents, search and ways from one to the next."""
    shutil.copytree(WEB / "field", site / "field", dirs_exist_ok=True)  # lesson 06 leads to it
    logging.getLogger("mkdocs").setLevel(logging.ERROR)  # links out of the pages: `linked` sees to them
    with tempfile.TemporaryDirectory() as folder:
        documents(Path(folder))
        folders = dict(docs_dir=folder, site_dir=str(site / "course"))
        build(load_config(str(WEB / "mkdocs.yml"), nav=navigation(), **folders))
    for page in (site / "course").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(linked(described(text)), encoding="utf-8")
    index = site / "course" / "search" / "search_index.json"
    text = index.read_text(encoding="utf-8").replace("Copied!", "")  # what the button beside each cell says
    index.write_text(text, encoding="utf-8")


def make(site):
    check_packages()
    lessons = site / "course"  # the generator empties it
    made_here = (lessons / "search" / "search_index.json").exists()
    if lessons.exists() and any(lessons.iterdir()) and not made_here:
        raise SystemExit(f"{lessons} would be emptied, and was not made here: remove it, or name another one")
    live_page(site)
    course(site)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "site")
