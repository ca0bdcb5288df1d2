"""ROME for TransformerLens: trace where a language model keeps a fact.

Importing this package imports neither torch nor TransformerLens: the names below are fetched when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rome_lens.errors import (
    AnswerError,
    ArtefactError,
    CollapseError,
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
    from rome_lens.chat import chat_prompt
    from rome_lens.data import (
        CounterFactRecord,
        FollowUp,
        RecordSet,
        ZsreRecord,
        builtin_counterfact,
        builtin_facts,
        read_counterfact,
        read_requests,
        read_zsre,
    )
    from rome_lens.editing import (
        EMMET,
        MEMIT,
        ROME,
        AlphaEdit,
        CollapseGuard,
        Conflict,
        Edit,
        EditSet,
        FineTuning,
        MatrixEdit,
        SecondMoment,
        SetFact,
        ValueSettings,
        applied_edits,
        forget_edits,
        hooks_for_rows,
        load_edit,
        merge_facts,
        stale_edits,
    )
    from rome_lens.evaluation import (
        AgeGroup,
        Checkpoint,
        EditorScores,
        LayerSuggestion,
        Measures,
        Report,
        Together,
        TogetherReport,
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
        NeuronEffects,
        average_causal_effect,
        causal_trace,
        merge_averages,
        read_average,
        trace_neurons,
    )

__all__ = [
    "EMMET",
    "MEMIT",
    "ROME",
    "AgeGroup",
    "AlphaEdit",
    "AnswerError",
    "ArtefactError",
    "AverageEffect",
    "CausalTrace",
    "Checkpoint",
    "CollapseError",
    "CollapseGuard",
    "Conflict",
    "CounterFactRecord",
    "DownloadError",
    "Edit",
    "EditError",
    "EditRequest",
    "EditSet",
    "EditStateError",
    "EditorScores",
    "Estimate",
    "Fact",
    "FactNotKnownError",
    "FineTuning",
    "FollowUp",
    "LayerSuggestion",
    "MatrixEdit",
    "Measures",
    "ModelError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "NeuronEffects",
    "OutOfMemoryError",
    "PromptError",
    "RecordSet",
    "Report",
    "RomeLensError",
    "RunError",
    "SecondMoment",
    "SetFact",
    "SettingError",
    "SubjectError",
    "Together",
    "TogetherReport",
    "ValueSettings",
    "ZsreRecord",
    "__version__",
    "applied_edits",
    "average_causal_effect",
    "builtin_counterfact",
    "builtin_facts",
    "causal_trace",
    "chat_prompt",
    "evaluate_counterfact",
    "evaluate_zsre",
    "forget_edits",
    "hooks_for_rows",
    "load_edit",
    "load_model",
    "merge_averages",
    "merge_facts",
    "merge_runs",
    "read_average",
    "read_counterfact",
    "read_known_facts",
    "read_requests",
    "read_run",
    "read_zsre",
    "stale_edits",
    "suggest_layer",
    "trace_neurons",
]

_ROOMS = {
    "data": "CounterFactRecord FollowUp RecordSet ZsreRecord builtin_counterfact builtin_facts read_counterfact "
    "read_requests read_zsre",
    "editing": "EMMET MEMIT ROME AlphaEdit CollapseGuard Conflict Edit EditSet FineTuning MatrixEdit SecondMoment "
    "SetFact ValueSettings applied_edits forget_edits hooks_for_rows load_edit merge_facts stale_edits",
    "evaluation": "AgeGroup Checkpoint EditorScores LayerSuggestion Measures Report Together TogetherReport "
    "evaluate_counterfact evaluate_zsre merge_runs read_run suggest_layer",
    "chat": "chat_prompt",
    "facts": "EditRequest Fact read_known_facts",
    "intervals": "Estimate",
    "loading": "load_model",
    "tracing": "AverageEffect CausalTrace NeuronEffects average_causal_effect causal_trace merge_averages read_average "
    "trace_neurons",
}
_HOMES = {name: room for room, names in _ROOMS.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
