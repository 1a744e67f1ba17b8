"""Fill the parts of README.md and CONTRIBUTING.md that say what stands elsewhere already.

    python tools/tables.py

Such a part lies between two marks, <!-- lessons --> and <!-- /lessons -->. There are three:

    lessons     a table of the lessons, from their first cells and the time that `make lessons` took
    measured    a table of the benchmarks, from their docstrings and benchmarks/results.md
    targets     a list of the make targets, from the comments in the Makefile
"""

import ast
import re

import nbformat
from lessons import LESSONS, ROOT

NEEDED = {"README.md": {"lessons", "measured"}, "CONTRIBUTING.md": set()}


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


def results(text):
    """The tables of results.md: {(title, kind of device): (machine, rows)}; a row is {column: number or text}."""
    found = {}
    for section in text.split("\n## ")[1:]:
        title, kind = re.fullmatch(r"(.*) \((CPU|CUDA)\)", section.splitlines()[0]).groups()
        machine = section.splitlines()[2].split("; ")[1]
        lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
        columns, _, *rows = [[cell.strip() for cell in line] for line in lines]
        found[title, kind] = machine, [dict(zip(columns, map(plain, row))) for row in rows]
    return found


def plain(cell):
    """The median where a cell holds "median (lowest–highest)" or a number; else its text."""
    number = re.fullmatch(r"(-?[\d,]+(?:\.\d+)?)(?: \(.*–.*\))?", cell)
    return cell if number is None else float(number[1].replace(",", ""))


def in_words(title, rows):
    """What a table of results.md says, in some words; medians where there are several measurements."""
    first, last = rows[0], rows[-1]
    if title == "Training":
        theirs, ours = rows[:2]
        speed, memory = "images/s", "peak memory, MB"
        return f"{theirs[speed]} and {ours[speed]} images a second, {theirs[memory]:,.0f} and {ours[memory]:,.0f} MB"
    if title == "Equal time":
        pixels, kernel, name = "pixel distance, three seeds", "kernel distance", "seconds"
        ours, theirs = first, rows[3]
        pair = f"pixel distance {theirs[pixels]} and {ours[pixels]}, kernel distance {theirs[kernel]} and {ours[kernel]}"
        return f"{pair}, after {ours[name]:.0f} seconds"
    if title == "Codes":
        pixels, codes, _, floor = (
            f"{row['pixel distance, three seeds']} and {row['kernel distance']}" for row in rows
        )
        return f"pixel and kernel distance {pixels} of pixels, {codes} of codes; of real faces through the coder {floor}"
    if title == "Precision":
        pixels, kernel = "pixel distance, three trainings", "kernel distance"
        return f"pixel distance {first[pixels]} and {last[pixels]}, kernel distance {first[kernel]} and {last[kernel]}"
    if title == "Sampling":
        (row,) = [row for row in rows if row["steps"] == 20]
        kinds = "graph kept", "exact", "fast"
        seconds = ", ".join(str(row[f"{kind}, s"]) for kind in kinds)
        memory = ", ".join(f"{row[f'{kind}, MB']:,.0f}" for kind in kinds)
        return f"20 steps: {seconds} s, {memory} MB"
    if title == "The page":
        faces = " and ".join(f"{row['20 steps, s']} s with {row['model']}" for row in rows)
        return f"20 steps: {faces}; the first face after {first['first face, s']} s and {first['download, MB']} MB"
    if title == "Data":
        part = "of the array's size"
        return f"{first['seconds']} and {last['seconds']} s, {first[part]} and {last[part]} times the array's size"
    if title == "Large data":
        few, many = (row["memory, MB"] - row["of it mapped, MB"] for row in (first, last))
        return f"{few:,.0f} and {many:,.0f} MB, and up to {last['of it mapped, MB']:,.0f} MB of files mapped from the disk"
    if title == "Killed and carried on":
        equal = first["trainings that end with the same weights, bit for bit"]
        return f"{equal} end with the same weights, bit for bit, after {first['kills']:.0f} kills"
    if title == "Targets":
        shown = [(f"{row['asked for']}, {row['error']}", row) for row in rows if row["steps"] == 20]
        pixels = "pixel distance, three trainings"
        return "20 steps: pixel distance " + "; ".join(f"{row[pixels]} ({name})" for name, row in shown)
    if title == "Few steps":
        shown = [row for row in rows if row["steps"] == 1]
        return "1 step: kernel distance " + "; ".join(
            f"{row['kernel distance']} ({row['way']})" for row in shown
        )
    if title == "Ablation":
        return "kernel distance " + "; ".join(f"{row['kernel distance']} ({row['left out']})" for row in rows)
    raise ValueError(f"tools/tables.py: no words for the benchmark {title!r}")


def measured():
    found = results((ROOT / "benchmarks" / "results.md").read_text(encoding="utf-8"))
    kinds = sorted({kind for _, kind in found})
    rows = []
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        source = path.read_text(encoding="utf-8")
        published = re.search(r'publish\(\s*"(.*?)"', source)
        if published:
            compares = ast.get_docstring(ast.parse(source)).splitlines()[0].rstrip(".")
            shown = [found.get((published[1], kind)) for kind in kinds]
            words = [
                f"{in_words(published[1], part[1])} ({part[0]})" if part else "not measured yet"
                for part in shown
            ]
            rows.append([f"`{path.name}`", compares, *words])
    return table(["`python benchmarks/…`", "What it compares", *kinds], rows)


# The Makefile, and all together -----------------------------------------------------------


def targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^([\w-]+).*:.*?## (.*)$", makefile, re.MULTILINE)
    return table(["`make …`", "What it does"], [[f"`{name}`", words] for name, words in found])


PARTS = {"lessons": lessons, "measured": measured, "targets": targets}


def filled(text, needed=()):
    """A text with all its parts filled anew; ValueError where a needed one has no marks."""
    for name, make in PARTS.items():
        mark, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if mark in text and end in text:
            before, rest = text.split(mark, 1)
            text = f"{before}{mark}\n{make()}\n{end}{rest.split(end, 1)[1]}"
        elif name in needed:
            raise ValueError(f"the marks {mark} and {end} are missing")
    return text


def main():
    for name, needed in NEEDED.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        try:
            new = filled(old, needed)
        except ValueError as error:
            raise SystemExit(f"{name}: {error}") from error
        if new != old:
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
