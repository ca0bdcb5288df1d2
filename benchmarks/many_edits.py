"""Many facts at once: how well they are answered, what text loses, and what solving takes.

    python benchmarks/many_edits.py --data counterfact_dev.json --texts texts_1k.json --out facts/
    python benchmarks/many_edits.py --data counterfact_dev.json --speed

The first finds the values of all records (which are kept in `--out`, so that it can be stopped and gone on with), and
prints a row for each number of facts and each way of editing: SPEC's scores (section 4) of every fact at the end, in
percent, S with its 95 % interval over the records, and the perplexity of the texts over the unedited model's.
`stacked` are r-ROME's own edits of the same values, one on top of the other. The second times what needs no values, or
few of them; random facts have keys that are drawn from the second moment.
"""

import argparse
import json
import math
import resource  # of Unix alone, as the memory that it tells
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from machine import machine_line

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.guard import perplexity_of
from rome_lens.editing.outcome import Origin, Outcome, Probabilities
from rome_lens.editing.together.set_fact import SetFact
from rome_lens.editing.weight_update import LowRank
from rome_lens.evaluation.together.ways import rank_one

STACKED = "stacked"
# The ways of editing, by the editor and what is changed of its defaults; those with the same values and keys find them
# in the same folder.
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "default": (rl.MEMIT, {}),
    STACKED: (rl.MEMIT, {"keys": "mean"}),
    "mean key": (rl.MEMIT, {"keys": "mean"}),
    "each key": (rl.MEMIT, {"keys": "each"}),
    "each key, 0.05": (rl.MEMIT, {"keys": "each", "preserve": 0.05}),
    "preserve 0.01": (rl.MEMIT, {"preserve": 0.01}),
    "preserve 0.03": (rl.MEMIT, {"preserve": 0.03}),
    "preserve 0.05": (rl.MEMIT, {"preserve": 0.05}),
    "preserve 0.3": (rl.MEMIT, {"preserve": 0.3}),
    "preserve 1": (rl.MEMIT, {"preserve": 1.0}),
    "emmet": (rl.EMMET, {}),
    "alphaedit": (rl.AlphaEdit, {}),
    "whole values": (rl.MEMIT, {"least_scale": None}),
    "stop when said": (rl.MEMIT, {"least_scale": None, "stop_said": 0}),
    "at the block": (rl.MEMIT, {"at": "block"}),
}
_BATCH = 64
_MEASURES = rl.Measures(n_texts=0)


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CounterFact as published: a JSON list of records")
    parser.add_argument("--texts", default=None, help="a JSON list of texts, or of objects with a Text")
    parser.add_argument("--n-texts", type=int, default=200, help="from the front of the file")
    parser.add_argument("--n", type=int, nargs="+", default=[10, 100, 250], help="facts, from the front of the data")
    parser.add_argument("--neighbours", type=int, default=3, help="neighbourhood prompts of a record that are asked")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", default=None, help="a folder that keeps values; by default they are lost")
    parser.add_argument("--way", action="append", choices=list(WAYS), help="repeat it; default and stacked else")
    parser.add_argument("--second-moment", action="append", default=[], help="a file; repeat it for several layers")
    parser.add_argument("--speed", action="store_true", help="time it instead")
    parser.add_argument("--keys", default="split", choices=["mean", "split"], help="with --speed: keys of each fact")
    parser.add_argument("--requests", type=int, default=16, help="with --speed: whose values are found; 0 for none")
    parser.add_argument("--memory", type=int, default=None, help="with --speed: solve so many random facts, alone")
    asked = parser.parse_args()
    print(machine_line("cpu"))
    if asked.speed:
        _speed(asked)
    else:
        _quality(asked)


def _quality(asked: argparse.Namespace) -> None:
    records = list(rl.read_counterfact(asked.data))
    model = rl.load_model(asked.model)
    moments = [rl.SecondMoment.load(path) for path in asked.second_moment]
    given: dict[str, Any] = {"second_moments": {one.layer: one for one in moments}} if moments else {}
    texts = _texts(asked.texts, asked.n_texts)
    before = _perplexity(model, texts)
    print(
        f"{asked.model}, {asked.neighbours} neighbours a record, {len(texts)} texts, perplexity {before:.2f} unedited"
    )
    print(f"{'n':>5} {'way':16} {'ES':>6} {'PS':>6} {'NS':>6} {'S':>6} {'of S':>15} {'perplexity':>11} {'drift':>8}")
    for n in asked.n:
        judged = [replace(one, neighbours=one.neighbours[: asked.neighbours]) for one in records[:n]]
        _row(n, "unedited", model, judged, math.nan, 1.0)
        for way in asked.way or ["default", STACKED]:
            edit = _edit(model, way, judged, given, asked.out)
            with edit.applied(model):
                ratio = _perplexity(model, texts) / before
                _row(n, way, model, judged, getattr(edit, "drift", None) or math.nan, ratio)


def _edit(model: Any, way: str, records: Sequence[Any], given: dict[str, Any], out: str | None) -> rl.Edit:
    kind, changed = WAYS[way]
    editor = kind(model, **given, **changed)
    values = {name: value for name, value in asdict(editor.values).items() if value is not None}
    kept = "-".join(map(str, (*editor.layers, *(part for pair in sorted(values.items()) for part in pair))))
    folder = None if out is None else Path(out) / kept
    if folder is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
    made = editor.edit_together(
        [one.request for one in records], out=folder, allow_conflicts=True, skip_failed=True, progress=None
    )
    return _stacked(model, made) if way == STACKED else made


def _stacked(model: Any, facts: rl.EditSet) -> rl.Edit:
    """The sum of each fact's own rank-one edit, of r-ROME: its mean key is answered with its value."""
    assert facts.kernels is not None
    (here,), (kernel,) = facts.layers, facts.kernels
    matrix = as_backend(model).w_out(here.layer).matrix
    own = [rank_one(fact.keys[0], fact.shares, fact.residual, matrix, kernel)[0] for fact in facts]
    update = LowRank(here.layer, torch.cat([one.left for one in own]), torch.cat([one.right for one in own]))
    return rl.Edit(facts.outcomes, (replace(here, update=update),), facts.origin)


def _row(n: int, way: str, model: Any, records: Sequence[Any], drift: float, ratio: float) -> None:
    report = rl.evaluate_counterfact(model, "none", records, measures=_MEASURES)
    scores, interval = report.scores, report.editors["none"].intervals["S"]
    between = f"{interval.low:.1f} to {interval.high:.1f}"
    print(
        f"{n:5} {way:16} {scores['ES']:6.1f} {scores['PS']:6.1f} {scores['NS']:6.1f} {scores['S']:6.1f} {between:>15} "
        f"{ratio:11.4f} {drift:8.5f}",
        flush=True,
    )


def _perplexity(model: Any, texts: Sequence[str]) -> float:
    return perplexity_of(as_backend(model), texts) if texts else math.nan


def _texts(path: str | None, n: int) -> list[str]:
    if path is None:
        return []
    held = json.loads(Path(path).read_text())
    return [one["Text"] if isinstance(one, dict) else one for one in held][:n]


def _speed(asked: argparse.Namespace) -> None:
    model = rl.load_model(asked.model)
    moments = [rl.SecondMoment.load(path) for path in asked.second_moment]
    given: dict[str, Any] = {"second_moments": {one.layer: one for one in moments}} if moments else {}
    editor = rl.MEMIT(model, least_scale=None, keys=asked.keys, **given)
    if asked.memory:
        _memory(editor, asked.memory)
        return
    if asked.requests:
        _values(editor, [one.request for one in rl.read_counterfact(asked.data)[: asked.requests]])
    facts = _random_facts(editor, 1_000)
    (kernel,) = editor.kernels
    keys = torch.cat([fact.keys[0] for fact in facts])
    weighed = _seconds(lambda: kernel.weigh(keys))
    made = _set(editor, facts)
    solved, fewer = _seconds(lambda: _set(editor, facts)), _seconds(lambda: made.without(500))
    with tempfile.TemporaryDirectory() as folder:
        saved = _seconds(lambda: made.save(Path(folder) / "set.safetensors"))
        loaded = _seconds(lambda: rl.load_edit(Path(folder) / "set.safetensors"))
    applied = _seconds(lambda: made.apply(model))
    made.revert(model)
    known = _seconds(lambda: (made.leverage, made.alone, made.disturbed_by, made.conflicts()))
    print(f"1,000 random facts, {torch.get_num_threads()} threads, in seconds: weighed {weighed:.2f}, ", end="")
    print(f"solved {solved:.2f}, one taken out {fewer:.2f}, applied {applied:.2f}, saved {saved:.2f}, ", end="")
    print(f"loaded {loaded:.2f}, all that is known of each {known:.2f}")


def _values(editor: Any, requests: Sequence[rl.EditRequest]) -> None:
    """What it takes to find values one after the other, and together."""
    templates = editor.finding.choices.context_templates
    rome = rl.ROME(editor.model, layer=editor.layers[-1], context_templates=templates)
    alone = _seconds(lambda: [rome.solve([request]) for request in requests])
    together = _seconds(lambda: editor.edit_together(requests, allow_conflicts=True))
    print(f"values of {len(requests)} requests: one after the other {alone:.1f} s, together {together:.1f} s", end="")
    print(f": {alone / together:.2f} times as fast")


def _memory(editor: Any, n: int) -> None:
    """What so many facts take above the model and their own numbers."""
    facts = _random_facts(editor, n)
    held = _peak()
    seconds = _seconds(lambda: _set(editor, facts))
    own = sum(t.nbytes for fact in facts for t in (*fact.keys, *fact.weighed, fact.residual))
    print(f"{n} random facts: solved in {seconds:.1f} s; {own / 2**20:.0f} MiB of keys and values, ", end="")
    print(f"and at the peak {(_peak() - held) / 2**20:.0f} MiB above them")


def _random_facts(editor: Any, n: int) -> list[SetFact]:
    """Facts with keys and values that nobody asked for: two keys of a fact that are nearly one, or one."""
    (kernel,) = editor.kernels
    n_keys = 1 if editor.values.keys == "mean" else 2
    generator = torch.Generator().manual_seed(0)
    factor = torch.linalg.cholesky(kernel.moment.matrix.double() + 1e-6 * torch.eye(kernel.width))
    about = torch.randn(n, 1, kernel.width, generator=generator, dtype=torch.float64)
    apart = torch.randn(n, n_keys, kernel.width, generator=generator, dtype=torch.float64)
    keys = ((about + 0.3 * apart) @ factor.t()).float()
    residual = torch.randn(n, as_backend(editor.model).d_model, generator=generator)
    said, shares = Probabilities(0.0, 0.0), (1 / n_keys,) * n_keys
    found_on = tuple(here.fingerprint for here in editor.terms.layers)
    found = []
    weighed = kernel.weigh(keys.flatten(0, 1)).unflatten(0, (n, n_keys))
    for number, (own, of_own, missing) in enumerate(zip(keys, weighed, residual, strict=True)):
        request = rl.EditRequest("{} is in", subject=f"Place {number}", target_new="Rome")
        outcome = Outcome(request, "Paris", said, None, ())
        found.append(SetFact(outcome, (own,), (of_own,), shares, missing, None, (), (kernel.id,), found_on=found_on))
    return found


def _set(editor: Any, facts: Sequence[SetFact]) -> rl.EditSet:
    return rl.EditSet.of(facts, editor.terms, Origin("memit", {}), kernels=editor.kernels, editor=editor)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
