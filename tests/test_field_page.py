"""The page on which noise flows into a drawing: lesson 06's numbers, its shares, its link, and all its readers.

Needs Chromium or Chrome, and the package playwright.
"""

import itertools
import math
import re

import make_site
import pytest
import torch
from helpers import BROWSER, chromium, serving
from PIL import Image

from diffusion_course import field
from diffusion_course.samplers import Ancestral, velocity
from diffusion_utils import ddim, sample, schedule

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
needs_a_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome here")
SHARES = (0.10, 0.15, 0.20, 0.25, 0.30)  # of the five clouds
MODULES = """async () => {
    for (const name of ['../diffusion.js', './drawings.js', './field.js']) Object.assign(window, await import(name));
}"""
SETTINGS = """() => [document.querySelector('[name=drawing]:checked').value, document.getElementById('word').value,
    document.querySelector('[name=sampler]:checked').value, document.getElementById('steps').value,
    document.getElementById('seed').value]"""
CUT_OFF = """all => all.filter((it) => it.getBoundingClientRect().right > innerWidth - 8
    || it.scrollWidth > it.clientWidth + 2).map((it) => it.id || it.textContent || it.value)"""
MOMENT = "Number(document.getElementById('moment').value)"
PICTURE = "document.getElementById('plane').toDataURL()"


@pytest.fixture(scope="module")
def address():
    with serving(make_site.WEB) as address:
        yield f"{address}field/index.html"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, address):
    """`visit(fragment, **options)` opens the page. At the end no page may have said anything, or asked other hosts."""
    contexts, trouble = [], []
    host = address.removesuffix("field/index.html")

    def visit(fragment="", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda message: trouble.append(message.text))
        page.on("request", lambda request: request.url.startswith(host) or trouble.append(request.url))
        page.on("requestfailed", lambda request: trouble.append(request.url))
        page.goto(f"{address}{fragment}")
        page.wait_for_function("'showFlow' in window")
        page.evaluate(MODULES)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not trouble


def draw(page, strokes):
    """Draw with the mouse, each stroke a list of places in pixels of the plane; wait until the link holds them."""
    box = page.locator("#plane").bounding_box()
    for stroke in strokes:
        for i, (x, y) in enumerate(stroke):
            page.mouse.move(box["x"] + x, box["y"] + y)
            if i == 0:
                page.mouse.down()
        page.mouse.up()
    page.wait_for_function("location.hash.includes('strokes=')")


def circle(x, y, radius, corners=40):
    turns = [2 * math.pi * i / corners for i in range(corners + 1)]
    return [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]


FACE = [circle(400, 230, 150), [(330, 190), (340, 200)], [(470, 190), (460, 200)]]


# The numbers ------------------------------------------------------------------------------


@pytest.fixture
def drawings(visit):
    """Points (M, 2, 1, 1) of the clouds and of a set that is drawn by hand, and a page to compute with."""
    page = visit("#drawing=clouds")
    clouds = page.evaluate("showFlow(0).points")
    draw(page, FACE)
    drawn = page.evaluate("showFlow(0).points")
    assert clouds != drawn and len(clouds) == 600 and 100 < len(drawn) <= 600
    sets = (torch.tensor(points, dtype=torch.float64).view(-1, 2, 1, 1) for points in (clouds, drawn))
    return page, *sets


def close(numbers, expected):
    difference = torch.tensor(numbers, dtype=torch.float64).flatten() - expected.flatten()
    return difference.abs().max() < 1e-4


@needs_a_browser
def test_the_field_is_that_of_lesson_06(drawings):
    page, *sets = drawings
    assert page.evaluate("LAST") == field.LAST
    program = """([points, noisy, shown, time]) => {
        const predict = perfectPredict(Float64Array.from(points));
        const [noise, image] = predict(Float64Array.from(noisy), time);
        const rows = [0, 2, 4, 6, 8].map((n) => weightsBehind(points, noisy[n], noisy[n + 1], time));
        const arrows = guessOnTheLine(predict, Float64Array.from(shown), time);
        const all = [noise, image, score(noise, time), velocity(noise, image, time), arrows];
        return [...all.map((list) => [...list]), rows.flat(), rows.map(crowdSize)];
    }"""
    noisy = 1.5 * torch.randn(150, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for points, time in itertools.product(sets, (1.0, 0.6, 0.3, 0.0, -0.15, field.LAST)):
        when = torch.full((150, 1, 1, 1), time, dtype=torch.float64)
        noise, image = field.perfect_predict(points)(noisy, when)
        noise_rate, signal_rate = schedule(when)
        weights = field.weights_behind(points, noisy[:5], when[:5])
        by_size = weights.sort(dim=1, descending=True).values
        crowds = 1.0 + (by_size.cumsum(dim=1) < 0.9).sum(dim=1)
        expected = noise, image, -noise / noise_rate, velocity(noise, image, when), image, weights, crowds
        given = [tensor.flatten().tolist() for tensor in (points, noisy, noisy / (noise_rate + signal_rate))]
        found = page.evaluate(program, [*given, time])
        assert all(map(close, found, expected)) and len(found) == len(expected), time


@needs_a_browser
def test_the_steps_are_those_of_the_course(drawings, monkeypatch):
    """Each step, and for DDIM the whole way: what the page shows at the end is the last guess."""
    page, clouds, _ = drawings
    start = "[startingNoise(7, 200), startingNoise(1003, 200)].map((numbers) => [...numbers])"
    noise, fresh = torch.tensor(page.evaluate(start), dtype=torch.float64).view(2, -1, 2, 1, 1)
    times = page.evaluate("timesAlong([1, LAST], 20)")
    monkeypatch.setattr(torch, "randn", lambda *_, **__: fresh)
    program = """([points, steps, step]) => {
        const path = [...sample(perfectPredict(points), startingNoise(7, 200), steps, eval(step))];
        return path.map((pair) => pair.map((numbers) => [...numbers]));
    }"""
    for name, step, way in [("ddim", ddim, times), ("ddpm(3)", Ancestral(), times[12:14])]:
        path = page.evaluate(program, [clouds.flatten().tolist(), way, name])
        expected = [torch.stack(pair) for pair in sample(field.perfect_predict(clouds), noise, way, step)]
        assert close(path, torch.stack(expected)), name


@needs_a_browser
def test_what_is_shown_at_the_end_is_the_last_guess(visit):
    program = """() => {
        const { points, places } = showFlow(1);
        const path = sample(perfectPredict(points), startingNoise(7, 2000), timesAlong([1, LAST], 9));
        return [places, [...[...path].at(-1)[1]]];
    }"""
    shown, guess = visit("#drawing=spiral&steps=9&seed=7").evaluate(program)
    assert close(shown, torch.tensor(guess))


@needs_a_browser
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_clouds_get_their_shares(visit, sampler):
    """Within three standard errors of a thousand dots."""
    page = visit(f"#drawing=clouds&sampler={sampler}&steps=50&seed=3")
    for found, share in zip(page.evaluate("shares(showFlow(1).places)"), SHARES, strict=True):
        assert abs(found - share) < 3 * math.sqrt(share * (1 - share) / 1000)


@needs_a_browser
def test_seeds_and_dice(visit):
    program = "() => showFlow(0.5).places"
    links = [
        f"#drawing=spiral&sampler={way}"
        for way in ("ddim&seed=1", "ddim&seed=1", "ddim&seed=2", "ddpm", "ddpm")
    ]
    one, same, other, dice, thrown = (visit(link).evaluate(program) for link in links)
    assert one == same and dice == thrown and len({tuple(places) for places in (one, other, dice)}) == 3


# The link ---------------------------------------------------------------------------------


@needs_a_browser
@pytest.mark.parametrize("kind", ["own", "word", "spiral"])
def test_a_link_holds_drawing_way_steps_and_seed(visit, kind):
    page = visit("#sampler=ddpm&steps=17&seed=5&drawing=spiral")
    if kind == "own":
        draw(page, FACE)
    if kind == "word":
        page.check("[value=word]")
        page.fill("#word", "Zoë & 李")
        page.keyboard.press("Tab")
    page.focus("#steps")
    page.keyboard.press("ArrowRight")
    friend = visit(page.evaluate("location.hash"))
    assert friend.evaluate(SETTINGS) == page.evaluate(SETTINGS)
    assert friend.evaluate(SETTINGS)[2:] == ["ddpm", "18", "5"] and friend.evaluate(SETTINGS)[0] == kind
    assert friend.evaluate("showFlow(0.8)") == page.evaluate("showFlow(0.8)")
    assert len(page.evaluate("location.hash")) < 400


@needs_a_browser
def test_the_link_is_copied(visit, address):
    page = visit("#drawing=clouds", permissions=["clipboard-read", "clipboard-write"])
    page.click("#link")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('The link is copied')")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    assert page.url == f"{address}#drawing=clouds&sampler=ddim&steps=40&seed=11"


@needs_a_browser
@pytest.mark.parametrize("fragment", [
    "#", "#&&==", "#drawing=constructor&sampler=magic&steps=x&seed=", "#drawing=own", "#strokes=", "#%E0%A4%A&%",
    "#strokes=A", "#strokes=AAAA..AAAA", "#strokes=<img src=x onerror=alert(1)>", "#word=%20", "#drawing=word",
    "#strokes=" + 9000 * "AAAA", "#steps=1e999&seed=NaN", "#steps=__proto__&drawing=__proto__",
])  # fmt: skip
def test_a_bad_link_is_left_out(visit, fragment):
    page = visit(fragment)
    assert page.evaluate(SETTINGS) == ["smiley", "Noise", "ddim", "40", "11"]
    assert len(page.evaluate("showFlow(1).places")) == 2000


@needs_a_browser
@pytest.mark.parametrize(
    "fragment, settings",
    [
        ("#steps=900&seed=-5", ["smiley", "Noise", "ddim", "50", "0"]),
        ("#steps=2.4", ["smiley", "Noise", "ddim", "2", "11"]),
        (f"#word={40 * 'w'}", ["word", 12 * "w", "ddim", "40", "11"]),
        ("#word=%E2%80%8B", ["word", "\u200b", "ddim", "40", "11"]),
        ("#word=<b>", ["word", "<b>", "ddim", "40", "11"]),
        ("#strokes=AAAA&steps=3", ["own", "Noise", "ddim", "3", "11"]),
        ("#strokes=" + ".".join(500 * ["AAAAzzzz"]), ["own", "Noise", "ddim", "40", "11"]),
    ],
)
def test_a_strange_link_becomes_what_is_possible(visit, fragment, settings):
    page = visit(fragment)
    assert page.evaluate(SETTINGS) == settings
    flow = page.evaluate("showFlow(1)")
    assert 2 <= len(flow["points"]) <= 600 and all(map(math.isfinite, flow["places"]))
    page.evaluate("location.hash = 'drawing=clouds&steps=7'")
    page.wait_for_function("document.querySelector('[name=drawing]:checked').value === 'clouds'")
    assert page.evaluate(SETTINGS)[3] == "7"


# What a reader does -----------------------------------------------------------------------


@needs_a_browser
def test_it_plays_by_itself_and_says_what_happens(visit):
    page = visit("#drawing=smiley")
    page.evaluate(
        """() => {
            window.said = [];
            const status = document.getElementById('status');
            new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });
        }"""
    )
    page.wait_for_function(f"{MOMENT} === 200", timeout=60_000)
    said = page.evaluate("said")
    assert 4 <= len(said) <= 6 and len(said) == len(set(said))  # a line for each state, and none twice
    assert said[-1].startswith("The noise has become the drawing.")
    assert page.text_content("#play") == "Play again"


@needs_a_browser
def test_play_pause_step_and_restart(visit):
    page = visit("#steps=10")
    page.evaluate("showFlow(0.1)")  # it plays by itself only from the beginning
    page.click("#play")
    page.wait_for_function(f"{MOMENT} > 30")
    assert page.text_content("#play") == "Pause"
    page.click("#play")
    page.wait_for_function("document.getElementById('play').textContent === 'Play'")
    stopped = page.evaluate(MOMENT)
    page.wait_for_timeout(200)
    assert page.evaluate(MOMENT) == stopped > 0
    page.click("#step")
    # the slider rounds where it stopped
    page.wait_for_function(f"{MOMENT} % 20 === 0 && {MOMENT} >= {stopped}")
    assert page.text_content("#moment-text").endswith("of 10")
    page.click("#restart")
    page.wait_for_function(f"{MOMENT} < {stopped} && document.getElementById('play').textContent === 'Pause'")


@needs_a_browser
def test_a_dot_is_followed(visit):
    """A click on another dot shows its path, its mean, and the points behind it; Escape shows none."""
    page = visit("#drawing=spiral&steps=20")
    page.evaluate("showFlow(0.6)")
    box = page.locator("#plane").bounding_box()
    for act in (
        lambda: page.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"]),
        lambda: page.click("#another"),
        lambda: page.press("#plane", "ArrowLeft"),
        lambda: page.press("#plane", "Escape"),
    ):
        before = page.evaluate(PICTURE)
        act()
        page.wait_for_function(f"before => {PICTURE} !== before", arg=before)
    assert page.evaluate(SETTINGS)[0] == "spiral" and page.evaluate(MOMENT) == 120


@needs_a_browser
def test_drawing_with_mouse_and_keys(visit):
    page = visit("#drawing=clouds")
    draw(page, FACE)
    assert page.evaluate(SETTINGS)[0] == "own"
    places = torch.tensor(page.evaluate("showFlow(0).points")).view(-1, 2)
    middle = (places.max(dim=0).values + places.min(dim=0).values) / 2
    radii = (places - middle).norm(dim=1)
    assert radii[:100].std() < 0.02 and (radii < 0.9 * radii[0]).sum() > 4  # the circle first, then the eyes
    page.check("[value=spiral]")
    box = page.locator("#plane").bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 90)
    page.mouse.down()
    page.mouse.move(box["x"] - 30, box["y"] + 90)  # released outside, so nothing is drawn
    page.mouse.up()
    page.mouse.move(box["x"] + 90, box["y"] + 90)
    assert page.evaluate(SETTINGS)[0] == "spiral"
    draw(page, [[(60, 60), (90, 60)]])
    assert page.evaluate("location.hash").count(".") == len(FACE)  # the drawing has one stroke more
    page.click("#clear")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Draw with')")
    assert page.evaluate("showFlow(0).points") == []
    page.focus("#plane")
    for key in ("ArrowRight", "Space", "ArrowUp", "Shift+ArrowLeft", "Enter"):
        page.keyboard.press(key)
    places = torch.tensor(page.evaluate("showFlow(0).points")).view(-1, 2)
    assert (places - torch.tensor([[0.1, 0.0], [-0.4, 0.1]])).abs().max() < 0.01


@needs_a_browser
def test_a_drawing_that_is_too_much(visit):
    """Points spread over all strokes, and a stroke that the link cannot hold is left out, in words."""
    dots = ".".join(["AAAA", *(799 * ["ffff"]), "zzzz"])
    places = visit(f"#strokes={dots}").evaluate("showFlow(0).points")
    assert len(places) == 600 and places[0] < -4 and -1 < places[2] and 3 < places[-2]
    page = visit("#strokes=" + 3999 * "AAzz")
    before = page.evaluate("location.hash")
    page.focus("#plane")
    page.keyboard.press("Space")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('The drawing is full')")
    assert page.evaluate("location.hash").startswith(before)
    page = visit("#strokes=AAAA..AAAA")
    page.wait_for_function("document.getElementById('status').textContent.includes('damaged')")


@needs_a_browser
def test_a_finger_draws_only_where_drawing_is_chosen(visit):
    page = visit("#drawing=smiley", viewport={"width": 390, "height": 844}, has_touch=True)
    touch = page.context.new_cdp_session(page)
    box = page.locator("#plane").bounding_box()

    def swipe():
        for kind, shift in (("Start", 0), ("Move", 30), ("Move", 90), ("End", None)):
            points = [] if shift is None else [{"x": box["x"] + 100 + shift, "y": box["y"] + 80 + shift}]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})

    swipe()
    assert page.evaluate(SETTINGS)[0] == "smiley"
    page.evaluate("scrollTo(0, 0)")
    page.check("[value=own]")
    page.evaluate("scrollTo(0, 0)")
    swipe()
    page.wait_for_function("location.hash.includes('strokes=')")
    assert page.evaluate("scrollY") == 0 and len(page.evaluate("showFlow(0).points")) > 20


@needs_a_browser
def test_all_controls_by_keyboard(visit):
    """Tab reaches every control, each shows that it has the focus, and arrow keys move sliders."""
    page = visit("#drawing=smiley")
    page.evaluate("showFlow(0.5)")
    program = """() => {
        const it = document.activeElement;
        const shown = it.type === 'radio' ? it.nextElementSibling : it;
        return [it.id || it.value || '', getComputedStyle(shown).outlineStyle];
    }"""
    outlines = {}
    for _ in range(30):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(program)
        outlines[name] = outline
    controls = "plane play step restart moment smiley ddim steps seed another link".split()
    assert "none" not in [outlines[name] for name in controls]
    page.focus("#moment")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{MOMENT} === 101")
    assert page.get_attribute("#moment", "aria-valuetext") == page.text_content("#moment-text") != ""
    page.focus("#steps")
    page.keyboard.press("Home")
    assert page.text_content("#steps-text") == "1"
    page.focus("[value=smiley]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash.includes('drawing=spiral')")


@needs_a_browser
def test_for_everybody(visit):
    """A name for each control, a live line, and no page wider than its window; a phone shows plane and buttons."""
    page = visit()
    nameless = "all => all.filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.id || e.value)"
    assert page.eval_on_selector_all("input, select, button, a, canvas", nameless) == []
    assert page.get_attribute("#status", "role") == "status"
    for width in (320, 390, 768, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        for choice in ("word", "own", "clouds"):
            page.check(f"[value={choice}]")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.eval_on_selector_all("main input, main button, main canvas, main span", CUT_OFF) == []
        if width == 390:
            page.evaluate("scrollTo(0, 0)")
            for name in ("plane", "status", "play", "moment"):
                box = page.locator(f"#{name}").bounding_box()
                assert box["y"] >= 0 and box["y"] + box["height"] <= 844, name


@needs_a_browser
def test_who_wants_no_motion_sees_none(visit):
    page = visit("#drawing=smiley", reduced_motion="reduce")
    page.wait_for_timeout(1500)
    assert page.evaluate(MOMENT) == 100  # a still, half-way
    page.click("#play")
    page.wait_for_function(f"{MOMENT} === 200")
    page.click("#restart")
    page.wait_for_function(f"{MOMENT} === 0")
    page.wait_for_timeout(300)
    assert page.evaluate(MOMENT) == 0


@needs_a_browser
def test_dark_where_the_reader_has_it_dark(visit):
    page = visit("#drawing=smiley")
    page.evaluate("showFlow(1)")
    light = page.evaluate(PICTURE)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {PICTURE} !== before", arg=light)
    paper = page.eval_on_selector("#plane", "plane => getComputedStyle(plane).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper))) < 60


# As files ---------------------------------------------------------------------------------


def test_no_address_of_others_is_loaded():
    files = sorted((make_site.WEB / "field").iterdir())
    assert {path.suffix for path in files} == {".js", ".css", ".html", ".png"}
    for path in files:
        if path.suffix != ".png":
            links = r'<a [^>]*href="[^"]*"|<meta property="og:image" [^>]*>'
            assert "://" not in re.sub(links, "", path.read_text("utf-8")), path.name


def test_a_shared_link_has_a_picture():
    page = (make_site.WEB / "field" / "index.html").read_text(encoding="utf-8")
    public = make_site.settings()["repository"].replace("/", ".github.io/")
    found = dict(re.findall(r'<meta property="og:([^"]*)" content="([^"]*)">', page))
    assert found["title"] and found["description"] and found["image:alt"]
    assert found["image"] == f"https://{public}/field/flow.png"
    picture = make_site.WEB / "field" / "flow.png"
    assert Image.open(picture).size == (int(found["image:width"]), int(found["image:height"])) == (1200, 630)
    assert picture.stat().st_size < 150_000


def test_the_pages_lead_to_each_other():
    lesson = (make_site.ROOT / "notebooks" / "06_why_it_works.ipynb").read_text(encoding="utf-8")
    public = make_site.settings()["repository"].replace("/", ".github.io/")
    assert f"https://{public}/field/" in lesson
    assert 'href="field/index.html"' in (make_site.WEB / "index.html").read_text(encoding="utf-8")
    page = (make_site.WEB / "field" / "index.html").read_text(encoding="utf-8")
    assert 'href="../course/notebooks/06_why_it_works.html"' in page and 'href="../index.html"' in page
