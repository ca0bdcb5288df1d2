"""When an edit counts as reached, and what is said where it does not."""

import math
from dataclasses import replace

import pytest
import torch
from architectures import BACKENDS, own
from edits import changed, random_edit
from refused import refused

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.editing.answers import old_answers
from rome_lens.editing.outcome import Loss, Probabilities
from rome_lens.editing.shortfall import answers_mean_key, shortfall
from rome_lens.loading.tiny import tiny_model
from rome_lens.tokens import tokenise_span

PROMPT, SUBJECT = "the city is {}", "the tower"
WORDS = ("in", "of", "city", "is", "tower", "the")


def probabilities(mean, *, written, n_tokens=29):
    return Probabilities(mean**n_tokens, 0.0, mean, written)


@pytest.mark.parametrize(
    ("after", "loss", "mean_key", "cause"),
    [
        # 29 tokens of 0.93 each have 0.12 jointly, and are written word for word.
        (probabilities(0.93, written=True), 0.077, True, None),
        (probabilities(0.93, written=False), 0.077, True, "token"),
        (probabilities(0.93, written=False), 0.077, False, "token"),
        (probabilities(0.6, written=False), 0.077, True, "key"),
        (probabilities(0.6, written=False), 0.077, False, "spill"),
        (probabilities(0.3, written=False), 1.2, True, "value"),
        (probabilities(0.4, written=True, n_tokens=1), 0.9, True, None),
        (probabilities(0.4, written=False, n_tokens=1), 0.05, True, "key"),
        # As files of earlier versions hold it.
        (Probabilities(0.6, 0.1), 0.05, True, None),
        (Probabilities(0.4, 0.1), 0.05, True, "key"),
    ],
)
def test_means_are_compared_with_means(after, loss, mean_key, cause):
    assert shortfall(after, [Loss(9, 9, 0, 0), Loss(loss, loss, 0, 0)], mean_key=mean_key) == cause
    assert after.reached == (cause is None)


def test_a_larger_share_is_advised_where_there_is_another_key():
    assert answers_mean_key("r-rome", n_templates=2, bare_weight=0.5)
    assert answers_mean_key("r-rome", n_templates=2, bare_weight=None)
    assert not answers_mean_key("r-rome", n_templates=1, bare_weight=0.5)
    assert not answers_mean_key("r-rome", n_templates=2, bare_weight=1.0)
    assert not answers_mean_key("p-rome", n_templates=2, bare_weight=0.5)
    assert not answers_mean_key("rome", n_templates=2, bare_weight=0.5)


def test_a_file_keeps_it_and_files_of_earlier_versions_are_read(tmp_path):
    model = own("gpt2", BACKENDS[0])
    edit = random_edit(model, after=probabilities(0.93, written=True))
    edit.save(tmp_path / "edit")
    assert rl.load_edit(tmp_path / "edit").after == edit.after
    assert "not reached" not in repr(edit)
    earlier = random_edit(model, after=Probabilities(0.4, 0.1))
    earlier.save(tmp_path / "earlier")
    assert rl.load_edit(tmp_path / "earlier").after == earlier.after
    assert "not reached" in repr(earlier)
    changed(edit, after=replace(edit.after, target_written="yes")).save(tmp_path / "damaged")
    assert "target_written is of type str" in refused(rl.ArtefactError, rl.load_edit, tmp_path / "damaged")


def greedy(model, text, n):
    """What the model says by itself, `n` words."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for _ in range(n):
        with torch.no_grad():
            ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return [model.tokenizer.decode([i]) for i in ids[-n:]]


def test_a_target_of_many_tokens_is_reached_where_each_is_the_likeliest(backend):
    model = tiny_model(backend).to(torch.float64)
    text = PROMPT.replace("{}", SUBJECT)
    target = " ".join(["of", *greedy(model, f"{text} of", 7)])
    edit = rl.FineTuning(model, layer=0, lr=0.02, stop_loss=0.3).edit(rl.EditRequest(PROMPT, SUBJECT, target))
    assert edit.after.target < 0.3 < 0.7 < edit.after.target_mean < edit.after.target ** (1 / 9)
    with edit.applied(model):
        assert " ".join(greedy(model, text, 8)) == target
    assert edit.after.target_written
    assert "not reached" not in repr(edit)
    assert not any("not reached" in note for note in edit.notes)


def test_with_the_bare_prompt_alone_no_share_of_it_is_advised():
    model = tiny_model(BACKENDS[0]).to(torch.float64)
    d_mlp = as_backend(model).w_out(0).matrix.shape[0]
    how = {"v_num_grad_steps": 12, "v_lr": 1.0, "v_weight_decay": 0.01, "clamp_norm_factor": 20.0, "kl_factor": 0.01}
    editor = rl.ROME(model, layer=0, second_moment=torch.eye(d_mlp), context_templates=["{}"], **how)
    notes = [editor.edit(rl.EditRequest(PROMPT, SUBJECT, f"{word} of tower is")).notes for word in ("of", "is")]
    assert any("not reached" in note for several in notes for note in several)
    assert not any("bare_weight" in note for several in notes for note in several)


def test_the_old_answer_goes_on_until_it_differs_from_the_target(backend):
    model = tiny_model(backend).to(torch.float64)
    host, text = as_backend(model), PROMPT.replace("{}", SUBJECT)
    own_words = greedy(model, text, 4)

    def old(target, target_true=None):
        request = rl.EditRequest(PROMPT, SUBJECT, target, target_true)
        row = tokenise_span(host.tokenizer, request.text, request.subject_span, answer=target)
        with host.evaluating():
            (found,) = old_answers(host, [request], [row], prepend_bos=False)
        return found

    other = next(word for word in WORDS if word not in own_words)
    for n_alike in range(4):
        found = old(" ".join([*own_words[:n_alike], other, other]))
        assert found.answer.split() == own_words[: n_alike + 1]
        assert len(found.answer_ids) == n_alike + 1
    assert "says after 'the city is the tower' already" in refused(rl.AnswerError, old, " ".join(own_words))
    # What the caller says is what counts.
    assert old(f"{own_words[0]} {other}", other).answer.strip() == other


@pytest.mark.parametrize(
    ("target", "old", "says"),
    [
        ("of tower", "of", "the old answer 'of' is how the target 'of tower' begins"),
        ("of", "of tower", "the target 'of' is how the old answer 'of tower' begins"),
        ("of tower", "of city", None),
    ],
)
def test_answers_that_hold_one_another_are_noted(target, old, says):
    model = tiny_model(BACKENDS[0]).to(torch.float64)
    edit = rl.FineTuning(model, layer=0, num_steps=2).edit(rl.EditRequest(PROMPT, SUBJECT, target, old))
    found = [note.partition(", so its probability") for note in edit.notes if "begins" in note]
    assert [(begin, bool(so)) for begin, so, _ in found] == ([] if says is None else [(says, True)])
    assert math.isfinite(edit.before.target_mean)
