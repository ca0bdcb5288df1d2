"""A control: r-ROME at a random layer, where any gain is not due to the choice of layer."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from rome_lens.backends import as_backend
from rome_lens.checks import seed_number, whole_number
from rome_lens.editing import ROME
from rome_lens.editing.settings import default_layer
from rome_lens.errors import SettingError
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress


def check_n_layers(n_layers: object) -> int:
    """A number of layers to draw from.

    Raises:
        SettingError: it is no whole number from 1.
    """
    return whole_number("n_layers", n_layers, least=1, expected="a whole number of layers")


class RandomLayer:
    """r-ROME at a layer that is drawn for each request, by seed: a control.

    Attributes:
        layers: the layers that are drawn from, never the one that the model is edited at by default.
    """

    def __init__(self, model: Any, moments: Moments, *, n_layers: int, settings: Mapping[str, Any]) -> None:
        """Draw the layers and get their second moments.

        Args:
            model: the model.
            moments: where the second moments come from.
            n_layers: how many layers to draw from; all others where the model has no more.
            settings: what `ROME` is made with, the layer aside.

        Raises:
            SettingError: n_layers is no number of layers, or there is no other layer.
        """
        backend = as_backend(model)
        others = [layer for layer in range(backend.n_layers) if layer != default_layer(backend)]
        n_layers = check_n_layers(n_layers)
        if not others:
            raise SettingError(f"{backend.model_name} has one layer alone; random-layer needs another to draw")
        self._seed = seed_number(settings["seed"])
        random = np.random.default_rng(self._seed)
        self.layers = sorted(random.choice(others, size=min(n_layers, len(others)), replace=False).tolist())
        found = moments.collected(self.layers)
        settings = {**settings, "context_templates": moments.templates(settings)}
        self._editors = {
            layer: ROME(model, layer=layer, second_moment=found[layer], **settings) for layer in self.layers
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Of the editors underneath, with the layers."""
        first = next(iter(self._editors.values()))
        return {**asdict(first.settings), "layer": None, "layers": self.layers}

    def edit(self, request: EditRequest) -> Any:
        """An edit at the request's layer."""
        return self._editors[self._layer(request)].edit(request)

    def edit_many(self, requests: Sequence[EditRequest], *, progress: Progress | None = None) -> list[Any]:
        """An edit a request, those of one layer together."""
        edits: dict[int, Any] = {}
        for layer, editor in self._editors.items():
            mine = [number for number, request in enumerate(requests) if self._layer(request) == layer]
            edits.update(
                zip(mine, editor.edit_many([requests[number] for number in mine], progress=progress), strict=True)
            )
        return [edits[number] for number in range(len(requests))]

    def _layer(self, request: EditRequest) -> int:
        name = zlib.crc32(f"{request.text}\0{request.target_new}".encode())
        return self.layers[int(np.random.default_rng((self._seed, name)).integers(len(self.layers)))]
