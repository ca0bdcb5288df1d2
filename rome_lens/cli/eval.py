"""`rome-lens eval`: how good edits are, measured on CounterFact or zsRE, in a folder that survives whatever happens."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.cli.options import Backend, Device, Dtype, Json, Model
from rome_lens.cli.running import RUN, Dask, ShardOf, Workers, executor_of, refuse_missing
from rome_lens.cli.terminal import print_json, progress_bar, say, stdout
from rome_lens.errors import SettingError

if TYPE_CHECKING:
    from rome_lens.data.records import RecordSet
    from rome_lens.evaluation import Measures, Report

_DATA: dict[str, Any] = {"rich_help_panel": "The records"}
_WHO: dict[str, Any] = {"rich_help_panel": "Who edits"}
_WHAT: dict[str, Any] = {"rich_help_panel": "What is measured"}
_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}

_OURS = "built-in"
_NOTHING = "none"
_MOST_NAMED = 5

Data = Annotated[
    str | None,
    typer.Option(
        help="A file as published (a JSON list, or .jsonl), or a data set: hub:NAME or hub:NAME:CONFIGURATION:SPLIT.",
        show_default=_OURS,
        metavar="SOURCE",
        **_DATA,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Take the first N records.", show_default="all", metavar="N", **_DATA)]
Editors = Annotated[
    list[str] | None,
    typer.Option(
        "--editor",
        "-e",
        help="none, r-rome, rome, p-rome, identity, random-layer, ft, ft-l, or package.module:function for one of your "
        "own; repeat it to compare several.",
        show_default="none and r-rome",
        metavar="NAME",
        **_WHO,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the editors that take it, or of one of them: v_lr=0.1, ft.layer=3; repeat it for several.",
        metavar="[EDITOR.]NAME=JSON",
        **_WHO,
    ),
]
SecondMoments = Annotated[
    list[Path] | None,
    typer.Option(
        "--second-moment",
        help="A file of 'rome-lens stats'; repeat it for several layers.",
        show_default="the one that comes with rome-lens",
        metavar="FILE",
        **_WHO,
    ),
]
Bos = Annotated[bool, typer.Option("--bos/--no-bos", help="Put a BOS token in front of every prompt.", **_WHAT)]
Seed = Annotated[int, typer.Option(help="Seed of all that is drawn, and of the intervals.", metavar="N", **_WHAT)]
Perplexity = Annotated[
    str,
    typer.Option(
        help="Texts whose perplexity is watched: a text file, .json or .jsonl, a data set, or none.",
        show_default=_OURS,
        metavar="SOURCE",
        **_WHAT,
    ),
]
PerplexityTexts = Annotated[int, typer.Option(help="Watch the first N of these texts.", metavar="N", **_WHAT)]
PerplexityBound = Annotated[
    float,
    typer.Option(
        help="Flag edits that move the perplexity by more than this factor, up or down.", metavar="X", **_WHAT
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Folder of the run; the same command goes on in it.",
        show_default="eval-counterfact or eval-zsre",
        metavar="DIR",
        **_OUT,
    ),
]
Batch = Annotated[int, typer.Option(help="Records that are evaluated together.", metavar="N", **RUN)]

evaluation = typer.Typer(name="eval")


@evaluation.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Measure edits on CounterFact or zsRE: scores with 95 % intervals, for one editor or several side by side.

    Without a command: the unedited default model and r-rome on the built-in
    records, as 'rome-lens eval counterfact' does, in minutes.
    """
    if context.invoked_subcommand is None:
        counterfact()


@evaluation.command()
def counterfact(
    data: Data = None,
    limit: Limit = None,
    editor: Editors = None,
    settings: Settings = None,
    second_moment: SecondMoments = None,
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    bos: Bos = False,
    seed: Seed = 0,
    texts: Annotated[
        int,
        typer.Option(help="Texts that the model writes about each subject (GE, RS); 0 for none.", metavar="N", **_WHAT),
    ] = 10,
    text_length: Annotated[
        int, typer.Option(help="Their length in tokens, prompt included.", metavar="N", **_WHAT)
    ] = 100,
    references: Annotated[
        Path | None,
        typer.Option(
            help="What RS compares with: JSON, a list of texts for each new object.",
            show_default="texts that the unedited model writes",
            metavar="FILE",
            **_WHAT,
        ),
    ] = None,
    perplexity: Perplexity = _OURS,
    perplexity_texts: PerplexityTexts = 20,
    perplexity_bound: PerplexityBound = 1.2,
    workers: Workers = None,
    shard: ShardOf = None,
    dask: Dask = None,
    batch: Batch = 8,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure edits on CounterFact: efficacy (ES), paraphrases (PS), neighbours (NS), fluency (GE), consistency (RS).

    Every record is edited by itself. A run that was killed goes on where it was
    when the same command is given again. The folder holds a file a record,
    summary.json, a CSV an editor and report.html.

    For example: rome-lens eval counterfact --limit 20 -e none -e r-rome -e ft
    """
    from rome_lens.data.records import builtin_counterfact, read_counterfact
    from rome_lens.evaluation.evaluate import evaluate_counterfact

    records = _limited(lambda: builtin_counterfact() if data is None else read_counterfact(data), limit)
    measures = _measures(
        bos=bos,
        seed=seed,
        perplexity=perplexity,
        perplexity_texts=perplexity_texts,
        perplexity_bound=perplexity_bound,
        n_texts=texts,
        text_length=text_length,
        references=references,
    )
    _run(
        evaluate_counterfact,
        records,
        measures,
        editors=editor,
        settings=settings,
        second_moments=second_moment,
        model=(model, backend, device, dtype),
        workers=workers,
        shard=shard,
        dask=dask,
        batch=batch,
        out=out or Path("eval-counterfact"),
        as_json=as_json,
    )


@evaluation.command()
def zsre(
    data: Annotated[
        str,
        typer.Option(
            help="A file in the schema of MEND's (a JSON list, or .jsonl), or a data set: hub:NAME.",
            metavar="SOURCE",
            **_DATA,
        ),
    ],
    limit: Limit = None,
    editor: Editors = None,
    settings: Settings = None,
    second_moment: SecondMoments = None,
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    bos: Bos = False,
    seed: Seed = 0,
    perplexity: Perplexity = _OURS,
    perplexity_texts: PerplexityTexts = 20,
    perplexity_bound: PerplexityBound = 1.2,
    workers: Workers = None,
    shard: ShardOf = None,
    dask: Dask = None,
    batch: Batch = 8,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Measure edits on zsRE: the share of an answer's tokens that are the most probable ones.

    Efficacy is read on the question, paraphrase on the question in other words,
    specificity on an unrelated one; _free says how often the model, left to
    itself, writes the answer.

    For example: rome-lens eval zsre --data zsre.json --limit 20
    """
    from rome_lens.data.records import read_zsre
    from rome_lens.evaluation.evaluate import evaluate_zsre

    records = _limited(lambda: read_zsre(data), limit)
    measures = _measures(
        bos=bos,
        seed=seed,
        perplexity=perplexity,
        perplexity_texts=perplexity_texts,
        perplexity_bound=perplexity_bound,
    )
    _run(
        evaluate_zsre,
        records,
        measures,
        editors=editor,
        settings=settings,
        second_moments=second_moment,
        model=(model, backend, device, dtype),
        workers=workers,
        shard=shard,
        dask=dask,
        batch=batch,
        out=out or Path("eval-zsre"),
        as_json=as_json,
    )


@evaluation.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="DIR")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to make.", metavar="DIR", **_OUT)],
    as_json: Json = False,
) -> None:
    """Join the folders of a run's shards, or of runs of several editors on the same records.

    For example: rome-lens eval merge part-1 part-2 --out whole
    """
    from rome_lens.evaluation.evaluate import merge_runs

    report, missing = merge_runs(folders, out)
    _finish(report, out, as_json=as_json)
    refuse_missing(missing, "records")


def _limited(read: "Callable[[], RecordSet[Any]]", limit: int | None) -> "RecordSet[Any]":
    if limit is not None and limit < 1:
        raise SettingError(f"limit is {limit}; expected a number of records, 1 or more")
    records = read()
    for rejected in records.rejected:
        say(f"left out {rejected}")
    return records[:limit]


def _measures(
    *,
    bos: bool,
    seed: int,
    perplexity: str,
    perplexity_texts: int,
    perplexity_bound: float,
    n_texts: int = 0,
    text_length: int = 100,
    references: Path | None = None,
) -> "Measures":
    from rome_lens.evaluation.measures import Measures, builtin_texts, read_references, watched_texts

    if perplexity_texts < 1:
        raise SettingError(f"perplexity-texts is {perplexity_texts}; expected a number of texts, 1 or more")
    watched: tuple[str, ...] = ()
    if perplexity == _OURS:
        watched = builtin_texts()[:perplexity_texts]
    elif perplexity != _NOTHING:
        watched = watched_texts(perplexity, perplexity_texts)
    return Measures(
        prepend_bos=bos,
        n_texts=n_texts,
        text_length=text_length,
        seed=seed,
        references=None if references is None else read_references(references),
        watched=watched,
        perplexity_bound=perplexity_bound,
    )


def _run(
    evaluate: Callable[..., "Report"],
    records: "RecordSet[Any]",
    measures: "Measures",
    *,
    editors: list[str] | None,
    settings: list[str] | None,
    second_moments: list[Path] | None,
    model: tuple[str, str, str | None, str],
    workers: int | None,
    shard: str | None,
    dask: str | None,
    batch: int,
    out: Path,
    as_json: bool,
) -> None:
    from rome_lens.loading.source import ModelSource

    with progress_bar() as progress, executor_of(workers, dask) as executor:
        progress(0, 0, "starting")
        report = evaluate(
            ModelSource(*model),
            editors or ["none", "r-rome"],
            records,
            measures=measures,
            settings=settings or (),
            second_moments=second_moments or (),
            out=out,
            batch_size=batch,
            executor=executor,
            shard=shard,
            progress=progress,
        )
    _finish(report, out, as_json=as_json)


def _finish(report: "Report", out: Path, *, as_json: bool) -> None:
    """Write what people read, print the table, and say which edits harmed the model."""
    from rome_lens.evaluation.report.tables import write_csv

    write_csv(report, out)
    report.write_html(out / "report.html")
    if as_json:
        print_json(report.summary())
    else:
        from rome_lens.cli.eval_report import print_report

        print_report(stdout(), report)
    for name, editor in report.editors.items():
        if editor.flagged:
            named = ", ".join(str(number) for number in editor.flagged[:_MOST_NAMED])
            more = ", …" if len(editor.flagged) > _MOST_NAMED else ""
            bound = report.settings["perplexity_bound"]
            say(
                f"{len(editor.flagged)} of {editor.n_records} edits of {name} moved the perplexity by more than a "
                f"factor of {bound}: records {named}{more}"
            )
    say(f"wrote {out / 'report.html'}, summary.json and a CSV an editor beside it")
