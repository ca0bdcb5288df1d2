"""An edit whose update is a whole matrix, as fine-tuning leaves one; it stacks with the rank-one `Edit`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, Fingerprint
from rome_lens.editing.hooks import Hook, matrix_hooks
from rome_lens.editing.weight_edit import Probabilities, WeightEdit
from rome_lens.facts import EditRequest


@dataclass(frozen=True, eq=False, repr=False)
class MatrixEdit(WeightEdit):
    """An update of one layer's `W_out` of any rank, with all that it came from. Made by `FineTuning`.

    It is put into a model's weights, run through hook points, saved and exported as a rank-one `Edit` is, and stacks
    with such edits; but no LoRA adapter holds it.

    Attributes:
        request: what was asked.
        layer: the layer whose `W_out` changes.
        delta: [d_mlp, d_model], what `W_out` gains.
        old_answer: what the model said before: the request's `target_true`, or the model's own answer: its next
            token, or as many as it takes to differ from the target.
        before: probabilities in the unedited model.
        after: probabilities with the edit.
        relative_norm: Frobenius norm of the update over that of `W_out`.
        loss_curve: the loss at every evaluation; a step may follow the last of them.
        variant: `ft`, or `ft-l` where every weight was kept near the original one.
        settings: everything that was set, with the settings' source, as JSON holds it.
        fingerprint: by which the model is known again.
        notes: what is worth knowing: where the settings come from, what fell short.
        module: the name of the edited module in Hugging Face's model; None where TransformerLens does not say.
        module_transposed: that module keeps its weight [d_model, d_mlp], as `nn.Linear` does.
        backend: `hooked-transformer` or `transformer-bridge`: what it was made on.
        dtype: of the model that it was made on.
        seconds: how long that took.
        made_on: the edits that were in the weights while it was found, in words; empty for an unedited model.
    """

    tensor_names: ClassVar[tuple[str, ...]] = ("delta",)

    request: EditRequest
    layer: int
    delta: Float[Tensor, "d_mlp d_model"]
    old_answer: str
    before: Probabilities
    after: Probabilities
    relative_norm: float
    loss_curve: tuple[float, ...]
    variant: str
    settings: Mapping[str, Any]
    fingerprint: Fingerprint
    notes: tuple[str, ...] = ()
    module: str | None = None
    module_transposed: bool = True
    backend: str = ""
    dtype: str = ""
    seconds: float = 0.0
    made_on: tuple[str, ...] = ()

    @property
    def update(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.delta

    def add_to(self, total: Float[Tensor, "d_mlp d_model"]) -> None:
        total.add_(self.delta.to(total))

    def layer_hooks(self, backend: Backend, *, rows: list[int] | None) -> list[tuple[str, Hook]]:
        return matrix_hooks(backend, self.layer, self.delta, rows=rows)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "loss_curve": list(self.loss_curve)}
