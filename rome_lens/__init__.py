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
    RunError,
    SettingError,
    SubjectError,
)
from rome_lens.version import __version__

if TYPE_CHECKING:
    from rome_lens.data import (
        CounterFactRecord,
        RecordSet,
        ZsreRecord,
        builtin_counterfact,
        builtin_facts,
        read_counterfact,
        read_zsre,
    )
    from rome_lens.editing import (
        ROME,
        Edit,
        FineTuning,
        MatrixEdit,
        SecondMoment,
        applied_edits,
        forget_edits,
        hooks_for_rows,
        load_edit,
        stale_edits,
    )
    from rome_lens.evaluation import (
        EditorScores,
        LayerSuggestion,
        Measures,
        Report,
        evaluate_counterfact,
        evaluate_zsre,
        merge_runs,
        read_run,
        suggest_layer,
    )
    from rome_lens.facts import EditRequest, Fact, read_known_facts
    from rome_lens.intervals import Estimate
    from rome_lens.loading import load_model
    from rome_lens.tracing import (
        AverageEffect,
        CausalTrace,
        average_causal_effect,
        causal_trace,
        merge_averages,
        read_average,
    )

__all__ = [
    "ROME",
    "AnswerError",
    "ArtefactError",
    "AverageEffect",
    "CausalTrace",
    "CounterFactRecord",
    "DownloadError",
    "Edit",
    "EditError",
    "EditRequest",
    "EditStateError",
    "EditorScores",
    "Estimate",
    "Fact",
    "FactNotKnownError",
    "FineTuning",
    "LayerSuggestion",
    "MatrixEdit",
    "Measures",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "PromptError",
    "RecordSet",
    "Report",
    "RomeLensError",
    "RunError",
    "SecondMoment",
    "SettingError",
    "SubjectError",
    "ZsreRecord",
    "__version__",
    "applied_edits",
    "average_causal_effect",
    "builtin_counterfact",
    "builtin_facts",
    "causal_trace",
    "evaluate_counterfact",
    "evaluate_zsre",
    "forget_edits",
    "hooks_for_rows",
    "load_edit",
    "load_model",
    "merge_averages",
    "merge_runs",
    "read_average",
    "read_counterfact",
    "read_known_facts",
    "read_run",
    "read_zsre",
    "stale_edits",
    "suggest_layer",
]

_HOMES = {
    "applied_edits": "rome_lens.editing",
    "average_causal_effect": "rome_lens.tracing",
    "AverageEffect": "rome_lens.tracing",
    "builtin_counterfact": "rome_lens.data",
    "builtin_facts": "rome_lens.data",
    "causal_trace": "rome_lens.tracing",
    "CausalTrace": "rome_lens.tracing",
    "CounterFactRecord": "rome_lens.data",
    "Edit": "rome_lens.editing",
    "EditorScores": "rome_lens.evaluation",
    "EditRequest": "rome_lens.facts",
    "Estimate": "rome_lens.intervals",
    "evaluate_counterfact": "rome_lens.evaluation",
    "evaluate_zsre": "rome_lens.evaluation",
    "Fact": "rome_lens.facts",
    "FineTuning": "rome_lens.editing",
    "forget_edits": "rome_lens.editing",
    "hooks_for_rows": "rome_lens.editing",
    "LayerSuggestion": "rome_lens.evaluation",
    "load_edit": "rome_lens.editing",
    "load_model": "rome_lens.loading",
    "MatrixEdit": "rome_lens.editing",
    "Measures": "rome_lens.evaluation",
    "merge_averages": "rome_lens.tracing",
    "merge_runs": "rome_lens.evaluation",
    "read_average": "rome_lens.tracing",
    "read_counterfact": "rome_lens.data",
    "read_known_facts": "rome_lens.facts",
    "read_run": "rome_lens.evaluation",
    "read_zsre": "rome_lens.data",
    "RecordSet": "rome_lens.data",
    "Report": "rome_lens.evaluation",
    "ROME": "rome_lens.editing",
    "SecondMoment": "rome_lens.editing",
    "stale_edits": "rome_lens.editing",
    "suggest_layer": "rome_lens.evaluation",
    "ZsreRecord": "rome_lens.data",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
