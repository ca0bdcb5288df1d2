"""What the editors of one run share: second moments that were given, shipped or collected, and context templates."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rome_lens.backends import as_backend
from rome_lens.checks import seed_number
from rome_lens.editing import SecondMoment
from rome_lens.editing.prompts import check_templates
from rome_lens.editing.templates import sample_templates
from rome_lens.errors import SettingError
from rome_lens.progress import Progress


class Moments:
    """Second moments and templates of one model.

    Attributes:
        folder: where collected second moments are kept; None keeps them in memory alone.
    """

    def __init__(
        self,
        model: Any,
        files: Sequence[str | os.PathLike[str]] = (),
        *,
        folder: Path | None = None,
        seed: int = 0,
        prepend_bos: bool = False,
        command: str = "rome-lens eval",
        progress: Progress | None = None,
    ) -> None:
        """Read what was given.

        Args:
            model: the model.
            files: second moments, a layer each.
            folder: where those that are collected are kept, so that they are collected once.
            seed: of the text that they are collected from, and of the templates.
            prepend_bos: BOS stands in front of every text.
            command: the command that asks for them, which they record.
            progress: called with (done, total, what) while second moments are collected.

        Raises:
            ArtefactError: a file holds no second moment.
            SettingError: two are of the same layer.
        """
        self._model, self.folder = model, folder
        self._seed, self._bos, self._command, self._progress = seed, prepend_bos, command, progress
        self._given: dict[int, SecondMoment] = {}
        for moment in map(SecondMoment.load, files):
            if moment.layer in self._given:
                raise SettingError(f"two second moments of layer {moment.layer} are given; expected one a layer")
            self._given[moment.layer] = moment
        self._templates: dict[tuple[int, bool], tuple[str, ...]] = {}

    def only_layer(self, default: int) -> int:
        """The layer of the one second moment that was given; the model's own layer where that has one, or none was."""
        return next(iter(self._given)) if len(self._given) == 1 else default

    @property
    def layers(self) -> list[int]:
        """The layers of those that were given."""
        return sorted(self._given)

    def given(self, layer: int) -> SecondMoment | None:
        """The one that was given for a layer; None leaves it to the editor to find the shipped one."""
        return self._given.get(layer)

    def collected(self, layers: Sequence[int]) -> dict[int, SecondMoment]:
        """Second moments of these layers: given, kept from an earlier time, or collected from the model's own text."""
        found = {layer: self._given[layer] for layer in layers if layer in self._given}
        missing = [layer for layer in layers if layer not in found]
        if not missing:
            return found
        if self.folder is None:
            return found | self._collect(missing)
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        # One worker collects, and the others wait and read.
        with FileLock(self.folder / ".lock", thread_local=False):
            missing = [layer for layer in missing if not self._file(layer).exists()]
            if missing:
                for layer, moment in self._collect(missing).items():
                    moment.save(self._file(layer))
        return found | {layer: SecondMoment.load(self._file(layer)) for layer in layers if layer not in found}

    def templates(self, settings: Mapping[str, Any]) -> Any:
        """The context templates of an editor: its own, or those that are written once for all editors of one seed.

        Raises:
            SettingError: the seed is none, or the templates are no texts.
        """
        given = settings.get("context_templates")
        if given is not None:
            return check_templates(given)
        wanted = (seed_number(settings["seed"]), bool(settings["prepend_bos"]))
        if wanted not in self._templates:
            backend = as_backend(self._model)
            with backend.evaluating():
                self._templates[wanted] = sample_templates(backend, seed=wanted[0], prepend_bos=wanted[1])
        return self._templates[wanted]

    def _file(self, layer: int) -> Path:
        assert self.folder is not None
        return self.folder / f"layer-{layer}.safetensors"

    def _collect(self, layers: Sequence[int]) -> dict[int, SecondMoment]:
        return SecondMoment.collect(
            self._model,
            layers=layers,
            texts="self",
            seed=self._seed,
            prepend_bos=self._bos,
            command=self._command,
            progress=self._progress,
        )
