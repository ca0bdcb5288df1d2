"""Data that comes with the project."""

import json
from functools import cache
from importlib.resources import files

from rome_lens.data.records import (
    CounterFactRecord,
    RecordSet,
    Rejected,
    ZsreRecord,
    builtin_counterfact,
    read_counterfact,
    read_zsre,
)
from rome_lens.facts import Fact

__all__ = [
    "CounterFactRecord",
    "RecordSet",
    "Rejected",
    "ZsreRecord",
    "builtin_counterfact",
    "builtin_facts",
    "read_counterfact",
    "read_zsre",
]


@cache
def builtin_facts() -> tuple[Fact, ...]:
    """150 short and well-known facts of our own, so that a trace or an average needs no download.

    Their subjects also set the default noise level. The first is that the Eiffel Tower is located in the city of Paris.
    """
    records = json.loads(files(__name__).joinpath("facts.json").read_text(encoding="utf-8"))
    return tuple(Fact(record["prompt"], record["subject"], record["answer"]) for record in records)
