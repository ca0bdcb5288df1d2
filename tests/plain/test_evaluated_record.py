"""The form of a record's file: what is written is read back, and a file of another version loses nothing."""

import json
from dataclasses import replace

from reports import record

from rome_lens.evaluation.report.record import EvaluatedRecord

HEAD = {
    "number": 4,
    "case_id": 7,
    "editor": "ft",
    "relation": None,
    "subject": "s",
    "prompt": "s is",
    "target_new": "new",
    "target_true": None,
}
NOTHING = {"error": None, "before": {}, "scores": {}, "answers": [], "texts": [], "perplexity": None, "edit": None}


def test_a_record_is_read_back_from_its_json():
    held = record(3) | {"engine": "blocks", "notes": []}
    read = EvaluatedRecord.from_dict(json.loads(json.dumps(held)))
    assert (read.to_dict(), list(read.to_dict())) == (held, list(held))
    assert EvaluatedRecord.from_dict(read.to_dict()) == read


def test_what_could_not_be_put_to_the_model_has_its_reason_and_no_engine():
    assert EvaluatedRecord(**HEAD, unfit="too long").to_dict() == HEAD | {"unfit": "too long"} | NOTHING
    assert "unfit" not in EvaluatedRecord(**HEAD, engine="plain", notes=["a note"]).to_dict()


def test_fields_of_another_version_are_kept_and_fields_that_it_lacks_are_empty():
    read = EvaluatedRecord.from_dict(HEAD | {"references": ["a text"], "later": 1})
    assert read.to_dict() == HEAD | NOTHING | {"references": ["a text"], "later": 1}


def test_a_score_more_leaves_the_record_as_it_was():
    first = EvaluatedRecord(**HEAD, scores={"ES": 1.0})
    assert first.with_score("RS", 2.0).scores == {"ES": 1.0, "RS": 2.0}
    assert first.scores == {"ES": 1.0}


def test_the_perplexity_of_watched_texts():
    none = EvaluatedRecord(**HEAD)
    assert (none.perplexity_ratio, none.flagged) == (None, None)
    moved = replace(none, perplexity={"before": 20.0, "after": 50.0, "flagged": True})
    assert (moved.perplexity_ratio, moved.flagged, moved.perplexity_before_and_after) == (2.5, True, (20.0, 50.0))
