"""The settings of traces and averages: what they hold, what they refuse, and how they are changed by name."""

import pickle
from dataclasses import fields

import pytest
from refused import refused

from rome_lens.errors import SettingError
from rome_lens.tracing import AverageSettings, TraceSettings, average_causal_effect, causal_trace
from rome_lens.tracing.average.settings import AverageChanges
from rome_lens.tracing.settings import TraceChanges


def test_settings_are_kept_as_python_has_them():
    settings = TraceSettings(streams="mlp", severed=["attn"], noise=2, samples=3)
    assert (settings.streams, settings.severed, settings.noise, settings.samples) == (("mlp",), ("attn",), 2.0, 3)
    assert (settings.rule.kind, settings.rule.value, settings.rule.replace) == ("number", 2.0, False)
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(AttributeError):
        settings.samples = 4  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"streams": ()}, "stream is (); choose from resid, mlp, attn, heads"),
        ({"streams": None}, "stream is None; choose from resid, mlp, attn, heads"),
        ({"heads_at": "first"}, "heads_at is 'first'; expected last, last-subject or a position, a whole number"),
        ({"heads_at": 1.5}, "heads_at is 1.5; expected last, last-subject or a position, a whole number"),
        ({"heads_at": None}, "heads_at is None; expected last, last-subject or a position, a whole number"),
        (
            {"heads_at": "last-subject"},
            "heads_at and heads_window are of the stream 'heads'; ask for it, or leave them out",
        ),
        (
            {"heads_window": 2, "streams": "mlp"},
            "heads_at and heads_window are of the stream 'heads'; ask for it, or leave them out",
        ),
        ({"heads_window": 0}, "heads_window is 0; expected a whole number of layers, 1 or more"),
        ({"severed": "resid"}, "severed is 'resid'; choose from mlp, attn"),
        ({"severed": 3}, "severed is 3; choose from mlp, attn"),
        ({"window": 0}, "window is 0; expected a whole number of layers, 1 or more"),
        ({"samples": 0}, "samples is 0; expected a whole number of corrupted copies, 1 or more"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 4294967295"),
        ({"engine": "fast"}, "engine is 'fast'; choose one of auto, plain, attribution"),
        ({"prepend_bos": "no"}, "prepend_bos is 'no'; expected True or False"),
        ({"noise_replaces": 1}, "noise_replaces is 1; expected True or False"),
        (
            {"severed": "mlp", "engine": "attribution"},
            "severed paths are not approximated; leave severed out, or engine 'attribution'",
        ),
        (
            {"measure": "logits"},
            "measure is 'logits'; choose from probability, log_probability, logit_difference, kl, or give a function "
            "of logits and answer_ids",
        ),
        (
            {"measure": "logit_difference"},
            "measure 'logit_difference' compares two answers; name the other one with against",
        ),
        (
            {"measure": "kl", "against": "x"},
            "against is 'x', which only measure 'logit_difference' reads; leave it out",
        ),
        ({"measure": "logit_difference", "against": 3}, "against is 3; expected a text"),
        (
            {"swap": "x", "noise": 1},
            "swap is 'x' and a noise rule was given too; the subject is broken by one of them",
        ),
    ],
    ids=str,
)
def test_what_no_setting_is(given, message):
    assert refused(SettingError, TraceSettings, **given) == message


def test_what_is_given_by_name_counts():
    settings = TraceSettings(streams=("attn",), window=3)
    assert TraceSettings.given(settings, {"window": 5}) == TraceSettings(streams=("attn",), window=5)
    assert TraceSettings.given(None, {"seed": 2}) == TraceSettings(seed=2)
    said = refused(SettingError, TraceSettings.given, {"seed": 2}, {})
    assert said == "settings is {'seed': 2}; expected TraceSettings(...)"


def test_an_average_has_no_heads_and_one_measure():
    for streams in ("heads", ("mlp", "heads")):
        said = refused(SettingError, AverageSettings, streams=streams)
        assert said == "stream is 'heads'; choose from resid, mlp, attn"
    only_of_one = ("heads_at", "heads_window", "measure", "against")
    assert set(only_of_one).isdisjoint(AverageSettings().to_dict())
    for name in only_of_one:
        with pytest.raises(TypeError, match=name):
            AverageSettings.given(None, {name: 1})


def test_an_average_has_settings_of_its_own():
    settings = AverageSettings(severed_at="all", noise="S5")
    assert settings.to_dict() == {
        "streams": ("resid", "mlp", "attn"),
        "severed": None,
        "severed_at": "all",
        "window": None,
        "samples": 10,
        "noise": "s5",
        "noise_replaces": False,
        "seed": 1,
        "prepend_bos": False,
        "engine": "auto",
    }
    assert AverageSettings.given(settings, {"samples": 2}).severed_at == "all"
    with pytest.raises(SettingError, match=r"^settings is TraceSettings\(.*; expected AverageSettings\(\.\.\.\)$"):
        AverageSettings.given(TraceSettings(), {})


def test_every_setting_may_be_given_by_name():
    for settings, changes in ((TraceSettings, TraceChanges), (AverageSettings, AverageChanges)):
        assert set(changes.__annotations__) == {f.name for f in fields(settings) if f.init}
        assert {"model", "settings", "progress"}.isdisjoint(changes.__annotations__)


def test_an_unknown_name_is_a_type_error():
    for call in (
        lambda: causal_trace(None, "a b", subject="a", sample=3),  # pyright: ignore[reportCallIssue]
        lambda: average_causal_effect(None, swap="x"),  # pyright: ignore[reportCallIssue]
        lambda: average_causal_effect(None, settings=AverageSettings(), swap="x"),  # pyright: ignore[reportCallIssue]
    ):
        with pytest.raises(TypeError, match=r"unexpected keyword argument '(sample|swap)'"):
            call()
