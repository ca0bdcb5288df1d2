"""At which numbers of facts a model is asked, about which of them, and what counts as its collapse."""

import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from rome_lens.checks import as_path, as_real, as_whole, choice, is_list, keep, seed_number, shown, whole_number
from rome_lens.errors import SettingError
from rome_lens.evaluation.editors.named import FoundOn

AtCollapse = Literal["go_on", "stop"]
"""What an editor does after the checkpoint at which its model collapsed."""

# Of a sample, so many of the first and of the last facts are part.
_ENDS = 100


@dataclass(frozen=True)
class Together:
    """Checkpoints of an evaluation in which facts stay in the model.

    At checkpoint n the first n records are in the weights together, and all of them, or a sample, are asked again.

    Attributes:
        at: the numbers of facts, in rising order.
        sample: ask no more facts than these, the same at all checkpoints as far as they are in the model: the first
            and the last hundred, and of the others some by chance (by the seed of the measures). None asks all.
        found_on: where `r-rome` finds its values: `base`, on the unedited model, so that edits are stacked; or
            `edited`, on the model with all facts before, as in sequences of the released code. One of several editors
            is told apart by the setting of that name. Sets (`memit`, `emmet`, `alphaedit`) take values of the unedited
            model alone, and fine-tuning goes on from the model as it is.
        perplexity: collapse: watched texts are so many times as perplexing as to the unedited model.
        score: collapse: S falls below this, from 10 facts on.
        at_collapse: `go_on`, or `stop`: an editor whose model collapsed is not asked for further checkpoints.
        values: a folder that keeps values of facts, for several runs; None keeps them with the run. A folder that
            `edit_together(out=…)` filled serves, if the editors find values as that call did.

    Raises:
        SettingError: one of them is out of its range.
    """

    at: tuple[int, ...] = (1, 10, 32, 100, 316, 1000)
    sample: int | None = None
    found_on: FoundOn = "base"
    perplexity: float = 2.0
    score: float = 60.0
    at_collapse: AtCollapse = "go_on"
    values: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        keep(
            self,
            at=_numbers(self.at),
            sample=None if self.sample is None else whole_number("sample", self.sample, least=1),
            found_on=choice("found_on", self.found_on, get_args(FoundOn)),
            perplexity=_bound("perplexity", self.perplexity, above=1.0, expected="a factor above 1, such as 2"),
            score=_bound("score", self.score, above=-1e-9, expected="a score from 0 to 100, such as 60"),
            at_collapse=choice("at_collapse", self.at_collapse, get_args(AtCollapse)),
            values=None if self.values is None else as_path("values", self.values),
        )

    @classmethod
    def of(cls, asked: Any) -> "Together":
        """What a caller gave: checkpoints, or their numbers alone.

        Raises:
            SettingError: it is neither.
        """
        return asked if isinstance(asked, cls) else cls(asked)

    def check_enough(self, n_records: int) -> None:
        """Refuse more facts than there are.

        Raises:
            SettingError: there are fewer records than the last checkpoint asks for.
        """
        if self.at[-1] > n_records:
            raise SettingError(
                f"together asks for {self.at[-1]} facts, and there are {n_records} records; give numbers up to that"
            )

    def asked(self, n: int, *, seed: int) -> tuple[int, ...]:
        """The places of the facts that are asked at a checkpoint, in rising order.

        Args:
            n: facts in the model.
            seed: of those that are drawn.
        """
        return tuple(place for place in self._sampled(seed) if place < n)

    def _sampled(self, seed: int) -> list[int]:
        most = self.at[-1]
        if self.sample is None or self.sample >= most:
            return list(range(most))
        ends = min(_ENDS, self.sample // 2)
        between = np.arange(ends, most - ends)
        n_drawn = self.sample - 2 * ends
        drawn = np.random.default_rng(seed_number(seed)).choice(between, size=n_drawn, replace=False)
        return sorted([*range(ends), *drawn.tolist(), *range(most - ends, most)])

    def to_dict(self) -> dict[str, Any]:
        """As a run's settings hold it: what decides numbers."""
        names = ("sample", "found_on", "perplexity", "score", "at_collapse")
        return {"at": list(self.at)} | {name: getattr(self, name) for name in names}

    @classmethod
    def from_dict(cls, held: Any) -> "Together":
        """What `to_dict` gave."""
        return cls(**{**held, "at": tuple(held["at"])})


def _numbers(at: Any) -> tuple[int, ...]:
    several: list[Any] = list(at) if is_list(at) else [at]
    numbers = [number for one in several if (number := as_whole(one, least=1)) is not None]
    if len(numbers) < max(1, len(several)):
        raise SettingError(f"together is {shown(at)}; expected numbers of facts from 1, such as (1, 10, 100)")
    if sorted(set(numbers)) != numbers:
        raise SettingError(f"together is {shown(at)}; expected numbers in rising order, each once")
    return tuple(numbers)


def _bound(name: str, given: object, *, above: float, expected: str) -> float:
    number = as_real(given)
    if number is None or number <= above:
        raise SettingError(f"{name} is {shown(given)}; expected {expected}")
    return number
