"""What is known of a model before its weights are read: enough to refuse a request that it cannot serve."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from rome_lens.checks import check_layer, check_window
from rome_lens.loading.default_model import DEFAULT_MODEL, N_LAYERS
from rome_lens.loading.pretrained import find_config


@dataclass(frozen=True)
class Outline:
    """A model by its configuration alone.

    Attributes:
        name: what it is called once it is loaded.
        n_layers: how many layers it has; None where its configuration does not say so.
    """

    name: str
    n_layers: int | None

    @classmethod
    def of(cls, name: str | os.PathLike[str]) -> Outline:
        """The outline of a model by its name: of one on the hub its configuration is fetched.

        Args:
            name: as `load_model` takes it.

        Raises:
            ModelNotFoundError: there is no model of that name.
            ModelError: its configuration cannot be read.
        """
        name = os.fspath(name)
        if name == DEFAULT_MODEL:
            return cls(name, N_LAYERS)
        location, config = find_config(name)
        found = getattr(config.get_text_config(), "num_hidden_layers", None)
        return cls(location.name, found if isinstance(found, int) else None)

    def check_window(self, window: int | None, *, name: str = "window") -> None:
        """Refuse a window of more layers than the model has, or of none.

        Raises:
            SettingError: it is out of its range.
        """
        if window is not None and self.n_layers is not None:
            check_window(window, n_layers=self.n_layers, name=name)

    def check_layers(self, layers: Iterable[int | None]) -> None:
        """Refuse layers that the model does not have; None stands for one that is not chosen yet.

        Raises:
            SettingError: a layer is none of the model's.
        """
        for layer in layers:
            if layer is not None and self.n_layers is not None:
                check_layer(layer, n_layers=self.n_layers, model_name=self.name)
