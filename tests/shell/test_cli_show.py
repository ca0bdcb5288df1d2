"""`rome-lens show` and `rome-lens apply`: what is in our files, and what becomes of edits elsewhere."""

import json
import re
from dataclasses import replace

import pytest
import torch
from edits import changed
from safetensors.torch import save_file
from tiny_shell import COLOURS, PROMPT, SUBJECT, command_of, fitting, in_json, ok, options_of, refusal, stdout_of, wrote
from transformers import AutoModelForCausalLM, AutoTokenizer

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing import Probabilities
from rome_lens.storage import save_tensors

# The shell is under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def house(house):
    """With a trace."""
    house.places["TRACE"] = str(house.folder / "trace.safetensors")
    rl.causal_trace(house.model, "where stands the tower", subject=SUBJECT, noise=1.0).save(house.places["TRACE"])
    return house


@pytest.fixture
def shell(shell, house):
    shell.edit = house.edit
    return shell


def _said(result):
    """The output with its line breaks taken away."""
    return " ".join(ok(result).split())


def test_show_an_edit(shell):
    edit, path = shell.edit, shell.places["EDIT"]
    printed = ok(shell.run("show", "EDIT"))
    lines = printed.splitlines()
    heading = lines.index("where stands the tower → rome")
    assert re.fullmatch(rf"{re.escape(path)}: an edit, \d+\.\d kB", "".join(lines[:heading]))
    assert f"tiny · {edit.backend} · float32" in lines
    assert f"p(rome)  {edit.before.target:.3f} → {edit.after.target:.3f}" in lines
    assert re.search(rf"^p\({edit.old_answer.strip()}\) +{edit.before.old:.3f} → {edit.after.old:.3f}$", printed, re.M)
    said = " ".join(printed.split())
    cosine = edit.key_dot / edit.key_norm
    assert f"layer 1 of 3 (from 0), r-rome, |update| / |W| {edit.relative_norm:.3g}, cos(u, k*) {cosine:.3f}" in said
    assert f"loss {edit.loss_curve[0].total:.3f} → {edit.loss_curve[-1].total:.3f} in {len(edit.loss_curve)} st" in said
    for name in ("v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor", "bare_weight", "seed"):
        assert f"{name} {edit.settings[name]}" in said
    assert f"from: {edit.settings['source']}" in said
    assert "C second moment of 640 tokens of self (seed 0), from tiny" in said
    assert "module transformer.h.1.mlp.c_proj" in said
    templates = edit.settings["context_templates"]
    assert f"templates {' '.join(templates[:6])} and {len(templates) - 6} more (--json shows all)" in said
    assert f"id {edit.id}" in said
    assert re.fullmatch(r"edited in \d+\.\d s", lines[-1])


def test_notes_of_an_edit(shell, tmp_path):
    notes = ("settings: they are said elsewhere", "collected from 3 tokens, far too few")
    changed(shell.edit, notes=notes, module=None, loss_curve=()).save(tmp_path / "edit")
    said = _said(shell.run("show", tmp_path / "edit"))
    assert "note collected from 3 tokens, far too few" in said
    assert "they are said elsewhere" not in said
    assert "module unknown: it can go into a model folder, and not into an adapter" in said
    assert "loss" not in said


def test_show_a_second_moment(shell):
    moment = rl.SecondMoment.load(shell.places["C1"])
    said = _said(shell.run("show", "C1"))
    assert "a second moment, 9." in said
    assert f"layer 1 (from 0), 64 x 64 tiny · {moment.backend} · float32" in said
    assert f"text 640 tokens of self (seed 0) in {moment.n_pieces} pieces of at most 32 tokens, no BOS" in said
    for text in (f"made {moment.created}", "by rome-lens stats", f"text id {moment.digest}", "device cpu"):
        assert text in said
    assert f"transformer-lens {moment.versions['transformer-lens']}" in said
    assert "note" not in said


def test_show_a_second_moment_of_which_little_is_known(shell, tmp_path):
    rl.SecondMoment.from_matrix(torch.eye(8), layer=2).save(tmp_path / "C")
    said = _said(shell.run("show", tmp_path / "C"))
    assert "layer 2 (from 0), 8 x 8" in said
    assert "text an unknown number of tokens of a matrix BOS unknown" in said
    replace(rl.SecondMoment.from_matrix(torch.eye(8), layer=2), n_tokens=3).save(tmp_path / "C")
    assert "note collected from 3 tokens, fewer than the 8 rows of C" in _said(shell.run("show", tmp_path / "C"))


def test_show_a_trace(shell):
    trace = rl.CausalTrace.load(shell.places["TRACE"])
    said = _said(shell.run("show", "TRACE"))
    assert f"where stands the tower → {trace.answer.strip()} tiny · {trace.backend} · float32 on cpu · no BOS" in said
    assert "subject 'the tower', noise 1 (1), seed 1, samples 10" in said
    assert f"high, low {trace.high:.4f}, {trace.low:.4f} streams resid, mlp, attn, window 3" in said
    for title in ("residual state", "MLP outputs", "attention outputs"):
        assert f"Restoring the {title}" in said


def test_show_for_machines(shell):
    entries = in_json(shell.run("show", "--json", "EDIT", "C1", "TRACE"))
    assert [entry["kind"] for entry in entries] == ["edit", "second_moment", "causal_trace"]
    assert [entry["path"] for entry in entries] == [shell.places[name] for name in ("EDIT", "C1", "TRACE")]
    assert entries[0]["id"] == shell.edit.id
    assert entries[0]["loss_curve"] == [vars(loss) for loss in shell.edit.loss_curve]
    assert entries[0]["settings"] == json.loads(json.dumps(shell.edit.settings))
    assert entries[1]["n_tokens"] == 640
    assert list(entries[2]["scores"]) == ["resid", "mlp", "attn"]


def test_several_files_are_shown_apart(shell):
    one, both = ok(shell.run("show", "EDIT")), ok(shell.run("show", "EDIT", "C1"))
    assert both == f"{one}\n{ok(shell.run('show', 'C1'))}"


def _damaged(shell, tmp_path):
    """Files that are no use, and what is said of them."""
    whole = (shell.folder / "edit.safetensors").read_bytes()

    def written(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def edited(name, **changes):
        tensors = changes.pop("tensors", {"u": shell.edit.u, "v": shell.edit.v})
        save_tensors(tmp_path / name, kind="edit", tensors=tensors, settings={**shell.edit.to_dict(), **changes})
        return tmp_path / name

    save_file({"u": torch.ones(3)}, tmp_path / "foreign")
    save_tensors(tmp_path / "sums", kind="checkpoint", tensors={"u": torch.ones(3)}, settings={})
    return [
        (tmp_path / "nowhere", "there is no file 'PATH'; expected one that rome_lens saved"),
        (tmp_path, "cannot show 'PATH': it is a folder; name a file in it"),
        (written("empty", b""), "cannot read 'PATH': it is cut short, damaged or no safetensors file"),
        (written("text", b"an edit" * 9), "cannot read 'PATH': it is cut short, damaged or no safetensors file"),
        (written("cut", whole[:-9]), "cannot read 'PATH': it is cut short, damaged or no safetensors file"),
        (written("head", whole[:99]), "cannot read 'PATH': it is cut short, damaged or no safetensors file"),
        (tmp_path / "foreign", "cannot use 'PATH': expected a"),
        (tmp_path / "sums", "cannot show 'PATH': a checkpoint; show reads edit, edit_set, second_moment, causal_trace"),
        (edited("width", tensors={"u": torch.ones(3), "v": shell.edit.v}), "cannot use 'PATH': a damaged edit (u is"),
        (edited("names", tensors={"u": shell.edit.u}), "cannot use 'PATH': a damaged edit (KeyError: 'v')"),
        (edited("layer", layer=2), "cannot use 'PATH': a damaged edit (layer 2 with the fingerprint of layer 1)"),
        (edited("request", request={"prompt": "x"}), "cannot use 'PATH': a damaged edit ("),
        (edited("before", before={"target": "x", "old": 1}), "cannot "),
        (edited("variant", variant=7), "cannot "),
        (edited("answer", old_answer=None), "cannot "),
        (edited("templates", settings={"context_templates": 7}), "cannot "),
    ]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_damaged_files(shell, house, tmp_path, options):
    shell.folder = house.folder
    for path, start in _damaged(shell, tmp_path):
        result = shell.run("show", path, *options)
        if options and result.exit_code == 0:
            continue  # what is odd and not wrong is shown to machines as it is
        assert result.exit_code == 1, path
        assert result.stdout == ("[]\n" if options else "")
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"rome-lens: {start.replace('PATH', str(path))}"), result.stderr


def test_numbers_that_json_does_not_have(shell, tmp_path):
    changed(shell.edit, before=Probabilities(float("nan"), 0.5)).save(tmp_path / "edit")
    result = shell.run("show", "--json", tmp_path / "edit")
    assert (result.exit_code, result.stdout) == (1, "[]\n")
    assert "a damaged edit" in result.stderr


def test_a_damaged_file_does_not_hide_the_others(shell, tmp_path):
    result = shell.run("show", tmp_path / "nowhere", "EDIT")
    assert result.exit_code == 1
    assert result.stderr == f"rome-lens: there is no file '{tmp_path}/nowhere'; expected one that rome_lens saved\n"
    assert result.stdout == ok(shell.run("show", "EDIT"))
    entries = json.loads(shell.run("show", tmp_path / "nowhere", "EDIT", "--json").stdout)
    assert [entry["kind"] for entry in entries] == ["edit"]


@pytest.mark.parametrize("name", ["EDIT", "C1", "TRACE"])
@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "colours"])
def test_no_line_of_show_is_longer_than_eighty_columns(shell, name, colours):
    fitting(ok(shell.run("show", name, **colours)))


def test_escapes_in_a_file_are_shown(shell, tmp_path):
    request = replace(shell.edit.request, target_new="\x1b[31mred\x07 [bold]")
    changed(shell.edit, request=request, variant="\x1b]0;x\x07", notes=("\x9b31m",)).save(tmp_path / "edit")
    assert "where stands the tower → ␛[31mred␇ [bold]" in fitting(ok(shell.run("show", tmp_path / "edit")))
    assert ok(shell.run("show", "EDIT", charset="ascii")).isascii()


def test_apply_writes_a_model_that_transformers_loads(shell, tmp_path):
    out = tmp_path / "out"
    lines = wrote(shell.run("apply", "EDIT", "--model", "MODEL", "--to-hf", out), out).splitlines()
    assert lines[-2:] == [
        "from transformers import AutoModelForCausalLM",
        f"model = AutoModelForCausalLM.from_pretrained({str(out)!r})",
    ]
    assert "  where stands the tower → rome (layer 1)" in lines
    said = {}
    exec("\n".join(lines[-2:]), said)
    tokenizer = AutoTokenizer.from_pretrained(out)
    plain = AutoModelForCausalLM.from_pretrained(shell.places["MODEL"])
    ids = torch.tensor([tokenizer("where stands the tower", add_special_tokens=False)["input_ids"]])
    target = tokenizer("rome", add_special_tokens=False)["input_ids"][0]
    for model, expected in ((plain, shell.edit.before), (said["model"], shell.edit.after)):
        probability = model(ids).logits[0, -1].softmax(-1)[target].item()
        assert probability == pytest.approx(expected.target, abs=1e-5)


def test_apply_writes_an_adapter_that_peft_loads(shell, tmp_path):
    pytest.importorskip("peft")
    out = tmp_path / "out"
    report = json.loads(wrote(shell.run("apply", "EDIT", "--to-peft", out, "--json"), out))
    assert (report["path"], report["kind"], report["model"]) == (str(out), "adapter", "tiny")
    assert [each["id"] for each in report["edits"]] == [shell.edit.id]
    said = {"base": AutoModelForCausalLM.from_pretrained(shell.places["MODEL"])}
    exec("\n".join(report["load"]), said)
    change = said["model"].merge_and_unload().transformer.h[1].mlp.c_proj.weight
    plain = AutoModelForCausalLM.from_pretrained(shell.places["MODEL"]).transformer.h[1].mlp.c_proj.weight
    torch.testing.assert_close(change - plain, shell.edit.update, rtol=0, atol=1e-5)


def test_apply_in_another_precision(shell, tmp_path):
    result = shell.run("apply", "EDIT", "-m", "MODEL", "--to-hf", tmp_path / "out", "--dtype", "float64", "--json")
    assert json.loads(stdout_of(result))["model"] == shell.places["MODEL"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float64"


def test_apply_needs_no_model_name_where_the_edit_knows_it(shell, tmp_path, monkeypatch):
    from rome_lens.editing import export

    written = []
    monkeypatch.setattr(export, "export_model", lambda edits, name, out, dtype: written.append(name))
    assert shell.run("apply", "EDIT", "--to-hf", tmp_path / "out").exit_code == 0
    assert written == ["tiny"]


REFUSED = {
    "no file": (2, "apply", "missing argument 'EDIT' (see 'rome-lens apply --help')"),
    "nothing to show": (2, "show", "missing argument 'FILE' (see 'rome-lens show --help')"),
    "no folder": (2, "apply EDIT", "neither --to-hf nor --to-peft is given; name one folder to write"),
    "both": (2, "apply EDIT --to-hf a --to-peft b", "--to-hf and --to-peft are both given; name one"),
    "model": (2, "apply EDIT --to-peft a -m gpt2", "--model goes with --to-hf; an adapter holds the"),
    "dtype": (2, "apply EDIT --to-peft a --dtype float16", "--dtype goes with --to-hf; an adapter"),
    "unknown dtype": (2, "apply EDIT --to-hf NEW --dtype int8", "dtype is 'int8'; choose one of"),
    "no edit": (1, "apply /nowhere --to-hf NEW", "there is no file '/nowhere'; expected one that rome_lens"),
    "moment": (1, "apply C1 --to-hf NEW", "cannot use "),
    "twice": (2, "apply EDIT EDIT --to-peft NEW", "the edit 'where stands the tower' -> 'rome' (layer 1)"),
    "taken": (1, "apply EDIT --to-peft MODEL", "cannot write "),
    "other model": (1, "apply EDIT --to-hf NEW -m OTHER", "the edit was made for layer 1 of tiny, and"),
    "no such model": (1, "apply EDIT --to-hf NEW", "MODEL_ERROR"),
}


@pytest.mark.parametrize(("code", "args", "start"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(shell, tmp_path, monkeypatch, code, args, start):
    monkeypatch.chdir(tmp_path)
    if "OTHER" in args:
        other = AutoModelForCausalLM.from_pretrained(shell.places["MODEL"])
        other.transformer.h[1].mlp.c_proj.weight.data *= -1
        other.save_pretrained(tmp_path / "OTHER")
        AutoTokenizer.from_pretrained(shell.places["MODEL"]).save_pretrained(tmp_path / "OTHER")
    result = shell.run(*args.split())
    if start == "MODEL_ERROR":
        assert refusal(result, code=code).endswith("; or name the model that the edit was made on with --model")
    else:
        assert refusal(result, code=code).startswith(start)
    assert not (tmp_path / "NEW").exists()


def test_every_option_of_show_and_apply_has_a_test():
    assert options_of("show") == {"--json"}
    # What --without and --save do is in test_cli_sets.py.
    loading, out = {"--model", "--dtype"}, {"--to-hf", "--to-peft", "--save", "--json"}
    assert options_of("apply") == {*loading, *out, "--without"}
    assert [p.name for name in ("show", "apply") for p in command_of(name).params if not p.help] == []


def test_an_edit_from_the_shell_is_shown_and_applied_by_the_shell(shell, tmp_path):
    args = ("-s", SUBJECT, "-t", "berlin", "--second-moment", "C0", "--save", tmp_path / "berlin", "--generate", "0")
    assert shell.run("edit", PROMPT, *args).exit_code == 0
    assert "where stands the tower → berlin" in ok(shell.run("show", tmp_path / "berlin"))
    both = shell.run("apply", "EDIT", tmp_path / "berlin", "-m", "MODEL", "--to-hf", tmp_path / "out")
    assert "with 2 edits" in " ".join(stdout_of(both).split())
    edited = as_backend(rl.load_model(tmp_path / "out")).w_out(1).matrix
    expected = as_backend(shell.model).w_out(1).matrix + shell.edit.update
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-5)
