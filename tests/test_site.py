"""The course as web pages: every link and picture leads somewhere."""

import re

import make_site
import pytest
from lessons import LESSONS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    make_site.make(folder)
    return folder


def test_pages(site):
    names = [path.stem for path in LESSONS]
    assert sorted(path.stem for path in (site / "notebooks").iterdir()) == names
    index = (site / "index.html").read_text(encoding="utf-8")
    assert all(f'href="notebooks/{name}.html"' in index for name in names)


def test_links_lead_somewhere(site):
    for page in site.rglob("*.html"):
        html = re.sub(r"<(script|style).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        targets = re.findall(r'(?:href|src)="([^"#]+)(?:#[^"]*)?"', html)
        local = [t for t in targets if not t.startswith(("http:", "https:", "data:", "mailto:"))]
        missing = [t for t in local if not (page.parent / t).exists()]
        assert not missing, (page.name, missing)
        assert not [t for t in local if t.endswith(".ipynb")]
        images = [image for image in re.findall(r"<img [^>]*>", html) if "base64" not in image]
        assert all(re.search(r'\balt="[^"]+"', image) for image in images)
