"""The page that draws in the reader's browser: the same faces as PyTorch's, its sliders, its link, its limits.

Needs Chromium or Chrome, the package playwright, and what `make site` has fetched from npm; for some tests Firefox.
"""

import html
import io
import re
import threading
from functools import partial
from urllib.parse import quote
from urllib.request import urlopen

import export_onnx
import firefox
import make_site
import pytest
import serve
import torch
from helpers import BROWSER, chromium, serving
from PIL import Image

from diffusion_course.attention import text_to_image, tokens
from diffusion_course.distillation import FEW_STEPS
from diffusion_course.samplers import DPMSolver
from diffusion_utils import LARGE_MODEL, TOY_MODEL, Diffusion, ddim, generate

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9)  # its exporter was another
NEEDED = "no browser of this kind here, no make site yet, or PyTorch before 2.9"
NOT_READY = OLD or not make_site.PACKAGES.exists()
needs_a_browser = pytest.mark.skipif(BROWSER is None or NOT_READY, reason=NEEDED)
needs_firefox = pytest.mark.skipif(firefox.PROGRAM is None or NOT_READY, reason=NEEDED)
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
    with serving(folder) as address:
        yield f"{address}course/"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        context.set_default_timeout(120_000)  # of a busy machine
        yield context


@pytest.fixture(scope="module")
def page(browser, address):
    """The page after its first face. At the end nothing may have gone wrong, and nothing been asked of others."""
    page, trouble, ours = browser.new_page(), [], (address, "blob:")
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: message.type == "error" and trouble.append(message.text))
    page.on("request", lambda request: request.url.startswith(ours) or trouble.append(request.url))
    page.goto(address)
    page.wait_for_function(DRAWN)
    yield page
    assert not trouble


@pytest.fixture
def fresh(browser):
    """A page that was never anywhere."""
    page = browser.new_page()
    yield page
    page.close()


def says(page, sentence):
    """Wait until the page says something that begins so."""
    page.wait_for_function(f"sentence => {STATUS}.startsWith(sentence)", arg=sentence)


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


def starting_noise(diffusion):
    """Noise for one face, and the same numbers in a list for the page."""
    shape = 1, diffusion.config.channels, diffusion.config.image_size, diffusion.config.image_size
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    return noise, noise.flatten().tolist()


@needs_a_browser
@pytest.mark.parametrize("folder, steps, sampler", [
    (TOY_MODEL, 20, "ddim"), (TOY_MODEL, 6, "dpm"), (LARGE_MODEL, 4, "ddim"), (LARGE_MODEL, 6, "dpm"),
    (FEW_STEPS[1], 1, "ddim"),
])  # fmt: skip
def test_the_same_face_as_in_pytorch(page, folder, steps, sampler):
    """Within 2/255 on average: weights in 16 bits, and sums in another order."""
    diffusion = Diffusion.from_pretrained(folder)
    noise, numbers = starting_noise(diffusion)
    follow(page, f"model={folder.name}&steps={steps}&sampler={sampler}")
    colours = torch.tensor(page.evaluate("noise => drawFrom(noise)", numbers))
    step = DPMSolver() if sampler == "dpm" else ddim
    expected = generate(diffusion, steps=steps, noise=noise, sampler=step)
    assert (colours.view_as(expected) - expected).abs().mean() < 2 / 255 and expected.std() > 0.1


@needs_a_browser
@pytest.mark.parametrize("folder", WORDS, ids=lambda folder: folder.name)
def test_the_same_face_from_a_prompt(page, folder):
    diffusion = export_onnx.load(folder)
    vocabulary = diffusion.config.vocabulary
    noise, numbers = starting_noise(diffusion)
    prompt = "A woman in a cap, " + " ".join(vocabulary[3:60:7])
    follow(page, f"model={folder.name}&steps=5&sampler=ddim&guidance-scale=1.5&prompt={quote(prompt)}")
    colours = torch.tensor(page.evaluate("noise => drawFrom(noise)", numbers))
    expected = text_to_image(diffusion, prompt, n=1, guidance_scale=1.5, steps=5, noise=noise)
    assert (colours.view_as(expected) - expected).abs().max() < 1 / 255  # its weights have 16 bits anyway
    page.fill("#prompt", "a zebra")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{STATUS}.endsWith('It does not know: zebra.')")
    page.fill("#prompt", "улыбка")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{STATUS}.endsWith('The network has read: nothing. It does not know: улыбка.')")
    page.fill("#prompt", "A woman in a cap")
    page.keyboard.press("Enter")
    page.wait_for_function(f"{STATUS}.endsWith('The network has read: a person wearing a cap.')")
    examples = page.eval_on_selector_all("#examples button", "all => all.map(e => e.textContent)")
    assert len(tokens(examples, vocabulary)) == len(examples)  # it knows all of their words


@needs_a_browser
@pytest.mark.parametrize("folder", WORDS, ids=lambda folder: folder.name)
def test_all_that_a_prompt_needs_is_fifteen_megabytes(fresh, address, folder):
    bodies = []
    fresh.on("response", lambda response: bodies.append(response.body()))
    fresh.goto(f"{address}#model={folder.name}&steps=1&prompt=a+red+hat")
    fresh.wait_for_function(DRAWN)
    assert 5e6 < sum(map(len, bodies)) < 15e6


@needs_firefox
def test_the_same_faces_in_firefox(address):
    """Those of the two tests above; and a PNG, a walk and a link."""
    with firefox.Firefox() as fox:
        for folder in (TOY_MODEL, FEW_STEPS[1], *WORDS):
            diffusion = export_onnx.load(folder)
            prompt = "a red hat" if folder in WORDS else ""
            noise, numbers = starting_noise(diffusion)
            settings = f"model={folder.name}&steps=3&seed=7&guidance-scale=2&prompt={quote(prompt)}"
            fox.open(f"{address}?{folder.name}#{settings}")
            fox.wait(DRAWN)
            colours = torch.tensor(fox.evaluate("return drawFrom(arguments[0])", numbers))
            draw = partial(text_to_image, prompt=prompt, n=1) if prompt else generate
            expected = draw(diffusion, steps=3, noise=noise)
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
def test_a_link_holds_the_settings(page, fresh, address):
    follow(page, f"model={TOY_MODEL.name}&steps=3&seed=123&sampler=dpm&to=9&way=30")
    fresh.goto(page.url)
    fresh.wait_for_function(DRAWN)
    names = "model", "steps", "seed", "sampler", "to", "way"
    assert [value(fresh, name) for name in names] == [TOY_MODEL.name, "3", "123", "dpm", "9", "30"]
    assert face(fresh) == face(page)
    fresh.goto(f"{address}?again#steps=900&seed=x&sampler=magic&model=none&other=1")
    fresh.wait_for_function(DRAWN)
    assert [value(fresh, name) for name in names[:4]] == [TOY_MODEL.name, "50", "11", "ddim"]


@needs_a_browser
def test_a_walk_and_a_png(page):
    follow(page, "steps=2&seed=1&to=2&way=0&sampler=ddim")
    page.click("#walk")
    page.wait_for_function("document.querySelectorAll('#stations button:enabled').length === 9")
    faces = "buttons => buttons.map(button => button.firstChild.toDataURL())"
    assert len(set(page.eval_on_selector_all("#stations button", faces))) == 9
    page.evaluate(f"{STATUS} = ''")
    page.click("#stations button:nth-child(5)")
    page.wait_for_function(f"location.hash.includes('way=50') && {DRAWN}")
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "face-1-to-2-50.png"
    assert Image.open(io.BytesIO(download.value.path().read_bytes())).size == (512, 512)


@needs_a_browser
def test_for_everybody(page):
    """A name for each control, images with a text, and no page wider than a phone."""
    nameless = "all => all.filter(e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).length"
    assert page.eval_on_selector_all("input, select, button, a", nameless) == 0
    unseen = "all => all.filter(e => e.role !== 'img' || !e.ariaLabel).map(e => e.id)"
    assert page.eval_on_selector_all(".studio canvas", unseen) == []
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
@pytest.mark.parametrize("missing, sentence", [
    ("runtime/*.wasm.gz", "The file runtime/ort-wasm-simd-threaded.wasm.gz did not arrive (404)"),
    ("runtime/*.min.mjs", "The file runtime/ort.wasm.min.mjs did not arrive"),
    ("runtime/ort-wasm-simd-threaded.mjs", "The runtime did not start. Please load the page again."),
    ("models/*.onnx.gz", "The file models/toy_faces_32.onnx.gz did not arrive (404)"),
    ("models/*.json", "The file models/models.json did not arrive (404)"),
    ("page.js", "The program of this page did not arrive"),
    ("WebAssembly", "This browser has no WebAssembly"),
    ("DecompressionStream", "This browser has no DecompressionStream"),
])  # fmt: skip
def test_what_is_missing_is_named(fresh, address, missing, sentence):
    fresh.add_init_script(f"delete globalThis['{missing}']")
    fresh.route(f"**/{missing}", lambda route: route.fulfill(status=404))
    fresh.goto(address)
    says(fresh, sentence)


PAGE = {"content_type": "text/html", "body": "<p>Please sign in.</p>"}  # of a hotel
WAYS = {  # what arrives, and what is said
    "no network": ("models/*.onnx.gz", None, "The file models/toy_faces_32.onnx.gz did not arrive (no network)"),
    "a page": ("models/*.onnx.gz", PAGE, "The file models/toy_faces_32.onnx.gz did not arrive (a web page came in its place)"),
    "a page for all": ("*.json", PAGE, "The file models/models.json did not arrive (a web page came in its place)"),
    "half": ("models/*.onnx.gz", {"body": b"half"}, "The file models/toy_faces_32.onnx.gz did not arrive (it broke off)"),
    "half a list": ("*.json", {"body": b"{"}, "The file models/models.json is damaged"),
    "half a runtime": ("*.wasm.gz", {"body": b"\x1f\x8bhalf"}, "The file runtime/ort-wasm-simd-threaded.wasm.gz is damaged"),
    "a program": ("*.min.mjs", None, "The file runtime/ort.wasm.min.mjs did not arrive"),
}  # fmt: skip


@needs_a_browser
@pytest.mark.parametrize("way", WAYS)
def test_new_face_tries_again(fresh, address, way):
    """When what had gone wrong is right again; the bar does not go on meanwhile."""
    files, response, sentence = WAYS[way]
    fresh.route(f"**/{files}", lambda route: route.fulfill(**response) if response else route.abort())
    fresh.goto(address)
    says(fresh, sentence)
    fresh.wait_for_timeout(300)
    assert not fresh.is_visible("#progress")
    fresh.unroute(f"**/{files}")
    fresh.click("#new-face")
    fresh.wait_for_function(DRAWN)
    assert not fresh.is_visible("#progress")


@needs_a_browser
def test_a_network_that_is_not_wanted_any_more_fails_in_silence(fresh, address):
    held = []
    fresh.route(f"**/{TOY_MODEL.name}.onnx.gz", lambda route: held.append(route))
    fresh.goto(f"{address}#model={TOY_MODEL.name}&kind=webgpu")  # there is no graphics card
    while not held:
        fresh.wait_for_timeout(50)
    fresh.evaluate(f"location.hash = 'model={FEW_STEPS[1].name}&kind=webgpu'")
    fresh.wait_for_function(DRAWN)
    assert value(fresh, "kind") == "wasm" and value(fresh, "steps") == "1"
    held[0].fulfill(status=404)
    fresh.wait_for_timeout(300)
    assert fresh.evaluate(DRAWN)


@needs_a_browser
def test_without_workers(fresh, address):
    fresh.add_init_script("delete globalThis.Worker")
    fresh.goto(f"{address}#steps=1")
    fresh.wait_for_function(DRAWN)


@needs_a_browser
def test_programs_sent_as_plain_text(fresh, address):
    fresh.route("**/page.js", lambda route: route.fulfill(body="let x = 1", content_type="text/plain"))
    fresh.goto(address)
    says(fresh, "The server sends programs as text/plain, which browsers refuse")
    fresh.goto((make_site.WEB / "index.html").as_uri())
    says(fresh, "Browsers start no programs from files")


CARD = """
const zeros = (feeds) => Object.values(feeds)[0].data.map(() => 0);
export const env = { wasm: {} };
export class Tensor { constructor(kind, data) { this.data = data; } }
export const InferenceSession = { create: async () => ({ run: async (feeds) => ({ noise: { data: zeros(feeds) } }) }) };
"""


@needs_a_browser
def test_a_graphics_card_that_computes_wrongly(fresh, address):
    """A stand-in finds nothing but zeros: the processor draws."""
    card = "Object.defineProperty(navigator, 'gpu', { value: { requestAdapter: async () => ({}) } })"
    fresh.add_init_script(card)
    stand_in = {"body": CARD, "content_type": "text/javascript"}
    fresh.route("**/ort.webgpu.min.mjs", lambda route: route.fulfill(**stand_in))
    fresh.goto(f"{address}#kind=webgpu&steps=2&seed=7")
    says(fresh, "Your graphics card computes this network wrongly")
    assert value(fresh, "kind") == "wasm" and "webgpu" not in fresh.url
    wrong = face(fresh)
    fresh.goto(f"{address}?again#steps=2&seed=7")
    fresh.wait_for_function(DRAWN)
    assert face(fresh) == wrong


@needs_a_browser
def test_a_browser_that_computes_wrongly(fresh, address):
    def other_numbers(route):
        models = route.fetch().json()
        models[0]["answer"][5] += 0.5
        route.fulfill(json=models)

    fresh.route("**/models.json", other_numbers)
    fresh.goto(address)
    says(fresh, "This browser computes the network wrongly")


def test_make_serve_sends_types(tmp_path):
    """Whatever the system says of them."""
    kinds = {"js": "text/javascript", "mjs": "text/javascript", "wasm": "application/wasm", "css": "text/css"}
    for name in kinds:
        (tmp_path / f"a.{name}").write_text("")
    server = serve.server(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, kind in kinds.items():
        with urlopen(f"http://127.0.0.1:{server.server_port}/a.{name}") as response:
            assert response.headers["content-type"] == kind
    server.shutdown()
    server.server_close()


# As files -----------------------------------------------------------------------------------


def test_the_loop_that_is_shown_is_the_loop_that_runs():
    page = (make_site.WEB / "index.html").read_text(encoding="utf-8")
    parts = dict(re.findall(r'id="(here|there)">(.*?)</code>', page, re.S))
    here, there = (html.unescape(parts[name]) for name in ("here", "there"))
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
