"""What follows each lesson that nbval runs, in the same kernel: what a reader does next.

A plugin of pytest, which conftest.py loads. It rests on inner parts of nbval, so that
requirements-tests.txt allows no other version of it.
"""

import re
from collections import defaultdict

import nbformat
import nbval.plugin
from nbval.plugin import IPyNbCell

# The unit tests cover the modules; in the lessons, tracing each line would only take time.
nbval.plugin.setup_coverage = nbval.plugin.teardown_coverage = lambda *arguments: None


class AfterLesson(IPyNbCell):
    """Code that runs when all cells of a lesson have run."""

    @classmethod
    def behind(cls, cells, name, source):
        options = defaultdict(bool, check=False)
        cell = nbformat.v4.new_code_cell(source)
        item = cls.from_parent(cells[-1].parent, name=name, cell_num=len(cells), cell=cell, options=options)
        item.cells = cells
        return item

    def reportinfo(self):
        return self.path, 0, f"{self.parent.name}::{self.name}"


class Quiet(AfterLesson):
    def runtest(self):
        """No cell has printed a warning, and the sliders move without one."""
        for cell in self.cells:
            assert not [out.text for out in cell.test_outputs or () if out.get("name") == "stderr"], cell.name
        super().runtest()


class Solution(AfterLesson):
    def runtest(self):
        """The cell that checks an exercise accepts the solution."""
        super().runtest()
        printed = [out.get("text", "") for out in self.test_outputs]
        assert any(": correct." in text for text in printed), "it did not say: correct."


def solutions(notebook):
    """The solution of each exercise, with the cell before it, which checks it."""
    found, check = [], None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            check = cell.source
        elif "<summary>Solution</summary>" in cell.source:
            found.append(re.search(r"```python\n(.*?)```", cell.source, re.S)[1] + check)
    return found


def pytest_collection_modifyitems(items):
    lessons = defaultdict(list)
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = 60  # seconds that a busy machine may take; 5 are few
            lessons[item.parent].append(item)
    for lesson, cells in lessons.items():
        sliders = sum(f"\n{cell.cell.source}".count("\ninteract(") for cell in cells)
        source = f"import sys; sys.path.append('../tests'); import sliders; sliders.move_all({sliders})"
        after = [Quiet.behind(cells, "Sliders", source)]
        for number, solution in enumerate(solutions(lesson.nb), 1):
            after.append(Solution.behind(cells, f"Solution {number}", solution))
        place = items.index(cells[-1]) + 1
        items[place:place] = after
