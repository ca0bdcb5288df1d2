"""The `rome-lens` command: its subcommands, and one clear line for whatever goes wrong."""

import io
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rome_lens.cli.apply import apply
from rome_lens.cli.ask import ask
from rome_lens.cli.average import averages
from rome_lens.cli.doctor import doctor
from rome_lens.cli.edit import edit
from rome_lens.cli.eval import evaluation
from rome_lens.cli.models import models
from rome_lens.cli.output import say
from rome_lens.cli.show import show
from rome_lens.cli.stats import statistics
from rome_lens.cli.suggest import suggest
from rome_lens.cli.trace import trace
from rome_lens.errors import RomeLensError
from rome_lens.version import __version__


class _OneLineErrors(TyperGroup):
    """Errors of the user's and of ours end in one line on stderr; only bugs show a traceback."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _let_paragraphs_flow(self)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # What the output's encoding does not have is escaped, as stderr does it, instead of a traceback.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            code = super().main(*args, standalone_mode=False, **kwargs)
        except RomeLensError as error:
            say(str(error))
            sys.exit(error.exit_code)
        except typer.Abort:
            say("interrupted")
            sys.exit(130)
        except BrokenPipeError:
            # Whoever read our output has gone; Python must not complain about that when it closes stdout.
            sys.stdout = None
            sys.exit(1)
        except Exception as error:
            # typer brings its own copy of click, so its usage errors are known by what they can do.
            if not hasattr(error, "format_message"):
                raise
            context = getattr(error, "ctx", None)
            command = "rome-lens" if context is None else context.command_path
            text = error.format_message().rstrip(".").replace(". Did you", "; did you")  # pyright: ignore[reportAttributeAccessIssue]
            say(f"{text[:1].lower()}{text[1:]} (see '{command} --help')")
            sys.exit(getattr(error, "exit_code", 1))
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # typer would turn it into an exit without a word.
            raise typer.Abort from error


def _let_paragraphs_flow(command: Any) -> None:
    """Let help texts wrap where the terminal does: typer keeps the line ends that they have in the source."""
    if command.help:
        command.help = "\n\n".join(" ".join(part.split()) for part in command.help.split("\n\n"))
    for child in getattr(command, "commands", {}).values():
        _let_paragraphs_flow(child)


app = typer.Typer(
    name="rome-lens",
    cls=_OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (trace, ask, edit, apply, show, suggest, models, doctor):
    app.command()(_command)
app.add_typer(statistics)
app.add_typer(averages)
app.add_typer(evaluation)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rome-lens {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=False, invoke_without_command=True)
def rome_lens(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """ROME for TransformerLens: trace where a language model keeps a fact, edit it, and see what that did.

    'rome-lens trace' alone traces that Seoul is South Korea's capital, and
    'rome-lens edit' alone moves the Eiffel Tower to Rome, on a small model that is fetched once.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line."""
    app(prog_name="rome-lens")
