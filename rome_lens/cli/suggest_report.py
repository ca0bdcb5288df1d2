"""How a suggested layer is printed: a line a layer of the sweep, beside what tracing points to."""

from rich.console import Console

from rome_lens.cli.printing import print_labelled
from rome_lens.evaluation import LayerSuggestion
from rome_lens.tracing.roles import EARLY


def print_suggestion(console: Console, suggestion: LayerSuggestion) -> None:
    """Print the sweep of editing success beside what tracing points to, and the layer to edit."""
    console.print("Editing at several layers (r-rome)", style="bold")
    console.print(f"  {'layer':7}{'AIE of MLPs':13}{'S':22}{'ES':7}{'PS':7}NS", soft_wrap=True)
    effects = suggestion.average.curve(*EARLY).mean
    for layer, scores in sorted(suggestion.sweep.items()):
        best = scores.intervals["S"]
        numbers = "".join(f"{scores.intervals[name].mean:<7.1f}" for name in ("ES", "PS", "NS")).rstrip()
        interval = f"{best.mean:.1f} [{best.low:.1f}, {best.high:.1f}]"
        console.print(f"  {layer:<7}{effects[layer]:<13.3f}{interval:22}{numbers}", soft_wrap=True)
    traced = suggestion.traced
    print_labelled(console, "tracing", f"points to layer {traced.layer} [{traced.first}, {traced.last}]")
    agree = "as tracing does" if suggestion.agree else "which tracing does not point to: the two need not agree"
    print_labelled(console, "suggested", f"layer {suggestion.layer}, {agree} (see arXiv 2301.04213)")
