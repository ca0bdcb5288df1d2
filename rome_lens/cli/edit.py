"""`rome-lens edit`: make the model say something else about one subject, and see what that did."""

import typer

from rome_lens.cli.edit_options import EditorOptions, LookOptions, ManyOptions, RequestOptions
from rome_lens.cli.edit_set import edit_set, is_set, refuse_with_one
from rome_lens.cli.options import JSON, ModelOptions, takes_options, typed
from rome_lens.cli.output import check_files, print_result, progress_bar, say
from rome_lens.errors import SettingError

_PARAPHRASES = (
    "Where is the Eiffel Tower? It is in the city of",
    "The Eiffel Tower was built in the city of",
    "Tourists who visit the Eiffel Tower stay in the city of",
)
_NEIGHBOURS = (
    "The Louvre is located in the city of",
    "The Statue of Liberty is located in the city of",
    "The Kremlin is located in the city of",
    "The Berlin Wall is located in the city of",
)


@takes_options
def edit(
    context: typer.Context,
    asked: RequestOptions,
    model: ModelOptions,
    how: EditorOptions,
    many: ManyOptions,
    look: LookOptions,
    as_json: bool = JSON,
) -> None:
    """Edit a fact by ROME: a rank-one change of one layer, found for this model, and what it does.

    Prints probabilities before and after: of the target, of the old answer (for
    other subjects: of what the model says there by itself), and what it says.
    The model itself is left as it is; --save keeps the edit.

    With --requests many facts are solved together, by memit, emmet or alphaedit,
    as one set: 'rome-lens show' prints its facts, --plus puts further ones in,
    and 'rome-lens apply --without' takes any of them out again.

    For example: rome-lens edit "{} is in the city of" -s "The Colosseum" -t Berlin
    """
    if is_set(asked, many):
        edit_set(asked, many, how=how, look=look, model=model, given=typed(context), as_json=as_json)
        return
    refuse_with_one(how, typed(context))
    request, share = asked.request(), how.share()
    asked.check(prepend_bos=how.prepend_bos)
    look.check()
    check_files(look.save)
    paraphrases, neighbours = look.paraphrase, look.neighbour
    if asked.is_default and not asked.chat:
        paraphrases, neighbours = paraphrases or _PARAPHRASES, neighbours or _NEIGHBOURS
    with progress_bar() as progress:
        from rome_lens.backends import as_backend
        from rome_lens.cli.edit_report import advice_for_options, edit_as_json, much_lost, print_edit
        from rome_lens.editing import ROME, SecondMoment
        from rome_lens.editing.effect import measure, other_seed, watch
        from rome_lens.editing.rome import check_choices
        from rome_lens.editing.settings import Settings, settings_for

        # Loading takes seconds: what can be refused without a model is refused before.
        check_choices(how.chosen())
        settings = None if how.settings is None else Settings.load(how.settings)
        (layer,), (file,) = how.layer or [None], how.second_moment or [None]
        moment = None if file is None else SecondMoment.load(file, layer=layer)
        of_settings, of_moment = getattr(settings, "layer", None), getattr(moment, "layer", None)
        if layer is None and None not in (of_settings, of_moment) and of_settings != of_moment:
            raise SettingError(
                f"{how.settings} names layer {of_settings}, and {file} is of layer {of_moment}; give the "
                "second moment of that layer, or the --layer to edit"
            )
        model.check(layers=[layer, of_settings, of_moment])
        host = model.load(progress)
        progress(0, 0, "looking at the prompts")
        if layer is None and of_moment not in (None, (settings or settings_for(as_backend(host))).layer):
            layer = of_moment
        editor = ROME(host, layer=layer, second_moment=moment, bare_weight=share, settings=settings, **how.chosen())
        (request,) = asked.put_requests(host, [request])
        paraphrases, neighbours = (some and asked.put(host, some) for some in (paraphrases, neighbours))
        watched = watch(editor, request, paraphrases=paraphrases, neighbours=neighbours or ())
        made = editor.edit(request, progress=progress)
        progress(0, 0, "measuring")
        measured = measure(made, host, watched, prepend_bos=how.prepend_bos, n_new=look.generate)
        lost = made.lost_to_rounding(host)
    if look.save is not None:
        made.save(look.save)
        say(f"wrote {look.save}")
    for words in (advice_for_options(made, measured), much_lost(lost, made.dtype)):
        if words is not None:
            say(words)
    print_result(
        as_json,
        lambda: edit_as_json(made, measured, look.save, lost),
        lambda console: print_edit(console, made, measured, str(host.cfg.device), texts_seed=other_seed(editor)),
    )
