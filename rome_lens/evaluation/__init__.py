"""Measuring edits: CounterFact and zsRE, editors side by side, in runs that survive."""

from rome_lens.evaluation.editors.named import EDITORS, Editor
from rome_lens.evaluation.evaluate import evaluate_counterfact, evaluate_zsre, merge_runs, read_run
from rome_lens.evaluation.measures import Measures, read_references
from rome_lens.evaluation.report.checkpoints import AgeGroup, Checkpoint
from rome_lens.evaluation.report.report import Report, write_csv
from rome_lens.evaluation.report.scores import EditorScores
from rome_lens.evaluation.report.together_report import TogetherReport
from rome_lens.evaluation.suggest import LayerSuggestion, suggest_layer
from rome_lens.evaluation.together.checkpoints import Together

__all__ = [
    "EDITORS",
    "AgeGroup",
    "Checkpoint",
    "Editor",
    "EditorScores",
    "LayerSuggestion",
    "Measures",
    "Report",
    "Together",
    "TogetherReport",
    "evaluate_counterfact",
    "evaluate_zsre",
    "merge_runs",
    "read_references",
    "read_run",
    "suggest_layer",
    "write_csv",
]
