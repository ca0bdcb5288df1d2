"""What is measured of edits equals a plain evaluation: edited weights, Hugging Face alone, one prompt at a time."""

from contextlib import ExitStack
from dataclasses import replace

import evaluation_oracle as oracle
import pytest
import torch
from architectures import BRIDGE, HOOKED, architecture, byte_tokenizer, hugging_face_model
from edits import changed
from hosts import hosted
from left_alone import left_alone
from refused import refused
from reports import by_number, measured

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.evaluation.answering import Answerer, BlockAnswerer
from rome_lens.evaluation.measurer import RecordMeasurer
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.metrics import begins_with

# Learned and rotary positions and ALiBi: what is proved of blocks alone is proved of all in test_engine.
THREE = ("gpt2", "llama", "falcon")
# A mixture of experts has no W_out to edit.
EDITED = hosted(without=["mixtral"], at_landing=THREE)
# TransformerLens's own forward of a tiny Cohere differs from Hugging Face's by 0.3 in log-probabilities.
FAITHFUL = hosted(without=["mixtral", "cohere"], at_landing=THREE)
LAYER = 1
TEXTS = ("hello there, you", "abc", "a longer text than these two")

RECORDS = tuple(
    CounterFactRecord(
        number=number,
        case_id=100 + number,
        relation="P1",
        request=rl.EditRequest(prompt, subject, target_new=new, target_true=true),
        paraphrases=(f"tell me of {subject}, in", "it is"),
        neighbours=("the hill is in", "a lake, so it is in", "x"),
        generation_prompts=(f"{subject} is", "the", f"near {subject} one"),
    )
    # Targets of one token and of several, that begin alike, and one that goes on where the other ends.
    for number, (prompt, subject, new, true) in enumerate(
        [
            ("{} is in", "the tower", "rome", "paris"),
            ("where is {}? in", "it", "p", "paris"),
            ("{} stands in", "a very old museum", "par", "p"),
        ]
    )
)
QUESTIONS = tuple(
    ZsreRecord(
        number,
        number,
        rl.EditRequest("who built {}?", subject, target_new="ab"),
        f"{subject} was built by?",
        "nq question: what is it?",
        answer,
    )
    for number, (subject, answer) in enumerate([("the tower", "x"), ("it", "one two")])
)


def _moment(model, layer):
    width = as_backend(model).w_out(layer).matrix.shape[0]
    spread = torch.linspace(1, 3, width, dtype=torch.float64)
    return rl.SecondMoment.from_matrix(torch.diag(spread), layer=layer)


def _rome(model, layer=LAYER):
    return rl.ROME(
        model,
        layer=layer,
        second_moment=_moment(model, layer),
        context_templates=["{}", "so. {}"],
        v_num_grad_steps=4,
    )


class Given:
    """An editor that hands out edits that are there already."""

    def __init__(self, edits):
        self.edits = dict(edits)

    def edit(self, request):
        return self.edits.get(request)


class ThroughWeights:
    """Somebody else's edit: all that is known of it is how it is put into a model."""

    def __init__(self, edits):
        self.edits = edits

    def applied(self, model):
        stack = ExitStack()
        for edit in self.edits:
            stack.enter_context(edit.applied(model))
        return stack


def evaluated(model, editor, records=RECORDS, **measures):
    """Record by number, of one batch, without texts unless they are asked for."""
    return measured(model, records, editor, **{"n_texts": 0} | measures)


def edited(model, records=RECORDS):
    """An editor that has edits of them at hand."""
    return Given({record.request: _rome(model).edit(record.request) for record in records})


def _apart(found, expected):
    """The largest difference between the answers of two evaluations of the same records."""
    return max(
        abs(one[key] - other[key])
        for number in found
        for one, other in zip(found[number]["answers"], expected[number]["answers"], strict=True)
        for key in one
        if "nll" in key
    )


@pytest.mark.parametrize(("name", "backend"), FAITHFUL)
def test_answers_equal_a_plain_evaluation_of_edited_weights(name, backend):
    model, tokenizer = architecture(name, backend), byte_tokenizer()
    editor = edited(model)
    found = evaluated(model, editor, watched=TEXTS)
    plain = hugging_face_model(name)
    # Softmax and norms are computed in float32 whatever the model's type: by Hugging Face, and by HookedTransformer.
    close = {"abs": 2e-5}
    for record in RECORDS:
        got, edit = found[record.number], editor.edit(record.request)
        new, true = record.request.target_new, record.request.target_true
        before, after = [], []
        for where, edits_now in ((before, []), (after, [edit])):
            with oracle.edited(plain, edits_now):
                for answer in got["answers"]:
                    where.append([oracle.nll(plain, tokenizer, answer["prompt"], target) for target in (new, true)])
                where.append(oracle.perplexity(plain, tokenizer, TEXTS))
                where.append(oracle.counterfact(plain, tokenizer, record))
        for answer, (new_before, true_before), (new_now, true_now) in zip(
            got["answers"], before[:-2], after[:-2], strict=True
        ):
            assert answer["before_nll_new"] == pytest.approx(new_before, **close)
            assert answer["before_nll_true"] == pytest.approx(true_before, **close)
            assert answer["nll_new"] == pytest.approx(new_now, **close)
            assert answer["nll_true"] == pytest.approx(true_now, **close)
        assert got["perplexity"]["before"] == pytest.approx(before[-2], rel=1e-5)
        assert got["perplexity"]["after"] == pytest.approx(after[-2], rel=1e-5)
        assert {k: got["before"][k] for k in before[-1]} == pytest.approx(before[-1], abs=1e-3)
        assert {k: got["scores"][k] for k in after[-1]} == pytest.approx(after[-1], abs=1e-3)
        # The edits did something, so equality says something.
        assert any(abs(a["nll_new"] - a["before_nll_new"]) > 1e-3 for a in got["answers"])


@pytest.mark.parametrize(("name", "backend"), EDITED)
def test_blocks_give_what_whole_forwards_give(name, backend):
    model = architecture(name, backend)
    edits = [_rome(model).edit(RECORDS[0].request), None, _rome(model, layer=0).edit(RECORDS[2].request)]
    editor = Given(zip([record.request for record in RECORDS], edits, strict=True))
    wanted = {"n_texts": 2, "text_length": 24, "watched": TEXTS}
    found = evaluated(model, editor, **wanted)
    plain = evaluated(model, editor, engine="plain", **wanted)
    assert _apart(found, plain) <= (1e-12 if backend == HOOKED else 2e-6)
    for number, record in plain.items():
        assert found[number]["texts"] == record["texts"]
        assert [a["free"] for a in found[number]["answers"]] == [a["free"] for a in record["answers"]]
        assert found[number]["scores"] == pytest.approx(record["scores"], abs=1e-3)


def test_the_fast_way_is_the_one_that_is_taken(backend):
    model = architecture("llama", backend)
    measurer = RecordMeasurer(model, Measures(n_texts=0))
    assert isinstance(measurer._opened(20).answerer, BlockAnswerer)
    measurer.close()
    point = "blocks.0.hook_resid_post"
    model.add_hook(point, lambda x, hook: x)
    try:
        assert type(measurer._opened(20).answerer) is Answerer
    finally:
        measurer.close()
        model.reset_hooks()


def test_an_edit_of_anybody_s_is_measured_in_the_weights(backend):
    model = architecture("llama", backend)
    editor = edited(model)
    wanted = {"n_texts": 2, "text_length": 30, "watched": TEXTS}
    through_hooks = evaluated(model, editor, **wanted)
    with left_alone(model):
        weighed = Given({asked: ThroughWeights([edit]) for asked, edit in editor.edits.items()})
        theirs = evaluated(model, weighed, **wanted)
    assert _apart(through_hooks, theirs) <= (1e-12 if backend == HOOKED else 2e-6)
    for number, record in theirs.items():
        assert record["texts"] == through_hooks[number]["texts"]
        assert record["scores"] == pytest.approx(through_hooks[number]["scores"], abs=1e-3)
        assert record["edit"]["variant"] == "ThroughWeights"


def test_several_edits_for_one_request_and_matrices_go_through_hooks(backend):
    model = architecture("llama", backend)
    requests = [record.request for record in RECORDS]
    lower, upper = (_rome(model, layer=layer).edit_many(requests) for layer in (0, 2))
    tuned = rl.FineTuning(model, layer=1, num_steps=3, lr=1e-2).edit_many(requests)
    each = [[lower[0], upper[0]], [tuned[1], lower[1]], [tuned[2], tuned[0]]]
    found = evaluated(model, Given(zip(requests, each, strict=True)), n_texts=2, text_length=30)
    stacked = Given({asked: ThroughWeights(edits) for asked, edits in zip(requests, each, strict=True)})
    theirs = evaluated(model, stacked, n_texts=2, text_length=30)
    assert _apart(found, theirs) <= (1e-12 if backend == HOOKED else 2e-6)
    assert [record["texts"] for record in found.values()] == [record["texts"] for record in theirs.values()]


def test_zsre_equals_a_plain_evaluation(backend):
    model, tokenizer = architecture("llama", backend), byte_tokenizer()
    editor = edited(model, QUESTIONS)
    found = evaluated(model, editor, QUESTIONS)
    plain = hugging_face_model("llama")
    for record in QUESTIONS:
        got = found[record.number]
        assert got["before"] == pytest.approx(oracle.zsre(plain, tokenizer, record))
        with oracle.edited(plain, [editor.edit(record.request)]):
            expected = oracle.zsre(plain, tokenizer, record)
            free = [
                begins_with(oracle.greedy(plain, tokenizer, answer["prompt"], 12), answer["answer"])
                for answer in got["answers"]
            ]
        assert {name: got["scores"][name] for name in expected} == pytest.approx(expected)
        names = ["efficacy_free", "paraphrase_free", "specificity_free"]
        assert [got["scores"][name] for name in names] == [100.0 * said for said in free]
    assert found[0]["answers"][0]["answer"] == "ab"


# What follows has one answer or several, of which one goes on where another ends.
FOLLOWS = (
    rl.FollowUp("it is near", ("rome", "paris", "p"), "Reasoning"),
    rl.FollowUp("the tower, also known as it, is in", ("ab",), "Subject_Aliasing"),
    rl.FollowUp("so one is in", ("par", "paris, or so", "x"), "Reasoning"),
)
OWN = tuple(
    replace(
        record,
        neighbour_answers=("paris, or so", "x", "par")[: len(record.neighbours)],
        follows=FOLLOWS[: record.number + 1],
    )
    for record in RECORDS
)


def test_what_follows_and_neighbours_own_answers_equal_a_plain_evaluation(backend):
    model, tokenizer = architecture("llama", backend), byte_tokenizer()
    editor = edited(model, OWN)
    found, forwards = (evaluated(model, editor, OWN, engine=engine) for engine in ("auto", "plain"))
    plain = hugging_face_model("llama")
    close = {"abs": 2e-5}
    for record in OWN:
        got, asked = found[record.number], [answer["prompt"] for answer in found[record.number]["answers"]]
        assert asked[-len(record.follows) :] == [follow_up.prompt for follow_up in record.follows]
        before = oracle.counterfact(plain, tokenizer, record)
        assert {name: got["before"][name] for name in before} == pytest.approx(before, abs=1e-3)
        with oracle.edited(plain, [editor.edit(record.request)]):
            expected = oracle.counterfact(plain, tokenizer, record)
            written = {prompt: oracle.greedy(plain, tokenizer, prompt, 20) for prompt in asked}
            neighbours = [answer for answer in got["answers"] if answer["kind"] == "neighborhood"]
            for answer, own in zip(neighbours, record.neighbour_answers, strict=True):
                assert answer["answer"] == own
                assert answer["nll_true"] == pytest.approx(oracle.nll(plain, tokenizer, answer["prompt"], own), **close)
            for answer in got["answers"][-len(record.follows) :]:
                nll = oracle.nll(plain, tokenizer, answer["prompt"], answer["answer"])
                assert (answer["kind"], answer["nll"]) == ("follows", pytest.approx(nll, **close))
        assert "portability" in expected
        assert {name: got["scores"][name] for name in expected} == pytest.approx(expected, abs=1e-3)
        free = [any(begins_with(written[each.prompt], text) for text in each.answers) for each in record.follows]
        assert got["scores"]["portability_free"] == pytest.approx(100 * sum(free) / len(free))
        own = zip(record.neighbours, record.neighbour_answers, strict=True)
        free = [begins_with(written[prompt], answer) for prompt, answer in own]
        assert got["scores"]["NS_free"] == pytest.approx(100 * sum(free) / len(free))
        assert forwards[record.number]["scores"] == pytest.approx(got["scores"], abs=1e-3)
    # Other answers give other numbers, so equality says something.
    usual = evaluated(model, editor)
    assert all(usual[n]["scores"]["NM"] != pytest.approx(found[n]["scores"]["NM"], abs=0.01) for n in usual)
    assert not any("portability" in record["scores"] for record in usual.values())


def test_what_follows_in_zsre_equals_a_plain_evaluation(backend):
    model, tokenizer = architecture("llama", backend), byte_tokenizer()
    questions = [replace(record, follows=FOLLOWS[record.number :]) for record in QUESTIONS]
    editor = edited(model, questions)
    found = evaluated(model, editor, questions)
    plain = hugging_face_model("llama")
    for record in questions:
        got = found[record.number]
        assert got["before"] == pytest.approx(oracle.zsre(plain, tokenizer, record))
        with oracle.edited(plain, [editor.edit(record.request)]):
            expected = oracle.zsre(plain, tokenizer, record)
        assert "portability" in expected
        assert {name: got["scores"][name] for name in expected} == pytest.approx(expected)
        assert "portability_free" in got["scores"]


def test_a_free_answer_may_be_any_that_follows(llama):
    said = oracle.greedy(hugging_face_model("llama"), byte_tokenizer(), "it is near", 4)
    # A word ends in front of a sign.
    word = said.rstrip("&\N{REPLACEMENT CHARACTER}")
    assert said.startswith(f"{word}&")
    several = (("zz", word, "q"), ("zz", "q"), ("zz", word[:1]))
    follow_ups = tuple(rl.FollowUp("it is near", answers, "a") for answers in several)
    (got,) = evaluated(llama, None, [replace(RECORDS[0], follows=follow_ups)]).values()
    assert got["scores"]["portability_free"] == pytest.approx(100 / 3)
    assert got["answers"][-3]["free"].startswith(word)


def test_what_a_record_lacks_is_not_scored(llama):
    request = RECORDS[0].request
    bare = CounterFactRecord(0, 0, None, request, (), (), (), follows=FOLLOWS[:1])
    alone = rl.EditRequest(request.prompt, request.subject, request.target_new)
    unknown = replace(RECORDS[1], request=alone)
    own = replace(OWN[2], request=alone)
    found = evaluated(llama, None, [bare, unknown, own])
    assert set(found[0]["scores"]) == {"ES", "EM", "ES_free", "portability", "portability_free"}
    # Without the old answer nothing is held against it, and neighbours without answers are not asked.
    assert set(found[1]["scores"]) == {"ES_free", "PS_free"}
    assert set(found[2]["scores"]) == {"ES_free", "PS_free", "NS", "NM", "NS_free", "portability", "portability_free"}
    assert found[1]["answers"][0]["answer"] == request.target_new
    assert not any("unfit" in record for record in found.values())


def test_what_is_written_freely_is_the_greedy_continuation():
    model, tokenizer = architecture("gpt2", BRIDGE), byte_tokenizer()
    plain = hugging_face_model("gpt2")
    said = oracle.greedy(plain, tokenizer, "the tower is in", 3)
    record = RECORDS[0]
    asked = rl.EditRequest(
        record.request.prompt, record.request.subject, target_new=said.strip() or "q", target_true="z"
    )
    (got,) = evaluated(model, None, [replace(record, request=asked)]).values()
    answer = got["answers"][0]
    assert answer["free"].startswith(said[:1])
    assert oracle.greedy(plain, tokenizer, answer["prompt"], 20).startswith(answer["free"])


def test_numbers_do_not_depend_on_the_batch_beyond_rounding(llama):
    editor = edited(llama)
    together = evaluated(llama, editor, n_texts=3, text_length=30)
    for record in RECORDS:
        alone = evaluated(llama, editor, [record], n_texts=3, text_length=30)
        assert _apart(alone, {record.number: together[record.number]}) <= 2e-6
        assert alone[record.number]["texts"] == together[record.number]["texts"]


def test_the_same_batch_gives_the_same_bits_whatever_was_run_before(llama):
    editor, fresh = _rome(llama), None
    for first in ([], RECORDS[:1]):
        measurer = RecordMeasurer(llama, Measures(n_texts=3, text_length=30, watched=TEXTS), layers=[LAYER])
        if first:
            list(measurer.measure(first, "none", None))
            list(measurer.measure(RECORDS, "none", None))
        found = _without_time(by_number(measurer.measure(RECORDS, "mine", editor)))
        measurer.close()
        fresh = fresh or found
        assert found == fresh


def _without_time(found):
    for record in found.values():
        record["edit"]["seconds"] = 0
    return found


def test_texts_about_objects_are_the_unedited_model_s_or_the_user_s(backend):
    model = architecture("llama", backend)
    found = []
    for engine in ("auto", "plain"):
        measurer = RecordMeasurer(model, Measures(text_length=24, engine=engine))
        found.append(measurer.references(["rome", "p"]))
        measurer.close()
    assert found[0] == found[1]
    assert [len(texts) for texts in found[0]] == [5, 5]
    assert all(
        text.startswith(("rome", "All about rome", "When people think of rome", "The story of rome"))
        for text in found[0][0]
    )
    given = RecordMeasurer(model, Measures(references={"p": ["p it is"]}))
    assert given.references(["rome", "p"]) == [[], ["p it is"]]


def test_a_seed_decides_what_is_written(llama):
    texts = [evaluated(llama, None, n_texts=3, text_length=30, seed=seed)[0]["texts"] for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert len({each["text"] for each in texts[0]}) == 3


def test_a_record_that_cannot_be_edited_counts_as_the_model_left_as_it_was(llama):

    class Refusing:
        def edit(self, request):
            if request is RECORDS[1].request:
                raise rl.EditError("the loss is nan")
            return edit

        def edit_many(self, requests):
            raise rl.EditError("one of them")

    edit = _rome(llama).edit(RECORDS[0].request)
    found = evaluated(llama, Refusing())
    assert [record["error"] for record in found.values()] == [None, "the loss is nan", None]
    assert found[1]["edit"] is None
    assert {name: found[1]["scores"][name] for name in found[1]["before"]} == found[1]["before"]
    assert found[0]["edit"]["layer"] == LAYER


def test_a_record_that_does_not_fit_the_model_is_set_aside(gpt2):
    long = replace(RECORDS[1], neighbours=("a" * 70,))
    found = evaluated(gpt2, None, [RECORDS[0], long])
    assert found[1]["unfit"] == "the prompt with its answer takes 71 positions, and gpt2 has 64; shorten it"
    assert (found[1]["scores"], found[1]["answers"]) == ({}, [])
    assert "unfit" not in found[0]


def test_rows_at_the_end_of_the_context_are_not_pushed_out_of_it(backend):
    # Positions of a GPT-2 are learned: one beyond the last is an error, and the longest answer pads all rows.
    model = architecture("gpt2", backend)
    long = replace(RECORDS[0], neighbours=("b" * 59, "a hill, in"))
    short = replace(RECORDS[1], neighbours=("c" * 30,))
    found = evaluated(model, None, [long, short], n_texts=2, text_length=64)
    plain = evaluated(model, None, [long, short], n_texts=2, text_length=64, engine="plain")
    assert _apart(found, plain) <= 1e-12
    assert [record["texts"] for record in found.values()] == [record["texts"] for record in plain.values()]


def test_texts_are_watched_and_edits_that_harm_the_model_flagged(llama):
    good = _rome(llama).edit(RECORDS[0].request)
    ruinous = changed(good, v=good.v * 1e4)
    edits = {RECORDS[0].request: good, RECORDS[1].request: ruinous}
    found = evaluated(llama, Given(edits), watched=TEXTS, perplexity_bound=1.01)
    tokenizer, plain = byte_tokenizer(), hugging_face_model("llama")
    for number, edits_now in enumerate(([good], [ruinous], [])):
        watched = found[number]["perplexity"]
        assert watched["before"] == pytest.approx(oracle.perplexity(plain, tokenizer, TEXTS), rel=1e-5)
        with oracle.edited(plain, edits_now):
            assert watched["after"] == pytest.approx(oracle.perplexity(plain, tokenizer, TEXTS), rel=1e-5)
        ratio = watched["after"] / watched["before"]
        assert found[number]["scores"]["PPL"] == pytest.approx(ratio)
        assert watched["flagged"] == (not 1 / 1.01 <= ratio <= 1.01)
    assert [found[number]["perplexity"]["flagged"] for number in (1, 2)] == [True, False]


def test_bos_stands_in_front_of_everything(llama):
    without, with_bos = (evaluated(llama, None, prepend_bos=bos, watched=TEXTS) for bos in (False, True))
    assert _apart(without, with_bos) > 1e-3
    backend, tokenizer = as_backend(llama), byte_tokenizer()
    answer = with_bos[0]["answers"][0]
    ids = [0, *tokenizer(answer["prompt"], add_special_tokens=False)["input_ids"]]
    target = tokenizer(" rome", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = backend.logits(torch.tensor([ids + target[:-1]]), keep=len(target))[0].log_softmax(dim=-1)
    expected = -logits.gather(1, torch.tensor(target)[:, None]).mean().item()
    # Hugging Face takes the softmax of attention in float32 whatever the model's type.
    assert answer["nll_new"] == pytest.approx(expected, abs=2e-6)


def test_what_is_no_edit_is_refused(llama):
    assert refused(rl.SettingError, evaluated, llama, Given({RECORDS[0].request: "rome"})) == (
        "an editor gave a str; expected an edit of rome_lens, None for no change, or an object whose applied(model) "
        "puts it into the weights for a while"
    )


def test_an_editor_that_reports_progress_is_heard(llama):
    heard = []
    found = evaluated(llama, _rome(llama), progress=lambda *step: heard.append(step[2]))
    assert set(heard) == {"editing"}
    assert {record["engine"] for record in found.values()} == {"blocks"}


def test_a_model_that_an_edit_has_ruined_gives_finite_scores(llama):
    edit = _rome(llama).edit(RECORDS[0].request)
    nothing = changed(edit, v=edit.v * float("nan"))
    found = evaluated(llama, Given({RECORDS[0].request: nothing}), watched=TEXTS)
    assert {answer["nll_new"] for answer in found[0]["answers"]} == {1e4}
    assert [found[0]["scores"][name] for name in ("ES", "PS", "NS", "EM")] == [0, 0, 0, 0]
    assert found[0]["perplexity"]["flagged"]
    assert found[1]["scores"]["ES"] == found[1]["before"]["ES"]
