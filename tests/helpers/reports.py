"""Reports made by hand, for the tests of how an evaluation is shown."""

import random
import tempfile
from dataclasses import replace
from pathlib import Path

from rome_lens.evaluation.measurer import RecordMeasurer
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.evaluation.report.summary import report_of
from rome_lens.evaluation.report.together_report import KeptCheckpoint, together_report_of

COUNTERFACT = ("ES", "EM", "PS", "PM", "NS", "NM")
ZSRE = ("efficacy", "paraphrase", "specificity")
KINDS = ("rewrite", "paraphrase", "neighborhood")


def record(number=0, *, editor="r-rome", kind="counterfact", scores=None, **changes):
    """One record as its file in a run folder holds it; `changes` replace fields."""
    zsre = kind == "zsre"
    names = ZSRE if zsre else COUNTERFACT
    answer = {"nll_new": 0.1, "nll_true": 5.0, "before_nll_new": 6.0, "before_nll_true": 0.5}
    if zsre:
        answer = {"answer": "Honda", "nll": 0.2, "right": [True, False], "before_nll": 3.0, "before_right": [False] * 2}
    made = EvaluatedRecord(
        number=number,
        case_id=1000 + number,
        editor=editor,
        relation=None if zsre else f"P{number % 3}",
        subject="Porsche 911",
        prompt="Porsche 911, created by",
        target_new="Honda",
        target_true=None if zsre else "Porsche",
        error=None,
        before=dict.fromkeys(names, 10.0),
        scores=dict.fromkeys(names, 90.0) if scores is None else scores,
        answers=[
            {"kind": k, "prompt": f"{k} prompt of {number}", **answer, "free": f" Honda, {k} {number}"} for k in KINDS
        ],
        texts=[{"prompt": "Porsche 911 is", "text": f" a car of record {number}.\nIt is fast."}],
        perplexity={"before": 20.0, "after": 21.0, "flagged": False},
        edit={"layer": 5, "variant": "r-rome", "relative_norm": 0.05, "seconds": 5.1, "notes": ["a note"]},
    )
    return made.to_dict() | changes


def report(records=None, *, kind="counterfact", settings=None, unevaluated=None):
    """A report of these records by editor."""
    records = {"r-rome": [record(kind=kind)]} if records is None else records
    made = report_of(
        kind,
        {name: list(map(EvaluatedRecord.from_dict, found)) for name, found in records.items()},
        references={},
        settings={"model": "smollm2-135m", "limit": 10} if settings is None else settings,
        descriptions={name: f"{name}, layer 5" for name in records},
        seed=0,
    )
    return replace(made, unevaluated=unevaluated or {})


def by_number(records):
    """Records that were measured by their numbers, each as its file holds it."""
    return {record.number: record.to_dict() for record in records}


def measured(model, records, editor, *, name="mine", layers=(1,), progress=None, **measures):
    """Records by number as one batch measures them: a file's worth of each."""
    measurer = RecordMeasurer(model, Measures(**measures), layers=layers)
    try:
        return by_number(measurer.measure(records, name, editor, progress=progress))
    finally:
        measurer.close()


def page_of(report):
    """The page that a report writes."""
    with tempfile.TemporaryDirectory() as folder:
        report.write_html(page := Path(folder) / "page.html")
        return page.read_bytes().decode()


def many(editors=("none", "r-rome", "ft"), *, records=12, kind="counterfact", seed=0):
    """A report of several editors over records that differ."""
    draw = random.Random(seed)
    names = ZSRE if kind == "zsre" else COUNTERFACT
    return report(
        {
            editor: [
                record(n, editor=editor, kind=kind, scores={m: draw.uniform(0, 100) for m in names})
                for n in range(records)
            ]
            for editor in editors
        },
        kind=kind,
    )


def kept(at, score, *, kind="counterfact", editor="memit", ppl=None, **state):
    """A checkpoint of this many facts as a run folder holds it.

    Args:
        at: facts in the model.
        score: number of a record -> what it scores in every metric; or one score for all.
        kind: the data set.
        editor: the editor's name.
        ppl: perplexity of the watched texts with these facts; 10 without any.
        state: what is known of the model; `failed` too.
    """
    names = ZSRE if kind == "zsre" else COUNTERFACT
    scores = score if callable(score) else lambda number: score
    records = [
        EvaluatedRecord.from_dict(
            record(n, editor=editor, kind=kind, scores=dict.fromkeys(names, scores(n)), edit=None)
        )
        for n in range(at)
    ]
    texts = None if ppl is None else {"before": 10.0, "after": ppl}
    return KeptCheckpoint(records, {"numbers": list(range(at)), "failed": {}, **state}, texts)


def together(editors, *, kind="counterfact", at=None, settings=None, descriptions=None, sample=None):
    """A report with checkpoints: editor -> n -> what `kept` gives."""
    at = sorted({n for by_n in editors.values() for n in by_n}) if at is None else at
    bounds = {"at": at, "sample": sample, "found_on": "base", "perplexity": 2.0, "score": 60.0}
    return together_report_of(
        kind,
        editors,
        references={},
        settings={"model": "smollm2-135m", "together": bounds} | (settings or {}),
        descriptions=descriptions or {name: f"layer 5, found on base, {name}" for name in editors},
        seed=0,
    )
