"""`rome-lens average`: where does the model keep what it knows? Causal traces of many facts, averaged."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from rome_lens.checks import whole_number
from rome_lens.cli.long_runs import RUN, MergeOptions, RunOptions, refuse_missing
from rome_lens.cli.options import JSON, OUT, TRACE, ModelOptions, Panel, TraceOptions, takes_options
from rome_lens.cli.output import check_files, print_result, progress_bar, say
from rome_lens.data import builtin_facts
from rome_lens.errors import SettingError
from rome_lens.facts import read_known_facts

_FACTS = Panel("The facts")
_NOTHING = "none"

averages = typer.Typer(name="average")


@dataclass(frozen=True)
class _FactOptions:
    """Which facts are traced."""

    facts: Path | None = _FACTS(
        "Known facts, in the form in which the ROME authors published theirs (JSON).",
        shown="150 that come with rome-lens",
    )
    limit: int | None = _FACTS("Take the first N facts.", shown="all")

    def read(self) -> list[Any]:
        """The facts.

        Raises:
            SettingError: the limit is below 1. ArtefactError: the file cannot be read, or holds no facts.
        """
        if self.limit is not None:
            whole_number("limit", self.limit, least=1, expected="a number of facts")
        return (list(builtin_facts()) if self.facts is None else read_known_facts(self.facts))[: self.limit]


@dataclass(frozen=True)
class _AverageTraceOptions(TraceOptions):
    """How each fact is traced."""

    streams: list[str] | None = TRACE(
        "What is restored: resid, mlp or attn; repeat it for several.", "--stream", metavar="STREAM", shown="all three"
    )
    severed: list[str] | None = TRACE(
        "Restore the residual stream once more while mlp or attn outputs are held at the corrupted run's; repeat it "
        "for both, or none.",
        metavar="STREAM",
        shown="both",
    )
    heads_at: str = field(default="last", init=False)
    heads_window: int = field(default=1, init=False)
    measure: str = field(default="probability", init=False)
    against: str | None = field(default=None, init=False)
    swap: str | None = field(default=None, init=False)
    facts: Path | None = field(default=None, init=False)


@dataclass(frozen=True)
class _AverageRunOptions(RunOptions):
    """How the run is split, and what is written."""

    batch: int = RUN("Facts per task.", default=16)
    out: Path = OUT("Folder of the run; the same command goes on in it.", "-o", metavar="DIR", default=Path("average"))
    png: bool = OUT("Write every figure as PNG too (needs the extra 'images').", "--png", default=False)
    # The sweep of layers was a part of this command; these options say so.
    suggest_layer: bool = OUT("Moved.", "--suggest-layer", default=False, hidden=True)
    sweep_layer: list[int] | None = OUT("Moved.", hidden=True)
    sweep_records: int | None = OUT("Moved.", hidden=True)

    def refuse_moved(self) -> None:
        """Name the command that the sweep of layers has become.

        Raises:
            SettingError: the sweep is asked for.
        """
        layers, records = self.sweep_layer or (), self.sweep_records
        if self.suggest_layer or layers or records is not None:
            options = [f" --layer {layer}" for layer in layers] + ([] if records is None else [f" --limit {records}"])
            raise SettingError(
                "the sweep of layers is a command of its own now; average the facts without --suggest-layer, and then "
                f"type 'rome-lens suggest {self.out}{''.join(options)}'"
            )


@averages.callback(invoke_without_command=True)
@takes_options
def average(
    context: typer.Context,
    facts: _FactOptions,
    model: ModelOptions,
    how: _AverageTraceOptions,
    run: _AverageRunOptions,
    as_json: bool = JSON,
) -> None:
    """Average causal traces over many facts: which layers, at which tokens, bring back what a model knows.

    Facts that the model does not know are set aside and counted. A run that was
    killed goes on where it was when the same command is given again. The folder
    holds a file for each fact, summary.json, effects.csv, facts.csv and average.html.

    For example: rome-lens average --facts known_1000.json --limit 100 --out known
    """
    if context.invoked_subcommand is not None:
        return
    run.refuse_moved()
    check_files(png=run.png)
    known = facts.read()
    with progress_bar() as progress, run.executor() as executor:
        from rome_lens.tracing import AverageSettings, average_causal_effect

        # Loading takes seconds: what can be refused without a model is refused before.
        settings = how.settings(AverageSettings, [] if how.severed == [_NOTHING] else how.severed)
        model.check(window=how.window)
        found = average_causal_effect(
            model.source(),
            known,
            settings=settings,
            out=run.out,
            batch_size=run.batch,
            executor=executor,
            shard=run.shard,
            progress=progress,
        )
    _finish(found, run.out, png=run.png, as_json=as_json)


@averages.command()
@takes_options
def merge(merged: MergeOptions, as_json: bool = JSON) -> None:
    """Join the folders of a run's shards.

    For example: rome-lens average merge part-1 part-2 --out whole
    """
    from rome_lens.tracing import merge_averages

    found, missing = merge_averages(merged.folders, merged.out)
    _finish(found, merged.out, png=False, as_json=as_json)
    refuse_missing(missing, "facts")


def _finish(found: Any, out: Path, *, png: bool, as_json: bool) -> None:
    """Write what people read, and print the effects."""
    from rome_lens.cli.average_report import print_average

    files = ["summary.json", "effects.csv", "facts.csv"]
    found.write_html(out / "average.html")
    found.write_csv(out)
    if png:
        from rome_lens.figures.files import write_png

        for name, figure in found.figures().items():
            write_png(figure, out / f"{name}.png")
            files.append(f"{name}.png")
    print_result(as_json, found.summary, lambda console: print_average(console, found))
    say(f"wrote {out / 'average.html'}, and {', '.join(files[:-1])} and {files[-1]} beside it")
