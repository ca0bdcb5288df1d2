"""Records on the default model equal a plain evaluation: edited weights, Hugging Face, one prompt at a time."""

from dataclasses import replace

import evaluation_oracle as oracle
import pytest
import torch
from effort import slow
from reports import by_number

import rome_lens as rl
from rome_lens.data.texts import builtin_texts
from rome_lens.evaluation.measurer import RecordMeasurer
from rome_lens.evaluation.metrics import begins_with
from rome_lens.loading.pretrained import load_pretrained

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


@pytest.mark.parametrize("count", [1, slow(20)])
def test_records_equal_a_plain_evaluation_of_edited_weights(count):
    plain = load_pretrained("smollm2-135m", dtype=torch.float32, device=torch.device("cpu"))
    hugging_face, tokenizer = plain.model, plain.tokenizer
    model = rl.load_model()
    records = rl.builtin_counterfact()[::3][:count].records
    assert len(records) == count
    if count == 1:
        records = tuple(replace(record, neighbours=record.neighbours[:2]) for record in records)
    # Edits need not be good ones to be measured.
    editor = rl.ROME(model, context_templates=["{}"], v_num_grad_steps=4)
    edits = dict(zip([r.request for r in records], editor.edit_many([r.request for r in records]), strict=True))

    class Given:
        def edit(self, request):
            return edits[request]

    watched = builtin_texts()[:2]
    measurer = RecordMeasurer(model, rl.Measures(n_texts=0, watched=watched), layers=[editor.layer])
    found = {}
    for start in range(0, count, 10):
        found |= by_number(measurer.measure(records[start : start + 10], "given", Given()))
    measurer.close()
    before = oracle.perplexity(hugging_face, tokenizer, watched)
    for place, record in enumerate(records):
        got, request = found[record.number], record.request
        with oracle.edited(hugging_face, [edits[request]]):
            for answer in got["answers"]:
                pair = [
                    oracle.nll(hugging_face, tokenizer, answer["prompt"], name)
                    for name in (request.target_new, request.target_true)
                ]
                assert [answer["nll_new"], answer["nll_true"]] == pytest.approx(pair, abs=1e-4)
            if place < count / 5:
                expected = oracle.counterfact(hugging_face, tokenizer, record)
                assert {name: got["scores"][name] for name in expected} == pytest.approx(expected, abs=1e-2)
                said = begins_with(oracle.greedy(hugging_face, tokenizer, request.text, 6), request.target_new)
                assert got["scores"]["ES_free"] == 100 * said
                now = oracle.perplexity(hugging_face, tokenizer, watched)
                assert got["perplexity"]["after"] == pytest.approx(now, rel=1e-4)
        assert got["perplexity"]["before"] == pytest.approx(before, rel=1e-4)
    # What was compared is not nothing.
    assert max(abs(a["nll_new"] - a["before_nll_new"]) for r in found.values() for a in r["answers"]) > 1
