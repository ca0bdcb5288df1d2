"""Subject spans, and where the answer begins, with tokenizers of every kind that models come with."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from refused import refused
from tokenizer_kinds import (
    ALL_KINDS,
    EVERY_KIND,
    PROMPT,
    byte_level,
    llama_like,
    sentence_piece,
    single_bytes,
    word_level,
)
from tokenizers import processors

from rome_lens.errors import AnswerError, ModelError, PromptError, RomeLensError, SettingError, SubjectError
from rome_lens.subjects import occurrences
from rome_lens.tokens import encode, tokenise, tokenise_span


def _span(tokenizer, prompt, subject, **options):
    return tokenise(tokenizer, prompt, subject, **options).subject_span


@pytest.mark.parametrize(
    ("subject", "span"),
    [("The Eiffel Tower", (0, 3)), ("The", (0, 1)), ("Tower is", (2, 4)), ("of", (7, 8)), (PROMPT, (0, 8))],
)
@pytest.mark.parametrize("tokenizer", [word_level, sentence_piece], ids=lambda kind: kind.__name__)
def test_subject_at_the_start_in_the_middle_and_at_the_end(tokenizer, subject, span):
    assert _span(tokenizer(), PROMPT, subject) == span


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_a_word_is_found_with_its_space_in_the_token_or_not(trim_offsets):
    text = tokenise(byte_level(trim_offsets=trim_offsets), PROMPT, "the city")
    first, end = text.subject_span
    assert "".join(text.tokens[first:end]) == " the city"


# Characters of several bytes: a token a byte, byte fallback, and unknown neighbours that unigram takes as one piece.
SPANS = {
    single_bytes: (
        "São 東京 😀 is",
        {"São": (0, 4), "ã": (1, 3), "o 東": (3, 8), "東京": (5, 11), "京": (8, 11), "😀": (12, 16)},
    ),
    llama_like: (
        "東 is São",
        {"São": (6, 10), "ã": (7, 9), "is": (4, 5), "is São": (4, 10), "東": (0, 4), "東 is": (0, 5)},
    ),
    sentence_piece: ("東京 is São", {"São": (9, 13), "ã": (10, 12), "東京": (0, 7), "京": (1, 7)}),
}


@pytest.mark.parametrize("kind", SPANS, ids=lambda kind: kind.__name__)
def test_characters_of_several_bytes(kind):
    prompt, spans = SPANS[kind]
    assert {subject: _span(kind(), prompt, subject) for subject in spans} == spans


def test_the_offsets_of_byte_fallback():
    # The ▁ in front of the text stands for no character of it: its offsets are the first character's.
    tokens = llama_like().convert_ids_to_tokens(encode(llama_like(), "東 is São")[0])
    assert tokens == ["▁", "<0xE6>", "<0x9D>", "<0xB1>", "▁is", "▁", "<0x53>", "<0xC3>", "<0xA3>", "<0x6F>"]


def test_white_space_around_the_subject_is_ignored():
    assert _span(word_level(), PROMPT, "  Eiffel Tower\n") == (1, 3)


@pytest.mark.parametrize(
    ("occurrence", "span"), [(1, (1, 2)), (2, (7, 8)), (-1, (7, 8)), (-2, (1, 2))], ids=["1", "2", "-1", "-2"]
)
def test_the_occurrence_that_is_meant(occurrence, span):
    assert _span(word_level(), "The tower of the city is the tower", "tower", occurrence=occurrence) == span


def test_overlapping_occurrences_count():
    assert [_span(single_bytes(), "aaa", "aa", occurrence=n) for n in (1, 2)] == [(0, 2), (1, 3)]


@pytest.mark.parametrize(
    ("occurrence", "times", "subject"), [(3, "2 times", "tower"), (-3, "2 times", "tower"), (2, "1 time", "city")]
)
def test_an_occurrence_that_is_not_there(occurrence, times, subject):
    assert refused(
        SubjectError, _span, word_level(), "The tower of the city is the tower", subject, occurrence=occurrence
    ) == (f"occurrence {occurrence} of the subject {subject!r} was asked for, but the prompt holds it {times}")


def test_occurrences_count_from_one():
    said = refused(SettingError, _span, word_level(), PROMPT, "Tower", occurrence=0)
    assert said == "occurrence is 0; expected 1 for the first occurrence of the subject, -1 for the last"


FORM = "; the same letters are there in another Unicode form (NFC or NFD): copy the subject from the prompt"


@pytest.mark.parametrize(
    ("prompt", "subject", "hint"),
    [
        (PROMPT, "the eiffel tower", "; the prompt writes it 'The Eiffel Tower'"),
        (PROMPT, "Louvre", "; give it letter for letter"),
        ("S\u00e3o is", "Sa\u0303o", FORM),
        ("Sa\u0303o is", "S\u00e3o", FORM),
    ],
    ids=["case", "absent", "NFC prompt", "NFD prompt"],
)
def test_a_subject_that_is_not_in_the_prompt(prompt, subject, hint):
    said = refused(SubjectError, _span, word_level(), prompt, subject)
    assert said == f"the subject {subject!r} is not in the prompt {prompt!r}{hint}"


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.__name__)
def test_bos_shifts_the_span_by_one(kind):
    without, with_bos = (tokenise(kind(), PROMPT, "Eiffel", answer="city", prepend_bos=bos) for bos in (False, True))
    assert with_bos.subject_span == tuple(i + 1 for i in without.subject_span)
    assert with_bos.ids == (kind().bos_token_id, *without.ids)
    assert with_bos.tokens == ("<s>", *without.tokens)
    assert with_bos.n_prompt == without.n_prompt + 1 == len(with_bos.tokens)
    assert (without.bos, with_bos.bos) == ((), (kind().bos_token_id,))
    assert with_bos.answer_ids == without.answer_ids


def test_no_special_token_comes_uninvited():
    tokenizer = word_level.__wrapped__()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <s>", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert tokenizer.decode(tokenizer("The city")["input_ids"]) == "<s> The city <s>"
    assert encode(tokenizer, "The city")[0] == tokenizer.convert_tokens_to_ids(["The", "city"])


def test_bos_where_there_is_none():
    assert refused(SettingError, tokenise, word_level(bos_token=None), PROMPT, "Eiffel", prepend_bos=True) == (
        "prepend_bos is True, but this model's tokenizer has no BOS token; leave prepend_bos off"
    )


class SlowTokenizer:
    is_fast = False


def test_a_tokenizer_without_offsets():
    said = refused(ModelError, tokenise, None, PROMPT, "Eiffel")
    assert said == "the model has no tokenizer; give it one (model.set_tokenizer, or tokenizer= when loading)"
    assert refused(ModelError, tokenise, SlowTokenizer(), PROMPT, "Eiffel") == (
        "the tokenizer SlowTokenizer reports no character offsets; load its fast version "
        "(AutoTokenizer.from_pretrained(..., use_fast=True))"
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty; expected a text that the model continues with the answer"),
        (" \n", "the prompt is empty; expected a text that the model continues with the answer"),
        ("\x01", "the prompt '\\x01' gives no tokens with this model's tokenizer"),
        ("The \udcff city", "'The \\udcff city' holds '\\udcff', which is half a character; write the text in UTF-8"),
    ],
    ids=["empty", "blank", "no tokens", "surrogate"],
)
def test_a_prompt_that_cannot_be_tokenised(prompt, message):
    subject = (prompt.split() or ["x"])[-1]
    assert refused(PromptError, tokenise, word_level(), prompt, subject) == message


@pytest.mark.parametrize(
    ("prompt", "subject", "why"),
    [
        ("The \x01 is", "\x01", "'\\x01' covers no token of the prompt 'The \\x01 is'; choose a longer one"),
        ("The city", " ", "is empty; expected a part of the prompt, such as 'The Eiffel Tower'"),
    ],
)
def test_a_subject_that_is_none(prompt, subject, why):
    assert refused(SubjectError, tokenise, word_level(), prompt, subject) == f"the subject {why}"


@pytest.mark.parametrize(
    ("prompt", "answer", "joined"),
    [
        (PROMPT, "Paris", " Paris"),
        (PROMPT, " Paris", " Paris"),
        (PROMPT, "\nParis", "\nParis"),
        (PROMPT, "Paris \n", " Paris"),
        (PROMPT + " ", "Paris", "Paris"),
        (PROMPT + "\n", "Paris", "Paris"),
        (PROMPT, "東京", " 東京"),
        ("東京は", "日本", "日本"),
        ("東京は", "Paris", " Paris"),
        ("東京は", "1998", "1998"),
        ("It ended in 19", "45", "45"),
        ('It is called "', "Paris", "Paris"),
        ("In the city<s>", "Paris", "Paris"),
        ("とうきょう", "カタカナ", "カタカナ"),
        ("กรุงเทพ", "ไทย", "ไทย"),
    ],
)
def test_the_space_between_prompt_and_answer(prompt, answer, joined):
    tokenizer = single_bytes()
    text = tokenise(tokenizer, prompt, prompt.strip(), answer=answer)
    assert text.answer == joined
    assert text.ids == tuple(tokenizer(prompt + joined, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("joined", ["", " ", "\n", "  "])
def test_what_stands_between_prompt_and_answer_is_what_the_caller_says(joined):
    for answer in ("Paris", " Paris"):
        text = tokenise(single_bytes(), PROMPT, "Eiffel", answer=answer, answer_joined=joined)
        assert single_bytes().decode(text.ids) == PROMPT + joined + answer
        assert text.answer == joined + answer


@pytest.mark.parametrize("kind", [byte_level, sentence_piece, llama_like], ids=lambda kind: kind.__name__)
def test_prompt_and_answer_are_one_tokenisation(kind):
    text = tokenise(kind(), PROMPT, "The Eiffel Tower", answer="Paris in the city")
    assert list(text.ids) == encode(kind(), PROMPT + " Paris in the city")[0]
    assert kind().decode(text.answer_ids) == " Paris in the city"
    assert text.tokens == tokenise(kind(), PROMPT, "The Eiffel Tower").tokens


def test_the_answer_takes_the_space_at_the_end_of_the_prompt():
    # Byte-level tokenizers have the space in the token of the word behind it: left alone it would change the answer.
    for prompt in (PROMPT, PROMPT + " "):
        text = tokenise(byte_level(), prompt, "Eiffel", answer="the city")
        assert list(text.ids) == encode(byte_level(), PROMPT + " the city")[0]
        assert byte_level().decode(text.answer_ids) == " the city"


def test_without_an_answer_there_is_none():
    text = tokenise(word_level(), PROMPT, "Eiffel")
    assert (text.answer, text.answer_ids, text.n_prompt) == ("", (), 8)
    assert text.tokens == tuple(PROMPT.split())


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "'' is empty; expected a word or a name"),
        (" \n", "' \\n' is empty; expected a word or a name"),
        ("\x01", "' \\x01' gives no token of its own with this model's tokenizer"),
        ("Metropolis", "'Metropolis' becomes '<unk>', which is no word to this model; name another answer"),
        ("<s> city", "'<s> city' becomes '<s>', which is no word to this model; name another answer"),
    ],
)
def test_an_answer_that_is_none(answer, why):
    assert refused(AnswerError, tokenise, word_level(), PROMPT, PROMPT, answer=answer) == f"the answer {why}"


@pytest.mark.parametrize("prompt", ["東", "is東"], ids=["only token", "token"])
def test_an_answer_that_shares_its_token_with_the_prompt(prompt):
    assert refused(AnswerError, tokenise, byte_level(), prompt, prompt, answer="京は") == (
        "the answer '京は' shares the token '東京は' with the end of the prompt; end the prompt where a word ends, or "
        "begin the answer with a space"
    )


@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.__name__)
def test_a_span_of_characters_says_which_occurrence_is_meant(kind, prepend_bos):
    prompt, options = "The tower of the city is the tower", {"answer": "of", "prepend_bos": prepend_bos}
    for occurrence, start in ((1, 4), (2, 29)):
        expected = tokenise(kind(), prompt, "tower", occurrence=occurrence, **options)
        assert tokenise_span(kind(), prompt, (start, start + 5), **options) == expected


def test_a_span_of_characters_that_no_token_covers():
    said = refused(SubjectError, tokenise_span, word_level(), "The city", (3, 4))
    assert said == "the subject ' ' covers no token of the prompt 'The city'; choose a longer one"


def _chosen(prompt, first, end):
    """The part of a prompt between two characters as a subject, and its first and end, without white space."""
    part = prompt[first:end]
    assume(part.strip())
    start = first + len(part) - len(part.lstrip())
    return start, start + len(part.strip()), part.strip()


def _tokenised_at(tokenizer, prompt, start, subject, **options):
    """By the subject's number, where it has one: inside of a word it has none if it stands elsewhere by itself."""
    places = occurrences(prompt, subject)
    if start in places:
        return tokenise(tokenizer, prompt, subject, occurrence=places.index(start) + 1, **options)
    return tokenise_span(tokenizer, prompt, (start, start + len(subject)), **options)


TEXTS = st.text(st.sampled_from("aeThis  \n.é東京は😀ã\u0301ß"), min_size=1, max_size=30) | st.text(
    min_size=1, max_size=12
)


@settings(deadline=None)
@given(
    prompt=TEXTS, cuts=st.tuples(st.integers(0, 30), st.integers(1, 30)), bos=st.booleans(), trim_offsets=st.booleans()
)
def test_the_span_holds_the_subjects_bytes_and_no_smaller_span_does(prompt, cuts, bos, trim_offsets):
    start, end, subject = _chosen(prompt, cuts[0], cuts[0] + cuts[1])
    tokenizer = byte_level(trim_offsets=trim_offsets)
    text = _tokenised_at(tokenizer, prompt, start, subject, prepend_bos=bos)

    # In a byte-level vocabulary every letter of a token stands for one byte of the text.
    sizes = [len(token) for token in tokenizer.convert_ids_to_tokens(text.ids[bos:])]
    assert sum(sizes) == len(prompt.encode())
    wanted = range(len(prompt[:start].encode()), len(prompt[:end].encode()))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    touching = [i for i, last in enumerate(ends) if last > wanted.start and last - sizes[i] < wanted.stop]
    assert text.subject_span == (bos + touching[0], bos + touching[-1] + 1)


@settings(deadline=None)
@given(prompt=TEXTS, cuts=st.tuples(st.integers(0, 30), st.integers(1, 30)), kind=st.sampled_from(ALL_KINDS[2:4]))
def test_the_span_covers_the_subject_and_its_neighbours_do_not_touch_it(prompt, cuts, kind):
    start, end, subject = _chosen(prompt, cuts[0], cuts[0] + cuts[1])
    first, after = _tokenised_at(kind(), prompt, start, subject).subject_span
    offsets = encode(kind(), prompt)[1]
    covered = {i for a, b in offsets[first:after] for i in range(a, b)}
    assert covered >= set(range(start, end))
    outside = {i for a, b in offsets[:first] + offsets[after:] for i in range(a, b)}
    assert not outside & set(range(start, end))


@settings(deadline=None)
@given(prompt=TEXTS, answer=TEXTS)
def test_prompt_and_answer_in_one_text_or_an_answer_error(prompt, answer):
    assume(prompt.strip())
    tokenizer = byte_level()
    try:
        text = tokenise(tokenizer, prompt, prompt, answer=answer)
    except AnswerError:
        return
    assert list(text.ids) == encode(tokenizer, prompt + text.answer)[0]
    assert text.answer.strip() == answer.strip()
    # The answer's tokens hold all of the answer, and of the prompt at most the white space at its end.
    sizes = [len(token) for token in tokenizer.convert_ids_to_tokens(text.ids)]
    held = (prompt + text.answer).encode()[sum(sizes[: text.n_prompt]) :].decode()
    assert held.endswith(text.answer)
    assert not held[: len(held) - len(text.answer)].strip()


ANSWERS = st.text(st.sampled_from("aeThis  .é東京は1945\"'($-、。ไ"), min_size=1, max_size=8) | st.text(
    min_size=1, max_size=6
)


@settings(deadline=None, max_examples=300)
@given(
    prompt=TEXTS | st.text(st.sampled_from('The 19"(「は：ไท$-/'), min_size=1, max_size=12),
    cuts=st.tuples(st.integers(0, 30), st.integers(1, 30)),
    answer=ANSWERS,
    joined=st.sampled_from([None, None, None, "", " ", "\n"]),
    kind=st.sampled_from(EVERY_KIND),
)
def test_any_prompt_subject_and_answer_are_one_tokenisation_or_refused(prompt, cuts, answer, joined, kind):
    start, end, _ = _chosen(prompt, cuts[0], cuts[0] + cuts[1])
    tokenizer = kind()
    try:
        text = tokenise_span(tokenizer, prompt, (start, end), answer=answer, answer_joined=joined)
    except RomeLensError:
        return
    assert text.answer.strip() == answer.strip()
    assert joined is None or text.answer == joined + answer.rstrip()
    whole = tokenizer(prompt + text.answer, add_special_tokens=False, return_offsets_mapping=True)
    assert list(text.ids) == whole.input_ids
    first = len(prompt) + len(text.answer) - len(text.answer.lstrip())
    for index, (a, b) in enumerate(whole.offset_mapping):
        visible = (prompt + text.answer)[a:b].strip()
        if visible and index < text.n_prompt:
            assert a < len(prompt), "the prompt's tokens hold letters of the answer's alone"
        elif visible:
            assert b > first, "the answer's tokens hold letters of the prompt's alone"
