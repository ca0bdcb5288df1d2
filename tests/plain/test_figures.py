import base64
import errno
import html
import io
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused import refused
from rich.cells import cell_len
from rich.console import Console

from rome_lens import storage
from rome_lens.errors import ArtefactError
from rome_lens.figures import HeatMap, render_heat_map
from rome_lens.figures.files import write_html, write_png
from rome_lens.figures.plotly_figure import heat_map_figure
from rome_lens.figures.terminal_colours import colour_ramp
from rome_lens.figures.visible import visible

NASTY = ["<b>bold</b>*", "<script>alert(1)</script>", "$x^2$ and $y$", "&lt;", "%{z}", "[red]no[/red]", ":smile:"]
_ANY_TEXT = st.text(st.characters(codec=None), max_size=12)


def _map(scores=None, labels=("The*", " Eiffel*", " Tower*", " is"), **changes):
    scores = scores if scores is not None else _slope(6, len(labels))
    made = HeatMap("mlp", scores, list(labels), 0.0, high=1.0, answer=" Paris", title="Restoring", layer_title="layer")
    return replace(made, **changes)


def _slope(layers, tokens):
    """Scores that all differ and grow with layer and position."""
    cells = layers * tokens
    return [[(layer * tokens + pos) / cells for pos in range(tokens)] for layer in range(layers)]


def _printed(heat_map, *, width=80, console_width=200, **console):
    file = io.StringIO()
    settings_ = {"color_system": None, "force_terminal": False, "legacy_windows": False, "_environ": {}, **console}
    Console(file=file, width=console_width, **settings_).print(render_heat_map(heat_map, width=width))
    return file.getvalue()


def _lines(heat_map, **console):
    text = _printed(heat_map, **console)
    assert text.endswith("\n")
    return text[:-1].split("\n")


# --- the record -----------------------------------------------------------------------------------------------------


def test_heads_have_a_scale_of_their_own():
    """One head's effect is small beside the clean run's probability, to which the others' shades reach."""
    heads = _map([[0.1, 0.12], [0.1, 0.3]], ["head 0", "head 1"], stream="heads", low=0.1, of_heads=True)
    tokens = _map([[0.1, 0.2], [0.1, 0.3]], ["a", "b*"])
    assert (heads.top, tokens.top) == (0.3, 1.0)
    assert heads.level(0.2) == pytest.approx(0.5)
    figure = heat_map_figure([tokens, heads], title="t")
    assert [(panel.zmin, panel.zmax) for panel in figure.data] == [(0.0, 1.0), (0.1, 0.3)]
    assert figure.data[0].hovertemplate.startswith("token “")
    assert figure.data[1].hovertemplate.startswith("%{customdata[0]}<br>layer")
    (alone,) = heat_map_figure([heads], title="t").data
    assert (alone.zmin, alone.zmax) == (0.1, 0.3)
    *_, scale, peak = _lines(heads)
    assert scale.endswith(" 0.300 peak (high 1.000)")
    assert peak == '× peak: layer 1, p = 0.300, "head 1"'


def test_the_peak_is_the_highest_cell_and_the_first_of_several():
    assert _map([[0.1, 0.2], [0.7, 0.3]], labels="ab").peak == (1, 0)
    assert _map([[0.1, 0.7], [0.7, 0.3]], labels="ab").peak == (0, 1)


def test_the_scale_runs_from_low_to_the_higher_of_high_and_peak():
    weak = _map([[0.1, 0.2], [0.3, 0.0]], labels="ab", low=0.1, high=0.5)
    assert weak.top == 0.5
    assert [weak.level(p) for p in (0.0, 0.1, 0.3, 0.5)] == pytest.approx([0, 0, 0.5, 1])
    strong = _map([[0.1, 0.9], [0.3, 0.0]], labels="ab", low=0.1, high=0.5)
    assert strong.top == 0.9
    assert strong.level(0.5) == pytest.approx(0.5)


def test_a_flat_grid_and_nan_are_drawn():
    nan = float("nan")
    flat = _map([[0.2, 0.2]], labels="ab", low=0.2, high=0.2)
    holed = _map([[nan, 0.2], [0.3, nan]], labels="ab", low=0.1, high=0.2)
    assert flat.level(0.2) == 0.0
    assert holed.peak == (1, 0)
    for heat_map in (flat, holed):
        assert "peak" in _printed(heat_map)
        assert heat_map_figure([heat_map], title="t").data


def test_a_grid_that_does_not_fit_its_labels_is_told():
    said = refused(ValueError, _map, [[0.1, 0.2], [0.3]], labels="ab")
    assert "layer 1 has 1 scores for 2 labels: scores are [layer][pos]" in said
    assert "a heat map needs a cell: got 0 layers and 2 labels" in refused(ValueError, _map, [], labels="ab")


# --- visible text ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (" Paris", " Paris"),
        ("a\nb\tc\r", "a↵b⇥c␍"),
        ("\x1b[31mred\x07\x7f", "␛[31mred␇␡"),
        ("\x9b1m", "\\x9b1m"),
        ("\u202eevil\u200b", "\\u202eevil\\u200b"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("", "∅"),
        ("   ", "␣␣␣"),
        ("  a ", "␣␣a␣"),
        ("\u0301", "◌\u0301"),
        ("漢字é🗼", "漢字é🗼"),
        ("<b>&amp;$x$[red]", "<b>&amp;$x$[red]"),
    ],
)
def test_what_cannot_be_seen_is_made_visible(raw, shown):
    assert visible(raw) == shown


@given(_ANY_TEXT)
def test_visible_text_is_printable_and_stays_as_it_is(raw):
    shown = visible(raw)
    assert shown.isprintable()
    assert visible(shown) == shown


# --- the terminal ---------------------------------------------------------------------------------------------------


def test_the_terminal_map_as_a_whole():
    scores = [[0.0, 0.3, 0.0], [0.1, 0.8, 0.5], [0.0, 0.0, 1.0]]
    assert _lines(_map(scores, labels=["A*", " B*", " c"], low=0.02), width=60) == [
        "Restoring",
        " A*│  ░░  ",
        " B*│▒▒██  ",
        "  c│  ▒▒×█",
        "    0   2",
        "    layer",
        "p(Paris)  low 0.020  ░░░░▒▒▒▒▒▓▓▓▓▓█████ 1.000 high",
        '× peak: layer 2, p = 1.000, token " c"',
    ]


def test_shades_follow_the_scores_where_there_is_no_colour():
    levels = [[0.0], [0.04], [0.06], [0.3], [0.6], [0.8], [0.1]]
    lines = _lines(_map(levels, labels=["t"]))
    assert lines[1] == "t│    ░░▒▒▓▓×█░░"


def test_shades_are_ascii_where_the_encoding_is():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")
    heat_map = _map([[0.0, 0.3], [0.6, 0.8]], labels=["漢字", " Sagrada Família*"], answer="café")
    Console(file=file, width=60, color_system=None).print(render_heat_map(heat_map, width=60))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "\\u6f22\\u5b57|  **\n" in text
    assert "Fam\\xedlia*|::x#\n" in text
    assert "p(caf\\xe9)" in text
    assert "x peak: layer 1" in text


@pytest.mark.parametrize("no_colour", [{"color_system": None}, {"color_system": "truecolor", "no_color": True}])
def test_without_colour_there_is_no_escape_for_one(no_colour):
    text = _printed(_map(), force_terminal=no_colour["color_system"] is not None, **no_colour)
    assert not re.search(r"\x1b\[[0-9;]*[34]8;", text)
    assert "█" in text


def test_sixteen_colours_get_shades():
    assert "█" in _printed(_map(), force_terminal=True, color_system="standard")


@pytest.mark.parametrize(("system", "code"), [("truecolor", "48;2;"), ("256", "48;5;")])
def test_with_colours_cells_are_backgrounds(system, code):
    text = _printed(_map(), force_terminal=True, color_system=system)
    assert text.count(code) >= 24
    assert not set("░▒▓█") & set(text)


@pytest.mark.parametrize("stream", ["resid", "mlp", "attn", "another"])
@pytest.mark.parametrize("system", ["truecolor", "256"])
def test_ramps_only_darken(stream, system):
    ramp = colour_ramp(stream, system)
    light = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (colour.get_truecolor() for colour in ramp)]
    assert all(earlier > later for earlier, later in pairwise(light))
    assert light[0] > 240 > 80 > light[-1]


def _cells(line, label="t"):
    assert line.startswith(label + "│")
    return line[len(label) + 1 :]


@pytest.mark.parametrize(
    ("layers", "per_cell", "cell_width"), [(12, 1, 2), (30, 1, 2), (48, 1, 1), (78, 1, 1), (100, 2, 1)]
)
def test_layers_are_fitted_by_narrower_cells_and_then_by_bins(layers, per_cell, cell_width):
    lines = _lines(_map(_slope(layers, 1), labels=["t"]), width=80)
    assert len(_cells(lines[1])) == -(-layers // per_cell) * cell_width
    told = [line for line in lines if "one column: the highest of" in line]
    assert [line.split("highest of ")[1] for line in told] == ([f"{per_cell} layers"] if per_cell > 1 else [])


def test_a_bin_shows_the_highest_of_its_layers():
    scores = [[0.0]] * 100
    scores[51] = [0.6]
    scores[98] = [1.0]
    cells = _cells(_lines(_map(scores, labels=["t"]), width=80)[1])
    assert len(cells) == 50
    assert cells.strip() == "▓" + " " * 23 + "×"
    assert cells.index("▓") == 25


def test_a_long_label_gives_way_before_layers_are_binned():
    lines = _lines(_map(_slope(30, 1), labels=["a very long label"]), width=40)
    assert lines[1].startswith("a very l…│")
    assert len(lines[1]) == 40
    assert "highest of" not in "\n".join(lines)


@pytest.mark.parametrize("layers", [1, 5, 12, 30, 61, 100])
@pytest.mark.parametrize("width", [40, 80, 120])
def test_axis_numbers_stand_under_their_layers(layers, width):
    scores = [[0.0] for _ in range(layers)]
    lines = _lines(_map(scores, labels=["t"]), width=width)
    numbers = [(match.start() - 2, int(match.group())) for match in re.finditer(r"\d+", lines[2])]
    assert numbers[0] == (0, 0)
    for column, layer in numbers:
        peak = [[0.0] for _ in range(layers)]
        peak[layer] = [1.0]
        assert _cells(_lines(_map(peak, labels=["t"]), width=width)[1]).index("×") == column
    assert all(b - a >= 2 for (a, _), (b, _) in pairwise(numbers))


def test_labels_are_aligned_by_the_columns_they_take():
    lines = _lines(_map(_slope(2, 3), labels=["漢字漢字", "ab", "é"]))
    assert [line.split("│")[0] for line in lines[1:4]] == ["漢字漢字", "      ab", "       é"]


@pytest.mark.parametrize("length", [9, 30])
def test_a_wide_label_is_cut_between_characters(length):
    lines = _lines(_map(_slope(2, 1), labels=["漢" * length]), width=40)
    assert lines[1].split("│")[0] == "漢" * 6 + "…"


def test_repeated_labels_stay_rows_of_their_own():
    assert len([line for line in _lines(_map(labels=[" a"] * 4)) if line.startswith(" a│")]) == 4


def test_the_peak_line_names_layer_probability_and_token():
    lines = _lines(_map([[0.1, 0.2], [0.625, 0.3]], labels=["A\n*", " b"], low=0.1))
    assert lines[-1] == '× peak: layer 1, p = 0.625, token "A↵*"'


def test_the_scale_line_names_both_ends():
    lines = _lines(_map([[0.1, 0.2]], labels="ab", low=0.1, high=0.9))
    assert re.fullmatch(r"p\(Paris\)  low 0\.100  +░+▒+▓+█+ 0\.900 high", lines[-2])
    lines = _lines(_map([[0.1, 0.95]], labels="ab", low=0.1, high=0.9))
    assert lines[-2].endswith("█ 0.950 peak (high 0.900)")


@pytest.mark.parametrize("label", NASTY)
def test_markup_is_shown_in_the_terminal(label):
    heat_map = _map(labels=[label, "b"], answer=label, title=label, layer_title=label)
    text = _printed(heat_map, force_terminal=True, color_system="truecolor")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert plain.count(label) == 4


def test_an_escape_in_a_label_does_not_reach_the_terminal():
    text = _printed(_map(labels=["\x1b]0;title\x07", "\x1b[2Jx"], title="\x1b[1m", answer="\x9b31m"))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "␛[2Jx" in text


def test_right_to_left_labels_are_closed_in():
    line = _lines(_map(labels=["שלום", "b"]))[1]
    assert line.startswith("\u200eשלום\u200e│")


def test_a_narrower_console_wins():
    assert max(cell_len(line) for line in _lines(_map(_slope(100, 2), labels="ab"), width=300, console_width=50)) <= 50


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(_ANY_TEXT, min_size=1, max_size=5),
    text=_ANY_TEXT,
    layers=st.integers(1, 110),
    width=st.integers(1, 130),
    system=st.sampled_from([None, "256", "truecolor"]),
)
def test_no_text_breaks_the_lines_or_the_width(labels, text, layers, width, system):
    heat_map = _map(_slope(layers, len(labels)), labels=labels, answer=text, title=text, layer_title=text)
    printed = _printed(heat_map, width=width, color_system=system, force_terminal=system is not None)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    lines = plain[:-1].split("\n")
    assert plain.splitlines() == lines  # no other line end hides in a label
    assert all(cell_len(line) <= width for line in lines)
    assert all(character.isprintable() or character in "\n\u200e" for character in plain)
    plain.encode()
    if width >= 30:
        titled = _map(_slope(layers, len(labels)), labels=labels)
        rows = _lines(titled, width=width)[1 : 1 + len(labels)]
        assert len({cell_len(row) for row in rows}) == 1
        assert len({cell_len(row.rpartition("│")[0]) for row in rows}) == 1  # all cells begin in one column


# --- plotly ---------------------------------------------------------------------------------------------------------


def _three(**changes):
    return [_map(stream=stream, **changes) for stream in ("resid", "mlp", "attn")]


def test_a_panel_a_stream_in_the_colours_of_the_paper():
    figure = heat_map_figure(_three(), title="T")
    assert [trace.type for trace in figure.data] == ["heatmap"] * 3
    deepest = [trace.colorscale[-1][1] for trace in figure.data]
    assert deepest == ["rgb(63,0,125)", "rgb(0,68,27)", "rgb(103,0,13)"]
    assert len({trace.xaxis for trace in figure.data}) == 3


def test_tokens_go_down_and_layers_across():
    scores = _slope(6, 4)
    (trace,) = heat_map_figure([_map(scores)], title="T").data
    figure = heat_map_figure([_map(scores)], title="T")
    assert [len(trace.z), len(trace.z[0])] == [4, 6]
    assert trace.z[3][5] == scores[5][3]
    top, bottom = figure.layout.yaxis.range[1], figure.layout.yaxis.range[0]
    assert top == -0.5
    assert bottom == 3.5


def test_all_panels_share_a_scale_that_holds_every_score():
    maps = [_map([[0.1, 0.3]], labels="ab", low=0.05, high=0.5), _map([[0.1, 0.9]], labels="ab", low=0.05, high=0.5)]
    assert {(trace.zmin, trace.zmax) for trace in heat_map_figure(maps, title="T").data} == {(0.05, 0.9)}


def test_the_colour_bar_says_whose_probability_it_is():
    figure = heat_map_figure(_three(), title="T")
    assert [trace.colorbar.title.text for trace in figure.data] == ["p(Paris)"] * 3
    assert figure.data[0].colorbar.tickvals[0] == 0.0


def test_repeated_tokens_are_rows_of_their_own():
    figure = heat_map_figure([_map(labels=[" a"] * 4)], title="T")
    assert list(figure.data[0].y) == [0, 1, 2, 3]
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2, 3]
    assert len(figure.layout.yaxis.ticktext) == 4


def test_the_peak_is_framed_and_named():
    figure = heat_map_figure([_map([[0.1, 0.2], [0.625, 0.3]], labels=["A*", "b"])], title="T")
    (frame,) = figure.layout.shapes
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (0.5, 1.5, -0.5, 0.5)
    assert "peak 0.625: layer 1, “A*”" in figure.layout.annotations[0].text


def test_hovering_tells_token_layer_probability_and_effect():
    (trace,) = heat_map_figure([_map([[0.1, 0.2], [0.6, 0.3]], labels=["A*", "b"], low=0.1)], title="T").data
    assert list(trace.customdata[0][1]) == ["A*", 0, pytest.approx(0.5)]
    for field in ("%{customdata[0]}", "%{customdata[1]}", "%{x}", "p(Paris) = %{z", "%{customdata[2]"):
        assert field in trace.hovertemplate


def test_labels_stand_once_where_panels_agree_and_everywhere_where_not():
    agreeing = heat_map_figure(_three(), title="T").layout
    assert [axis.showticklabels for axis in (agreeing.yaxis, agreeing.yaxis2, agreeing.yaxis3)] == [True, False, False]
    other = heat_map_figure([_map(), _map(labels=["x", "y", "z", "w"])], title="T").layout
    assert [axis.showticklabels for axis in (other.yaxis, other.yaxis2)] == [True, True]


def test_five_panels_take_two_rows():
    figure = heat_map_figure([*_three(), _map(), _map()], title="T")
    assert len(figure.data) == 5
    assert figure.layout.height > 1.7 * heat_map_figure(_three(), title="T").layout.height


def test_a_figure_of_nothing_is_told():
    assert "a figure needs a heat map: got none" in refused(ValueError, heat_map_figure, [], title="T")


def _texts(value):
    """Every text of a figure that plotly draws."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("raw", [*NASTY, "a\nb", "<a href='javascript:x'>", "&#36;x&#36;"])
def test_no_text_is_read_as_markup_or_formula(raw):
    maps = [_map(labels=[raw, "b"], answer=raw, title=raw, layer_title=raw)]
    texts = list(_texts(json.loads(heat_map_figure(maps, title=raw).to_json())))
    shown = visible(raw)
    assert sum(shown in html.unescape(text) for text in texts) >= 7
    for text in texts:
        bare = re.sub(r'<br>|<span style="[a-z0-9:;#-]*">|</span>|<extra></extra>', "", text)
        assert "<" not in bare
        assert "$" not in bare
        assert not re.search(r"%\{(?!customdata\[\d\]|x\}|z:)", bare)
        assert not re.search(r"&(?!(amp|lt|gt|#36|#37);)", bare)
        assert "\n" not in bare


def test_a_leading_space_is_kept():
    assert heat_map_figure([_map(labels=[" a", "b"])], title="T").layout.yaxis.ticktext[0] == "\u00a0a"


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- files ----------------------------------------------------------------------------------------------------------


def test_the_html_stands_alone(tmp_path):
    path = tmp_path / "figure.html"
    write_html(heat_map_figure(_three(labels=NASTY), title="</title><script>x</script>"), path)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert len(page) > 1_000_000  # plotly.js itself
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", page)
    assert "<title>&lt;/title&gt;&lt;script&gt;x&lt;/script&gt;</title>" in page
    assert "<script>alert(1)" not in page
    assert '"showSendToCloud": false' in page
    assert _names(tmp_path) == ["figure.html"]


def test_the_same_figure_gives_the_same_page(tmp_path):
    for name in ("a", "b"):
        write_html(heat_map_figure(_three(), title="T"), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_is_replaced_and_a_link_followed(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    storage.write_whole(link, b"new")
    assert target.read_bytes() == b"new"
    assert link.is_symlink()
    assert _names(tmp_path) == ["link", "target"]


def test_the_longest_file_name_is_written(tmp_path):
    storage.write_whole(tmp_path / ("n" * 255), b"x")
    assert len(_names(tmp_path)) == 1


def test_a_missing_folder_is_told(tmp_path):
    path = tmp_path / "none" / "figure.html"
    said = refused(ArtefactError, write_html, heat_map_figure(_three(), title="T"), path)
    assert said == f"cannot write '{path}': there is no folder '{path.parent}'; make it first"
    assert not (tmp_path / "none").exists()


def test_a_folder_in_place_of_a_file_is_told(tmp_path):
    assert "it is a folder; name a file in it" in refused(ArtefactError, storage.write_whole, tmp_path, b"x")
    assert _names(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        storage.write_whole(pipe, b"content")
        assert pipe.is_fifo()
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert _names(tmp_path) == ["pipe"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no room is left on the disk; free some, or choose another place"),
        (errno.EACCES, "no permission to write in '.*'; choose another place"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, number, message, call):
    path = tmp_path / "figure.html"
    path.write_text("old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.os, "fsync", fail) if call == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    assert re.search(message, refused(ArtefactError, write_html, heat_map_figure(_three(), title="T"), path))
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["figure.html"]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        storage.write_whole(tmp_path / "x", b"x")
    assert _names(tmp_path) == []


def test_a_null_character_in_a_path_is_told():
    assert "cannot write 'a\\x00b'" in refused(ArtefactError, storage.write_whole, "a\x00b", b"x")


def _no_png(folder):
    """What is said where no PNG can be drawn; nothing is written."""
    said = refused(ArtefactError, write_png, heat_map_figure(_three(), title="T"), folder / "figure.png")
    assert _names(folder) == []
    return said


def test_png_without_kaleido_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    said = _no_png(tmp_path)
    assert "pip install 'rome-lens[images]'" in said
    assert "Chrome or Chromium" in said


def test_png_without_a_browser_says_so(tmp_path, monkeypatch):
    pytest.importorskip("kaleido", reason="the extra 'images' is not installed")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-such-browser"))
    assert "a Chrome or Chromium browser, and none was found: install one" in _no_png(tmp_path)


def test_png_with_a_browser_that_fails_says_so(tmp_path, monkeypatch):
    kaleido = pytest.importorskip("kaleido", reason="the extra 'images' is not installed")

    def fail(*_, **__):
        raise RuntimeError("The browser seemed to close\nimmediately.", "more")

    monkeypatch.setattr(kaleido, "calc_fig_sync", fail)
    expected = "the browser that draws a PNG failed: The browser seemed to close immediately; try an HTML figure"
    assert _no_png(tmp_path) == expected


def test_the_browser_is_not_asked_to_fetch_anything(tmp_path, monkeypatch):
    kaleido = pytest.importorskip("kaleido", reason="the extra 'images' is not installed")
    asked = {}
    monkeypatch.setattr(kaleido, "calc_fig_sync", lambda *_, **given: asked.update(given) or b"png")
    write_png(heat_map_figure(_three(), title="T"), tmp_path / "figure.png")
    assert asked["kopts"] == {"mathjax": False}
    assert (tmp_path / "figure.png").read_bytes() == b"png"


def _browser():
    names = ("chromium", "google-chrome", "chrome", "chromium-browser", "google-chrome-stable")
    return os.environ.get("BROWSER_PATH") or next((found for name in names if (found := shutil.which(name))), None)


def test_a_png_is_a_picture_of_the_figure(tmp_path):
    pytest.importorskip("kaleido", reason="the extra 'images' is not installed")
    if _browser() is None:
        pytest.skip("no Chrome or Chromium here")
    figure = heat_map_figure(_three(labels=NASTY), title="T")
    write_png(figure, tmp_path / "figure.png")
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(base64.b64decode("iVBORw0KGgo="))
    width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    assert (width, height) == (3 * figure.layout.width, 3 * figure.layout.height)
    assert _names(tmp_path) == ["figure.png"]
