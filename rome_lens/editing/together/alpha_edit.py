"""AlphaEdit: many facts in the directions that text hardly uses (Fang et al. 2025, 2410.02355, section 3)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor

from rome_lens.checks import as_real, not_negative, positive, shown
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.together.editor import TogetherChanges, TogetherEditor
from rome_lens.editing.together.kernels import Kernel, NullSpaceKernel
from rome_lens.editing.together.published import ALPHA_EDIT_TABLE, Table
from rome_lens.editing.together.terms import Spread
from rome_lens.errors import SettingError

_DEFAULT_L2 = 0.1


class AlphaEdit(TogetherEditor):
    """Edits many facts of a model together, in the null space of the keys of text.

    Minimises `Σ |Δᵀk - r|² + L2 |Δ|²` over updates that leave all but some eigenvectors of C alone: those with the
    smallest eigenvalues, which hold at most a share `energy` of the text's. What the released code calls the null space
    are those below an absolute `threshold`.

    Attributes:
        energy: the share of the text's energy `tr C` in the directions that may be moved.
        threshold: instead, the eigenvalue below which a direction may be moved; None goes by `energy`.
        l2: what moving costs, in units of the mean squared length of a key.
        l2_absolute: the same in squared activations, as the released code has it; None goes by `l2`.
    """

    variant = "alphaedit"
    table: ClassVar[Table] = ALPHA_EDIT_TABLE

    def __init__(
        self,
        model: Any,
        *,
        layers: Sequence[int] | int | None = None,
        second_moments: Mapping[int, SecondMoment | Tensor] | SecondMoment | Tensor | None = None,
        energy: float = 0.1,
        threshold: float | None = None,
        l2: float | None = None,
        l2_absolute: float | None = None,
        spread: Spread = "joint",
        **changes: Unpack[TogetherChanges],
    ) -> None:
        """Choose how facts are edited. Whatever is None comes from the model's settings, whose source is recorded.

        Args:
            model: a HookedTransformer or a TransformerBridge; or, for work that other processes share, a name as
                `load_model` takes it, or a function without arguments that makes a model.
            layers: the layers to edit; None takes what is published for this model, those of the second moments that
                are given, or ROME's one layer.
            second_moments: C of each layer, by layer, as `SecondMoment.collect` gives them in one pass; of one layer
                its own will do. None takes those that the package ships, and is an error where one is missing.
            energy: the share of the text's energy in the directions that may be moved, above 0 and at most 1.
            threshold: the eigenvalue of C below which a direction may be moved, in squared activations; the released
                code has 0.02 for all models.
            l2: what moving costs, in units of the mean squared length of a key over text, `tr C`; by default 0.1.
            l2_absolute: the same in squared activations; the released code has 10.
            spread: `joint` solves one system for all layers, whose sets are free of order; `released` goes layer by
                layer with keys read again, as the released code does, and needs `at="block"`.
            at: where a value's change is added: `w_out` or `block` (`ValueSettings`, as the four that follow).
            stop_said: stop so many steps after the target is first said under every template.
            least_scale: scale a value down to so many times the least that says its target; 1.2 where nothing is
                published for the model.
            longest: the length that a value may have.
            keys: which keys of a fact are answered: `mean`, `split` or `each`; `split` where nothing is published.
            v_num_grad_steps: evaluations of the loss, at most; this and the four that follow as `ROME` takes them.
            v_lr: Adam's learning rate.
            v_weight_decay: factor of `|delta| / |v0|^2` in the loss.
            clamp_norm_factor: the largest `|delta|`, in units of `|v0|`.
            kl_factor: factor of the divergence of "{subject} is a".
            context_templates: texts that end with `{}`; None lets the model write 20 of them, by `seed`.
            bare_weight: share of the bare prompt among the templates; a half by default, None is an equal share.
            essence_at: `last` or `subject`: where "{subject} is a" is read.
            seed: seed of the context templates.
            prepend_bos: put BOS in front of every row.
            engine: `auto`, or `plain` to optimise by whole forwards.
            settings: the optimiser's settings in place of the model's; their layer gives way to the last of `layers`.

        Raises:
            SettingError: a setting is out of its range, or there is no second moment for one of the layers.
            ModelMismatchError: a second moment belongs to another model, layer or width.
            ModelError: not a model of TransformerLens, or a layer has no `W_out` of its own.
        """
        super().__init__(model, layers, second_moments, spread, changes)
        share = as_real(energy)
        if share is None or not 0 < share <= 1:
            raise SettingError(f"energy is {shown(energy)}; expected a share of the text's energy above 0, at most 1")
        if l2 is not None and l2_absolute is not None:
            raise SettingError("l2 and l2_absolute are both given; they are one number in two units: give one")
        known = self._published
        if known is not None:
            threshold = known.threshold if threshold is None else threshold
            l2_absolute = known.number if l2 is None and l2_absolute is None else l2_absolute
        self.energy = float(share)
        self.threshold = None if threshold is None else positive("threshold", threshold)
        self.l2_absolute = None if l2_absolute is None else positive("l2_absolute", l2_absolute)
        self.l2 = None if self.l2_absolute is not None else not_negative("l2", _DEFAULT_L2 if l2 is None else l2)
        self.penalty = self.l2_absolute if self.l2 is None else self.l2  # pyright: ignore[reportAttributeAccessIssue]

    def _kernel(self, moment: SecondMoment) -> Kernel:
        return NullSpaceKernel.of(
            moment, energy=self.energy, threshold=self.threshold, scale=None if self.l2_absolute is None else 1.0
        )

    def _said(self) -> dict[str, Any]:
        return {
            "energy": self.energy if self.threshold is None else None,
            "threshold": self.threshold,
            "l2": self.l2,
            "l2_absolute": self.l2_absolute,
        }

    def _notes(self) -> tuple[str, ...]:
        """How large the null space is: a threshold that all eigenvalues are below protects nothing."""
        return tuple(
            f"layer {kernel.layer}: {kernel.width} of {kernel.basis.shape[0]} directions may be moved, which hold "
            f"{kernel.share:.2g} of the text's energy"
            for kernel in self.kernels
            if isinstance(kernel, NullSpaceKernel)
        )
