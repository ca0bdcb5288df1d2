"""How well edits answer, generalise and keep to themselves: CounterFact's scores for several ways of editing.

    python benchmarks/edit_quality.py --data counterfact_dev.json --limit 50

Each row of the table is one way of editing: the default settings, and those settings with one thing changed. Scores
are SPEC's (section 4): efficacy (ES), paraphrases (PS) and neighbours (NS), in percent, the mean over records.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import rome_lens as rl

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
_MEASURES = rl.Measures(n_texts=0)


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
    records = rl.read_counterfact(asked.data)[: asked.limit]
    model = rl.load_model(asked.model, backend=asked.backend, device=asked.device)
    if asked.second_moment:
        shared["second_moment"] = rl.SecondMoment.load(asked.second_moment)
    print(f"{asked.model}, {len(records)} records, layer and settings of each way in its own row")
    print(f"{'way':20} {'ES':>6} {'PS':>6} {'NS':>6} {'S':>6}  {'p(new)':>6}  {'|update|/|W|':>12}  s/edit")
    _print("unedited", rl.evaluate_counterfact(model, "none", records, measures=_MEASURES))
    for way in asked.way or WAYS:
        editor = rl.ROME(model, **shared | WAYS[way])
        measures = rl.Measures(n_texts=0, prepend_bos=editor.prepend_bos)
        _print(way, rl.evaluate_counterfact(model, {way.replace(" ", "-"): editor}, records, measures=measures))


def _print(way: str, report: rl.Report) -> None:
    (records,) = report.records.values()
    scores = report.scores
    new = statistics.fmean(math.exp(-record["answers"][0]["nll_new"]) for record in records)
    size, seconds = _of_edits(records, "relative_norm"), _of_edits(records, "seconds")
    print(
        f"{way:20} {scores['ES']:6.1f} {scores['PS']:6.1f} {scores['NS']:6.1f} {scores['S']:6.1f}  {new:6.3f}  "
        f"{size:12.4f}  {seconds:6.2f}",
        flush=True,
    )


def _of_edits(records: Sequence[Any], name: str) -> float:
    return statistics.fmean([record["edit"][name] for record in records if record["edit"]] or [0.0])


if __name__ == "__main__":
    main()
