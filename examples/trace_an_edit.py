"""Trace a fact before and after an edit: same answer, same noise, two rows of grids in one page."""

import argparse
from collections.abc import Sequence
from typing import Any

import rome_lens as rl


def trace_an_edit(model: Any, edit: rl.Edit, *, noise: float | str | None = None) -> rl.CausalTrace:
    """Trace the edited prompt and print where the MLPs' outputs bring the answer back, before and after."""
    trace = rl.causal_trace(model, edit.request.text, subject=edit.request.subject, edits=[edit], noise=noise)
    print(f"{trace.prompt} → {trace.answer.strip()}, edited at layer {edit.layer}")
    for when, grids in (("before", trace.unedited), ("after", trace)):
        layer, pos = grids.peak("mlp")
        peak = f"{grids.scores['mlp'][layer, pos]:.3f} at layer {layer}, token {grids.tokens[pos]!r}"
        print(f"{when:6}  high {grids.high:.3f}, low {grids.low:.3f}, MLP peak {peak}")
    return trace


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the edit, load the model that it was made on, trace, and write the page."""
    parser = argparse.ArgumentParser(description="Trace a fact before and after an edit.")
    parser.add_argument("edit", help="a file of 'rome-lens edit --save' or Edit.save")
    parser.add_argument("--model", default="smollm2-135m", help="the model that the edit was made on")
    parser.add_argument("--html", default="before-and-after.html", help="where to write the grids")
    options = parser.parse_args(arguments)

    trace = trace_an_edit(rl.load_model(options.model), rl.load_edit(options.edit))
    trace.write_html(options.html)


if __name__ == "__main__":
    main()
