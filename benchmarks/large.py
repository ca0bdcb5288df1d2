"""A large model on this machine, in seconds and in memory: python benchmarks/large.py [--shape gpt2-xl] [--device …].

A model of GPT-2 XL's shape with random weights, beside the default model: loading, a trace of one stream, the second
moment of a layer, one edit in it. Memory is what this process and those that it forks hold at most, above what it held
when the model was loaded and had run once. Some cells of the trace are held against the plain oracle, one forward a
cell.
"""

import argparse
import random
import string
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from loading import SHAPES, write_model
from machine import installed_backends, machine_line, measured
from plain import plain_scores

import rome_lens as rl

_STREAM = "mlp"


def main() -> None:
    """Measure and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--shape", action="append", choices=["default", *SHAPES], help="repeat for several; default: default, gpt2-xl"
    )
    parser.add_argument("--backend", action="append", help="repeat for several; default: all here")
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--tokens", type=int, default=10_000, help="of the second moment")
    parser.add_argument("--cells", type=int, default=6, help="of the trace that are held against the oracle")
    options = parser.parse_args()
    print(machine_line(options.device))
    print("model          backend            loading s  trace s   MiB  apart    C s   MiB  edit s   MiB  the target")
    how = {"device": options.device, "dtype": options.dtype}
    for shape in options.shape or ["default", "gpt2-xl"]:
        for backend in options.backend or installed_backends():
            if shape == "default":
                print(_row("default model", "smollm2-135m", backend, 4, how, options), flush=True)
                continue
            layer = 17 * SHAPES[shape][0] // 48  # the released code's for GPT-2 XL
            with tempfile.TemporaryDirectory(prefix="xl_") as folder:
                # Elsewhere: what writing takes is not to be counted.
                with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
                    elsewhere.submit(write_model, Path(folder), shape, options.dtype).result()
                print(_row(f"{shape}'s shape", folder, backend, layer, how, options), flush=True)


def _row(what: str, name: str, backend: str, layer: int, how: dict[str, Any], options: argparse.Namespace) -> str:
    started = time.perf_counter()
    model = rl.load_model(name, backend=backend, **how)
    loading = time.perf_counter() - started
    device = next(model.parameters()).device
    with torch.no_grad():
        model(torch.arange(10, device=device)[None])
    if name == "smollm2-135m":
        prompt, subject, answer, target = "The Eiffel Tower is located in the city of", "The Eiffel Tower", None, "Rome"
    else:  # ten bytes, one token each
        prompt, subject, answer, target = "Rome is in", "Rome", "a", "x"
    trace, traced, trace_mib = measured(
        lambda: rl.causal_trace(model, prompt, subject=subject, answer=answer, streams=(_STREAM,)), device
    )
    apart = _apart(model, trace, options.cells)
    texts = _texts(options.tokens)
    found, collected, moment_mib = measured(
        lambda: rl.SecondMoment.collect(model, layers=[layer], texts=texts, max_tokens=options.tokens), device
    )
    editor = rl.ROME(model, layer=layer, second_moment=found[layer], context_templates=_templates())
    request = rl.EditRequest(prompt.replace(subject, "{}"), subject=subject, target_new=target)
    edit, edited, edit_mib = measured(lambda: editor.edit(request), device)
    said = f"{edit.before.target:.0e} to {edit.after.target:.0e}"
    return (
        f"{what:14} {backend:18} {loading:9.1f} {traced:8.1f} {trace_mib:5.0f} {apart:6.0e} {collected:6.1f} "
        f"{moment_mib:5.0f} {edited:7.1f} {edit_mib:5.0f}  {said}"
    )


def _apart(model: Any, trace: rl.CausalTrace, n_cells: int) -> float:
    """The largest difference from the oracle in some cells, relative to the oracle's score."""
    n_layers, last = model.cfg.n_layers, len(trace.tokens) - 1
    first = trace.subject_span[0]
    chosen = random.Random(0).sample([(i, pos) for i in range(n_layers) for pos in range(first, last + 1)], n_cells)
    exact = plain_scores(model, trace, [(_STREAM, layer, pos) for layer, pos in chosen])
    return max(
        abs(float(trace.scores[_STREAM][layer][pos]) - score) / score
        for (layer, pos), score in zip(chosen, exact, strict=True)
    )


def _texts(n_tokens: int) -> list[str]:
    """Words of random letters: a token at least for every five of them, under any tokeniser."""
    letters = random.Random(0)
    words = ["".join(letters.choices(string.ascii_lowercase, k=5)) for _ in range(n_tokens)]
    return [" ".join(words[start : start + 50]) for start in range(0, n_tokens, 50)]


def _templates() -> Sequence[str]:
    """As many as the released code has, of ten bytes: a random model writes none that anybody could read."""
    letters = random.Random(1)
    return ["{}", *("".join(letters.choices(string.ascii_lowercase, k=9)) + " {}" for _ in range(20))]


if __name__ == "__main__":
    main()
