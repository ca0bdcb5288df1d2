"""`rome-lens edit`: make the model say something else about one subject, and see what that did."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rome_lens.checks import whole_number
from rome_lens.cli.options import JSON, OUT, ModelOptions, Panel, argument, takes_options
from rome_lens.cli.output import check_files, print_result, progress_bar, say
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.subjects import placed
from rome_lens.tokens import check_prompt

_REQUEST = Panel("The request")
_HOW = Panel("How it is edited")
_LOOK = Panel("What is looked at before and after")

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


@dataclass(frozen=True)
class _RequestOptions:
    """Who or what the edit is about, and what the model is to say."""

    prompt: str | None = argument(
        "A text with the subject, or {} in its place, which ends where the target begins.",
        "PROMPT",
        shown="the Eiffel Tower's",
    )
    subject: str | None = _REQUEST("Who or what it is about; needed with a prompt.", "-s")
    target: str | None = _REQUEST("What the model is to say; needed with a prompt.", "-t")
    old: str | None = _REQUEST("What it says now.", shown="the model's own answer")
    answer_joined: str | None = _REQUEST.answer_joined()

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for, so that it is about the Eiffel Tower."""
        return self.prompt is None and self.subject is None and self.target is None

    def request(self) -> EditRequest:
        """What the editor is asked.

        Raises:
            SettingError: of prompt, subject and target some are given and some are not.
        """
        if self.is_default:
            return EditRequest(_EIFFEL.prompt, _EIFFEL.subject, _EIFFEL.target_new, self.old, self.answer_joined)
        if self.prompt is None or self.subject is None or self.target is None:
            given = {"PROMPT": self.prompt, "--subject": self.subject, "--target": self.target}
            missing = [name for name, text in given.items() if text is None]
            raise SettingError(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; give a prompt, its --subject "
                "and a --target, or none of them for the Eiffel Tower"
            )
        return EditRequest(*placed(self.prompt, self.subject), self.target, self.old, self.answer_joined)


@dataclass(frozen=True)
class _EditorOptions:
    """How the edit is found."""

    layer: int | None = _HOW("Layer to edit, from 0.", "-l", shown="the second moment's, or the model's own")
    variant: str = _HOW(
        "r-rome, rome (the released code's) or p-rome (the bare prompt's key).", metavar="NAME", default="r-rome"
    )
    second_moment: Path | None = _HOW(
        "What the edit leaves alone: a file of 'rome-lens stats', or published statistics (.npz, with --layer).",
        shown="the one that comes with rome-lens",
    )
    settings: Path | None = _HOW(
        "Layer and optimiser's settings: a file of 'rome-lens suggest'.", shown="the model's own"
    )
    context_templates: list[str] | None = _HOW(
        "Text in front of the prompt, ending with {}; repeat it for several.",
        "--template",
        shown="20 that the model writes",
    )
    seed: int = _HOW("Seed of the texts that the model writes.", default=0)
    bare_weight: str | None = _HOW(
        "Weight of the prompt without a text in front: a share above 0 and at most 1, or equal.",
        metavar="SHARE",
        shown="0.5 for r-rome, else equal",
    )
    prepend_bos: bool = _HOW.bos()
    v_num_grad_steps: int | None = _HOW(
        "Most evaluations of the loss (v_num_grad_steps).", "--steps", shown="the model's"
    )
    v_lr: float | None = _HOW("Learning rate (v_lr).", "--lr", shown="the model's")
    v_weight_decay: float | None = _HOW("Weight decay (v_weight_decay).", "--decay", shown="the model's")
    clamp_norm_factor: float | None = _HOW(
        "Largest change of the value, as a multiple of its length (clamp_norm_factor).",
        "--clamp",
        shown="the model's",
    )
    kl_factor: float | None = _HOW(
        "Weight of the loss that keeps what the subject is (kl_factor).", "--kl", shown="the model's"
    )

    def chosen(self) -> dict[str, Any]:
        """What ROME is given as it was typed, by name; None leaves it to the model's settings."""
        looked_up = ("layer", "second_moment", "settings", "bare_weight")
        return {name: value for name, value in vars(self).items() if name not in looked_up}

    def share(self) -> float | str | None:
        """The bare prompt's share as ROME takes it: `auto`, None for an equal one, or a number.

        Raises:
            SettingError: it is no share.
        """
        if self.bare_weight is None:
            return "auto"
        if self.bare_weight == "equal":
            return None
        try:
            share = float(self.bare_weight)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise SettingError(f"bare-weight is {self.bare_weight!r}; expected a share above 0 and at most 1, or equal")
        return share


@dataclass(frozen=True)
class _LookOptions:
    """What is read in the model before and after the edit, and where that is kept."""

    paraphrase: list[str] | None = _LOOK(
        "A whole prompt that asks the same in other words; repeat it for several.",
        shown="the prompt behind texts that the model writes",
    )
    neighbour: list[str] | None = _LOOK(
        "A whole prompt about another subject, which should stay; repeat it for several."
    )
    generate: int = _LOOK("Most tokens to continue the prompt by; 0 for none.", default=30)
    save: Path | None = OUT("Write the edit, for 'rome-lens apply', 'rome-lens trace --edit' and load_edit.")

    def check(self) -> None:
        """Refuse what cannot be read, before a model is loaded.

        Raises:
            SettingError, PromptError: a number is negative, or a prompt empty.
        """
        whole_number("generate", self.generate, least=0, expected="a number of tokens")
        for text in (*(self.paraphrase or ()), *(self.neighbour or ())):
            check_prompt(text)


@takes_options
def edit(
    asked: _RequestOptions, model: ModelOptions, how: _EditorOptions, look: _LookOptions, as_json: bool = JSON
) -> None:
    """Edit a fact by ROME: a rank-one change of one layer, found for this model, and what it does.

    Prints probabilities before and after: of the target, of the old answer (for
    other subjects: of what the model says there by itself), and what it says.
    The model itself is left as it is; --save keeps the edit.

    For example: rome-lens edit "{} is in the city of" -s "The Colosseum" -t Berlin
    """
    request, share = asked.request(), how.share()
    look.check()
    check_files(look.save)
    paraphrases, neighbours = look.paraphrase, look.neighbour
    if asked.is_default:
        paraphrases, neighbours = paraphrases or _PARAPHRASES, neighbours or _NEIGHBOURS
    with progress_bar() as progress:
        from rome_lens.backends import as_backend
        from rome_lens.cli.edit_report import advice_for_options, edit_as_json, print_edit
        from rome_lens.editing import ROME, SecondMoment
        from rome_lens.editing.effect import measure, other_seed, watch
        from rome_lens.editing.rome import check_choices
        from rome_lens.editing.settings import Settings, settings_for

        # Loading takes seconds: what can be refused without a model is refused before.
        check_choices(how.chosen())
        settings = None if how.settings is None else Settings.load(how.settings)
        moment = None if how.second_moment is None else SecondMoment.load(how.second_moment, layer=how.layer)
        layer, of_settings, of_moment = how.layer, getattr(settings, "layer", None), getattr(moment, "layer", None)
        if layer is None and None not in (of_settings, of_moment) and of_settings != of_moment:
            raise SettingError(
                f"{how.settings} names layer {of_settings}, and {how.second_moment} is of layer {of_moment}; give the "
                "second moment of that layer, or the --layer to edit"
            )
        model.check(layers=[layer, of_settings, of_moment])
        host = model.load(progress)
        progress(0, 0, "looking at the prompts")
        if layer is None and of_moment not in (None, (settings or settings_for(as_backend(host))).layer):
            layer = of_moment
        editor = ROME(host, layer=layer, second_moment=moment, bare_weight=share, settings=settings, **how.chosen())
        watched = watch(editor, request, paraphrases=paraphrases, neighbours=neighbours or ())
        made = editor.edit(request, progress=progress)
        progress(0, 0, "measuring")
        measured = measure(made, host, watched, prepend_bos=how.prepend_bos, n_new=look.generate)
    if look.save is not None:
        made.save(look.save)
        say(f"wrote {look.save}")
    advice = advice_for_options(made, measured)
    if advice is not None:
        say(advice)
    print_result(
        as_json,
        lambda: edit_as_json(made, measured, look.save),
        lambda console: print_edit(console, made, measured, str(host.cfg.device), texts_seed=other_seed(editor)),
    )
