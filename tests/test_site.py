"""The course as web pages: every link and picture leads somewhere, and nothing comes from elsewhere."""

import json
import re

import make_site
import pytest
from lessons import HELP, LESSONS

NAMES = [path.stem for path in LESSONS]
pytestmark = pytest.mark.skipif(not make_site.PACKAGES.exists(), reason="no make site yet")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    make_site.course(folder)
    return folder / "course"


@pytest.fixture(scope="module")
def pages(site):
    """The text of each page, without programs and styles."""
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    return {page: re.sub(r"(?s)<(script|style).*?</\1>", "", text) for page, text in texts.items()}


def test_pages(site, pages):
    names = [*NAMES, HELP.stem]
    assert sorted(path.stem for path in (site / "notebooks").glob("*.html")) == names
    assert all(f'href="notebooks/{name}.html"' in pages[site / "index.html"] for name in names)


def test_ways_through_the_lessons(site, pages):
    for i, name in enumerate(NAMES):
        text = pages[site / "notebooks" / f"{name}.html"]
        footer = text[text.index("md-footer") :]
        for neighbour in NAMES[max(0, i - 1) : i] + NAMES[i + 1 : i + 2]:
            assert f'href="{neighbour}.html"' in footer
        assert 'class="md-nav md-nav--secondary"' in text and "#on-your-own" in text  # the table of contents


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "notes.txt").touch()
    with pytest.raises(SystemExit, match="was not made here"):
        make_site.make(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["course", "notes.txt"]


def test_search(site):
    text = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    found = json.loads(text)["docs"]
    assert "Copied!" not in text
    places = {entry["location"].split("#")[0] for entry in found}
    assert places >= {f"notebooks/{name}.html" for name in [*NAMES, HELP.stem]}


def test_links_lead_somewhere(site, pages):
    for page, html in pages.items():
        if page.name == "404.html":  # its links begin at the root of a server
            continue
        targets = re.findall(r'(?:href|src)="([^"#]+)(?:#[^"]*)?"', html)
        local = [t for t in targets if not t.startswith(("http:", "https:", "data:", "mailto:"))]
        ours = [t for t in local if not t.endswith("../index.html")]  # the live page, which is not built here
        missing = [t for t in ours if not (page.parent / t).exists()]
        assert not missing, (page.name, missing)
        assert not [t for t in local if t.endswith(".ipynb")]


def test_links_lead_to_places(pages):
    """A link to a part of a page finds it there."""
    for page, html in pages.items():
        for target, place in re.findall(r'href="([^":#]*)#([^"]+)"', html):
            there = pages.get((page.parent / target).resolve() if target else page, "")
            assert f'id="{place}"' in there or not there, (page.name, target, place)


def test_pictures_have_a_text(pages):
    for page, html in pages.items():
        for image in re.findall(r"<img [^>]*>", html):
            assert re.search(r'\balt="(?!No description)[^"]+"|icon.svg', image), (page.name, image[:200])


def test_nothing_comes_from_elsewhere(site, pages):
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found = re.search(r'<(?:script|img|iframe)[^>]* src="https?:|<link[^>]* href="https?:', text)
        assert not found, page.name
        assert "widget-state+json" not in text and "require.min.js" not in text


def test_what_nobody_needs_to_read_unfolds(site, pages):
    text = pages[site / "notebooks" / "02_noise_schedule.html"]
    assert text.count("<summary>Set-up</summary>") == text.count("<summary>Imports</summary>") == 1
    assert text.index("<summary>Set-up</summary>") < text.index("subprocess") < text.index("</details>")


def test_sliders_leave_their_picture(site, pages):
    text = pages[site / "notebooks" / "05_sampling.html"]
    assert "Saved with <b>steps</b> 20, <b>seed</b> 1." in text
    (picture,) = re.findall(r'<div class="still">.*?<img alt="[^"]+" src="data:image/png;base64,', text, re.S)
    assert "interactive(children" not in text
