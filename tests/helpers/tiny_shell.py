"""What the tests of the commands share: a shell, and a tiny model in a folder, its second moments, an edit."""

import csv
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import torch
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

import rome_lens as rl
import rome_lens.loading
from rome_lens.backends import as_backend
from rome_lens.cli import app
from rome_lens.loading.tiny import word_model

PROMPT, SUBJECT, TARGET = "where stands {}", "the tower", "rome"
# Stands for the path of the second moment in a list of arguments.
C = "C1"
EDIT = ("edit", PROMPT, "--subject", SUBJECT, "--target", TARGET, "--second-moment", C)
FAST = (*EDIT, "--template", "it was old. {}", "--bare-weight", "0.9", "--generate", "3")
MODEL = ("--model", "MODEL")
AVERAGE = ("average", "--facts", "facts.json", *MODEL, "--samples", "2", "--noise", "1", "--window", "2")
COLOURS = {"NO_COLOR": "", "FORCE_COLOR": "1", "TERM": "xterm-256color"}
# What is loaded where nothing else is asked for, and for every option of loading: a value, and what it is called there.
LOADED = {"name": "smollm2-135m", "backend": "auto", "device": None, "dtype": "float32"}
LOADING = {
    "--model": ("gpt2", "name"),
    "--backend": ("transformer-bridge", "backend"),
    "--device": ("cpu", "device"),
    "--dtype": ("float64", "dtype"),
}
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
    return folder


FACTS = [("where stands {}", "the tower"), ("{} is in the city of", "paris"), ("{} was built in", "the old museum")]
FACTS += [("in {} it is", "rome"), ("{} stands", "a river")]


def write_facts(model, path):
    """A file of `FACTS` with what the model says there, and one fact that it does not know."""
    backend, records = as_backend(model), []
    for prompt, subject in FACTS:
        text = prompt.replace("{}", subject)
        ids = backend.tokenizer(text, add_special_tokens=False)["input_ids"]
        said = backend.tokenizer.decode([int(backend.logits(torch.tensor([ids]), keep=1)[0, -1].argmax())])
        records.append({"subject": subject, "prompt": text, "attribute": said})
    records.append(records[0] | {"attribute": "berlin" if records[0]["attribute"] != "berlin" else "rome"})
    path.write_text(json.dumps(records))


REQUESTS = [
    ("where stands {}", "the tower", "rome"),
    ("{} is in the city of", "paris", "berlin"),
    ("{} was built in", "the old museum", "paris"),
]
MORE = [("{} stands", "a river", "rome")]
MANY = ("edit", "--requests", "REQUESTS", "--second-moment", C, "--template", "{}", "--steps", "2")
PLUS = ("edit", "--plus", "SET", "--second-moment", C)


class TinyHouse:
    """A folder with the model, its second moments (`C0`, `C1`) and an edit (`EDIT`); made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = rl.load_model(write_tiny_model(folder / "tiny"))
        moments = rl.SecondMoment.collect(
            self.model, layers=[0, 1], texts="self", max_tokens=640, text_length=32, command="rome-lens stats"
        )
        self.places = {"MODEL": str(folder / "tiny"), "EDIT": str(folder / "edit.safetensors")}
        for layer, moment in moments.items():
            self.places[f"C{layer}"] = str(folder / f"C{layer}.safetensors")
            moment.save(self.places[f"C{layer}"])
        self.edit = rl.ROME(self.model, layer=1, second_moment=moments[1]).edit(rl.EditRequest(PROMPT, SUBJECT, TARGET))
        self.edit.save(self.places["EDIT"])

    def add_set(self):
        """A file of requests (`REQUESTS`), one of another (`MORE`), and a set of the facts of the first (`SET`)."""
        for name, requests in (("REQUESTS", REQUESTS), ("MORE", MORE)):
            self.places[name] = str(self.folder / f"{name}.json")
            fields = ("prompt", "subject", "target_new")
            Path(self.places[name]).write_text(json.dumps([dict(zip(fields, each, strict=True)) for each in requests]))
        self.moment = rl.SecondMoment.load(self.places["C1"])
        self.facts = self.editor().edit_together([rl.EditRequest(*each) for each in REQUESTS])
        self.places["SET"] = str(self.folder / "set.safetensors")
        self.facts.save(self.places["SET"])
        return self

    def editor(self, kind=rl.MEMIT, **settings):
        """The editor of `SET`."""
        return kind(self.model, second_moments=self.moment, context_templates=["{}"], v_num_grad_steps=2, **settings)

    def shell(self, monkeypatch):
        """A shell in which names of places become paths."""
        return shell_on(monkeypatch, self.model, self.places)


def shell_on(monkeypatch, model, places=None, **around):
    """Runs the command on this model; `loads` holds what it asked to be loaded."""
    shell = SimpleNamespace(loads=[], model=model, places=places or {})

    def load_model(name, *, progress, **settings):
        shell.loads.append({"name": name, **settings})
        return shell.model

    def run(*args, charset="utf-8", **env):
        args = [shell.places.get(str(arg), str(arg)) for arg in args]
        dumb = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}
        return CliRunner(charset=charset).invoke(app, args, env=dumb | around | env)

    shell.run = run
    monkeypatch.setattr(rome_lens.loading, "load_model", load_model)
    return shell


def ok(result):
    """What a command printed that had nothing to say on stderr."""
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    return result.stdout


def words_of(args, command):
    """The words of a command line; a text holds options that go behind this command."""
    return [*command, *shlex.split(args)] if isinstance(args, str) else args


def stdout_of(result):
    """What a command printed that ended well, whatever it had to say on stderr."""
    assert result.exit_code == 0, (result.stderr, result.exception)
    return result.stdout


def wrote(result, *files):
    """What a command printed that said on stderr what it wrote, and nothing else."""
    told = "".join(f"rome-lens: wrote {file}\n" for file in files)
    assert (result.exit_code, result.stderr) == (0, told), (result.stderr, result.exception)
    return result.stdout


def in_json(result):
    """What it printed for a machine."""
    return json.loads(ok(result))


def fitting(printed):
    """What was printed, without its colours: no line is too long, and nothing in it would be obeyed."""
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed)
    assert max(map(cell_len, plain.splitlines())) <= 80
    assert not [c for c in plain.replace("\n", "") if not c.isprintable()]
    return plain


def command_of(*words):
    """A command as typer has it."""
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    return command


def options_of(*words):
    """The options of a command."""
    return {p.opts[0] for p in command_of(*words).params if p.opts[0].startswith("--")}


def rows_of(path):
    """The rows of a CSV that a command wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def without(name, values):
    """Values but one, such as the seconds that were needed."""
    return {k: v for k, v in values.items() if k != name}


def refusal(result, *, code):
    """The one line on stderr of a command that failed; nothing else was said."""
    assert (result.exit_code, result.stdout) == (code, ""), (result.stderr, result.exception)
    assert result.stderr.startswith("rome-lens: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.strip().isprintable()
    return result.stderr.removeprefix("rome-lens: ").strip()
