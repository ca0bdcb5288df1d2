"""The record of a layer that carries edits: its matrix as it was, the edits on top, and which of them it holds now.

The record lies on the model itself, so it goes with the model when that is copied or thrown away. Beside the edits it
keeps the matrix as it was and as it was written last, and of many edits their exact sum (`exact_sum`): the weights are
always the first of these plus the sum of its edits, rounded once, whatever the order in which they came and went, and
after the last of them that matrix itself. What one more edit costs does not grow with their number.

Others write into the weights as well: `load_state_dict`, training, another precision. So a record is held against the
weights whenever it is asked, and says what they are: where they hold some of its edits only, or none, the others are
no longer applied. Weights that are none of this were changed by other means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint, as_backend
from rome_lens.editing.exact_sum import ExactSum, same, sum_on
from rome_lens.editing.patch import Patch
from rome_lens.editing.weight_update import WeightUpdate
from rome_lens.errors import EditStateError, ModelError

_ATTRIBUTE = "_rome_lens_edits"
# Up to as many edits are summed anew at every change; beyond, their sum is kept, which takes the memory of two float64
# matrices, and a change costs the same whatever their number.
_FEW = 3
# As many rows of a matrix tell which of many sets of edits it may hold; the whole matrix decides.
_TELLING_ROWS = 4


@dataclass
class Record:
    """One layer's matrix as it was, and the edits on top of it.

    Attributes:
        layer: the layer.
        original: [d_mlp, d_model].
        fingerprint: of the original.
        written: the original with the edits, as it was written last.
        patches: the edits, in the order in which they came.
        total: the sum of what they add; None where they are few.
    """

    layer: int
    original: Tensor
    fingerprint: Fingerprint
    written: Tensor
    patches: list[Patch] = field(default_factory=list)
    total: ExactSum | None = None

    def updates(self, patches: Sequence[Patch]) -> list[WeightUpdate]:
        """What these edits add to this layer, in an order of their own: that of their ids."""
        in_order = sorted(patches, key=lambda patch: patch.id)
        return [here.update for patch in in_order for here in patch.layers if here.layer == self.layer]

    def with_edits(self, patches: Sequence[Patch]) -> Float[Tensor, "d_mlp d_model"]:
        """The original with these edits: those that it has, and one more or one less."""
        if len(patches) <= _FEW:
            self.total = None
            return sum_on(self.original, self.updates(patches))
        if self.total is not None:
            before, after = {patch.id for patch in self.patches}, {patch.id for patch in patches}
            for update in self.updates([patch for patch in patches if patch.id not in before]):
                self.total.add(update)
            for update in self.updates([patch for patch in self.patches if patch.id not in after]):
                self.total.remove(update)
        if self.total is None or not self.total.exact:
            self.total = ExactSum(self.original, self.updates(patches))
        return self.total.on(self.original)

    def holds(self, patch: Patch) -> bool:
        """Whether an edit is among those of the record."""
        return any(other.id == patch.id for other in self.patches)

    def check_precision(self, backend: Backend) -> None:
        """Refuse to write in another precision than the one in which the kept matrix is.

        Raises:
            EditStateError: the model was brought to another one since.
        """
        now, was = backend.w_out(self.layer).matrix.dtype, self.original.dtype
        if now == was or not self.patches:
            return
        widened = torch.promote_types(now, was) == now
        advice = f"bring it back with model.to({was}), then revert" if widened else "load the model anew"
        raise EditStateError(
            f"the model was {was} when layer {self.layer} was edited and is {now} now; {advice}, or keep the weights "
            f"as they are with rome_lens.forget_edits(model, layer={self.layer})"
        )


def records_of(model: Any) -> dict[int, Record]:
    """The records on a model, by layer."""
    return getattr(model, "__dict__", {}).get(_ATTRIBUTE, {})


def keep_record(model: Any, record: Record) -> None:
    """Put a record on a model, or take it away where no edit is left in it."""
    if not record.patches:
        drop_record(model, record.layer)
        return
    # Plain assignment to a TransformerBridge would be handed on to the model inside.
    model.__dict__.setdefault(_ATTRIBUTE, {})[record.layer] = record


def drop_record(model: Any, layer: int) -> None:
    """Take a layer's record away, if there is one."""
    records = records_of(model)
    records.pop(layer, None)
    if not records:
        model.__dict__.pop(_ATTRIBUTE, None)


def settled_record(backend: Backend, layer: int) -> Record | None:
    """The record of a layer, brought into line with its weights; None where no edit is in them.

    Raises:
        EditStateError: the weights were changed by other means.
    """
    record = records_of(backend.model).get(layer)
    if record is not None and not _bring_into_line(backend, record):
        raise EditStateError(
            f"W_out of layer {layer} was changed outside rome_lens after it was edited, and undoing the edit would "
            "undo that change too: put the weights back as they were, edited or not, or keep them as they are with "
            f"rome_lens.forget_edits(model, layer={layer})"
        )
    return records_of(backend.model).get(layer)


def patches_of(model: Any, layer: int) -> tuple[Patch, ...]:
    """The edits of a layer; where the weights were changed by other means, those that were applied before."""
    record = records_of(model).get(layer)
    if record is not None:
        _bring_into_line(as_backend(model), record)
        record = records_of(model).get(layer)
    return () if record is None else tuple(record.patches)


def _bring_into_line(backend: Backend, record: Record) -> bool:
    """Let a record say which of its edits the weights hold; whether they hold any set of them, or none."""
    try:
        now = backend.w_out(record.layer).matrix
    except ModelError:  # what stands there now is no matrix of numbers, such as a quantised one
        return False
    if same(now, record.written):
        return True
    if same(now, record.original):
        drop_record(backend.model, record.layer)
        return True
    for patches in _sets(record, now):
        written = sum_on(record.original, record.updates(patches))
        if same(now, written):
            record.patches, record.total, record.written = patches, None, written
            return True
    return False


def _sets(record: Record, now: Float[Tensor, "d_mlp d_model"]) -> Iterator[list[Patch]]:
    """Sets of edits that a matrix may hold, but for all and none: those of an earlier moment, all but one.

    Only those that a few rows of the matrix agree with.
    """
    patches, n = record.patches, len(record.patches)
    if n < 2 or now.shape != record.original.shape:
        return
    rows = torch.linspace(0, now.shape[0] - 1, _TELLING_ROWS).round().long()
    before, after = (x[rows.to(x.device)].to("cpu", torch.float64).nan_to_num() for x in (record.original, now))
    updates = [record.updates([patch])[0] for patch in patches]
    gains = torch.stack([update.rows(rows.to(next(iter(update.tensors.values())).device)).cpu() for update in updates])
    sets = [(patches[:k], before + gains[:k].sum(dim=0)) for k in range(n - 1, 0, -1)]
    sets += [(patches[:i] + patches[i + 1 :], before + gains.sum(dim=0) - gains[i]) for i in range(n - 1)]
    eps = max(torch.finfo(x.dtype).eps for x in (record.original, now))
    allowed = 2 * eps * max(before.abs().max().item(), after.abs().max().item(), gains.abs().max().item())
    for some, expected in sets:
        if (expected - after).abs().max() <= allowed:
            yield some
