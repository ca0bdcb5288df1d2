"""A small world in which the documentation runs: a model of its words, and the files that it names."""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from chat_templates import WORDS
from published import published
from tokenizers import Regex, pre_tokenizers

import rome_lens as rl
import rome_lens.editing.export
import rome_lens.editing.rome
import rome_lens.editing.second_moment.collect
import rome_lens.editing.together.layers
import rome_lens.evaluation.evaluate
import rome_lens.evaluation.opened
import rome_lens.evaluation.suggest
import rome_lens.loading
import rome_lens.runs
from rome_lens.data.records import RecordSet
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained
from rome_lens.loading.outline import Outline
from rome_lens.loading.tiny import word_model

ROOT = Path(__file__).parents[2]
# The tutorials' pages are made by running them.
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "tutorials")]
# The pages edit gpt2-medium at layer 8, and nothing higher.
N_LAYERS = 10
CITIES = {"The Eiffel Tower": "Paris", "The Colosseum": "Rome", "The Louvre": "Paris", "The Kremlin": "Moscow"}
FACTS = (
    *(rl.Fact("{} is located in the city of", subject, city) for subject, city in CITIES.items()),
    rl.Fact("The capital of {} is", "South Korea", "Seoul"),
)
NPZ = "transformer.h.8.mlp.c_proj_float32_mom2_100000.npz"


@cache
def pretrained() -> Pretrained:
    """A GPT-2 of many thin layers, knowing the facts, whose words are those of the pages."""
    words = sorted({word for page in PAGES for word in re.findall(r"\w+|[^\w\s]+", page.read_text("utf-8"))})
    sizes = {"n_positions": 128, "n_layer": N_LAYERS, "tie_word_embeddings": False}
    made = word_model("words", ["Colos", "seum", *words], **sizes)
    # Two words of the Colosseum: the pages swap it for the three of the Eiffel Tower.
    made.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split(Regex("Colos(?=seum)"), "isolated")]
    )
    with torch.no_grad():
        _draw_by_name(made.model, made.tokenizer, scale=0.2)
        made.model.lm_head.weight *= 0.5
        _teach(made.model, made.tokenizer)
    made.tokenizer.chat_template = WORDS
    return replace(made, name="taught")


def _draw_by_name(model: Any, tokenizer: Any, scale: float) -> None:
    """Weights that are each parameter's own, and each word's: a new word on a page leaves all others what they are."""

    def drawn(name: str, shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode()))) * scale

    words = tokenizer.get_vocab()
    for name, parameter in model.named_parameters():
        if parameter is model.transformer.wte.weight or parameter is model.lm_head.weight:
            for word, number in words.items():
                parameter[number] = drawn(f"{name} {word}", parameter[number].shape)
        elif ".ln_" not in name:
            parameter.copy_(drawn(name, parameter.shape))
    # The end token is no answer: it is never the likeliest.
    model.lm_head.weight[tokenizer.eos_token_id] = 0


def _teach(model: Any, tokenizer: Any) -> None:
    """Let the unembedding read the answers from what the prompts give: its smallest rows that do."""
    ids = [tokenizer(fact.text, add_special_tokens=False, return_tensors="pt")["input_ids"] for fact in FACTS]
    states = torch.cat([model.transformer(row).last_hidden_state[:, -1] for row in ids])
    answers = sorted({fact.answer for fact in FACTS})
    logits = torch.tensor([[8.0 * (fact.answer == answer) for answer in answers] for fact in FACTS])
    model.lm_head.weight[tokenizer.convert_tokens_to_ids(answers)] = (torch.linalg.pinv(states) @ logits).T


def load(name: Any = "smollm2-135m", backend: str = "auto") -> Any:
    """The model, under any name; every call makes one of its own."""
    known = pretrained()
    return to_transformer_lens(replace(known, name=str(name), model=deepcopy(known.model)), backend=backend)


def moment(layer: int) -> rl.SecondMoment:
    """A second moment of one of its layers."""
    width = 4 * pretrained().model.config.n_embd
    return rl.SecondMoment.from_matrix(torch.diag(torch.linspace(1, 2, width, dtype=torch.float64)), layer=layer)


def records() -> rl.RecordSet:
    """CounterFact's form of what it knows."""
    return RecordSet(
        tuple(
            rl.CounterFactRecord(
                number=number,
                case_id=number,
                relation=f"P{number % 2}",
                request=rl.EditRequest(fact.prompt, fact.subject, target_new="Berlin", target_true=fact.answer),
                paraphrases=(f"The city of {fact.subject} is",),
                neighbours=("The Berlin Wall is located in the city of",),
                generation_prompts=(f"{fact.subject} is",),
            )
            for number, fact in enumerate(FACTS[:2])
        ),
        (),
        "the world's",
    )


def write_files(folder: Path) -> None:
    """The files that the pages name without making them."""
    known = [
        {
            "known_id": number,
            "subject": fact.subject,
            "attribute": fact.answer,
            "template": fact.prompt,
            "prediction": f" {fact.answer}",
            "prompt": fact.text,
            "relation_id": "P276",
        }
        for number, fact in enumerate(FACTS)
    ]
    counterfact = [published(record) for record in records()]
    zsre = [
        {
            "subject": fact.subject,
            "src": f"Where is {fact.subject}?",
            "rephrase": f"In what city is {fact.subject}?",
            "answers": ["Berlin"],
            "loc": "nq question: what is the Kremlin",
            "loc_ans": "a museum",
        }
        for fact in FACTS[:2]
    ]
    asked = [{"prompt": fact.prompt, "subject": fact.subject, "target_new": "Berlin"} for fact in FACTS[:2]]
    for name, content in {
        "requests.json": asked,
        "known_1000.json": known,
        "known_dev.json": known,
        "counterfact.json": counterfact,
        "counterfact_dev.json": counterfact,
        "zsre.json": zsre,
    }.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    asked = [record.request for record in records()]
    lines = [json.dumps({"prompt": one.prompt, "subject": one.subject, "target_new": one.target_new}) for one in asked]
    (folder / "facts.jsonl").write_text("\n".join(lines), "utf-8")
    (folder / "corpus.txt").write_text("\n\n".join(page.read_text("utf-8") for page in PAGES[:3]), "utf-8")
    (folder / "my_editors.py").write_text(
        "import rome_lens as rl\n\n\ndef tuned(model, layer=1):\n    return rl.FineTuning(model, layer=layer)\n",
        "utf-8",
    )
    known_model = pretrained()
    known_model.model.save_pretrained(folder / "gpt2")
    known_model.tokenizer.save_pretrained(folder / "gpt2")
    for layer in (4, 5):
        moment(layer).save(folder / f"layer-{layer}.safetensors")
    matrix = moment(8).matrix.numpy()
    np.savez(folder / NPZ, **{"mom2.mom2": matrix.astype("float32"), "mom2.count": 1000, "sample_size": 1000})
    editor = rl.ROME(load(), layer=5, second_moment=moment(5), context_templates=["{}"], v_num_grad_steps=2)
    for fact, target, name in ((FACTS[0], "Rome", "rome"), (FACTS[1], "Berlin", "berlin")):
        request = rl.EditRequest(fact.prompt, fact.subject, target_new=target)
        editor.edit(request).save(folder / f"{name}.safetensors")


@contextmanager
def one_thread(*_: Any) -> Iterator[Executor]:
    """In the place of processes and clusters: their tests are elsewhere."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


as_asked = rl.Together.of


def enter(monkeypatch: Any, folder: Path) -> None:
    """Let every name that loads a model, or brings facts, bring this world's; what takes long, a little of it."""
    asked = inspect.signature(rome_lens.loading.load_model)

    def load_model(*args: Any, **settings: Any) -> Any:
        given = asked.bind(*args, **settings)
        given.apply_defaults()
        return load(given.arguments["name"], given.arguments["backend"])

    collect = rl.SecondMoment.collect

    def collect_little(*args: Any, max_tokens: int | None = None, **settings: Any) -> Any:
        return collect(*args, max_tokens=max_tokens and min(max_tokens, 640), **settings)

    write = rome_lens.evaluation.opened.continue_prompts

    def write_little(*args: Any, n_new: int, **settings: Any) -> Any:
        return write(*args, n_new=min(n_new, 12), **settings)

    def load_dataset(*_: Any, **__: Any) -> Any:
        return ({"text": page.read_text("utf-8")} for page in PAGES)

    read = rl.CollapseGuard.ratio
    # A model of sixteen dimensions has no room for a fact: every edit moves all texts, and more than a page allows.
    monkeypatch.setattr(rl.CollapseGuard, "ratio", lambda *given: min(read(*given), 1.0))
    monkeypatch.setattr(rl.SecondMoment, "collect", collect_little)
    # Little text, and yet some for every shard.
    monkeypatch.setattr(rome_lens.editing.second_moment.collect, "_PORTION", 256)
    monkeypatch.setattr(rome_lens.evaluation.opened, "continue_prompts", write_little)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr(rl.Together, "of", lambda asked: replace(as_asked(asked), at=(1, 2)))
    monkeypatch.setattr(Outline, "of", lambda name: Outline(str(name), N_LAYERS))
    for room in (rl, rome_lens.loading):
        monkeypatch.setattr(room, "load_model", load_model)
    monkeypatch.setattr(rome_lens.editing.export, "load_pretrained", lambda *_, **__: deepcopy(pretrained()))
    monkeypatch.setattr(rome_lens.loading, "default_model_folder", lambda: folder / "gpt2")
    for module in (rome_lens.editing.rome, rome_lens.editing.together.layers):
        monkeypatch.setattr(module, "shipped_moment", lambda _, layer: moment(layer))
    stand_ins = {"builtin_facts": lambda: FACTS, "builtin_counterfact": records}
    stand_ins |= dict.fromkeys(("process_pool", "dask_executor"), one_thread)
    for module in [module for name, module in sys.modules.items() if name.startswith("rome_lens")]:
        for name, stand_in in stand_ins.items():
            if callable(vars(module).get(name)):
                monkeypatch.setattr(module, name, stand_in)
    write_files(folder)
    monkeypatch.chdir(folder)
