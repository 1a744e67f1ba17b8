"""Fill the parts of README.md and benchmarks/README.md that say what stands elsewhere already.

    python tools/tables.py

Such a part lies between two marks, <!-- lessons --> and <!-- /lessons -->. There are two, one in each file:

    lessons     a table of the lessons, from their first cells and the time that `make lessons` took
    measured    a table of the benchmarks, from their docstrings and benchmarks/results.md
"""

import argparse
import ast
import re
import sys

import nbformat
from lessons import LESSONS, ROOT

sys.path.insert(0, str(ROOT))
from diffusion_course.quality import results  # noqa: E402

README = ROOT / "README.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"


def table(columns, rows):
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


# Lessons --------------------------------------------------------------------------------


def about(seconds):
    """A time as a reader wants it: 15 s, 40 s, 2 min, 5 min."""
    return f"{max(5, 5 * round(seconds / 5))} s" if seconds < 90 else f"{round(seconds / 60)} min"


def lesson(path):
    """The row of a lesson: its title with a link, what one does in it, and how long it runs."""
    notebook = nbformat.read(path, as_version=4)
    text = notebook.cells[0].source
    title = text.splitlines()[0].removeprefix("# ")
    does = re.search(r"\*\*What you'll do:\*\* (.*)", text)[1]
    does = re.sub(r"\]\((?!https?:)", "](notebooks/", does)
    seconds = notebook.metadata.get("course", {}).get("seconds")
    return f"[{title}](notebooks/{path.name})", does[0].upper() + does[1:], about(seconds) if seconds else ""


def lessons():
    return table(["Lesson", "What you do in it", "Runs in"], [lesson(path) for path in LESSONS])


# Benchmarks -----------------------------------------------------------------------------


def in_short(section):
    """What a section of results.md says: its summary, and on which machine it was measured."""
    machine, summary = section.strip().split("\n\n")[:2]
    return f"{summary.strip('*').rstrip('.')} ({machine.split('; ')[1]})"


def measured():
    sections = results()
    kinds = sorted({title.split("(")[-1].rstrip(")") for title in sections})
    rows = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        compares = ast.get_docstring(ast.parse(source)).splitlines()[0].rstrip(".")
        titles = [title for title in sections if f'"{title.split(" (")[0]}"' in source]
        if titles:
            name = min(titles).split(" (")[0]
            shown = [sections.get(f"{name} ({kind})") for kind in kinds]
            rows.append(
                [
                    f"`{path.name}`",
                    compares,
                    *(in_short(text) if text else "not measured yet" for text in shown),
                ]
            )
    return table(["`python benchmarks/…`", "What it compares", *kinds], rows)


# All together ---------------------------------------------------------------------------

PARTS = {"lessons": (README, lessons), "measured": (BENCHMARKS, measured)}


def filled(text, name):
    """A text with its part `name` filled anew."""
    before, rest = text.split(f"<!-- {name} -->")
    after = rest.split(f"<!-- /{name} -->")[1]
    return f"{before}<!-- {name} -->\n{PARTS[name][1]()}\n<!-- /{name} -->{after}"


if __name__ == "__main__":
    Help = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=Help).parse_args()
    for name, (path, _) in PARTS.items():
        path.write_text(filled(path.read_text(encoding="utf-8"), name), encoding="utf-8")
