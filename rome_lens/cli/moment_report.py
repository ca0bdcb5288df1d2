"""How second moments are printed: what a file holds, and what was collected in one pass."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rome_lens.cli.printing import bos_in_words, print_labelled, text_in_words
from rome_lens.editing import SecondMoment
from rome_lens.figures import visible


def print_moment(console: Console, moment: SecondMoment) -> None:
    """Print what a file of a second moment holds."""
    history = moment.to_dict()
    console.print(f"layer {moment.layer} (from 0), {moment.d_mlp} x {moment.d_mlp}")
    console.print(visible(" · ".join(str(history[k]) for k in ("model_name", "backend", "dtype") if history[k])))
    print_labelled(console, "text", visible(text_in_words(history)))
    pieces = "" if moment.n_pieces is None else f"in {moment.n_pieces} pieces of at most {moment.text_length} tokens, "
    print_labelled(console, "", f"{pieces}{bos_in_words(moment.prepend_bos)}")
    shown = {"made": "created", "by": "command", "revision": "revision", "device": "device", "text id": "digest"}
    for label, name in shown.items():
        if history[name] is not None:
            print_labelled(console, label, visible(str(history[name])))
    if moment.versions:
        print_labelled(console, "versions", visible(", ".join(f"{k} {v}" for k, v in moment.versions.items())))
    print_labelled(console, "note", *moment.warnings)
    if moment.seconds is not None:
        console.print(f"collected in {moment.seconds:.1f} s")


def collected(moments: Mapping[int, SecondMoment], files: Mapping[int, Path]) -> list[dict[str, Any]]:
    """What was collected in one pass, as `rome-lens stats --json` prints it: an object for each layer.

    Args:
        moments: by layer.
        files: where they are, by layer.
    """
    return [
        moment.to_dict()
        | {
            "d_mlp": moment.d_mlp,
            "condition_number": moment.condition_number,
            "ridge": moment.ridge,
            "warnings": list(moment.warnings),
            "path": str(files[layer]),
        }
        for layer, moment in moments.items()
    ]


def print_collected(console: Console, layers: Sequence[Mapping[str, Any]]) -> None:
    """Print what `collected` gives."""
    first = layers[0]
    console.print(f"{visible(first['model_name'] or '')} · {first['backend']} · {first['dtype']} on {first['device']}")
    console.print(
        f"{visible(text_in_words(first))} in {first['n_pieces']} pieces of at most {first['text_length']}, "
        f"{bos_in_words(first['prepend_bos'])}"
    )
    for each in layers:
        condition = f"condition number {each['condition_number']:.1e} with a ridge of {each['ridge']:g}"
        console.print(f"layer {each['layer']}  {each['d_mlp']} x {each['d_mlp']}, {condition}")
    console.print(f"collected in {first['seconds']:.1f} s")
