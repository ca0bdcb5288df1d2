"""Settings of the editors, per model, with where they come from.

Published settings are used as they are; a model that nobody has published any for gets those of its kind, by a rule
that the result names.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from rome_lens.backends import Backend
from rome_lens.checks import as_path, keep, not_negative, positive, whole_number
from rome_lens.errors import ArtefactError
from rome_lens.storage import write_whole

# Beyond this a step overflows float32 sooner or later.
_FASTEST = 1000
_KIND = "settings of ROME"


@dataclass(frozen=True)
class Settings:
    """Which layer, and how its value is optimised (paper, section 3.1).

    Attributes:
        layer: the layer whose `W_out` is edited.
        v_num_grad_steps: evaluations of the loss, at most.
        v_lr: Adam's learning rate.
        v_weight_decay: factor of `|delta| / |v0|^2` in the loss.
        clamp_norm_factor: `|delta|` never exceeds so many times `|v0|`.
        kl_factor: factor of the divergence that keeps "{subject} is a" as it was.
        source: where these come from, in words.

    Raises:
        SettingError: a setting is out of its range.
    """

    layer: int
    v_num_grad_steps: int
    v_lr: float
    v_weight_decay: float
    clamp_norm_factor: float
    kl_factor: float
    source: str

    def __post_init__(self) -> None:
        keep(
            self,
            layer=whole_number("layer", self.layer, least=0),
            v_num_grad_steps=whole_number("v_num_grad_steps", self.v_num_grad_steps, least=1),
            v_lr=positive("v_lr", self.v_lr, most=_FASTEST),
            clamp_norm_factor=positive("clamp_norm_factor", self.clamp_norm_factor),
            v_weight_decay=not_negative("v_weight_decay", self.v_weight_decay),
            kl_factor=not_negative("kl_factor", self.kl_factor),
        )

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Refuse what no model's settings may be.

        Args:
            given: settings by name; other names are left alone.

        Raises:
            SettingError: a setting is out of its range.
        """
        any_model = cls(0, 1, 1, 0, 1, 0, "")
        replace(any_model, **{f.name: given[f.name] for f in fields(cls) if f.name in given})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the settings to a file that people can read and change (JSON).

        Raises:
            ArtefactError: the file cannot be written.
        """
        write_whole(path, (json.dumps({"kind": _KIND, **asdict(self)}, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Settings":
        """Read a file that `save` wrote.

        Raises:
            ArtefactError: there is no such file, or it holds something else.
            SettingError: a setting is out of its range.
        """
        name = repr(as_path("the file", path))
        try:
            told = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ArtefactError(f"cannot read the settings {name}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{name} is not JSON, which settings are kept in: {error}") from error
        wanted = [f.name for f in fields(cls)]
        if not isinstance(told, dict) or told.get("kind") != _KIND or set(told) != {"kind", *wanted}:
            raise ArtefactError(f"{name} holds no settings of ROME: expected kind {_KIND!r}, {', '.join(wanted)}")
        return cls(**{setting: told[setting] for setting in wanted})


def _released(layer: int, clamp: float) -> Settings:
    return Settings(layer, 20, 0.5, 0.5, clamp, 0.0625, "the released ROME code's hparams for this model")


_EASY_EDIT = Settings(5, 25, 0.5, 1e-3, 4, 0.0625, "EasyEdit's hparams for models of 7 to 9 billion parameters")

# The last part of a name, whoever owns the repository.
_PUBLISHED: tuple[tuple[str, Settings], ...] = (
    (r"gpt2-medium", _released(8, 3)),
    (r"gpt2-large", _released(12, 4)),
    (r"gpt2-xl", _released(17, 4)),
    (r"gpt-j-6b|gptj", _released(5, 4)),
    (r"gpt-neox-20b", _released(15, 4)),
    (
        r"smollm2-135m(-instruct)?",
        Settings(
            5, 20, 0.5, 1e-3, 2, 0.0625, "measured by this project (docs, Editing, 'How the defaults were found')"
        ),
    ),
    (
        r"(meta-)?llama-?[23](\.\d)?-[78]b.*|mistral-7b.*|qwen(1\.5|2|2\.5)?-7b.*|internlm2?(_5)?-7b.*|llama-7b.*",
        _EASY_EDIT,
    ),
)


def settings_for(backend: Backend) -> Settings:
    """The settings of a model: published ones, or those of its kind.

    A model without published settings takes the optimiser's settings of EasyEdit, which modern decoders share, and a
    layer by its depth: a third of the way up where positions are learned (GPT-2: 8 of 24, 12 of 36, 17 of 48), a sixth
    where they are rotary (GPT-J 5 of 28, Llama and Mistral 5 of 32, SmolLM2 5 of 30).
    """
    name = backend.model_name.rstrip("/").rpartition("/")[2].lower()
    for pattern, settings in _PUBLISHED:
        if re.fullmatch(pattern, name) and settings.layer < backend.n_layers:
            return settings
    learned = _learned_positions(backend.model)
    layer = min(backend.n_layers - 1, round(backend.n_layers / (3 if learned else 6)))
    source = (
        f"no settings are published for {backend.model_name}: the optimiser's are EasyEdit's for modern decoders, and "
        f"the layer lies a {'third' if learned else 'sixth'} of the way up its {backend.n_layers} layers, as in "
        f"{'GPT-2, which learns its positions too' if learned else 'GPT-J, Llama and Mistral'}"
    )
    return replace(_EASY_EDIT, layer=layer, source=source)


def default_layer(backend: Backend) -> int:
    """The layer that is edited where none is named."""
    return settings_for(backend).layer


def _learned_positions(model: Any) -> bool:
    kind = str(getattr(model.cfg, "positional_embedding_type", "rotary"))
    return kind in ("standard", "shortformer")
