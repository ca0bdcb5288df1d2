"""Settings of the editors, per model, with where they come from.

Published settings are used as they are. Other models get settings by a rule that depends on their position embeddings;
the result says which.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, get_args

from rome_lens.backends import Backend
from rome_lens.checks import (
    as_path,
    as_real,
    choice,
    flag,
    keep,
    not_negative,
    positive,
    seed_number,
    shown,
    whole_number,
)
from rome_lens.editing.keys import VARIANTS, Variant
from rome_lens.editing.prompts import EssenceAt, check_templates
from rome_lens.errors import ArtefactError, SettingError
from rome_lens.storage import write_whole

Engine = Literal["auto", "plain"]
"""How a model is run: by its blocks where they can be called alone, or by whole forwards, which is slower."""

# Beyond this a step overflows float32 sooner or later.
_FASTEST = 1000
_KIND = "settings of ROME"


def _by(check: Callable[..., Any], **how: Any) -> dict[str, Any]:
    """The check that a field's value has to pass."""
    return {"check": partial(check, **how)}


class _Settings:
    """A layer with numbers that belong to it, each checked by itself, and where they come from."""

    source: str

    def __post_init__(self) -> None:
        keep(self, **{name: check(name, getattr(self, name)) for name, check in self._checks().items()})

    @classmethod
    def check(cls, given: Mapping[str, Any]) -> None:
        """Refuse what no model's settings may be.

        Args:
            given: settings by name; other names are left alone.

        Raises:
            SettingError: a setting is out of its range.
        """
        for name, check in cls._checks().items():
            if name in given:
                check(name, given[name])

    @classmethod
    def _checks(cls) -> dict[str, Callable[[str, Any], Any]]:
        itself: Any = cls
        return {each.name: each.metadata["check"] for each in fields(itself) if each.metadata}

    def given(self, chosen: Mapping[str, Any]) -> Self:
        """The same with what a caller chose, which the source names.

        Args:
            chosen: settings by name; None leaves one as it is.

        Raises:
            SettingError: a setting is out of its range.
        """
        itself: Any = self
        # In the order of the fields, however the caller wrote them: runs compare what they were made with.
        taken = {name: chosen[name] for name in self._checks() if chosen.get(name) is not None}
        source = f"{self.source}; given by the caller: {', '.join(taken)}"
        return replace(itself, **taken, source=source) if taken else self


class OptimiserChanges(TypedDict, total=False):
    """How a value is optimised: fields of `Settings`; None leaves one as the model's settings have it."""

    v_num_grad_steps: int | None
    v_lr: float | None
    v_weight_decay: float | None
    clamp_norm_factor: float | None
    kl_factor: float | None


class SettingsChanges(OptimiserChanges, total=False):
    """Fields of `Settings` that a caller may choose one by one; None leaves one as the model's settings have it."""

    layer: int | None


@dataclass(frozen=True)
class Settings(_Settings):
    """Which layer, and how its value is optimised (paper, section 3.1).

    Attributes:
        layer: the layer whose `W_out` is edited.
        v_num_grad_steps: evaluations of the loss, at most.
        v_lr: Adam's learning rate.
        v_weight_decay: factor of `|delta| / |v0|^2` in the loss.
        clamp_norm_factor: the largest `|delta|`, in units of `|v0|`.
        kl_factor: factor of the divergence that keeps "{subject} is a" as it was.
        source: where these come from, in words.

    Raises:
        SettingError: a setting is out of its range.
    """

    layer: int = field(metadata=_by(whole_number, least=0))
    v_num_grad_steps: int = field(metadata=_by(whole_number, least=1))
    v_lr: float = field(metadata=_by(positive, most=_FASTEST))
    v_weight_decay: float = field(metadata=_by(not_negative))
    clamp_norm_factor: float = field(metadata=_by(positive))
    kl_factor: float = field(metadata=_by(not_negative))
    source: str

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
            held = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise ArtefactError(f"cannot read the settings {name}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ArtefactError(f"{name} is not JSON, which settings are kept in: {error}") from error
        wanted = [f.name for f in fields(cls)]
        if not isinstance(held, dict) or held.get("kind") != _KIND or set(held) != {"kind", *wanted}:
            raise ArtefactError(f"{name} holds no settings of ROME: expected kind {_KIND!r}, {', '.join(wanted)}")
        return cls(**{setting: held[setting] for setting in wanted})


def _bound(name: str, bound: object) -> float | None:
    return None if bound is None else positive(name, bound, or_else="None or 'auto'")


@dataclass(frozen=True)
class FineTuningSettings(_Settings):
    """Which layer, and how its `W_out` is fine-tuned (paper, section 3.3).

    Attributes:
        layer: the layer whose `W_out` is fine-tuned.
        norm_constraint: no weight gains or loses more than this (FT+L); None is no bound (FT).
        num_steps: evaluations of the loss, at most; each but a last one below `stop_loss` is followed by a step.
        lr: Adam's learning rate.
        weight_decay: factor of the weights themselves in their gradient.
        stop_loss: a loss below it ends the descent.
        source: where these come from, in words.

    Raises:
        SettingError: a setting is out of its range.
    """

    layer: int = field(metadata=_by(whole_number, least=0))
    norm_constraint: float | None = field(metadata=_by(_bound))
    num_steps: int = field(metadata=_by(whole_number, least=1))
    lr: float = field(metadata=_by(positive))
    weight_decay: float = field(metadata=_by(not_negative))
    stop_loss: float = field(metadata=_by(not_negative))
    source: str


@dataclass(frozen=True)
class Choices:
    """What an editor is made with beside the numbers of `Settings`, checked; it is the same for every model.

    Attributes:
        variant: which keys are read and answered.
        bare_weight: share of the bare prompt among the templates; None is an equal share. "auto" is a half for
            `r-rome` and an equal share for the others.
        essence_at: where the essence is read; None is `subject` for `rome` and `last` for the others.
        context_templates: texts that end with `{}`, the bare one first; None lets the model write them.
        seed: of the templates.
        prepend_bos: whether BOS stands in front of every row.
        engine: how the model is run.

    Raises:
        SettingError: one of them is out of its range.
    """

    variant: Variant = "r-rome"
    bare_weight: float | str | None = "auto"
    essence_at: EssenceAt | None = None
    context_templates: Sequence[str] | None = None
    seed: int = 0
    prepend_bos: bool = False
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        variant = choice("variant", self.variant, VARIANTS)
        share, place = self.bare_weight, self.essence_at
        if isinstance(share, str) and share == "auto":
            share = 0.5 if variant == "r-rome" else None
        if place is None:
            place = "subject" if variant == "rome" else "last"
        keep(
            self,
            bare_weight=None if share is None else _share(share),
            essence_at=choice("essence_at", place, get_args(EssenceAt)),
            engine=choice("engine", self.engine, get_args(Engine)),
            seed=seed_number(self.seed),
            prepend_bos=flag("prepend_bos", self.prepend_bos),
            context_templates=None if self.context_templates is None else check_templates(self.context_templates),
        )

    def of_rows(self) -> dict[str, Any]:
        """How rows are made and weighed, as edits hold it; the templates are known."""
        return {
            "bare_weight": self.bare_weight,
            "essence_at": self.essence_at,
            "context_templates": list(self.context_templates or ()),
            "seed": self.seed,
            "prepend_bos": self.prepend_bos,
        }


def _share(bare_weight: object) -> float:
    share = as_real(bare_weight)
    if share is None or not 0 < share <= 1:
        raise SettingError(f"bare_weight is {shown(bare_weight)}; expected a share above 0 and at most 1, or None")
    return float(share)


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
    name = last_part(backend)
    for pattern, settings in _PUBLISHED:
        if re.fullmatch(pattern, name) and settings.layer < backend.n_layers:
            return settings
    positions = getattr(backend.model.cfg, "positional_embedding_type", "rotary")
    learned = str(positions) in ("standard", "shortformer")
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


def last_part(backend: Backend) -> str:
    """The model's name, whoever owns the repository."""
    return backend.model_name.rstrip("/").rpartition("/")[2].lower()


_PAPER = "the paper's appendix; EasyEdit's hparams/FT, which carry on the released ROME code's, say the same"
_CONSTRAINED = "hparams/FT of EasyEdit, which carries on the released ROME code's, for this model"
_MEASURED = "measured by this project on 16 records of CounterFact"

# The last part of a name; layer, norm_constraint, source; of FT, then of FT+L.
_Choice = tuple[int, float | None, str]
_PUBLISHED_TUNING: tuple[tuple[str, _Choice | None, _Choice], ...] = (
    (r"gpt2-medium", None, (0, 2e-3, _CONSTRAINED)),
    (r"gpt2-large", None, (0, 1e-3, _CONSTRAINED)),
    (r"gpt2-xl", (1, None, _PAPER), (0, 5e-4, _PAPER)),
    (r"gpt-j-6b|gptj", (21, None, _PAPER), (0, 5e-5, _PAPER)),
    (r"smollm2-135m(-instruct)?", (0, None, _MEASURED), (0, 6e-3, _MEASURED)),
)


def choose_tuning(backend: Backend, *, constrained: bool) -> tuple[int, float | None, str]:
    """Layer, bound of each weight's change and their source, for FT or for FT+L.

    A model without published settings takes those of GPT-2 XL: of the paper's two models it is the one whose FT works
    in a low layer, and low layers were measured to be better on the default model, too.
    """
    name = last_part(backend)
    for pattern, free, bounded in _PUBLISHED_TUNING:
        published = bounded if constrained else free
        if published is not None and re.fullmatch(pattern, name) and published[0] < backend.n_layers:
            return published
    unpublished = f"no settings of fine-tuning are published for {backend.model_name}: "
    if constrained:
        return 0, 5e-4, unpublished + "layer 0 as in the paper, and the bound of GPT-2 XL"
    return min(1, backend.n_layers - 1), None, unpublished + "layer 1 as in the paper for GPT-2 XL"
