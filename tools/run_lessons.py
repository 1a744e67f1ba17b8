"""Run lessons from top to bottom, and write what they print and plot back into the notebooks.

    python tools/run_lessons.py                all lessons
    python tools/run_lessons.py 02 05          only those whose names begin so

They run in an empty folder, so that lesson 04 trains and does not go on from a checkpoint.
A lesson that fails is not written. Progress bars are widgets; a reader without a kernel sees
only their text, which is that of the first moment ("0%"), so it is replaced by the last.
"""

import html
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
LESSONS = ROOT / "notebooks"
os.environ["PYTHONPATH"] = str(ROOT)  # for the kernels
VIEW = "application/vnd.jupyter.widget-view+json"


def finish_bars(notebook):
    """Give each progress bar the text of its last moment."""
    widgets = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})

    def text(model_id):
        state = widgets.get(model_id.removeprefix("IPY_MODEL_"), {}).get("state", {})
        parts = [re.sub("<[^>]*>|\u2007", " ", state.get("value", ""))] if state.get("_model_name") == "HTMLModel" else []
        return " ".join(parts + [text(child) for child in state.get("children", [])]).strip()

    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if re.match(r"[\w: ]*\d+%\|", output.get("data", {}).get("text/plain", "")) and VIEW in output.data:
                last = html.unescape(text(output.data[VIEW]["model_id"]))
                output.data["text/plain"] = re.sub(r"\s+", " ", last)


def run(path):
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=1800, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
        )
        client.execute()
    finish_bars(notebook)
    notebook.metadata.pop("jupytext", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for path in sorted(LESSONS.glob("*.ipynb")):
        if not sys.argv[1:] or path.name.startswith(tuple(sys.argv[1:])):
            start = time.time()
            run(path)
            print(f"{path.name}: {time.time() - start:.0f} s", flush=True)
