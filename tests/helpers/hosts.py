"""The architectures of `architectures` with the classes of TransformerLens that host them."""

from collections.abc import Collection
from typing import Any

import pytest
from architectures import BACKENDS, BRIDGE, HOOKED
from effort import slow

needs_hooked = pytest.mark.skipif(
    HOOKED not in BACKENDS, reason="the installed TransformerLens has no HookedTransformer"
)

# TransformerLens 3.9 does not host the others as a HookedTransformer (under transformers 5).
HOOKED_HOSTS = [
    "gpt2",
    "gptj",
    "neo",
    "neox",
    "neox-sequential",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "opt",
    "bloom",
]
BRIDGE_HOSTS = [
    *HOOKED_HOSTS,
    "mixtral",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "falcon",
    "granite",
    "olmo2",
    "stablelm",
    # TransformerLens 3.9's bridge computes something else.
    *(["cohere"] if HOOKED not in BACKENDS else []),
]
SIX = ("gpt2", "llama", "gemma2", "gptj", "falcon", "bloom")
"""One of each kind: learned and rotary positions and ALiBi, one norm a block and more, parallel and not, gated MLPs."""


def hosted(*, without: Collection[str] = (), at_landing: Collection[str] | None = None) -> list[Any]:
    """Every architecture in every class that hosts it, as cases of a test.

    At every landing each architecture is tried in one class, and those of the six in both.

    Args:
        without: architectures to leave out.
        at_landing: those that are tried at every landing; None is all.
    """
    cases: list[Any] = []
    for backend, names in ((HOOKED, HOOKED_HOSTS), (BRIDGE, BRIDGE_HOSTS)):
        for name in names if backend in BACKENDS else ():
            again = backend == BRIDGE and HOOKED in BACKENDS and name in HOOKED_HOSTS and name not in SIX
            if name not in without:
                wanted = not again and (at_landing is None or name in at_landing)
                cases.append((name, backend) if wanted else slow(name, backend))
    return cases


EACH_BACKEND = [BACKENDS[0], *(slow(backend) for backend in BACKENDS[1:])]
"""The classes, where what is tried does not depend on them: at every landing one, with TransformerLens 4 the other."""
