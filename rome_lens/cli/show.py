"""`rome-lens show`: what is in a file that rome-lens wrote."""

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from rome_lens.cli.options import JSON, argument, takes_options
from rome_lens.cli.output import print_json, say, stdout
from rome_lens.errors import ArtefactError, RomeLensError
from rome_lens.storage import stored_kind

_FILES = argument(
    "Edits, sets of facts, second moments or traces that rome-lens saved.", "FILE", default=MISSING, shown=False
)


@takes_options
def show(files: list[Path] = _FILES, as_json: bool = JSON) -> None:
    """Say what is in a file of rome-lens: an edit, a set of facts, a second moment or a trace.

    No model is needed. Of a set of facts the table shows the worst first, with
    their numbers, which 'rome-lens apply --without' takes.

    A file that cannot be read is named on stderr, and the others are shown all
    the same; the command then exits with 1.

    For example: rome-lens show rome.safetensors
    """
    console, shown, failed = stdout(), [], False
    for path in files:
        try:
            entry = _entry(path, console, as_json=as_json)
        except RomeLensError as error:
            say(str(error))
            failed = True
            continue
        if not as_json:
            # What is captured is styled already.
            console.file.write("\n" * bool(shown) + entry)
        shown.append(entry)
    if as_json:
        print_json(shown)
    if failed:
        raise typer.Exit(1)


def _entry(path: Path, console: Console, *, as_json: bool) -> Any:
    """What is in one file: an object for machines, or what a console prints of it.

    Raises:
        ArtefactError: it cannot be read. A file may hold anything in its fields: what cannot be printed is damaged, and
            no bug of ours.
    """
    from rome_lens.cli.edit_report import print_saved_edit
    from rome_lens.cli.moment_report import print_moment
    from rome_lens.cli.set_report import print_saved_set, set_as_json
    from rome_lens.cli.trace_report import print_saved_trace
    from rome_lens.editing import SecondMoment, load_edit
    from rome_lens.figures import visible
    from rome_lens.tracing import CausalTrace

    # By the name that a file gives to its own kind.
    kinds = {
        "edit": ("an edit", load_edit, print_saved_edit),
        "edit_set": ("a set of facts", load_edit, print_saved_set),
        "second_moment": ("a second moment", SecondMoment.load, print_moment),
        "causal_trace": ("a trace", CausalTrace.load, print_saved_trace),
    }
    kind = _kind_of(path, tuple(kinds))
    title, read, print_content = kinds[kind]
    content: Any = read(path)
    try:
        if as_json:
            # Everything but the tensors; of edits with the id, which is made of them.
            entry = {"id": content.id} if hasattr(content, "id") else {}
            entry |= set_as_json(content) if kind == "edit_set" else content.to_dict()
            json.dumps(entry, allow_nan=False)
            return {"path": str(path), "kind": kind, **entry}
        with console.capture() as shown:
            console.print(f"{visible(str(path))}: {title}, {_size(path.stat().st_size)}", style="bold")
            print_content(console, content)
        return shown.get()
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ArtefactError(f"cannot show {str(path)!r}: a damaged {kind} ({error})") from error


def _kind_of(path: Path, known: tuple[str, ...]) -> str:
    """What a file says that it holds. One that says nothing is an edit: its reader knows how to say what is wrong.

    Raises:
        ArtefactError: it is a folder, or holds something that is not shown.
    """
    if path.is_dir():
        raise ArtefactError(f"cannot show {str(path)!r}: it is a folder; name a file in it")
    kind = stored_kind(path)
    if kind is None:
        return "edit"
    if kind not in known:
        raise ArtefactError(f"cannot show {str(path)!r}: a {kind}; show reads {', '.join(known)}")
    return kind


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"
