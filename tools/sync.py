"""Write into the lessons what stands elsewhere, word for word: definitions of the modules and of train.py, and the first cell.

    python tools/sync.py             write the cells
    python tools/sync.py --check     only say which lessons differ; exit status 1 if any does

A definition goes, without docstrings, into the lesson that its docstring names ("Lesson 05"). A cell there
says where: a function or class of the same name stands in it, with any body. A class that is too long for one
cell goes on in others, as `class Training(Training):`; each of them says which methods it has. The first code
cell of all notebooks is tools/first_cell.py. That cell, and those that only import, are collapsed.
"""

import argparse
import ast
import re
import sys

import nbformat
from lessons import MODULES, NOTEBOOKS, ROOT

KINDS = ast.FunctionDef, ast.ClassDef
IMPORTS = ast.Import, ast.ImportFrom
COLLAPSED = {"source_hidden": True}
FIRST_CELL = (ROOT / "tools" / "first_cell.py").read_text(encoding="utf-8").strip()


def public(source):
    """The public functions and classes of a module or a cell, by name: (node, first line, last line)."""
    try:
        nodes = ast.parse(source).body
    except SyntaxError:  # a cell with a magic such as %time
        return {}
    found = [node for node in nodes if isinstance(node, KINDS) and not node.name.startswith("_")]
    starts = [min(part.lineno for part in [node, *node.decorator_list]) for node in found]
    return {node.name: (node, start, node.end_lineno) for node, start in zip(found, starts)}


def methods(node):
    """The methods of a class: {name: (node, first line, last line)}; none where `node` is a function."""
    inner = [part for part in getattr(node, "body", ()) if isinstance(part, ast.FunctionDef)]
    starts = [min(line.lineno for line in [part, *part.decorator_list]) for part in inner]
    return {part.name: (part, start, part.end_lineno) for part, start in zip(inner, starts)}


def in_parts(sources):
    """The names of the classes that go on in a second cell: `class Training(Training):`."""
    names = set()
    for source in sources:
        for name, (node, *_) in public(source).items():
            if name in map(ast.unparse, getattr(node, "bases", ())):
                names.add(name)
    return names


def number(node):
    """The number of the lesson that a definition's docstring names, None where it names none."""
    named = re.search(r"Lesson (\d\d)", ast.get_docstring(node) or "")
    return named and named[1]


def without_docstrings(source, node, start, end):
    """The text of a definition, less its docstring and those in it, where there is more than a docstring."""
    lines, dropped = source.splitlines(), set()
    for inner in ast.walk(node):
        if isinstance(inner, KINDS) and ast.get_docstring(inner) and len(inner.body) > 1:
            first, last = inner.body[0].lineno, inner.body[0].end_lineno
            blank = not lines[last].strip()  # the line behind it
            dropped.update(range(first, last + 1 + blank))
    return "\n".join(lines[i - 1] for i in range(start, end + 1) if i not in dropped)


def taught():
    """What each lesson has to hold: {number: {name: text}}."""
    texts = {}
    for module in [*MODULES, ROOT / "train.py"]:
        source = module.read_text(encoding="utf-8")
        for name, (node, start, end) in public(source).items():
            texts.setdefault(number(node), {})[name] = without_docstrings(source, node, start, end)
            if isinstance(node, ast.ClassDef):
                for method, place in methods(node).items():
                    texts[number(node)][f"{name}.{method}"] = without_docstrings(source, *place)
    return texts


def synced(source, texts, parted=()):
    """The source of a cell with the definitions of `texts` instead of those of the same name.

    Of the classes whose names are in `parted` only the methods are exchanged, each for itself.
    """
    places = {}
    for name, (node, start, end) in public(source).items():
        if name in parted:
            places |= {f"{name}.{method}": place[1:] for method, place in methods(node).items()}
        else:
            places[name] = start, end
    lines = source.splitlines()
    for name, (start, end) in sorted(places.items(), key=lambda item: -item[1][0]):
        if name in texts:
            lines[start - 1 : end] = texts[name].splitlines()
    return "\n".join(lines)


def only_imports(source):
    """Whether a cell has nothing in it but imports."""
    try:
        return all(isinstance(node, IMPORTS) for node in ast.parse(source).body)
    except SyntaxError:  # a cell with a magic
        return False


def rewritten(notebook, texts):
    """Bring the cells of a notebook up to date, in place, and collapse those that nobody needs to read."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    parted = in_parts(cell.source for cell in code)
    for cell in code:
        cell.source = synced(cell.source, texts, parted)
    code[0].source = FIRST_CELL
    for cell in code:
        if cell is code[0] or only_imports(cell.source):
            cell.metadata["jupyter"] = COLLAPSED


def main(check=False):
    """Write the cells, or with `check` leave them; return the lessons with cells that differ."""
    differ, texts = [], taught()
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        old = nbformat.writes(notebook)
        rewritten(notebook, texts.get(path.name[:2], {}))
        if nbformat.writes(notebook) != old:
            differ.append(path.name)
            if not check:
                nbformat.write(notebook, path)
    return differ


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    differ = main(check)
    for name in differ:
        print(f"{name}: {'a cell differs' if check else 'written'}")
    if not differ:
        print("All cells are as they should be.")
    sys.exit(check and bool(differ))
