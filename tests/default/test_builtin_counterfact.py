"""The project's own CounterFact records and texts: their form, and that the default model knows the facts."""

import json
import re
from collections import Counter, defaultdict
from importlib.resources import as_file, files

import pytest
import torch

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.data.texts import read_texts
from rome_lens.tokens import tokenise

DATA = files("rome_lens.data")
RECORDS = json.loads(DATA.joinpath("counterfact.json").read_text(encoding="utf-8"))
LISTS = {"paraphrase_prompts": 2, "neighborhood_prompts": 10, "attribute_prompts": 10, "generation_prompts": 10}


def _rewrite(record):
    rewrite = record["requested_rewrite"]
    return rewrite["prompt"].replace("{}", rewrite["subject"])


def _targets(record):
    return tuple(record["requested_rewrite"][name]["str"] for name in ("target_true", "target_new"))


def test_there_are_enough_records_over_enough_relations():
    relations = Counter(record["requested_rewrite"]["relation_id"] for record in RECORDS)
    assert len(RECORDS) >= 60
    assert len(relations) >= 8
    assert min(relations.values()) >= 4
    assert [record["case_id"] for record in RECORDS] == list(range(len(RECORDS)))
    assert len({_rewrite(record) for record in RECORDS}) == len(RECORDS)


def test_one_name_stands_for_one_object():
    names = defaultdict(set)
    for record in RECORDS:
        for name in ("target_true", "target_new"):
            target = record["requested_rewrite"][name]
            names[target["str"]].add(target["id"])
    assert all(len(ids) == 1 for ids in names.values()), names


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["requested_rewrite"]["subject"])
def test_a_record_keeps_to_the_published_form(record):
    assert set(record) == {"case_id", "pararel_idx", "requested_rewrite", *LISTS}
    assert type(record["case_id"]) is int
    assert record["pararel_idx"] == record["case_id"]
    rewrite = record["requested_rewrite"]
    assert set(rewrite) == {"prompt", "relation_id", "target_new", "target_true", "subject"}
    assert rewrite["prompt"].count("{}") == 1
    assert re.fullmatch(r"P\d+", rewrite["relation_id"])
    for name in ("target_new", "target_true"):
        assert set(rewrite[name]) == {"str", "id"}
        assert re.fullmatch(r"Q\d+|own:[a-z]+", rewrite[name]["id"])
        assert rewrite[name]["str"] == rewrite[name]["str"].strip() != ""
    true, new = _targets(record)
    assert true.casefold() != new.casefold()
    assert {name: len(record[name]) for name in LISTS} == LISTS


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["requested_rewrite"]["subject"])
def test_the_prompts_of_a_record_say_what_they_should(record):
    subject = record["requested_rewrite"]["subject"]
    true, _ = _targets(record)
    about = [_rewrite(record), *record["paraphrase_prompts"], *record["generation_prompts"]]
    others = [*record["neighborhood_prompts"], *record["attribute_prompts"]]
    assert len({*about, *others}) == len(about) + len(others)
    for prompt in (*about, *others):
        assert prompt == prompt.strip()
        assert "{" not in prompt
        assert prompt[-1].isalnum(), prompt  # a word ends, no sentence does
        assert not prompt.split()[0].islower(), prompt
    assert all(prompt.count(subject) == 1 for prompt in about)
    assert not any(subject.casefold() in prompt.casefold() for prompt in others)
    # It would be no recall.
    assert not any(true.casefold() in prompt.casefold() for prompt in (*about[:3], *record["neighborhood_prompts"]))


def test_the_texts_are_many_short_paragraphs():
    with as_file(DATA.joinpath("texts.txt")) as path:
        texts = list(read_texts(path))
    assert len(texts) == 40
    assert 1000 <= sum(len(text.split()) for text in texts) <= 1500
    assert all(15 <= len(text.split()) <= 60 for text in texts)
    assert len(set(texts)) == len(texts)
    # They are no echo of what the records edit.
    subjects = [re.escape(record["requested_rewrite"]["subject"]) for record in RECORDS]
    assert not [text for text in texts if re.search(rf"\b({'|'.join(subjects)})\b", text, re.IGNORECASE)]


@pytest.mark.slow  # neither the facts nor the model change
def test_the_default_model_knows_every_fact():
    backend = as_backend(rl.load_model())
    unknown = []
    for record in RECORDS:
        subject, nll, most_probable = record["requested_rewrite"]["subject"], [], []
        for target in _targets(record):
            asked = tokenise(backend.tokenizer, _rewrite(record), subject, answer=target)
            answer = torch.tensor(asked.answer_ids)
            log_p = backend.logits(torch.tensor([asked.ids]), keep=1 + len(answer))[0, :-1].log_softmax(-1)
            nll.append(-log_p.gather(1, answer[:, None]).mean().item())
            most_probable.append(bool(log_p[0].argmax() == answer[0]))
        if not (most_probable[0] and nll[0] < nll[1]):
            unknown.append(subject)
    assert unknown == []
