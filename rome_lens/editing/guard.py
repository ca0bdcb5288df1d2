"""A guard against edits that ruin a model: text that the model knew is suddenly much less likely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rome_lens.backends import Backend, as_backend
from rome_lens.backends.decoding import pad_rows
from rome_lens.backends.likelihood import log_probabilities
from rome_lens.checks import as_real, as_texts, keep, shown
from rome_lens.data.texts import builtin_texts
from rome_lens.editing.batches import split_by_length
from rome_lens.editing.history import unedited_matrix
from rome_lens.editing.in_weights import in_weights
from rome_lens.editing.record import records_of
from rome_lens.errors import SettingError
from rome_lens.tokens import encode

_AT_A_TIME = 8


@dataclass(frozen=True)
class CollapseGuard:
    """Refuses edits with which a model has collapsed: perplexity of texts is a sign of it that comes early and is
    cheap to read (Yang et al. 2024, [2402.09656](https://arxiv.org/abs/2402.09656)).

    !!! example
        ```python
        guard = rl.CollapseGuard(perplexity=1.5)
        facts = rl.MEMIT(model).edit_together(requests, guard=guard)
        facts.apply(model, guard=guard)
        ```

    Attributes:
        perplexity: how many times as perplexing the texts may be as to the unedited model.
        texts: what is read; by default short texts that come with the package.

    Raises:
        SettingError: the factor is not above 1, or there is no text.
    """

    perplexity: float = 2.0
    texts: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        factor = as_real(self.perplexity)
        if factor is None or factor <= 1:
            raise SettingError(f"perplexity is {shown(self.perplexity)}; expected a factor above 1, such as 2")
        texts = builtin_texts() if self.texts is None else as_texts("texts", self.texts)
        if not texts:
            raise SettingError("texts is an empty list; expected one text or more")
        keep(self, perplexity=factor, texts=texts)

    def ratio(self, model: Any) -> float:
        """Perplexity of the texts to a model with the edits that are in its weights, over that without them."""
        backend = as_backend(model)
        own = {layer: unedited_matrix(backend, layer) for layer in records_of(model)}
        texts = self.texts or ()
        with in_weights(backend, own):
            before = perplexity_of(backend, texts)
        return perplexity_of(backend, texts) / before

    def told(self, model: Any) -> str | None:
        """What tells that a model has collapsed, in words; None where nothing does."""
        ratio = self.ratio(model)
        if ratio <= self.perplexity:
            return None
        return f"texts are {ratio:.3g} times as perplexing as to the unedited model, above {self.perplexity:g} times"


@torch.no_grad()
def perplexity_of(backend: Backend, texts: Sequence[str]) -> float:
    """Of texts together: every token but each text's first is predicted. Infinite where the model gives no numbers.

    Args:
        backend: the model as it is.
        texts: cut to the model's context; those of one token say nothing.

    Raises:
        SettingError: none of them has two tokens.
    """
    read_ids = [list(encode(backend.tokenizer, text)[0])[: backend.n_ctx] for text in texts]
    rows = [ids for ids in read_ids if len(ids) > 1]
    if not rows:
        raise SettingError("none of the texts has two tokens; expected a text in which one follows on another")
    said: list[float] = []
    with backend.evaluating():
        for part in split_by_length([len(ids) for ids in rows], batch_size=_AT_A_TIME):
            several = [rows[number] for number in part]
            logits = backend.run(pad_rows(several, backend.device))
            for read, ids in zip(logits, several, strict=True):
                said += log_probabilities(read[: len(ids) - 1], torch.tensor(ids[1:])).tolist()
    mean = math.fsum(said) / len(said)
    # A ruined model gives no numbers at all, or none that can be held.
    return math.inf if math.isnan(mean) or mean < -700 else math.exp(-mean)
