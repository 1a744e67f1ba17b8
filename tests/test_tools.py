"""The tools that write parts of lessons and of the README."""

import base64
import io
import re
import sys

import nbformat
import numpy as np
import pytest
import run_lessons
import smaller
import sync
import tables
import torch
from PIL import Image

from diffusion_course import quality
from diffusion_utils import ROOT

sys.path.append(str(ROOT / "benchmarks"))

# Cells from a module --------------------------------------------------------------------


def test_a_cell_gets_its_definition():
    """What is copied is seen in the lessons; tests/test_lessons.py compares them."""
    cell = "x = 1\n\n\n@old\ndef double(x): ...\n\n\ndef other():\n    pass\n\n\nprint(double(x))"
    text = "@decorated\ndef double(x):\n    return 2 * x"
    new = sync.synced(cell, {"double": text})
    assert new == f"x = 1\n\n\n{text}\n\n\ndef other():\n    pass\n\n\nprint(double(x))"
    assert sync.synced(new, {"double": text}) == new
    assert sync.synced("%time double(3)", {"double": text}) == "%time double(3)"


def test_what_nobody_needs_to_read_is_collapsed():
    sources = "x = 0", "import torch\nfrom math import pi", "import torch\nx = 1", "%time double(3)"
    lesson = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    sync.rewritten(lesson, {})
    hidden = [cell.metadata.get("jupyter") for cell in lesson.cells]
    assert hidden == [{"source_hidden": True}, {"source_hidden": True}, None, None]
    assert lesson.cells[0].source == sync.FIRST_CELL


# What a run leaves in a notebook -----------------------------------------------------------


def notebook(start=0x1234567):
    """A notebook that shows a progress bar and a slider, with ids from `start` on, and keeps a widget more."""
    bar, style, slider, unseen = (4 * f"{start + i:08x}" for i in range(4))
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
    one, two = notebook(), notebook(0xFEDCBA9)
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
    bare = notebook()
    for cell in bare.cells:
        cell.outputs = []
    assert "widgets" not in run_lessons.number_widgets(bare).metadata


def test_a_bar_shows_its_last_moment():
    run = notebook()
    run_lessons.finish_bars(run)
    texts = [cell.outputs[0].data["text/plain"] for cell in run.cells]
    assert texts == ["100% 7/7 [00:01]", "IntSlider(value=3)"]


def test_seconds_change_only_with_reason():
    lesson, noted = nbformat.v4.new_notebook(), []
    for seconds in (10.2, 11.9, 8.1, 12.6, 14.9):
        run_lessons.note_seconds(lesson, seconds)
        noted.append(lesson.metadata["course"]["seconds"])
    assert noted == [10, 10, 10, 13, 13]


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_pictures_get_a_palette():
    """Many colours become 256 that are near them, also in what a slider keeps; what is small stays."""
    y, x = np.mgrid[:200, :200]
    rich = png(np.stack([x, y, (x * y) % 256], axis=-1).astype(np.uint8))
    packed = smaller.smaller(rich)
    one, two = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int) for data in (packed, rich))
    assert len(packed) < 0.6 * len(rich) and abs(one - two).mean() < 12
    assert smaller.smaller(packed) == packed
    plain = png(np.zeros((4, 4, 3), np.uint8))
    assert smaller.smaller(plain) == plain
    run = notebook()
    shown = nbformat.v4.new_output("display_data", {smaller.PNG: base64.b64encode(rich).decode()})
    run.cells[0].outputs.append(shown)
    next(iter(run_lessons.widgets(run).values()))["state"]["outputs"] = [shown.copy()]
    smaller.shrink(run)
    ends = [output for output in smaller.outputs(run) if smaller.PNG in output.get("data", {})]
    assert [base64.b64decode(output["data"][smaller.PNG]) == packed for output in ends] == [True, True]


# The parts of the README --------------------------------------------------------------------


@pytest.mark.parametrize("name", tables.PARTS)
def test_the_tables_are_up_to_date(name):
    text = tables.PARTS[name][0].read_text(encoding="utf-8")
    assert tables.filled(text, name) == text, "run make tables"


def test_only_what_lies_between_the_marks_changes():
    text = "One\n<!-- lessons -->\nwhat was there\n<!-- /lessons -->\ntwo\n"
    new = tables.filled(text, "lessons")
    assert new.startswith("One\n<!-- lessons -->\n| Lesson |") and "what was there" not in new
    assert new.endswith(" |\n<!-- /lessons -->\ntwo\n")
    assert tables.filled(new, "lessons") == new


def test_publish(tmp_path, monkeypatch):
    """A new table takes the place of the old one, and can be read again."""
    from common import publish

    monkeypatch.setattr("common.RESULTS", tmp_path / "results.md")
    (tmp_path / "results.md").write_text("# Results\n\nMedians.\n\n## Zoo (CPU)\n\na; b\n\n**Old.**\n")
    for summary in ("Nothing.", "2 and 1 s."):
        rows = [["`map`", "2 (1–3)"], ["ours", 1]]
        publish("Data", ["way", "seconds"], rows, summary=summary, note="A note.")
    found = quality.results(tmp_path / "results.md")
    kind = "CUDA" if torch.cuda.is_available() else "CPU"
    assert list(found) == [f"Data ({kind})", "Zoo (CPU)"]
    assert tables.in_short(found[f"Data ({kind})"]).startswith("2 and 1 s (")
    assert tables.in_short(found["Zoo (CPU)"]) == "Old (b)"
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# Results\n\nMedians.\n\n## Data") and text.count("| `map` | 2 (1–3) |") == 1
    monkeypatch.setattr(quality, "results", lambda: {"Data (CPU)": found[f"Data ({kind})"]})
    assert quality.published("Data") == [["`map`", "2 (1–3)"], ["ours", "1"]]


def test_every_model_is_in_the_index():
    text = (ROOT / "pretrained" / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "pretrained").glob("*/README.md")}
    assert folders and folders == set(re.findall(r"\]\((\w+)\)", text))


def test_times_in_words():
    times = ", ".join(map(tables.about, (1, 16, 38, 89, 91, 290)))
    assert times == "5 s, 15 s, 40 s, 90 s, 2 min, 5 min"
