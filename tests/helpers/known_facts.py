"""Facts that a model of random weights knows: it was asked first, since nobody taught it any."""

import random

import torch

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.loading.tiny import TINY_PROMPT, tiny_model


def make_model():
    """A model of a process's own."""
    return tiny_model("auto")


def known_facts(model, n, *, seed=0):
    """Facts of several lengths, with subjects of one to four tokens, whose answers are what `model` says."""
    draw, backend, found = random.Random(seed), as_backend(model), []
    words = sorted(set(TINY_PROMPT.split()))
    while len(found) < n:
        before, subject, after = (" ".join(draw.choices(words, k=draw.randint(*k))) for k in ((0, 1), (1, 4), (0, 4)))
        prompt = " ".join(part for part in (before, "{}", after) if part)
        ids = backend.tokenizer(prompt.replace("{}", subject), add_special_tokens=False)["input_ids"]
        said = int(backend.logits(torch.tensor([ids]), keep=1)[0, -1].argmax())
        found.append(rl.Fact(prompt, subject, backend.tokenizer.decode([said])))
    return found


def unknown_fact(model):
    """A fact that it does not know."""
    (fact,) = known_facts(model, 1, seed=99)
    return rl.Fact(fact.prompt, fact.subject, next(w for w in sorted(set(TINY_PROMPT.split())) if w != fact.answer))
