"""The tools that write parts of lessons and of the README."""

import nbformat
import pytest
import run_lessons
import sync
import tables

from diffusion_utils import ROOT

# Cells from a module --------------------------------------------------------------------

MODULE = '''"""About it."""

@decorated
def double(x):
    """Twice `x`. Lesson 01."""

    def inner(y):
        """Not taught."""
        return y

    return 2 * inner(x)


class Thing(Base):
    """A thing. Lesson 02."""

    size = 3

    def grow(self):
        """Grow."""


def _hidden():
    """Lesson 01."""
'''


def texts():
    """What sync.py makes of MODULE: {name: (lesson, text)}."""
    found = {}
    for name, (node, start, end) in sync.public(MODULE).items():
        found[name] = sync.number(node), sync.without_docstrings(MODULE, node, start, end)
    return found


def test_what_is_copied():
    number, double = texts()["double"]
    assert number == "01"
    inner = "    def inner(y):\n        return y"
    assert double == f"@decorated\ndef double(x):\n{inner}\n\n    return 2 * inner(x)"
    number, thing = texts()["Thing"]
    assert number == "02"
    assert thing == 'class Thing(Base):\n    size = 3\n\n    def grow(self):\n        """Grow."""'
    assert list(texts()) == ["double", "Thing"]


def test_a_cell_gets_its_definition():
    cell = "x = 1\n\n\n@old\ndef double(x): ...\n\n\ndef other():\n    pass\n\n\nprint(double(x))"
    text = texts()["double"][1]
    new = sync.synced(cell, {"double": text})
    assert new == f"x = 1\n\n\n{text}\n\n\ndef other():\n    pass\n\n\nprint(double(x))"
    assert sync.synced(new, {"double": text}) == new
    assert sync.synced("%time double(3)", {"double": text}) == "%time double(3)"


# What a run leaves in a notebook -----------------------------------------------------------


def notebook(bar, style, slider, unseen):
    """A notebook that shows a progress bar and a slider, with these ids in this order, and keeps a widget more."""
    states = {
        slider: {"state": {"_model_name": "IntSliderModel", "style": f"IPY_MODEL_{style}"}},
        bar: {"state": {"_model_name": "HBoxModel", "children": [f"IPY_MODEL_{bar[::-1]}"]}},
        bar[::-1]: {"state": {"_model_name": "HTMLModel", "value": "100% 7/7&nbsp;[00:01]"}},
        style: {"state": {"_model_name": "SliderStyleModel"}},
        unseen: {"state": {"_model_name": "LayoutModel"}},
    }
    cells = []
    for number, (text, shown) in enumerate([("  0%|  | 0/7", bar), ("IntSlider(value=3)", slider)]):
        view = {"model_id": shown, "version_major": 2, "version_minor": 0}
        output = nbformat.v4.new_output("display_data", {"text/plain": text, run_lessons.VIEW: view})
        cells.append(nbformat.v4.new_code_cell("show()", outputs=[output], id=f"cell-{number}"))
    widgets = {run_lessons.STATE: {"state": states, "version_major": 2, "version_minor": 0}}
    return nbformat.v4.new_notebook(cells=cells, metadata={"widgets": widgets})


def test_two_runs_leave_the_same_notebook():
    one, two = (notebook(*(4 * f"{start + i:08x}" for i in range(4))) for start in (0x1234567, 0xFEDCBA9))
    assert nbformat.writes(one) != nbformat.writes(two)
    one, two = (run_lessons.number_widgets(run) for run in (one, two))
    assert nbformat.writes(one) == nbformat.writes(two)
    nbformat.validate(one)
    states = run_lessons.widgets(one)
    assert sorted(states) == [f"{i:032}" for i in (1, 2, 3, 4)]  # the unseen one is gone
    kinds = [states[f"{i:032}"]["state"]["_model_name"] for i in (1, 2, 3, 4)]
    assert kinds == ["HBoxModel", "HTMLModel", "IntSliderModel", "SliderStyleModel"]
    assert states[f"{3:032}"]["state"]["style"] == f"IPY_MODEL_{4:032}"
    shown = [cell.outputs[0].data[run_lessons.VIEW]["model_id"] for cell in one.cells]
    assert shown == [f"{1:032}", f"{3:032}"]
    assert [cell.id for cell in one.cells] == ["cell-0", "cell-1"]
    assert nbformat.writes(run_lessons.number_widgets(one)) == nbformat.writes(two)


def test_no_empty_widgets():
    bare = notebook(*(4 * f"{i:08x}" for i in range(4)))
    for cell in bare.cells:
        cell.outputs = []
    assert "widgets" not in run_lessons.number_widgets(bare).metadata


def test_a_bar_shows_its_last_moment():
    run = notebook(*(4 * f"{i + 0x1234567:08x}" for i in range(4)))
    run_lessons.finish_bars(run)
    texts = [cell.outputs[0].data["text/plain"] for cell in run.cells]
    assert texts == ["100% 7/7 [00:01]", "IntSlider(value=3)"]


def test_seconds_change_only_with_reason():
    lesson, noted = nbformat.v4.new_notebook(), []
    for seconds in (10.2, 11.9, 8.1, 12.6, 14.9):
        run_lessons.note_seconds(lesson, seconds)
        noted.append(lesson.metadata["course"]["seconds"])
    assert noted == [10, 10, 10, 13, 13]


# The parts of the README --------------------------------------------------------------------


def test_the_readme_is_up_to_date():
    for name, needed in tables.NEEDED.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        assert tables.filled(text, needed) == text, f"{name}: run make tables"


def test_only_what_lies_between_the_marks_changes():
    text = "One\n<!-- lessons -->\nwhat was there\n<!-- /lessons -->\ntwo\n<!-- measured --><!-- /measured -->\nthree"
    new = tables.filled(text, {"lessons", "measured"})
    assert new.startswith("One\n<!-- lessons -->\n| Lesson |") and new.endswith("<!-- /measured -->\nthree")
    assert "\n<!-- /lessons -->\ntwo\n<!-- measured -->\n" in new and "what was there" not in new
    assert tables.filled(new) == new
    assert tables.filled("nothing to fill") == "nothing to fill"


def test_missing_marks_are_named():
    with pytest.raises(ValueError, match="the marks <!-- measured --> and <!-- /measured --> are missing"):
        tables.filled("<!-- lessons --> <!-- /lessons -->", {"lessons", "measured"})


RESULTS = """# Results

## Data (CPU)

2026-11-23; 2 cores; Python 3

| files | seconds | times as fast | of the array's size |
|---|---|---|---|
| `map` | 18.36 (16.97–19.98) | 1.0 | 7.33 |
| `get_data` | 1,003.29 (3.29–4.05) | 5.6 | 1.16 |

A note.
"""


def test_results_in_words():
    ((key, (machine, rows)),) = tables.results(RESULTS).items()
    assert key == ("Data", "CPU") and machine == "2 cores"
    assert rows[0] == {"files": "`map`", "seconds": 18.36, "times as fast": 1.0, "of the array's size": 7.33}
    assert tables.in_words("Data", rows) == "18.36 and 1003.29 s, 7.33 and 1.16 times the array's size"


def test_times_in_words():
    times = ", ".join(map(tables.about, (1, 16, 38, 89, 91, 290)))
    assert times == "5 s, 15 s, 40 s, 90 s, 2 min, 5 min"
