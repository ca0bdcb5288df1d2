"""Many facts as one set, for `rome-lens edit`: solved together, or put into a set that there is."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rome_lens.checks import choice
from rome_lens.cli.edit_options import HOW_SOLVED, METHODS, EditorOptions, LookOptions, ManyOptions, RequestOptions
from rome_lens.cli.options import ModelOptions
from rome_lens.cli.output import check_files, print_result, progress_bar, say
from rome_lens.errors import ModelNotFoundError, SettingError
from rome_lens.facts import EditRequest
from rome_lens.progress import Progress

_ONE = "rome"
_REQUEST = ("prompt", "subject", "target", "old", "answer_joined")
# What is looked at, or read, for one request alone.
_OF_ONE = ("variant", "paraphrase", "neighbour", "generate")
# What one fact has no use for.
_OF_MANY = (*HOW_SOLVED, "allow_conflicts", "skip_failed", "guard", "workers", "out")
# What a set says of itself, so that whatever is put into it is found alike; and what `plus` has no use for.
_OF_SET = ("method", "layer", "settings", "context_templates", "seed", "bare_weight", "prepend_bos", "v_num_grad_steps")
_OF_SET += ("v_lr", "v_weight_decay", "clamp_norm_factor", "kl_factor", *HOW_SOLVED)
_NOT_PLUS = ("skip_failed", "guard", "workers")


def is_set(asked: RequestOptions, many: ManyOptions) -> bool:
    """Whether the command line asks for a set of facts, and not for one edit."""
    return asked.requests is not None or many.plus is not None or many.method not in (None, _ONE)


def refuse_with_one(how: EditorOptions, given: Mapping[str, str]) -> None:
    """Refuse what only many facts have a use for.

    Args:
        how: how the fact is edited.
        given: the options on the command line, by field.

    Raises:
        SettingError: there is such an option, or one that names a layer stands there twice.
    """
    _refuse(given, _OF_MANY, "goes with many facts; give --requests, --plus or a --method for many")
    for name, several in (("layer", how.layer), ("second_moment", how.second_moment)):
        if several is not None and len(several) > 1:
            raise SettingError(
                f"{given[name]} is given {len(several)} times, and ROME edits one layer; give it once, or a --method "
                f"for many facts ({', '.join(METHODS)})"
            )


def edit_set(
    asked: RequestOptions,
    many: ManyOptions,
    *,
    how: EditorOptions,
    look: LookOptions,
    model: ModelOptions,
    given: Mapping[str, str],
    as_json: bool,
) -> None:
    """Solve many facts together, or put further ones into a set, and print what the set knows.

    Args:
        asked: what is asked.
        many: how they are solved.
        how: how values are found.
        look: where the set is kept.
        model: the model.
        given: the options on the command line, by field.
        as_json: whether it is printed for machines.
    """
    method = _check(asked, many, given)
    asked.check(prepend_bos=how.prepend_bos)
    share = how.share()
    check_files(look.save)
    with progress_bar() as progress:
        from rome_lens.cli.edit_report import much_lost
        from rome_lens.cli.set_report import print_set, set_as_json, unreached
        from rome_lens.editing.guard import CollapseGuard
        from rome_lens.editing.rome import check_choices
        from rome_lens.editing.together.reopen import EDITORS
        from rome_lens.editing.together.set_fact import check_requests

        # Loading takes seconds, and values minutes: what can be refused before is refused before.
        chosen = many.chosen()
        guard = None if many.guard is None else CollapseGuard(many.guard)
        check_choices({name: value for name, value in how.chosen().items() if name != "variant"})
        requests = _requests(asked, many, given)
        sets = [_read_set(path) for path in many.plus or ()]
        # Of questions it is known only by the model's template whether a set has them.
        there = [fact.request for each in sets[:1] for fact in each.facts if not asked.chat]
        others = [fact.request for each in sets[1:] for fact in each.facts]
        check_requests([*others, *requests], there, allow_conflicts=many.allow_conflicts)
        moments = _second_moments(how)
        if sets:
            _all_used(moments, sets[0].terms.numbers)
            host = _load_of(sets[0], model, given, progress)
            requests = asked.put_requests(host, requests)
            made = _plus(host, sets, requests, many, moments=moments, progress=progress)
        else:
            layers, settings = _layers(how, moments)
            model.check(layers=[*(layers or ()), *moments])
            host = model.load(progress)
            progress(0, 0, "looking at the prompts")
            values = {name: value for name, value in how.chosen().items() if name != "variant"} | chosen
            editor = EDITORS[method][0](
                host, layers=layers, second_moments=moments or None, bare_weight=share, settings=settings, **values
            )
            _all_used(moments, editor.layers)
            made = editor.edit_together(
                asked.put_requests(host, requests),
                out=many.out,
                workers=many.workers,
                allow_conflicts=many.allow_conflicts,
                skip_failed=many.skip_failed,
                guard=guard,
                progress=progress,
            )
        lost = made.lost_to_rounding(host)
    if look.save is not None:
        made.save(look.save)
        say(f"wrote {look.save}")
    for words in (unreached(made), much_lost(lost, str(host.cfg.dtype).removeprefix("torch."))):
        if words is not None:
            say(words)
    print_result(
        as_json,
        lambda: {
            "set": set_as_json(made),
            "path": None if look.save is None else str(look.save),
            "lost_to_rounding": lost,
        },
        lambda console: print_set(console, made, str(host.cfg.device)),
    )


def _refuse(given: Mapping[str, str], names: Iterable[str], why: str) -> None:
    """Refuse options of some names.

    Raises:
        SettingError: one of them stands on the command line.
    """
    for name in names:
        if name in given:
            raise SettingError(f"{given[name]} {why}")


def _check(asked: RequestOptions, many: ManyOptions, given: Mapping[str, str]) -> str:
    """The method, once what does not go together is refused.

    Raises:
        SettingError: there is such a thing.
    """
    method = choice("method", many.method or next(iter(METHODS)), (_ONE, *METHODS))
    if method == _ONE:
        raise SettingError(f"--method rome edits one fact, alone; choose one of {', '.join(METHODS)}, or leave it out")
    if asked.requests is not None:
        _refuse(given, _REQUEST, "asks for one fact, and --requests for those of a file; give one of the two")
    _refuse(given, _OF_ONE, "goes with one fact and --method rome; leave it out")
    if many.plus is not None:
        _refuse(given, _OF_SET, "is what the set of --plus was made with already; leave it out")
        _refuse(given, _NOT_PLUS, "goes with a new set; leave it out")
    for other, name in METHODS.items():
        if other != method:
            _refuse(given, [name], f"goes with --method {other}, and this is {method}; leave it out")
    if many.spread == "released" and many.at == "w_out":
        raise SettingError("--spread released goes with --at block; leave out --at w_out")
    return method


def _requests(asked: RequestOptions, many: ManyOptions, given: Mapping[str, str]) -> list[EditRequest]:
    """What is asked: the requests of a file, or the one that was typed; none where sets are joined.

    Raises:
        SettingError: nothing is asked, and there is one set. ArtefactError: the file cannot be read.
    """
    if asked.requests is not None:
        from rome_lens.data import read_requests

        return read_requests(asked.requests)
    if many.plus is None or any(name in given for name in _REQUEST):
        return [asked.request()]
    if len(many.plus) == 1:
        raise SettingError("nothing is asked beside the set of --plus; give --requests, a prompt, or another --plus")
    _refuse(given, ["chat", "reply"], "asks a question, and nothing is asked; leave it out")
    _refuse(given, ["out"], "keeps values as they are found, and nothing is asked; leave it out")
    return []


def _read_set(path: Path) -> Any:
    from rome_lens.editing import EditSet, load_edit

    found = load_edit(path)
    if not isinstance(found, EditSet):
        raise SettingError(f"{str(path)!r} holds an edit of one fact, which nothing can be put into; give a set")
    return found


def _load_of(facts: Any, model: ModelOptions, given: Mapping[str, str], progress: Progress) -> Any:
    """The model that a set was made on, in its precision, unless another one was typed."""
    of_set = {"model": facts.fingerprint.model_name, "dtype": facts.dtype}
    wanted = replace(model, **{name: value for name, value in of_set.items() if name not in given})
    try:
        return wanted.load(progress)
    except ModelNotFoundError as error:
        hint = "" if "model" in given else "; or name the model that the set was made on with --model"
        raise ModelNotFoundError(f"{error}{hint}") from error


def _plus(
    host: Any,
    sets: Sequence[Any],
    requests: Sequence[EditRequest],
    many: ManyOptions,
    *,
    moments: Mapping[int, Any],
    progress: Progress,
) -> Any:
    """The first set with the facts of the others and with those that are asked for, measured."""
    from rome_lens.editing.together.reopen import reopened

    first, *others = sets
    first.hooks(host)  # refuses another model before anything is found
    progress(0, 0, "looking at the set")
    if requests or moments or first.terms.spread == "released":
        first = reopened(first, host, second_moments=moments or None)
    plus = first.plus(*others, requests, allow_conflicts=many.allow_conflicts, out=many.out, progress=progress)
    progress(0, 0, "measuring")
    return plus.measured(host)


def _second_moments(how: EditorOptions) -> dict[int, Any]:
    """The second moments of files, by layer.

    Raises:
        SettingError: two are of one layer. ArtefactError, ModelMismatchError: a file is none, or of another layer.
    """
    from rome_lens.editing import SecondMoment

    layers, found = how.layer or [], {}
    for path in how.second_moment or ():
        moment = SecondMoment.load(path, layer=layers[0] if len(layers) == 1 else None)
        if moment.layer in found:
            raise SettingError(f"two second moments are of layer {moment.layer}; give one for each layer")
        found[moment.layer] = moment
    if layers:
        _all_used(found, layers)
    return found


def _all_used(moments: Mapping[int, Any], layers: Sequence[int]) -> None:
    """Refuse second moments of layers that are not edited.

    Raises:
        SettingError: there is one.
    """
    for layer in moments:
        if layer not in layers:
            raise SettingError(
                f"a second moment is of layer {layer}, and edited {'is' if len(layers) == 1 else 'are'} "
                f"{', '.join(map(str, layers))}; leave it out"
            )


def _layers(how: EditorOptions, moments: Mapping[int, Any]) -> tuple[list[int] | None, Any]:
    """The layers to edit, None for those that the editor takes by itself; and the settings of a file.

    Raises:
        SettingError: the file's layer is not the last of them. ArtefactError: it cannot be read.
    """
    from rome_lens.editing.settings import Settings

    if how.settings is None:
        return how.layer, None
    settings = Settings.load(how.settings)
    layers = how.layer or sorted(moments) or [settings.layer]
    if not how.layer and max(layers) != settings.layer:
        raise SettingError(
            f"{how.settings} names layer {settings.layer}, and the last second moment is of layer {max(layers)}; give "
            "the second moment of that layer, or each --layer to edit"
        )
    return layers, settings
