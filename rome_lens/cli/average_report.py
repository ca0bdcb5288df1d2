"""How an average is printed: a heat map a stream with its peaks, the severed paths, and what was set aside."""

from typing import TYPE_CHECKING

from rich.console import Console

from rome_lens.cli.layout import count, print_labelled, shorten
from rome_lens.figures import render_heat_map, visible
from rome_lens.tracing.labels import SEVERED_IN_WORDS
from rome_lens.tracing.roles import EARLY

if TYPE_CHECKING:
    from rome_lens.evaluation.suggest import LayerSuggestion
    from rome_lens.intervals import Estimate
    from rome_lens.tracing import AverageEffect, Peak

_ROLE = 23
_MOST_REASONS = 3


def print_average(console: Console, average: "AverageEffect") -> None:
    """Print the effects of every stream by role, with 95 % intervals, within the console's width."""
    how = ", APPROXIMATED by attribution patching" if average.approximate else ""
    heading = f"{count(len(average.facts), 'fact')}{how}"
    model = shorten(average.settings["model"]["name"], max(8, console.width - len(heading) - 2))
    console.print(f"{model}: {heading}", style="bold", soft_wrap=True)
    for label, told in (("high", average.high), ("low", average.low), ("ATE", average.total_effect)):
        words = {"high": "clean run", "low": "subject corrupted", "ATE": "total effect: high - low"}[label]
        console.print(f"{label:5}{_estimate(told)}  {words}", soft_wrap=True)
    for heat_map in average.heat_maps():
        console.print()
        console.print(render_heat_map(heat_map, width=console.width))
        for role in average.roles(heat_map.stream):
            console.print(f"  {role:{_ROLE}}{_peak(average.peak(heat_map.stream, role))}", soft_wrap=True)
    role = EARLY[1]
    if average.severed and "resid" in average.streams and role in average.roles("resid"):
        console.print(f"\nRestoring the residual state at the {role}, paths severed", style="bold")
        console.print(f"  {'ordinary':{_ROLE}}{_peak(average.peak('resid', role))}", soft_wrap=True)
        for stream in average.severed:
            name = SEVERED_IN_WORDS[stream]
            console.print(f"  {name:{_ROLE}}{_peak(average.peak('resid', role, severed=stream))}", soft_wrap=True)
    console.print("\n[ ]: 95 % interval, by bootstrap over facts; of a layer: where draws peak", style="dim")
    reasons: dict[str, int] = {}
    for fact in average.set_aside:
        reasons[_reason(fact["why"])] = reasons.get(_reason(fact["why"]), 0) + 1
    for reason, number in sorted(reasons.items(), key=lambda told: -told[1])[:_MOST_REASONS]:
        print_labelled(console, "set aside", f"{count(number, 'fact')}: {visible(reason)}")
    for note in average.notes:
        print_labelled(console, "note", visible(note))


def print_suggestion(console: Console, suggestion: "LayerSuggestion") -> None:
    """Print the sweep of editing success beside what tracing points to, and the layer to edit."""
    console.print("\nEditing at several layers (r-rome)", style="bold")
    console.print(f"  {'layer':7}{'AIE of MLPs':13}{'S':22}{'ES':7}{'PS':7}NS", soft_wrap=True)
    effects = suggestion.average.curve(*EARLY).mean
    for layer, scores in sorted(suggestion.sweep.items()):
        told = scores.intervals
        best = told["S"]
        numbers = "".join(f"{told[name].mean:<7.1f}" for name in ("ES", "PS", "NS")).rstrip()
        interval = f"{best.mean:.1f} [{best.low:.1f}, {best.high:.1f}]"
        console.print(f"  {layer:<7}{effects[layer]:<13.3f}{interval:22}{numbers}", soft_wrap=True)
    traced = suggestion.traced
    print_labelled(console, "tracing", f"points to layer {traced.layer} [{traced.first}, {traced.last}]")
    agree = "as tracing does" if suggestion.agree else "which tracing does not point to: the two need not agree"
    print_labelled(console, "suggested", f"layer {suggestion.layer}, {agree} (see arXiv 2301.04213)")


def _reason(why: str) -> str:
    """Why, without what differs from fact to fact."""
    return why.partition(": it continues with")[0]


def _estimate(told: "Estimate") -> str:
    return f"{told.mean:.3f} [{told.low:.3f}, {told.high:.3f}]"


def _peak(peak: "Peak") -> str:
    layers = f" [{peak.first}, {peak.last}]" if peak.first != peak.last else ""
    return f"{_estimate(peak.effect)}  layer {peak.layer}{layers}"
