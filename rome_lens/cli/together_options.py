"""Options of evaluations in which facts stay in the model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rome_lens.cli.options import Panel
from rome_lens.errors import SettingError

_MANY = Panel("Many facts in one model")


@dataclass(frozen=True)
class TogetherOptions:
    """Checkpoints, and what goes with them; named as `Together` names it."""

    together: str | None = _MANY(
        "Numbers of facts, such as 1,10,100: at each of them the first N records are in the model together, and all of "
        "them are asked again.",
        metavar="N,N,…",
        shown="every record is edited by itself",
    )
    sample: int | None = _MANY(
        "Ask no more facts than these: the first and the last hundred, and others by chance, the same at all "
        "checkpoints.",
        shown="all so far",
    )
    found_on: str | None = _MANY(
        "Where r-rome finds values: base, the unedited model, so that edits are stacked; or edited, the model with all "
        "facts before.",
        metavar="WHERE",
        shown="base",
    )
    collapse_perplexity: float | None = _MANY(
        "A model has collapsed when the texts of --perplexity are X times as perplexing as before.", shown="2"
    )
    collapse_score: float | None = _MANY("Or when S falls below this, from 10 facts on.", shown="60")
    at_collapse: str | None = _MANY(
        "go_on, or stop: an editor whose model collapsed gets no further checkpoints.", metavar="WHAT", shown="go_on"
    )
    values: Path | None = _MANY(
        "Folder that keeps values of facts, for several runs; one of 'rome-lens edit --out' serves.",
        metavar="DIR",
        shown="one in the run's folder",
    )

    def asked(self) -> Any:
        """The same as the library takes it; None where every record is edited by itself.

        Raises:
            SettingError: a setting is out of its range, or one of them is given without checkpoints.
        """
        from rome_lens.evaluation.together.checkpoints import Together

        given = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        if self.together is None:
            if given:
                name = f"--{next(iter(given)).replace('_', '-')}"
                raise SettingError(f"{name} is given without --together, and says something of its checkpoints")
            return None
        renamed = {"collapse_perplexity": "perplexity", "collapse_score": "score", "together": "at"}
        chosen: dict[str, Any] = {renamed.get(name, name): value for name, value in given.items()}
        chosen["at"] = _numbers(self.together)
        return Together(**chosen)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part.replace("_", "")) for part in text.split(","))
    except ValueError as error:
        raise SettingError(
            f"--together is {text!r}; expected numbers of facts with commas, such as 1,10,100"
        ) from error
