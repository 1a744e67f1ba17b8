"""The page that draws, in a headless Chromium: from its address to the first face, and one face after the other.

    python benchmarks/page.py          five minutes; needs Chromium, playwright and what `make site` fetches

The text-to-image model of lesson 17 draws what a prompt says, in 10 steps of 2M with guidance: 22 evaluations.

A static server on this machine, so no time of a network is in it. WebAssembly has one thread. Then the page of points:
what one of its frames takes, and how many a second are shown as a thousand dots flow into 300 points. The processor
draws here, as no graphics card helps a headless Chromium.
"""

import re
import statistics
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

from common import ROOT, middle, publish, spread
from playwright.sync_api import sync_playwright

sys.path += [str(ROOT / "tools"), str(ROOT / "tests")]

import make_site  # noqa: E402
from helpers import BROWSER, BROWSER_OPTIONS, Quiet  # noqa: E402

from diffusion_course.latents import TEXT_MODEL  # noqa: E402
from diffusion_utils import LARGE_MODEL, TOY_MODEL  # noqa: E402

REPEATS = 5
SETTINGS = dict.fromkeys((TOY_MODEL, LARGE_MODEL), "steps=20&sampler=ddim")
SETTINGS[TEXT_MODEL] = "steps=10&sampler=dpm&guidance-scale=2&prompt=a+smiling+face+with+blue+hair"
FLOWS = {"ddim": "ODE", "ddpm": "SDE"}
STATUS = "document.getElementById('status').textContent"


def first_face(browser, address, model):
    """A page of its own, without anything kept from before: the seconds until its first face, and its megabytes."""
    context = browser.new_context()
    page, sizes = context.new_page(), []
    page.on("response", lambda response: sizes.append(response.body()))
    start = time.perf_counter()
    page.goto(f"{address}#model={model.name}&seed=1&{SETTINGS[model]}")
    page.wait_for_function(f"{STATUS}.startsWith('Drawn')")
    return page, time.perf_counter() - start, sum(map(len, sizes)) / 1e6


def again(page, seed):
    """The seconds that the page itself says of another face."""
    page.evaluate(f"{STATUS} = ''; location.hash = location.hash.replace(/seed=[0-9]+/, 'seed={seed}')")
    page.wait_for_function(f"{STATUS}.startsWith('Drawn in')")
    return float(re.search(r"([0-9.]+) seconds", page.evaluate(STATUS))[1])


def row(browser, address, model):
    first, drawn = [], []
    for _ in range(REPEATS):
        page, seconds, megabytes = first_face(browser, address, model)
        first.append(seconds)
        drawn += [again(page, seed) for seed in (2, 3, 4)]
        page.context.close()
    steps = re.search("steps=([0-9]+)", SETTINGS[model])[1]
    return [f"`{model.name}`", steps, spread(first, 1), spread(drawn), f"{megabytes:.1f}"]


# Each of 400 moments of a flow in 50 steps, on a canvas that has to be ready: computed, and drawn to the last pixel.
FRAMES = """() => {
    const context = document.getElementById("plane").getContext("2d");
    return Array.from({ length: 400 }, (_, i) => {
        const start = performance.now();
        showFlow((i + 1) / 400);
        context.getImageData(0, 0, 1, 1);
        return performance.now() - start;
    });
}"""

# The milliseconds from frame to frame while the page plays.
PLAYED = """() => new Promise((done) => {
    const times = [];
    const look = (now) => {
        times.push(now);
        if (times.length > 1 && document.getElementById("play").textContent === "Play again") {
            done(times.slice(1).map((time, i) => time - times[i]));
        } else requestAnimationFrame(look);
    };
    document.getElementById("restart").click();
    requestAnimationFrame(look);
})"""


def flow(browser, address, sampler):
    """The row of a way back, ODE or SDE: frames computed and drawn, and frames as they are shown."""
    medians, slow, shown, late = [], [], [], []
    for seed in range(REPEATS):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}field/index.html#drawing=smiley&sampler={sampler}&steps=50&seed={seed}")
        page.wait_for_function("'showFlow' in window")
        played, frames = page.evaluate(PLAYED), page.evaluate(FRAMES)
        medians.append(statistics.median(frames))
        slow.append(statistics.quantiles(frames, n=20)[-1])
        shown.append(1000 * len(played) / sum(played))
        late.append(statistics.quantiles(played, n=20)[-1])
        page.close()
    return [FLOWS[sampler], spread(medians, 1), spread(slow, 1), spread(shown, 0), spread(late, 1)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as engine:
        make_site.live_page(Path(folder) / "course", list(SETTINGS))
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = engine.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS)
        address = f"http://127.0.0.1:{server.server_port}/course/"
        rows = [row(browser, address, model) for model in SETTINGS]
        flows = [flow(browser, address, sampler) for sampler in FLOWS]
        browser.close()
        server.shutdown()
    faces = ", ".join(f"{middle(seconds)} s with {name}" for name, _, _, seconds, _ in rows)
    summary = f"A face takes {faces}; the first one {middle(rows[0][2])} s and {rows[0][4]} MB."
    columns = ["model", "steps", "first face, s", "the next face, s", "download, MB"]
    publish("The page", columns, rows, summary=summary)
    ode, sde = (
        f"{middle(median)} ms, and {middle(slow)} ms in one frame of twenty" for _, median, slow, *_ in flows
    )
    columns = [
        "flow",
        "a frame, ms",
        "95th percentile",
        "frames a second, shown",
        "from one to the next, 95th percentile",
    ]
    publish("The page of points", columns, flows, summary=f"A frame takes {ode} (ODE); {sde} (SDE).")
