"""Files that people have: every published form is known by its fields, and what is not read of it is said."""

import dataclasses
import gzip
import json

import pytest
from record_files import FILES, changed, kept, write
from refused import refused

import rome_lens as rl
from rome_lens.data.records import Rejected
from rome_lens.errors import ArtefactError, SettingError

COUNTERFACT = ("easyedit_counterfact", "knowedit", "mquake", "rippleedits", "multi_counterfact")
ZSRE = ("easyedit_zsre", "knowedit_zsre", "mend_zsre")
EASY_EDIT = ("easyedit_counterfact", "knowedit", "easyedit_zsre", "knowedit_zsre")
ALL = (*COUNTERFACT, *ZSRE)


def read(name, path=None):
    """A file that the tests keep, as its reader reads it, or another of the same form."""
    reader = rl.read_zsre if name in ZSRE else rl.read_counterfact
    return reader(FILES / f"{name}.json" if path is None else path)


def beside(record):
    """What a record of CounterFact's asks beside its edit."""
    return record.paraphrases, tuple(zip(record.neighbours, record.neighbour_answers, strict=True)), record.follows


# --- what each form holds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "passed_over"),
    [
        ("easyedit_counterfact", "EasyEdit's CounterFact", {"source": 1}),
        ("knowedit", "KnowEdit", {"locality.Forgetfulness.prompt": 1, "locality.Relation_Specificity.prompt": 1}),
        ("mquake", "MQuAKE", {"answer": 2, "answer_alias": 1, "new_single_hops": 1, "orig": 1, "single_hops": 1}),
        (
            "rippleedits",
            "RippleEdits",
            {
                "Compositionality_II.test_queries.prompt": 1,
                "condition_queries": 1,
                "example_type": 2,
                "test_condition": 2,
            },
        ),
        ("multi_counterfact", "CounterFact", {"attribute_prompts": 2, "pararel_idx": 2}),
        ("easyedit_zsre", "EasyEdit's zsRE", {"cond": 1}),
        (
            "knowedit_zsre",
            "KnowEdit",
            {
                "cond": 1,
                "locality.Relation_Specificity.prompt": 1,
                "locality.Relation_Specificity.prompt behind the first": 1,
                "rephrase behind the first": 1,
            },
        ),
        ("mend_zsre", "zsRE", {"alt": 2, "cond": 2, "portability": 1, "pred": 1}),
    ],
)
def test_what_a_file_is_read_as_and_what_is_passed_over(name, form, passed_over):
    found = read(name)
    assert (found.form, found.passed_over) == (form, passed_over)
    assert (found[:1].form, found[:1].passed_over) == (form, passed_over)


def test_easy_edits_counterfact():
    found = read("easyedit_counterfact")
    assert found.rejected == ()
    mill, mara, hill = found
    assert (mill.number, mill.case_id, mill.relation) == (0, 7, None)
    assert mill.request == rl.EditRequest("{} stands in", "The Old Mill", "Ghent", "Bruges")
    # The old answer is the neighbours' as well, so it is not held twice.
    assert (mill.neighbours, mill.neighbour_answers) == (("The Belfry stands in",), ())
    assert mill.paraphrases == ("One visits The Old Mill in",)
    assert beside(mara) == (
        ("It snows. Mara Lind performs on the", "Mara Lind, playing the"),
        (("Tom Reed plays the", "oboe"), ("Ada Voss plays the", "cello")),
        (rl.FollowUp("The family of Mara Lind's instrument is", ("strings",), "portability"),),
    )
    assert (hill.case_id, *beside(hill)) == ("c9", (), (), ())
    assert hill.request.target_true == "Leo Marsh"
    assert {record.generation_prompts for record in found} == {()}


def test_know_edits_blocks():
    found = read("knowedit")
    assert beside(found[0]) == (
        ("Nora Quill works as a", "By trade Nora Quill is a"),
        # A prompt whose answer is the new one tells nothing.
        (
            ("The gender of Nora Quill is", "female"),
            ("The occupation of Nora Quill, which is not pilot, is", "baker"),
        ),
        (
            rl.FollowUp("Nora Quill works in a", ("cockpit", "plane", "aircraft"), "Reasoning"),
            rl.FollowUp("Does Nora Quill fly?", ("yes",), "Logical_Generalization"),
            rl.FollowUp("The occupation of N. Quill is", ("pilot",), "Subject_Aliasing"),
        ),
    )
    assert beside(found[1]) == (
        ("Port Hale belongs to",),
        (("The harbour of Port Hale is", "deep"),),
        (
            rl.FollowUp("The capital of Port Hale's country is", ("Nor",), "Reasoning"),
            rl.FollowUp("The king of Port Hale's country is", ("Olaf", "Olaf II"), "Reasoning"),
        ),
    )
    said = "is missing; expected the answer that was true, which the new one is held to"
    assert found.rejected == (Rejected(2, "ground_truth", said),)


def test_mquakes_cases_of_one_rewrite():
    found = read("mquake")
    first, other = found
    assert (first.number, first.case_id, first.relation) == (0, 1, "P27")
    assert first.request == rl.EditRequest("{} is a citizen of", "Ivo Brandt", "Norland", "Sudland")
    questions = kept("mquake")[0]["questions"]
    expected = tuple(rl.FollowUp(question, ("Nor", "Nor City", "City of Nor"), "multi-hop") for question in questions)
    assert beside(first) == (("What is the country of citizenship of Ivo Brandt?",), (), expected)
    assert beside(other) == ((), (), (rl.FollowUp("Who rules the country of Eva Stern?", ("Olaf",), "multi-hop"),))
    assert [str(rejected) for rejected in found.rejected] == [
        "record 1: requested_rewrite is a list of 2 rewrites; expected one: its questions follow from all of them at "
        "once, and a record edits one fact"
    ]


def test_ripple_edits():
    found = read("rippleedits")
    ivo, book = found
    assert (ivo.number, ivo.case_id, ivo.relation) == (0, 0, "COUNTRY_OF_CITIZENSHIP")
    assert ivo.request == rl.EditRequest(
        "The name of the country of citizenship of {} is", "Ivo Brandt", "Norland", "Sudland"
    )
    assert beside(ivo) == (
        (),
        (
            ("The name of the mother of Ivo Brandt is", "Ada Brandt"),
            ("The name of the country of citizenship of Ivo Brandt, which is not Norland, is", "Sudland"),
        ),
        (
            # A single letter is no answer there, and a digit is one.
            rl.FollowUp("The mother tongue of Ivo Brandt is", ("Norrish", "Old Norrish"), "Logical_Generalization"),
            rl.FollowUp(
                "The name of the country of citizenship of I. Brandt is",
                ("Norland", "Kingdom of Norland"),
                "Subject_Aliasing",
            ),
            rl.FollowUp(
                "The name of the capital city of the country of citizenship of Ivo Brandt is",
                ("Nor", "City of Nor"),
                "Compositionality_I",
            ),
            rl.FollowUp(
                "The number of kings of the country of citizenship of Ivo Brandt is", ("2", "II"), "Compositionality_I"
            ),
        ),
    )
    # What is said of the same book elsewhere tells where its name ends; one full stop is the sentence's.
    assert book.request == rl.EditRequest(
        "The name of the author of {} is", "What is is Not", "U.S. Grey Jr.", "Ida Moss"
    )
    assert [str(rejected) for rejected in found.rejected] == [
        "record 2: edit.prompt may be about 'Love' or 'Love is Law' or 'Love is Law is Law'; the subject cannot be "
        "told from 'The name of the author of Love is Law is Law is Ann Ray.'",
        "record 3: edit.original_fact is missing; expected an object with the fact that was true",
    ]


@pytest.mark.parametrize(
    ("relation", "sentence", "prompt"),
    [
        ("FOLLOWS", "Mars Day follows {}.", "{} follows"),
        ("FOLLOWED_BY", "Mars Day is followed by {}.", "{} is followed by"),
        ("IS_ALIVE", "Is Mars Day still alive? {}.", "Is {} still alive?"),
        ("NUMBER_OF_CHILDREN", "The number of children Mars Day has is {}.", "The number of children {} has is"),
        ("SIBLING", "The names of the siblings of Mars Day are {}.", "The names of the siblings of {} are"),
        ("CURRENCY", "The name of the currency in Mars Day is {}.", "The name of the currency in {} is"),
        ("CAPITAL_OF", "The name of the country which Mars Day is the capital of is {}.", None),
    ],
)
def test_sentences_of_ripple_edits(tmp_path, relation, sentence, prompt):
    edit = {"prompt": sentence.format("a b"), "relation": relation, "previous_fact": {"prompt": sentence.format("7")}}
    (record,) = rl.read_counterfact(write(tmp_path, [{"edit": edit}]))
    expected = sentence.removesuffix(" {}.").replace("Mars Day", "{}") if prompt is None else prompt
    assert record.request == rl.EditRequest(expected, "Mars Day", "a b", "7")


def test_multi_counterfact_is_read_as_counterfact(tmp_path):
    records = kept("multi_counterfact")
    plain = [{k: v for k, v in record.items() if k not in ("pararel_idx", "attribute_prompts")} for record in records]
    found = rl.read_counterfact(write(tmp_path, plain))
    assert tuple(found) == tuple(read("multi_counterfact"))
    assert found.passed_over == {}


def test_easy_edits_and_know_edits_zsre():
    river, founder = read("easyedit_zsre")
    assert (river.number, river.case_id, founder.case_id) == (0, 3, 1)
    assert river.request == rl.EditRequest("Which river runs through {}?", "Alderton", "the Wend", "the Isk")
    assert (river.rephrase, river.unrelated, river.unrelated_answer) == (
        "Alderton lies on which river?",
        "nq question: who painted the blue door?",
        "Rosa Finch",
    )
    assert river.follows == (
        rl.FollowUp("The river of Alderton ends in", ("the North Sea",), "portability"),
        rl.FollowUp("Where does the river of Alderton rise?", ("Mount Cor", "Cor"), "portability"),
    )
    # What is no question gets no question mark.
    assert (founder.unrelated, founder.unrelated_answer, founder.follows) == ("The sky over Perth is", "blue", ())
    moth, town = read("knowedit_zsre")
    assert (moth.unrelated, moth.unrelated_answer) == ("The rank of Epola is", "genus")
    assert moth.follows == (rl.FollowUp("Do Epola have wings like a moth?", ("yes",), "Reasoning"),)
    assert (town.rephrase, town.unrelated) == ("Say what Ferro is:", "nq question: is snow white?")
    assert town.request.target_true is None


@pytest.mark.parametrize("name", EASY_EDIT)
def test_requests_are_those_that_read_requests_gives(name):
    requests = rl.read_requests(FILES / f"{name}.json")
    for record in read(name):
        assert record.request == requests[record.number]
        assert record.request.as_dict() == requests[record.number].as_dict()


def test_forms_may_be_mixed(tmp_path):
    mixed = [kept("easyedit_counterfact")[0], kept("mquake")[0], kept("easyedit_counterfact")[1], kept("mquake")[2]]
    found = rl.read_counterfact(write(tmp_path, mixed))
    assert found.form == "EasyEdit's CounterFact and MQuAKE"
    assert [record.request.subject for record in found] == ["The Old Mill", "Ivo Brandt", "Mara Lind", "Eva Stern"]
    assert rl.RecordSet((), (), "given").form == ""
    built_in = rl.builtin_counterfact()
    assert (built_in.form, built_in.passed_over) == ("CounterFact", {"attribute_prompts": 75, "pararel_idx": 75})


# --- how files are kept ---------------------------------------------------------------------------------------------


def _variants(records):
    plain = json.dumps(records, ensure_ascii=False, indent=1)
    lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    return {
        "packed.json": gzip.compress(plain.encode()),
        "packed.json.gz": gzip.compress(plain.encode()),
        "packed": gzip.compress(b"\xef\xbb\xbf" + lines.encode()),
        "LINES.JSONL.GZ": gzip.compress(lines.encode()) + gzip.compress(b"\n"),
        "not-packed.json.gz": plain,
        "mark.json": "\ufeff" + plain,
        "ends.json": "\ufeff" + plain.replace("\n", "\r\n"),
        "lines.json": lines,
        "lines.jsonl": "\ufeff" + lines.replace("\n", "\r\n\r\n"),
        "old-ends.jsonl": lines.replace("\n", "\r"),
        "list.jsonl": plain,
        **{f"{field}.json": {field: records, "version": 1} for field in ("requests", "records", "data")},
    }


@pytest.mark.parametrize("name", ALL)
def test_files_packed_marked_and_in_lines(tmp_path, name):
    expected = read(name)
    for variant, content in _variants(kept(name)).items():
        found = read(name, write(tmp_path, content, variant))
        assert (tuple(found), found.rejected) == (tuple(expected), expected.rejected), variant
        assert (found.form, found.passed_over) == (expected.form, expected.passed_over), variant
        assert found.digest == expected.digest, variant


@pytest.mark.parametrize("name", ["easyedit_counterfact", "multi_counterfact"])
def test_requests_packed_marked_and_in_lines(tmp_path, name):
    expected = rl.read_requests(FILES / f"{name}.json")
    for variant, content in _variants(kept(name)).items():
        assert rl.read_requests(write(tmp_path, content, variant)) == expected, variant


def test_a_packed_table_of_requests(tmp_path):
    packed = gzip.compress("\ufeffprompt;subject;target\r\n{} is in;Ivo;Nor\r\n".encode())
    assert rl.read_requests(write(tmp_path, packed, "table.csv.gz")) == [rl.EditRequest("{} is in", "Ivo", "Nor")]


@pytest.mark.parametrize("name", ALL)
def test_a_file_of_one_record(tmp_path, name):
    one = kept(name)[0]
    for variant in ("one.json", "one.jsonl"):
        assert tuple(read(name, write(tmp_path, one, variant))) == (read(name)[0],)


@pytest.mark.parametrize("reader", [rl.read_counterfact, rl.read_requests])
def test_packed_files_that_are_damaged(tmp_path, reader):
    packed = gzip.compress(json.dumps(kept("easyedit_counterfact")).encode())
    for damaged in (packed[:-20], packed[:12], b"\x1f\x8bno gzip", packed[:40] + b"\xff\xff\xff" + packed[43:]):
        path = write(tmp_path, damaged)
        said = refused(ArtefactError, reader, path)
        assert said.startswith(f"{str(path)!r} is packed with gzip, and cut short or damaged: ")
    path = write(tmp_path, gzip.compress(b"caf\xe9"))
    assert refused(ArtefactError, reader, path) == (
        f"{str(path)!r} is not in UTF-8 (unexpected end of data); save it in UTF-8"
    )


def test_a_data_set_in_a_folder(tmp_path):
    # The package fills up fields that a record lacks, in blocks as well.
    write(tmp_path, "".join(json.dumps(record) + "\n" for record in kept("mquake")[::2]), "train.jsonl")
    found = rl.read_counterfact(f"hub:{tmp_path}")
    expected = read("mquake")
    assert [dataclasses.replace(record, number=0) for record in found] == [
        dataclasses.replace(record, number=0) for record in expected
    ]


# --- what breaks a form ---------------------------------------------------------------------------------------------

QUERY = "Relation_Specificity[0].test_queries[0]"
OLD = "edit.original_fact.prompt"
ABOUT = "The name of the country of citizenship of"
EACH = "is str; expected a list of 2, an answer for each prompt"
ONE = "expected one: its questions follow from all of them at once, and a record edits one fact"
UNRELATED = "is missing; expected an unrelated question with its answer"
BREAKS = {
    "easyedit_counterfact": [
        ("ground_truth", ..., "is missing; expected the answer that was true, which the new one is held to"),
        ("ground_truth", [""], "is missing; expected the answer that was true, which the new one is held to"),
        ("ground_truth", 7, "is int; expected a text"),
        ("target_new", None, "is missing; expected a text"),
        ("subject", "Nobody", None),
        ("case_id", 1.5, "is float; expected a whole number or a text"),
        ("rephrase_prompt", 3, "is int; expected a text"),
        ("rephrase_prompt", ["x", 3], ("rephrase_prompt[1]", "is int; expected a text")),
        ("locality_prompt", {"a": 1}, "is dict; expected a text"),
        ("locality_ground_truth", 3, "is int; expected a text"),
        ("locality_prompt", ["x", "y"], ("locality_ground_truth", EACH)),
        ("answer_joined", "x", "is 'x'; expected '' or white space"),
    ],
    "knowedit": [
        ("portability", "x", "is str; expected an object with lists of prompts and answers"),
        ("locality", [], "is list; expected an object with lists of prompts and answers"),
        ("portability.Reasoning", "x", "is str; expected an object with prompt and ground_truth"),
        ("portability.Reasoning[0]", "x", "is str; expected an object with prompt and ground_truth"),
        ("portability.Reasoning[0].prompt", 3, "is int; expected a text"),
        (
            "portability.Reasoning[0].ground_truth",
            [["x"], [3]],
            ("portability.Reasoning[0].ground_truth[1][0]", "is int; expected a text"),
        ),
        ("locality.Forgetfulness[0].ground_truth", {"a": "b"}, "is dict; expected a text"),
        ("locality.Forgetfulness[0].prompt", ["x", "y"], ("locality.Forgetfulness[0].ground_truth", EACH)),
        ("portability.Reasoning[0].prompt", "\ud800", "holds half a character (a lone surrogate); expected a text"),
    ],
    "mquake": [
        ("requested_rewrite", [], f"is a list of 0 rewrites; {ONE}"),
        ("requested_rewrite[0]", "x", "is str; expected an object"),
        ("requested_rewrite[0].target_new", {}, ("requested_rewrite[0].target_new.str", "is missing; expected a text")),
        ("requested_rewrite[0].prompt", "x", None),
        ("requested_rewrite[0].question", 3, "is int; expected a text"),
        ("questions", ..., "is missing; expected a list of texts"),
        ("questions", [], "is an empty list; expected a text at least"),
        ("questions[1]", "", "is empty; expected a text"),
        ("new_answer", ..., "is missing; expected a text"),
        ("new_answer_alias[0]", 3, "is int; expected a text"),
        ("case_id", [], "is list; expected a whole number or a text"),
    ],
    "rippleedits": [
        ("edit", "x", "is str; expected an object"),
        ("edit.relation", "LIKES", "is 'LIKES'; expected one of RippleEdits, whose sentence is known"),
        ("edit.relation", 3, "is int; expected a text"),
        (
            "edit.prompt",
            "Ivo Brandt is Norland.",
            f"is 'Ivo Brandt is Norland.'; expected a sentence '{ABOUT} <subject> is' … '.'",
        ),
        (
            "edit.prompt",
            f"{ABOUT} Eva is Norland.",
            f"is about another subject than original_fact; the subject cannot be told from '{ABOUT} Eva is Norland.'",
        ),
        ("edit.original_fact", 3, "is int; expected an object with the fact that was true"),
        (OLD, f"{ABOUT} Ivo Brandt is .", "names no answer; expected the one that was true"),
        (OLD, f"{ABOUT} Ivo Brandt is Norland.", ("edit.prompt", None)),
        ("Relation_Specificity", "x", "is str; expected a list of tests"),
        ("Relation_Specificity[0]", 3, "is int; expected an object"),
        ("Relation_Specificity[0].test_queries", ..., "is missing; expected a list of queries"),
        (QUERY, "x", "is str; expected an object"),
        (f"{QUERY}.prompt", None, "is missing; expected a text"),
        (f"{QUERY}.answers", "x", "is str; expected a list of answers"),
        (f"{QUERY}.answers[0]", "x", "is str; expected an object with value"),
        (f"{QUERY}.answers[0].value", 3, "is int; expected a text"),
        (f"{QUERY}.answers[0].aliases", ["x", 3], (f"{QUERY}.answers[0].aliases[1]", "is int; expected a text")),
    ],
    "easyedit_zsre": [
        ("rephrase_prompt", ..., "is missing; expected a text"),
        ("locality_prompt", "", UNRELATED),
        ("locality_ground_truth", ..., ("locality_prompt", UNRELATED)),
        ("target_new", ["x", "y"], "is a list of 2 targets; expected one text"),
        ("portability_prompt", 3, "is int; expected a text"),
        ("portability_ground_truth", ["x"], "is a list of 1; expected a list of 2, an answer for each prompt"),
    ],
}
SEVERAL = [(name, *broken) for name, several in BREAKS.items() for broken in several]


@pytest.mark.parametrize(("name", "path", "value", "said"), SEVERAL, ids=[f"{n}-{p}" for n, p, _, _ in SEVERAL])
def test_a_record_that_breaks_its_form_is_named(tmp_path, name, path, value, said):
    good = kept(name)[0]
    found = read(name, write(tmp_path, [good, changed(good, path, value), good]))
    assert [record.number for record in found] == [0, 2]
    (rejected,) = found.rejected
    field, problem = said if isinstance(said, tuple) else (path, said)
    assert rejected.number == 1
    assert rejected.field == ("prompt" if (name, path) == ("easyedit_counterfact", "subject") else field)
    if problem is None:
        assert rejected.problem.startswith("makes no request: ")
    else:
        assert rejected.problem == problem


def test_a_know_edit_record_without_a_prompt(tmp_path):
    biography = {"text": "A passage.", "concept": "it", "labels": "more", "locality": {"Relation_Specificity": []}}
    found = rl.read_counterfact(write(tmp_path, [kept("knowedit")[0], biography]))
    assert [str(rejected) for rejected in found.rejected] == ["record 1: prompt is missing; expected a text"]


# --- records of one's own -------------------------------------------------------------------------------------------


def test_what_follows_changes_the_digest_and_nothing_else_does():
    plain, whole = read("multi_counterfact"), read("knowedit")
    assert plain.digest == dataclasses.replace(plain, form="", passed_over={}).digest
    bare = [dataclasses.replace(record, follows=(), neighbour_answers=()) for record in whole]
    without = dataclasses.replace(whole, records=tuple(bare))
    following = dataclasses.replace(
        whole, records=tuple(dataclasses.replace(record, follows=whole[0].follows) for record in bare)
    )
    assert len({whole.digest, without.digest, following.digest}) == 3


def test_follow_ups_and_neighbours_of_one_s_own():
    record = read("multi_counterfact")[0]
    made = dataclasses.replace(record, follows=[rl.FollowUp("x", ["y", "z"], "a")], neighbour_answers=["p", "q"])
    assert (made.follows, made.neighbour_answers) == ((rl.FollowUp("x", ("y", "z"), "a"),), ("p", "q"))
    assert {made: 1}[dataclasses.replace(made)] == 1
    said = refused(SettingError, dataclasses.replace, record, neighbour_answers=["p"])
    assert said == (
        "neighbour_answers has 1 texts for 2 neighbours; expected one for each, or none where target_true answers them "
        "all"
    )
    written = "FollowUp('The tower is in the country of', answers=('Italy',), about='Reasoning')"
    for given in (record, read("easyedit_zsre")[0]):
        said = refused(SettingError, dataclasses.replace, given, follows=["x"])
        assert said == f"follows[0] is 'x'; expected a FollowUp: write {written}"
        assert (
            refused(SettingError, dataclasses.replace, given, follows=3) == "follows is 3; expected a list of FollowUp"
        )
    assert refused(SettingError, rl.FollowUp, "x", (), "a") == (
        "answers is empty; expected a text at least that answers 'x'"
    )
    assert refused(SettingError, rl.FollowUp, "x", "y", "a") == "answers is 'y'; expected a list of texts"
    assert refused(SettingError, rl.FollowUp, 3, ["y"], "a") == "prompt is 3; expected a text"
