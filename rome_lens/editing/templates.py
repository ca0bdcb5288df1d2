"""Context templates: short texts in front of the prompt, so that the key does not depend on what stands there."""

from collections.abc import Sequence

import torch

from rome_lens.backends import Backend
from rome_lens.backends.generation import never_text, sample, text_start
from rome_lens.editing.prompts import BARE
from rome_lens.tokens import encode

# How the texts begin, so that they are about more than one thing.
_OPENINGS = (
    "The first",
    "In the",
    "It was",
    "When the",
    "There are",
    "We have",
    "A new",
    "For many",
    "This is",
    "As I",
)
# Lengths in tokens and how many texts of each: a subject stands near the beginning, or further on.
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
        prepend_bos: let the texts begin behind BOS instead of the mark between documents.
    """
    tokenizer = backend.tokenizer
    generator = torch.Generator().manual_seed(seed)
    front = [tokenizer.bos_token_id] if prepend_bos else text_start(tokenizer)
    templates = [BARE]
    for length, count in lengths:
        rows = [[*front, *encode(tokenizer, _OPENINGS[i % len(_OPENINGS)])[0]] for i in range(count)]
        for width in sorted({len(row) for row in rows}):
            prompts = torch.tensor([row for row in rows if len(row) == width], device=backend.device)
            written = sample(
                backend,
                prompts,
                n_new=max(1, length - (width - len(front))),
                generator=generator,
                top_k=_TOP_K,
                banned=never_text(backend),
            )
            templates += [_template(tokenizer.decode(row[len(front) :])) for row in written.tolist()]
    return tuple(dict.fromkeys(templates))


def _template(text: str) -> str:
    """A text as a template: one line, no braces, a full stop of its own."""
    line = " ".join(text.replace("{", " ").replace("}", " ").split()).rstrip(" .,;:-")
    return f"{line}. {BARE}" if line else BARE
