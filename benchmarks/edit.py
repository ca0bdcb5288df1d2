"""Editing against a plain implementation, and many edits against one at a time: python benchmarks/edit.py.

The plain implementation is the released code's way: all layers, all positions, all logits, at every step. It and the
editor take turns in one run, so that a machine that changes its speed changes both. Both are given the same templates,
second moment and settings, and the difference between their updates is printed. The last columns are the same many
requests with the batches one after the other in this process, where they are otherwise worked on side by side.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from machine import installed_backends, machine_line

import rome_lens as rl
from rome_lens.runs import side_by_side

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from rome_oracle import plain_rome

# What sixteen of the built-in facts are to become: the answer of the fact seven places further on.
_SHIFT = 7


def main() -> None:
    """Time both and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", action="append", help="repeat for several; default: all here")
    parser.add_argument("--device", default=None)
    parser.add_argument("--edits", type=int, default=3, help="edits of the plain implementation")
    parser.add_argument("--many", type=int, default=16, help="requests of edit_many")
    options = parser.parse_args()
    print(machine_line(options.device))
    print(
        "backend             plain s  one s   ratio  largest difference   many: s/edit alone  together   ratio"
        "   in one process  processes   ratio"
    )
    for backend in options.backend or installed_backends():
        model = rl.load_model(options.model, backend=backend, device=options.device)
        print(_row(model, backend, edits=options.edits, many=options.many), flush=True)


def _row(model: Any, name: str, *, edits: int, many: int) -> str:
    editor = rl.ROME(model)
    requests = _requests(many)
    editor.edit(requests[0])  # warm: templates are written, C is factorised
    plain, one, apart = [], [], 0.0
    for request in requests[:edits]:
        seconds, expected = _timed(lambda request=request: _plain(model, editor, request))
        plain.append(seconds)
        seconds, edit = _timed(lambda request=request: editor.edit(request))
        one.append(seconds)
        difference = (edit.update.double() - expected.update.cpu()).norm() / expected.update.norm().cpu()
        apart = max(apart, difference.item())
    alone = [_timed(lambda request=request: editor.edit(request))[0] for request in requests[: many // 2]]
    said: list[str] = []
    together = _timed(lambda: editor.edit_many(requests, progress=lambda *call: said.append(call[2])))[0] / many
    with patch.object(side_by_side, "may_fork", lambda: False):
        in_one = _timed(lambda: editor.edit_many(requests))[0] / many
    alone += [_timed(lambda request=request: editor.edit(request))[0] for request in requests[many // 2 :]]
    each = statistics.fmean(alone)
    return (
        f"{name:18} {sum(plain) / edits:8.2f} {sum(one) / edits:6.2f} {sum(plain) / sum(one):6.1f}x {apart:19.1e} "
        f"{each:20.2f} {together:9.2f} {each / together:6.2f}x {in_one:16.2f} {_processes(said):10} "
        f"{in_one / together:6.2f}x"
    )


def _processes(said: list[str]) -> str:
    """How many processes worked side by side, as progress says it."""
    return next((what.split()[2] for what in said if what.endswith(" processes")), "1")


def _requests(count: int) -> list[rl.EditRequest]:
    facts = rl.builtin_facts()
    answers = [facts[(i + _SHIFT) % len(facts)].answer for i in range(len(facts))]
    pairs = [(fact, answer) for fact, answer in zip(facts, answers, strict=True) if fact.answer != answer]
    return [
        rl.EditRequest(fact.prompt, fact.subject, target_new=answer, target_true=fact.answer)
        for fact, answer in pairs[:count]
    ]


def _plain(model: Any, editor: rl.ROME, request: rl.EditRequest) -> Any:
    settings, choices = editor.settings, cast(Any, editor)
    return plain_rome(
        model,
        request,
        layer=editor.layer,
        second_moment=editor.second_moment.matrix,
        templates=editor.context_templates,
        variant=editor.variant,
        bare_weight=choices.bare_weight,
        essence_at=choices.essence_at,
        prepend_bos=editor.prepend_bos,
        v_num_grad_steps=settings.v_num_grad_steps,
        v_lr=settings.v_lr,
        v_weight_decay=settings.v_weight_decay,
        clamp_norm_factor=settings.clamp_norm_factor,
        kl_factor=settings.kl_factor,
    )


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
