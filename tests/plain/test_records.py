"""Readers of CounterFact and zsRE: what is published is read, and what breaks the schema is named and left out."""

import dataclasses
import hashlib
import json
import sys

import pytest
from record_files import changed, write
from refused import refused

import rome_lens as rl
from rome_lens.data.records import Rejected, builtin_counterfact, read_counterfact, read_zsre
from rome_lens.errors import ArtefactError, SettingError

FACT = {
    "case_id": 18,
    "pararel_idx": 9,
    "requested_rewrite": {
        "prompt": "{}, created by",
        "relation_id": "P176",
        "target_new": {"str": "Honda", "id": "Q9584"},
        "target_true": {"str": "Porsche", "id": "Q40993"},
        "subject": "Porsche 911",
    },
    "paraphrase_prompts": ["It rains. Porsche 911 is made by", "Porsche 911, from"],
    "neighborhood_prompts": ["Porsche 944 is made by", "Porsche 928, from"],
    "attribute_prompts": ["Honda Civic, from"],
    "generation_prompts": ["Porsche 911 sells in"],
}
QUESTION = {
    "subject": "Watts Humphrey",
    "src": "What university did Watts Humphrey attend?",
    "pred": "Trinity College",
    "rephrase": "What university did Watts Humphrey take part in?",
    "alt": "University of Michigan",
    "answers": ["Illinois Institute of Technology", "IIT"],
    "loc": "nq question: who played desmond doss father in hacksaw ridge",
    "loc_ans": "Hugo Weaving",
    "cond": "Trinity College >> University of Michigan || What university did Watts Humphrey attend?",
}


# --- what is read ---------------------------------------------------------------------------------------------------


def test_every_field_of_counterfact(tmp_path):
    path = write(tmp_path, [FACT])
    found = read_counterfact(path)
    assert (found.source, found.rejected, len(found)) == (str(path), (), 1)
    (record,) = found
    assert (record.number, record.case_id, record.relation) == (0, 18, "P176")
    assert record.request == rl.EditRequest("{}, created by", "Porsche 911", "Honda", "Porsche")
    assert record.paraphrases == ("It rains. Porsche 911 is made by", "Porsche 911, from")
    assert record.neighbours == ("Porsche 944 is made by", "Porsche 928, from")
    assert record.generation_prompts == ("Porsche 911 sells in",)


def test_every_field_of_zsre(tmp_path):
    path = write(tmp_path, [QUESTION, QUESTION])
    found = read_zsre(path)
    assert (found.source, found.rejected, len(found)) == (str(path), (), 2)
    record = found[1]
    assert (record.number, record.case_id, record.relation) == (1, 1, None)
    assert record.request == rl.EditRequest(
        "What university did {} attend?", "Watts Humphrey", "Illinois Institute of Technology", None
    )
    assert record.rephrase == "What university did Watts Humphrey take part in?"
    assert record.unrelated == "nq question: who played desmond doss father in hacksaw ridge?"
    assert record.unrelated_answer == "Hugo Weaving"


@pytest.mark.parametrize("absent", [..., None], ids=["not there", "null"])
def test_what_a_record_may_lack(tmp_path, absent):
    path = write(
        tmp_path,
        [
            changed(FACT, "case_id", absent),
            changed(FACT, "requested_rewrite.relation_id", absent),
            changed(FACT, "generation_prompts", absent),
            changed(FACT, "attribute_prompts", absent),
            changed(FACT, "case_id", "a-18"),
        ],
    )
    found = read_counterfact(path)
    assert found.rejected == ()
    assert [record.case_id for record in found] == [0, 18, 18, 18, "a-18"]
    assert [record.relation for record in found] == ["P176", None, "P176", "P176", "P176"]
    assert [len(record.generation_prompts) for record in found] == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("name", ["data.jsonl", "DATA.NDJSON"])
def test_json_lines(tmp_path, name):
    # U+2028 and U+0085 end no line of JSON.
    other = changed(FACT, "requested_rewrite.subject", "Porsche\u2028 \x85911")
    lines = [json.dumps(record, ensure_ascii=False) for record in (FACT, other)]
    found = read_counterfact(write(tmp_path, f"{lines[0]}\r\n\n  \n{lines[1]}\n", name))
    assert [record.request.subject for record in found] == ["Porsche 911", "Porsche\u2028 \x85911"]
    assert [record.number for record in found] == [0, 1]
    assert read_zsre(write(tmp_path, json.dumps(QUESTION), name))[0].unrelated_answer == "Hugo Weaving"


def test_a_byte_order_mark_is_no_text(tmp_path):
    assert len(read_counterfact(write(tmp_path, "\ufeff" + json.dumps([FACT])))) == 1


def test_a_path_may_be_a_text(tmp_path):
    path = write(tmp_path, [FACT])
    assert read_counterfact(str(path)) == read_counterfact(path)


@pytest.mark.parametrize(
    ("subject", "question", "prompt"),
    [
        ("Ada", "Is Ada the Ada of Adam?", "Is {} the Ada of Adam?"),
        ("a", "Was it a cat?", "Was it {} cat?"),
        ("It", "In which Italian city was It filmed?", "In which Italian city was {} filmed?"),
        ("at", "Was it a cat?", "Was it a c{}?"),
        ("Ada ", "Is Ada the {}?", "Is {} the {{}}?"),
        ("{x}", "Is {x} in {y}?", "Is {} in {y}?"),
        ("{}", "What is {}?", "What is {}?"),
        ("Ada", "Ada", "{}"),
    ],
)
def test_the_subject_stands_where_the_question_names_it_first(tmp_path, subject, question, prompt):
    record = QUESTION | {"subject": subject, "src": question}
    (read,) = read_zsre(write(tmp_path, [record]))
    assert (read.request.prompt, read.request.subject, read.request.text) == (prompt, subject.strip(), question)


def test_braces_in_prompts_are_text(tmp_path):
    record = changed(FACT, "paraphrase_prompts", ["Porsche {} of {x}", "{0} %s {{}}"])
    record = changed(record, "requested_rewrite.subject", "the {} of {x}")
    (read,) = read_counterfact(write(tmp_path, [record]))
    assert read.paraphrases == ("Porsche {} of {x}", "{0} %s {{}}")
    assert read.request.text == "the {} of {x}, created by"


# --- what breaks the schema -----------------------------------------------------------------------------------------

REWRITE, HALF = "requested_rewrite", "holds half a character (a lone surrogate); expected a text"
PROMPT, SUBJECT, RELATION = f"{REWRITE}.prompt", f"{REWRITE}.subject", f"{REWRITE}.relation_id"
NEW, TRUE = f"{REWRITE}.target_new", f"{REWRITE}.target_true"
# What is said, and of which value where.
COUNTERFACT_BREAKS = {
    "is missing; expected an object": {REWRITE: ...},
    "is str; expected an object": {REWRITE: "text"},
    "is missing; expected a text": {PROMPT: ..., SUBJECT: ..., f"{NEW}.str": ...},
    "is empty; expected a text": {PROMPT: " \n", SUBJECT: "", f"{TRUE}.str": "", "paraphrase_prompts[0]": "\t"},
    "is int; expected a text": {PROMPT: 3, RELATION: 176, "paraphrase_prompts[1]": 7, "generation_prompts[0]": 1},
    "is list; expected a text": {SUBJECT: ["x"]},
    "is bool; expected a text": {f"{NEW}.str": True},
    "is NoneType; expected a text": {"neighborhood_prompts[1]": None},
    HALF: {PROMPT: "a \ud800{}", "neighborhood_prompts[1]": "\udc00"},
    "is missing; expected an object with the text str": {NEW: ...},
    "is str; expected an object with the text str": {NEW: "Honda"},
    "is list; expected an object with the text str": {TRUE: []},
    "is float; expected a whole number or a text": {"case_id": 1.5},
    "is bool; expected a whole number or a text": {"case_id": True},
    "is missing; expected a list of texts": {"paraphrase_prompts": ...},
    "is str; expected a list of texts": {"paraphrase_prompts": "x", "generation_prompts": "x"},
    "is dict; expected a list of texts": {"neighborhood_prompts": {}},
    "is an empty list; expected a text at least": {"paraphrase_prompts": [], "neighborhood_prompts": []},
}
NO_REQUESTS = [
    (REWRITE, None, f"{REWRITE} is missing; expected an object"),
    (
        PROMPT,
        "made by",
        f"{PROMPT} makes no request: the prompt 'made by' has 0 places for the subject; write {{}} once, where it "
        "stands",
    ),
    (
        PROMPT,
        "{} and {}",
        f"{PROMPT} makes no request: the prompt '{{}} and {{}}' has 2 places for the subject; write {{}} once, where "
        "it stands, and {{}} where it is text",
    ),
    (
        f"{TRUE}.str",
        " Honda",
        f"{NEW}.str makes no request: target_new and target_true of 'Porsche 911, created by' are both 'Honda'; an "
        "edit needs a target that is not the old answer",
    ),
]
ZSRE_BREAKS = {
    "is missing; expected a text": {"src": ..., "subject": None, "rephrase": ..., "loc": ..., "loc_ans": ...},
    "is empty; expected a text": {"src": "", "answers[1]": "", "loc_ans": " "},
    "is int; expected a text": {"subject": 5},
    "is list; expected a text": {"rephrase": []},
    "is float; expected a text": {"loc": 2.5},
    f"'watts humphrey' is not in src '{QUESTION['src']}'": {"subject": "watts humphrey"},
    f"'Nobody' is not in src '{QUESTION['src']}'": {"subject": "Nobody"},
    "is missing; expected a list of texts": {"answers": ...},
    "is str; expected a list of texts": {"answers": "IIT"},
    "is an empty list; expected a text at least": {"answers": []},
    "makes no request: the prompt 'Did {…} write {}?' has braces right around its subject, and others elsewhere, which "
    "no prompt with {} can say; rephrase it": {"src": "Did {Watts Humphrey} write {}?"},
    "is 'x'; expected '' or white space": {"answer_joined": "x"},
    "is 1; expected '' or white space": {"answer_joined": 1},
}


def _breaks(table, others=()):
    told = [(path, value, f"{path} {said}") for said, broken in table.items() for path, value in broken.items()]
    several = [*told, *others]
    return {"argvalues": several, "ids": [said.split(";")[0][:70] for _, _, said in several]}


@pytest.mark.parametrize(("path", "value", "said"), **_breaks(COUNTERFACT_BREAKS, NO_REQUESTS))
def test_a_record_that_breaks_the_schema_of_counterfact(tmp_path, path, value, said):
    found = read_counterfact(write(tmp_path, [FACT, changed(FACT, path, value), FACT]))
    assert [record.number for record in found] == [0, 2]
    (rejected,) = found.rejected
    assert str(rejected) == f"record 1: {said}"
    assert f"{rejected.field} {rejected.problem}" == said


@pytest.mark.parametrize(("path", "value", "said"), **_breaks(ZSRE_BREAKS))
def test_a_record_that_breaks_the_schema_of_zsre(tmp_path, path, value, said):
    found = read_zsre(write(tmp_path, [QUESTION, changed(QUESTION, path, value), QUESTION]))
    assert [record.case_id for record in found] == [0, 2]
    (rejected,) = found.rejected
    assert str(rejected) == f"record 1: {said}"


@pytest.mark.parametrize(("value", "kind"), [(3, "int"), ("x", "str"), (None, "NoneType"), ([FACT], "list")])
@pytest.mark.parametrize(("read", "good"), [(read_counterfact, FACT), (read_zsre, QUESTION)])
def test_a_record_that_is_no_object(tmp_path, read, good, value, kind):
    found = read(write(tmp_path, [value, good]))
    assert found.rejected == (Rejected(0, "itself", f"is {kind}; expected an object"),)
    assert str(found.rejected[0]) == f"record 0: itself is {kind}; expected an object"


def test_every_broken_record_is_told_with_its_first_fault(tmp_path):
    two_faults = changed(changed(FACT, "neighborhood_prompts", []), SUBJECT, "")
    found = read_counterfact(write(tmp_path, [two_faults, FACT, 1, changed(FACT, "case_id", [])]))
    assert [str(rejected) for rejected in found.rejected] == [
        "record 0: requested_rewrite.subject is empty; expected a text",
        "record 2: itself is int; expected an object",
        "record 3: case_id is list; expected a whole number or a text",
    ]


# --- files that cannot be used at all -------------------------------------------------------------------------------

NONE = "{name} holds no CounterFact record that can be used"
UNUSABLE = [
    ("a.json", "[1, ", "{name} is not JSON, which CounterFact is kept in: Expecting value: line 1 column 5 (char 4)"),
    ("a.json", "", "{name} is not JSON, which CounterFact is kept in: Expecting value: line 1 column 1 (char 0)"),
    (
        "a.json",
        "{}",
        "{name} holds an object with []; expected a JSON list of CounterFact records, or an object with one in one of "
        "requests, edits, facts, records, data",
    ),
    ("a.json", '"text"', "{name} holds 'text'; expected a JSON list of CounterFact records"),
    ("a.jsonl", '{"a": 1}\n\n{"a": \n', "line 3 of {name} is not JSON: Expecting value: line 1 column 7 (char 6)"),
    ("a.json", "[]", NONE),
    ("a.jsonl", "\n", NONE),
    (
        "a.json",
        '[{"requested_rewrite": {}}, 3]',
        f"{NONE}; record 0: requested_rewrite.target_new is missing; expected an object with the text str",
    ),
    ("a.json", json.dumps([QUESTION]), f"{NONE}; record 0: requested_rewrite is missing; expected an object"),
    ("a.json", b'["caf\xe9 au"]', "{name} is not in UTF-8 (invalid continuation byte); save it in UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "said"), UNUSABLE)
def test_files_that_cannot_be_used(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert refused(ArtefactError, read_counterfact, path) == said.replace("{name}", repr(str(path)))


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.json", "{name} is not JSON, which CounterFact is kept in: "), ("a.jsonl", "line 1 of {name} is not JSON: ")],
)
def test_json_that_is_nested_too_deeply(tmp_path, name, said):
    path = write(tmp_path, "[" * 100_000, name)
    assert refused(ArtefactError, read_counterfact, path).startswith(said.format(name=repr(str(path))))


def test_what_is_no_file(tmp_path):
    name = str(tmp_path / "none")
    said = refused(ArtefactError, read_zsre, name)
    assert said == f"there is no file {name!r} to read zsRE from; a data set is written hub:NAME"
    assert refused(ArtefactError, read_zsre, tmp_path) == (
        f"{str(tmp_path)!r} is a folder; name the zsRE file in it, or write hub:{tmp_path} for a data set"
    )
    path = write(tmp_path, [FACT])
    said = refused(ArtefactError, read_zsre, path / "inside.json")
    assert said == f"cannot read zsRE from {str(path / 'inside.json')!r}: Not a directory"


# --- data sets ------------------------------------------------------------------------------------------------------


def test_a_data_set_in_a_folder(tmp_path):
    # The package fills up fields that a record lacks.
    lacking = [changed(FACT, "generation_prompts", ...), changed(FACT, "neighborhood_prompts", ...)]
    write(tmp_path, "".join(json.dumps(record) + "\n" for record in [FACT, *lacking]), "train.jsonl")
    found = read_counterfact(f"hub:{tmp_path}")
    assert found.source == f"hub:{tmp_path}"
    assert [record.number for record in found] == [0, 1]
    assert found[0] == read_counterfact(write(tmp_path, [FACT], "one.json"))[0]
    assert found[1].generation_prompts == ()
    assert [str(rejected) for rejected in found.rejected] == [
        "record 2: neighborhood_prompts is missing; expected a list of texts"
    ]


def test_another_split_of_a_data_set(tmp_path):
    for split, answer in (("train", "one"), ("test", "two")):
        write(tmp_path, json.dumps(QUESTION | {"answers": [answer]}), f"{split}.jsonl")
    assert read_zsre(f"hub:{tmp_path}")[0].request.target_new == "one"
    assert read_zsre(f"hub:{tmp_path}::test")[0].request.target_new == "two"


def test_a_data_set_that_holds_something_else(tmp_path):
    write(tmp_path, json.dumps({"text": "one"}), "train.jsonl")
    assert refused(ArtefactError, read_zsre, f"hub:{tmp_path}") == (
        f"'hub:{tmp_path}' holds no zsRE record that can be used; record 0: src is missing; expected a text"
    )


def test_a_data_set_that_cannot_be_read(tmp_path, monkeypatch):
    said = refused(ArtefactError, read_zsre, f"hub:{tmp_path / 'none'}")
    assert said.startswith(f"cannot read the data set '{tmp_path / 'none'} train': ")
    assert said.endswith("; check the name and the network, or take a file")
    assert said.isprintable()
    monkeypatch.setitem(sys.modules, "datasets", None)
    said = refused(ArtefactError, read_zsre, "hub:owner/name")
    assert said == "reading the data set 'owner/name' needs the package datasets: pip install datasets"


@pytest.mark.parametrize("source", ["hub:", "hub::x", "hub:a:b:c:d"])
def test_names_of_no_data_set(source):
    said = refused(SettingError, read_counterfact, source)
    assert said == f"{source!r} names no data set; expected hub:NAME, or hub:NAME:CONFIGURATION:SPLIT"


# --- sets of records ------------------------------------------------------------------------------------------------


def test_a_part_of_the_records(tmp_path):
    several = [changed(FACT, "case_id", number) for number in range(5)]
    found = read_counterfact(write(tmp_path, [*several, 3]))
    part = found[1:3]
    assert [record.case_id for record in part] == [1, 2]
    assert [record.number for record in part] == [1, 2]
    assert (part.source, part.rejected) == (found.source, found.rejected)
    assert found[-1].case_id == 4
    assert found[:None] == found
    assert len(found[:100]) == 5
    assert found[0] in found


def test_the_digest_is_of_what_the_records_say(tmp_path):
    other = changed(FACT, "case_id", 19)
    (tmp_path / "elsewhere").mkdir()
    first = read_counterfact(write(tmp_path, [FACT, other]))
    again = read_counterfact(write(tmp_path / "elsewhere", f"{json.dumps(FACT)}\n{json.dumps(other)}", "b.jsonl"))
    assert first.source != again.source
    assert first.digest == again.digest
    assert len(first.digest) == 64
    # What no reader looks at is no content.
    assert read_counterfact(write(tmp_path, [FACT | {"pararel_idx": 1}, other])).digest == first.digest
    changes = [
        [other, FACT],
        [FACT],
        [changed(FACT, "case_id", "18"), other],
        [changed(FACT, "neighborhood_prompts[1]", "Porsche 928 from"), other],
        [changed(FACT, "requested_rewrite.target_new.str", "Fiat"), other],
        [3, FACT, other],
    ]
    digests = {read_counterfact(write(tmp_path, content)).digest for content in changes}
    assert len(digests | {first.digest}) == len(changes) + 1


def test_the_built_in_records_are_all_read():
    found = builtin_counterfact()
    assert (found.rejected, found.source) == ((), "built-in")
    assert len(found) >= 60
    assert [record.number for record in found] == list(range(len(found)))
    assert all(record.relation and record.request.target_true for record in found)
    assert {(len(r.paraphrases), len(r.neighbours), len(r.generation_prompts)) for r in found} == {(2, 10, 10)}
    assert found.digest == builtin_counterfact().digest


def test_a_file_says_what_stands_between_its_prompts_and_answers(tmp_path):
    told = changed(FACT, "requested_rewrite.answer_joined", "")
    one, other = read_counterfact(write(tmp_path, [told, FACT]))
    assert (one.request.answer_joined, other.request.answer_joined) == ("", None)
    (asked,) = read_zsre(write(tmp_path, [QUESTION | {"answer_joined": " "}]))
    assert asked.request.answer_joined == " "


def test_a_digest_does_not_change_where_nothing_is_said_of_joining(tmp_path):
    # A run that an earlier version began goes on.
    path = write(tmp_path, [FACT])
    plain = [dataclasses.asdict(record) for record in read_counterfact(path)]
    for later in ("neighbour_answers", "follows"):
        del plain[0][later]
    del plain[0]["request"]["answer_joined"]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    assert read_counterfact(path).digest == digest
    assert read_counterfact(write(tmp_path, [changed(FACT, "requested_rewrite.answer_joined", "")])).digest != digest


def test_white_space_at_a_subject_s_end_is_the_question_s(tmp_path):
    (blank,) = read_zsre(write(tmp_path, [QUESTION | {"subject": "Watts Humphrey "}]))
    (plain,) = read_zsre(write(tmp_path, [QUESTION]))
    assert blank.request == plain.request
