"""Facts that a model of random weights knows: it was asked first, since nobody taught it any."""

import random

import torch

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.loading.tiny import TINY_PROMPT, tiny_model


def make_model():
    """A model of a process's own."""
    return tiny_model("auto")


def said_next(model, text):
    """The token that a model continues a text with."""
    backend = as_backend(model)
    ids = backend.tokenizer(text, add_special_tokens=False)["input_ids"]
    return backend.tokenizer.decode([int(backend.logits(torch.tensor([ids]), keep=1)[0, -1].argmax())])


def known_facts(model, n, *, seed=0):
    """Facts of several lengths, with subjects of one to four tokens, whose answers are what `model` says."""
    draw, found = random.Random(seed), []
    words = sorted(set(TINY_PROMPT.split()))
    while len(found) < n:
        before, subject, after = (" ".join(draw.choices(words, k=draw.randint(*k))) for k in ((0, 1), (1, 4), (0, 4)))
        prompt = " ".join(part for part in (before, "{}", after) if part)
        found.append(rl.Fact(prompt, subject, said_next(model, prompt.replace("{}", subject))))
    return found


def unknown_fact(model):
    """A fact that it does not know."""
    (fact,) = known_facts(model, 1, seed=99)
    return rl.Fact(fact.prompt, fact.subject, next(w for w in sorted(set(TINY_PROMPT.split())) if w != fact.answer))
