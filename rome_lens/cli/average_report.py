"""How an average of many traces is printed: a heat map for each stream, peaks with their intervals, notes."""

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
        for name, severed in {"ordinary": None, **{SEVERED_IN_WORDS[s]: s for s in average.severed}}.items():
            console.print(f"  {name:{_ROLE}}{_peak(average.peak('resid', role, severed=severed))}", soft_wrap=True)
    console.print("\n[ ]: 95 % interval, by bootstrap over facts; of a layer: where draws peak", style="dim")
    # Why, without what differs from fact to fact.
    reasons = Counter(fact["why"].partition(": it continues with")[0] for fact in average.set_aside)
    for reason, number in reasons.most_common(_MOST_REASONS):
        print_labelled(console, "set aside", f"{count(number, 'fact')}: {visible(reason)}")
    print_labelled(console, "note", *map(visible, average.notes))


def _estimate(found: Estimate) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _peak(peak: Peak) -> str:
    layers = f" [{peak.first}, {peak.last}]" if peak.first != peak.last else ""
    return f"{_estimate(peak.effect)}  layer {peak.layer}{layers}"
