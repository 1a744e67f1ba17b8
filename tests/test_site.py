"""The course as web pages: every link and picture leads somewhere."""

import re
import sys

import pytest

from diffusion_utils import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import make_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    make_site.make(folder)
    return folder


def test_pages(site):
    lessons = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(path.stem for path in (site / "notebooks").iterdir()) == lessons
    index = (site / "index.html").read_text()
    assert all(f'href="notebooks/{name}.html"' in index for name in lessons)


def test_links_lead_somewhere(site):
    for page in site.rglob("*.html"):
        html = re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.DOTALL)
        targets = re.findall(r'(?:href|src)="([^"#]+)(?:#[^"]*)?"', html)
        local = [t for t in targets if not t.startswith(("http:", "https:", "data:", "mailto:"))]
        missing = [t for t in local if not (page.parent / t).exists()]
        assert not missing, (page.name, missing)
        assert not [t for t in local if t.endswith(".ipynb")]
        assert all(re.search(r'\balt="[^"]+"', image) for image in re.findall(r"<img [^>]*>", html) if "base64" not in image)
