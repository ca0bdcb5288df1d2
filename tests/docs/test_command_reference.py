"""docs/command-line.md says of every option what the commands themselves say."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
COMMANDS = runpy.run_path(str(DOCS / "commands.py"))
PAGE = (DOCS / "command-line.md").read_text("utf-8")


def test_the_page_says_what_the_commands_say():
    assert COMMANDS["written"](PAGE) == PAGE, "run python docs/commands.py"
    assert "`None`" not in PAGE, "an option that takes a value says what kind: metavar"


def test_a_changed_option_is_seen():
    changed = PAGE.replace("Corrupted copies to average over", "Copies")
    assert changed != PAGE
    assert COMMANDS["written"](changed) == PAGE


@pytest.mark.parametrize("wrong", ["rome-lens", "rome-lens tracer"])
def test_a_command_that_is_not_on_the_page_is_seen(wrong):
    with pytest.raises(KeyError, match="rome-lens trace"):
        COMMANDS["written"](PAGE.replace("<!-- options of rome-lens trace -->", f"<!-- options of {wrong} -->"))


def test_every_option_of_a_command_has_a_row():
    block = PAGE.partition("<!-- options of rome-lens stats -->")[2].partition("<!-- end of options -->")[0]
    expected = "layer positions resume texts field tokens text-length seed bos model backend device dtype"
    expected += " workers shard dask out json"
    assert [line.split("`")[1] for line in block.splitlines() if line.startswith("| `")] == [
        f"--{name}" for name in expected.split()
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A file of 'rome-lens stats'.", "A file of `rome-lens stats`"),
        ("The facts' names, with --layer 3.", "The facts' names, with `--layer` 3"),
        ("Ending with {}; <this> | that", r"Ending with `{}`; &lt;this> \| that"),
    ],
)
def test_what_is_typed_is_marked(text, expected):
    assert COMMANDS["marked"](text) == expected
