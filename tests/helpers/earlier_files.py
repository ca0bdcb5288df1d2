"""The tiny world in which version 0.1.0 wrote the files of tests/fixtures/0.1.0; as a script it writes them.

git worktree add ../rome_lens-0.1.0 5344d8d
PYTHONPATH=../rome_lens-0.1.0 python tests/helpers/earlier_files.py ../written
"""

import contextlib
import json
import os
import random
import shutil
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import rome_lens as rl
from rome_lens.data.records import CounterFactRecord, RecordSet, ZsreRecord
from rome_lens.loading.tiny import tiny_model

FOLDER = Path(__file__).parents[1] / "fixtures" / "0.1.0"
KINDS = ("hooked-transformer", "transformer-bridge")
VARIANTS = ("r-rome", "rome", "p-rome", "ft", "ft-l")
PROMPT, SUBJECT = "the tower is in the city of", "the tower"
REQUEST = rl.EditRequest("{} is in the city", subject=SUBJECT, target_new="tower", target_true="of")
_WORDS = ["the", "tower", "is", "in", "city", "of"]
_draw = random.Random(0)
TEXTS = tuple(" ".join(_draw.choices(_WORDS, k=12)) for _ in range(200))
STEPS = {"v_num_grad_steps": 4, "context_templates": ["{}", "city. {}"]}
TRACE = {"subject": SUBJECT, "noise": 2.0, "samples": 3, "window": 2}
EDITORS = ("none", "r-rome")
MEASURES = rl.Measures(n_texts=2, text_length=4, watched=("the tower is in",))
_SETTINGS = {
    "r-rome": ("r-rome.layer=0", "r-rome.v_num_grad_steps=2", 'r-rome.context_templates=["{}", "city. {}"]'),
    "ft": ("ft.layer=0", "ft.num_steps=2"),
}


def make_model():
    """The model of all runs: TransformerLens 4 has this kind alone."""
    return tiny_model("transformer-bridge")


def subjects():
    """Six subjects of the model's words, each with an answer that it may learn and one that it may have."""
    return [(f"{_WORDS[i]} {_WORDS[i - 2]}", _WORDS[i - 1], _WORDS[i - 3]) for i in range(6)]


def counterfact_records():
    """Records of which no two are alike."""
    return RecordSet(
        tuple(
            CounterFactRecord(
                number=number,
                case_id=f"c{number}",
                relation=f"P{number % 2}",
                request=rl.EditRequest("{} is in the", *texts),
                paraphrases=(f"in {texts[0]} is",),
                neighbours=("city is in the", f"of {texts[1]} is"),
                generation_prompts=(f"{texts[0]} is",),
            )
            for number, texts in enumerate(subjects())
        ),
        (),
        "made up",
    )


def zsre_records():
    """The same subjects, asked about."""
    return RecordSet(
        tuple(
            ZsreRecord(number, number, rl.EditRequest("is {} in", subject, new), f"in {subject} is", "of the city", old)
            for number, (subject, new, old) in enumerate(subjects())
        ),
        (),
        "made up",
    )


def facts(model):
    """Facts that the model knows, since it was asked first, and one that it does not."""
    known = []
    for subject, *_ in subjects():
        said = rl.causal_trace(model, f"{subject} is in the", subject=subject, noise=1.0, samples=1, streams=["mlp"])
        known.append(rl.Fact("{} is in the", subject, said.answer.strip()))
    wrong = next(word for word in ("city", "tower") if word != known[0].answer)
    return [*known, rl.Fact("{} is in the", subjects()[0][0], wrong)]


def no_model():
    """In the place of `make_model`, where no model is to be asked for."""
    raise AssertionError("the model was asked for")


no_model.__qualname__ = make_model.__qualname__


class StoppedError(Exception):
    """What `stop_after` raises."""


def stop_after(n, what="records"):
    """A progress callback that ends the work once some of it is done."""

    def progress(done, total, doing):
        if doing.startswith(what) and done >= n:
            raise StoppedError

    return progress


def evaluate(out, *, editors=EDITORS, moment=FOLDER / "moment-0.safetensors", model=make_model, **how):
    """The evaluation on CounterFact."""
    return rl.evaluate_counterfact(
        model,
        list(editors),
        counterfact_records(),
        measures=MEASURES,
        settings=[text for editor in editors for text in _SETTINGS.get(editor, ())],
        second_moments=[moment],
        out=out,
        batch_size=2,
        **how,
    )


def evaluate_zsre(out, *, model=make_model, **how):
    """The evaluation on zsRE, of one editor that needs no second moment."""
    settings = _SETTINGS["ft"]
    return rl.evaluate_zsre(model, ["ft"], zsre_records(), settings=settings, out=out, batch_size=2, **how)


def average(out, *, model=make_model, **how):
    """The average effect over the facts."""
    return rl.average_causal_effect(
        model, facts(make_model()), noise=2.0, samples=2, window=2, out=out, batch_size=2, **how
    )


def make_edit(model, variant, moment):
    """An edit of layer 0."""
    if variant.startswith("ft"):
        bound = 0.01 if variant == "ft-l" else None
        return rl.FineTuning(model, layer=0, num_steps=3, norm_constraint=bound).edit(REQUEST)
    return rl.ROME(model, layer=0, second_moment=moment, variant=variant, **STEPS).edit(REQUEST)


def tiny_folder(folder):
    """The tiny GPT-2 as Hugging Face keeps one."""
    bridge = make_model()
    size = {"vocab_size": 7, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        model.transformer.wte.weight[0] = 0
    model.save_pretrained(folder)
    bridge.tokenizer.save_pretrained(folder)


def collect_moments(checkpoint=None, **how):
    """The second moments of both layers."""
    return rl.SecondMoment.collect(
        make_model(), layers=[0, 1], texts=TEXTS, text_length=12, batch_positions=96, checkpoint=checkpoint, **how
    )


def _stopped(work):
    with contextlib.suppress(StoppedError):
        work()
        raise AssertionError("the work was over before it was to be stopped")


def _leave_checkpoint():
    """The checkpoint of a collection that stopped halfway."""
    from rome_lens.editing import checkpoint, collect  # where 0.1.0 has them

    checkpoint._SECONDS, checkpoint._SHARE, collect._PORTION = 0.0, 0, 600
    _stopped(lambda: collect_moments("checkpoint.safetensors", progress=stop_after(1500, "")))


def _write(folder):
    """All files, in a folder that is not there."""
    folder.mkdir()
    os.chdir(folder)
    moments = collect_moments()
    for layer, moment in moments.items():
        moment.save(f"moment-{layer}.safetensors")
    _leave_checkpoint()
    models = {kind: tiny_model(kind) for kind in KINDS}
    expected = {"moments": {layer: moment.matrix.diagonal()[:4].tolist() for layer, moment in moments.items()}}
    edits = {}
    for kind, model in models.items():
        for variant in VARIANTS:
            edit = edits[kind, variant] = make_edit(model, variant, moments[0])
            name = f"edit-{variant}-{kind}.safetensors"
            edit.save(name)
            tokens = model.to_tokens(PROMPT, prepend_bos=False)
            with edit.applied(model), torch.no_grad():
                logits = model(tokens)[0, -1].log_softmax(-1).tolist()
            expected[name] = {
                "id": edit.id,
                "before": [edit.before.target, edit.before.old],
                "after": [edit.after.target, edit.after.old],
                "update": edit.update[:2, :2].flatten().tolist(),
                "loss": [getattr(loss, "total", loss) for loss in edit.loss_curve],
                "logits": logits,
                "notes": list(edit.notes),
            }
    model = models["transformer-bridge"]
    edit = edits["transformer-bridge", "r-rome"]
    rl.ROME(model, layer=0, second_moment=moments[0], **STEPS).settings.save("settings.json")
    for name, used in (("trace", ()), ("trace-edited", (edit,))):
        trace = rl.causal_trace(model, PROMPT, severed=["mlp"], edits=used, **TRACE)
        trace.save(f"{name}.json")
        expected[name] = {
            "high": trace.high,
            "low": trace.low,
            "answer": trace.answer,
            "resid": trace.scores["resid"].tolist(),
            "mlp severed": trace.severed["mlp"].tolist(),
        }
    tiny_folder("tiny")
    edit.to_hf("tiny", "exported")
    edit.to_peft("adapter")
    shutil.rmtree("tiny")
    moment = Path("moment-0.safetensors")
    evaluate("counterfact", moment=moment)
    _stopped(lambda: evaluate("counterfact-ft-stopped", editors=("ft",), moment=moment, progress=stop_after(3)))
    evaluate_zsre("zsre-1", shard="1/2")
    _stopped(lambda: evaluate_zsre("zsre-2-stopped", shard="2/2", progress=stop_after(1)))
    average("average-1", shard="1/2")
    _stopped(lambda: average("average-2-stopped", shard="2/2", progress=stop_after(1, "")))
    expected["counterfact"] = evaluate(None, editors=(*EDITORS, "ft"), moment=moment).summary()
    expected["zsre"] = evaluate_zsre(None).summary()
    whole = average(None)
    expected["average"] = {
        "mlp": list(map(float, whole.curve("mlp", "last subject token").mean)),
        "known": len(whole.facts),
    }
    Path("expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
