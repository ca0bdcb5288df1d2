"""Evaluating edits against a plain evaluation: python benchmarks/evaluation.py.

The plain evaluation is Hugging Face's model with edited weights, one prompt and answer at a time, texts by its own
`generate` with keys and values kept. Both are given the same edits, measure the same (answers before and after, what is
said freely, texts after), and take turns in one run, so that a machine that changes its speed changes both. Finding the
edits is not counted: it is the same work for both.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import installed_backends, machine_line

import rome_lens as rl
from rome_lens.evaluation.measurer import RecordMeasurer
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.loading.options import as_device
from rome_lens.loading.pretrained import load_pretrained

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import evaluation_oracle as oracle

_FREE_MARGIN = 3


class _Given:
    """An editor whose edits are there already."""

    def __init__(self, edits: dict[rl.EditRequest, rl.Edit]) -> None:
        self.edits = edits
        self.layer = next(iter(edits.values())).layer

    def edit(self, request: rl.EditRequest) -> rl.Edit:
        """The edit of that request."""
        return self.edits[request]


def main() -> None:
    """Time both and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", action="append", help="repeat for several; default: all here")
    parser.add_argument("--device", default=None)
    parser.add_argument("--data", default=None, help="CounterFact; default: the built-in records")
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--plain-records", type=int, default=2, help="of these the plain evaluation does so many")
    parser.add_argument("--texts", type=int, default=10, help="texts a record; 0 for teacher-forced answers alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="of the optimiser: the edits need not be good ones")
    asked = parser.parse_args()
    print(machine_line(asked.device))
    print(
        "backend             plain s/record   ours s/record  plain rec/min   ours rec/min   ratio  largest difference"
    )
    for backend in asked.backend or installed_backends():
        print(_row(asked, backend), flush=True)


def _row(asked: argparse.Namespace, backend: str) -> str:
    records = rl.builtin_counterfact() if asked.data is None else rl.read_counterfact(asked.data)
    records = list(records[: asked.records])
    model = rl.load_model(asked.model, backend=backend, device=asked.device)
    editor = rl.ROME(model, v_num_grad_steps=asked.steps, context_templates=["{}"])
    requests = [record.request for record in records]
    given = _Given(dict(zip(requests, editor.edit_many(requests), strict=True)))
    plain = load_pretrained(asked.model, dtype=torch.float32, device=as_device(asked.device))
    measures = rl.Measures(n_texts=asked.texts)
    measurer = RecordMeasurer(model, measures, layers=[given.layer])
    list(measurer.measure(records[:1], "warm", given))
    chosen = records[: asked.plain_records]
    answers, plain_seconds = _timed(lambda: [_plain(plain, record, given, asked.texts) for record in chosen])
    found: dict[int, EvaluatedRecord] = {}

    def evaluate() -> None:
        for start in range(0, len(records), asked.batch):
            measured = measurer.measure(records[start : start + asked.batch], "rome", given)
            found.update({record.number: record for record in measured})

    _, seconds = _timed(evaluate)
    measurer.close()
    apart = max(
        abs(answer[name] - number)
        for record, numbers in zip(chosen, answers, strict=True)
        for answer, one in zip(found[record.number].answers, numbers, strict=True)
        for name, number in one.items()
    )
    one, ours = plain_seconds / len(chosen), seconds / len(records)
    return f"{backend:18} {one:15.2f} {ours:15.2f} {60 / one:14.1f} {60 / ours:14.1f} {one / ours:6.1f}x {apart:19.1e}"


def _plain(pretrained: Any, record: Any, given: _Given, n_texts: int) -> list[dict[str, float]]:
    """Negative log-probabilities of a record's answers, before and after; what is written is thrown away."""
    model, tokenizer = pretrained.model, pretrained.tokenizer
    request = record.request
    prompts = [request.text, *record.paraphrases, *record.neighbours]
    numbers: list[dict[str, float]] = [{} for _ in prompts]

    def answer(prefix: str) -> None:
        for prompt, one in zip(prompts, numbers, strict=True):
            one[f"{prefix}nll_new"] = oracle.nll(model, tokenizer, prompt, request.target_new)
            one[f"{prefix}nll_true"] = oracle.nll(model, tokenizer, prompt, request.target_true)

    answer("before_")
    with oracle.edited(model, [given.edit(request)]):
        answer("")
        for prompt in prompts:
            _generate(model, tokenizer, prompt, max_new_tokens=2 + _FREE_MARGIN, do_sample=False)
        for prompt in record.generation_prompts[:n_texts]:
            _generate(model, tokenizer, prompt, max_length=100, do_sample=True, top_k=5)
    return numbers


@torch.no_grad()
def _generate(model: Any, tokenizer: Any, prompt: str, **how: Any) -> str:
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    # No early end: what is measured writes to the full length, too.
    out = model.generate(**ids, **how, eos_token_id=None, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0])


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, time.perf_counter() - started


if __name__ == "__main__":
    main()
