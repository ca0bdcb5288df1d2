"""Averages over many facts: where a model keeps what it knows."""

from rome_lens.tracing.average.average import average_causal_effect, merge_averages, read_average
from rome_lens.tracing.average.effects import Curve, Peak
from rome_lens.tracing.average.result import AverageEffect

__all__ = ["AverageEffect", "Curve", "Peak", "average_causal_effect", "merge_averages", "read_average"]
