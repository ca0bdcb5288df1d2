"""The page of a trace in a real browser: hovered, clicked, moved through by keyboard; wide, narrow, light and dark."""

import shutil

import pytest

import rome_lens as rl
from rome_lens.figures.explorer import explorer_page
from rome_lens.figures.heat_map import HeatMap
from rome_lens.loading.tiny import tiny_model

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [pytest.mark.pages, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]


@pytest.fixture(scope="module")
def traced():
    model = tiny_model("auto")
    streams = ("resid", "mlp", "attn", "heads")
    return rl.causal_trace(
        model, "the tower is in", subject="the tower", noise=1.0, samples=2, window=1, streams=streams
    )


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(chromium, traced, tmp_path):
    """The page, and at the end that nothing went wrong on it."""
    traced.write_html(tmp_path / "trace.html")
    page, wrong = chromium.new_page(viewport={"width": 1300, "height": 900}), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(f"file://{tmp_path}/trace.html")
    yield page
    page.close()
    assert wrong == []


def panel(page):
    return page.locator("#panel").inner_text()


def cell(page, grid, row, layer):
    return page.locator("table.cells").nth(grid).locator("tbody tr").nth(row).locator("td").nth(layer)


def shown(traced, stream, layer, column):
    return f"{float(traced.scores[stream][layer, column]):.4f}"


def test_the_pointer_shows_what_a_cell_says(opened, traced):
    assert "What brings the answer back" in panel(opened)
    cell(opened, 1, 1, 0).hover()
    seen = panel(opened)
    assert seen.startswith("Layer 0, “tower*”, position 1")
    for stream in ("resid", "mlp", "attn"):
        assert f"= {shown(traced, stream, 0, 1)}" in seen
        token, probability = traced.says(stream, 0, 1)[0]
        assert f'"{token}" {probability:.3f}' in seen
    opened.locator("h1").hover()
    assert "What brings the answer back" in panel(opened)


def test_a_click_holds_a_cell_until_it_is_let_go(opened, traced):
    cell(opened, 0, 2, 1).click()
    opened.locator("h1").hover()
    assert panel(opened).startswith("Layer 1, “is”, position 2")
    chosen = opened.locator('td[aria-selected="true"]')
    assert chosen.count() == 3  # in the heads' grid no row stands for a token
    opened.keyboard.press("Escape")
    assert chosen.count() == 0
    assert "What brings the answer back" in panel(opened)
    cell(opened, 3, 1, 1).click()
    assert panel(opened).startswith("Layer 1, head 1")
    assert shown(traced, "heads", 1, 1) in panel(opened)
    assert chosen.count() == 1


def test_a_token_and_a_layer_are_compared_over_grids(opened, traced):
    opened.get_by_role("button", name="token “tower*”, position 1").first.click()
    seen = panel(opened)
    assert seen.startswith("All layers at “tower*”, position 1")
    for stream in ("resid", "mlp", "attn"):
        layer, _ = traced.peak(stream, positions=range(1, 2))
        assert f"most at layer {layer}: {shown(traced, stream, layer, 1)}" in seen
    assert opened.locator("#panel polyline").count() == 3
    assert opened.locator("#panel circle").count() == 3 * traced.scores["mlp"].shape[0]
    opened.get_by_role("button", name="layer 1", exact=True).nth(1).click()
    assert panel(opened).startswith("Layer 1 at all tokens")
    assert opened.locator("#panel circle").count() == 3 * len(traced.tokens)
    opened.get_by_role("button", name="layer 1", exact=True).nth(3).click()
    assert panel(opened).startswith("Layer 1 at all heads")


def test_the_keyboard_reaches_every_cell(opened, traced):
    layer, row = traced.heat_maps()[0].peak
    opened.keyboard.press("Tab")
    opened.keyboard.press("ArrowUp" if row else "ArrowDown")
    row += -1 if row else 1
    assert panel(opened).startswith(f"Layer {layer}, “{traced.marked_tokens()[row]}”, position {row}")
    for _ in range(row + 1):
        opened.keyboard.press("ArrowUp")
    assert panel(opened).startswith(f"Layer {layer} at all tokens")
    opened.keyboard.press("ArrowDown")
    for _ in range(layer + 1):
        opened.keyboard.press("ArrowLeft")
    assert panel(opened).startswith(f"All layers at “{traced.marked_tokens()[0]}”, position 0")
    opened.keyboard.press("Enter")
    assert opened.locator('button[aria-pressed="true"]').count() == 3
    # One stop a grid: the next is the next grid's.
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.closest('table').getAttribute('aria-label')") == "MLP outputs"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_it_fits_every_screen(opened, scheme, width):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert cell(opened, 0, 0, 0).bounding_box()["width"] >= 6
    ground = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 27)"}[scheme]


def test_before_and_after_an_edit_stand_side_by_side(chromium, traced, tmp_path):
    from dataclasses import replace

    after = replace(traced, edits=("the tower is in → rome",), unedited=traced, low=traced.low / 2)
    after.write_html(tmp_path / "edited.html")
    page = chromium.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"file://{tmp_path}/edited.html")
    names = page.locator("table.cells").evaluate_all("tables => tables.map(table => table.getAttribute('aria-label'))")
    assert names[:4] == [f"{n}, {s} the edit" for n in ("residual state", "MLP outputs") for s in ("before", "after")]
    left, right = (page.locator("table.cells").nth(index).bounding_box() for index in (0, 1))
    assert left["y"] == right["y"]
    cell(page, 0, 1, 0).hover()
    assert panel(page).count("the edit") == 6
    assert "edited: the tower is in → rome" in page.locator("header").inner_text()
    page.close()


def test_a_deep_model_on_a_phone_scrolls_in_its_grid(chromium, tmp_path):
    scores = [[0.1, 0.2 + layer / 100] for layer in range(48)]
    labels = {"title": "Restoring the MLP outputs", "layer_title": "layer"}
    deep = HeatMap("mlp", scores, ["a*", "b"], low=0.1, high=0.9, answer="x", **labels)
    made = explorer_page({"": [deep]}, heading="a b", lines=[], notes=[], measure="p(x)", settings={})
    (tmp_path / "deep.html").write_text(made)
    page = chromium.new_page(viewport={"width": 390, "height": 800})
    page.goto(f"file://{tmp_path}/deep.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert cell(page, 0, 0, 47).bounding_box()["width"] >= 5
    page.close()
