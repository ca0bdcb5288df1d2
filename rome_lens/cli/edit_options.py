"""The options of `rome-lens edit`: what is asked, how one fact is edited, how many are, and what is looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rome_lens.chat import chat_prompt, check_chat
from rome_lens.checks import choice, not_negative, positive, whole_number
from rome_lens.cli.options import ASKED_IN_CHAT, OUT, Panel, argument
from rome_lens.errors import SettingError
from rome_lens.facts import EditRequest
from rome_lens.subjects import placed
from rome_lens.tokens import check_prompt

_REQUEST = Panel("The request")
_HOW = Panel("How it is edited")
_MANY = Panel("Many facts as one set")
_LOOK = Panel("What is looked at before and after")

METHODS = {"memit": "preserve", "emmet": "epsilon", "alphaedit": "energy"}
"""The methods for many facts, each with the option that it alone has."""

HOW_SOLVED = (*METHODS.values(), "spread", "at", "stop_said", "least_scale", "keys")
"""The options that say how many facts are found and solved, as the editors take them."""

_EIFFEL = EditRequest("{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")


@dataclass(frozen=True)
class RequestOptions:
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
    chat: bool = _REQUEST.chat()
    reply: str | None = _REQUEST.reply()
    requests: str | None = _REQUEST(
        "Many requests instead, solved together: JSON, JSON lines or CSV with prompt, subject and target_new, or "
        "CounterFact's or EasyEdit's form.",
        metavar="FILE",
    )

    @property
    def is_default(self) -> bool:
        """Whether nothing was asked for, so that it is about the Eiffel Tower."""
        return self.prompt is None and self.subject is None and self.target is None

    def request(self) -> EditRequest:
        """What the editor is asked.

        Raises:
            SettingError: of prompt, subject and target some are given and some are not.
        """
        if self.is_default and self.chat:
            question, subject, _ = ASKED_IN_CHAT
            return EditRequest(question, subject, _EIFFEL.target_new, self.old, self.answer_joined)
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

    def check(self, *, prepend_bos: bool) -> None:
        """Refuse what has no meaning with a chat template, or without.

        Raises:
            SettingError: so it is.
        """
        check_chat(self.chat, self.reply, prepend_bos=prepend_bos)

    def put(self, model: Any, prompts: Sequence[str]) -> list[str]:
        """Prompts as the model is asked them: with --chat questions, through its chat template.

        Raises:
            ModelError: the model has none. PromptError: it does not keep one of them as it is.
        """
        if not self.chat:
            return list(prompts)
        asked = self.prompt is None and self.requests is None
        reply = ASKED_IN_CHAT[-1] if self.reply is None and asked else self.reply
        return [chat_prompt(model, prompt, reply=reply) for prompt in prompts]

    def put_requests(self, model: Any, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """The same of requests' prompts."""
        prompts = self.put(model, [request.prompt for request in requests])
        return [replace(request, prompt=prompt) for request, prompt in zip(requests, prompts, strict=True)]


@dataclass(frozen=True)
class EditorOptions:
    """How the edit is found."""

    layer: list[int] | None = _HOW(
        "Layer to edit, from 0; repeat it to edit many facts at several.",
        "-l",
        shown="the second moment's, or the model's own",
    )
    variant: str = _HOW(
        "r-rome, rome (the released code's) or p-rome (the bare prompt's key).", metavar="NAME", default="r-rome"
    )
    second_moment: list[Path] | None = _HOW(
        "What the edit leaves alone: a file of 'rome-lens stats', or published statistics (.npz, with --layer); repeat "
        "it for several layers.",
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
class ManyOptions:
    """How many facts are solved together, and how the work is done; named as `edit_together` and the editors do."""

    method: str | None = _MANY(
        "rome for one fact; memit, emmet or alphaedit for a set of facts.",
        metavar="NAME",
        shown="rome, or memit with --requests",
    )
    plus: list[Path] | None = _MANY(
        "Put what is asked into this set, a file of --save; repeat it to join several sets."
    )
    preserve: float | None = _MANY(
        "Of memit: how much text is kept against the facts (λ), in units of d_mlp.", shown="0.1, or as published"
    )
    epsilon: float | None = _MANY("Of emmet: how far each fact gives way; 0 for not at all.", shown="0.1")
    energy: float | None = _MANY(
        "Of alphaedit: the share of the text's energy in the directions that may be moved.",
        shown="0.1, or as published",
    )
    spread: str | None = _MANY(
        "How several layers share what is missing: joint, or layer by layer as released, with --at block.",
        metavar="NAME",
        shown="joint",
    )
    at: str | None = _MANY(
        "Where values are added: w_out, or the block's output.",
        metavar="w_out|block",
        shown="w_out, or as published",
    )
    stop_said: int | None = _MANY(
        "Stop this many steps after the target is said behind every text.", shown="go on until the loss is low"
    )
    least_scale: str | None = _MANY(
        "Scale values down to this multiple of what just says the target, or none.",
        metavar="X",
        shown="1.2, or as published",
    )
    keys: str | None = _MANY(
        "Which keys of a fact are answered: their mean; split, the bare prompt's and the mean of the others; or each.",
        metavar="NAME",
        shown="split, or as published",
    )
    allow_conflicts: bool = _MANY("Let one subject have several targets.", "--allow-conflicts", default=False)
    skip_failed: bool = _MANY("Leave out requests that cannot be edited.", "--skip-failed", default=False)
    guard: float | None = _MANY(
        "Refuse a set with which short texts are more than X times as perplexing as before; 2 is a collapse.",
        shown="no look",
    )
    workers: int | None = _MANY("Processes that find values side by side.", shown="as many as pay")
    out: Path | None = OUT(
        "Keep each fact's value in this folder as soon as it is found; the same command goes on there.",
        "-o",
        metavar="DIR",
    )

    def chosen(self) -> dict[str, Any]:
        """What the editor is given as it was typed, by name; what was not typed is left to it.

        Raises:
            SettingError: a setting is out of its range.
        """
        from rome_lens.editing import ValueSettings

        given = {name: value for name in HOW_SOLVED if (value := getattr(self, name)) is not None}
        for name in given.keys() & {"preserve", "epsilon"}:
            not_negative(name, given[name])
        if self.energy is not None:
            positive("energy", self.energy, most=1)
        if self.spread is not None:
            choice("spread", self.spread, ("joint", "released"))
        if self.least_scale is not None:
            given["least_scale"] = None if self.least_scale == "none" else _number_in(self.least_scale)
        ValueSettings(**{each.name: given[each.name] for each in fields(ValueSettings) if each.name in given})
        if self.workers is not None:
            whole_number("workers", self.workers, least=1, expected="a whole number of processes")
        return given


def _number_in(least_scale: str) -> float | str:
    try:
        return float(least_scale)
    except ValueError:
        return least_scale


@dataclass(frozen=True)
class LookOptions:
    """What is read in the model before and after the edit, and where that is kept."""

    paraphrase: list[str] | None = _LOOK(
        "A whole prompt that asks the same in other words, with --chat a question; repeat it for several.",
        shown="the prompt behind texts that the model writes",
    )
    neighbour: list[str] | None = _LOOK(
        "A whole prompt about another subject, with --chat a question, which should stay; repeat it for several."
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
