"""ROME for TransformerLens: trace where a language model keeps a fact.

Importing this package imports neither torch nor TransformerLens: the names below are fetched when they are first used.
"""

from typing import TYPE_CHECKING, Any

from rome_lens.errors import (
    AnswerError,
    ArtefactError,
    DownloadError,
    EditError,
    EditStateError,
    FactNotKnownError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    OutOfMemoryError,
    PromptError,
    RomeLensError,
    SettingError,
    SubjectError,
)

if TYPE_CHECKING:
    from rome_lens.data import builtin_facts
    from rome_lens.editing import ROME, Edit, SecondMoment, applied_edits, hooks_for_rows, load_edit
    from rome_lens.facts import EditRequest, Fact, read_known_facts
    from rome_lens.loading import load_model
    from rome_lens.tracing import CausalTrace, causal_trace

__version__ = "0.1.0"

__all__ = [
    "ROME",
    "AnswerError",
    "ArtefactError",
    "CausalTrace",
    "DownloadError",
    "Edit",
    "EditError",
    "EditRequest",
    "EditStateError",
    "Fact",
    "FactNotKnownError",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "PromptError",
    "RomeLensError",
    "SecondMoment",
    "SettingError",
    "SubjectError",
    "__version__",
    "applied_edits",
    "builtin_facts",
    "causal_trace",
    "hooks_for_rows",
    "load_edit",
    "load_model",
    "read_known_facts",
]

_HOMES = {
    "CausalTrace": "rome_lens.tracing",
    "Edit": "rome_lens.editing",
    "EditRequest": "rome_lens.facts",
    "Fact": "rome_lens.facts",
    "ROME": "rome_lens.editing",
    "SecondMoment": "rome_lens.editing",
    "applied_edits": "rome_lens.editing",
    "builtin_facts": "rome_lens.data",
    "causal_trace": "rome_lens.tracing",
    "hooks_for_rows": "rome_lens.editing",
    "load_edit": "rome_lens.editing",
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
