"""Who edits: the editors that are compared, by name, and editors of your own.

`r-rome`, `rome` and `p-rome` are ROME's variants. `identity` is r-ROME with C = I, the shortcut that other toolkits
take. `random-layer` is r-ROME at a layer drawn for each record, a control: any gain there is not due to the choice of
layer. `memit`, `emmet` and `alphaedit` solve facts as a set: of one, where every record is edited by itself. `ft` and
`ft-l` are fine-tuning without and with a bound on every weight. `none` leaves the model as it is.
"""

import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch

from rome_lens.backends import as_backend
from rome_lens.checks import choice
from rome_lens.editing import ROME, FineTuning, fine_tune, rome
from rome_lens.editing.keys import VARIANTS
from rome_lens.editing.settings import OptimiserChanges, SettingsChanges, default_layer
from rome_lens.editing.together.editor import TogetherChanges, TogetherEditor
from rome_lens.editing.value_settings import ValueSettings
from rome_lens.errors import SettingError
from rome_lens.evaluation.editors.moments import Moments
from rome_lens.evaluation.editors.random_layer import RandomLayer, check_n_layers
from rome_lens.evaluation.editors.sets import SETS, Alone, make_set_editor
from rome_lens.evaluation.report.scores import UNEDITED
from rome_lens.facts import EditRequest
from rome_lens.runs import check_name

FoundOn = Literal["base", "edited"]
"""Where the value of a fact is found: on the unedited model, or on the one with all facts before it."""

IDENTITY, RANDOM_LAYER = "identity", "random-layer"
_FINE_TUNING = ("ft", "ft-l")
EDITORS = (UNEDITED, *VARIANTS, IDENTITY, RANDOM_LAYER, *SETS, *_FINE_TUNING)
"""Names that an editor can be asked for by."""

TOGETHER = (UNEDITED, "r-rome", *SETS, *_FINE_TUNING)
"""Those of them that put many facts into one model."""

# Layers that the control draws from: every one of them needs a second moment.
_RANDOM_LAYERS = 5
# Settings of ours that are lists.
_LISTS = {"context_templates", "layers"}
# What the run sets for all of its editors, and a whole of settings, which are set one by one here.
_SHARED = {"model", "self", "prepend_bos", "second_moment", "second_moments", "variant", "engine", "settings"}
# What editors of sets hand on to ROME.
_OF_ROME = OptimiserChanges.__annotations__.keys() | {"context_templates", "bare_weight", "essence_at", "seed"}


@dataclass(frozen=True)
class EditorSpec:
    """An editor that is not made yet, as a worker receives it.

    Attributes:
        name: the editor's name in the run.
        kind: one of `EDITORS`, or `package.module:function` for one of your own.
        settings: what it is made with, as JSON can hold it.
        made: the editor itself, where an object was given.
    """

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    made: Any = None

    @property
    def is_named(self) -> bool:
        """Whether it is one of `EDITORS`, which is made here from its settings."""
        return self.made is None and self.kind in EDITORS

    def to_dict(self) -> dict[str, Any]:
        """As a run's settings hold it."""
        return {"kind": self.kind, "settings": dict(self.settings)}


class Editor(Protocol):
    """What evaluation asks of an editor; ours have it, and yours may.

    An editor may have `edit_many(requests)` as well. Edits of this package go through hooks, many in one batch; those
    of other kinds are put into the weights one at a time.
    """

    def edit(self, request: EditRequest) -> Any:
        """An edit for one request: one of this package, something with `applied(model)`, or None for no change."""
        ...


def specs_of(editors: Any, settings: Sequence[str] = (), *, together: bool = False) -> tuple[EditorSpec, ...]:
    """What a caller named, as specifications.

    Args:
        editors: an editor, its name, None for the unedited model, several names, or a mapping from names to any of
            these.
        settings: `NAME=JSON` for every editor that takes that setting, or `EDITOR.NAME=JSON`.
        together: they put many facts into one model.

    Raises:
        SettingError: no editor of that name, no such setting, two editors of one name, or a name that no folder can
            have.
    """
    if isinstance(editors, Mapping):
        pairs = [(str(name), one) for name, one in editors.items()]
    else:
        pairs = [(_name(one), one) for one in (editors if isinstance(editors, list | tuple) else [editors])]
    specs = [_spec(name.rpartition(":")[2], one, TOGETHER if together else EDITORS) for name, one in pairs]
    names = [spec.name for spec in specs]
    for name in names:
        check_name(name, "editor name")
    if "references" in names:
        raise SettingError("an editor is named references, which is what a run calls its reference texts; rename it")
    if not names or len(set(names)) < len(names):
        raise SettingError(
            f"editors are {', '.join(names) or 'none at all'}; expected one or more, each of another name"
        )
    specs = _with_settings(specs, settings, together=together)
    for spec in specs:
        if spec.is_named:
            _check_settings(spec)
            if spec.kind == RANDOM_LAYER and "n_layers" in spec.settings:
                check_n_layers(spec.settings["n_layers"])
    return specs


def _check_settings(spec: EditorSpec) -> None:
    """Refuse settings that no model could take, before one is loaded."""
    given = dict(spec.settings)
    if "found_on" in given:
        choice(f"{spec.name}.found_on", given.pop("found_on"), get_args(FoundOn))
    values = {each.name: given.pop(each.name) for each in fields(ValueSettings) if each.name in given}
    ValueSettings(**values)
    check = fine_tune.check_choices if spec.kind in _FINE_TUNING else rome.check_choices
    check({name: value for name, value in given.items() if spec.kind not in SETS or name in _OF_ROME})


def make_editor(spec: EditorSpec, model: Any, moments: Moments, *, seed: int, prepend_bos: bool) -> Any:
    """The editor on a model; None for the unedited one. Editors of sets come as `Alone`.

    Args:
        spec: which.
        model: the model.
        moments: the second moments that are there, or can be collected.
        seed: of what an editor draws.
        prepend_bos: BOS stands in front of every prompt.
    """
    if spec.made is not None or spec.kind == UNEDITED:
        return _alone(spec.made)
    given = dict(spec.settings)
    if spec.kind in _FINE_TUNING:
        bound = {} if spec.kind == "ft" else {"norm_constraint": given.pop("norm_constraint", "auto")}
        if bound.get("norm_constraint", "auto") is None:
            raise SettingError("ft-l.norm_constraint is null, which is no bound; take the editor ft for that")
        return FineTuning(model, prepend_bos=prepend_bos, **bound, **given)
    if spec.kind not in EDITORS:
        return _alone(_checked(_imported(spec.kind)(model, **given), spec.kind))
    backend = as_backend(model)
    given = {"seed": seed, "prepend_bos": prepend_bos} | given
    if spec.kind == RANDOM_LAYER:
        return RandomLayer(model, moments, n_layers=given.pop("n_layers", _RANDOM_LAYERS), settings=given)
    if spec.kind in SETS:
        return Alone(make_set_editor(spec.kind, model, moments, given, seed=seed, prepend_bos=prepend_bos))
    default, layer = default_layer(backend), given.pop("layer", None)
    layer = moments.only_layer(default) if layer is None else backend.check_layer(layer)
    given["context_templates"] = moments.templates(given)
    if layer != default:
        given["layer"] = layer
    if spec.kind == IDENTITY:
        width = backend.w_out(layer).matrix.shape[0]
        return ROME(model, second_moment=torch.eye(width), **given)
    return ROME(model, second_moment=moments.given(layer), variant=choice("variant", spec.kind, VARIANTS), **given)


def _alone(editor: Any) -> Any:
    """The editor, such that it can be asked for one fact."""
    return Alone(editor) if isinstance(editor, TogetherEditor) else editor


def describe(editor: Any) -> dict[str, Any]:
    """What an editor is, as JSON can hold it: its settings, and where they come from."""
    if editor is None:
        return {}
    editor = editor.editor if isinstance(editor, Alone) else editor
    if isinstance(editor, TogetherEditor):
        return {"class": type(editor).__name__, **_plain(editor.record())}
    settings = getattr(editor, "settings", None)
    described = dict(settings) if isinstance(settings, Mapping) else _of_dataclass(settings)
    for name in ("variant", "bare_weight", "essence_at", "norm_constraint"):
        if hasattr(editor, name):
            described[name] = getattr(editor, name)
    if isinstance(editor, ROME):
        described["second_moment"] = editor.second_moment.to_dict()
        described["context_templates"] = list(editor.context_templates)
    return {"class": type(editor).__name__, **_plain(described)}


def _of_dataclass(settings: Any) -> dict[str, Any]:
    return asdict(settings) if is_dataclass(settings) and not isinstance(settings, type) else {}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | int | bool)


def _name(editor: Any) -> str:
    if isinstance(editor, str):
        return editor
    if editor is None:
        return UNEDITED
    if isinstance(editor, ROME):
        return editor.variant
    return type(editor).__name__


def _spec(name: str, one: Any, known: Sequence[str]) -> EditorSpec:
    if one is None:
        return EditorSpec(name, UNEDITED)
    if isinstance(one, str):
        if one not in known and ":" not in one:
            alone = " (it edits one fact, and cannot be asked for many together)" if one in EDITORS else ""
            raise SettingError(
                f"editor is {one!r}{alone}; choose one of {', '.join(known)}, or package.module:function for one of "
                "your own"
            )
        if ":" in one:
            _imported(one)
        return EditorSpec(name, one)
    # Without what the editor would have to compute to tell.
    settings = _plain(_of_dataclass(getattr(one, "settings", None)))
    return EditorSpec(name, type(one).__name__, settings, _checked(one, name))


def _checked(editor: Any, name: str) -> Any:
    if not isinstance(editor, TogetherEditor) and not callable(getattr(editor, "edit", None)):
        raise SettingError(f"the editor {name} is a {type(editor).__name__} and has no edit(request)")
    return editor


def _with_settings(specs: Sequence[EditorSpec], settings: Sequence[str], *, together: bool) -> tuple[EditorSpec, ...]:
    chosen: dict[str, dict[str, Any]] = {spec.name: dict(spec.settings) for spec in specs}
    for text in settings:
        place, sign, value = text.partition("=")
        editor, dot, name = place.rpartition(".")
        if not sign or not name:
            raise SettingError(f"{text!r} is no setting; expected NAME=VALUE or EDITOR.NAME=VALUE, such as ft.layer=3")
        takers = [
            spec for spec in specs if name in _settings_of(spec.kind, together) and (not dot or spec.name == editor)
        ]
        if dot and editor not in chosen:
            raise SettingError(f"{text!r} is for the editor {editor!r}; the run has {', '.join(chosen)}")
        if not takers:
            known = sorted(
                {n for spec in specs if not dot or spec.name == editor for n in _settings_of(spec.kind, together)}
            )
            who = f"the editor {editor!r} does not take" if dot else "no editor takes"
            it = "it takes" if dot else "they take"
            raise SettingError(f"{who} the setting {name!r}; {it} {', '.join(known) or 'none'}")
        for spec in takers:
            chosen[spec.name][name] = _value(text, value, plain=spec.kind in EDITORS and name not in _LISTS)
    return tuple(EditorSpec(spec.name, spec.kind, chosen[spec.name], spec.made) for spec in specs)


def _value(text: str, value: str, *, plain: bool) -> Any:
    expected = "expected a number, true, null or a quoted text"
    try:
        found = json.loads(value, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{text!r}: the value is no JSON; {expected}") from error
    if plain and isinstance(found, list | dict):
        raise SettingError(f"{text!r}: the value is a {type(found).__name__}; {expected}")
    return found


def _no_constant(name: str) -> None:
    # NaN and Infinity are Python's, and no run folder could keep them.
    raise ValueError(name)


def _settings_of(kind: str, together: bool) -> set[str]:
    if kind == UNEDITED:
        return set()
    if kind in SETS:
        return (_parameters(SETS[kind]) | TogetherChanges.__annotations__.keys()) - {"changes"} - _SHARED
    if kind == "r-rome" and together:
        # Its values are found as those of a set, and shared with it.
        return {"layer", "found_on"} | TogetherChanges.__annotations__.keys() - _SHARED
    if kind in _FINE_TUNING:
        return _parameters(FineTuning) - _SHARED - ({"norm_constraint"} if kind == "ft" else set())
    if kind in EDITORS:
        taken = (_parameters(ROME) | SettingsChanges.__annotations__.keys()) - {"changes"} - _SHARED
        return taken - {"layer"} | {"n_layers"} if kind == RANDOM_LAYER else taken
    return set(list(inspect.signature(_imported(kind)).parameters)[1:]) if ":" in kind else set()


def _parameters(made: type) -> set[str]:
    return set(inspect.signature(made).parameters)


def _imported(name: str) -> Callable[..., Any]:
    """A function by its name; modules in the working folder are found too."""
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise SettingError(f"the editor {name!r} names no module; expected package.module:function")
    here = str(Path.cwd())
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise SettingError(f"the editor {name!r} cannot be imported: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(found):
        raise SettingError(
            f"{module!r} has no function {attribute!r}; expected one that takes a model and returns an editor"
        )
    return found
