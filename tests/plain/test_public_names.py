"""The names that others build on, and what importing them costs."""

import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

import rome_lens as rl
from rome_lens.editing.settings import SettingsChanges
from rome_lens.tracing import TraceSettings

HEAVY = ("torch", "transformers", "transformer_lens", "typer", "pandas", "plotly", "numpy", "dask", "distributed")
LIGHT_ROOMS = ("loading", "storage", "tokens", "facts", "checks", "errors", "runs", "figures")


def test_all_is_what_the_package_shows():
    assert sorted(set(rl.__all__)) == sorted(rl.__all__) == dir(rl)
    assert {"CausalTrace", "Fact", "builtin_facts", "causal_trace", "load_model", "read_known_facts"} <= set(rl.__all__)
    assert all(getattr(rl, name) is not None for name in rl.__all__)


def test_a_star_import_brings_these_names():
    names = {}
    exec("from rome_lens import *", names)
    assert sorted(set(names) - {"__builtins__"}) == sorted(rl.__all__)


def test_every_error_is_public():
    from rome_lens import errors

    assert {name for name, value in vars(errors).items() if isinstance(value, type)} <= set(rl.__all__)


def test_every_name_of_the_reference_is_there():
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    names = re.findall(r"^::: (\S+)\.(\w+)$", page, flags=re.MULTILINE)
    assert len(names) > 30
    assert [f"{room}.{name}" for room, name in names if not hasattr(pkgutil.resolve_name(room), name)] == []


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError) as caught:
        rl.ROMEO  # noqa: B018
    assert str(caught.value) == "module 'rome_lens' has no attribute 'ROMEO'"


def test_the_version_is_the_installed_one():
    assert rl.__version__.count(".") == 2


def _defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}


def test_the_contract_of_load_model():
    parameters = _defaults(rl.load_model)
    assert next(iter(parameters)) == "name"
    assert (parameters["name"], parameters["backend"]) == ("smollm2-135m", "auto")


def test_the_contract_of_causal_trace():
    parameters = _defaults(rl.causal_trace)
    assert list(parameters)[:3] == ["model", "prompt", "subject"]
    contract = {"streams": ("resid", "mlp", "attn"), "samples": 10, "noise": None, "seed": 1, "prepend_bos": False}
    settings = _defaults(TraceSettings)
    assert {name: settings[name] for name in contract} == contract
    by_name = [p for p in inspect.signature(rl.causal_trace).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert len(by_name) == len(parameters) - 3
    assert parameters["settings"] is None


def test_the_contract_of_a_trace():
    fields = {"scores", "low", "high", "answer", "tokens", "subject_span", "noise"}
    methods = {"effect", "figure", "to_dataframe", "save", "load"}
    assert fields <= set(inspect.signature(rl.CausalTrace).parameters)
    assert all(callable(getattr(rl.CausalTrace, name)) for name in methods)


def test_the_contract_of_an_edit():
    fields = {"request", "layer", "u", "v", "before", "after", "loss_curve", "fingerprint", "settings"}
    methods = {"apply", "revert", "applied", "hooks", "save", "to_hf", "to_peft"}
    assert all(isinstance(getattr(rl.Edit, name), property) for name in fields)
    assert all(callable(getattr(rl.Edit, name)) for name in methods)
    assert all(callable(getattr(rl.ROME, name)) for name in ("edit", "edit_many"))
    assert all(callable(getattr(rl.SecondMoment, name)) for name in ("collect", "save", "load", "solve"))
    choices = {"second_moment", "variant", "context_templates", "seed", "settings"}
    assert choices <= set(inspect.signature(rl.ROME).parameters)
    settings = {"layer", "v_num_grad_steps", "v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor"}
    assert settings == set(SettingsChanges.__annotations__)
    assert "edits" in inspect.signature(rl.causal_trace).parameters


def _in_a_fresh_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


LIGHT = [
    "import rome_lens",
    "from rome_lens import SettingError; dir(rome_lens)",
    *(f"import rome_lens.{module}" for module in LIGHT_ROOMS),
]


def test_what_needs_no_torch_imports_nothing_heavy():
    """One Python for all: what one of them imports is still there after the next."""
    code = f"""
        import json, sys
        found = {{}}
        for line in {LIGHT!r}:
            exec(line)
            found[line] = [name for name in {HEAVY!r} if name in sys.modules]
        print(json.dumps(found))
    """
    assert _in_a_fresh_python(dedent(code)) == {line: [] for line in LIGHT}


COMMANDS = {
    "--version": f"rome-lens {rl.__version__}",
    "models": "smollm2-135m",
    "nonsense": "",
    "--help": "Usage: rome-lens",
    **{
        f"{name} --help": f"Usage: rome-lens {name}"
        for name in (
            *("trace", "ask", "edit", "apply", "show", "stats", "models", "doctor", "average", "average merge", "eval"),
            *("eval counterfact", "eval zsre", "eval merge"),
        )
    },
}


def test_the_shell_answers_without_torch():
    code = f"""
        import contextlib, io, json, runpy, sys
        found = {{}}
        for command in {list(COMMANDS)!r}:
            sys.argv = ["rome-lens", *command.split()]
            with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
                runpy.run_module("rome_lens", run_name="__main__")
            found[command] = printed.getvalue().strip(), [name for name in {HEAVY!r} if name in sys.modules]
        print(json.dumps(found))
    """
    for command, (printed, imported) in _in_a_fresh_python(dedent(code)).items():
        assert imported == ["typer"], command
        assert printed.startswith(COMMANDS[command]), command


def test_every_public_name_has_its_place_in_the_reference():
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text("utf-8")
    shown = re.findall(r"^::: rome_lens\.(\w+)$", page, re.M)
    assert set(shown) == set(rl.__all__) - {"__version__"}
    assert len(shown) == len(set(shown))
