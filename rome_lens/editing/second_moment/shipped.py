"""Second moments that come with the package, so that the default model can be edited at once."""

from importlib.resources import files

from rome_lens.backends import Backend
from rome_lens.backends.origin import loaded_from
from rome_lens.editing.history import unedited_matrix
from rome_lens.editing.second_moment.moment import SecondMoment, stats_command
from rome_lens.errors import ModelMismatchError, SettingError

_FOLDER = "second_moments"


def shipped_moment(backend: Backend, layer: int) -> SecondMoment:
    """The second moment of this model's layer, if the package brings one; it is known by its weights, not its name.

    Raises:
        SettingError: the package brings none, and none is made up in its place.
    """
    for entry in sorted((files("rome_lens.data") / _FOLDER).iterdir(), key=lambda e: e.name):
        if not entry.name.endswith(f"-layer{layer}.safetensors"):
            continue
        moment = SecondMoment.load(str(entry))
        try:
            moment.check(backend, layer, unedited_matrix(backend, layer))
        except ModelMismatchError:
            continue
        return moment
    raise SettingError(
        f"there is no second moment for layer {layer} of {backend.model_name}, and ROME is wrong without one; collect "
        f"it once ({stats_command(layer, loaded_from(backend))} --out FILE), or with "
        f"SecondMoment.collect(model, layers=[{layer}], texts='self')[{layer}], and hand it over as second_moment (in "
        "a shell: --second-moment FILE)"
    )
