"""`rome-lens trace`: where does the model keep this fact?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.cli.options import (
    Backend,
    Device,
    Dtype,
    Engine,
    Json,
    Model,
    Noise,
    NoiseReplaces,
    NoiseSeed,
    PutBos,
    Samples,
    Stream,
    Window,
    answer_joined_option,
)
from rome_lens.cli.terminal import print_json, progress_bar, say, stdout
from rome_lens.errors import SettingError
from rome_lens.storage import check_writable

if TYPE_CHECKING:
    from rich.console import Console

    from rome_lens.editing import Edit
    from rome_lens.tracing import CausalTrace

_FACT: dict[str, Any] = {"rich_help_panel": "The fact"}
_HOW: dict[str, Any] = {"rich_help_panel": "How it is traced"}
_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}
_PROMPT, _SUBJECT = "The Eiffel Tower is located in the city of", "The Eiffel Tower"


def trace(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="A text that the model continues with the answer.", show_default="the Eiffel Tower's", metavar="PROMPT"
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject",
            "-s",
            help="The part of the prompt to corrupt, letter for letter; needed with a prompt.",
            metavar="TEXT",
            **_FACT,
        ),
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(help="The answer; refuse to trace if the model does not predict it.", metavar="TEXT", **_FACT),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            help="Trace this answer, predicted or not.", show_default="the model's next token", metavar="TEXT", **_FACT
        ),
    ] = None,
    answer_joined: Annotated[str | None, answer_joined_option(_FACT["rich_help_panel"])] = None,
    occurrence: Annotated[
        int,
        typer.Option(
            help="Which occurrence of the subject: 1 is the first, -1 the last.",
            metavar="N",
            **_FACT,
        ),
    ] = 1,
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    stream: Stream = None,
    severed: Annotated[
        list[str] | None,
        typer.Option(
            help="Restore the residual stream once more with mlp or attn outputs held at the corrupted run's at that "
            "token; repeat it for both.",
            show_default="none",
            metavar="STREAM",
            **_HOW,
        ),
    ] = None,
    window: Window = None,
    samples: Samples = 10,
    noise: Noise = None,
    noise_replaces: NoiseReplaces = False,
    swap: Annotated[
        str | None,
        typer.Option(
            help="Corrupt by putting this subject, of as many tokens, in place of the prompt's; no noise.",
            metavar="TEXT",
            **_HOW,
        ),
    ] = None,
    facts: Annotated[
        Path | None,
        typer.Option(
            help="Known facts (JSON) that s, m and t are measured on.",
            show_default="150 that come with rome-lens",
            metavar="FILE",
            **_HOW,
        ),
    ] = None,
    seed: NoiseSeed = 1,
    bos: PutBos = False,
    edit: Annotated[
        list[Path] | None,
        typer.Option(
            help="Trace before and after this edit, a file of 'rome-lens edit --save'; repeat it for several.",
            metavar="FILE",
            **_FACT,
        ),
    ] = None,
    engine: Engine = "auto",
    html: Annotated[
        Path | None, typer.Option(help="Write the figure as a page that needs no network.", metavar="FILE", **_OUT)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write the figure as PNG (needs the extra 'images').", metavar="FILE", **_OUT)
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the trace, to be read with CausalTrace.load.", metavar="FILE", **_OUT)
    ] = None,
    as_json: Json = False,
) -> None:
    """Trace where a model keeps a fact: corrupt the subject, restore one state at a time, see what brings it back.

    Prints a heat map a stream: tokens down (the subject's marked *), layers across, the answer's probability in
    colour, from low (the subject corrupted, nothing restored) up to high (the clean run) or beyond.

    For example: rome-lens trace "The Colosseum is located in the city of" -s "The Colosseum" --expect Rome
    """
    edits = _read_edits(edit or [])
    if prompt is None and subject is None:
        prompt, subject = _PROMPT, _SUBJECT
        if edits:
            prompt, subject, own = edits[0].request.asked
            occurrence = own if occurrence == 1 else occurrence
            if answer_joined is None and (answer is not None or expect is not None):
                answer_joined = edits[0].request.answer_joined
    elif prompt is None or subject is None:
        missing = "--subject" if subject is None else "PROMPT"
        raise SettingError(f"{missing} is missing; give a prompt and its --subject, or neither for the Eiffel Tower")
    for path in (html, png, save):
        if path is not None:
            check_writable(path)
    if png is not None:
        from rome_lens.figures.plotly_figure import check_png

        check_png()

    from rome_lens.facts import read_known_facts

    measured = None if facts is None else read_known_facts(facts)
    with progress_bar() as progress:
        progress(0, 0, "starting")
        from rome_lens.loading import load_model
        from rome_lens.loading.outline import Outline
        from rome_lens.subjects import find_subject
        from rome_lens.tokens import check_prompt
        from rome_lens.tracing import TraceSettings, causal_trace
        from rome_lens.tracing.answers import named_answer

        # Loading takes seconds: what can be refused without a model is refused before.
        check_prompt(prompt)
        find_subject(prompt, subject, occurrence)
        asked: dict[str, Any] = {
            "streams": tuple(stream or ("resid", "mlp", "attn")),
            "severed": tuple(severed or ()),
            "window": window,
            "samples": samples,
            "noise": noise,
            "noise_replaces": noise_replaces,
            "swap": swap,
            "seed": seed,
            "prepend_bos": bos,
            "engine": engine,
        }
        settings = TraceSettings(**asked)
        named_answer(answer, expect, answer_joined)
        if window is not None:
            Outline.of(model).check_window(window)
        host = load_model(model, backend=backend, device=device, dtype=dtype, progress=progress)
        traced = causal_trace(
            host,
            prompt,
            subject=subject,
            answer=answer,
            expect=expect,
            answer_joined=answer_joined,
            occurrence=occurrence,
            facts=measured,
            edits=edits,
            settings=settings,
            progress=progress,
        )
    _write(traced, html=html, png=png, save=save)
    if as_json:
        print_json(traced.to_dict())
    else:
        _print(traced)


def _read_edits(paths: list[Path]) -> "list[Edit]":
    if not paths:
        return []
    from rome_lens.editing import load_edit

    return [load_edit(path) for path in paths]


def _write(traced: "CausalTrace", *, html: Path | None, png: Path | None, save: Path | None) -> None:
    from rome_lens.figures.plotly_figure import write_html, write_png

    if save is not None:
        traced.save(save)
    if html is not None:
        write_html(traced.figure(), html)
    if png is not None:
        write_png(traced.figure(), png)
    for path in (save, html, png):
        if path is not None:
            say(f"wrote {path}")


def _print(traced: "CausalTrace") -> None:
    from rome_lens.figures import visible

    console = stdout()
    broken = (
        f"subject swapped for {traced.swap!r}"
        if traced.noise is None
        else f"subject {'replaced by' if traced.noise_replaces else 'under'} noise of {traced.noise:.4g}"
        f"{'' if _is_number(traced.noise_rule) else f' ({traced.noise_rule})'}, "
        f"{traced.samples} sample{'s' if traced.samples > 1 else ''}, seed {traced.seed}"
    )
    console.print(f"{visible(traced.prompt)} → {visible(traced.answer).strip()}", style="bold")
    console.print(
        f"{visible(traced.model_name)} · {traced.backend} · {traced.dtype} on {traced.device} · "
        f"{'BOS' if traced.prepend_bos else 'no BOS'}"
    )
    for edited in traced.edits:
        console.print(f"edited: {visible(edited)}")
    if traced.unedited is not None:
        console.print("\nBefore the edit", style="bold")
        _print_grids(console, traced.unedited, broken)
        console.print("\nAfter the edit", style="bold")
    _print_grids(console, traced, broken)
    seconds = traced.seconds + (0.0 if traced.unedited is None else traced.unedited.seconds)
    console.print(f"\ntraced in {seconds:.1f} s")


def _print_grids(console: "Console", traced: "CausalTrace", broken: str) -> None:
    """The maps of one state of the model."""
    from rome_lens.figures import format_probability, render_heat_map, visible

    first, end = traced.subject_span
    console.print(f"high {format_probability(traced.high, 4)}  clean run")
    console.print(f"low  {format_probability(traced.low, 4)}  {visible(broken)}")
    for heat_map in traced.heat_maps()[-len(traced.scores) - len(traced.severed) :]:
        console.print()
        console.print(render_heat_map(heat_map, width=console.width))
        if heat_map.blank:
            continue
        layer, pos = heat_map.peak_of(range(first, end))
        console.print(
            f"  best of the subject: layer {layer}, p = {format_probability(heat_map.score(layer, pos))}, "
            f'token "{visible(heat_map.labels[pos])}"'
        )
    if traced.notes:
        console.print()
    for note in traced.notes:
        console.print(f"Note: {visible(note)}.")


def _is_number(rule: str | None) -> bool:
    return rule is not None and rule[:1].isdigit()
