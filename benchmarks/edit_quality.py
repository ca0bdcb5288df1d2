"""How well edits answer, generalise and keep to themselves: CounterFact's scores for several ways of editing.

    python benchmarks/edit_quality.py --data counterfact_dev.json --limit 50

Each row of the table is one way of editing: the default settings, and those settings with one thing changed. Scores
are SPEC's (section 4): efficacy (ES), paraphrases (PS) and neighbours (NS), in percent, the mean over records.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import rome_lens as rl
from rome_lens.backends import Backend, as_backend
from rome_lens.editing.hooks import rank_one_hooks
from rome_lens.tokens import TokenisedPrompt, tokenise

# What each way changes in the default settings.
WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "equal weights": {"bare_weight": None},
    "rome": {"variant": "rome"},
    "p-rome": {"variant": "p-rome"},
    "bare prompt alone": {"context_templates": ["{}"]},
    "BOS in front": {"prepend_bos": True},
    "clamp 4": {"clamp_norm_factor": 4},
}


def main() -> None:
    """Edit, score and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CounterFact as published: a JSON list of records")
    parser.add_argument("--limit", type=int, default=50, help="records from the front of the file")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default=None)
    parser.add_argument("--way", action="append", choices=WAYS, help="a row of the table; repeat it; all by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=JSON", help="a setting of ROME for all rows"
    )
    parser.add_argument("--second-moment", default=None, help="a file of rome-lens stats, instead of the shipped one")
    asked = parser.parse_args()
    shared = {name: json.loads(value) for name, _, value in (each.partition("=") for each in asked.set)}
    records = json.loads(Path(asked.data).read_text(encoding="utf-8"))[: asked.limit]
    model = rl.load_model(asked.model, backend=asked.backend, device=asked.device)
    if asked.second_moment:
        shared["second_moment"] = rl.SecondMoment.load(asked.second_moment)
    backend = as_backend(model)
    texts = [_texts(backend, record) for record in records]
    with backend.evaluating():
        unedited = [_scores(_nll(backend, rows)) for rows in texts]
    print(f"{asked.model}, {len(records)} records, layer and settings of each way in its own row")
    print(f"{'way':20} {'ES':>6} {'PS':>6} {'NS':>6} {'S':>6}  {'p(new)':>6}  {'|update|/|W|':>12}  s/edit")
    _print("unedited", unedited, [], 0.0)
    for way in asked.way or WAYS:
        editor = rl.ROME(model, **shared | WAYS[way])
        started = time.perf_counter()
        edits = editor.edit_many([_request(record) for record in records])
        seconds = (time.perf_counter() - started) / len(edits)
        with backend.evaluating():
            scores = [_scores(_nll(backend, rows, edit)) for rows, edit in zip(texts, edits, strict=True)]
        _print(way, scores, edits, seconds)


def _request(record: dict[str, Any]) -> rl.EditRequest:
    asked = record["requested_rewrite"]
    return rl.EditRequest(
        asked["prompt"],
        asked["subject"],
        target_new=asked["target_new"]["str"],
        target_true=asked["target_true"]["str"],
    )


def _texts(backend: Backend, record: dict[str, Any]) -> list[TokenisedPrompt]:
    """The rewrite, the paraphrases and the neighbours, each with the new target and then with the true one."""
    asked = record["requested_rewrite"]
    prompts = [
        asked["prompt"].format(asked["subject"]),
        *record["paraphrase_prompts"],
        *record["neighborhood_prompts"],
    ]
    return [
        tokenise(backend.tokenizer, prompt, prompt, answer=asked[target]["str"])
        for prompt in prompts
        for target in ("target_new", "target_true")
    ]


@torch.no_grad()
def _nll(backend: Backend, rows: Sequence[TokenisedPrompt], edit: rl.Edit | None = None) -> torch.Tensor:
    """Mean negative log-probability of the answers' tokens, [prompt, new and true]."""
    run = [row.ids[:-1] for row in rows]
    longest = max(map(len, run))
    tokens = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in run], device=backend.device)
    first = min(row.n_prompt for row in rows) - 1
    hooks = [] if edit is None else rank_one_hooks(backend, edit.layer, edit.u[None], edit.v[None])
    with backend.hooked(hooks):
        log_probs = backend.logits(tokens, keep=longest - first).float().log_softmax(dim=-1)
    nll = []
    for row, read in zip(rows, log_probs, strict=True):
        at = row.n_prompt - 1 - first
        answer = torch.tensor(row.answer_ids, device=read.device)
        nll.append(-read[at : at + len(answer)].gather(1, answer[:, None]).mean())
    return torch.stack(nll).reshape(-1, 2)


def _scores(nll: torch.Tensor) -> tuple[float, float, float, float]:
    new_wins = (nll[:, 1] > nll[:, 0]).double()
    true_wins = (nll[:, 1] < nll[:, 0]).double()
    return (
        100 * new_wins[0].item(),
        100 * new_wins[1:3].mean().item(),
        100 * true_wins[3:].mean().item(),
        (-nll[0, 0]).exp().item(),
    )


def _print(way: str, scores: Sequence[tuple[float, ...]], edits: Sequence[rl.Edit], seconds: float) -> None:
    es, ps, ns, new = (statistics.fmean(column) for column in zip(*scores, strict=True))
    total = 3 / sum(1 / max(score, 1e-9) for score in (es, ps, ns))
    size = statistics.fmean([edit.relative_norm for edit in edits]) if edits else 0.0
    print(f"{way:20} {es:6.1f} {ps:6.1f} {ns:6.1f} {total:6.1f}  {new:6.3f}  {size:12.4f}  {seconds:6.2f}", flush=True)


if __name__ == "__main__":
    main()
