"""What a file of a set holds, checked field by field."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.editing.edit_file import (
    check_kind,
    check_tensor,
    checked_list,
    layers_from,
    origin_from,
    outcomes_from,
)
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.together.edit_set import EditSet
from rome_lens.editing.together.kernels import Kernel, NullSpaceKernel, TextKernel
from rome_lens.editing.together.set_fact import SetFact
from rome_lens.editing.together.terms import LayerBase, Terms
from rome_lens.storage import read_fields

_NUMBER = float | int
_TERMS = {"penalty": _NUMBER, "spread": str, "dtype": str, "layers": list}
_BASE = {"norm": _NUMBER, "text_energy": _NUMBER, "width": int, "module": str | None, "module_transposed": bool}
_FACT = {"old_ids": list, "notes": list, "shares": list}


def set_from(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> EditSet:
    """The set that a file holds. Fields of a later version are left alone.

    Raises:
        RomeLensError, KeyError, TypeError, ValueError, OverflowError, AttributeError: it is damaged.
    """
    terms = _terms(settings["terms"])
    layers = layers_from(settings["layers"], tensors)
    if tuple(here.layer for here in layers) != terms.numbers:
        raise ValueError(f"the layers are {terms.numbers}, and the updates of others")
    facts = _facts(settings, tensors, terms)
    kernel = settings.get("kernel")
    kernels = None if kernel is None else (_kernel(kernel, tensors, terms),)
    return EditSet(
        tuple(fact.outcome for fact in facts),
        layers,
        origin_from(settings["origin"]),
        facts,
        terms=terms,
        kernels=kernels,
    )


def _terms(held: Any) -> Terms:
    known = read_fields(held, _TERMS)
    dtype = getattr(torch, known["dtype"], None)
    if dtype not in (torch.float32, torch.float64) or known["spread"] not in ("joint", "released"):
        raise ValueError(f"the terms are {known['dtype']}, {known['spread']}")
    if not 0 <= known["penalty"] < float("inf"):
        raise ValueError(f"penalty is {known['penalty']}")
    bases = tuple(
        LayerBase(Fingerprint.from_dict(one["fingerprint"]), **read_fields(one, _BASE)) for one in known["layers"]
    )
    return Terms(float(known["penalty"]), known["spread"], dtype, bases)


def _facts(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], terms: Terms) -> tuple[SetFact, ...]:
    outcomes = outcomes_from(settings["outcomes"], dense=False)
    held = [read_fields(one, _FACT) for one in checked_list("facts", settings["facts"])]
    n, d_model, shares = len(outcomes), terms.layers[0].fingerprint.d_model, _shares(held)
    keys, weighed = [], []
    for here in terms.layers:
        for name, into in (("keys", keys), ("weighed", weighed)):
            tensor = tensors[f"facts.{here.layer}.{name}"]
            check_tensor(name, tensor, (n, len(shares[0]), here.fingerprint.d_mlp))
            into.append(tensor)
    goals = tensors.get("facts.goal")
    for name, tensor in (("residual", tensors["facts.residual"]), ("goal", goals)):
        if tensor is not None:
            check_tensor(name, tensor, (n, d_model))
    kernels = checked_list("fact_kernels", settings["fact_kernels"])
    if not len(held) == len(kernels) == n:
        raise ValueError(f"{n} outcomes of {len(held)} facts")
    found = []
    for number, (outcome, known, ids) in enumerate(zip(outcomes, held, kernels, strict=True)):
        for token in known["old_ids"]:
            check_kind("old_ids", token, int)
        found.append(
            SetFact(
                outcome,
                tuple(tensor[number] for tensor in keys),
                tuple(tensor[number].double() for tensor in weighed),
                shares[number],
                tensors["facts.residual"][number],
                None if goals is None else goals[number],
                tuple(known["old_ids"]),
                tuple(map(str, ids)),
                tuple(map(str, known["notes"])),
                tuple(here.fingerprint for here in terms.layers),
            )
        )
    return tuple(found)


def _shares(facts: Sequence[Mapping[str, Any]]) -> list[tuple[float, ...]]:
    """Of each fact's keys."""
    found = [tuple(map(float, fact["shares"])) for fact in facts]
    n_keys = {len(shares) for shares in found}
    if len(n_keys) != 1 or 0 in n_keys:
        raise ValueError(f"facts have {sorted(n_keys)} keys")
    if not all(0 < share <= 1 + 1e-9 for shares in found for share in shares):
        raise ValueError("a key's share is not above 0 and at most 1")
    return found


def _kernel(held: Mapping[str, Any], tensors: Mapping[str, Tensor], terms: Terms) -> Kernel:
    (here,) = terms.layers
    d_mlp, numbers = here.fingerprint.d_mlp, held["numbers"]
    if held["name"] == TextKernel.name:
        matrix = tensors["kernel.second_moment"]
        check_tensor("second_moment", matrix, (d_mlp, d_mlp))
        if numbers["ridge"] is not None:
            check_kind("ridge", numbers["ridge"], _NUMBER)
        return TextKernel(SecondMoment.from_matrix(matrix, layer=here.layer), numbers["ridge"])
    if held["name"] == NullSpaceKernel.name:
        basis, values = tensors["kernel.basis"], tensors["kernel.values"]
        check_tensor("basis", basis, (d_mlp, here.width))
        check_tensor("values", values, (here.width,))
        known = read_fields(numbers, {"total": _NUMBER, "scale": _NUMBER})
        return NullSpaceKernel(here.layer, basis, values, **known)
    raise ValueError(f"the kernel is {held['name']!r}")
