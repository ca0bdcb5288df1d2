"""What a model says in a cell: the most probable next tokens, by their mean over the corrupted copies."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from einops import reduce
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rome_lens.backends import HEADS
from rome_lens.backends.likelihood import at_least_float32
from rome_lens.checks import as_whole, shown
from rome_lens.errors import SettingError
from rome_lens.tokens import decode_each
from rome_lens.tracing.labels import in_words

N_SAID = 5
"""How many tokens a cell of a trace keeps."""

# How many are kept of some of the copies, where memory does not hold all of them at once: enough that the most probable
# of all copies are among them, and are known to be.
_KEPT_OF_PART = 32
RUNS = ("clean", "corrupted")
"""The runs in which nothing is restored: each says something, too."""

_WHICH, _HOW_PROBABLE = "said.", "said_probabilities."


@dataclass(frozen=True)
class Said:
    """The most probable next tokens.

    Attributes:
        ids: the tokens, the most probable first.
        probabilities: theirs.
        rest: no other token is more probable than this.
    """

    ids: Sequence[int]
    probabilities: Sequence[float]
    rest: float


NOTHING = Said((), (), 1.0)
"""Of what no token is known."""


class Reading(NamedTuple):
    """What is read in a cell: its score, and what else the model says, where that was asked for."""

    score: float
    said: Said | None


def grid_name(stream: str, severed: str | None) -> str:
    """What a grid is called among all of a trace's."""
    return stream if severed is None else f"severed.{severed}"


def n_kept(*, whole: bool) -> int:
    """How many tokens are kept of a part of the copies, or of all of them."""
    return N_SAID if whole else _KEPT_OF_PART


def next_probabilities(logits: Float[Tensor, "row read d_vocab"]) -> Float[Tensor, "row d_vocab"]:
    """Probability of every token behind the prompt, which the first of the read positions gives."""
    return at_least_float32(logits[:, 0]).softmax(dim=-1)


def most_probable(probabilities: Float[Tensor, "cell d_vocab"], n: int) -> list[Said]:
    """The `n` most probable tokens of each cell."""
    found = probabilities.topk(min(n + 1, probabilities.shape[-1]), dim=-1)
    # Of parts of the copies there are many, all kept to the end: in arrays they take a fifth of the memory.
    return [
        Said(array("q", ids[:n]), array("d", values[:n]), values[n] if len(values) > n else 0.0)
        for ids, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def said_in(logits: Float[Tensor, "row read d_vocab"], n_samples: int, n: int) -> Sequence[Said | None]:
    """The `n` most probable tokens of each cell, whose copies are `n_samples` rows; of none, None for each."""
    if not n:
        return [None] * (len(logits) // n_samples)
    of_cell = "(cell sample) d_vocab -> cell d_vocab"
    return most_probable(reduce(next_probabilities(logits), of_cell, "mean", sample=n_samples), n)


def merged(parts: Sequence[Said], shares: Sequence[float]) -> Said:
    """What all copies say together, from what each part of them says: those tokens alone that are certain.

    Args:
        parts: what is said in each part.
        shares: the part of all copies that each is.
    """
    if len(parts) == 1:
        (one,) = parts
        if len(one.ids) <= N_SAID:
            return one
        return Said(one.ids[:N_SAID], one.probabilities[:N_SAID], one.probabilities[N_SAID])
    found = [dict(zip(part.ids, part.probabilities, strict=True)) for part in parts]
    least, most = {}, {}
    for token in {token for part in found for token in part}:
        here = [(share, part.get(token), each.rest) for share, part, each in zip(shares, found, parts, strict=True)]
        least[token] = sum(share * (probability or 0.0) for share, probability, _ in here)
        most[token] = sum(share * (rest if probability is None else probability) for share, probability, rest in here)
    rest = sum(share * part.rest for share, part in zip(shares, parts, strict=True))
    ranked = sorted(least, key=lambda token: least[token], reverse=True)
    certain: list[int] = []
    for place, token in enumerate(ranked[:N_SAID]):
        others = max((most[other] for other in ranked[place + 1 :]), default=0.0)
        if most[token] > least[token] or least[token] < max(rest, others):
            break
        certain.append(token)
    beyond = max((most[token] for token in ranked if token not in certain), default=0.0)
    return Said(tuple(certain), tuple(least[token] for token in certain), max(rest, beyond))


@dataclass(frozen=True, eq=False)
class SaidGrids:
    """What the model says in every cell of a trace's grids.

    Attributes:
        tokens: the texts of all tokens that are said anywhere.
        which: by grid, places in `tokens`, [layer column said], the most probable first; -1 where fewer are certain.
        probabilities: theirs, 0 there.
    """

    tokens: tuple[str, ...]
    which: Mapping[str, Int[Tensor, "layer column said"]]
    probabilities: Mapping[str, Float64[Tensor, "layer column said"]]

    @classmethod
    def of(cls, said: Mapping[str, Sequence[Sequence[Said]]], tokenizer: Any) -> "SaidGrids | None":
        """The grids, with the tokens in words; None where nothing was kept."""
        if not said:
            return None
        ids = dict.fromkeys(token for grid in said.values() for row in grid for cell in row for token in cell.ids)
        place = {token: index for index, token in enumerate(ids)}
        which, probabilities = {}, {}
        for name, grid in said.items():
            shape = len(grid), len(grid[0]), N_SAID
            which[name] = torch.full(shape, -1, dtype=torch.long)
            probabilities[name] = torch.zeros(shape, dtype=torch.float64)
            for layer, row in enumerate(grid):
                for column, cell in enumerate(row):
                    here = torch.tensor([place[token] for token in cell.ids], dtype=torch.long)
                    which[name][layer, column, : len(here)] = here
                    values = torch.tensor(cell.probabilities, dtype=torch.float64)
                    probabilities[name][layer, column, : len(here)] = values
        return cls(decode_each(tokenizer, list(ids)), which, probabilities)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SaidGrids):
            return NotImplemented
        one, another = self.tensors(), other.tensors()
        return (self.tokens, one.keys()) == (other.tokens, another.keys()) and all(
            torch.equal(one[name], another[name]) for name in one
        )

    def at(self, name: str, layer: int, column: int) -> list[tuple[str, float]]:
        """What is said in a cell: tokens and their probabilities, the most probable first."""
        which, probabilities = self.which[name][layer, column], self.probabilities[name][layer, column]
        found = zip(which.tolist(), probabilities.tolist(), strict=True)
        return [(self.tokens[index], probability) for index, probability in found if index >= 0]

    def asked(self, name: str, layer: int | None, column: int | None) -> list[tuple[str, float]]:
        """What a caller asks for: a cell of a grid, whose negative numbers count from the end, or one of `RUNS`.

        Raises:
            SettingError: there is no such cell.
        """
        if name not in self.which:
            has = ", ".join(grid for grid in self.which if "." not in grid)
            raise SettingError(f"{name!r} was not traced; this trace has {has}: name one of them")
        layers, columns, _ = self.which[name].shape
        if name in RUNS:
            if layer is not None or column is not None:
                raise SettingError(f"the {name} run has no cells; leave layer and column out")
            return self.at(name, 0, 0)
        at = as_whole(layer, least=-layers, most=layers - 1), as_whole(column, least=-columns, most=columns - 1)
        if at[0] is None or at[1] is None:
            raise SettingError(
                f"{name} has no cell ({shown(layer)}, {shown(column)}); give a layer from 0 to {layers - 1} and a "
                f"{'head' if name == HEADS else 'position'} from 0 to {columns - 1}"
            )
        return self.at(name, at[0], at[1])

    def in_words(self, name: str) -> list[list[str]]:
        """What is said in each cell of a grid, [layer][column], as a figure shows it."""
        layers, columns, _ = self.which[name].shape
        return [[in_words(self.at(name, layer, column)) for column in range(columns)] for layer in range(layers)]

    def to_dict(self) -> dict[str, list[list[list[tuple[str, float]]]]]:
        """As JSON can hold it: by grid, [layer][column], tokens and their probabilities."""
        return {
            name: [[self.at(name, layer, column) for column in range(x.shape[1])] for layer in range(x.shape[0])]
            for name, x in self.which.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """As a file holds them."""
        return {f"{_WHICH}{name}": x for name, x in self.which.items()} | {
            f"{_HOW_PROBABLE}{name}": x for name, x in self.probabilities.items()
        }

    @classmethod
    def from_tensors(cls, tokens: Sequence[str], tensors: Mapping[str, Tensor]) -> "SaidGrids | None":
        """What `tensors` gave; None where a file holds nothing of it."""
        which, probabilities = (
            {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            for prefix in (_WHICH, _HOW_PROBABLE)
        )
        return cls(tuple(tokens), which, probabilities) if which else None
