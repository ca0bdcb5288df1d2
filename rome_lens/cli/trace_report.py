"""How a trace is printed: what was asked, a heat map for each stream, peaks, notes."""

from rich.console import Console

from rome_lens.cli.printing import for_console, model_line, print_labelled
from rome_lens.figures import format_probability, render_heat_map, visible
from rome_lens.tracing import CausalTrace, NeuronEffects


def print_trace(console: Console, traced: CausalTrace) -> None:
    """Print a trace, and in front of one with edits the trace without them."""
    _print_head(console, traced, style="bold")
    for edited in traced.edits:
        console.print(f"edited: {visible(edited)}")
    if traced.unedited is not None:
        console.print("\nBefore the edit", style="bold")
        _print_maps(console, traced.unedited)
        console.print("\nAfter the edit", style="bold")
    _print_maps(console, traced)
    seconds = traced.seconds + (0.0 if traced.unedited is None else traced.unedited.seconds)
    console.print(f"\ntraced in {seconds:.1f} s")


def print_neurons(console: Console, found: NeuronEffects) -> None:
    """Print the neurons of a cell."""
    console.print(f"\nNeurons of the MLPs at layer {found.layer}, token {visible(repr(found.token))}", style="bold")
    said = f"{len(found.neurons)} of {found.n_neurons:,} restored, those that gradient times difference proposes"
    console.print(f"{said}\n\n  layer  neuron    restored    effect  proposed", soft_wrap=True)
    proposed = (found.proposed - found.low).tolist()
    for layer, neuron, score, effect, expected in zip(
        found.layers, found.neurons, found.scores.tolist(), found.effects.tolist(), proposed, strict=True
    ):
        p = format_probability(score, 4)
        console.print(f"  {layer:>5}  {neuron:>6}  {p:>10}  {effect:>+8.1e}  {expected:>+8.1e}", soft_wrap=True)
    low, together, cell = (format_probability(value, 4) for value in (found.low, found.together, found.cell))
    said = f"{visible(found.measure)}: low {low}, all of these {together}, all {found.n_neurons:,} {cell}"
    console.print(f"\n{said}", soft_wrap=True)
    if found.correlation is not None:
        console.print(f"correlation of proposed and exact effects: {found.correlation:.2f}")
    for note in found.notes:
        console.print(f"Note: {visible(note)}.")
    console.print(f"\ntraced in {found.seconds:.1f} s")


def print_saved_trace(console: Console, trace: CausalTrace) -> None:
    """Print what a file of a trace holds."""
    _print_head(console, trace)
    how = f"swapped for {trace.swap!r}"
    if trace.noise is not None:
        replaces = " in its place" if trace.noise_replaces else ""
        how = f"noise {trace.noise:.4g} ({trace.noise_rule}){replaces}, seed {trace.seed}"
    print_labelled(console, "subject", visible(f"{trace.subject!r}, {how}, samples {trace.samples}"))
    print_labelled(console, "high, low", ", ".join(format_probability(p, 4) for p in (trace.high, trace.low)))
    if trace.measure != "probability":
        print_labelled(console, "measure", visible(trace.measure_words))
    print_labelled(console, "streams", visible(f"{', '.join(trace.scores)}, window {trace.window}"))
    if trace.heads_at is not None:
        where = f"at token {trace.heads_at}, {trace.tokens[trace.heads_at]!r}, window {trace.heads_window}"
        print_labelled(console, "heads", visible(where))
    print_labelled(console, "edit", *(visible(str(edit)) for edit in trace.edits))
    print_labelled(console, "note", *(visible(str(note)) for note in trace.notes))
    for heat_map in trace.heat_maps():
        console.print()
        console.print(render_heat_map(heat_map, width=console.width))
    console.print(f"traced in {trace.seconds:.1f} s")


def _print_head(console: Console, traced: CausalTrace, style: str = "") -> None:
    console.print(f"{visible(traced.asked)} → {visible(traced.answer).strip()}", style=style)
    if traced.question is not None:
        console.print("asked through the tokenizer's chat template; its tokens in front of the question are left out")
    console.print(model_line(traced.model_name, traced.backend, traced.dtype, traced.device, bos=traced.prepend_bos))


def _print_maps(console: Console, traced: CausalTrace) -> None:
    """The maps of one state of the model."""
    first, end = traced.subject_span
    if traced.measure != "probability":
        console.print(f"{visible(traced.measure_words)}, {'falling' if traced.falls else 'rising'} as more is restored")
    console.print(f"high {format_probability(traced.high, 4)}  clean run")
    console.print(f"low  {format_probability(traced.low, 4)}  {visible(traced.corruption_words)}")
    for heat_map in traced.heat_maps()[-len(traced.scores) - len(traced.severed) :]:
        console.print()
        console.print(render_heat_map(heat_map, width=console.width))
        if heat_map.blank:
            continue
        if heat_map.said:
            layer, pos = heat_map.peak
            said = f"  says {visible(heat_map.said[layer][pos])}"
            console.print(for_console(console, said), soft_wrap=True)
        if heat_map.of_heads:
            continue
        layer, pos = heat_map.peak_of(range(first - heat_map.first, end - heat_map.first))
        best = f"{visible(heat_map.measure or 'p')} = {format_probability(heat_map.score(layer, pos))}"
        console.print(f'  best of the subject: layer {layer}, {best}, token "{visible(heat_map.labels[pos])}"')
    if traced.notes:
        console.print()
    for note in traced.notes:
        console.print(f"Note: {visible(note)}.")
