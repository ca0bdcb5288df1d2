"""`rome-lens suggest`: which layer to edit? Where tracing points to, beside where editing works."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.cli.options import JSON, MODEL, OUT, ModelOptions, Panel, argument, takes_options
from rome_lens.cli.output import check_files, print_result, progress_bar, say
from rome_lens.cli.records import RECORDS, CounterFactOptions
from rome_lens.errors import SettingError

_SWEEP = Panel("Where it is edited")


@dataclass(frozen=True)
class _TracedOptions:
    """What was traced, and the model: where these options say nothing, the one that was traced."""

    average: Path | None = argument(
        "Folder of a finished 'rome-lens average'; without one, the built-in facts are traced first.",
        "DIR",
        shown=False,
    )
    model: str | None = MODEL(
        "smollm2-135m, a folder in Hugging Face's layout, or a hub name.",
        "-m",
        metavar="NAME",
        shown="the average's, or smollm2-135m",
    )
    device: str | None = MODEL("cpu, cuda, cuda:1, …", metavar="DEVICE", shown="the GPU where there is one")

    def read(self) -> Any | None:
        """The average of a run that is finished, exact, and of the MLPs too; None where no folder is named.

        Raises:
            SettingError: it is not. ArtefactError: there is no such run.
        """
        if self.average is None:
            return None
        from rome_lens.tracing import read_average

        found, name = read_average(self.average), repr(str(self.average))
        done, total = len(found.facts) + len(found.set_aside), found.settings["data"]["facts"]
        if done < total:
            raise SettingError(
                f"{name} holds {done} of the {total} facts of its run; finish it, or merge its shards, first"
            )
        if found.approximate:
            raise SettingError(
                f"the traces in {name} are approximated, and the sweep needs exact ones; average the facts again "
                "without --engine attribution"
            )
        if "mlp" not in found.streams:
            raise SettingError(f"the traces in {name} lack the stream mlp; average the facts again with it")
        return found

    def model_options(self, average: Any | None) -> ModelOptions:
        """How the model is loaded: as it was for the average, else as for any other command."""
        traced = {} if average is None else average.settings["model"]
        given = {"model": self.model or traced.get("name"), "backend": traced.get("backend"), "device": self.device}
        given["dtype"] = traced.get("dtype")
        return ModelOptions(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class _SweepOptions(CounterFactOptions):
    """What is edited, at which layers, and what is written."""

    limit: int | None = RECORDS("Edit the first N records.", default=8)
    layer: list[int] | None = _SWEEP("A layer to edit at, from 0; repeat it for several.", "-l", shown="about ten")
    second_moment: list[Path] | None = _SWEEP.second_moments("collected from text that the model writes")
    seed: int = _SWEEP(
        "Seed of what the model writes (templates, text of second moments), and of the intervals.", default=0
    )
    bos: bool | None = _SWEEP("Put a BOS token in front.", "--bos/--no-bos", shown="as the facts were traced")
    out: Path | None = OUT(
        "Folder for layers.html, layers.csv and what they rest on; the same command goes on in it.",
        "-o",
        metavar="DIR",
        shown="the average's, or suggest",
    )
    settings: Path | None = OUT(
        "Write the suggested layer with the model's settings here, for 'rome-lens edit --settings'.",
        shown="layers/settings.json in the folder",
    )
    png: bool = OUT("Write the figure as PNG too (needs the extra 'images').", "--png", default=False)

    def write(self, suggestion: Any, out: Path) -> Path:
        """Write what people read, and say so.

        Returns:
            The file with the settings.
        """
        from rome_lens.figures.files import write_html, write_png
        from rome_lens.storage import write_table

        figure, settings = suggestion.figure(), self.settings or out / "layers" / "settings.json"
        write_html(figure, out / "layers.html")
        write_table(suggestion.to_dataframe(), out / "layers.csv")
        if self.png:
            write_png(figure, out / "sweep.png")
        suggestion.settings.save(settings)
        say(f"wrote {out / 'layers.html'}, and layers.csv{' and sweep.png' if self.png else ''} beside it")
        say(f"wrote {settings}")
        return settings


@takes_options
def suggest(traced: _TracedOptions, sweep: _SweepOptions, as_json: bool = JSON) -> None:
    """Suggest the layer to edit: edit a few records at several layers, beside the layer that tracing points to.

    The suggestion is the layer whose edits score best; tracing alone does not say which that is. Each layer needs a
    second moment, which takes minutes to collect. A run that was killed goes on where it was when the same command is
    given again.

    For example: rome-lens suggest known
    """
    check_files(sweep.settings, png=sweep.png)
    of_run = None if traced.average is None else (traced.average / "settings.json").resolve()
    if sweep.settings is not None and sweep.settings.resolve() == of_run:
        raise SettingError(f"{str(sweep.settings)!r} says what the average was asked for; name another file")
    records = sweep.read()
    out = sweep.out or traced.average or Path("suggest")
    with progress_bar() as progress:
        from rome_lens.cli.suggest_report import print_suggestion
        from rome_lens.evaluation import suggest_layer
        from rome_lens.runs.files import make_folder

        average = traced.read()
        model = traced.model_options(average)
        model.check(layers=sweep.layer or ())
        bos = sweep.bos
        if bos is None:
            bos = average is not None and average.settings["prepend_bos"]
        make_folder(out / "layers")
        suggestion = suggest_layer(
            model.load(progress),
            records=records,
            layers=sweep.layer,
            average=average,
            second_moments=sweep.second_moment or (),
            seed=sweep.seed,
            prepend_bos=bos,
            out=out / "layers",
            progress=progress,
        )
    settings = sweep.write(suggestion, out)
    summary = suggestion.summary() | {"path": str(settings)}
    print_result(as_json, lambda: summary, lambda console: print_suggestion(console, suggestion))
