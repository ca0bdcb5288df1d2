"""Files of records: those that tests keep, written anew with changes and in other forms."""

import copy
import json
import re
from pathlib import Path

FILES = Path(__file__).parents[1] / "fixtures" / "records"


def kept(name):
    """The records of a file that the tests keep."""
    return json.loads((FILES / f"{name}.json").read_text(encoding="utf-8"))


def changed(record, path, value):
    """A copy with another value at a path, such as `a.b[1]`; `...` takes it away."""
    record = copy.deepcopy(record)
    *steps, last = (int(step) if step.isdigit() else step for step in re.findall(r"\w+", path))
    inside = record
    for step in steps:
        inside = inside[step]
    if value is ...:
        del inside[last]
    else:
        inside[last] = value
    return record


def write(folder, content, name="data.json"):
    """A file of a text, of bytes, or of anything else in JSON."""
    path = folder / name
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    return path
