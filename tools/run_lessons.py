"""Run notebooks from top to bottom, and write what they print and plot back into the notebooks.

    python tools/run_lessons.py                all lessons, and the page of help
    python tools/run_lessons.py 02 05          only those whose names begin so

They run in an empty folder, so that a training run starts anew and does not go on from a checkpoint.
A lesson that fails is not written. Run again, a lesson should differ only where what it shows does:
widgets are numbered, and the seconds that it took are noted only when they have changed a lot.
Its pictures get a palette (tools/smaller.py).
Progress bars are widgets; a reader without a kernel sees only their text, which is that of the
first moment ("0%"), so it is replaced by the last.
"""

import asyncio
import html
import json
import os
import re
import sys
import tempfile
import time

import nbformat
from lessons import NOTEBOOKS, ROOT
from nbclient import NotebookClient
from smaller import STATE, shrink

os.environ["PYTHONPATH"] = str(ROOT)  # for the kernels
VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_ID = re.compile(r"\b(?:IPY_MODEL_)?([0-9a-f]{32})\b")


class Client(NotebookClient):
    """Looks again for messages of the kernel every two seconds.

    pyzmq's sockets may miss that one has come, when a cell has run for minutes; nbclient would wait for ever then.
    """

    async def async_execute_cell(self, *arguments, **options):
        looking = asyncio.ensure_future(self.look_again())
        try:
            return await super().async_execute_cell(*arguments, **options)
        finally:
            looking.cancel()

    async def look_again(self):
        while True:
            await asyncio.sleep(2)
            for channel in (self.kc.shell_channel, self.kc.iopub_channel):
                channel.socket._handle_events()


def widgets(notebook):
    """What the notebook keeps of its widgets, by id."""
    return notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})


def finish_bars(notebook):
    """Give each progress bar the text of its last moment."""
    states = widgets(notebook)

    def text(model_id):
        state = states.get(model_id.removeprefix("IPY_MODEL_"), {}).get("state", {})
        value = state.get("value", "") if state.get("_model_name") == "HTMLModel" else ""
        parts = [re.sub("<[^>]*>|\u2007", " ", value), *map(text, state.get("children", []))]
        return " ".join(filter(None, parts)).strip()

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if VIEW in data and re.match(r"[\w: ]*\d+%\|", data.get("text/plain", "")):
                data["text/plain"] = re.sub(r"\s+", " ", html.unescape(text(data[VIEW]["model_id"])))


def number_widgets(notebook):
    """The notebook with its widgets' ids numbered in order of appearance; those that nothing shows are gone."""
    states = widgets(notebook)
    order = {}

    def follow(thing):
        for found in WIDGET_ID.findall(json.dumps(thing, sort_keys=True)):
            if found in states and found not in order:
                order[found] = f"{len(order) + 1:032}"
                follow(states[found])

    follow([cell.get("outputs", []) for cell in notebook.cells])
    for unseen in states.keys() - order.keys():
        del states[unseen]
    if not states:  # an empty one would keep GitHub from showing the notebook
        notebook.metadata.pop("widgets", None)
    text = nbformat.writes(notebook)
    numbered = WIDGET_ID.sub(lambda match: match[0].replace(match[1], order.get(match[1], match[1])), text)
    return nbformat.reads(numbered, as_version=4)  # it is sorted by id when it is written


def note_seconds(notebook, seconds):
    """Keep how long the lesson ran, for the README, unless it is about what is noted already."""
    noted = notebook.metadata.get("course", {}).get("seconds", 0)
    if abs(seconds - noted) > 0.2 * noted:
        notebook.metadata["course"] = {"seconds": round(seconds)}


def run(path):
    """Run one lesson and write it; returns the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = dict(timeout=1800, kernel_name="python3", record_timing=False)
        Client(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    seconds = time.perf_counter() - start
    finish_bars(notebook)
    notebook = number_widgets(notebook)
    note_seconds(notebook, seconds)
    shrink(notebook)
    notebook.metadata.pop("jupytext", None)
    nbformat.write(notebook, path)
    return seconds


if __name__ == "__main__":
    beginnings = sys.argv[1:] or [""]
    unknown = [text for text in beginnings if not any(path.name.startswith(text) for path in NOTEBOOKS)]
    if unknown:
        raise SystemExit(f"No notebook begins with {', '.join(unknown)}.")
    for path in NOTEBOOKS:
        if path.name.startswith(tuple(beginnings)):
            print(f"{path.name}: {run(path):.0f} s", flush=True)
