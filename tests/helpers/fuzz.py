"""Random inputs through everything that takes them: each ends in the right numbers, or in a refusal of one line.

`python tests/helpers/fuzz.py [HOW_MANY]` runs them and prints how many of each kind there were, how many were refused
and why, and the largest differences from plain forwards of Hugging Face's modules. Input number n of a kind is the same
wherever it is run.
"""

import itertools
import json
import math
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import architectures
import fuzz_texts as texts
import numpy as np
import oracle
import tokenizer_kinds
import torch

import rome_lens as rl
from rome_lens.editing.settings import Settings
from rome_lens.errors import RomeLensError
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained

# (tokenizer, architecture): every tokenizer with three of the kinds of blocks that models have.
HOSTS = list(
    itertools.product(
        [kind.__name__ for kind in tokenizer_kinds.EVERY_KIND], ["gpt2", "llama", "mistral", "gemma2", "falcon", "neo"]
    )
)
# Relative, of a probability: some of the modules held against norm in float32 whatever their weights are.
CLOSE = 1e-5


@dataclass
class Outcome:
    """What came of one input.

    Attributes:
        refused: the error's kind and its words, without what the input brought to them; None where it was taken.
        difference: the largest from a plain forward, relative; None where no number was made.
    """

    refused: str | None = None
    difference: float | None = None


def run(kind: str, number: int) -> Outcome:
    """One input.

    Raises:
        AssertionError: a number differs, or an error is not of one line. Others: the tracebacks that are looked for.
    """
    rng = random.Random(f"{kind} {number}")
    try:
        with np.errstate(all="raise", under="ignore"):
            return Outcome(difference=KINDS[kind](rng))
    except RomeLensError as error:
        said = str(error)
        assert said
        assert "\n" not in said.strip(), said
        return Outcome(refused=f"{type(error).__name__}: {_pattern(said)}")


def _pattern(said: str) -> str:
    """An error without what the input brought to it."""
    said = re.sub(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", "…", said.split("; ")[0])
    said = re.sub(r" (is|has|takes) .*", r" \1 …", re.sub(r"record \d+: ", "", said))
    return re.sub(r"[-+]?\d[\d.e+-]*", "N", said)[:70]


# ---- models


@cache
def host(tokenizer: str, architecture: str, backend: str) -> tuple[Any, Any]:
    """A TransformerLens model, and Hugging Face's with the same weights, which nothing was done to."""
    fast = getattr(tokenizer_kinds, tokenizer)()
    mine, held = (architectures.hugging_face_model(architecture, vocab_size=len(fast)) for _ in range(2))
    pretrained = Pretrained(name=f"{architecture}-{tokenizer}", model=mine, tokenizer=fast)
    return to_transformer_lens(pretrained, backend=backend), held


def _any_host(rng: random.Random) -> tuple[Any, Any]:
    tokenizer, architecture = rng.choice(HOSTS)
    return host(tokenizer, architecture, rng.choice(["auto", architectures.BRIDGE]))


@torch.no_grad()
def plain(model: Any, ids: Any, n_prompt: int, *, noise: Any = None, span: tuple[int, int] = (0, 0)) -> float:
    """Joint probability of what follows the prompt, by one forward of Hugging Face's model; with noise, the mean."""
    rows = torch.tensor([list(ids[:-1])])
    handle = None
    if noise is not None:
        rows = rows.expand(len(noise), -1)

        def corrupt(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[:, slice(*span)] += torch.from_numpy(noise)
            return out

        handle = model.get_input_embeddings().register_forward_hook(corrupt)
    try:
        logits = model(rows, use_cache=False).logits[:, n_prompt - 1 :]
    finally:
        if handle is not None:
            handle.remove()
    log_probs = logits.double().log_softmax(dim=-1)
    read = log_probs[:, torch.arange(len(ids) - n_prompt), torch.tensor(list(ids[n_prompt:]))]
    return read.sum(dim=-1).exp().mean().item()


def _apart(found: float, expected: float, *, n_tokens: int = 1) -> float:
    """The relative difference, a token of the answer: they add up in its joint probability."""
    difference = abs(found - expected) / max(abs(expected), 1e-300) / n_tokens
    assert difference <= CLOSE, (found, expected)
    return difference


# ---- what takes inputs


def _trace(rng: random.Random) -> float:
    model, held = _any_host(rng)
    prompt = texts.text(rng)
    subject = texts.subject(rng, prompt)
    answer = texts.answer(rng) if rng.random() < 0.7 else None
    asked: dict[str, Any] = {"expect" if answer is not None and rng.random() < 0.2 else "answer": answer}
    if answer is not None:
        asked["answer_joined"] = texts.joined(rng)
    # Of Gemma 2 what passes hook_embed is scaled, which is nothing for a hook on the embedding.
    asked |= {
        "streams": rng.sample(["resid", "mlp", "attn"], rng.randrange(1, 4)),
        "samples": rng.randrange(1, 3),
        "noise": rng.choice([0.5, 0.5, 1, "u0.4", "s3", "t3", "m"]),
        "seed": rng.randrange(5),
        "window": rng.choice([None, 1, 3]),
        "occurrence": rng.choice([1] * 6 + [-1, 2, 0]),
        "prepend_bos": rng.random() < 0.2,
        "engine": rng.choice(["auto"] * 5 + ["plain", "attribution"]),
    }
    trace = rl.causal_trace(model, prompt, subject=subject, **asked)
    ids = [*trace.token_ids, *trace.answer_ids]
    fast, bos = model.tokenizer, [model.tokenizer.bos_token_id] * asked["prepend_bos"]
    if answer is None:
        with torch.no_grad():
            own = held(torch.tensor([trace.token_ids]), use_cache=False).logits[0, -1].argmax()
        assert trace.answer_ids == (int(own),)
    else:
        assert trace.answer.strip() == answer.strip()
        assert ids == bos + fast(prompt + trace.answer, add_special_tokens=False).input_ids
    _check_span(fast, prompt, subject, trace, len(bos))
    n_prompt, first_end = len(trace.token_ids), trace.subject_span
    apart = [_apart(trace.high, plain(held, ids, n_prompt), n_tokens=len(trace.answer_ids))]
    if asked["noise"] in (0.5, 1) and held.config.model_type not in ("gemma2",):
        drawn = np.random.RandomState(trace.seed).randn(trace.samples, first_end[1] - first_end[0], model.cfg.d_model)
        low = plain(held, ids, n_prompt, noise=drawn * trace.noise, span=first_end)
        apart.append(_apart(trace.low, low, n_tokens=len(trace.answer_ids)))
        if asked["engine"] != "attribution":
            apart.append(_cell_apart(rng, model, trace, asked))
    return max(apart)


def _cell_apart(rng: random.Random, model: Any, trace: Any, asked: dict[str, Any]) -> float:
    """One cell against a whole forward that restores it."""
    stream = rng.choice(sorted(trace.scores))
    layers, positions = trace.scores[stream].shape
    layer, pos = rng.randrange(layers), rng.randrange(positions)
    rows, told = oracle.request_of(model, trace)
    restored = oracle.restored_layers(stream, layer, trace.window, layers)
    score = oracle.cell_score(model, rows, **told, stream=stream, pos=pos, layers=restored)
    return _apart(trace.scores[stream][layer, pos].item(), score[1:].double().mean().item())


def _check_span(fast: Any, prompt: str, subject: str, trace: Any, n_bos: int) -> None:
    """The tokens are those that overlap an occurrence of the subject, and of no other part of the text."""
    offsets = fast(prompt + trace.answer, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    wanted = subject.strip()
    spans = []
    for start in range(len(prompt)):
        if prompt.startswith(wanted, start):
            over = [i for i, (a, b) in enumerate(offsets) if a < start + len(wanted) and b > start]
            over = [i for i in over if i < len(trace.token_ids) - n_bos]
            spans += [(n_bos + over[0], n_bos + over[-1] + 1)] if over else []
    assert trace.subject_span in spans


def _edit(rng: random.Random) -> float:
    model, held = _any_host(rng)
    prompt = texts.text(rng)
    subject = texts.subject(rng, prompt)
    asked = {
        "target_new": texts.answer(rng),
        "target_true": rng.choice([None, texts.answer(rng)]),
        "answer_joined": texts.joined(rng),
    }
    if rng.random() < 0.7:
        request = rl.EditRequest.in_text(prompt, subject=subject, **asked)
        assert request.text == prompt
    else:
        request = rl.EditRequest(rng.choice(["{} is", "In {}, ", prompt, prompt + "{}"]), subject, **asked)
    layer = rng.randrange(4)
    size = model.blocks[layer].mlp.W_out.shape[0]
    editor = rl.ROME(
        model,
        layer=layer,
        second_moment=torch.eye(size, dtype=torch.float64),
        variant=rng.choice(["r-rome", "rome", "p-rome"]),
        context_templates=rng.choice([["{}"], ["{}", "a bit. {}"]]),
        v_num_grad_steps=2,
        prepend_bos=rng.random() < 0.2,
    )
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    edit = editor.edit(request)
    bos = [model.tokenizer.bos_token_id] * edit.settings["prepend_bos"]
    joints = ("", " ") if request.answer_joined is None else (request.answer_joined,)
    written = [_tokens(model.tokenizer, request.text, joint + request.target_new.rstrip()) for joint in joints]
    rows = [(bos + ids, len(bos) + n_prompt) for ids, n_prompt in written if n_prompt is not None]
    ids, n_prompt = min(rows, key=lambda row: abs(plain(held, *row) - edit.before.target))
    apart = [_apart(edit.before.target, plain(held, ids, n_prompt), n_tokens=len(ids) - n_prompt)]
    module = held.get_submodule(edit.module).weight
    kept = module.detach().clone()
    update = torch.outer(edit.u.double(), edit.v.double())
    try:
        with torch.no_grad():
            module.copy_(module + (update.T if edit.module_transposed else update))
        apart.append(_apart(edit.after.target, plain(held, ids, n_prompt), n_tokens=len(ids) - n_prompt))
    finally:
        with torch.no_grad():
            module.copy_(kept)
    with edit.applied(model):
        pass
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    return max(apart)


def _evaluation(rng: random.Random) -> float | None:
    model, held = _any_host(rng)
    prompt = texts.text(rng)
    request = rl.EditRequest.in_text(
        prompt,
        subject=texts.subject(rng, prompt),
        target_new=texts.answer(rng),
        target_true=texts.answer(rng),
        answer_joined=rng.choice([None, None, "", " "]),
    )
    record = rl.CounterFactRecord(0, 0, None, request, (texts.text(rng),), (texts.text(rng),), ())
    bos = [model.tokenizer.bos_token_id] * (rng.random() < 0.2)
    measures = rl.Measures(n_texts=0, prepend_bos=bool(bos), engine=rng.choice(["auto", "auto", "plain"]))
    (found,) = rl.evaluate_counterfact(model, ["none"], [record], measures=measures).records["none"]
    if "unfit" in found:
        raise rl.PromptError(found["unfit"])
    apart = []
    for asked in found["answers"]:
        for name, target in (("nll_new", request.target_new), ("nll_true", request.target_true)):
            least = min(
                abs(asked[name] - nll) / max(nll, 1e-3)
                for nll in _mean_nlls(held, model.tokenizer, asked["prompt"], target, bos)
            )
            assert least <= CLOSE, (asked, target)
            apart.append(least)
    return max(apart)


def _mean_nlls(held: Any, fast: Any, prompt: str, target: str, bos: list[int]) -> Iterator[float]:
    """Of an answer's tokens, with a blank in front and without: which of them is meant is not looked at here."""
    for joined in ("", " "):
        ids, n_prompt = _tokens(fast, prompt, joined + target.rstrip())
        if n_prompt is not None:
            log_probability = math.log(plain(held, bos + ids, len(bos) + n_prompt))
            yield -log_probability / (len(ids) - n_prompt)


def _tokens(fast: Any, prompt: str, answer: str) -> tuple[list[int], int | None]:
    """A text's tokens, and which of them is the answer's first; None where it shares that with the prompt."""
    encoded = fast(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded.offset_mapping
    first = next((i for i, (a, b) in enumerate(offsets) if b > len(prompt) and b > a), None)
    return encoded.input_ids, first or None


def _files(rng: random.Random) -> None:
    form = rng.choice(["known", "counterfact", "zsre"])
    content: Any = [_record(rng, form) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.6:
        content = texts.broken(rng, content)
    raw = json.dumps(content, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.4:
        raw = texts.damaged(rng, raw)
    read = {"known": rl.read_known_facts, "counterfact": rl.read_counterfact, "zsre": rl.read_zsre}[form]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / rng.choice(["data.json", "data.jsonl", "data"])
        path.write_bytes(raw)
        for each in read(path):
            about = each if form == "known" else each.request
            assert about.text[slice(*about.subject_span)] == about.subject == about.subject.strip() != ""


def _record(rng: random.Random, form: str) -> dict[str, Any]:
    prompt = texts.text(rng)
    fact = {"subject": texts.subject(rng, prompt), "prompt": prompt, "attribute": texts.answer(rng)}
    if form == "known":
        return fact
    if form == "zsre":
        return {
            "subject": fact["subject"],
            "src": fact["prompt"],
            "rephrase": texts.text(rng),
            "answers": [fact["attribute"]],
            "loc": texts.text(rng),
            "loc_ans": texts.answer(rng),
        }
    return {
        "case_id": rng.randrange(9),
        "requested_rewrite": {
            "prompt": rng.choice(["{} is", fact["prompt"], fact["prompt"] + "{}"]),
            "relation_id": "P1",
            "subject": fact["subject"],
            "target_new": {"str": fact["attribute"]},
            "target_true": {"str": texts.answer(rng)},
        },
        "paraphrase_prompts": [texts.text(rng)],
        "neighborhood_prompts": [texts.text(rng)],
        "generation_prompts": [texts.text(rng)],
    }


@cache
def _artefacts() -> dict[str, bytes]:
    """One file of each kind that rome_lens writes."""
    model, _ = host("single_bytes", "gpt2", "auto")
    size = model.cfg.d_mlp
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        editor = rl.ROME(
            model, layer=1, second_moment=torch.eye(size), context_templates=["{}"], v_num_grad_steps=1, v_lr=0.1
        )
        editor.edit(rl.EditRequest("{} is", "ab", "x")).save(folder / "edit")
        rl.causal_trace(model, "ab is", subject="ab", answer="x", samples=1, noise=1.0).save(folder / "trace")
        moments = rl.SecondMoment.collect(model, layers=[1], texts=["ab is a text that is long enough"])
        moments[1].save(folder / "moment")
        editor.settings.save(folder / "settings")
        return {path.name.split(".")[0]: path.read_bytes() for path in folder.iterdir()}


def _artefact(rng: random.Random) -> None:
    kind = rng.choice(sorted(_artefacts()))
    load = {
        "edit": rl.load_edit,
        "trace": rl.CausalTrace.load,
        "moment": rl.SecondMoment.load,
        "settings": Settings.load,
    }[rng.choice([kind] * 5 + ["edit", "trace", "moment", "settings"])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kind}.safetensors"
        path.write_bytes(texts.damaged(rng, _artefacts()[kind]))
        loaded = load(path)
        assert repr(loaded)


def _arguments(rng: random.Random) -> None:
    model, _ = host("single_bytes", "gpt2", "auto")
    odd = [
        *texts.ODD,
        *(np.int64(1), np.float32(0.5), np.arange(2), np.array(1), np.bool_(True), torch.tensor(1), torch.ones(2)),
        *(b"x", float("nan"), float("inf"), -0.0, 1j, object(), print, Path("x"), rl.Fact("{} is", "ab", "x")),
    ]
    call, arguments = rng.choice(list(_CALLS.items()))
    told: dict[str, Any] = dict(arguments)
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(list(told))
        told[name] = rng.choice(odd if name in _COUNTED else [*odd, 10**30])
    call(model, **told)


def _edited(model: Any, *, prompt: Any, subject: Any, target_new: Any, target_true: Any, **told: Any) -> None:
    editor = rl.ROME(model, **told)
    editor.edit(rl.EditRequest(prompt, subject, target_new, target_true))


def _tuned(model: Any, *, prompt: Any, subject: Any, target_new: Any, **told: Any) -> None:
    rl.FineTuning(model, **told).edit(rl.EditRequest(prompt, subject, target_new))


_CALLS: dict[Callable[..., Any], dict[str, Any]] = {
    rl.causal_trace: {
        **{"prompt": "ab is", "subject": "ab", "streams": ("resid",), "severed": None, "window": 1, "samples": 1},
        **{"noise": 0.5, "noise_replaces": False, "swap": None, "seed": 1, "prepend_bos": False, "answer": "x"},
        **{"expect": None, "answer_joined": None, "occurrence": 1, "facts": None, "edits": (), "engine": "auto"},
    },
    _edited: {
        **{"prompt": "{} is", "subject": "ab", "target_new": "x", "target_true": "y", "layer": 1, "variant": "r-rome"},
        **{"second_moment": torch.eye(64), "context_templates": ["{}"], "bare_weight": None, "seed": 0},
        **{"prepend_bos": False, "v_num_grad_steps": 1, "v_lr": 0.1, "v_weight_decay": 0.1, "clamp_norm_factor": 1.0},
        **{"kl_factor": 0.1},
    },
    _tuned: {"prompt": "{} is", "subject": "ab", "target_new": "x", "layer": 1, "num_steps": 1},
    rl.SecondMoment.collect: {"layers": [1], "texts": ["ab is"], "max_tokens": 20, "text_length": 8, "seed": 0},
    rl.average_causal_effect: {
        **{"facts": [rl.Fact("{} is", "ab", "x")], "streams": ("resid",), "severed": (), "samples": 1, "noise": 0.5},
        **{"window": 1, "seed": 1, "prepend_bos": False, "engine": "auto", "batch_size": 1},
    },
}
# What a large number of takes long, as it should.
_COUNTED = ("samples", "v_num_grad_steps", "num_steps", "max_tokens")

KINDS: dict[str, Callable[[random.Random], float | None]] = {
    "trace": _trace,
    "edit": _edit,
    "evaluation": _evaluation,
    "files": _files,
    "artefact": _artefact,
    "arguments": _arguments,
}
# Of 10,000.
SHARES = {"trace": 2600, "edit": 1000, "evaluation": 400, "files": 3000, "artefact": 1000, "arguments": 2000}


def main(how_many: int) -> None:
    """Run so many inputs, each kind's share of them, and print the figures."""
    for kind, share in SHARES.items():
        outcomes = [run(kind, number) for number in range(share * how_many // sum(SHARES.values()))]
        refused = Counter(outcome.refused for outcome in outcomes if outcome.refused is not None)
        held = [outcome.difference for outcome in outcomes if outcome.difference is not None]
        most = f", largest difference {max(held):.1e} of {len(held)} held against plain forwards" if held else ""
        sys.stdout.write(f"{kind}: {len(outcomes)} inputs, {refused.total()} refused{most}\n")
        for reason, times in refused.most_common():
            sys.stdout.write(f"    {times:5d}  {reason}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else sum(SHARES.values()))
