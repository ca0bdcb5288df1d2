"""Causal tracing: corrupt a subject, restore one state at a time, and see where the answer comes back."""

from rome_lens.tracing.average.average import average_causal_effect, merge_averages, read_average
from rome_lens.tracing.average.effects import Curve, Peak
from rome_lens.tracing.average.result import AverageEffect
from rome_lens.tracing.average.settings import AverageSettings
from rome_lens.tracing.neurons import NeuronEffects, trace_neurons
from rome_lens.tracing.result import CausalTrace
from rome_lens.tracing.settings import TraceSettings
from rome_lens.tracing.trace import causal_trace

__all__ = [
    "AverageEffect",
    "AverageSettings",
    "CausalTrace",
    "Curve",
    "NeuronEffects",
    "Peak",
    "TraceSettings",
    "average_causal_effect",
    "causal_trace",
    "merge_averages",
    "read_average",
    "trace_neurons",
]
