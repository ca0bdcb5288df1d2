"""`rome-lens stats`: what an edit should leave alone, collected from text."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.checks import seed_number, whole_number
from rome_lens.cli.options import Backend, Device, Dtype, Json, Model
from rome_lens.cli.terminal import print_json, progress_bar, say, stdout
from rome_lens.errors import SettingError
from rome_lens.storage import check_writable

if TYPE_CHECKING:
    from rome_lens.editing.second_moment.moment import SecondMoment

_TEXT: dict[str, Any] = {"rich_help_panel": "The text"}
_HOW: dict[str, Any] = {"rich_help_panel": "How it is collected"}
_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}
_PLACE = "{layer}"


def stats(
    layer: Annotated[
        list[int] | None,
        typer.Option(
            "--layer",
            "-l",
            help="Layer, from 0; repeat it for several in one pass.",
            show_default="the one that the model is edited at",
            metavar="N",
            **_HOW,
        ),
    ] = None,
    texts: Annotated[
        str,
        typer.Option(
            help="self (text that the model writes, no download), a text file, a .jsonl or .json file, or a data set: "
            "hub:NAME or hub:NAME:CONFIGURATION:SPLIT.",
            metavar="SOURCE",
            **_TEXT,
        ),
    ] = "self",
    field: Annotated[
        str | None,
        typer.Option(
            help="Field of JSON or of a data set that holds the text.", show_default="text", metavar="NAME", **_TEXT
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many tokens.",
            show_default="all of a file; of self and data sets 20 for each row of C",
            metavar="N",
            **_TEXT,
        ),
    ] = None,
    text_length: Annotated[
        int | None,
        typer.Option(
            help="Longest piece of text in tokens; longer ones are cut.",
            show_default="256, or the model's context",
            metavar="N",
            **_TEXT,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of self.", metavar="N", **_TEXT)] = 0,
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Put a BOS token in front of every piece.", **_TEXT)] = (
        False
    ),
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    positions: Annotated[
        int | None,
        typer.Option(
            help="Positions run at once at most.", show_default="what the free memory allows", metavar="N", **_HOW
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Write what is done to this file now and then; if it exists, go on from there.", metavar="FILE", **_HOW
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The file to write, needed; with several layers its name holds {layer}.",
            metavar="FILE",
            **_OUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Collect the second moment of a layer's keys, which rank-one edits need: what they should leave alone.

    C, the mean of k k^T over the keys k of some text, has as many rows as a key has
    numbers: 1536 for smollm2-135m. Twenty tokens for each are enough as a rule.

    For example: rome-lens stats --layer 5 --out layer-5.safetensors
    """
    layers = list(dict.fromkeys(layer or ()))
    for path in _files(layers or [0], out).values():
        check_writable(path)
    if resume is not None:
        check_writable(resume)
    from rome_lens.data.texts import SELF, read_texts

    read: Any = texts if texts == SELF else read_texts(texts, field=field)
    with progress_bar() as progress:
        progress(0, 0, "starting")
        from rome_lens.backends import as_backend
        from rome_lens.editing.second_moment.moment import SecondMoment
        from rome_lens.editing.settings import default_layer
        from rome_lens.loading import load_model
        from rome_lens.loading.outline import Outline

        # Loading takes seconds: what can be refused without a model is refused before.
        for name, number in (("max_tokens", tokens), ("text_length", text_length), ("batch_positions", positions)):
            if number is not None:
                whole_number(name, number, least=1)
        seed_number(seed)
        if layers:
            Outline.of(model).check_layers(layers)
        host = load_model(model, backend=backend, device=device, dtype=dtype, progress=progress)
        layers = layers or [default_layer(as_backend(host))]
        moments = SecondMoment.collect(
            host,
            layers=layers,
            texts=read,
            max_tokens=tokens,
            text_length=text_length,
            prepend_bos=bos,
            seed=seed,
            checkpoint=resume,
            batch_positions=positions,
            command=shlex.join(["rome-lens", *sys.argv[1:]]),
            progress=progress,
        )
        files = _files(layers, out)
        for number, moment in moments.items():
            moment.save(files[number])
        # The eigenvalues of a large model's C take minutes: what is saved is saved.
        progress(0, 0, "computing condition numbers")
        conditions = {number: moment.condition_number for number, moment in moments.items()}
    for number, moment in moments.items():
        say(f"wrote {files[number]}")
        for warning in moment.warnings:
            say(f"warning: layer {number}: {warning}")
    if as_json:
        print_json(
            [
                moment.to_dict()
                | {
                    "d_mlp": moment.d_mlp,
                    "condition_number": conditions[number],
                    "ridge": moment.ridge,
                    "warnings": list(moment.warnings),
                    "path": str(files[number]),
                }
                for number, moment in moments.items()
            ]
        )
    else:
        _print(moments, conditions)


def _files(layers: list[int], out: Path | None) -> dict[int, Path]:
    """The file of each layer."""
    if out is None:
        raise SettingError("--out is missing; name the file to write, such as --out layer-5.safetensors")
    if len(layers) > 1 and _PLACE not in str(out):
        raise SettingError(f"--out is {str(out)!r} for {len(layers)} layers; write {_PLACE} where the number goes")
    return {layer: Path(str(out).replace(_PLACE, str(layer))) for layer in layers}


def _print(moments: "dict[int, SecondMoment]", conditions: dict[int, float]) -> None:
    from rome_lens.figures import visible

    console = stdout()
    first = next(iter(moments.values()))
    seed = "" if first.seed is None else f" (seed {first.seed})"
    console.print(f"{visible(first.model_name or '')} · {first.backend} · {first.dtype} on {first.device}")
    console.print(
        f"{first.n_tokens} tokens of {visible(first.source)}{seed} in {first.n_pieces} pieces of at most "
        f"{first.text_length}, {'BOS' if first.prepend_bos else 'no BOS'}"
    )
    for layer, moment in moments.items():
        condition = f"condition number {conditions[layer]:.1e} with a ridge of {moment.ridge:g}"
        console.print(f"layer {layer}  {moment.d_mlp} x {moment.d_mlp}, {condition}")
    console.print(f"collected in {first.seconds:.1f} s")
