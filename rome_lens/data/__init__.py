"""Data that comes with the project."""

import json
from functools import cache
from importlib.resources import files

from rome_lens.data.records import CounterFactRecord as CounterFactRecord
from rome_lens.data.records import FollowUp as FollowUp
from rome_lens.data.records import RecordSet as RecordSet
from rome_lens.data.records import Rejected as Rejected
from rome_lens.data.records import ZsreRecord as ZsreRecord
from rome_lens.data.records import builtin_counterfact as builtin_counterfact
from rome_lens.data.records import read_counterfact as read_counterfact
from rome_lens.data.records import read_zsre as read_zsre
from rome_lens.data.requests import read_requests as read_requests
from rome_lens.facts import Fact


@cache
def builtin_facts() -> tuple[Fact, ...]:
    """150 short and well-known facts of our own, so that a trace or an average needs no download.

    Their subjects also set the default noise level. The first is that the Eiffel Tower is located in the city of Paris.
    """
    records = json.loads(files(__name__).joinpath("facts.json").read_text(encoding="utf-8"))
    return tuple(Fact(record["prompt"], record["subject"], record["answer"]) for record in records)
