"""What the tests of the editing commands share: a tiny model in a folder, its second moments, an edit, a shell."""

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from typer.testing import CliRunner

import rome_lens as rl
import rome_lens.loading
from rome_lens.backends import as_backend
from rome_lens.cli import app
from rome_lens.loading.tiny import word_model

PROMPT, SUBJECT, TARGET = "where stands {}", "the tower", "rome"
# Stands for the path of the second moment in a list of arguments.
C = "C1"
# The capitals begin the texts that the model writes.
_WORDS = "the tower is in city of paris rome berlin where museum it a stands river built old . ? was and "
_WORDS += "The In It When There We A For This As"


def write_tiny_model(folder):
    """A GPT-2 of three layers and random weights whose words are `_WORDS`, as Hugging Face keeps one."""
    made = word_model("tiny", _WORDS.split(), n_positions=64, n_layer=3)
    with torch.no_grad():
        made.model.transformer.wte.weight *= 1.5
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)


FACTS = [("where stands {}", "the tower"), ("{} is in the city of", "paris"), ("{} was built in", "the old museum")]
FACTS += [("in {} it is", "rome"), ("{} stands", "a river")]


def write_facts(model, path):
    """A file of `FACTS` with what the model says there, and one fact that it does not know."""
    backend, records = as_backend(model), []
    for prompt, subject in FACTS:
        ids = backend.tokenizer(prompt.replace("{}", subject), add_special_tokens=False)["input_ids"]
        said = backend.tokenizer.decode([int(backend.logits(torch.tensor([ids]), keep=1)[0, -1].argmax())])
        records.append({"subject": subject, "prompt": prompt.replace("{}", subject), "attribute": said})
    records.append(records[0] | {"attribute": "berlin" if records[0]["attribute"] != "berlin" else "rome"})
    path.write_text(json.dumps(records))


class TinyHouse:
    """A folder with the model, its second moments (`C0`, `C1`) and an edit (`EDIT`); made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_tiny_model(folder / "tiny")
        self.model = rl.load_model(folder / "tiny")
        moments = rl.SecondMoment.collect(
            self.model, layers=[0, 1], texts="self", max_tokens=640, text_length=32, command="rome-lens stats"
        )
        self.places = {"MODEL": str(folder / "tiny"), "EDIT": str(folder / "edit.safetensors")}
        for layer, moment in moments.items():
            self.places[f"C{layer}"] = str(folder / f"C{layer}.safetensors")
            moment.save(self.places[f"C{layer}"])
        self.edit = rl.ROME(self.model, layer=1, second_moment=moments[1]).edit(rl.EditRequest(PROMPT, SUBJECT, TARGET))
        self.edit.save(self.places["EDIT"])

    def shell(self, monkeypatch):
        """Runs the command on this model; `loads` holds what it asked to be loaded. Names of places become paths."""
        shell = SimpleNamespace(loads=[], model=self.model, places=self.places)

        def load_model(name, *, progress, **settings):
            shell.loads.append({"name": name, **settings})
            return shell.model

        def run(*args, charset="utf-8", **env):
            args = [self.places.get(str(arg), str(arg)) for arg in args]
            places = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
            return CliRunner(charset=charset).invoke(app, args, env=places | env)

        shell.run = run
        monkeypatch.setattr(rome_lens.loading, "load_model", load_model)
        return shell


def ok(result):
    """What a command printed that had nothing to say on stderr."""
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def refusal(result, *, code):
    """The one line on stderr of a command that failed; nothing else was said."""
    assert (result.exit_code, result.stdout) == (code, ""), (result.stderr, result.exception)
    assert result.stderr.startswith("rome-lens: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.strip().isprintable()
    return result.stderr.removeprefix("rome-lens: ").strip()
