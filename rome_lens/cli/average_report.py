"""How an average is printed: a heat map for each stream with its peaks, severed paths, facts set aside."""

from collections import Counter

from rich.console import Console

from rome_lens.cli.printing import count, print_labelled, shorten
from rome_lens.figures import render_heat_map, visible
from rome_lens.intervals import Estimate
from rome_lens.tracing import AverageEffect, Peak
from rome_lens.tracing.labels import SEVERED_IN_WORDS
from rome_lens.tracing.roles import EARLY

_ROLE = 23
_MOST_REASONS = 3


def print_average(console: Console, average: AverageEffect) -> None:
    """Print the effects of every stream by role, with 95 % intervals, within the console's width."""
    how = ", APPROXIMATED by attribution patching" if average.approximate else ""
    heading = f"{count(len(average.facts), 'fact')}{how}"
    model = shorten(average.settings["model"]["name"], max(8, console.width - len(heading) - 2))
    console.print(f"{model}: {heading}", style="bold", soft_wrap=True)
    for label, found, words in (
        ("high", average.high, "clean run"),
        ("low", average.low, "subject corrupted"),
        ("ATE", average.total_effect, "total effect: high - low"),
    ):
        console.print(f"{label:5}{_estimate(found)}  {words}", soft_wrap=True)
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
    reasons = Counter(_reason(fact["why"]) for fact in average.set_aside)
    for reason, number in reasons.most_common(_MOST_REASONS):
        print_labelled(console, "set aside", f"{count(number, 'fact')}: {visible(reason)}")
    for note in average.notes:
        print_labelled(console, "note", visible(note))


def _reason(why: str) -> str:
    """Why, without what differs from fact to fact."""
    return why.partition(": it continues with")[0]


def _estimate(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _peak(peak: Peak) -> str:
    layers = f" [{peak.first}, {peak.last}]" if peak.first != peak.last else ""
    return f"{_estimate(peak.effect)}  layer {peak.layer}{layers}"
