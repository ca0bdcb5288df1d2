"""`rome-lens apply`: edits as a model folder for transformers, or as a LoRA adapter for peft."""

from dataclasses import MISSING, dataclass
from pathlib import Path

from rome_lens.cli.options import JSON, MODEL, OUT, argument, read_edits, takes_options
from rome_lens.cli.output import print_json, progress_bar, say, stdout
from rome_lens.errors import ModelNotFoundError, SettingError


@dataclass(frozen=True)
class _ApplyOptions:
    """Which edits become what, and on which model."""

    files: list[Path] = argument(
        "Edits that 'rome-lens edit --save' or Edit.save wrote; several go into one folder.",
        "EDIT",
        default=MISSING,
        shown=False,
    )
    to_hf: Path | None = OUT("Write the edited model, for transformers.", metavar="FOLDER")
    to_peft: Path | None = OUT(
        "Write a LoRA adapter, for peft; it needs no model, its rank is the number of edits on a layer; "
        "fine-tuned edits have none.",
        metavar="FOLDER",
    )
    model: str | None = MODEL(
        "The unedited model: smollm2-135m, a folder, or a hub name. Another one is refused.",
        "-m",
        metavar="NAME",
        shown="the name in the edit",
    )
    dtype: str | None = MODEL(
        "float32, float64, bfloat16 or float16; the last two round edits away in part.",
        metavar="DTYPE",
        shown="what the edits were made in",
    )

    @property
    def out(self) -> Path:
        """The folder to write.

        Raises:
            SettingError: none is named, or two are, or an adapter is asked for from a model.
        """
        out = self.to_hf or self.to_peft
        if out is None or (self.to_hf is not None and self.to_peft is not None):
            which = "neither --to-hf nor --to-peft is" if out is None else "--to-hf and --to-peft are both"
            raise SettingError(f"{which} given; name one folder to write")
        if self.to_peft is not None and (self.model is not None or self.dtype is not None):
            name = "--model" if self.model is not None else "--dtype"
            raise SettingError(
                f"{name} goes with --to-hf; an adapter holds the edits alone, for the model that they were made on"
            )
        return out


@takes_options
def apply(what: _ApplyOptions, as_json: bool = JSON) -> None:
    """Put edits into a model, and write what others can load without rome-lens or TransformerLens.

    For example: rome-lens apply rome.safetensors --to-hf edited-model
    """
    out = what.out
    with progress_bar() as progress:
        from rome_lens.cli.edit_report import heading
        from rome_lens.cli.printing import count
        from rome_lens.editing.export import export_adapter, export_model
        from rome_lens.figures import visible
        from rome_lens.loading.options import as_dtype

        edits = read_edits(what.files)
        base = edits[0].fingerprint.model_name
        progress(0, 0, "writing")
        model = what.model or base
        if what.to_hf is not None:
            try:
                export_model(edits, model, out, dtype=None if what.dtype is None else as_dtype(what.dtype))
            except ModelNotFoundError as error:
                hint = "" if what.model is not None else "; or name the model that the edit was made on with --model"
                raise ModelNotFoundError(f"{error}{hint}") from error
            kind, title = "model", f"{model} with {count(len(edits), 'edit')}"
            load = [
                "from transformers import AutoModelForCausalLM",
                f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})",
            ]
        else:
            export_adapter(edits, out)
            kind, title = "adapter", f"an adapter of {count(len(edits), 'edit')}"
            load = [
                f"# base: the unedited {base}, as transformers loads it",
                "from peft import PeftModel",
                f"model = PeftModel.from_pretrained(base, {str(out)!r})",
            ]
    say(f"wrote {out}")
    if as_json:
        written = [{"id": each.id, **each.to_dict()} for each in edits]
        print_json({"path": str(out), "kind": kind, "model": model, "edits": written, "load": load})
        return
    console = stdout()
    console.print(visible(title), style="bold")
    for each in edits:
        console.print(f"  {heading(each)} (layer {each.layer})")
    console.print()
    for line in load:
        console.print(visible(line), soft_wrap=True)
