"""`rome-lens stats`: what an edit should leave alone, collected from text."""

import shlex
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import typer

from rome_lens.checks import whole_number
from rome_lens.cli.long_runs import RunOptions
from rome_lens.cli.options import JSON, OUT, ModelOptions, Panel, argument, filled, takes_options
from rome_lens.cli.output import check_files, print_result, progress_bar, say
from rome_lens.errors import SettingError

_TEXT = Panel("The text")
_HOW = Panel("How it is collected")
_OUT = OUT("The file to write, needed; with several layers its name holds {layer}.", "-o")
_PLACE = "{layer}"

statistics = typer.Typer(name="stats")


@dataclass(frozen=True)
class _CollectOptions:
    """Of which layers, from what text, and how."""

    layer: list[int] | None = _HOW(
        "Layer, from 0; repeat it for several in one pass.", "-l", shown="the one that the model is edited at"
    )
    positions: int | None = _HOW("Most positions to run at once.", shown="what the free memory allows")
    resume: Path | None = _HOW("Save progress to this file now and then; if it exists, go on from there.")
    texts: str = _TEXT(
        "self (text that the model writes, no download), a text file, a .jsonl or .json file, or a data set: "
        "hub:NAME or hub:NAME:CONFIGURATION:SPLIT.",
        metavar="SOURCE",
        default="self",
    )
    field: str | None = _TEXT("Field of JSON or of a data set that holds the text.", metavar="NAME", shown="text")
    max_tokens: int | None = _TEXT(
        "Stop after N tokens.", "--tokens", shown="all of a file; of self and data sets 20 for each row of C"
    )
    text_length: int | None = _TEXT(
        "Longest piece of text in tokens; longer ones are cut.", shown="256, or the model's context"
    )
    seed: int = _TEXT("Seed of the text that the model writes (self).", default=0)
    prepend_bos: bool = _TEXT.bos(" of every piece")

    def source(self) -> Any:
        """The texts as `SecondMoment.collect` takes them.

        Raises:
            ArtefactError: they cannot be read. SettingError: the notation of a data set is wrong.
        """
        from rome_lens.data.texts import SELF, read_texts

        return self.texts if self.texts == SELF else read_texts(self.texts, field=self.field)


@dataclass(frozen=True)
class _JoinOptions:
    """Which files become one."""

    files: list[Path] = argument("Files of all shards.", "FILE", default=MISSING)


@statistics.callback(invoke_without_command=True)
@takes_options
def stats(
    context: typer.Context,
    how: _CollectOptions,
    model: ModelOptions,
    run: RunOptions,
    out: Path | None = _OUT,
    as_json: bool = JSON,
) -> None:
    """Collect the second moment of a layer's keys, which rank-one edits need: what they should leave alone.

    C, the mean of k k^T over the keys k of some text, has as many rows as a key has
    numbers: 1536 for smollm2-135m. Twenty tokens for each are enough as a rule.

    For example: rome-lens stats --layer 5 --out layer-5.safetensors
    """
    if context.invoked_subcommand is not None:
        return
    layers = list(dict.fromkeys(how.layer or ()))
    check_files(*_files(layers or [0], out).values(), how.resume)
    texts = how.source()
    with progress_bar() as progress, run.executor() as executor:
        from rome_lens.backends import as_backend
        from rome_lens.editing import CollectSettings, SecondMoment
        from rome_lens.editing.settings import default_layer
        from rome_lens.runs import Shard

        # Loading takes seconds: what can be refused without a model is refused before.
        if how.text_length is not None:
            whole_number("text_length", how.text_length, least=1)
        settings = filled(CollectSettings, how, field=None, batch_positions=how.positions)
        Shard.of(run.shard)
        model.check(layers=layers)
        # Other processes load the model themselves, and are given its name.
        source = model.source() if executor is not None else model.source().opened(progress)
        layers = layers or [default_layer(as_backend(source.open(progress)))]
        moments = SecondMoment.collect(
            source,
            layers=layers,
            texts=texts,
            settings=settings,
            checkpoint=how.resume,
            executor=executor,
            shard=run.shard,
            command=_command(),
            progress=progress,
        )
    _finish(moments, _files(layers, out), as_json=as_json)


@statistics.command()
@takes_options
def merge(parts: _JoinOptions, out: Path | None = _OUT, as_json: bool = JSON) -> None:
    """Join the files of shards: the statistics of all their text.

    For example: rome-lens stats merge part-1.safetensors part-2.safetensors --out layer-5.safetensors
    """
    check_files(*_files([0], out).values())
    with progress_bar() as progress:
        from rome_lens.editing import SecondMoment

        by_layer: dict[int, list[SecondMoment]] = {}
        for number, path in enumerate(parts.files):
            progress(number, len(parts.files), "reading")
            moment = SecondMoment.load(path)
            by_layer.setdefault(moment.layer, []).append(moment)
        files = _files(list(by_layer), out)
        moments = {layer: SecondMoment.merge(shards, command=_command()) for layer, shards in by_layer.items()}
    _finish(moments, files, as_json=as_json)


def _command() -> str:
    return shlex.join(["rome-lens", *sys.argv[1:]])


def _finish(moments: Mapping[int, Any], files: Mapping[int, Path], *, as_json: bool) -> None:
    """Write the files, by layer, and print what is in them."""
    from rome_lens.cli.moment_report import collected, print_collected

    for number, moment in moments.items():
        moment.save(files[number])
    with progress_bar() as progress:
        # The eigenvalues of a large model's C take minutes: what is saved is saved.
        progress(0, 0, "computing condition numbers")
        layers_collected = collected(moments, files)
    for number, moment in moments.items():
        say(f"wrote {files[number]}")
        for warning in moment.warnings:
            say(f"warning: layer {number}: {warning}")
    print_result(as_json, lambda: layers_collected, lambda console: print_collected(console, layers_collected))


def _files(layers: list[int], out: Path | None) -> dict[int, Path]:
    """The file of each layer."""
    if out is None:
        raise SettingError("--out is missing; name the file to write, such as --out layer-5.safetensors")
    if len(layers) > 1 and _PLACE not in str(out):
        raise SettingError(f"--out is {str(out)!r} for {len(layers)} layers; write {_PLACE} where the number goes")
    return {layer: Path(str(out).replace(_PLACE, str(layer))) for layer in layers}
