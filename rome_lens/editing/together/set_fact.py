"""One fact of a set: what was asked, what the model said, and the numbers that a solution needs of it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.checks import shown
from rome_lens.editing.outcome import Outcome
from rome_lens.editing.together.kernels import Kernel
from rome_lens.editing.together.system import System
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest


@dataclass(frozen=True, eq=False)
class SetFact:
    """A fact as a set keeps it. Facts are equal where what was asked and what was found for it are.

    Attributes:
        outcome: the request, what the model said before, and what it says with the set, if that was measured.
        keys: [key, d_mlp] for each layer of the set, what the layer reads at the subject's last token in the unedited
            model: the mean over the context templates, or several keys (`keys` of the editor).
        weighed: [key, d_mlp] for each layer, the keys as the set's kernel weighs them, in float64.
        shares: of each key, how much of the fact's misfit it is; they add up to 1.
        residual: [d_model] what the layers' values lack together, at each of the keys.
        goal: [d_model] what the last layer's block is to give at the bare prompt's subject; None for values that are
            found at `W_out`.
        old_ids: token ids of the old answer.
        kernels: ids of the kernels that the keys are weighed by.
        notes: what is worth knowing of this fact.
        found_on: identifies the model's layers that the keys are of.
    """

    outcome: Outcome
    keys: tuple[Float[Tensor, "key d_mlp"], ...]
    weighed: tuple[Float[Tensor, "key d_mlp"], ...]
    shares: tuple[float, ...]
    residual: Float[Tensor, " d_model"]
    goal: Float[Tensor, " d_model"] | None
    old_ids: tuple[int, ...]
    kernels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    found_on: tuple[Fingerprint, ...] = ()

    @property
    def request(self) -> EditRequest:
        """What was asked."""
        return self.outcome.request

    @property
    def words(self) -> str:
        """What was asked, for people to read: `text → target`."""
        return self.request.words

    @cached_property
    def id(self) -> str:
        """What two facts share exactly when they ask for the same and the same was found: 16 hexadecimal digits."""
        digest = hashlib.sha256(repr((self.request, self.shares)).encode())
        goal = () if self.goal is None else (self.goal,)
        for tensor in (*self.keys, *self.weighed, self.residual, *goal):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, SetFact) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"SetFact({self.request.text!r} -> {self.request.target_new!r}, {self.id})"


def in_order(facts: Sequence[SetFact]) -> list[int]:
    """The numbers of facts in the order in which they are solved: that of their ids, however they came."""
    return sorted(range(len(facts)), key=lambda number: facts[number].id)


def stacked(
    facts: Sequence[SetFact], layers: Sequence[int], penalty: float, kernels: Sequence[Kernel] | None
) -> System:
    """The system of facts, in their own order.

    Args:
        facts: in any order, with as many keys each.
        layers: the layers that their keys are of.
        penalty: what moving costs.
        kernels: of the layers, if they are known.
    """
    ordered = [facts[number] for number in in_order(facts)]
    shares = torch.tensor([fact.shares for fact in ordered], dtype=torch.float64)
    root = shares.sqrt()[:, :, None]

    def rows(of_facts: Sequence[Float[Tensor, "#key any"]]) -> Float[Tensor, "row any"]:
        return (torch.stack(list(of_facts)).double() * root).flatten(0, 1)

    return System(
        tuple(layers),
        tuple(rows([fact.keys[place] for fact in ordered]) for place in range(len(layers))),
        tuple(rows([fact.weighed[place] for fact in ordered]) for place in range(len(layers))),
        rows([fact.residual[None] for fact in ordered]),
        penalty,
        None if kernels is None else tuple(kernels),
        shares,
    )


def check_requests(
    requests: Sequence[EditRequest], there: Sequence[EditRequest] = (), *, allow_conflicts: bool
) -> None:
    """Refuse requests that one set cannot serve, before any work is done.

    Args:
        requests: what is asked for.
        there: what the set holds already.
        allow_conflicts: let one subject have several targets.

    Raises:
        SettingError: a request is there twice; or a subject has two targets.
    """
    known = {(one.text, one.subject, one.target_new) for one in there}
    places: dict[tuple[str, str, str], int] = {}
    targets: dict[str, EditRequest] = {}
    for one in there:
        targets.setdefault(one.subject, one)
    for number, one in enumerate(requests):
        same = (one.text, one.subject, one.target_new)
        if same in known or same in places:
            where = "is in the set already" if same in known else f"is request {places[same]}, too"
            raise SettingError(
                f"request {number}, {one.text!r} -> {one.target_new!r}, {where}; ask for it once, since twice would "
                "count it double"
            )
        places[same] = number
        other = targets.setdefault(one.subject, one)
        if not allow_conflicts and other.target_new.strip() != one.target_new.strip():
            raise SettingError(
                f"the subject {one.subject!r} has two targets: {other.text!r} -> {other.target_new!r} and "
                f"{one.text!r} -> {one.target_new!r}; their keys are nearly one, and each would spoil the other: leave "
                "one out, or give allow_conflicts=True (in a shell: --allow-conflicts)"
            )


def facts_named(facts: Sequence[SetFact], named: Sequence[object]) -> list[int]:
    """The numbers of facts of a set that a caller named: by the fact, its number, its id, or its request.

    Raises:
        SettingError: there is no such fact, or it is named twice.
    """
    found: list[int] = []
    for one in named:
        number = _number(facts, one)
        if number is None:
            raise SettingError(
                f"the set has no fact {shown(one)}; expected one of its facts, a number from 0 to {len(facts) - 1}, an "
                "id, or a request"
            )
        if number in found:
            raise SettingError(f"the fact {facts[number].words!r} is named twice; name it once")
        found.append(number)
    return found


def _number(facts: Sequence[SetFact], named: object) -> int | None:
    if isinstance(named, int) and not isinstance(named, bool):
        return named % len(facts) if -len(facts) <= named < len(facts) else None
    for number, fact in enumerate(facts):
        if (isinstance(named, SetFact) and named == fact) or named in (fact.id, fact.request):
            return number
    return None
