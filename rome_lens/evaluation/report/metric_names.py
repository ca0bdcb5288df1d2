"""The metrics in words: what tables, figures and pages call them, and how their numbers are to be shown."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rome_lens.evaluation.report.scores import Kind


@dataclass(frozen=True)
class Metric:
    """How a metric is shown.

    Attributes:
        name: its short name, as in `Score` tables.
        title: what it is, in a few words.
        meaning: what it counts, in a sentence without its full stop.
        bounds: what it can reach, for an axis; None where that is not known or far from what happens.
        anchor: the value that means "nothing", which an axis has to show; None where there is none.
        decimals: of its numbers.
    """

    name: str
    title: str
    meaning: str
    bounds: tuple[float, float] | None = (0.0, 100.0)
    anchor: float | None = None
    decimals: int = 1


_METRICS = (
    Metric("S", "score", "harmonic mean of ES, PS and NS"),
    Metric("ES", "efficacy", "how often the edited prompt prefers the new answer to the old one, in percent"),
    Metric("PS", "paraphrases", "how often paraphrases of it prefer the new answer, in percent"),
    Metric("NS", "neighbours", "how often neighbours' prompts keep to the old answer, or to their own, in percent"),
    Metric("EM", "efficacy, margin", "p(new) - p(old) behind the edited prompt, in points", None, 0.0),
    Metric("PM", "paraphrases, margin", "p(new) - p(old) behind its paraphrases, in points", None, 0.0),
    Metric(
        "NM", "neighbours, margin", "p(old) - p(new) behind neighbours' prompts, old or their own, in points", None, 0.0
    ),
    Metric("portability", "what follows", "tokens of answers that follow from it that are first choices, in percent"),
    Metric("GE", "fluency", "entropy of the words of generated texts (2- and 3-grams), in bits, times 100", None),
    Metric("RS", "consistency", "likeness of generated texts to texts about the new answer (TF-IDF), times 100", None),
    Metric("ES_free", "efficacy, free", "how often the model writes the new answer by itself, in percent"),
    Metric("PS_free", "paraphrases, free", "how often it writes the new answer behind paraphrases, in percent"),
    Metric(
        "NS_free", "neighbours, free", "how often it writes the old answer, or theirs, behind neighbours, in percent"
    ),
    Metric("portability_free", "what follows, free", "how often it writes an answer that follows, in percent"),
    Metric("efficacy", "the question", "tokens of the new answer that are the model's first choice, in percent"),
    Metric("paraphrase", "its paraphrase", "the same behind the question put in other words, in percent"),
    Metric("specificity", "another question", "the same for the answer to an unrelated question, in percent"),
    Metric("efficacy_free", "the question, free", "how often the model writes the new answer by itself, in percent"),
    Metric("paraphrase_free", "its paraphrase, free", "the same behind the question put in other words, in percent"),
    Metric("specificity_free", "another question, free", "the same for an unrelated question, in percent"),
    Metric("PPL", "perplexity, after / before", "perplexity of a text after the edit, before it = 1", None, 1.0, 2),
)
_BY_NAME = {metric.name: metric for metric in _METRICS}
_FIRST: dict[Kind, tuple[str, ...]] = {
    "counterfact": ("S", "ES", "PS", "NS"),
    "zsre": ("efficacy", "paraphrase", "specificity"),
}
_DATA_SETS: dict[Kind, str] = {"counterfact": "CounterFact", "zsre": "zsRE"}


def metric_in_words(name: str) -> Metric:
    """A metric by its short name; one that has no entry here is shown by its name alone."""
    return _BY_NAME.get(name, Metric(name, "", "", bounds=None))


def main_metrics(kind: Kind) -> tuple[str, ...]:
    """The metrics that a data set's publications print first."""
    return _FIRST.get(kind, ())


def shown_metrics(kind: Kind, names: Iterable[str]) -> list[str]:
    """Metrics that some editor has, each once: the main ones first, the others in their order."""
    present = list(dict.fromkeys(names))
    first = [name for name in main_metrics(kind) if name in present]
    return first + [name for name in present if name not in first]


def data_set_name(kind: Kind) -> str:
    """The data set's name as its authors write it."""
    return _DATA_SETS.get(kind, kind)


def model_name(settings: Mapping[str, Any]) -> str | None:
    """The model's name in a report's settings: `model`, `model.name` or `model_name`; None where none is there."""
    model = settings.get("model", settings.get("model_name"))
    if isinstance(model, Mapping):
        model = model.get("name", model.get("model_name"))
    return model if isinstance(model, str) else None
