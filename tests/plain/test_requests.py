"""The reader of requests: every form in which people keep them, and what is said where an entry makes none."""

import csv
import io
import json

import pytest
from refused import refused

import rome_lens as rl
from rome_lens.data import read_requests
from rome_lens.errors import ArtefactError, SettingError

TOWER = rl.EditRequest("{} is in", "The tower", "Rome", "Paris")
PLAIN = {"prompt": "{} is in", "subject": "The tower", "target_new": "Rome"}
RELEASED = PLAIN | {"target_new": {"str": "Rome", "id": "Q220"}, "target_true": {"str": "Paris"}}
EASY_EDIT = {
    "case_id": 4255,
    "prompt": "The tower is in",
    "target_new": "Rome",
    "subject": "The tower",
    "ground_truth": "Paris",
    "rephrase_prompt": "One finds the tower in",
    "locality_prompt": "The river is in",
    "locality_ground_truth": "Paris",
}
KNOW_EDIT = EASY_EDIT | {"ground_truth": ["Paris", "Lutetia"], "locality": {"Forgetfulness": [{"prompt": "x"}]}}
ZSRE = {
    "subject": "The tower",
    "src": "Where {really} is The tower?",
    "pred": "Lyon",
    "rephrase": "In what city is the tower?",
    "alt": "Rome",
    "answers": ["Paris", "Lutetia"],
    "loc": "nq question: where is the river",
    "loc_ans": "Paris",
}
COUNTERFACT = {
    "case_id": 18,
    "requested_rewrite": RELEASED | {"relation_id": "P176"},
    "paraphrase_prompts": ["One finds the tower in"],
    "neighborhood_prompts": [],
}
ASKED = rl.EditRequest("Where {really} is {}?", "The tower", "Rome", "Paris")
UNKNOWN = rl.EditRequest("{} is in", "The tower", "Rome")

ODD = [
    'The "old" tower',
    "a, b; c\td",
    "one\ntwo\r\nthree\rfour",
    "{x} {{}} {0} %s",
    "東京 🗼 👩‍👩‍👧 é",
    "NA",
    "007",
    "1e5",
    "null",
    "=SUM(A1)",
    "'quoted'",
    '""',
    "\\n",
    "a\u2028b\x85c",
]


def write(folder, content, name="requests"):
    path = folder / name
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)
    return path


def table(rows, **form):
    written = io.StringIO(newline="")
    csv.writer(written, **form).writerows(rows)
    return written.getvalue()


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "request_"),
    [
        (PLAIN, UNKNOWN),
        (PLAIN | {"prompt": "The tower is in"}, UNKNOWN),
        (
            {"prompt": "{} is in", "subject": " The tower ", "target": "Rome"},
            rl.EditRequest("{} is in", " The tower ", "Rome"),
        ),
        (RELEASED, TOWER),
        (PLAIN | {"target_true": "Paris"}, TOWER),
        (PLAIN | {"old": "Paris", "target": "Rome"}, TOWER),
        (PLAIN | {"target_true": None, "answer_joined": None, "notes": 3}, UNKNOWN),
        (PLAIN | {"target_true": "", "ground_truth": [], "answers": [""], "old": {"str": " "}}, UNKNOWN),
        (PLAIN | {"target_true": "", "old": "Paris"}, TOWER),
        (PLAIN | {"prompt": "", "src": "The tower is in"}, UNKNOWN),
        (PLAIN | {"target_new": ["Rome"], "alt": ""}, UNKNOWN),
        (PLAIN | {"answer_joined": ""}, rl.EditRequest("{} is in", "The tower", "Rome", answer_joined="")),
        (EASY_EDIT, TOWER),
        (KNOW_EDIT, TOWER),
        (EASY_EDIT | {"ground_truth": [["Paris"], ["Lutetia"]]}, TOWER),
        (ZSRE, ASKED),
        (ZSRE | {"target_new": "Rome", "ground_truth": "Paris"}, ASKED),
        ({"prompt": ZSRE["src"], "subject": "The tower", "alt": "Rome", "answers": ["Paris"]}, ASKED),
        (COUNTERFACT, TOWER),
        ({"requested_rewrite": PLAIN}, UNKNOWN),
        (
            COUNTERFACT | {"answer_joined": " "},
            rl.EditRequest("{} is in", "The tower", "Rome", "Paris", answer_joined=" "),
        ),
    ],
)
def test_what_an_entry_may_be(tmp_path, entry, request_):
    assert read_requests(write(tmp_path, [entry])) == [request_]


def test_the_released_code_s_prompt_is_filled_where_it_says(tmp_path):
    rewrite = RELEASED | {"prompt": "{} is what The tower is"}
    (read,) = read_requests(write(tmp_path, [{"requested_rewrite": rewrite}]))
    assert read.text == "The tower is what The tower is"
    assert read.subject_span == (0, 9)


LINES = "\n".join(map(json.dumps, (RELEASED, ZSRE)))


@pytest.mark.parametrize(
    "content",
    [
        [RELEASED, ZSRE],
        *({name: [RELEASED, ZSRE], "version": 1} for name in ("requests", "edits", "facts", "records", "data")),
        json.dumps([RELEASED, ZSRE], indent=2).replace("\n", "\r\n"),
        "\ufeff" + json.dumps([RELEASED, ZSRE]),
        LINES,
        LINES.replace("\n", "\r\n\r\n  \r\n") + "\n",
        "\ufeff\n" + LINES,
    ],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.csv", "data"])
def test_the_form_is_known_by_the_content(tmp_path, name, content):
    assert rl.read_requests(str(write(tmp_path, content, name))) == [TOWER, ASKED]


def test_a_file_of_one_request(tmp_path):
    assert read_requests(write(tmp_path, PLAIN)) == [UNKNOWN]
    assert read_requests(write(tmp_path, COUNTERFACT, "one.jsonl")) == [TOWER]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_tables(tmp_path, separator, quoting, ending):
    rows = [
        ["Subject", " prompt ", "target", "old", "answer_joined", "notes, for you"],
        ["The tower", "{} is in", "Rome", "Paris", "", "NA"],
        [""] * 6,
        [],
        ["The tower", "The tower is in", "Rome", "", " ", ""],
    ]
    content = table(rows, delimiter=separator, quoting=quoting, lineterminator=ending)
    expected = [TOWER, rl.EditRequest("{} is in", "The tower", "Rome", answer_joined=" ")]
    assert read_requests(write(tmp_path, content, "data.txt")) == expected
    assert read_requests(write(tmp_path, "\ufeff" + content, "data.csv")) == expected


@pytest.mark.parametrize("odd", ODD)
def test_odd_texts_come_through(tmp_path, odd):
    made = rl.EditRequest(f"{odd}: {{}} is", f"a {odd} z", odd, f"not {odd}")
    assert read_requests(write(tmp_path, [made.as_dict()])) == [made]
    fields = ("prompt", "subject", "target_new", "target_true")
    cells = [list(fields), [getattr(made, field) for field in fields]]
    assert read_requests(write(tmp_path, table(cells))) == [made]
    assert read_requests(write(tmp_path, table(cells, delimiter="\t"))) == [made]
    raw = json.dumps(made.as_dict(), ensure_ascii=False)
    assert read_requests(write(tmp_path, f"{raw}\n{raw}", "data.jsonl")) == [made, made]


def test_a_data_set_in_a_folder(tmp_path):
    write(tmp_path, "".join(json.dumps(each) + "\n" for each in (PLAIN, EASY_EDIT)), "train.jsonl")
    assert read_requests(f"hub:{tmp_path}") == [UNKNOWN, TOWER]
    assert refused(SettingError, read_requests, "hub:").startswith("'hub:' names no data set")


# --- what makes no request ------------------------------------------------------------------------------------------

BREAKS = [
    (3, "itself is int; expected an object"),
    (["x"], "itself is list; expected an object"),
    ({}, "prompt is missing; expected a text"),
    (PLAIN | {"prompt": None}, "prompt is missing; expected a text"),
    (PLAIN | {"prompt": " "}, "prompt is empty; expected a text"),
    (PLAIN | {"prompt": 3}, "prompt is int; expected a text"),
    (PLAIN | {"subject": ["x"]}, "subject is list; expected a text"),
    (PLAIN | {"subject": "\ud800"}, "subject holds half a character (a lone surrogate); expected a text"),
    (PLAIN | {"target_new": ""}, "target_new is empty; expected a text"),
    (PLAIN | {"target_new": 7}, "target_new is int; expected a text"),
    (PLAIN | {"target_new": float("nan")}, "target_new is float; expected a text"),
    (PLAIN | {"target_new": []}, "target_new is list; expected a text"),
    (PLAIN | {"target_new": ["Rome", "Roma"]}, "target_new is a list of 2 targets; expected one text"),
    (PLAIN | {"target_new": {"id": "Q1"}}, "target_new.str is missing; expected a text"),
    (PLAIN | {"target_true": 7}, "target_true is int; expected a text"),
    (PLAIN | {"ground_truth": [7]}, "ground_truth is int; expected a text"),
    (PLAIN | {"answer_joined": "x"}, "answer_joined is 'x'; expected '' or white space"),
    (
        PLAIN | {"target": "Oslo"},
        "target_new and target say different things, 'Rome' and 'Oslo'; keep one of them",
    ),
    (
        RELEASED | {"old": ["Oslo"]},
        "target_true and old say different things, {'str': 'Paris'} and ['Oslo']; keep one of them",
    ),
    (
        PLAIN | {"subject": "Tower", "prompt": "The tower is in"},
        "prompt makes no request: the subject 'Tower' is not in the prompt 'The tower is in'; the prompt writes it "
        "'tower', or write {} where it stands",
    ),
    (
        PLAIN | {"prompt": "{} and {}"},
        "prompt makes no request: the prompt '{} and {}' has 2 places for the subject; write {} once, where it stands, "
        "and {{}} where it is text",
    ),
    (
        PLAIN | {"old": "Rome"},
        "target_new makes no request: target_new and target_true of 'The tower is in' are both 'Rome'; an edit needs a "
        "target that is not the old answer",
    ),
    (ZSRE | {"alt": ""}, "alt is empty; expected a text"),
    (ZSRE | {"subject": "Nobody"}, "subject 'Nobody' is not in src 'Where {really} is The tower?'"),
    ({"requested_rewrite": "text"}, "requested_rewrite is str; expected an object"),
    ({"requested_rewrite": PLAIN | {"subject": ""}}, "requested_rewrite.subject is empty; expected a text"),
    (
        {"requested_rewrite": PLAIN | {"target_new": {}}},
        "requested_rewrite.target_new.str is missing; expected a text",
    ),
    (
        {"requested_rewrite": PLAIN | {"prompt": "made by"}},
        "requested_rewrite.prompt makes no request: the prompt 'made by' has 0 places for the subject; write {} once, "
        "where it stands",
    ),
    (
        COUNTERFACT | {"answer_joined": 1},
        "answer_joined is 1; expected '' or white space",
    ),
]


@pytest.mark.parametrize(("entry", "said"), BREAKS, ids=[said.split(";")[0][:60] for _, said in BREAKS])
def test_an_entry_that_makes_no_request(tmp_path, entry, said):
    path = write(tmp_path, [PLAIN, entry, PLAIN])
    assert refused(ArtefactError, read_requests, path) == (
        f"1 of 3 entries in {str(path)!r} cannot be read, so none is: record 1: {said}"
    )


def test_the_first_entries_that_make_none_are_named_and_the_others_counted(tmp_path):
    path = write(tmp_path, "\n".join(map(json.dumps, [1, PLAIN, 2, {}])) + "\n\n3\n4", "data.jsonl")
    assert refused(ArtefactError, read_requests, path) == (
        f"5 of 6 entries in {str(path)!r} cannot be read, so none is: line 1: itself is int; expected an object | "
        "line 3: itself is int; expected an object | line 4: prompt is missing; expected a text | and 2 more"
    )
    path = write(tmp_path, [1])
    assert refused(ArtefactError, read_requests, path).startswith(f"1 of 1 entry in {str(path)!r} cannot be read")


def test_rows_of_a_table_that_make_no_request(tmp_path):
    content = (
        'prompt,subject,target\n"{}\nis in",The tower,Rome\nThe tower, there, is in,The tower,Rome\n{} is in,,Rome'
    )
    path = write(tmp_path, content)
    assert refused(ArtefactError, read_requests, path) == (
        f"2 of 3 entries in {str(path)!r} cannot be read, so none is: line 4: itself has 5 cells, and the first line "
        "3; write \"…\" around a text with ',' in it | line 5: subject is missing; expected a text"
    )


# --- files that hold none -------------------------------------------------------------------------------------------

EXPECTED = "expected requests with prompt, subject and target_new, in JSON, JSON lines or CSV"
FILES = [
    ("a", "", f"{{name}} is empty; {EXPECTED}"),
    ("a.csv", "\ufeff\r\n ", f"{{name}} is empty; {EXPECTED}"),
    ("a.json", "[]", f"{{name}} holds no requests; {EXPECTED}"),
    ("a", '{"requests": []}', f"{{name}} holds no requests; {EXPECTED}"),
    ("a", "prompt,subject,target\n", f"{{name}} holds no requests; {EXPECTED}"),
    ("a.json", "3", "{name} holds 3; expected a JSON list of requests"),
    (
        "a",
        '{"a": 1, "b": []}',
        "{name} holds an object with ['a', 'b']; expected a JSON list of requests, or an object with one in one of "
        "requests, edits, facts, records, data",
    ),
    (
        "a",
        '{"facts": [], "data": []}',
        "{name} holds an object with ['facts', 'data']; expected a JSON list of requests, or an object with one in one "
        "of requests, edits, facts, records, data",
    ),
    ("a", "[1, ", "{name} is not JSON: Expecting value: line 1 column 5 (char 4)"),
    ("a.json", "text", "{name} is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ("a", '{"a": 1}\n\n{"a": \n', "line 3 of {name} is not JSON: Expecting value: line 1 column 7 (char 6)"),
    ("a.jsonl", '{"a": \n', "line 1 of {name} is not JSON: Expecting value: line 1 column 7 (char 6)"),
    (
        "a",
        "subject;target\nThe tower;it",
        "{name} is no table of requests: its first line, 'subject;target', names no column prompt or src; " + EXPECTED,
    ),
    (
        "a",
        "{} is in,The tower,Rome\n",
        "{name} is no table of requests: its first line, '{} is in,The tower,Rome', names no column prompt or src; "
        + EXPECTED,
    ),
    (
        "a.py",
        "import this\n",
        f"{{name}} is no table of requests: its first line, 'import this', names no column prompt or src; {EXPECTED}",
    ),
    (
        "a",
        '"prompt,subject,target',
        "{name} is no table of requests: its first line, '\"prompt,subject,target', names no column prompt or src; "
        f"{EXPECTED}",
    ),
    ("a", "prompt,subject,Subject,target\nx,y,z,a", "{name} has several columns 'subject'; keep one of them"),
    (
        "a",
        'prompt,subject,target\n"The "old" tower is",x,y',
        'line 2 of {name} is not CSV: \',\' expected after \'"\'; a text with quotes in it is written "a ""quote"" in '
        'it"',
    ),
    (
        "a",
        'prompt,subject,target\n{} is,x,y\n{} is,x,"y\n',
        'line 3 of {name} is not CSV: unexpected end of data; a text with quotes in it is written "a ""quote"" in it"',
    ),
    ("a", b'["caf\xe9 au"]', "{name} is not in UTF-8 (invalid continuation byte); save it in UTF-8"),
    ("a", "prompt,subject".encode("utf-16"), "{name} is not in UTF-8 (invalid start byte); save it in UTF-8"),
    (
        "a",
        "prompt,subject".encode("utf-16-le"),
        f"{{name}} is no text in UTF-8: it holds the character NUL; {EXPECTED}",
    ),
]


@pytest.mark.parametrize(("name", "content", "said"), FILES)
def test_files_that_hold_no_requests(tmp_path, name, content, said):
    path = write(tmp_path, content, name)
    assert refused(ArtefactError, read_requests, path) == said.replace("{name}", repr(str(path)))


def test_json_that_is_nested_too_deeply(tmp_path):
    path = write(tmp_path, "[" * 100_000)
    assert refused(ArtefactError, read_requests, path).startswith(f"{str(path)!r} is not JSON: ")


def test_what_is_no_file(tmp_path):
    name = str(tmp_path / "none")
    assert refused(ArtefactError, read_requests, name) == f"there is no file {name!r} to read requests from"
    assert refused(ArtefactError, read_requests, tmp_path) == (
        f"{str(tmp_path)!r} is a folder; name the file of requests in it, or write hub:{tmp_path}"
    )
    inside = write(tmp_path, [PLAIN]) / "inside.json"
    assert (
        refused(ArtefactError, read_requests, inside) == f"cannot read requests from {str(inside)!r}: Not a directory"
    )
    assert "expected a path" in refused(SettingError, read_requests, 3)
