"""Causal tracing: what is corrupted, what is restored, and the engine that scores every cell exactly and fast."""

from rome_lens.tracing.result import CausalTrace
from rome_lens.tracing.trace import causal_trace

__all__ = ["CausalTrace", "causal_trace"]
