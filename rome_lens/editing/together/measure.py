"""What a model says with a set of facts."""

from collections.abc import Sequence

from rome_lens.backends import Backend
from rome_lens.editing.answers import answered_prompt, followed_by
from rome_lens.editing.batches import split_by_length
from rome_lens.editing.hooks import Hook
from rome_lens.editing.outcome import Probabilities
from rome_lens.editing.solved import both_probabilities
from rome_lens.editing.together.set_fact import SetFact

_AT_A_TIME = 16


def probabilities_with(
    backend: Backend, facts: Sequence[SetFact], hooks: Sequence[tuple[str, Hook]], *, prepend_bos: bool
) -> list[Probabilities]:
    """What the model gives to the target and to the old answer of each fact, after the bare prompt.

    Args:
        backend: the model, in evaluation mode.
        facts: the facts.
        hooks: what is changed meanwhile, for all rows.
        prepend_bos: whether BOS stands in front of every prompt.
    """
    targets = [answered_prompt(backend, f.request, f.request.target_new, prepend_bos=prepend_bos) for f in facts]
    old = [followed_by(backend, target, fact.old_ids) for target, fact in zip(targets, facts, strict=True)]
    lengths = [max(len(one.ids), len(other.ids)) for one, other in zip(targets, old, strict=True)]
    found: dict[int, Probabilities] = {}
    for part in split_by_length(lengths, batch_size=_AT_A_TIME):
        read = both_probabilities(backend, [targets[i] for i in part], [old[i] for i in part], hooks=hooks)
        found |= zip(part, read, strict=True)
    return [found[number] for number in range(len(facts))]
