"""What is measured of every record, whoever edits it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from rome_lens.checks import as_real, as_texts, choice, flag, keep, seed_number, shown, whole_number
from rome_lens.data.texts import read_texts
from rome_lens.errors import ArtefactError, SettingError

Engine = Literal["auto", "plain"]
"""How a model is run: by its blocks where they can be called alone, or by whole forwards."""


@dataclass(frozen=True)
class Measures:
    """What is measured.

    Attributes:
        prepend_bos: BOS stands in front of every prompt.
        n_texts: texts that the model writes about each subject, for GE and RS; 0 for none.
        text_length: their length in tokens, the prompt included, as in the released code.
        top_k: each of their tokens is drawn from the `top_k` most probable ones.
        seed: of what is drawn, and of the intervals.
        references: new object -> texts about it, which RS compares with; None lets the unedited model write them.
        watched: texts whose perplexity is looked at before and after every edit.
        perplexity_bound: an edit that moves it by more than this factor, up or down, is flagged.
        engine: `auto`, or `plain` for whole forwards.

    Raises:
        SettingError: a setting is out of its range.
    """

    prepend_bos: bool = False
    n_texts: int = 10
    text_length: int = 100
    top_k: int = 5
    seed: int = 0
    references: Mapping[str, Sequence[str]] | None = None
    watched: tuple[str, ...] = ()
    perplexity_bound: float = 1.2
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        keep(self, seed=seed_number(self.seed))
        for name, least in (("n_texts", 0), ("text_length", 2), ("top_k", 1)):
            keep(self, **{name: whole_number(name, getattr(self, name), least=least)})
        bound = as_real(self.perplexity_bound)
        if bound is None or bound <= 1:
            raise SettingError(
                f"perplexity_bound is {shown(self.perplexity_bound)}; expected a factor above 1, such as 1.2"
            )
        watched, prepend_bos = as_texts("watched", self.watched), flag("prepend_bos", self.prepend_bos)
        keep(self, perplexity_bound=bound, watched=watched, prepend_bos=prepend_bos)
        choice("engine", self.engine, get_args(Engine))


def watched_texts(source: str, count: int) -> tuple[str, ...]:
    """The first texts of a source, as `read_texts` reads it.

    Raises:
        ArtefactError: it cannot be read, or holds no text. SettingError: the notation of a data set is wrong.
    """
    return tuple(islice(read_texts(source), count))


def read_references(path: str | os.PathLike[str]) -> dict[str, list[str]]:
    """Read what RS compares with: a JSON object with a list of texts for each new object.

    Raises:
        ArtefactError: there is no such file, or it holds something else.
    """
    name = repr(os.fspath(path))
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ArtefactError(f"cannot read reference texts from {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{name} is not JSON, which reference texts are kept in: {error}") from error
    if not isinstance(content, dict):
        raise ArtefactError(f"{name} holds no reference texts: expected an object with a list of texts for each name")
    for key, texts in content.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ArtefactError(f"{name}: {key!r} has no list of texts; expected one text or more")
    return content
