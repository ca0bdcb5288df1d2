"""Which layers an editor of many facts changes, and the second moments that it needs of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.origin import loaded_from
from rome_lens.checks import shown, whole_numbers
from rome_lens.editing.history import unedited_matrix
from rome_lens.editing.second_moment.moment import SecondMoment, moment_of, stats_command
from rome_lens.editing.second_moment.shipped import shipped_moment
from rome_lens.editing.settings import settings_for
from rome_lens.editing.together.published import Published
from rome_lens.errors import SettingError


def layers_for(
    backend: Backend, layers: Sequence[int] | int | None, second_moments: Any, published: Published | None
) -> tuple[int, ...]:
    """The layers to edit: the caller's, those of the second moments that were given, or the model's own.

    Raises:
        SettingError: they are none of the model's, or one is there twice.
    """
    if layers is None:
        if published is not None:
            layers = published.layers
        elif isinstance(second_moments, SecondMoment):
            layers = [second_moments.layer]
        elif isinstance(second_moments, Mapping) and second_moments:
            layers = sorted(second_moments)
        else:
            layers = [settings_for(backend).layer]
    numbers = [layers] if isinstance(layers, int) else layers
    numbers = [backend.check_layer(n) for n in whole_numbers("layers", numbers, expected="layers, such as [3, 4, 5]")]
    if not numbers or len(set(numbers)) < len(numbers):
        raise SettingError(f"layers is {shown(layers)}; expected one layer or more, each once")
    return tuple(sorted(numbers))


def moments_for(backend: Backend, layers: Sequence[int], given: Any) -> dict[int, SecondMoment]:
    """C of each layer: given, or shipped with the package.

    Raises:
        SettingError: there is none for one of them. ModelMismatchError: one is of another model, layer or width.
    """
    if given is None:
        by_layer: Mapping[int, Any] = {}
    elif isinstance(given, Mapping):
        by_layer = given
    elif len(layers) == 1 and isinstance(given, SecondMoment | Tensor):
        by_layer = {layers[0]: given}
    else:
        raise SettingError(
            f"second_moments is {shown(given)}; expected one for each of the layers {list(layers)}, by layer, as "
            "SecondMoment.collect gives them"
        )
    found: dict[int, SecondMoment] = {}
    missing: list[int] = []
    for layer in layers:
        if layer in by_layer:
            moment = moment_of(by_layer[layer], layer=layer)
            moment.check(backend, layer, unedited_matrix(backend, layer))
            found[layer] = moment
            continue
        try:
            found[layer] = shipped_moment(backend, layer)
        except SettingError:
            missing.append(layer)
    if missing:
        names = ", ".join(map(str, missing))
        raise SettingError(
            f"there is no second moment for layer{'s' if len(missing) > 1 else ''} {names} of {backend.model_name}, "
            "and facts that are solved without one spoil the rest; collect all in one pass, "
            f"SecondMoment.collect(model, layers={missing}, texts='self'), or in a shell "
            f"({stats_command(missing[0], loaded_from(backend))} --out FILE), and hand them over as second_moments"
        )
    return found
