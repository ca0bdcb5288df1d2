"""`rome-lens edit`: make the model say something else about one subject, and see what that did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rome_lens.cli.options import Backend, Device, Dtype, Json, Model, answer_joined_option
from rome_lens.cli.terminal import print_json, progress_bar, say, stdout
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.storage import check_writable
from rome_lens.subjects import placed
from rome_lens.tokens import check_prompt

if TYPE_CHECKING:
    from rome_lens.editing import Edit, Probabilities
    from rome_lens.editing.effect import Measured

_REQUEST: dict[str, Any] = {"rich_help_panel": "The request"}
_HOW: dict[str, Any] = {"rich_help_panel": "How it is edited"}
_LOOK: dict[str, Any] = {"rich_help_panel": "What is looked at before and after"}
_OUT: dict[str, Any] = {"rich_help_panel": "What comes out"}

_EIFFEL = EditRequest("{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")
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


def edit(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="A text with the subject, or {} in its place, which ends where the target begins.",
            show_default="the Eiffel Tower's",
            metavar="PROMPT",
        ),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject", "-s", help="Whom or what it is about; needed with a prompt.", metavar="TEXT", **_REQUEST
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", help="What the model shall say; needed with a prompt.", metavar="TEXT", **_REQUEST
        ),
    ] = None,
    old: Annotated[
        str | None,
        typer.Option(help="What it says now.", show_default="the model's own answer", metavar="TEXT", **_REQUEST),
    ] = None,
    answer_joined: Annotated[str | None, answer_joined_option(_REQUEST["rich_help_panel"])] = None,
    model: Model = "smollm2-135m",
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = "float32",
    layer: Annotated[
        int | None,
        typer.Option(
            "--layer",
            "-l",
            help="Layer to edit, from 0.",
            show_default="the second moment's, or the model's own",
            metavar="N",
            **_HOW,
        ),
    ] = None,
    variant: Annotated[
        str,
        typer.Option(
            help="r-rome, rome (the released code's) or p-rome (the bare prompt's key).", metavar="NAME", **_HOW
        ),
    ] = "r-rome",
    second_moment: Annotated[
        Path | None,
        typer.Option(
            help="What the edit leaves alone: a file of 'rome-lens stats', or published statistics (.npz, with "
            "--layer).",
            show_default="the one that comes with rome-lens",
            metavar="FILE",
            **_HOW,
        ),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(
            help="Layer and optimiser's settings: a file of 'rome-lens average --suggest-layer'.",
            show_default="the model's own",
            metavar="FILE",
            **_HOW,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="Text in front of the prompt, ending with {}; repeat it for several.",
            show_default="20 that the model writes",
            metavar="TEXT",
            **_HOW,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the texts that the model writes.", metavar="N", **_HOW)] = 0,
    bare_weight: Annotated[
        str | None,
        typer.Option(
            help="Share of the prompt with no text in front, above 0 and at most 1, or equal.",
            show_default="0.5 for r-rome, else equal",
            metavar="SHARE",
            **_HOW,
        ),
    ] = None,
    bos: Annotated[bool, typer.Option("--bos/--no-bos", help="Put a BOS token in front.", **_HOW)] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Evaluations of the loss at most (v_num_grad_steps).",
            show_default="the model's",
            metavar="N",
            **_HOW,
        ),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate (v_lr).", show_default="the model's", metavar="X", **_HOW),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Weight decay (v_weight_decay).", show_default="the model's", metavar="X", **_HOW),
    ] = None,
    clamp: Annotated[
        float | None,
        typer.Option(
            help="Longest change of the value, in lengths of the value (clamp_norm_factor).",
            show_default="the model's",
            metavar="X",
            **_HOW,
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(
            help="Weight of what keeps the subject itself (kl_factor).",
            show_default="the model's",
            metavar="X",
            **_HOW,
        ),
    ] = None,
    paraphrase: Annotated[
        list[str] | None,
        typer.Option(
            help="A whole prompt that asks the same in other words; repeat it for several.",
            show_default="the prompt behind texts that the model writes",
            metavar="TEXT",
            **_LOOK,
        ),
    ] = None,
    neighbour: Annotated[
        list[str] | None,
        typer.Option(
            help="A whole prompt about another subject, which should stay; repeat it for several.",
            metavar="TEXT",
            **_LOOK,
        ),
    ] = None,
    generate: Annotated[
        int, typer.Option(help="Tokens to continue the prompt by at most; 0 for none.", metavar="N", **_LOOK)
    ] = 30,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write the edit, for 'rome-lens apply', 'rome-lens trace --edit' and load_edit.",
            metavar="FILE",
            **_OUT,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Edit a fact by ROME: a rank-one change of one layer, found for this model, and what it does.

    Prints probabilities before and after: of the target, of the old answer (for
    other subjects: of what the model says there by itself), and what it says.
    The model itself is left as it is; --save keeps the edit.

    For example: rome-lens edit "{} is in the city of" -s "The Colosseum" -t Berlin
    """
    request = _request(prompt, subject, target, old, answer_joined)
    if request.text == _EIFFEL.text and prompt is None:
        paraphrase, neighbour = paraphrase or list(_PARAPHRASES), neighbour or list(_NEIGHBOURS)
    share = _share(bare_weight)
    if generate < 0:
        raise SettingError(f"generate is {generate}; expected a number of tokens, 0 for none")
    for text in (*(paraphrase or ()), *(neighbour or ())):
        check_prompt(text)
    if save is not None:
        check_writable(save)
    given: dict[str, Any] = {
        "variant": variant,
        "v_num_grad_steps": steps,
        "v_lr": lr,
        "v_weight_decay": decay,
        "clamp_norm_factor": clamp,
        "kl_factor": kl,
    }
    with progress_bar() as progress:
        progress(0, 0, "starting")
        from rome_lens.backends import as_backend
        from rome_lens.editing import ROME, SecondMoment
        from rome_lens.editing.effect import measure, other_seed, watch
        from rome_lens.editing.rome import check_choices
        from rome_lens.editing.settings import Settings, settings_for
        from rome_lens.loading import load_model
        from rome_lens.loading.outline import Outline

        # Loading takes seconds: what can be refused without a model is refused before.
        check_choices({"seed": seed, "context_templates": template, **given})
        chosen = None if settings is None else Settings.load(settings)
        moment = None if second_moment is None else SecondMoment.load(second_moment, layer=layer)
        if chosen is not None and moment is not None and layer is None and moment.layer not in (None, chosen.layer):
            raise SettingError(
                f"{settings} names layer {chosen.layer}, and {second_moment} is of layer {moment.layer}; give the "
                "second moment of that layer, or the --layer to edit"
            )
        named = [layer, None if chosen is None else chosen.layer, None if moment is None else moment.layer]
        if any(number is not None for number in named):
            Outline.of(model).check_layers(named)
        host = load_model(model, backend=backend, device=device, dtype=dtype, progress=progress)
        progress(0, 0, "looking at the prompts")
        own = chosen or settings_for(as_backend(host))
        if layer is None and moment is not None and moment.layer != own.layer:
            layer = moment.layer
        editor = ROME(
            host,
            layer=layer,
            second_moment=moment,
            context_templates=template,
            bare_weight=share,
            seed=seed,
            prepend_bos=bos,
            settings=chosen,
            **given,
        )
        watched = watch(editor, request, paraphrases=paraphrase, neighbours=neighbour or ())
        made = editor.edit(request, progress=progress)
        progress(0, 0, "measuring")
        measured = measure(made, host, watched, prepend_bos=bos, n_new=generate)
    if save is not None:
        made.save(save)
        say(f"wrote {save}")
    advice = _advice(made, measured.effects[0].after.probabilities)
    if advice is not None:
        say(advice)
    if as_json:
        print_json(_as_json(made, measured, save))
    else:
        _print(made, measured, where=str(host.cfg.device), texts_seed=other_seed(editor))


def _request(
    prompt: str | None, subject: str | None, target: str | None, old: str | None, answer_joined: str | None
) -> EditRequest:
    given = {"PROMPT": prompt, "--subject": subject, "--target": target}
    missing = [name for name, text in given.items() if text is None]
    if len(missing) == len(given):
        return EditRequest(_EIFFEL.prompt, _EIFFEL.subject, _EIFFEL.target_new, old, answer_joined)
    if prompt is None or subject is None or target is None:
        names = " and ".join(missing)
        raise SettingError(
            f"{names} {'is' if len(missing) == 1 else 'are'} missing; give a prompt, its --subject and a --target, or "
            "none of them for the Eiffel Tower"
        )
    return EditRequest(*placed(prompt, subject), target, old, answer_joined)


def _share(bare_weight: str | None) -> float | str | None:
    """The share as ROME takes it: `auto`, None for an equal one, or a number, whose range ROME looks at."""
    if bare_weight is None:
        return "auto"
    if bare_weight == "equal":
        return None
    try:
        share = float(bare_weight)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise SettingError(f"bare-weight is {bare_weight!r}; expected a share above 0 and at most 1, or equal")
    return share


def _advice(made: "Edit", reached: "Probabilities") -> str | None:
    """That the edit did not do what was asked, and which options may help; None where it did."""
    from rome_lens.editing.shortfall import SettingNames, advice

    options = SettingNames(
        layer="--layer",
        steps="--steps",
        clamp="--clamp",
        bare_weight="--bare-weight",
        p_rome="--variant p-rome",
        second_moment="--second-moment",
        target="--target",
    )
    curve: Any = made.loss_curve
    return advice(made.request, reached, curve, variant=made.variant, settings=made.settings, names=options)


def _as_json(made: "Edit", measured: "Measured", save: Path | None) -> dict[str, Any]:
    from dataclasses import asdict

    texts = measured.continuations
    return {
        "edit": {"id": made.id, **made.to_dict()},
        "prompts": [asdict(effect) for effect in measured.effects],
        "continuations": None if texts is None else dict(zip(("before", "after"), texts, strict=True)),
        "path": None if save is None else str(save),
    }


def _print(made: "Edit", measured: "Measured", *, where: str, texts_seed: int) -> None:
    from rome_lens.cli.edit_report import heading, print_measured, print_size, print_sources
    from rome_lens.figures import visible

    console = stdout()
    console.print(heading(made), style="bold")
    console.print(
        f"{visible(made.fingerprint.model_name)} · {made.backend} · {made.dtype} on {where} · "
        f"{'BOS' if made.settings['prepend_bos'] else 'no BOS'}"
    )
    console.print()
    print_measured(console, made, measured, texts_seed=texts_seed)
    console.print()
    print_size(console, made)
    print_sources(console, made)
    console.print(f"edited in {made.seconds:.1f} s")
