"""`rome-lens average`: where does the model keep what it knows? Causal traces of many facts, averaged."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.cli.options import (
    Backend,
    Device,
    Dtype,
    Engine,
    Json,
    Model,
    Noise,
    NoiseReplaces,
    NoiseSeed,
    PutBos,
    Samples,
    Stream,
    Window,
)
from rome_lens.cli.running import RUN, Dask, ShardOf, Workers, executor_of, refuse_missing
from rome_lens.cli.terminal import print_json, progress_bar, say, stdout
from rome_lens.errors import SettingError

if TYPE_CHECKING:
    from rome_lens.evaluation.suggest import LayerSuggestion
    from rome_lens.tracing import AverageEffect

_FACTS: dict[str, Any] = {"rich_help_panel": "The facts"}
_HOW: dict[str, Any] = {"rich_help_panel": "How it is traced"}
_SUGGEST: dict[str, Any] = {"rich_help_panel": "Which layer to edit"}
_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}
_NOTHING = "none"

averages = typer.Typer(name="average")


@averages.callback(invoke_without_command=True)
def average(
    context: typer.Context,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="Known facts, in the form in which the ROME authors published theirs (JSON).",
            show_default="150 that come with rome-lens",
            metavar="FILE",
            **_FACTS,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Take the first N facts.", show_default="all", metavar="N", **_FACTS)
    ] = None,
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    stream: Stream = None,
    severed: Annotated[
        list[str] | None,
        typer.Option(
            help="Restore the residual stream once more with mlp or attn outputs held at the corrupted run's; repeat "
            "it for both, or none.",
            show_default="both",
            metavar="STREAM",
            **_HOW,
        ),
    ] = None,
    severed_at: Annotated[
        str, typer.Option(help="At the last-subject token, or at all tokens.", metavar="WHERE", **_HOW)
    ] = "last-subject",
    window: Window = None,
    samples: Samples = 10,
    noise: Noise = None,
    noise_replaces: NoiseReplaces = False,
    seed: NoiseSeed = 1,
    bos: PutBos = False,
    engine: Engine = "auto",
    workers: Workers = None,
    shard: ShardOf = None,
    dask: Dask = None,
    batch: Annotated[int, typer.Option(help="Facts of a task.", metavar="N", **RUN)] = 16,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder of the run; the same command goes on in it.", metavar="DIR", **_OUT),
    ] = Path("average"),
    png: Annotated[
        bool, typer.Option("--png", help="Write every figure as PNG too (needs the extra 'images').", **_OUT)
    ] = False,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest-layer",
            help="Then edit a few records at several layers, and say which layer to edit.",
            **_SUGGEST,
        ),
    ] = False,
    sweep_layer: Annotated[
        list[int] | None,
        typer.Option(
            help="A layer to edit at, from 0; repeat it for several.", show_default="about ten", metavar="N", **_SUGGEST
        ),
    ] = None,
    sweep_records: Annotated[
        int | None,
        typer.Option(help="Edit the first N of the built-in records.", show_default="8", metavar="N", **_SUGGEST),
    ] = None,
    as_json: Json = False,
) -> None:
    """Average causal traces over many facts: which layers, at which tokens, bring back what a model knows.

    Facts that the model does not know are set aside and counted. A run that was
    killed goes on where it was when the same command is given again. The folder
    holds a file a fact, summary.json, effects.csv, facts.csv and average.html.

    For example: rome-lens average --facts known_1000.json --limit 100 --out known
    """
    if context.invoked_subcommand is not None:
        return
    if limit is not None and limit < 1:
        raise SettingError(f"limit is {limit}; expected a number of facts, 1 or more")
    if (sweep_layer or sweep_records is not None) and not suggest:
        raise SettingError("--sweep-layer and --sweep-records belong to --suggest-layer; give that too")
    if suggest and engine == "attribution":
        raise SettingError("--suggest-layer needs exact traces; leave --engine attribution out")
    if sweep_records is not None and sweep_records < 1:
        raise SettingError(f"sweep-records is {sweep_records}; expected a number of records, 1 or more")
    if suggest and shard is not None:
        raise SettingError("--suggest-layer and --shard are given; merge the shards first, then run the whole with it")
    if suggest and stream and "mlp" not in stream:
        raise SettingError("--suggest-layer needs the stream mlp; add --stream mlp")
    if png:
        from rome_lens.figures.plotly_figure import check_png

        check_png()

    from rome_lens.data import builtin_counterfact, builtin_facts
    from rome_lens.facts import read_known_facts

    known = (list(builtin_facts()) if facts is None else read_known_facts(facts))[:limit]
    with progress_bar() as progress, executor_of(workers, dask) as executor:
        progress(0, 0, "starting")
        from rome_lens.evaluation.suggest import check_sweep, suggest_layer
        from rome_lens.loading.outline import Outline
        from rome_lens.loading.source import ModelSource
        from rome_lens.tracing import AverageSettings, average_causal_effect

        asked: dict[str, Any] = {
            "streams": tuple(stream or ("resid", "mlp", "attn")),
            "severed": [] if severed == [_NOTHING] else severed,
            "severed_at": severed_at,
            "window": window,
            "samples": samples,
            "noise": noise,
            "noise_replaces": noise_replaces,
            "seed": seed,
            "prepend_bos": bos,
            "engine": engine,
        }
        # Loading takes seconds: what can be refused without a model is refused before.
        settings = AverageSettings(**asked)
        if sweep_layer or window is not None:
            outline = Outline.of(model)
            outline.check_layers(sweep_layer or ())
            outline.check_window(window)
        source = ModelSource(model, backend, device, dtype)
        here = source.opened(progress) if suggest else source
        if suggest:
            check_sweep(here.made, sweep_layer)
        found = average_causal_effect(
            here if executor is None else source,
            known,
            out=out,
            batch_size=batch,
            executor=executor,
            shard=shard,
            settings=settings,
            progress=progress,
        )
        suggestion = None
        if suggest:
            suggestion = suggest_layer(
                here,
                records=None if sweep_records is None else builtin_counterfact()[:sweep_records],
                layers=sweep_layer,
                average=found,
                prepend_bos=bos,
                out=out / "layers",
                progress=progress,
            )
    _finish(found, out, png=png, as_json=as_json, suggestion=suggestion)


@averages.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of shards.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.", metavar="DIR", **_OUT)],
    as_json: Json = False,
) -> None:
    """Join the folders of a run's shards.

    For example: rome-lens average merge part-1 part-2 --out whole
    """
    from rome_lens.tracing import merge_averages

    found, missing = merge_averages(folders, out)
    _finish(found, out, png=False, as_json=as_json)
    refuse_missing(missing, "facts")


def _finish(
    found: "AverageEffect", out: Path, *, png: bool, as_json: bool, suggestion: "LayerSuggestion | None" = None
) -> None:
    """Write what people read, and print the effects."""
    figures = found.figures() if png else {}
    found.write_html(out / "average.html")
    found.write_csv(out)
    files = ["summary.json", "effects.csv", "facts.csv"]
    if suggestion is not None:
        from rome_lens.figures.plotly_figure import write_html
        from rome_lens.storage import write_table

        sweep = suggestion.figure()
        figures |= {"sweep": sweep} if png else {}
        write_html(sweep, out / "layers.html")
        write_table(suggestion.to_dataframe(), out / "layers.csv")
        suggestion.settings.save(out / "settings.json")
        files += ["layers.html", "layers.csv", "settings.json"]
    if png:
        from rome_lens.figures.plotly_figure import write_png

        for name, figure in figures.items():
            write_png(figure, out / f"{name}.png")
            files.append(f"{name}.png")
    if as_json:
        print_json(found.summary() | ({} if suggestion is None else {"suggestion": suggestion.summary()}))
    else:
        from rome_lens.cli.average_report import print_average, print_suggestion

        print_average(stdout(), found)
        if suggestion is not None:
            print_suggestion(stdout(), suggestion)
    say(f"wrote {out / 'average.html'}, and {', '.join(files[:-1])} and {files[-1]} beside it")
