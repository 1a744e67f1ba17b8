"""JupyterLab in a real browser: run a lesson, move each of its sliders by keyboard, see the picture change.

Needs Chromium or Chrome, and the package playwright; see CONTRIBUTING.md. Screenshots are kept in
tests/screenshots/.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from helpers import BROWSER, chromium
from lessons import ROOT, cells
from nbformat.reader import NotJSONError

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")

SHOTS = ROOT / "tests" / "screenshots"
IDLE = "document.querySelector('#jp-main-statusbar')?.textContent.includes('Idle')"
PICTURES = "slider => [...slider.closest('.widget-interact').querySelectorAll('img')].map(i => i.src).join()"
TROUBLE = """slider => slider.closest('.widget-interact').querySelectorAll(
    '[data-mime-type="application/vnd.jupyter.stderr"], [data-mime-type="application/vnd.jupyter.error"]').length"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over a copy of the course, with settings of its own. Yields address and folder."""
    copy, private = (tmp_path_factory.mktemp(name) for name in ("course", "jupyter"))
    not_needed = shutil.ignore_patterns(".*", "tests", "images", "web", "site", "my_*")
    shutil.copytree(ROOT, copy, ignore=not_needed, dirs_exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
               "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={copy}"]  # fmt: skip
    settings = private / "jupyterlab_settings_dir/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # all cells are there, not only those in sight
    with open(private / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log,
            env=os.environ | {name: str(private / name.lower()) for name in folders},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(60):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, (private / "log").read_text()
                time.sleep(1)
        yield address, copy
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def page():
    with chromium() as browser:
        yield browser.new_page(viewport={"width": 1400, "height": 1000})


def wait_until_calm(page, seconds=60):
    """Wait until the kernel has been idle for two seconds; between two cells it is so for a moment."""
    calm = "{ if (!(%s)) window.idle = 0; else window.idle ||= Date.now(); return window.idle && Date.now() - window.idle > 2000 }"
    page.evaluate("window.idle = 0")
    page.wait_for_function("() => " + calm % IDLE, timeout=seconds * 1000)


def run_all_cells(page, address, name):
    page.goto(f"{address}/lab/tree/notebooks/{name}.ipynb?reset")
    wait_until_calm(page)
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')


def save(page, path):
    """Save the notebook, and return the numbers of its cells; None is one that has not run."""
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    while path.stat().st_mtime_ns == before:
        time.sleep(0.1)
    while True:
        try:
            return [cell.execution_count for cell in cells(path, "code")]
        except NotJSONError:  # it is being written
            time.sleep(0.1)


def move(page, slider):
    """Move a slider to both ends; each time its picture changes, and nothing is printed as an error."""
    slider.focus()
    page.keyboard.press("Home")  # it may stand there already, so nothing needs to change
    wait_until_calm(page)
    for key in ("End", "Home"):
        before = slider.evaluate(PICTURES)
        page.keyboard.press(key)
        page.wait_for_function(f"([slider, before]) => ({PICTURES})(slider) !== before", arg=[slider, before])
        wait_until_calm(page)
    assert slider.evaluate(TROUBLE) == 0


def keep_sliders(path):
    """Leave of a lesson what its sliders need: set-up, imports, model, functions."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    functions = [cell for cell in code[3:] if cell.source.startswith(("def ", "@torch.no_grad"))]
    notebook.cells = code[:3] + functions
    nbformat.write(notebook, path)


@pytest.mark.parametrize("name, sliders", [("02_noise_schedule", 1), ("05_sampling", 2)])
def test_in_a_browser(lab, page, name, sliders):
    address, folder = lab
    path = folder / "notebooks" / f"{name}.ipynb"
    if name == "05_sampling":  # it takes minutes, and nbval runs it as a whole
        keep_sliders(path)
    run_all_cells(page, address, name)
    wait_until_calm(page, seconds=600)
    while None in save(page, path):  # on a busy machine it seems calm too early
        wait_until_calm(page, seconds=600)

    found = page.query_selector_all(".widget-interact .noUi-handle")
    assert len(found) == sliders
    SHOTS.mkdir(exist_ok=True)
    # The last slider first: so the seed in lesson 05 moves while the other one stands at 20 steps.
    for number, slider in enumerate(reversed(found), 1):
        slider.evaluate("slider => slider.scrollIntoView({block: 'center'})")
        move(page, slider)
        page.screenshot(path=SHOTS / f"{name}_{number}.png")

    saved = cells(path, "code")
    assert [cell.execution_count for cell in saved] == list(range(1, len(saved) + 1))
    outputs = [output for cell in saved for output in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]


def test_the_canvas_of_lesson_19(lab, page):
    """A stroke drawn with the mouse arrives in Python, scaled down from 256 pixels to 64."""
    address, folder = lab
    sources = [cell.source for cell in cells(ROOT / "notebooks" / "19_out_into_the_world.ipynb", "code")]
    (canvas,) = [source for source in sources if source.startswith("CANVAS = ")]
    program = """
from IPython.display import HTML, display
from ipywidgets import Text, interact
def follow(strokes):
    print("strokes:", strokes)
display(HTML(CANVAS))
interact(follow, strokes=Text("", placeholder="strokes", continuous_update=False));"""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(canvas + program)], metadata=kernel)
    nbformat.write(notebook, folder / "notebooks" / "canvas.ipynb")
    run_all_cells(page, address, "canvas")
    page.wait_for_selector("text=strokes:")
    paper = page.locator("#paper")
    paper.scroll_into_view_if_needed()
    place = paper.bounding_box()
    for stroke in ([(40, 40), (200, 40)], [(120, 80), (120, 200)]):
        page.mouse.move(place["x"] + stroke[0][0], place["y"] + stroke[0][1])
        page.mouse.down()
        page.mouse.move(place["x"] + stroke[1][0], place["y"] + stroke[1][1], steps=4)
        page.mouse.up()
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "canvas.png")
    page.click("#send")
    page.wait_for_function("document.querySelector('.widget-interact').textContent.includes(';')")
    lines = page.inner_text(".widget-interact .jp-OutputArea-output").removeprefix("strokes:").split(";")
    ends = [[tuple(map(int, point.split(","))) for point in line.split()][-1] for line in lines]
    assert all(abs(x - a) < 2 and abs(y - b) < 2 for (x, y), (a, b) in zip(ends, [(50, 10), (30, 50)]))
