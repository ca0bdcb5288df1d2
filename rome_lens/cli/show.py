"""`rome-lens show`: what is in a file that rome-lens wrote."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rome_lens.cli.options import Json
from rome_lens.cli.terminal import print_json, say, stdout
from rome_lens.errors import ArtefactError, RomeLensError

if TYPE_CHECKING:
    from rome_lens.editing import Edit, SecondMoment
    from rome_lens.tracing import CausalTrace

# More templates than these say no more.
_MOST_TEMPLATES = 6


def show(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Edits, second moments or traces that rome-lens saved.", metavar="FILE", show_default=False
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say what is in a file of rome-lens: an edit, a second moment or a trace. No model is needed.

    A file that cannot be read is named on stderr, and the others are shown all
    the same; the command then exits with 1.

    For example: rome-lens show rome.safetensors
    """
    console, entries, failed = stdout(), [], False
    for path in files:
        try:
            kind, content = _read(path)
            with _doubted(path, kind), console.capture() as shown:
                entry = {"path": str(path), "kind": kind, **_as_json(content)} if as_json else None
                if not as_json:
                    _print(console, path, kind, content)
        except RomeLensError as error:
            say(str(error))
            failed = True
            continue
        if not as_json:
            # What is captured is styled already.
            console.file.write("\n" * bool(entries) + shown.get())
        entries.append(entry)
    if as_json:
        print_json(entries)
    if failed:
        raise typer.Exit(1)


def _read(path: Path) -> "tuple[str, Edit | SecondMoment | CausalTrace]":
    from rome_lens.editing import SecondMoment, load_edit
    from rome_lens.tracing import CausalTrace

    readers: dict[str, Callable[[Path], Any]] = {
        "edit": load_edit,
        "second_moment": SecondMoment.load,
        "causal_trace": CausalTrace.load,
    }
    if path.is_dir():
        raise ArtefactError(f"cannot show {str(path)!r}: it is a folder; name a file in it")
    kind = _kind(path)
    if kind is not None and kind not in readers:
        raise ArtefactError(f"cannot show {str(path)!r}: a {kind}; show reads {', '.join(readers)}")
    # What is no file of ours is refused by the first reader, which knows how to say why.
    kind = kind or "edit"
    return kind, readers[kind](path)


def _kind(path: Path) -> str | None:
    """What a file says that it holds; None where it says nothing."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kind = json.loads((file.metadata() or {})["rome_lens"])["kind"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if isinstance(kind, str) else None


@contextmanager
def _doubted(path: Path, kind: str) -> Iterator[None]:
    """A file may hold anything in its fields: what cannot be printed is damaged, and no bug of ours."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ArtefactError(f"cannot show {str(path)!r}: a damaged {kind} ({error})") from error


def _as_json(content: "Edit | SecondMoment | CausalTrace") -> dict[str, Any]:
    from rome_lens.editing import Edit

    values = content.to_dict()
    if isinstance(content, Edit):
        values = {"id": content.id, **values}
    json.dumps(values, allow_nan=False)
    return values


def _print(console: Console, path: Path, kind: str, content: Any) -> None:
    from rome_lens.figures import visible

    title = {"edit": "an edit", "second_moment": "a second moment", "causal_trace": "a trace"}[kind]
    console.print(f"{visible(str(path))}: {title}, {_size(path.stat().st_size)}", style="bold")
    {"edit": _print_edit, "second_moment": _print_moment, "causal_trace": _print_trace}[kind](console, content)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"


def _print_edit(console: Console, edit: "Edit") -> None:
    from rome_lens.cli.edit_report import heading, print_size, print_sources
    from rome_lens.cli.layout import LABEL, print_labelled, shorten
    from rome_lens.figures import visible

    console.print(heading(edit))
    console.print(f"{visible(edit.fingerprint.model_name)} · {visible(edit.backend)} · {visible(edit.dtype)}")
    answers = {edit.request.target_new: "target", edit.old_answer: "old"}
    names = {name: f"p({shorten(answer.strip(), 20)})" for answer, name in answers.items()}
    width = max(map(len, names.values()))
    for name, said in names.items():
        before, after = getattr(edit.before, name), getattr(edit.after, name)
        console.print(f"{said:{width}}  {before:.3f} → {after:.3f}")
        if name == "target" and edit.after.target_mean not in (None, edit.after.target):
            earlier, now = (p.target_mean for p in (edit.before, edit.after))
            console.print(f"{'a token':{width}}  {earlier:.3f} → {now:.3f} on average")
    print_size(console, edit)
    print_sources(console, edit)
    module = edit.module or "unknown: it can go into a model folder, and not into an adapter"
    print_labelled(console, "module", visible(module))
    templates = [str(template) for template in edit.settings.get("context_templates", ())]
    for number, template in enumerate(templates[:_MOST_TEMPLATES]):
        print_labelled(console, "" if number else "templates", shorten(template, max(20, console.width - LABEL)))
    if len(templates) > _MOST_TEMPLATES:
        print_labelled(console, "", f"and {len(templates) - _MOST_TEMPLATES} more (--json shows all)")
    print_labelled(console, "id", edit.id)
    console.print(f"edited in {edit.seconds:.1f} s")


def _print_moment(console: Console, moment: "SecondMoment") -> None:
    from rome_lens.cli.edit_report import moment_in_words
    from rome_lens.cli.layout import print_labelled
    from rome_lens.figures import visible

    history = moment.to_dict()
    bos = {True: "BOS", False: "no BOS", None: "BOS unknown"}[moment.prepend_bos]
    console.print(f"layer {moment.layer} (from 0), {moment.d_mlp} x {moment.d_mlp}")
    console.print(visible(" · ".join(str(history[k]) for k in ("model_name", "backend", "dtype") if history[k])))
    print_labelled(console, "text", visible(moment_in_words({**history, "model_name": None})))
    pieces = "" if moment.n_pieces is None else f"in {moment.n_pieces} pieces of at most {moment.text_length} tokens, "
    print_labelled(console, "", f"{pieces}{bos}")
    shown = {"made": "created", "by": "command", "revision": "revision", "device": "device", "text id": "digest"}
    for label, name in shown.items():
        if history[name] is not None:
            print_labelled(console, label, visible(str(history[name])))
    if moment.versions:
        print_labelled(console, "versions", visible(", ".join(f"{k} {v}" for k, v in moment.versions.items())))
    for warning in moment.warnings:
        print_labelled(console, "note", warning)
    if moment.seconds is not None:
        console.print(f"collected in {moment.seconds:.1f} s")


def _print_trace(console: Console, trace: "CausalTrace") -> None:
    from rome_lens.cli.layout import print_labelled
    from rome_lens.figures import format_probability, render_heat_map, visible

    console.print(f"{visible(trace.prompt)} → {visible(trace.answer).strip()}")
    console.print(
        f"{visible(trace.model_name)} · {visible(trace.backend)} · {visible(trace.dtype)} on {visible(trace.device)} · "
        f"{'BOS' if trace.prepend_bos else 'no BOS'}"
    )
    noise = (
        f"swapped for {trace.swap!r}"
        if trace.noise is None
        else f"noise {trace.noise:.4g} ({trace.noise_rule}){' in its place' if trace.noise_replaces else ''}, seed "
        f"{trace.seed}"
    )
    print_labelled(console, "subject", visible(f"{trace.subject!r}, {noise}, samples {trace.samples}"))
    print_labelled(console, "high, low", ", ".join(format_probability(p, 4) for p in (trace.high, trace.low)))
    print_labelled(console, "streams", visible(f"{', '.join(trace.scores)}, window {trace.window}"))
    for edit in getattr(trace, "edits", ()):
        print_labelled(console, "edit", visible(str(edit)))
    for note in trace.notes:
        print_labelled(console, "note", visible(note))
    for heat_map in trace.heat_maps():
        console.print()
        console.print(render_heat_map(heat_map, width=console.width))
    console.print(f"traced in {trace.seconds:.1f} s")
