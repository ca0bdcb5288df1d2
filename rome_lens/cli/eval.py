"""`rome-lens eval`: how good edits are, measured on CounterFact or zsRE, in a folder that survives whatever happens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from rome_lens.checks import whole_number
from rome_lens.cli.long_runs import RUN, MergeOptions, RunOptions, first_few, refuse_missing
from rome_lens.cli.options import JSON, OUT, ModelOptions, Panel, filled, takes_options
from rome_lens.cli.output import print_result, progress_bar, say
from rome_lens.cli.records import BUILT_IN, CounterFactOptions, ZsreOptions
from rome_lens.cli.together_options import TogetherOptions
from rome_lens.errors import SettingError

_WHO = Panel("Who edits")
_WHAT = Panel("What is measured")
_NOTHING = "none"

evaluation = typer.Typer(name="eval")


@dataclass(frozen=True)
class _EditorOptions:
    """Who edits."""

    editor: list[str] | None = _WHO(
        "none, r-rome, rome, p-rome, identity, random-layer, memit, emmet, alphaedit, ft, ft-l, or "
        "package.module:function for one of your own; repeat it to compare several. NAME=EDITOR calls it by a name, so "
        "that one may be there twice.",
        "-e",
        metavar="[NAME=]EDITOR",
        shown="none and r-rome; memit and r-rome with --together",
    )
    settings: list[str] | None = _WHO(
        "A setting of the editors that take it, or of one of them: v_lr=0.1, ft.layer=3; repeat it for several.",
        "--set",
        metavar="[EDITOR.]NAME=JSON",
    )
    second_moment: list[Path] | None = _WHO.second_moments("the one that comes with rome-lens")

    def editors(self, *, together: bool) -> dict[str, str]:
        """The editors by their names.

        Args:
            together: they put many facts into one model.

        Raises:
            SettingError: two have one name.
        """
        named: dict[str, str] = {}
        for text in self.editor or (["memit", "r-rome"] if together else ["none", "r-rome"]):
            name, sign, editor = text.partition("=")
            name, editor = (name, editor) if sign else (text.rpartition(":")[2], text)
            if name in named:
                raise SettingError(f"two editors are called {name!r}; call one of them otherwise, as NAME={editor}")
            named[name] = editor
        return named


@dataclass(frozen=True)
class _MeasureOptions:
    """What is measured of every edit."""

    prepend_bos: bool = _WHAT.bos(" of every prompt")
    seed: int = _WHAT("Seed of everything that is drawn at random, and of the intervals.", default=0)
    n_texts: int | None = _WHAT(
        "Texts that the model writes about each subject (GE, RS); 0 for none.",
        "--texts",
        shown="10; 0 with --together",
    )
    text_length: int = _WHAT("Their length in tokens, prompt included.", default=100)
    references: Path | None = _WHAT(
        "What RS compares with: JSON, a list of texts for each new object.",
        shown="texts that the unedited model writes",
    )
    perplexity: str = _WHAT(
        "Texts whose perplexity is measured before and after: a text file, .json or .jsonl, a data set, or none.",
        metavar="SOURCE",
        default=BUILT_IN,
    )
    perplexity_texts: int = _WHAT("Take the first N of these texts.", default=20)
    perplexity_bound: float = _WHAT(
        "Flag edits that move the perplexity by more than this factor, up or down.", default=1.2
    )

    def measures(self, *, together: bool) -> Any:
        """The same as the library takes it.

        Args:
            together: many facts are put into one model.

        Raises:
            SettingError: a setting is out of its range. ArtefactError: a file of texts cannot be read.
        """
        from rome_lens.data.texts import builtin_texts
        from rome_lens.evaluation.measures import Measures, read_references, watched_texts

        whole_number("perplexity-texts", self.perplexity_texts, least=1, expected="a number of texts")
        texts: tuple[str, ...] = ()
        if self.perplexity == BUILT_IN:
            texts = builtin_texts()[: self.perplexity_texts]
        elif self.perplexity != _NOTHING:
            texts = watched_texts(self.perplexity, self.perplexity_texts)
        references = None if self.references is None else read_references(self.references)
        n_texts = (0 if together else 10) if self.n_texts is None else self.n_texts
        return filled(Measures, self, n_texts=n_texts, references=references, watched=texts)


@dataclass(frozen=True)
class _EvaluationOptions(RunOptions, _MeasureOptions):
    """What is measured, and behind that how the run is split and where it goes."""

    batch: int = RUN("Records that are evaluated together.", default=8)
    out: Path | None = OUT(
        "Folder of the run; the same command goes on in it.",
        "-o",
        metavar="DIR",
        shown="eval-counterfact or eval-zsre",
    )

    def evaluate(
        self,
        evaluate: Callable[..., Any],
        records: Any,
        who: _EditorOptions,
        model: ModelOptions,
        many: TogetherOptions,
        out: Path,
    ) -> Any:
        """The report of a run.

        Args:
            evaluate: the function of the library.
            records: what is edited.
            who: who edits.
            model: what is edited in.
            many: at which numbers of facts the model is asked.
            out: the folder of the run.
        """
        together = many.asked()
        measures = self.measures(together=together is not None)
        with progress_bar() as progress, self.executor() as executor:
            return evaluate(
                model.source(),
                who.editors(together=together is not None),
                records,
                together=together,
                measures=measures,
                settings=who.settings or (),
                second_moments=who.second_moment or (),
                out=out,
                batch_size=self.batch,
                executor=executor,
                shard=self.shard,
                progress=progress,
            )


@dataclass(frozen=True)
class _ZsreEvaluationOptions(_EvaluationOptions):
    """The same on zsRE: no texts are written."""

    n_texts: int | None = field(default=0, init=False)
    text_length: int = field(default=100, init=False)
    references: Path | None = field(default=None, init=False)


@evaluation.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Measure edits on CounterFact or zsRE: scores with 95 % intervals, for one editor or several side by side.

    Without a command: the unedited default model and r-rome on the built-in
    records, as 'rome-lens eval counterfact' does, in minutes.
    """
    if context.invoked_subcommand is None:
        counterfact()


@evaluation.command()
@takes_options
def counterfact(
    data: CounterFactOptions,
    who: _EditorOptions,
    model: ModelOptions,
    many: TogetherOptions,
    run: _EvaluationOptions,
    as_json: bool = JSON,
) -> None:
    """Measure edits on CounterFact: efficacy (ES), paraphrases (PS), neighbours (NS), fluency (GE), consistency (RS).

    Every record is edited by itself; with --together, facts stay in the model and
    are asked again at each of its numbers. A run that was killed goes on where it
    was when the same command is given again. The folder holds a file for each
    record, summary.json, CSV files and report.html.

    For example: rome-lens eval counterfact --limit 20 -e none -e r-rome -e ft
                 rome-lens eval counterfact --together 1,10 -e memit -e r-rome
    """
    from rome_lens.evaluation.evaluate import evaluate_counterfact

    out = run.out or Path("eval-counterfact")
    _finish(run.evaluate(evaluate_counterfact, data.read(), who, model, many, out), out, as_json=as_json)


@evaluation.command()
@takes_options
def zsre(
    data: ZsreOptions,
    who: _EditorOptions,
    model: ModelOptions,
    many: TogetherOptions,
    run: _ZsreEvaluationOptions,
    as_json: bool = JSON,
) -> None:
    """Measure edits on zsRE: the share of an answer's tokens that are the most probable ones.

    Efficacy is read on the question, paraphrase on the question in other words,
    specificity on an unrelated one; _free says how often the model, left to
    itself, writes the answer.

    For example: rome-lens eval zsre --data zsre.json --limit 20
    """
    from rome_lens.evaluation.evaluate import evaluate_zsre

    out = run.out or Path("eval-zsre")
    _finish(run.evaluate(evaluate_zsre, data.read(), who, model, many, out), out, as_json=as_json)


@evaluation.command()
@takes_options
def merge(merged: MergeOptions, as_json: bool = JSON) -> None:
    """Join the folders of a run's shards, or of runs of several editors on the same records.

    For example: rome-lens eval merge part-1 part-2 --out whole
    """
    from rome_lens.evaluation.evaluate import merge_runs

    report, missing = merge_runs(merged.folders, merged.out)
    _finish(report, merged.out, as_json=as_json)
    refuse_missing(missing, "records")


def _finish(report: Any, out: Path, *, as_json: bool) -> None:
    """Write what people read, print the table, and say which edits harmed the model."""
    from rome_lens.cli.eval_report import print_report
    from rome_lens.cli.together_report import print_together
    from rome_lens.evaluation import TogetherReport, write_csv

    report.write_html(out / "report.html")
    if isinstance(report, TogetherReport):
        report.write_csv(out)
        print_result(as_json, report.summary, lambda console: print_together(console, report))
        say(f"wrote {out / 'report.html'}, summary.json, checkpoints.csv, retention.csv and records.csv beside it")
        return
    write_csv(report, out)
    print_result(as_json, report.summary, lambda console: print_report(console, report))
    for name, editor in report.editors.items():
        if editor.flagged:
            bound = report.settings["perplexity_bound"]
            say(
                f"{len(editor.flagged)} of {editor.n_records} edits of {name} moved the perplexity by more than a "
                f"factor of {bound}: records {first_few(editor.flagged)}"
            )
    say(f"wrote {out / 'report.html'}, summary.json and a CSV for each editor beside it")
