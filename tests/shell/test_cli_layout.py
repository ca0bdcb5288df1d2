"""How the editing commands keep to a terminal: its width, its encoding, and nothing in a text that it would obey."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console
from tiny_shell import COLOURS, FAST, SUBJECT, TARGET, fitting, ok, stdout_of

from rome_lens.cli.edit_report import print_measured
from rome_lens.cli.output import stdout
from rome_lens.cli.printing import curve, shorten
from rome_lens.editing.effect import Effect, Measured, Reading

# The shell is under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked")


WIDE = [
    FAST,
    (*FAST, "--neighbour", "the museum 東京 " * 6, "--paraphrase", "is\x1b[31m\n" + "where stands the tower " * 3),
    (*FAST, "--template", "is {}", "--old", "a river stands in the old city of berlin"),
]


@pytest.mark.parametrize("args", WIDE, ids=lambda args: " ".join(args)[-30:].encode("unicode_escape").decode())
@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "colours"])
def test_no_line_is_longer_than_eighty_columns(shell, args, colours):
    fitting(stdout_of(shell.run(*args, **colours)))


def test_long_words_are_shortened(house):
    readings = Reading(0.1, 0.2, " extraordinarily"), Reading(0.3, 0.4, " incomprehensible")
    console = Console(width=80, file=io.StringIO())
    print_measured(console, house.edit, Measured((Effect("prompt", "x" * 99, "", *readings),), None), texts_seed=1)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert lines[1].endswith("0.100 → 0.300  0.200 → 0.400  extr…ly → inco…le")


@pytest.mark.parametrize("args", [FAST, [*FAST, "--json"]], ids=["text", "json"])
def test_an_output_that_is_not_unicode(shell, args):
    assert ok(shell.run(*args, charset="ascii")).isascii()


def test_markup_in_a_prompt_is_text(shell):
    result = shell.run("edit", "[bold]x[/] :smile: where stands {}", *FAST[2:])
    assert result.stdout.splitlines()[0] == f"[bold]x[/] :smile: where stands {SUBJECT} → {TARGET}"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("short", 5, "short"),
        ("longer text", 7, "long…xt"),
        ("longer text", 6, "long…t"),
        ("東京タワー東京", 8, "東京…京"),
        ("a\nb", 3, "a↵b"),
        ("abc", 1, "…"),
    ],
)
def test_shortening(text, width, expected):
    assert shorten(text, width) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([8, 4, 0], "█▅▁"), ([], ""), ([0, 0], ""), ([float("inf")], ""), (range(1000, 0, -1), None)],
)
def test_curves(values, expected):
    drawn = curve(list(values))
    assert drawn == expected if expected is not None else (len(drawn), drawn[0], drawn[-1]) == (40, "█", "▁")


@pytest.mark.parametrize(("columns", "width"), [(None, 120), ("60", 60)])
def test_a_file_has_room_for_more_than_a_terminal(columns, width, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert stdout().width == width
