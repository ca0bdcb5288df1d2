"""Sets of facts of random numbers, which are quicker to have than facts that are found."""

from dataclasses import replace

import torch

import rome_lens as rl
from rome_lens.editing.together.edit_set import EditSet

SUBJECTS = ("The tower", "A bridge", "Big Ben", "The Louvre", "My car", "Rain", "This ship", "Her hat")


def requests(n):
    """So many requests about as many subjects."""
    return tuple(
        rl.EditRequest("{} is in", subject=f"{SUBJECTS[i % 8]} {i}", target_new=("Rome", "Oslo", "Bonn")[i % 3])
        for i in range(n)
    )


def random_facts(editor, like, asked, *, seed=1):
    """Facts of random keys and values, weighed as an editor does.

    Args:
        editor: the editor.
        like: a fact that was found, for all else.
        asked: requests.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    facts = []
    for request in asked:
        keys = tuple(torch.randn(key.shape, generator=generator).to(key) for key in like.keys)
        facts.append(
            replace(
                like,
                outcome=replace(like.outcome, request=request),
                keys=keys,
                weighed=tuple(kernel.weigh(each) for kernel, each in zip(editor.kernels, keys, strict=True)),
                residual=torch.randn(like.residual.shape, generator=generator).to(like.residual),
                kernels=tuple(kernel.id for kernel in editor.kernels),
            )
        )
    return tuple(facts)


def set_of(like, facts, *, editor=None):
    """The facts, on the terms of another set."""
    return EditSet.of(facts, like.terms, like.origin, kernels=like.kernels, editor=editor)
