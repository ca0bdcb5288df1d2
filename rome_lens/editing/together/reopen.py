"""A set of facts that was read from a file, with an editor of its own kind again, which finds further facts."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.editing.settings import Settings
from rome_lens.editing.together.alpha_edit import AlphaEdit
from rome_lens.editing.together.edit_set import EditSet
from rome_lens.editing.together.editor import TogetherEditor
from rome_lens.editing.together.emmet import EMMET
from rome_lens.editing.together.memit import MEMIT
from rome_lens.editing.value_settings import ValueSettings
from rome_lens.errors import SettingError

# Each with the names of what is its own.
EDITORS: Mapping[str, tuple[Callable[..., TogetherEditor], tuple[str, ...]]] = {
    MEMIT.variant: (MEMIT, ("preserve", "ridge")),
    EMMET.variant: (EMMET, ("weight", "epsilon", "ridge")),
    AlphaEdit.variant: (AlphaEdit, ("energy", "threshold", "l2", "l2_absolute")),
}
"""The editors of sets, by the variant that their sets have."""

_COMMON = ("layers", "spread", "bare_weight", "essence_at", "context_templates", "seed", "prepend_bos")
# Keys are weighed alike where they differ by less than this, relative to their length.
_ALIKE = 1e-6


def reopened(facts: EditSet, model: Any, *, second_moments: Mapping[int, SecondMoment] | None = None) -> EditSet:
    """The same set with an editor that was set to what the set's own was, so that `plus` takes requests.

    Args:
        facts: the set, such as `load_edit` reads.
        model: the unedited model, as the editors take it.
        second_moments: C of each layer, those that the set was solved with; None takes those that the package ships.

    Raises:
        ModelMismatchError: the set, or a second moment, is of another model or layer.
        SettingError: the set does not say all that it was made with; or these are not its second moments.
    """
    facts.hooks(model)  # refuses another model
    known = facts.settings
    try:
        kind, own = EDITORS[facts.variant]
        given = {name: known[name] for name in _COMMON}
        given |= {each.name: known[each.name] for each in fields(ValueSettings)}
        settings = Settings(**{each.name: known[each.name] for each in fields(Settings)})
        given |= {name: known[name] for name in own if known[name] is not None}
    except (KeyError, TypeError) as error:
        raise SettingError(
            f"the set, of {facts.variant!r}, does not say all that an editor of its kind is set to ({error}); give an "
            "editor= of your own"
        ) from error
    editor = kind(model, second_moments=second_moments, settings=settings, **given)
    _check(facts, editor)
    return replace(facts, kernels=editor.kernels, editor=editor)


def _check(facts: EditSet, editor: TogetherEditor) -> None:
    """Refuse an editor that solves on other terms, before it finds anything.

    Raises:
        SettingError: it weighs keys otherwise, or gives way more or less.
    """
    first = facts.facts[0]
    for place, kernel in enumerate(editor.kernels):
        weighed = kernel.weigh(first.keys[place])
        if (weighed - first.weighed[place]).norm() > _ALIKE * first.weighed[place].norm():
            raise SettingError(
                f"the set was solved with another second moment of layer {kernel.layer}; give the one that it was "
                "solved with"
            )
    if abs(editor.penalty - facts.terms.penalty) > _ALIKE * facts.terms.penalty:
        raise SettingError(
            f"the set's penalty is {facts.terms.penalty:g}, and its settings make {editor.penalty:g}; give an editor= "
            "of your own"
        )
