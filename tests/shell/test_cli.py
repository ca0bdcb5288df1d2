"""The command line: what goes to stdout and to stderr, exit codes, and that every option does something."""

import io
import json
import re
import subprocess
import sys

import pytest
from tiny_shell import (
    COLOURS,
    LOADED,
    LOADING,
    fitting,
    in_json,
    ok,
    options_of,
    refusal,
    shell_on,
    without,
    write_tiny_model,
    wrote,
)

import rome_lens
import rome_lens.loading
import rome_lens.loading.tiny
from rome_lens import CausalTrace, causal_trace, errors
from rome_lens.cli.output import progress_bar
from rome_lens.loading.options import has_hooked_transformer

PROMPT, SUBJECT = "the tower is in the city of", "the tower"
TRACE = ("trace", PROMPT, "--subject", SUBJECT, "--noise", "1")
# Prompts that a terminal, rich or a browser would obey, and how they are shown.
NASTY = {
    "[bold red]x[/] the tower is in": "[bold red]x[/] the tower is in",
    ":smile: {} $x$ the tower is in": ":smile: {} $x$ the tower is in",
    "<script>alert(1)</script> the tower is": "<script>alert(1)</script> the tower is",
    "the tower \x1b[31m\x1b]0;title\x07 is in": "the tower ␛[31m␛]0;title␇ is in",
    "is\rin\u202e\nthe tower \x9b31m is": "is␍in\\u202e↵the tower \\x9b31m is",
}

# The shell is under test here; what is computed has tests of its own.
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def shell(monkeypatch, tiny, tmp_path):
    """The cache is empty."""
    return shell_on(monkeypatch, tiny, ROME_LENS_CACHE=str(tmp_path / "cache"))


def test_json_holds_the_numbers_of_causal_trace(shell, tiny):
    expected = causal_trace(tiny, PROMPT, subject=SUBJECT, noise=1.0).to_dict()
    assert without("seconds", in_json(shell.run(*TRACE, "--json"))) == without(
        "seconds", json.loads(json.dumps(expected))
    )


def test_the_printed_trace(shell, tiny):
    trace = causal_trace(tiny, PROMPT, subject=SUBJECT, noise=1.0)
    lines = ok(shell.run(*TRACE)).splitlines()
    assert lines[0] == f"{PROMPT} → city"
    assert lines[1] == f"tiny · {trace.backend} · float32 on cpu · no BOS"
    assert lines[2] == f"high {trace.high:.4f}  clean run"
    assert lines[3] == f"low  {trace.low:.4f}  subject under noise of 1, 10 samples, seed 1"
    assert [line for line in lines if line.startswith("Restoring")] == [
        "Restoring the residual state",
        "Restoring the MLP outputs",
        "Restoring the attention outputs",
    ]
    assert "  the*│" in lines[6]
    assert "tower*│" in lines[7]
    assert "    is│" in lines[8]
    for stream in trace.scores:
        layer, pos = trace.peak(stream, positions=range(2))
        token = trace.marked_tokens()[pos]
        best = f'  best of the subject: layer {layer}, p = {trace.scores[stream][layer, pos]:.3f}, token "{token}"'
        assert best in lines
    assert re.fullmatch(r"traced in \d+\.\d s", lines[-1])


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--noise", "s3"), "subject under noise of 0.208 (s3), 10 samples, seed 1"),
        (("--noise", "u2", "--samples", "1"), "subject under noise of 2 (u2), 1 sample, seed 1"),
        (("--noise-replaces", "--seed", "5"), "subject replaced by noise of 1, 10 samples, seed 5"),
    ],
)
def test_the_printed_noise(shell, args, line):
    assert line in ok(shell.run(*TRACE, *args))


def test_the_printed_swap(shell):
    assert "  subject swapped for 'the city'" in ok(shell.run(*TRACE[:4], "--swap", "the city"))


def test_without_arguments_it_traces_the_capital_of_south_korea(shell):
    result = shell.run("trace", "--json", "--answer", "city")
    # The tiny model has no word for it.
    assert in_json(result)["prompt"] == "The capital of South Korea is"
    assert shell.loads[0]["name"] == "smollm2-135m"


def _facts(folder):
    path = folder / "facts.json"
    records = [{"subject": "the city", "prompt": "{} is in", "attribute": "the tower"}] * 2
    path.write_text(json.dumps(records))
    return path


# For every option: arguments that hold it, and what of the result it changes (or of what is loaded).
EFFECTS = {
    "--subject": (["--subject", "tower"], {"subject": "tower", "subject_span": [1, 2]}),
    "--expect": (["--expect", "city"], {"answer": " city"}),
    "--answer": (["--answer", "in the"], {"answer": " in the"}),
    "--answer-joined": (["--answer", "in the", "--answer-joined", "  "], {"answer": "  in the"}),
    "--occurrence": (["--subject", "the", "--occurrence", "2"], {"subject_span": [4, 5]}),
    "--stream": (["--stream", "attn", "--stream", "mlp"], {"scores": lambda v: list(v) == ["mlp", "attn"]}),
    "--severed": (["--severed", "mlp"], {"severed": lambda v: list(v) == ["mlp"]}),
    "--heads-at": (
        ["--stream", "heads", "--heads-at", "last-subject"],
        {"heads_at": 1, "scores": lambda v: "heads" in v},
    ),
    "--heads-window": (["--stream", "heads", "--heads-window", "2"], {"heads_window": 2}),
    "--neurons": (["--neurons", "3"], {"neurons": lambda v: len(v["neurons"]) == 3}),
    "--neurons-at": (
        ["--neurons", "3", "--neurons-at", "1,-1"],
        {"neurons": lambda v: (v["layer"], v["pos"]) == (1, 6)},
    ),
    "--window": (["--window", "1"], {"window": 1, "scores": None}),
    "--samples": (["--samples", "3"], {"samples": 3, "low": None, "scores": None}),
    "--noise": (["--noise", "s2"], {"noise_rule": "s2", "noise": None, "low": None}),
    "--noise-replaces": (["--noise-replaces"], {"noise_replaces": True, "low": None, "scores": None}),
    "--swap": (["--swap", "the city"], {"swap": "the city", "samples": 1, "low": None}),
    "--measure": (["--measure", "kl"], {"measure": "kl", "high": 0.0, "scores": None}),
    "--against": (
        ["--measure", "logit_difference", "--against", "tower"],
        {"measure": "logit_difference", "against": " tower", "low": None},
    ),
    "--facts": (["--noise", "s3", "--facts", "FACTS"], {"noise": lambda v: v != pytest.approx(0.208, abs=1e-3)}),
    "--seed": (["--seed", "2"], {"seed": 2, "low": None, "scores": None}),
    "--bos": (["--bos"], {"prepend_bos": True, "tokens": lambda v: v[0] == "<|end|>"}),
    "--engine": (["--engine", "plain"], {"engine": "plain"}),
}
CHAT = {"--chat", "--reply"}
WRITING = {"--html", "--png", "--save", "--json"}


def test_every_option_of_trace_has_a_test():
    # What --edit does is in test_trace_edits.py, chats are in test_cli_chat.py.
    assert options_of("trace") == {*EFFECTS, *LOADING, *WRITING, *CHAT, "--edit"}


@pytest.mark.parametrize("option", EFFECTS)
def test_options_that_change_the_trace(shell, tmp_path, option):
    args, changes = EFFECTS[option]
    args = [str(_facts(tmp_path)) if arg == "FACTS" else arg for arg in args]
    given = TRACE[:4] if "--swap" in args else TRACE
    before, after = in_json(shell.run(*TRACE, "--json")), in_json(shell.run(*given, *args, "--json"))
    for name, expected in changes.items():
        assert after[name] != before.get(name)
        if callable(expected):
            assert expected(after[name])
        elif expected is not None:
            assert after[name] == expected


@pytest.mark.parametrize("option", LOADING)
def test_options_that_change_what_is_loaded(shell, option):
    value, name = LOADING[option]
    ok(shell.run(*TRACE))
    ok(shell.run(*TRACE, option, value))
    assert shell.loads == [LOADED, LOADED | {name: value}]


def test_short_options(shell):
    assert in_json(shell.run("trace", PROMPT, "-s", SUBJECT, "-m", "gpt2", "--json"))["subject"] == SUBJECT
    assert shell.loads[0]["name"] == "gpt2"


def test_save_and_html(shell, tmp_path, tiny):
    saved, page = tmp_path / "trace.safetensors", tmp_path / "trace.html"
    wrote(shell.run(*TRACE, "--save", saved, "--html", page), saved, page)
    trace = CausalTrace.load(saved)
    expected = causal_trace(tiny, PROMPT, subject=SUBJECT, noise=1.0)
    assert without("seconds", trace.to_dict()) == without("seconds", expected.to_dict())
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert PROMPT in page.read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trace.html", "trace.safetensors"]


@pytest.mark.usefixtures("pngs")
def test_png(shell, tmp_path):
    assert shell.run(*TRACE, "--png", tmp_path / "trace.png").exit_code == 0
    assert (tmp_path / "trace.png").read_text().startswith(f"3 {PROMPT}")


def test_png_without_kaleido_is_refused_before_any_work(shell, tmp_path, monkeypatch):
    for module in ("kaleido", "kaleido.errors"):
        monkeypatch.setitem(sys.modules, module, None)
    result = shell.run(*TRACE, "--png", tmp_path / "trace.png", "--save", tmp_path / "trace")
    assert refusal(result, code=1) == (
        "writing a PNG needs the extra 'images': pip install 'rome-lens[images]', and a Chrome or Chromium browser; "
        "an HTML figure needs neither"
    )
    assert shell.loads == []
    assert list(tmp_path.iterdir()) == []


BEFORE_LOADING = {
    "unknown command": (2, ["trce"], "no such command 'trce'; did you mean 'trace'? (see 'rome-lens --help')"),
    "unknown option": (2, [*TRACE, "--layers", "3"], "no such option: --layers"),
    "no number": (2, [*TRACE, "--samples", "many"], "invalid value for '--samples'"),
    "half a number": (2, [*TRACE, "--window", "1.5"], "invalid value for '--window'"),
    "one argument too many": (2, [*TRACE, "of"], "got unexpected extra argument"),
    "no value": (2, [*TRACE, "--seed"], "requires an argument"),
    "prompt alone": (2, ["trace", PROMPT], "--subject is missing; give a prompt and its --subject, or neither"),
    "subject alone": (2, ["trace", "-s", SUBJECT], "PROMPT is missing; give a prompt and its --subject, or neither"),
    "stream": (2, [*TRACE, "--stream", "mpl"], "stream is 'mpl'; choose from resid, mlp, attn"),
    "samples": (2, [*TRACE, "--samples", "0"], "samples is 0; expected a whole number"),
    "noise": (2, [*TRACE, "--noise=-1"], "noise is '-1'; expected a number"),
    "noise nan": (2, [*TRACE, "--noise", "nan"], "noise is 'nan'; expected a number"),
    "seed": (2, [*TRACE, "--seed=-1"], "seed is -1; expected a whole number"),
    "engine": (2, [*TRACE, "--engine", "fast"], "engine is 'fast'; choose one of auto, plain"),
    "occurrence": (2, [*TRACE, "--occurrence", "0"], "occurrence is 0; expected 1"),
    "two answers": (2, [*TRACE, "--answer", "city", "--expect", "tower"], "answer 'city' and expect 'tower' differ"),
    "empty prompt": (1, ["trace", "", "-s", "x"], "the prompt is empty; expected a text"),
    "subject": (1, ["trace", PROMPT, "-s", "Louvre"], "the subject 'Louvre' is not in the prompt"),
    "occurrence that is not there": (1, [*TRACE, "--occurrence", "2"], "occurrence 2 of the subject 'the tower'"),
    "facts": (1, [*TRACE, "--facts", "/nowhere.json"], "there is no file '/nowhere.json' to read facts from"),
    "folder": (1, [*TRACE, "--save", "/nowhere/trace"], "cannot write '/nowhere/trace': there is no folder"),
    "html": (1, [*TRACE, "--html", "/nowhere/trace"], "cannot write '/nowhere/trace': there is no folder"),
    "png": (1, [*TRACE, "--png", "/nowhere/trace"], "cannot write '/nowhere/trace': there is no folder"),
    "window": (2, [*TRACE, "--window", "31"], "window is 31; expected a whole number of layers from 1 to 30"),
    "swap and noise": (2, [*TRACE, "--swap", "the city"], "swap is 'the city' and a noise rule was given too"),
    "empty answer": (1, [*TRACE, "--answer", ""], "the answer '' is empty"),
}
AFTER_LOADING = {
    "window": (2, [*TRACE, "--window", "3"], "window is 3; expected a whole number of layers from 1 to 2"),
    "swap": (1, [*TRACE[:4], "--swap", "city"], "swap 'city' takes 1 tokens where 'the tower' takes 2"),
    "fact": (1, [*TRACE, "--expect", "tower"], "the model does not know this fact: it continues with 'city'"),
    "answer": (1, [*TRACE, "--answer", "Paris"], "the answer 'Paris' becomes '<|end|>'"),
    "context": (1, ["trace", "the " * 17, "-s", "the"], "the prompt takes 17 positions, and tiny has 16"),
}


@pytest.mark.parametrize(("code", "args", "start"), BEFORE_LOADING.values(), ids=BEFORE_LOADING)
def test_what_is_refused_before_anything_is_loaded(shell, code, args, start):
    assert start in refusal(shell.run(*args), code=code)
    assert shell.loads == []


@pytest.mark.parametrize(("code", "args", "start"), AFTER_LOADING.values(), ids=AFTER_LOADING)
def test_what_only_the_model_can_refuse(shell, tmp_path, code, args, start):
    result = shell.run(*args, "--json", "--save", tmp_path / "trace", "--html", tmp_path / "page")
    assert refusal(result, code=code).startswith(start)
    assert list(tmp_path.iterdir()) == []


def _failing(monkeypatch, error):
    def load_model(name, **_):
        raise error

    monkeypatch.setattr(rome_lens.loading, "load_model", load_model)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ModelNotFoundError("no such model"), 1),
        (errors.DownloadError("no network"), 1),
        (errors.ModelError("two\nlines"), 1),
        (errors.OutOfMemoryError("no memory"), 1),
        (errors.SettingError("dtype is 'int8'"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_while_loading(shell, monkeypatch, error, code):
    _failing(monkeypatch, error)
    said = refusal(shell.run(*TRACE), code=code)
    assert said == (" ".join(str(error).split()) or "interrupted")


def test_escapes_in_an_error_are_shown(shell, monkeypatch):
    _failing(monkeypatch, errors.ModelError("\x1b]0;title\x07 \x9b31m\u202e is no model"))
    said = refusal(shell.run(*TRACE), code=1)
    assert said == "\\x1b]0;title\\x07 \\x9b31m\\u202e is no model"


def test_a_bug_of_ours_is_not_hidden(shell, monkeypatch):
    _failing(monkeypatch, ZeroDivisionError())
    result = shell.run(*TRACE)
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_disk_without_room(shell):
    said = refusal(shell.run(*TRACE, "--save", "/dev/full"), code=1)
    assert said == "cannot write '/dev/full': no room is left on the disk; free some, or choose another place"


@pytest.mark.parametrize("prompt", NASTY)
@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "colours"])
def test_a_prompt_is_shown_and_not_interpreted(shell, prompt, colours):
    printed = ok(shell.run("trace", prompt, "-s", SUBJECT, "--noise", "1", **colours))
    # With colours the output has escapes of its own: to begin a style and to end it, and no red.
    assert ("\x1b" in printed) == bool(colours)
    assert "\x1b[31m" not in printed
    assert fitting(printed).splitlines()[0].startswith(f"{NASTY[prompt]} →")


@pytest.mark.parametrize("prompt", NASTY)
def test_a_prompt_in_json_and_in_a_page_is_data(shell, tmp_path, prompt):
    result = shell.run("trace", prompt, "-s", SUBJECT, "--noise", "1", "--json", "--html", tmp_path / "page.html")
    assert json.loads(result.stdout)["prompt"] == prompt
    assert result.stdout.replace("\n", "").isprintable()
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert not {"\x1b", "\u202e", "\x9b"} & set(page)


@pytest.mark.parametrize(
    ("args", "code"), [(["trace", "a\x1b[31m\nb", "-s", "\x07"], 1), (["trace", "-s", "x", "--\x1b[31m\x07no"], 2)]
)
def test_escapes_in_what_is_refused_never_reach_the_terminal(shell, args, code):
    assert refusal(shell.run(*args), code=code)


@pytest.mark.parametrize("args", [TRACE, ("trace", f"{'is ' * 9}{SUBJECT}", "-s", SUBJECT, "--samples", "2")])
@pytest.mark.parametrize("colours", [{}, COLOURS], ids=["plain", "colours"])
def test_no_line_is_longer_than_eighty_columns(shell, args, colours):
    fitting(ok(shell.run(*args, **colours)))


@pytest.mark.parametrize("args", [TRACE, [*TRACE, "--json"], ["models"]], ids=" ".join)
def test_an_output_that_is_not_unicode(shell, args):
    assert ok(shell.run(*args, charset="ascii")).isascii()


def test_the_same_trace_in_a_long_model_name(shell, tiny, monkeypatch):
    monkeypatch.setattr(tiny.cfg, "model_name", "folder/" + "x" * 200)
    fitting(ok(shell.run(*TRACE)))


def test_version(shell):
    assert ok(shell.run("--version")) == f"rome-lens {rome_lens.__version__}\n"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help(shell, args):
    printed = ok(shell.run(*args))
    listed = re.findall(r"^│ (\w+)  ", printed.split("Commands")[1], re.MULTILINE)
    assert " ".join(listed) == "trace ask edit apply show suggest models doctor stats average eval"


def test_models(shell, tmp_path):
    printed = ok(shell.run("models"))
    assert printed.startswith("smollm2-135m  the default: ")
    assert "not fetched yet; kept at " in printed
    assert "not converted yet; kept at " in printed
    report = in_json(shell.run("models", "--json"))
    assert report["default"] == "smollm2-135m"
    for state in (report["cached"], report["converted"]):
        assert state.keys() == {"path", "present", "intact", "size"}
        assert state["present"] is state["intact"] is False
        assert state["path"].startswith(str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def _assert_doctor_says(shell, *lines, code=1):
    result = shell.run("doctor")
    assert (result.exit_code, result.stderr) == (code, "")
    for line in lines:
        assert re.search(f"^{line}", result.stdout, re.MULTILINE), line


def test_models_tells_of_a_damaged_file(shell, tmp_path, monkeypatch):
    path = tmp_path / "cache" / "x.gguf"
    damaged = rome_lens.loading.CacheState(path=path, present=True, intact=False, size=7)
    monkeypatch.setattr(rome_lens.loading, "cached_default_model", lambda: damaged)
    assert "damaged: fetched anew" in ok(shell.run("models"))
    expected = {"path": str(path), "present": True, "intact": False, "size": 7}
    assert in_json(shell.run("models", "--json"))["cached"] == expected
    _assert_doctor_says(shell, "FAILED default model +damaged at ")


def test_a_damaged_file_is_not_needed_beside_an_intact_copy(shell, tmp_path, monkeypatch):
    for name, intact in (("cached_default_model", False), ("cached_conversion", True)):
        state = rome_lens.loading.CacheState(path=tmp_path / name, present=True, intact=intact, size=7)
        monkeypatch.setattr(rome_lens.loading, name, lambda state=state: state)
    assert "  damaged, and not needed; kept at " in ok(shell.run("models"))
    _assert_doctor_says(shell, "ok     default model +damaged at .*, and not needed: ", code=0)


AT_HAND = "ok     default model +not at hand, and not needed: "


@pytest.mark.parametrize(
    ("intact", "listed", "checked", "missing"),
    [
        (True, "converted, 542 MB", "ok     converted copy +542 MB in ", AT_HAND),
        (
            False,
            "damaged or outdated: converted anew",
            "FAILED converted copy +damaged or outdated in ",
            "       default model +not fetched yet",
        ),
    ],
)
def test_models_tells_of_the_converted_copy(shell, tmp_path, monkeypatch, intact, listed, checked, missing):
    state = rome_lens.loading.CacheState(path=tmp_path / "converted", present=True, intact=intact, size=541_616_037)
    monkeypatch.setattr(rome_lens.loading, "cached_conversion", lambda: state)
    assert f"{listed}; kept at " in ok(shell.run("models"))
    assert in_json(shell.run("models", "--json"))["converted"]["intact"] is intact
    _assert_doctor_says(shell, checked, missing, code=0 if intact else 1)


def test_doctor(shell):
    printed = ok(shell.run("doctor"))
    checked = ["hooked-transformer", "transformer-bridge"] if has_hooked_transformer() else ["transformer-bridge"]
    traces = r"a tiny model traces \(fast and plain \S+ apart\) and is left as it was$"
    _assert_doctor_says(shell, *(f"ok     {backend} +{traces}" for backend in checked), code=0)
    assert f"rome-lens           {rome_lens.__version__}\n" in printed
    assert "not fetched yet; the first trace fetches it to " in printed
    assert "FAILED" not in printed


def test_doctor_for_machines(shell):
    findings = in_json(shell.run("doctor", "--json"))
    assert all(finding.keys() == {"what", "found", "ok"} for finding in findings)
    assert {finding["what"]: finding["ok"] for finding in findings}["transformer-bridge"] is True


@pytest.mark.parametrize("error", [errors.ModelError("it is broken"), ImportError("it is\nbroken")], ids=repr)
def test_doctor_reports_a_broken_check(shell, monkeypatch, error):
    def broken(backend):
        raise error

    monkeypatch.setattr(rome_lens.loading.tiny, "tiny_model", broken)
    _assert_doctor_says(shell, f"FAILED transformer-bridge +{type(error).__name__}: it is")
    report = shell.run("doctor", "--json")
    assert report.exit_code == 1
    assert {"transformer-bridge"} <= {f["what"] for f in json.loads(report.stdout) if f["ok"] is False}


def test_doctor_says_what_a_model_takes(shell, tmp_path, monkeypatch):
    folder = str(write_tiny_model(tmp_path / "tiny"))
    printed = ok(shell.run("doctor", "--model", folder, "--facts", "20"))
    assert [line.split("  ")[0] for line in re.findall("^ok     (.*)$", printed, re.MULTILINE)] == [
        *("model", "trace", "edit", "stats", "20 facts"),
    ]

    def needs(*args):
        return {one["what"]: one for one in in_json(shell.run("doctor", "--model", folder, "--json", *args))}

    findings = needs()
    assert list(findings) == ["free", "model", "trace", "edit", "stats", "1,000 facts"]
    assert findings["free"].keys() == {"what", "found", "ok"}
    assert findings["trace"].keys() == {"what", "found", "ok", "bytes", "seconds"}
    half = {one["what"]: one for one in in_json(shell.run("doctor", "--model", folder, "--dtype", "float16", "--json"))}
    assert half["model"]["bytes"] == findings["model"]["bytes"] / 2
    assert "cpu" in ok(shell.run("doctor", "--model", folder, "--device", "cpu"))
    monkeypatch.setattr("rome_lens.cli.needs.free_bytes", lambda device: findings["model"]["bytes"] + 1000)
    result = shell.run("doctor", "--model", folder)
    assert (result.exit_code, result.stderr) == (1, "")
    assert re.search(
        "^FAILED trace .* three streams \\(0 MB are free beside the model\\)$", result.stdout, re.MULTILINE
    )


def test_doctor_needs_a_model_for_what_is_about_one(shell):
    assert options_of("doctor") == {"--model", "--device", "--dtype", "--facts", "--json"}
    for option, value in (("--facts", "3"), ("--device", "cpu"), ("--dtype", "float16")):
        said = refusal(shell.run("doctor", option, value), code=2)
        assert said == f"{option} is about the work on a model; name the model with --model"
    assert "facts is 0; " in refusal(shell.run("doctor", "--model", "x", "--facts", "0"), code=2)


def test_doctor_tells_when_a_trace_changes_the_model(shell, monkeypatch):
    import rome_lens.tracing

    def careless(model, *args, **settings):
        next(model.parameters()).data += 1
        return causal_trace(model, *args, **settings)

    monkeypatch.setattr(rome_lens.tracing, "causal_trace", careless)
    _assert_doctor_says(shell, "FAILED transformer-bridge .* but its weights changed$")


def test_a_reader_that_leaves_early_gets_no_traceback():
    command = f"{sys.executable} -m rome_lens trace --help | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout), done.stderr) == (0, 1, "")


class Terminal(io.StringIO):
    text = property(io.StringIO.getvalue)


@pytest.mark.parametrize("tty", [True, False])
def test_progress_is_drawn_on_a_terminal_alone_and_wiped_off_at_the_end(monkeypatch, tty):
    stderr = Terminal()
    monkeypatch.setattr(stderr, "isatty", lambda: tty)
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar() as progress:
        progress(1, 1000, "tracing")
        progress(1000, 1000, "tracing")
    assert bool(stderr.text) == tty
    if tty:
        assert "starting" in stderr.text
        assert stderr.text.rsplit("\r", 2)[1].strip() == ""
