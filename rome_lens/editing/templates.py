"""Context templates: short texts in front of the prompt, so that the key does not depend on what stands there."""

from collections.abc import Sequence

import torch

from rome_lens.backends import Backend
from rome_lens.backends.generation import sample
from rome_lens.editing.rows import BARE
from rome_lens.tokens import encode

# Every text begins with one of these, so that a model without a BOS token has something to go on from.
_OPENINGS = ("The", "In", "It", "When", "There", "We", "A", "For", "This", "As")
# Lengths in tokens and how many texts of each (SPEC 2): a subject stands near the beginning, or further on.
_LENGTHS = ((5, 10), (10, 10))
# As the released code draws them: likely words, so that the texts are sentences.
_TOP_K = 5


def sample_templates(
    backend: Backend, *, seed: int, lengths: Sequence[tuple[int, int]] = _LENGTHS, prepend_bos: bool = False
) -> tuple[str, ...]:
    """The bare template and texts that the model itself writes, each followed by ". {}" (released code's `generate`).

    Args:
        backend: the model.
        seed: the same seed gives the same texts on the same model; no global generator is touched.
        lengths: pairs of a length in tokens and how many texts of that length.
        prepend_bos: let the texts begin behind BOS.
    """
    tokenizer = backend.tokenizer
    generator = torch.Generator().manual_seed(seed)
    bos = [tokenizer.bos_token_id] if prepend_bos else []
    templates = [BARE]
    for length, count in lengths:
        rows = [[*bos, *encode(tokenizer, _OPENINGS[i % len(_OPENINGS)])[0]] for i in range(count)]
        for width in sorted({len(row) for row in rows}):
            prompts = torch.tensor([row for row in rows if len(row) == width], device=backend.device)
            written = sample(
                backend,
                prompts,
                n_new=max(1, length - (width - len(bos))),
                generator=generator,
                top_k=_TOP_K,
                banned=tokenizer.all_special_ids,
            )
            templates += [_template(tokenizer.decode(row[len(bos) :])) for row in written.tolist()]
    return tuple(dict.fromkeys(templates))


def _template(text: str) -> str:
    """A text as a template: one line, no braces, a full stop of its own."""
    line = " ".join(text.replace("{", " ").replace("}", " ").split()).rstrip(" .,;:-")
    return f"{line}. {BARE}" if line else BARE
