"""The built documentation, page by page: in a browser, and its links. `make docs` builds it first."""

import shutil
from contextlib import contextmanager
from functools import cache, partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).parents[2] / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")) if SITE.is_dir() else []
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.pages, pytest.mark.skipif(not PAGES, reason="the documentation is not built: make docs")]


class Links(HTMLParser):
    """What a page points to, and the places that can be pointed to."""

    def __init__(self):
        super().__init__()
        self.found, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.found += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.ids |= {attributes[name] for name in ("id", "name") if attributes.get(name)}


@cache
def read(page):
    links = Links()
    links.feed((SITE / page).read_text("utf-8"))
    return links


@pytest.mark.parametrize("page", PAGES)
def test_no_link_is_dead(page):
    for link in read(page).found:
        url = urlsplit(link)
        if url.scheme or url.netloc or page == "404.html":
            continue
        target = ((SITE / page).parent / unquote(url.path)).resolve() if url.path else (SITE / page).resolve()
        target = target / "index.html" if target.is_dir() else target
        assert target.is_file(), link
        if url.fragment and target.suffix == ".html" and not url.fragment.startswith("__"):
            assert unquote(url.fragment) in read(target.relative_to(SITE.resolve()).as_posix()).ids, link


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served():
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(SITE))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if BROWSER is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as started, served() as address:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running, address
        running.close()


def load(opened, address):
    """Go to a page, and wait until its figures are drawn."""
    opened.goto(address.removesuffix("index.html"), wait_until="load")
    opened.wait_for_function("!document.querySelector('.plotly-graph-div:not(.js-plotly-plot)')", timeout=10_000)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_shows_without_errors(page, browser):
    running, address = browser
    opened = running.new_page(viewport={"width": 1300, "height": 900})
    wrong = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("requestfailed", lambda request: wrong.append(f"failed: {request.url}"))
    opened.on("response", lambda got: wrong.append(f"{got.status}: {got.url}") if got.status >= 400 else None)
    load(opened, f"{address}/{page}")
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        for width in (1300, 390):
            opened.set_viewport_size({"width": width, "height": 900})
            # The theme's drawers slide: a page may be wider until they have.
            opened.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=5_000)
    opened.close()
    assert wrong == []


_DRAWN = """() => {
    const resolved = name => {
        const probe = document.body.appendChild(document.createElement('p'))
        probe.style.color = `var(${name})`
        return getComputedStyle(probe).color
    }
    const page = ['--md-default-fg-color', '--md-default-fg-color--light'].map(resolved)
    return [...document.querySelectorAll('.figure')].map(figure => ({
        page,
        ground: getComputedStyle(figure.querySelector('.main-svg')).backgroundColor,
        texts: [...figure.querySelectorAll('.main-svg text')].map(text => getComputedStyle(text).fill),
    }))
}"""


@pytest.mark.parametrize("page", [page for page in PAGES if 'class="figure"' in (SITE / page).read_text("utf-8")])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_colours_of_their_page(page, scheme, browser):
    running, address = browser
    opened = running.new_page(color_scheme=scheme)
    load(opened, f"{address}/{page}")
    figures = opened.evaluate(_DRAWN)
    opened.close()
    assert figures
    for figure in figures:
        assert figure["ground"] == "rgba(0, 0, 0, 0)"
        assert figure["texts"]
        assert set(figure["texts"]) <= set(figure["page"])
