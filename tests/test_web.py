"""The page that draws in the reader's browser: the same faces as PyTorch's, its sliders, its link, its limits.

Needs Chromium or Chrome, the package playwright, and what `make site` has fetched from npm; for some tests Firefox.
"""

import functools
import html
import http.server
import io
import re
import threading
from urllib.parse import quote
from urllib.request import urlopen

import export_onnx
import firefox
import make_site
import pytest
import serve
import torch
from helpers import BROWSER, BROWSER_OPTIONS, Quiet
from PIL import Image

from diffusion_course.attention import text_to_image, tokens
from diffusion_course.distillation import FEW_STEPS
from diffusion_course.samplers import DPMSolver
from diffusion_utils import LARGE_MODEL, TOY_MODEL, Diffusion, ddim, generate

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)  # its exporter was another
needs_a_browser = pytest.mark.skipif(
    BROWSER is None or OLD or not make_site.PACKAGES.exists(),
    reason="no Chromium or Chrome here, no make site yet, or PyTorch before 2.9",
)
needs_firefox = pytest.mark.skipif(
    firefox.PROGRAM is None or OLD or not make_site.PACKAGES.exists(),
    reason="no Firefox here, no make site yet, or PyTorch before 2.9",
)
WORDS = [path for path in export_onnx.shipped() if "vocabulary" in (path / "config.json").read_text("utf-8")]
STATUS = "document.getElementById('status').textContent"
DRAWN = f"{STATUS}.startsWith('Drawn')"


def value(page, name):
    return page.eval_on_selector(f"#{name}", "element => element.value")


def face(page):
    """The face that is shown, as the address of its image."""
    return page.eval_on_selector("#image", "canvas => canvas.toDataURL()")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A plain static server with the page in a subfolder, as on GitHub Pages."""
    folder = tmp_path_factory.mktemp("server")
    make_site.live_page(folder / "course", [TOY_MODEL, LARGE_MODEL, FEW_STEPS[1], *WORDS])
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/course/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=BROWSER, args=BROWSER_OPTIONS)
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(120_000)  # of a busy machine
        yield context
        browser.close()


@pytest.fixture(scope="module")
def page(browser, address):
    """The page after its first face. At the end nothing may have gone wrong, and nothing been asked of others."""
    page, trouble = browser.new_page(), []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
    page.on(
        "request", lambda request: request.url.startswith((address, "blob:")) or trouble.append(request.url)
    )
    page.goto(address)
    page.wait_for_function(DRAWN)
    yield page
    assert not trouble


def press(page, name, key):
    """Press a key on the slider `name`, and wait until what follows from it is drawn."""
    page.evaluate(f"{STATUS} = ''")
    page.focus(f"#{name}")
    page.keyboard.press(key)
    page.wait_for_function(DRAWN)


def follow(page, settings):
    """Follow a link that holds these settings, and wait until the face is drawn."""
    page.evaluate(f"settings => {{ {STATUS} = ''; location.hash = settings }}", settings)
    page.wait_for_function(DRAWN)


# The image --------------------------------------------------------------------------------


@needs_a_browser
@pytest.mark.parametrize(
    "folder, steps, sampler",
    [
        (TOY_MODEL, 20, "ddim"),
        (TOY_MODEL, 6, "dpm"),
        (LARGE_MODEL, 4, "ddim"),
        (LARGE_MODEL, 6, "dpm"),
        (FEW_STEPS[1], 1, "ddim"),
    ],
)
def test_the_same_face_as_in_pytorch(page, folder, steps, sampler):
    """Within 2/255 on average: weights in 16 bits, and sums in another order."""
    diffusion = Diffusion.from_pretrained(folder)
    size = diffusion.config.image_size
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3))
    follow(page, f"model={folder.name}&steps={steps}&sampler={sampler}")
    colours = torch.tensor(page.evaluate("noise => drawFrom(noise)", noise.flatten().tolist()))
    step = DPMSolver() if sampler == "dpm" else ddim
    expected = generate(diffusion, steps=steps, noise=noise, sampler=step)
    difference = (colours.view_as(expected) - expected).abs()
    assert difference.mean() < 2 / 255
    assert expected.std() > 0.1


@needs_a_browser
@pytest.mark.parametrize("folder", WORDS, ids=lambda folder: folder.name)
def test_the_same_face_from_a_prompt(page, folder):
    diffusion = export_onnx.load(folder)
    vocabulary = diffusion.config.vocabulary
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    prompt = " ".join(vocabulary[3:60:7])
    follow(page, f"model={folder.name}&steps=5&sampler=ddim&guidance-scale=1.5&prompt={quote(prompt)}")
    colours = torch.tensor(page.evaluate("noise => drawFrom(noise)", noise.flatten().tolist()))
    expected = text_to_image(diffusion, prompt, n=1, guidance_scale=1.5, steps=5, noise=noise)
    assert (colours.view_as(expected) - expected).abs().max() < 1 / 255  # its weights have 16 bits anyway
    page.fill("#prompt", "a zebra")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{STATUS}.startsWith('The network does not know:') && {STATUS}.includes('zebra')")
    examples = page.eval_on_selector_all("#examples button", "all => all.map(e => e.textContent)")
    assert len(tokens(examples, vocabulary)) == len(examples)  # it knows all of their words


@needs_firefox
def test_the_same_faces_in_firefox(address):
    """Those of the two tests above; and a PNG, a walk and a link."""
    with firefox.Firefox() as fox:
        for folder in (TOY_MODEL, FEW_STEPS[1], *WORDS):
            diffusion = export_onnx.load(folder)
            prompt = "a red hat" if folder in WORDS else ""
            size, channels = diffusion.config.image_size, diffusion.config.channels
            noise = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(3))
            fox.open(
                f"{address}?{folder.name}#model={folder.name}&steps=3&seed=7&guidance-scale=2&prompt={quote(prompt)}"
            )
            fox.wait(DRAWN)
            colours = torch.tensor(fox.evaluate("return drawFrom(arguments[0])", noise.flatten().tolist()))
            expected = text_to_image(diffusion, prompt, 1, steps=3, noise=noise) if prompt else None
            expected = generate(diffusion, steps=3, noise=noise) if expected is None else expected
            assert (colours.view_as(expected) - expected).abs().mean() < 2 / 255, folder.name
        fox.evaluate("document.getElementById('walk').click()")
        fox.wait("document.querySelectorAll('#stations button:enabled').length === 9")
        fox.evaluate("document.getElementById('save').click()")
        fox.wait(f"{STATUS} === 'Saved as face-7-to-42-100.png.'")


@needs_a_browser
def test_noise_is_normal(page):
    noise = torch.tensor(page.evaluate("import('./diffusion.js').then(m => [...m.startingNoise(7, 30000)])"))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs((noise[1:] * noise[:-1]).mean()) < 0.02 and abs((noise**4).mean() - 3) < 0.15
    mixed = "m.between(m.startingNoise(7, 30000), m.startingNoise(8, 30000), 0.4)"
    mixed = torch.tensor(page.evaluate(f"import('./diffusion.js').then(m => [...{mixed}])"))
    assert abs(mixed.std() - 1) < 0.02


@needs_a_browser
def test_the_solver_is_of_order_two(page):
    """In the image that it returns, where images are a Gaussian and the end of the path is known: 80 against 40."""
    program = """async () => {
      const { dpmSolver, sample, schedule } = await import("./diffusion.js");
      const rest = (time) => schedule(time)[0] ** 2 + 0.25 * schedule(time)[1] ** 2;
      const guess = (noisy, time) => noisy.map((value) => (0.25 * schedule(time)[1] * value) / rest(time));
      const predict = async (noisy, time) => [noisy, guess(noisy, time)];
      const end = guess([Math.sqrt(rest(0) / rest(1))], 0)[0];
      const errors = [];
      for (const steps of [39, 79]) {
        const times = Array.from({ length: steps + 1 }, (_, i) => 1 - i / steps);
        let image;
        for await ([, image] of sample(predict, [1], times, dpmSolver())) continue;
        errors.push(Math.abs(image[0] - end));
      }
      return errors[0] / errors[1];
    }"""
    assert page.evaluate(program) == pytest.approx(4, abs=0.4)


# What a reader does -------------------------------------------------------------------------


@needs_a_browser
def test_sliders_by_keyboard(page, address):
    follow(page, f"model={TOY_MODEL.name}&steps=4&seed=7")
    before = face(page)
    press(page, "steps", "ArrowRight")
    assert value(page, "steps") == "5" and page.text_content("#steps-text") == "5"
    assert "steps=5" in page.url and face(page) != before
    before = face(page)
    press(page, "seed", "ArrowRight")
    assert value(page, "seed") == "8" and "seed=8" in page.url and face(page) != before
    last = face(page)
    page.focus("#moment")
    page.keyboard.press("Home")  # the film, from its first moment
    assert page.text_content("#moment-text") == "step 0 of 5" and face(page) != last
    page.keyboard.press("End")
    assert face(page) == last
    page.focus("#new-face")
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.getElementById('seed').value !== '8' && {DRAWN}")


@needs_a_browser
def test_a_network_brings_its_number_of_steps(page):
    follow(page, f"model={TOY_MODEL.name}&steps=7&sampler=ddim&seed=7")
    for folder, steps in ((FEW_STEPS[1], "1"), (TOY_MODEL, "20")):
        page.evaluate(f"{STATUS} = ''")
        page.select_option("#model", folder.name)
        page.wait_for_function(DRAWN)
        assert value(page, "steps") == steps and f"steps={steps}" in page.url


@needs_a_browser
def test_a_link_holds_the_settings(page, browser, address):
    follow(page, f"model={TOY_MODEL.name}&steps=3&seed=123&sampler=dpm&to=9&way=30")
    friend = browser.new_page()
    friend.goto(page.url)
    friend.wait_for_function(DRAWN)
    names = "model", "steps", "seed", "sampler", "to", "way"
    assert [value(friend, name) for name in names] == [TOY_MODEL.name, "3", "123", "dpm", "9", "30"]
    assert face(friend) == face(page)
    friend.close()
    friend = browser.new_page()
    friend.goto(f"{address}#steps=900&seed=x&sampler=magic&model=none&other=1")
    friend.wait_for_function(DRAWN)
    assert [value(friend, name) for name in names[:4]] == [TOY_MODEL.name, "50", "11", "ddim"]
    friend.close()


@needs_a_browser
def test_a_walk_and_a_png(page):
    follow(page, "steps=2&seed=1&to=2&way=0&sampler=ddim")
    page.click("#walk")
    page.wait_for_function("document.querySelectorAll('#stations button:enabled').length === 9")
    faces = "buttons => buttons.map(button => button.firstChild.toDataURL())"
    assert len(set(page.eval_on_selector_all("#stations button", faces))) == 9
    page.click("#stations button:nth-child(5)")
    page.wait_for_function(f"location.hash.includes('way=50') && {DRAWN}")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "face-1-to-2-50.png"
    assert Image.open(io.BytesIO(download.value.path().read_bytes())).size == (512, 512)


@needs_a_browser
def test_for_everybody(page):
    """A name for each control, images with a text, and no page wider than a phone."""
    nameless = (
        "all => all.filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.id)"
    )
    assert page.eval_on_selector_all("input, select, button, a", nameless) == []
    assert page.eval_on_selector_all(
        ".studio canvas", "all => all.every(e => e.role === 'img' && e.ariaLabel)"
    )
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_a_browser
def test_a_png_has_the_name_of_the_face_that_is_shown(page):
    follow(page, f"model={TOY_MODEL.name}&steps=2&seed=11&way=0&sampler=ddim")
    with page.expect_download() as download:
        page.evaluate("document.getElementById('seed').value = 77; document.getElementById('save').click()")
    assert download.value.suggested_filename == "face-11.png"


# When something is missing --------------------------------------------------------------------


@needs_a_browser
@pytest.mark.parametrize(
    "missing, sentence",
    [
        ("runtime/*.wasm.gz", "The file runtime/ort-wasm-simd-threaded.wasm.gz did not arrive (404)"),
        ("runtime/*.min.mjs", "The file runtime/ort.wasm.min.mjs did not arrive"),
        ("models/*.onnx", "The file models/toy_faces_32.onnx did not arrive (404)"),
        ("models/*.json", "The file models/models.json did not arrive (404)"),
        ("page.js", "The program of this page did not arrive"),
        ("WebAssembly", "This browser has no WebAssembly"),
        ("DecompressionStream", "This browser has no DecompressionStream"),
    ],
)
def test_what_is_missing_is_named(browser, address, missing, sentence):
    page = browser.new_page()
    page.add_init_script(f"delete globalThis['{missing}']")
    page.route(f"**/{missing}", lambda route: route.fulfill(status=404))
    page.goto(address)
    page.wait_for_function(f"sentence => {STATUS}.startsWith(sentence)", arg=sentence)
    page.close()


PAGE = {"content_type": "text/html", "body": "<p>Please sign in.</p>"}  # of a hotel
WAYS = {  # what arrives, and what is said
    "no network": ("models/*.onnx", None, "The file models/toy_faces_32.onnx did not arrive (no network)"),
    "a page": ("models/*.onnx", PAGE, "The file models/toy_faces_32.onnx did not arrive (a web page came in its place)"),
    "a page for all": ("*.json", PAGE, "The file models/models.json did not arrive (a web page came in its place)"),
    "half": ("models/*.onnx", {"body": b"half"}, "The file models/toy_faces_32.onnx did not arrive (it broke off)"),
    "half a runtime": ("*.wasm.gz", {"body": b"\x1f\x8bhalf"}, "The file runtime/ort-wasm-simd-threaded.wasm.gz is damaged"),
    "a program": ("*.min.mjs", None, "The file runtime/ort.wasm.min.mjs did not arrive"),
}  # fmt: skip


@needs_a_browser
@pytest.mark.parametrize("way", WAYS)
def test_new_face_tries_again(browser, address, way):
    """When what had gone wrong is right again; the bar does not go on meanwhile."""
    files, response, sentence = WAYS[way]
    page = browser.new_page()
    page.route(f"**/{files}", lambda route: route.fulfill(**response) if response else route.abort())
    page.goto(address)
    page.wait_for_function(f"sentence => {STATUS}.startsWith(sentence)", arg=sentence)
    page.wait_for_timeout(300)
    assert not page.is_visible("#progress") or way == "a page for all"
    page.unroute(f"**/{files}")
    page.click("#new-face")
    page.wait_for_function(DRAWN)
    assert not page.is_visible("#progress")
    page.close()


@needs_a_browser
def test_without_workers(browser, address):
    page = browser.new_page()
    page.add_init_script("delete globalThis.Worker")
    page.goto(f"{address}#steps=1")
    page.wait_for_function(DRAWN)
    page.close()


@needs_a_browser
def test_programs_sent_as_plain_text(browser, address):
    page = browser.new_page()
    page.route("**/page.js", lambda route: route.fulfill(body="let x = 1", content_type="text/plain"))
    page.goto(address)
    page.wait_for_function(
        f"{STATUS}.startsWith('The server sends programs as text/plain, which browsers refuse')"
    )
    page.close()
    page = browser.new_page()
    page.goto((make_site.WEB / "index.html").as_uri())
    page.wait_for_function(f"{STATUS}.startsWith('Browsers start no programs from files')")
    page.close()


CARD = """
const zeros = (feeds) => Object.values(feeds)[0].data.map(() => 0);
export const env = { wasm: {} };
export class Tensor { constructor(kind, data) { this.data = data; } }
export const InferenceSession = { create: async () => ({ run: async (feeds) => ({ noise: { data: zeros(feeds) } }) }) };
"""


@needs_a_browser
def test_a_graphics_card_that_computes_wrongly(browser, address):
    """A stand-in finds nothing but zeros: the processor draws."""
    page = browser.new_page()
    page.add_init_script(
        "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => ({}) } })"
    )
    page.route(
        "**/ort.webgpu.min.mjs", lambda route: route.fulfill(body=CARD, content_type="text/javascript")
    )
    page.goto(f"{address}#kind=webgpu&steps=2&seed=7")
    page.wait_for_function(f"{STATUS}.startsWith('Your graphics card computes this network wrongly')")
    assert value(page, "kind") == "wasm" and "webgpu" not in page.url
    wrong = face(page)
    page.goto(f"{address}?again#steps=2&seed=7")
    page.wait_for_function(DRAWN)
    assert face(page) == wrong
    page.close()


@needs_a_browser
def test_a_browser_that_computes_wrongly(browser, address):
    page = browser.new_page()

    def other_numbers(route):
        models = route.fetch().json()
        models[0]["answer"][5] += 0.5
        route.fulfill(json=models)

    page.route("**/models.json", other_numbers)
    page.goto(address)
    page.wait_for_function(f"{STATUS}.startsWith('This browser computes the network wrongly')")
    page.close()


def test_make_serve_sends_types(tmp_path):
    """Whatever the system says of them."""
    kinds = {
        "a.js": "text/javascript",
        "a.mjs": "text/javascript",
        "a.wasm": "application/wasm",
        "a.css": "text/css",
    }
    for name in kinds:
        (tmp_path / name).write_text("")
    server = serve.server(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, kind in kinds.items():
        with urlopen(f"http://127.0.0.1:{server.server_port}/{name}") as response:
            assert response.headers["content-type"] == kind
    server.shutdown()
    server.server_close()


# As files -----------------------------------------------------------------------------------


def test_the_loop_that_is_shown_is_the_loop_that_runs():
    page = (make_site.WEB / "index.html").read_text(encoding="utf-8")
    here, there = (
        html.unescape(re.search(rf'id="{name}">(.*?)</code>', page, re.S)[1]) for name in ("here", "there")
    )
    assert here in (make_site.WEB / "diffusion.js").read_text(encoding="utf-8")
    head, *body = there.splitlines()
    core = (make_site.ROOT / "diffusion_utils.py").read_text(encoding="utf-8")
    assert head in core and "\n".join(body) in core


def test_no_address_of_others_is_loaded():
    for path in make_site.WEB.glob("*.*"):
        if path.suffix in (".js", ".css", ".html"):
            text = re.sub(r'<a [^>]*href="[^"]*"', "", path.read_text(encoding="utf-8"))
            assert not re.search(r"""(?:src=|href=|url\(|import|fetch)\W*https?:""", text), path.name


def test_what_follows_prompts_comes_first():
    names = [folder.name for folder in export_onnx.shipped()]
    assert names[0] == WORDS[0].name and names[1] == TOY_MODEL.name and LARGE_MODEL.name in names
