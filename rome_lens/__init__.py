"""ROME for TransformerLens: trace where a language model keeps a fact.

Importing this package imports neither torch nor TransformerLens: the names below are fetched when they are first used.
"""

from typing import TYPE_CHECKING, Any

from rome_lens.errors import (
    AnswerError,
    ArtefactError,
    DownloadError,
    FactNotKnownError,
    ModelError,
    ModelNotFoundError,
    OutOfMemoryError,
    PromptError,
    RomeLensError,
    SettingError,
    SubjectError,
)

if TYPE_CHECKING:
    from rome_lens.data import builtin_facts
    from rome_lens.facts import Fact, read_known_facts
    from rome_lens.loading import load_model
    from rome_lens.tracing import CausalTrace, causal_trace

__version__ = "0.1.0"

__all__ = [
    "AnswerError",
    "ArtefactError",
    "CausalTrace",
    "DownloadError",
    "Fact",
    "FactNotKnownError",
    "ModelError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "PromptError",
    "RomeLensError",
    "SettingError",
    "SubjectError",
    "__version__",
    "builtin_facts",
    "causal_trace",
    "load_model",
    "read_known_facts",
]

_HOMES = {
    "CausalTrace": "rome_lens.tracing",
    "Fact": "rome_lens.facts",
    "builtin_facts": "rome_lens.data",
    "causal_trace": "rome_lens.tracing",
    "load_model": "rome_lens.loading",
    "read_known_facts": "rome_lens.facts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
