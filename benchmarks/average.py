"""Averages against the plain oracle, in one run: python benchmarks/average.py [--facts FILE] [--backend …].

The oracle is the released code's way: one forward per cell, samples + 1 rows, logits at every position, fact by fact.
It runs every n-th cell of each grid, and its time is scaled up. Then attribution patching is held against the exact
grids, cell by cell.
"""

import argparse
import gc
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from machine import installed_backends, machine_line
from plain import time_oracle

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.loading import BACKENDS
from rome_lens.tokens import tokenise

STREAMS = ("resid", "mlp", "attn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS[1:], help="repeat for several; default: all here"
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--facts", default=None, help="known facts; default: the built-in ones")
    parser.add_argument("--limit", type=int, default=8, help="take the first N facts")
    parser.add_argument("--severed", action="store_true", help="time the severed paths as well")
    parser.add_argument("--every", type=int, default=50, help="run every n-th cell of the oracle and scale its time up")
    options = parser.parse_args()
    facts = list(rl.builtin_facts() if options.facts is None else rl.read_known_facts(options.facts))[: options.limit]
    print(machine_line(options.device))
    for backend in options.backend or installed_backends():
        model = rl.load_model(options.model, backend=backend, device=options.device)
        _compare(model, backend, facts, every=options.every, severed=options.severed)
        del model
        gc.collect()


def _compare(model: Any, name: str, asked: list[rl.Fact], *, every: int, severed: bool) -> None:
    # The oracle is not asked whether the model knows a fact, so neither is the time of finding out counted.
    found = rl.average_causal_effect(model, asked, severed=(), streams="attn", engine="attribution")
    facts = [rl.Fact(fact["prompt"], fact["subject"], fact["answer"]) for fact in found.facts]
    exact, seconds = _timed(model, facts, severed=())
    approximate, quick = _timed(model, facts, engine="attribution")
    oracle, apart = 0.0, 0.0
    for fact in exact.facts:
        traced = _as_trace(model, fact, exact.settings)
        more, difference = time_oracle(model, traced, STREAMS, every=every)
        oracle, apart = oracle + more, max(apart, difference)
    known = len(exact.facts)
    print(f"{name}: {known} facts known of {len(asked)}, {np.mean([len(f['tokens']) for f in exact.facts]):.1f} tokens")
    print(f"  oracle       {60 * known / oracle:8.3f} facts a minute (every {every}th cell)")
    print(f"  exact        {60 * known / seconds:8.3f} facts a minute, {oracle / seconds:.1f}x, {apart:.1e} apart")
    if severed:
        _, longer = _timed(model, facts, severed=("mlp", "attn"))
        print(f"  with severed {60 * known / longer:8.3f} facts a minute, {longer / seconds:.2f} times as long")
    print(
        f"  attribution  {60 * known / quick:8.3f} facts a minute, {seconds / quick:.1f}x exact; correlation with it:"
    )
    for stream in STREAMS:
        print(
            f"    {stream:5} cells {_cells(exact, approximate, stream)}; averages {_curves(exact, approximate, stream)}"
        )


def _timed(model: Any, facts: list[rl.Fact], **settings: Any) -> tuple[rl.AverageEffect, float]:
    started = time.perf_counter()
    found = rl.average_causal_effect(model, facts, **settings)
    if as_backend(model).device.type == "cuda":
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def _as_trace(model: Any, fact: Any, settings: Any) -> SimpleNamespace:
    """A fact of an average as the trace that the oracle is asked for."""
    asked = rl.Fact(fact["prompt"], fact["subject"], fact["answer"])
    prompt = tokenise(model.tokenizer, asked.text, asked.subject, answer=asked.answer)
    prepared = settings["prepared"]
    return SimpleNamespace(
        tokens=prompt.tokens,
        token_ids=prompt.ids[: prompt.n_prompt],
        answer_ids=prompt.answer_ids,
        subject_span=prompt.subject_span,
        noise=prepared["noise"],
        window=prepared["window"],
        samples=settings["samples"],
        seed=settings["seed"],
        noise_replaces=settings["noise_replaces"],
        scores=fact["scores"],
    )


def _cells(exact: rl.AverageEffect, approximate: rl.AverageEffect, stream: str) -> str:
    """Pearson's correlation over the cells of each fact from the subject on: median, and the lowest."""
    found = []
    for one, other in zip(exact.facts, approximate.facts, strict=True):
        first = one["subject_span"][0]
        pair = [np.array(fact["scores"][stream])[:, first:].ravel() for fact in (one, other)]
        found.append(np.corrcoef(pair)[0, 1])
    return f"{np.median(found):.2f} (lowest {min(found):.2f})"


def _curves(exact: rl.AverageEffect, approximate: rl.AverageEffect, stream: str) -> str:
    """The same of the averages by role and layer."""
    roles = exact.roles(stream)
    pair = [np.concatenate([average.curve(stream, role).mean for role in roles]) for average in (exact, approximate)]
    return f"{np.corrcoef(pair)[0, 1]:.2f}"


if __name__ == "__main__":
    main()
