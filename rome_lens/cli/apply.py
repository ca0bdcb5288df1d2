"""`rome-lens apply`: edits as a model folder for transformers, or as a LoRA adapter for peft."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from rome_lens.checks import whole_number
from rome_lens.cli.options import JSON, MODEL, OUT, argument, read_edits, takes_options
from rome_lens.cli.output import check_files, print_json, progress_bar, say, stdout
from rome_lens.errors import ModelNotFoundError, SettingError


@dataclass(frozen=True)
class _ApplyOptions:
    """Which edits become what, and on which model."""

    files: list[Path] = argument(
        "Edits, or sets of facts, that 'rome-lens edit --save' or Edit.save wrote; several go into one folder.",
        "EDIT",
        default=MISSING,
        shown=False,
    )
    to_hf: Path | None = OUT("Write the edited model, for transformers.", metavar="FOLDER")
    to_peft: Path | None = OUT(
        "Write a LoRA adapter, for peft; it needs no model, its rank is the number of keys on a layer; "
        "fine-tuned edits, and sets whose factors are larger than the matrix, have none.",
        metavar="FOLDER",
    )
    save: Path | None = OUT("Write the set of facts that --without leaves.")
    without: list[int] | None = OUT(
        "Leave this fact out, by its number in 'rome-lens show'; the set is solved anew. Repeat it for several.",
        metavar="N",
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
        """What to write.

        Raises:
            SettingError: nothing is named, or two are; an adapter or a set is asked for from a model; or a set is, and
                nothing is left out of it.
        """
        named = {"--to-hf": self.to_hf, "--to-peft": self.to_peft, "--save": self.save}
        given = [name for name, out in named.items() if out is not None]
        if not given and self.without is not None:
            raise SettingError("none of --to-hf, --to-peft and --save is given; name one to write")
        if not given:
            raise SettingError("neither --to-hf nor --to-peft is given; name one folder to write")
        if len(given) > 1:
            raise SettingError(f"{' and '.join(given)} are {'both' if len(given) == 2 else 'all'} given; name one")
        if self.to_hf is None and (self.model is not None or self.dtype is not None):
            name = "--model" if self.model is not None else "--dtype"
            what = "an adapter holds the edits" if self.save is None else "a set holds its facts"
            raise SettingError(f"{name} goes with --to-hf; {what} alone, for the model that they were made on")
        if self.save is not None and self.without is None:
            raise SettingError(
                "--save goes with --without, and writes the set that is left; give the facts to leave out"
            )
        if self.without is not None and len(self.files) > 1:
            raise SettingError(f"--without goes with one set of facts, and {len(self.files)} files are given; give one")
        return named[given[0]]  # pyright: ignore[reportReturnType]

    def edits(self) -> list[Any]:
        """What the files hold, without the facts that are left out.

        Raises:
            SettingError: the file holds no set of facts, or not that fact, or facts cannot be taken out of it.
            ArtefactError: a file cannot be read.
        """
        edits = read_edits(self.files)
        if self.without is None:
            return edits
        from rome_lens.editing import EditSet

        (facts,), (file,) = edits, self.files
        if not isinstance(facts, EditSet):
            raise SettingError(f"{str(file)!r} holds an edit of one fact, and --without goes with a set of facts")
        for number in self.without:
            whole_number("without", number, least=0, most=len(facts) - 1, expected="the number of a fact")
        if facts.terms.spread == "released":
            raise SettingError(
                f"the layers of {str(file)!r} gain one after the other (spread released), which has to be looked at on "
                "the model; leave facts out of it in Python: .without(…, editor=…)"
            )
        return [facts.without(*self.without)]


@takes_options
def apply(what: _ApplyOptions, as_json: bool = JSON) -> None:
    """Put edits into a model, and write what others can load without rome-lens or TransformerLens.

    With --without facts are taken out of a set first, which then is the set that
    would have been found without them; --save keeps that one.

    For example: rome-lens apply rome.safetensors --to-hf edited-model
    """
    out = what.out
    check_files(what.save)
    with progress_bar() as progress:
        from rome_lens.cli.edit_report import heading
        from rome_lens.cli.printing import count
        from rome_lens.editing.export import export_adapter, export_model
        from rome_lens.editing.patch import layer_names
        from rome_lens.figures import visible
        from rome_lens.loading.options import as_dtype

        edits = what.edits()
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
        elif what.save is not None:
            edits[0].save(out)
            kind, title = "edit_set", f"a set of {count(len(edits[0]), 'fact')}"
            load = ["import rome_lens as rl", f"facts = rl.load_edit({str(out)!r})"]
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
        console.print(f"  {heading(each)} ({layer_names(each)})")
    console.print()
    for line in load:
        console.print(visible(line), soft_wrap=True)
