"""MEMIT: many facts by least squares, against what text costs (Meng et al. 2023, 2210.07229, section 4)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Unpack

from torch import Tensor

from rome_lens.checks import not_negative
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.together.editor import TogetherChanges, TogetherEditor
from rome_lens.editing.together.kernels import Kernel, TextKernel
from rome_lens.editing.together.published import DEFAULT_PRESERVE, MEMIT_TABLE, Table
from rome_lens.editing.together.terms import Spread


class MEMIT(TogetherEditor):
    """Edits many facts of a model together; what is found is a set of facts, any of which can be taken out again.

    Minimises `Σ |Δᵀk - r|² + λ tr(ΔᵀCΔ)` over the facts' keys k and what their values lack, r: `λ` says how much text
    is kept as it is, against the facts (equation 14, with the residuals of `r-ROME` or of the released code).

    !!! example
        ```python
        facts = rl.MEMIT(model).edit_together(requests, out="facts/")
        facts.to_dataframe()
        with facts.without(facts[3]).applied(model):
            ...
        ```

    Attributes:
        preserve: λ in units of `d_mlp`: of `λ C`, the mean cost of a key over text is `λ d_mlp`.
    """

    variant = "memit"
    table: ClassVar[Table] = MEMIT_TABLE

    def __init__(
        self,
        model: Any,
        *,
        layers: Sequence[int] | int | None = None,
        second_moments: Mapping[int, SecondMoment | Tensor] | SecondMoment | Tensor | None = None,
        preserve: float | None = None,
        ridge: float | None = None,
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
            preserve: λ in units of `d_mlp`, 0 or more: 0 answers each key exactly. The published λ count tokens:
                MEMIT's 20,000 for GPT-2 XL are 3.1 in these units.
            ridge: what is added to the diagonal of C, in units of its mean (ENCORE's λ_n, 2502.01636); None is the
                least with which C can be inverted.
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
        known = None if self._published is None else self._published.number / self._d_mlp
        default = DEFAULT_PRESERVE if known is None else known
        self.preserve = default if preserve is None else not_negative("preserve", preserve, unit="in units of d_mlp")
        self.ridge = None if ridge is None else not_negative("ridge", ridge, unit="in units of the diagonal's mean")
        self.penalty = self.preserve

    def _kernel(self, moment: SecondMoment) -> Kernel:
        return TextKernel(moment, self.ridge)

    def _said(self) -> dict[str, Any]:
        return {"preserve": self.preserve, "ridge": self.ridge}
