"""The edits of RippleEdits: whole sentences, of which the relation says where the subject and the answer stand.

Each relation has one sentence, which is published (Cohen et al. 2023, edenbiran/RippleEdits); the subject's name is no
field. It is what stands in the sentence's place for it. Where the words behind that place stand in the name or in an
answer as well, the old fact's sentence, and prompts that hold nothing but the same subject, have to leave one reading.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rome_lens.data.fields import FieldError, member, request_from, text_in
from rome_lens.facts import EditRequest

EDIT: Final = "edit"
"""The field that holds the edit."""

# What was true before, as the files call it, and as their description does.
_OLD = ("original_fact", "previous_fact")
_PLACE = "<subject>"
_NAME_OF = {
    "MOTHER": "mother of", "FATHER": "father of", "BROTHER": "brother of", "SISTER": "sister of",
    "SPOUSE": "spouse of", "UNCLE": "uncle of", "AUNT": "aunt of", "CHILD": "child of",
    "COUNTRY_OF_CITIZENSHIP": "country of citizenship of", "POSITION_HELD": "position held by",
    "STEPFATHER": "stepfather of", "STEPMOTHER": "stepmother of", "ALMA_MATER": "alma mater of",
    "EMPLOYER": "employer of", "FIELD_OF_WORK": "field of work of", "HEAD_OF_GOVERNMENT": "head of government of",
    "HEAD_OF_STATE": "head of state of", "CAPITAL": "capital city of", "CURRENCY": "currency in",
    "ANTHEM": "anthem of", "LIKELY_ANTHEM": "anthem that is most likely to be performed in", "AUTHOR": "author of",
    "EDITOR": "editor of", "DIRECTOR": "director of", "SCREENWRITER": "screenwriter of", "ARCHITECT": "architect of",
    "COMPOSER": "composer of", "FOUNDER": "founder of",
}  # fmt: skip
_SENTENCES = {
    **{relation: f"The name of the {words} {_PLACE} is" for relation, words in _NAME_OF.items()},
    "SIBLING": f"The names of the siblings of {_PLACE} are",
    "CAST_MEMBER": f"The names of the cast members of {_PLACE} are",
    "NUMBER_OF_CHILDREN": f"The number of children {_PLACE} has is",
    "SEX_OR_GENDER": f"The gender of {_PLACE} is",
    "PLACE_OF_BIRTH": f"The place of birth of {_PLACE} is",
    "PLACE_OF_DEATH": f"The place of death of {_PLACE} is",
    "PLACE_OF_BURIAL": f"The place of burial of {_PLACE} is",
    "COUNTRY": f"The name of the country which {_PLACE} is associated with is",
    "MEMBER_OF_SPORTS_TEAM": f"The name of the sports team which {_PLACE} is a member of is",
    "SEXUAL_ORIENTATION": f"The sexual orientation of {_PLACE} is",
    "OCCUPATION": f"The occupation of {_PLACE} is",
    "LEAGUE": f"The name of the league which {_PLACE} plays in is",
    "NATIVE_LANGUAGE": f"The mother tongue of {_PLACE} is",
    "AWARD_RECEIVED": f"The name of the award {_PLACE} won is",
    "FOLLOWS": f"{_PLACE} follows",
    "FOLLOWED_BY": f"{_PLACE} is followed by",
    "ETHNIC_GROUP": f"The name of the ethnic group which {_PLACE} is associated with is",
    "RELIGION": f"The name of the religion which {_PLACE} is associated with is",
    "EYE_COLOR": f"The eye color of {_PLACE} is",
    "DATE_OF_BIRTH": f"The date of birth of {_PLACE} is",
    "DATE_OF_DEATH": f"The date of death of {_PLACE} is",
    "IS_ALIVE": f"Is {_PLACE} still alive?",
    "CONTINENT": f"The name of the continent which {_PLACE} is part of is",
    "OFFICIAL_LANGUAGE": f"The official language of {_PLACE} is",
    "CAPITAL_OF": f"The name of the country which {_PLACE} is the capital of is",
}


def ripple_request(record: Mapping[str, Any]) -> tuple[str, EditRequest]:
    """The relation and the request of a record.

    Raises:
        FieldError: the relation is unknown, a sentence is not the relation's, it cannot be told where the subject ends,
            or there is no old fact.
    """
    edit, inside = member(record, EDIT, "", Mapping, "an object"), f"{EDIT}."
    relation, sentence = text_in(edit, "relation", inside), text_in(edit, "prompt", inside)
    if relation not in _SENTENCES:
        raise FieldError(f"{inside}relation", f"is {relation!r}; expected one of RippleEdits, whose sentence is known")
    old = next((name for name in _OLD if edit.get(name) is not None), _OLD[0])
    fact = member(edit, old, inside, Mapping, "an object with the fact that was true")
    before = text_in(fact, "prompt", f"{inside}{old}.")
    readings = dict(_readings(_SENTENCES[relation], sentence))
    if not readings:
        raise FieldError(f"{inside}prompt", f"is {sentence!r}; expected a sentence {_SENTENCES[relation]!r} … '.'")
    earlier = dict(_readings(_SENTENCES[relation], before))
    named = _named_alone(record, edit)
    fitting = [s for s in readings if s in earlier and (s in named or not named & readings.keys())]
    if len(fitting) != 1:
        several = (
            f"may be about {' or '.join(map(repr, fitting))}" if fitting else f"is about another subject than {old}"
        )
        raise FieldError(f"{inside}prompt", f"{several}; the subject cannot be told from {sentence!r}")
    (subject,) = fitting
    if not earlier[subject].strip():
        raise FieldError(f"{inside}{old}.prompt", "names no answer; expected the one that was true")
    prompt = _SENTENCES[relation].replace(_PLACE, "{}")
    asked = (prompt, subject, readings[subject], earlier[subject])
    return relation, request_from(*asked, inside=inside, target="prompt")


def _readings(sentence: str, text: str) -> Iterator[tuple[str, str]]:
    """Every subject that a text may be about as this sentence with an answer and a full stop, with its answer."""
    before, behind = sentence.split(_PLACE)
    behind += " "
    if not text.startswith(before) or not text.endswith("."):
        return
    at = text.find(behind, len(before) + 1)
    while at >= 0:
        yield text[len(before) : at], text[at + len(behind) : -1]
        at = text.find(behind, at + 1)


def _named_alone(record: Mapping[str, Any], edit: Mapping[str, Any]) -> set[str]:
    """The names that prompts about the same subject give it, in which nothing stands but a relation's sentence."""
    tests = [test for block in record.values() if isinstance(block, list) for test in block]
    names = set()
    for query in (query for test in tests for query in _queries(test)):
        relation, prompt = query.get("relation"), query.get("prompt")
        own = query.get("subject_id") == edit.get("subject_id") is not None and query.get("phrase") is None
        if own and isinstance(relation, str) and relation in _SENTENCES and isinstance(prompt, str):
            before, behind = _SENTENCES[relation].split(_PLACE)
            if prompt.startswith(before) and prompt.endswith(behind):
                names.add(prompt[len(before) : len(prompt) - len(behind)])
    return names


def _queries(test: Any) -> Iterator[Mapping[str, Any]]:
    several = [test.get(name) for name in ("test_queries", "condition_queries")] if isinstance(test, Mapping) else []
    for queries in several:
        if isinstance(queries, list):
            yield from (query for query in queries if isinstance(query, Mapping))
