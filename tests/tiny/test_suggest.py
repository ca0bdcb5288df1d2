"""suggest_layer: where tracing points to beside where editing works, and settings that come of it."""

import json
from dataclasses import replace

import pytest
import torch
from known_facts import known_facts, make_model
from refused import refused

import rome_lens as rl
from rome_lens.data.records import CounterFactRecord
from rome_lens.editing.settings import Settings, settings_for
from rome_lens.evaluation.suggest import _swept, suggest_layer

MODEL = make_model()
FACTS = known_facts(MODEL, 5)
RECORDS = [
    CounterFactRecord(
        number=number,
        case_id=str(number),
        relation=None,
        request=rl.EditRequest("{} is in the", subject, new, old),
        paraphrases=(f"the {subject} is in",),
        neighbours=("city is in the",),
        generation_prompts=(),
    )
    for number, (subject, new, old) in enumerate([("tower", "city", "of"), ("the city", "tower", "is")])
]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    width = MODEL.cfg.d_mlp
    for layer in range(2):
        matrix = torch.diag(torch.linspace(1, 2, width, dtype=torch.float64))
        rl.SecondMoment.from_matrix(matrix, layer=layer).save(folder / f"{layer}.safetensors")
    return [folder / f"{layer}.safetensors" for layer in range(2)]


@pytest.fixture(scope="module")
def suggestion(moments):
    return suggest_layer(MODEL, FACTS, records=RECORDS, layers=[0, 1], second_moments=moments, samples=2)


def test_the_suggestion_is_the_best_layer_of_the_sweep(suggestion):
    assert sorted(suggestion.sweep) == [0, 1]
    # What the last layer says at the subject reaches no other token: no edit, and no reason to choose it.
    assert len(suggestion.sweep[1].failed) == len(RECORDS)
    assert suggestion.layer == 0
    assert suggestion.traced == suggestion.average.peak("mlp", "last subject token")
    assert suggestion.agree == (suggestion.traced.first <= suggestion.layer <= suggestion.traced.last)


def test_the_sweep_is_what_evaluation_gives(suggestion, moments):
    editor = rl.ROME(MODEL, layer=0, second_moment=rl.SecondMoment.load(moments[0]))
    report = rl.evaluate_counterfact(MODEL, editor, RECORDS, measures=rl.Measures(n_texts=0))
    assert suggestion.sweep[0].scores == pytest.approx(report.scores)


def test_settings_are_written_and_edit(suggestion, moments, tmp_path):
    own = settings_for(rl.backends.as_backend(MODEL))
    assert suggestion.settings.layer == suggestion.layer
    assert suggestion.settings.v_lr == own.v_lr
    assert "scored best of 2" in suggestion.settings.source
    suggestion.settings.save(tmp_path / "settings.json")
    again = Settings.load(tmp_path / "settings.json")
    assert again == suggestion.settings
    moment = rl.SecondMoment.load(moments[again.layer])
    edit = rl.ROME(MODEL, settings=again, second_moment=moment).edit(RECORDS[0].request)
    assert edit.layer == suggestion.layer
    assert "scored best of 2" in edit.settings["source"]


def test_tables_and_figure(suggestion):
    table = suggestion.to_dataframe()
    assert table.layer.tolist() == [0, 1]
    assert table.S.tolist() == [suggestion.sweep[layer].scores["S"] for layer in (0, 1)]
    assert table.effect.tolist() == list(suggestion.average.curve("mlp", "last subject token").mean)
    json.dumps(suggestion.summary(), allow_nan=False)
    names = {trace.name for trace in suggestion.figure().data if trace.name}
    assert names == {"MLPs, last subject token", "S", "ES", "PS", "NS"}
    assert repr(suggestion).startswith(f"LayerSuggestion(layer {suggestion.layer}: ")


def test_traces_that_are_there_are_not_made_again(moments, suggestion, tmp_path, monkeypatch):
    monkeypatch.setattr("rome_lens.evaluation.suggest.average_causal_effect", None)
    found = suggest_layer(
        MODEL, records=RECORDS, average=suggestion.average, layers=[0, 0], second_moments=moments, out=tmp_path
    )
    assert list(found.sweep) == [0]
    assert len(list((tmp_path / "sweep" / "records" / "layer-00").iterdir())) == 2


@pytest.mark.parametrize(
    ("n_layers", "own", "traced", "expected"),
    [
        (30, 5, 6, [0, 3, 5, 6, 8, 11, 14, 16, 19]),
        (2, 0, 1, [0]),
        (1, 0, 0, [0]),
        (12, 4, 11, [0, 1, 2, 3, 4, 5, 6, 7]),
        (12, 4, 9, [0, 1, 2, 3, 4, 5, 6, 7, 9]),
    ],
)
def test_layers_of_the_sweep(n_layers, own, traced, expected):
    assert _swept(None, n_layers=n_layers, own=own, traced=traced) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": []}, "no layer to sweep; give one or more"),
        (
            {"layers": [1]},
            "no record could be edited at layers [1]: nothing that layer 1 of 2 says at the subject of 'tower is in "
            "the' reaches the end of the prompt; choose a lower layer",
        ),
        ({"layers": [2]}, "layer is 2; tiny has layers 0 to 1, counted from 0"),
    ],
    ids=str,
)
def test_what_is_refused(settings, message, suggestion, moments):
    said = refused(
        rl.SettingError,
        suggest_layer,
        MODEL,
        records=RECORDS,
        average=suggestion.average,
        second_moments=moments,
        **settings,
    )
    assert said == message


def test_averages_that_cannot_serve(suggestion, moments):
    approximate = rl.average_causal_effect(MODEL, FACTS, samples=2, engine="attribution")
    records = [replace(RECORDS[0], neighbours=())]
    for given, message in (
        ({"average": approximate}, "the average is approximated by attribution patching; suggest_layer needs exact"),
        ({"average": suggestion.average, "records": records}, "a record of the sweep has no paraphrases or no neigh"),
    ):
        said = refused(
            rl.SettingError,
            suggest_layer,
            MODEL,
            **{"records": RECORDS, "layers": [0], "second_moments": moments} | given,
        )
        assert said.startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the settings {name}: No such file or directory"),
        ("no", "{name} is not JSON, which settings are kept in: "),
        ('{"kind": "something"}', "{name} holds no settings of ROME: expected kind 'settings of ROME', layer, "),
        ("[]", "{name} holds no settings of ROME: "),
    ],
    ids=str,
)
def test_settings_files_that_are_none(content, message, tmp_path):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    assert refused(rl.ArtefactError, Settings.load, path).startswith(message.format(name=repr(str(path))))
