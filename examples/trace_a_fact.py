"""Trace a fact in the default model, or in the model that `--model` names."""

import argparse
from collections.abc import Sequence
from typing import Any

import rome_lens as rl

PROMPT = "The Eiffel Tower is located in the city of"
SUBJECT = "The Eiffel Tower"


def trace_a_fact(
    model: Any, prompt: str = PROMPT, subject: str = SUBJECT, *, noise: float | str | None = None
) -> rl.CausalTrace:
    """Trace one fact and print the best cell of every stream within the subject."""
    trace = rl.causal_trace(model, prompt, subject=subject, noise=noise)
    print(f"{trace.prompt} → {trace.answer.strip()}: high {trace.high:.3f}, low {trace.low:.3f}")
    for stream, scores in trace.scores.items():
        layer, pos = trace.peak(stream, positions=range(*trace.subject_span))
        print(f"{stream:5}  layer {layer:2}, token {trace.tokens[pos]!r}: {scores[layer, pos]:.3f}")
    return trace


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the model, trace the fact and write the figure where it was asked for."""
    parser = argparse.ArgumentParser(description="Trace a fact in a model.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--prompt", default=PROMPT, help="a text that the model continues with the answer")
    parser.add_argument("--subject", default=SUBJECT, help="the part of the prompt to corrupt")
    parser.add_argument("--noise", help="s3 (the default), a number, m, t5 or u0.5")
    parser.add_argument("--html", help="write the figure to this file")
    options = parser.parse_args(arguments)

    trace = trace_a_fact(rl.load_model(options.model), options.prompt, options.subject, noise=options.noise)
    if options.html:
        trace.write_html(options.html)


if __name__ == "__main__":
    main()
