"""One record as an evaluation under one editor left it: the form of its file in a run folder."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

# Fields that a file lacks where there is nothing to say.
_IF_ANY = ("unfit", "engine", "notes")


@dataclass(frozen=True)
class EvaluatedRecord:
    """What was asked, and what came of it under one editor.

    Attributes:
        number: of the record in its data set.
        case_id: its name there.
        editor: the editor's name.
        relation: what the record is about, such as `P36`; None where the data set does not say.
        subject: of the request.
        prompt: of the request, subject included.
        target_new: the new object.
        target_true: the old one; zsRE has none.
        unfit: why the record cannot be put to this model; None where it can.
        error: why there is no edit; None where there is one, or where none was wanted.
        before: metric -> score of the unedited model.
        scores: metric -> score under the edit.
        answers: what the model made of each prompt. All have `kind`, `prompt` and `free`, which is what the model
            writes by itself. CounterFact's have `nll_new` and `nll_true`, and a neighbour with an answer of its own has
            that as `answer`; zsRE's, and those whose answer follows from the fact, have `answer` (of several the one
            that the model gives best), `nll` and `right`. All have the same of the unedited model as `before_nll` and
            so on.
        texts: what the model wrote about the subject, as `prompt` and `text`.
        perplexity: of the watched texts, `before` and `after`, and `flagged` where that is out of bounds; None where no
            texts are watched.
        edit: `layer`, `variant`, `relative_norm`, `seconds` and `notes` of the edit; None where there is none.
        engine: `blocks` or `plain`: how the model was run.
        notes: why it was run plainly.
        others: fields of a file that are none of these: another version of this package may have written them.
    """

    number: int
    case_id: Any
    editor: str
    relation: str | None
    subject: str
    prompt: str
    target_new: str
    target_true: str | None
    unfit: str | None = None
    error: str | None = None
    before: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    answers: Sequence[Mapping[str, Any]] = field(default_factory=list)
    texts: Sequence[Mapping[str, str]] = field(default_factory=list)
    perplexity: Mapping[str, Any] | None = None
    edit: Mapping[str, Any] | None = None
    engine: str | None = None
    notes: Sequence[str] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "EvaluatedRecord":
        """Read a record as its file holds it."""
        others = {name: value for name, value in found.items() if name not in _NAMES}
        return cls(**{name: found[name] for name in _NAMES if name in found}, others=others)

    def to_dict(self) -> dict[str, Any]:
        """As its file holds it."""
        held = {name: getattr(self, name) for name in _NAMES}
        return {
            **{name: value for name, value in held.items() if value is not None or name not in _IF_ANY},
            **self.others,
        }

    def with_score(self, metric: str, score: float) -> "EvaluatedRecord":
        """The same with one more score."""
        return replace(self, scores={**self.scores, metric: score})

    @property
    def flagged(self) -> bool | None:
        """Whether the perplexity moved by more than the bound; None where no texts are watched."""
        return self.perplexity["flagged"] if self.perplexity else None

    @property
    def perplexity_before_and_after(self) -> tuple[float, float]:
        """Perplexity of the watched texts without and with the edit; not a number where no texts are watched."""
        return (self.perplexity["before"], self.perplexity["after"]) if self.perplexity else (math.nan, math.nan)

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity after the edit over before; None where no texts are watched."""
        before, after = self.perplexity_before_and_after
        return after / before if self.perplexity and before else None


_NAMES = tuple(each.name for each in fields(EvaluatedRecord) if each.name != "others")
