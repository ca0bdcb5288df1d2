"""Published settings of editors of many facts, per model, with where they come from; and those of other models."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rome_lens.backends import Backend
from rome_lens.editing.settings import Settings, last_part
from rome_lens.editing.value_settings import ValueSettings

DEFAULT_VALUES = ValueSettings(least_scale=1.2, keys="split")
"""How values are found where nothing is published: as ROME's, no longer than they need to be, for two keys a fact."""

DEFAULT_PRESERVE = 0.1
"""λ in units of d_mlp where nothing is published."""

_AT_BLOCK = ValueSettings(at="block")


@dataclass(frozen=True)
class Published:
    """What is published of a method for a model.

    Attributes:
        layers: the layers, from the lowest; values are found at the last.
        settings: how they are optimised.
        values: where they are added.
        number: λ in tokens of text, or L2 in squared activations.
        threshold: of the eigenvalues of a null space, in squared activations; None for methods without one.
    """

    layers: tuple[int, ...]
    settings: Settings
    values: ValueSettings
    number: float
    threshold: float | None = None


Table = Sequence[tuple[str, Published]]
"""What is published of one method, by a pattern of the model's name."""


def _of(
    first: int,
    last: int,
    number: float,
    steps: int,
    lr: float,
    clamp: float,
    decay: float,
    source: str,
    **null_space: float,
) -> Published:
    settings = Settings(last, steps, lr, decay, clamp, 0.0625, source)
    return Published(tuple(range(first, last + 1)), settings, _AT_BLOCK, number, **null_space)


_MEMIT = "hparams/MEMIT of MEMIT's released code for this model"
_ALPHA = "hparams of AlphaEdit's released code for this model"
_EASY = "EasyEdit's hparams/MEMIT for this model"

MEMIT_TABLE: Table = (
    (r"gpt2-xl", _of(13, 17, 20_000, 20, 0.5, 0.75, 0.5, _MEMIT)),
    (r"gpt-j-6b|gptj", _of(3, 8, 15_000, 25, 0.5, 0.75, 0.5, _MEMIT)),
    (r"(meta-)?llama-3(\.1)?-8b.*", _of(4, 8, 15_000, 25, 0.1, 0.75, 0.5, _ALPHA)),
    (r"llama-7b.*|llama-3\.2-3b.*", _of(4, 8, 15_000, 25, 0.5, 4, 1e-3, _EASY)),
    (r"qwen2\.5-7b.*", _of(4, 8, 15_000, 25, 0.5, 4, 1e-3, _EASY)),
)
"""λ in tokens of text."""

_ALPHA_L2 = 10.0
ALPHA_EDIT_TABLE: Table = (
    (r"gpt2-xl", _of(13, 17, _ALPHA_L2, 20, 0.5, 0.75, 0.5, _ALPHA, threshold=2e-2)),
    (r"gpt-j-6b|gptj", _of(3, 8, _ALPHA_L2, 25, 0.5, 0.75, 0.5, _ALPHA, threshold=2e-2)),
    (r"(meta-)?llama-3(\.1)?-8b.*", _of(4, 8, _ALPHA_L2, 25, 0.1, 0.75, 0.5, _ALPHA, threshold=2e-2)),
)
"""L2 in squared activations."""


def published_for(table: Table, backend: Backend) -> Published | None:
    """What is published of a method for a model; None where nothing is."""
    for pattern, known in table:
        if re.fullmatch(pattern, last_part(backend)) and known.layers[-1] < backend.n_layers:
            return known
    return None
