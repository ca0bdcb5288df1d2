"""suggest_layer: where tracing points to, beside where editing works best; the two need not agree.

Hase et al. (2023, 2301.04213) found that the layer that causal tracing points to says little about the layer whose edit
succeeds. So both are measured, and shown beside each other.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from rome_lens.backends import as_backend
from rome_lens.checks import whole_numbers
from rome_lens.data.records import CounterFactRecord, RecordSet, builtin_counterfact
from rome_lens.editing import ROME
from rome_lens.editing.settings import Settings, settings_for
from rome_lens.errors import SettingError
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.evaluation.evaluate import MOMENTS, evaluate_counterfact
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.report.scores import EditorScores
from rome_lens.facts import Fact
from rome_lens.figures.curves import CurvePanel, Line, curve_figure
from rome_lens.figures.style import HUES, STREAM_COLOURS
from rome_lens.loading.source import ModelSource
from rome_lens.progress import Progress, silent
from rome_lens.tracing import AverageEffect, Peak, average_causal_effect
from rome_lens.tracing.roles import EARLY

if TYPE_CHECKING:
    import pandas as pd

_RECORDS = 8
_LAYERS = 8
_METRICS = ("S", "ES", "PS", "NS")


@dataclass(frozen=True, repr=False)
class LayerSuggestion:
    """Which layer to edit, and what that rests on.

    Attributes:
        layer: the layer whose edits score best (S) in the sweep; of equals the one that is nearest to `traced`.
        traced: where the MLPs' average effect at the subject's last token is highest: the layer that tracing points to.
        average: what was traced.
        sweep: layer -> scores of r-ROME there.
        settings: the model's settings with this layer, and where it comes from.
    """

    layer: int
    traced: Peak
    average: AverageEffect
    sweep: Mapping[int, EditorScores]
    settings: Settings

    def __repr__(self) -> str:
        return f"LayerSuggestion(layer {self.layer}: {self.settings.source})"

    @property
    def agree(self) -> bool:
        """Whether the suggested layer lies within the interval of the layer that tracing points to."""
        return self.traced.first <= self.layer <= self.traced.last

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a layer: `effect` of the MLPs with `effect_low` and `effect_high`; `S` and its parts where swept."""
        import pandas as pd

        curve = self.average.curve(*EARLY)
        rows = []
        for layer, ends in enumerate(zip(curve.mean, curve.low, curve.high, strict=True)):
            row: dict[str, Any] = dict(zip(("effect", "effect_low", "effect_high"), ends, strict=True))
            scores = self.sweep[layer].intervals if layer in self.sweep else {}
            for name in _METRICS:
                if found := scores.get(name):
                    row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
            rows.append({"layer": layer, **row})
        return pd.DataFrame(rows)

    def summary(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "layer": self.layer,
            "agree": self.agree,
            "traced": asdict(self.traced),
            "sweep": {
                str(layer): {name: asdict(score) for name, score in scores.intervals.items()}
                for layer, scores in self.sweep.items()
            },
            "settings": asdict(self.settings),
        }

    def figure(self) -> go.Figure:
        """The MLPs' effect by layer, and the scores of edits by layer, as a plotly figure."""
        curve, layers = self.average.curve(*EARLY), sorted(self.sweep)
        traced = Line("MLPs, last subject token", curve.mean, curve.low, curve.high, curve.n, STREAM_COLOURS["mlp"])
        scores = []
        for name, colour in zip(_METRICS, HUES, strict=False):
            found = [self.sweep[layer].intervals[name] for layer in layers]
            mean, low, high = zip(*((one.mean, one.low, one.high) for one in found), strict=True)
            scores.append(Line(name, mean, low, high, found[0].n, colour, at=layers))
        panels = [
            CurvePanel("Tracing: average indirect effect", [traced]),
            CurvePanel("Editing: scores of r-ROME, %", scores, decimals=1),
        ]
        return curve_figure(panels, x_title="layer", y_title="", title=self.settings.source, one_scale=False)


def suggest_layer(
    model: Any,
    facts: Sequence[Fact] | None = None,
    *,
    records: "RecordSet[CounterFactRecord] | Sequence[CounterFactRecord] | None" = None,
    layers: Sequence[int] | None = None,
    average: AverageEffect | None = None,
    second_moments: Sequence[str | os.PathLike[str]] = (),
    window: int | None = None,
    samples: int = 10,
    seed: int = 0,
    prepend_bos: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> LayerSuggestion:
    """Suggest the layer to edit: trace facts, edit a few records at several layers, and show both.

    The suggestion is the layer whose edits score best; tracing alone does not say which that is (2301.04213).

    Args:
        model: a HookedTransformer or a TransformerBridge, or a name as `load_model` takes it.
        facts: what is traced; None takes the built-in facts.
        records: what is edited, in CounterFact's form; None takes the first eight built-in ones.
        layers: the layers of the sweep; None takes about ten: the one that tracing points to, the model's own, and
            others spread over the first two thirds of the model, but never its last layer, which no edit can use.
        average: an average of the model that is there already, with the stream `mlp`; then no fact is traced, and
            `window` and `samples` do not matter.
        second_moments: files of `SecondMoment.save`, a layer each. Those that are missing are collected from text that
            the model writes, which takes minutes.
        window: as `average_causal_effect` takes it.
        samples: the same.
        seed: of the context templates, the second moments' text and the intervals.
        prepend_bos: put BOS in front, of traces and edits.
        out: a folder that keeps traces, second moments and records as they are finished.
        progress: called with (done, total, what).

    Raises:
        SettingError: a layer is none of the model's, or none of the facts is known.
        ModelError: the model cannot be traced or edited.
    """
    source = ModelSource.of(model)
    host = source.open(progress or silent)
    backend = as_backend(host)
    folder = None if out is None else Path(out)
    records = builtin_counterfact()[:_RECORDS] if records is None else records
    if not all(record.paraphrases and record.neighbours for record in records):
        raise SettingError("a record of the sweep has no paraphrases or no neighbours, and S needs both; leave it out")
    layers = check_sweep(host, layers)
    moments = Moments(
        host,
        second_moments,
        folder=None if folder is None else folder / MOMENTS,
        seed=seed,
        prepend_bos=prepend_bos,
        command="rome-lens suggest",
        progress=progress,
    )
    if average is None:
        average = average_causal_effect(
            host,
            facts,
            streams="mlp",
            severed=(),
            window=window,
            samples=samples,
            prepend_bos=prepend_bos,
            out=None if folder is None else folder / "traces",
            progress=progress,
        )
    if average.n_layers != backend.n_layers:
        raise SettingError(f"the average is of a model of {average.n_layers} layers, this one has {backend.n_layers}")
    if average.approximate:
        raise SettingError("the average is approximated by attribution patching; suggest_layer needs exact traces")
    traced = average.peak(*EARLY)
    own = settings_for(backend)
    swept = _swept(layers, n_layers=backend.n_layers, own=own.layer, traced=traced.layer)
    found = moments.collected(swept)
    given = {"seed": seed, "prepend_bos": prepend_bos}
    templates = moments.templates(given)
    names = {layer: f"layer-{layer:02d}" for layer in swept}
    editors = {
        name: ROME(host, layer=layer, second_moment=found[layer], context_templates=templates, **given)
        for layer, name in names.items()
    }
    report = evaluate_counterfact(
        host,
        editors,
        records,
        measures=Measures(n_texts=0, seed=seed, prepend_bos=prepend_bos),
        out=None if folder is None else folder / "sweep",
        progress=progress,
    )
    sweep = {layer: report.editors[name] for layer, name in names.items()}
    # A layer where no edit could be made scores as the unedited model does, which is no reason to choose it.
    edited = [
        layer for layer in swept if "S" in sweep[layer].intervals and len(sweep[layer].failed) < sweep[layer].n_records
    ]
    if not edited:
        reasons = [why for scores in sweep.values() for why in scores.failed.values()]
        raise SettingError(f"no record could be edited at layers {swept}{f': {reasons[0]}' if reasons else ''}")
    best = min(edited, key=lambda layer: (-sweep[layer].scores["S"], abs(layer - traced.layer)))
    return LayerSuggestion(best, traced, average, sweep, _settings(own, best, traced, sweep))


def check_sweep(model: Any, layers: Iterable[int] | None) -> list[int] | None:
    """The layers that are asked for, in order, each once; None where that is left to us.

    Raises:
        SettingError: there are none, or one is none of the model's.
    """
    if layers is None:
        return None
    backend = as_backend(model)
    given = whole_numbers("layers", layers, expected="a list of layers, such as [4, 5]")
    asked = sorted({backend.check_layer(layer) for layer in given})
    if not asked:
        raise SettingError("no layer to sweep; give one or more")
    return asked


def _swept(layers: list[int] | None, *, n_layers: int, own: int, traced: int) -> list[int]:
    if layers is not None:
        return layers
    reach = max(1, (2 * n_layers) // 3)
    spread = {round(i * (reach - 1) / (_LAYERS - 1)) for i in range(_LAYERS)}
    # What the last layer says at the subject reaches no other token.
    return sorted({*spread, own, traced} - {n_layers - 1}) or [0]


def _settings(own: Settings, layer: int, traced: Peak, sweep: Mapping[int, EditorScores]) -> Settings:
    score = sweep[layer].intervals["S"]
    source = (
        f"layer {layer} scored best of {len(sweep)} (S {score.mean:.1f} [{score.low:.1f}, {score.high:.1f}], "
        f"{score.n} records); tracing points to layer {traced.layer} [{traced.first}, {traced.last}]; the rest: "
        f"{own.source}"
    )
    return replace(own, layer=layer, source=source)
