"""Option groups: what typer sees of them, what a command gets, and how every command's help reads."""

import re
from dataclasses import MISSING, dataclass, field

import pytest
import typer
from tiny_shell import COLOURS, fitting, ok
from typer.testing import CliRunner

from rome_lens.cli import app
from rome_lens.cli.options import JSON, Panel, argument, filled, takes_options

FRUIT = Panel("The fruit")


@dataclass(frozen=True)
class Fruit:
    name: str = argument("What it is called.", "NAME", default=MISSING)
    price: float = FRUIT("What it costs.", default=MISSING)
    colour: str = FRUIT("How it looks.", "-c", metavar="COLOUR", default="red")
    weight: int | None = FRUIT("How heavy it is.", shown="unknown")
    seeds: list[str] | None = FRUIT("What is in it; repeat it for several.", metavar="SEED")  # noqa: RUF009
    secret: bool = FRUIT("Not shown.", "--secret", default=False, hidden=True)


@dataclass(frozen=True)
class Apple(Fruit):
    colour: str = FRUIT("Green, or red.", metavar="COLOUR", default="green")
    weight: int | None = field(default=150, init=False)
    price: float = 1.0


@pytest.fixture
def run():
    """Runs a command of one group; `got` is what it was given."""

    def run(kind, *words):
        @takes_options
        def command(fruit: kind, loud: bool = JSON) -> None:
            run.got = (fruit, loud)

        one = typer.Typer()
        one.command()(command)
        run.got = None
        run.result = CliRunner().invoke(one, words, env={"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"})
        return run.got

    return run


def test_a_command_gets_its_groups(run):
    assert run(Fruit, "plum", "--price", "2") == (Fruit("plum", 2.0), False)
    words = "plum -c blue --weight 9 --seeds a --seeds b --price 2 --secret --json"
    assert run(Fruit, *words.split()) == (Fruit("plum", 2.0, "blue", 9, ["a", "b"], True), True)


@pytest.mark.parametrize("words", [("plum",), ("--price", "2"), ("plum", "--price", "dear"), ("plum", "--taste", "x")])
def test_what_is_missing_or_wrong_is_refused(run, words):
    assert run(Fruit, *words) is None
    assert run.result.exit_code == 2


def test_a_child_shows_what_it_does_not_decide(run):
    assert run(Apple, "elstar") == (Apple("elstar"), False)
    assert (Apple("elstar").colour, Apple("elstar").weight, Apple("elstar").price) == ("green", 150, 1.0)
    for option in ("--weight", "--price"):
        assert run(Apple, "elstar", option, "3") is None
    run(Apple, "--help")
    panel = run.result.stdout.split("The fruit")[1].split("What comes out")[0]
    assert re.findall(r"--\w+", panel) == ["--colour", "--seeds"]


def test_the_help_is_in_the_fields_order(run):
    run(Fruit, "--help")
    shown = run.result.stdout.split("The fruit")[1].split("What comes out")[0]
    assert re.findall(r"--\w+", shown) == ["--price", "--colour", "--weight", "--seeds"]
    assert "[default: red]" in shown
    assert "[default: (unknown)]" in shown
    assert "Not shown." not in shown


def test_a_command_can_be_called_without_a_shell():
    got = []

    @takes_options
    def command(apple: Apple, json: bool = JSON) -> None:
        got.append((apple, json))

    command(name="elstar", colour="red")
    assert got == [(Apple("elstar", colour="red"), False)]


@dataclass(frozen=True)
class Bought:
    name: str
    weight: int
    colour: str = "red"
    kept: str = field(default="cool", init=False)


def test_settings_are_filled_with_what_was_typed_and_with_what_a_child_decided():
    assert filled(Bought, Apple("elstar")) == Bought("elstar", 150, "green")
    assert filled(Bought, Apple("elstar"), colour="blue", price=3) == Bought("elstar", 150, "blue")


def _commands(command, words=()):
    yield words, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, (*words, name))


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "rome-lens")
def test_every_help_fits_a_terminal_and_says_what_every_option_is(words):
    dumb = {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    printed, short, coloured = (
        fitting(ok(CliRunner().invoke(app, [*words, option], env=dumb | colours)))
        for option, colours in (("--help", {}), ("-h", {}), ("--help", COLOURS))
    )
    assert printed == short
    assert coloured.split() == printed.split()
    assert printed.split()[: 2 + len(words)] == ["Usage:", "rome-lens", *words]
    assert not re.search(r"\b(told|tells|so many|nobody|somebody|anybody)\b", printed)
    shown = [each for each in COMMANDS[words].params if not each.hidden]
    assert [each.name for each in shown if not (each.help or "").endswith((".", "…"))] == []
    for each in shown:
        assert each.param_type_name == "argument" or all(option in printed for option in each.opts)
