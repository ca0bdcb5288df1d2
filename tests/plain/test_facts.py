import json

import pytest
from refused import refused

from rome_lens.data import builtin_facts
from rome_lens.errors import AnswerError, ArtefactError, PromptError, SubjectError
from rome_lens.facts import EditRequest, Fact, read_known_facts


def _read(folder, records, encoding="utf-8"):
    """Facts of a file that holds this."""
    (folder / "known.json").write_text(json.dumps(records), encoding)
    return read_known_facts(folder / "known.json")


def test_a_fact_fills_its_subject_in():
    fact = Fact("{} is located in the city of", "The Eiffel Tower", "Paris")
    assert fact.text == "The Eiffel Tower is located in the city of"
    assert fact.subject_span == (0, 16)


def test_the_span_of_a_subject_in_the_middle():
    fact = Fact("The capital of {} is", "Côte d'Ivoire", "Yamoussoukro")
    first, end = fact.subject_span
    assert fact.text[first:end] == "Côte d'Ivoire"


@pytest.mark.parametrize("subject", ["{}", "{0}", "{x!r}", "a {} b", "%s", "\\1", "{{}}"])
def test_braces_in_a_subject_are_text(subject):
    fact = Fact("The word {} is spelled", subject, "so")
    assert fact.text == "The word " + subject + " is spelled"
    first, end = fact.subject_span
    assert fact.text[first:end] == subject


def test_other_braces_in_a_prompt_are_text():
    assert Fact("{0} {x} %s says {}", "a", "b").text == "{0} {x} %s says a"


@pytest.mark.parametrize(
    ("fact", "error", "message"),
    [
        (("Paris is in", "Paris", "France"), PromptError, "'Paris is in' has 0 places for the subject"),
        (("{} and {} are", "Paris", "cities"), PromptError, "has 2 places for the subject; write {} once"),
        (("", "Paris", "France"), PromptError, "'' has 0 places"),
        (("{} is in", "", "France"), SubjectError, "the subject of the prompt '{} is in' is empty"),
        (("{} is in", " \n", "France"), SubjectError, "name who or what it is about"),
        (("{} is in", "Paris", "  "), AnswerError, "the answer to 'Paris is in' is empty"),
    ],
)
def test_what_is_no_fact_is_told(fact, error, message):
    assert message in refused(error, Fact, *fact)


def test_a_request_fills_its_subject_in():
    request = EditRequest("The capital of {} is", subject="Côte d'Ivoire", target_new="Rome")
    assert request.text == "The capital of Côte d'Ivoire is"
    first, end = request.subject_span
    assert request.text[first:end] == "Côte d'Ivoire"
    assert request.target_true is None
    assert EditRequest("{} is", "a {} b", "{}", "%s").text == "a {} b is"


def test_requests_are_equal_when_they_ask_for_the_same():
    request = EditRequest("{} is in", "Paris", "Rome", target_true="France")
    assert request == EditRequest("{} is in", "Paris", "Rome", "France")
    assert len({request, EditRequest("{} is in", "Paris", "Rome")}) == 2


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("Paris is in", "has 0 places for the subject; write {} once, where it stands"),
        ("{} {}", "has 2 places for the subject; write {} once, where it stands, and {{}} where it is text"),
    ],
)
def test_a_request_without_the_one_place_is_told(prompt, said):
    assert refused(PromptError, EditRequest, prompt, "Paris", "Rome") == f"the prompt {prompt!r} {said}"


def test_a_request_without_a_subject_is_told():
    said = refused(SubjectError, EditRequest, "{} is in", "\n", "Rome")
    assert said == "the subject of the prompt '{} is in' is empty; name who or what it is about"


@pytest.mark.parametrize("targets", [["  "], ["Rome", ""], ["Rome", " \n"]])
def test_a_request_with_an_empty_target_is_told(targets):
    said = refused(AnswerError, EditRequest, "{} is in", "Paris", *targets)
    assert said == "a target of 'Paris is in' is empty; give the text that shall complete it"


@pytest.mark.parametrize("targets", [["Rome", "Rome"], [" Rome", "Rome "]])
def test_a_request_for_the_old_answer_is_told(targets):
    assert refused(AnswerError, EditRequest, "{} is in", "Paris", *targets) == (
        "target_new and target_true of 'Paris is in' are both 'Rome'; an edit needs a target that is not the old answer"
    )


def test_the_builtin_facts_are_150_and_begin_with_the_eiffel_tower():
    facts = builtin_facts()
    assert len(facts) == 150
    assert facts[0] == Fact("{} is located in the city of", "The Eiffel Tower", "Paris")


def test_the_builtin_facts_are_distinct():
    facts = builtin_facts()
    assert len({fact.text for fact in facts}) == len(facts)
    assert len({fact.subject for fact in facts}) > 0.9 * len(facts)


def test_the_builtin_prompts_end_right_before_their_answers():
    for fact in builtin_facts():
        assert fact.text == fact.text.strip(), fact
        assert fact.text[-1].isalpha(), fact
        assert fact.answer == fact.answer.strip(), fact
        assert fact.answer.casefold() not in fact.text.casefold(), fact  # it would be no recall


def test_the_builtin_subjects_are_of_many_lengths_and_places():
    facts = builtin_facts()
    assert {len(fact.subject.split()) for fact in facts} >= {1, 2, 3, 4, 5, 6}
    assert 30 < sum(fact.subject_span[0] > 0 for fact in facts) < 120
    assert all(fact.text.count(fact.subject) == 1 for fact in facts)


def test_known_facts_are_read_with_the_subject_or_its_place_in_the_prompt(tmp_path):
    # The form of the published file; the records are ours.
    whole = {
        "known_id": 0,
        "subject": "Lake Geneva",
        "attribute": "Europe",
        "template": "{} is part of the continent of",
        "prediction": " Europe. It is",
        "prompt": "Lake Geneva is part of the continent of",
        "relation_id": "P30",
    }
    placed = {"subject": "Chile", "attribute": "Spanish", "prompt": "In {}, people speak"}
    said = {"subject": "Chile", "attribute": "Santiago", "prompt": "The capital of Chile, in Chile, is"}
    assert _read(tmp_path, [whole, placed, said]) == [
        Fact("{} is part of the continent of", "Lake Geneva", "Europe"),
        Fact("In {}, people speak", "Chile", "Spanish"),
        Fact("The capital of {}, in Chile, is", "Chile", "Santiago"),
    ]


def test_a_known_subject_with_braces_is_found_as_text(tmp_path):
    (fact,) = _read(tmp_path, [{"subject": "a {} b", "attribute": "c", "prompt": "say a {} b and"}])
    assert fact.prompt == "say {} and"
    assert fact.text == "say a {} b and"


@pytest.mark.parametrize(
    ("subject", "prompt", "text", "at"),
    [
        ("Python", "In Python, an empty dict is written {} and is", "In Python, an empty dict is written {} and is", 3),
        # Inside of another word it is there by chance.
        ("It", "{} was filmed in the Italian city of", "It was filmed in the Italian city of", 0),
        ("Rome", "Romeo was born in Rome, in", "Romeo was born in Rome, in", 18),
        ("Rome ", "Romeo was born in {}, in", "Romeo was born in Rome , in", 18),
        ("Chile ", "The capital of Chile is", "The capital of Chile is", 15),
    ],
)
def test_where_the_subject_of_a_known_fact_is(tmp_path, subject, prompt, text, at):
    (fact,) = _read(tmp_path, [{"subject": subject, "attribute": "x", "prompt": prompt}])
    assert (fact.text, fact.subject) == (text, subject.strip())
    assert fact.subject_span == (at, at + len(subject.strip()))


def test_a_file_says_what_stands_between_a_prompt_and_its_answer(tmp_path):
    assert [fact.answer_joined for fact in _read(tmp_path, [{**_GOOD, "answer_joined": ""}, _GOOD])] == ["", None]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    assert len(_read(tmp_path, [_GOOD], "utf-8-sig")) == 1


_GOOD = {"subject": "Chile", "attribute": "Santiago", "prompt": "The capital of Chile is"}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no known facts: expected a JSON list of objects with subject, prompt, attribute"),
        ({"facts": [_GOOD]}, "holds no known facts"),
        ("text", "holds no known facts"),
        ([_GOOD, 3], "record 1 of "),
        ([_GOOD, 3], "is no JSON object"),
        ([_GOOD, _GOOD, {"subject": "Chile", "prompt": "Chile is"}], "has no 'attribute'; expected the texts"),
        ([_GOOD, {**_GOOD, "attribute": 7}], "'attribute' is int; expected a text"),
        ([{**_GOOD, "subject": None}], "'subject' is NoneType; expected a text"),
        ([_GOOD, {**_GOOD, "subject": "Peru"}], "the subject 'Peru' is not in the prompt 'The capital of Chile is'"),
        ([{**_GOOD, "subject": ""}], "record 0 of "),
        ([{**_GOOD, "subject": " "}], "is empty"),
        ([{**_GOOD, "attribute": ""}], "the answer to 'The capital of Chile is' is empty"),
        ([{**_GOOD, "answer_joined": "-"}], "answer_joined is '-'; expected what stands between"),
        ([{**_GOOD, "answer_joined": 1}], "answer_joined is 1; expected what stands between"),
        ([{**_GOOD, "prompt": "{} or {} is"}], "has 2 places for the subject"),
    ],
)
def test_a_wrong_record_is_told_with_its_number(tmp_path, records, message):
    assert message in refused(ArtefactError, _read, tmp_path, records)


def test_a_missing_file_is_told(tmp_path):
    path = tmp_path / "absent.json"
    assert f"there is no file '{path}' to read facts from" in refused(ArtefactError, read_known_facts, path)


def test_a_folder_is_told(tmp_path):
    assert f"cannot read facts from '{tmp_path}': Is a directory" in refused(ArtefactError, read_known_facts, tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"subject,prompt\n1,2"])
def test_what_is_not_json_is_told(tmp_path, content):
    path = tmp_path / "known.json"
    path.write_bytes(content)
    assert "is not JSON, which known facts are kept in" in refused(ArtefactError, read_known_facts, path)
