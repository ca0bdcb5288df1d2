"""`rome-lens show`: what is in a file that rome-lens wrote."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from rome_lens.cli.options import JSON, argument, takes_options
from rome_lens.cli.output import print_json, say, stdout
from rome_lens.errors import ArtefactError, RomeLensError

_FILES = argument("Edits, second moments or traces that rome-lens saved.", "FILE", default=MISSING, shown=False)


@takes_options
def show(files: list[Path] = _FILES, as_json: bool = JSON) -> None:
    """Say what is in a file of rome-lens: an edit, a second moment or a trace. No model is needed.

    A file that cannot be read is named on stderr, and the others are shown all
    the same; the command then exits with 1.

    For example: rome-lens show rome.safetensors
    """
    from rome_lens.figures import visible

    console, entries, failed, kinds = stdout(), [], False, _kinds()
    for path in files:
        try:
            name = _kind_of(path, kinds)
            kind, entry = kinds[name], None
            content = kind.read(path)
            with _damage_refused(path, name), console.capture() as shown:
                if as_json:
                    entry = {"path": str(path), "kind": name, **_as_json(content)}
                else:
                    title = f"{visible(str(path))}: {kind.title}, {_size(path.stat().st_size)}"
                    console.print(title, style="bold")
                    kind.print(console, content)
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


@dataclass(frozen=True)
class _Kind:
    """What a file may hold."""

    title: str
    read: Callable[[Path], Any]
    print: Callable[[Console, Any], None]


def _kinds() -> dict[str, _Kind]:
    """All kinds, by the name that a file gives to its own."""
    from rome_lens.cli.edit_report import print_saved_edit
    from rome_lens.cli.moment_report import print_moment
    from rome_lens.cli.trace_report import print_saved_trace
    from rome_lens.editing import SecondMoment, load_edit
    from rome_lens.tracing import CausalTrace

    return {
        "edit": _Kind("an edit", load_edit, print_saved_edit),
        "second_moment": _Kind("a second moment", SecondMoment.load, print_moment),
        "causal_trace": _Kind("a trace", CausalTrace.load, print_saved_trace),
    }


def _kind_of(path: Path, known: dict[str, _Kind]) -> str:
    """What a file says that it holds. One that says nothing is an edit: its reader knows how to say what is wrong.

    Raises:
        ArtefactError: it is a folder, or holds something that is not shown.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise ArtefactError(f"cannot show {str(path)!r}: it is a folder; name a file in it")
    try:
        with safe_open(path, framework="pt") as file:
            kind = json.loads((file.metadata() or {})["rome_lens"])["kind"]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return "edit"
    if not isinstance(kind, str):
        return "edit"
    if kind not in known:
        raise ArtefactError(f"cannot show {str(path)!r}: a {kind}; show reads {', '.join(known)}")
    return kind


@contextmanager
def _damage_refused(path: Path, kind: str) -> Iterator[None]:
    """A file may hold anything in its fields: what cannot be printed is damaged, and no bug of ours."""
    try:
        yield
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ArtefactError(f"cannot show {str(path)!r}: a damaged {kind} ({error})") from error


def _as_json(content: Any) -> dict[str, Any]:
    """Everything but the tensors; of edits with the id, which is made of them."""
    values = content.to_dict()
    if hasattr(content, "id"):
        values = {"id": content.id, **values}
    json.dumps(values, allow_nan=False)
    return values


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.1f} kB"
