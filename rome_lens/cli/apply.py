"""`rome-lens apply`: edits as a model folder for transformers, or as a LoRA adapter for peft."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.cli.options import Json
from rome_lens.cli.terminal import print_json, progress_bar, say, stdout
from rome_lens.errors import ModelNotFoundError, SettingError

if TYPE_CHECKING:
    from rome_lens.editing import Edit

_MODEL: dict[str, Any] = {"rich_help_panel": "The model"}
_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}


def apply(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Edits that 'rome-lens edit --save' or MatrixEdit.save wrote; several go into one folder.",
            metavar="EDIT",
            show_default=False,
        ),
    ],
    to_hf: Annotated[
        Path | None, typer.Option(help="Write the edited model, for transformers.", metavar="FOLDER", **_OUT)
    ] = None,
    to_peft: Annotated[
        Path | None,
        typer.Option(
            help="Write a LoRA adapter, for peft; it needs no model, its rank is the number of edits on a layer; "
            "fine-tuned edits have none.",
            metavar="FOLDER",
            **_OUT,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The unedited model: smollm2-135m, a folder, or a hub name. Another one is refused.",
            show_default="the name in the edit",
            metavar="NAME",
            **_MODEL,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float64, bfloat16 or float16; the last two round edits away in part.",
            show_default="what the edits were made in",
            metavar="DTYPE",
            **_MODEL,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put edits into a model, and write what others can load without rome-lens or TransformerLens.

    For example: rome-lens apply rome.safetensors --to-hf edited-model
    """
    out = to_hf or to_peft
    if out is None or (to_hf is not None and to_peft is not None):
        which = "neither --to-hf nor --to-peft is" if out is None else "--to-hf and --to-peft are both"
        raise SettingError(f"{which} given; name one folder to write")
    if to_peft is not None and (model is not None or dtype is not None):
        name = "--model" if model is not None else "--dtype"
        raise SettingError(f"{name} goes with --to-hf; an adapter holds the edits alone, and fits the model they fit")
    with progress_bar() as progress:
        progress(0, 0, "starting")
        from rome_lens.editing import load_edit
        from rome_lens.editing.export import export_adapter

        edits = [load_edit(path) for path in files]
        progress(0, 0, "writing")
        if to_hf is not None:
            _write_model(edits, out, model=model, dtype=dtype)
        else:
            export_adapter(edits, out)
    say(f"wrote {out}")
    load = _how_to_load(edits, out, whole=to_hf is not None)
    if as_json:
        print_json(
            {
                "path": str(out),
                "kind": "model" if to_hf is not None else "adapter",
                "model": model or edits[0].fingerprint.model_name,
                "edits": [{"id": each.id, **each.to_dict()} for each in edits],
                "load": load,
            }
        )
    else:
        _print(edits, model or edits[0].fingerprint.model_name, load, whole=to_hf is not None)


def _write_model(edits: "list[Edit]", out: Path, *, model: str | None, dtype: str | None) -> None:
    from rome_lens.editing.export import export_model
    from rome_lens.loading.options import as_dtype

    precision = None if dtype is None else as_dtype(dtype)
    try:
        export_model(edits, model or edits[0].fingerprint.model_name, out, dtype=precision)
    except ModelNotFoundError as error:
        if model is not None:
            raise
        raise ModelNotFoundError(f"{error}; or name the model that the edit was made on with --model") from error


def _how_to_load(edits: "list[Edit]", out: Path, *, whole: bool) -> list[str]:
    """Two lines of Python; in front of an adapter's, what its `base` is."""
    if whole:
        return [
            "from transformers import AutoModelForCausalLM",
            f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})",
        ]
    name = edits[0].fingerprint.model_name
    return [
        f"# base: the unedited {name}, as transformers loads it",
        "from peft import PeftModel",
        f"model = PeftModel.from_pretrained(base, {str(out)!r})",
    ]


def _print(edits: "list[Edit]", model: str, load: list[str], *, whole: bool) -> None:
    from rome_lens.cli.edit_report import heading
    from rome_lens.cli.layout import count
    from rome_lens.figures import visible

    console = stdout()
    what = f"{model} with {count(len(edits), 'edit')}" if whole else f"an adapter of {count(len(edits), 'edit')}"
    console.print(visible(what), style="bold")
    for each in edits:
        console.print(f"  {heading(each)} (layer {each.layer})")
    console.print()
    for line in load:
        console.print(visible(line), soft_wrap=True)
