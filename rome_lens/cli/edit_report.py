"""How an edit is printed: where it comes from, how large it is, and what it did."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console

from rome_lens.cli.printing import (
    LABEL,
    count,
    curve,
    model_line,
    pad,
    print_labelled,
    shorten,
    text_in_words,
)
from rome_lens.editing import Edit
from rome_lens.editing.effect import Measured
from rome_lens.editing.shortfall import SettingNames, advice
from rome_lens.figures import visible

_ARROW = " → "
_GAP = "  "
# "0.123 → 0.456"
_PAIR = 13
_MOST_SAID = 17
# A share of an update that its effect can be told by.
_MUCH_LOST = 0.01
# More templates than these are not printed.
_MOST_TEMPLATES = 6
# What is printed in a place of its own.
_ELSEWHERE = {"layer", "layers", "source", "context_templates", "second_moment", "second_moments"}
_OPTIONS = SettingNames(
    layer="--layer",
    steps="--steps",
    clamp="--clamp",
    bare_weight="--bare-weight",
    p_rome="--variant p-rome",
    second_moment="--second-moment",
    target="--target",
)


def print_edit(console: Console, made: Edit, measured: Measured, device: str, *, texts_seed: int) -> None:
    """Print an edit that was just made, and what it does.

    Args:
        console: where to.
        made: the edit.
        measured: what it does.
        device: where the model is.
        texts_seed: of the texts that the prompt stands behind.
    """
    console.print(heading(made), style="bold")
    model, bos = made.fingerprint.model_name, made.settings["prepend_bos"]
    console.print(model_line(model, made.backend, made.dtype, device, bos=bos))
    console.print()
    print_measured(console, made, measured, texts_seed=texts_seed)
    console.print()
    _print_size(console, made)
    print_sources(console, made)
    console.print(f"edited in {made.seconds:.1f} s")


def print_saved_edit(console: Console, edit: Edit) -> None:
    """Print what a file of an edit holds."""
    console.print(heading(edit))
    console.print(f"{visible(edit.fingerprint.model_name)} · {visible(edit.backend)} · {visible(edit.dtype)}")
    answers = {edit.request.target_new: "target", edit.old_answer: "old"}
    names = {name: f"p({shorten(answer.strip(), 20)})" for answer, name in answers.items()}
    width = max(map(len, names.values()))
    for name, title in names.items():
        console.print(f"{title:{width}}  {change(getattr(edit.before, name), getattr(edit.after, name))}")
        if name == "target" and edit.after.target_mean not in (None, edit.after.target):
            console.print(f"{'a token':{width}}  {change(edit.before.target_mean, edit.after.target_mean)} on average")
    _print_size(console, edit)
    print_sources(console, edit)
    module = edit.module or "unknown: it can go into a model folder, and not into an adapter"
    print_labelled(console, "module", visible(module))
    print_templates(console, edit)
    print_labelled(console, "id", edit.id)
    console.print(f"edited in {edit.seconds:.1f} s")


def much_lost(share: float, dtype: str) -> str | None:
    """That much of an edit is lost in the weights; None where it is not.

    Args:
        share: how much of it.
        dtype: of the weights.
    """
    if share <= _MUCH_LOST:
        return None
    return (
        f"{share:.1%} of the update is lost to rounding in {dtype} weights; edit the model in float32 (--dtype), or "
        "run the edit through hooks (Edit.hooks)"
    )


def edit_as_json(made: Edit, measured: Measured, save: Path | None, lost: float) -> dict[str, Any]:
    """What `rome-lens edit --json` prints."""
    texts = measured.continuations
    return {
        "edit": {"id": made.id, **made.to_dict()},
        "prompts": [asdict(effect) for effect in measured.effects],
        "continuations": None if texts is None else dict(zip(("before", "after"), texts, strict=True)),
        "path": None if save is None else str(save),
        "lost_to_rounding": lost,
    }


def advice_for_options(made: Edit, measured: Measured) -> str | None:
    """That the edit did not do what was asked, and which options may help; None where it did."""
    curve: Any = made.loss_curve
    reached = measured.effects[0].after.probabilities
    return advice(made.request, reached, curve, variant=made.variant, settings=made.settings, names=_OPTIONS)


def heading(edit: Edit) -> str:
    """The prompt and what it is to be followed by; of many requests the first, and how many more there are."""
    joined = edit.request.answer_joined if len(edit.outcomes) == 1 else None
    how = "" if joined is None else f" (joined by {joined!r})"
    return f"{visible(edit.words)}{how}"


def _print_size(console: Console, edit: Edit) -> None:
    """Layer, variant, size and loss."""
    direction = ""
    if edit.key_norm is not None and edit.key_dot is not None:
        direction = f", cos(u, k*) {edit.key_dot / edit.key_norm if edit.key_norm else math.nan:.3f}"
    size = f"|update| / |W| {edit.relative_norm:.3g}{direction}"
    layer = f"{edit.layer} of {edit.fingerprint.n_layers} (from 0)"
    print_labelled(console, "layer", f"{layer}, {visible(edit.variant)}, {size}")
    losses = [loss if isinstance(loss, int | float) else loss.total for loss in edit.loss_curve]
    if losses:
        steps = edit.settings.get("v_num_grad_steps", edit.settings.get("num_steps"))
        most = f", of at most {steps}" if isinstance(steps, int) and steps != len(losses) else ""
        taken = f"{count(len(losses), 'step')}{most}"
        print_labelled(console, "loss", f"{change(losses[0], losses[-1])} in {taken}  {curve(losses)}")


def print_templates(console: Console, edit: Edit) -> None:
    """The texts in front of the prompt, the first of them."""
    templates = [str(template) for template in edit.settings.get("context_templates", ())]
    for number, template in enumerate(templates[:_MOST_TEMPLATES]):
        print_labelled(console, "" if number else "templates", shorten(template, max(20, console.width - LABEL)))
    if len(templates) > _MOST_TEMPLATES:
        print_labelled(console, "", f"and {len(templates) - _MOST_TEMPLATES} more (--json shows all)")


def print_sources(console: Console, edit: Edit) -> None:
    """Settings, second moments and notes."""
    settings = edit.settings
    values = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in _ELSEWHERE)
    if values:
        print_labelled(console, "settings", visible(values))
    if "source" in settings:
        print_labelled(console, "", visible(f"from: {settings['source']}"))
    moments = settings.get("second_moments", [settings.get("second_moment")])
    # Those of several layers come from one pass, as a rule.
    print_labelled(
        console, "C", *dict.fromkeys(_moment_in_words(each) for each in moments if isinstance(each, Mapping))
    )
    print_labelled(console, "note", *(visible(note) for note in edit.notes if not note.startswith("settings: ")))


def _moment_in_words(moment: Mapping[str, Any]) -> str:
    made_on = "" if moment.get("model_name") is None else f", from {moment['model_name']}"
    return visible(f"second moment of {text_in_words(moment)}{made_on}")


def print_measured(console: Console, edit: Edit, measured: Measured, *, texts_seed: int) -> None:
    """The table of prompts, and what the model writes before and after.

    Prompt, p(target), p(old answer) and what the model says, each before and after, as wide as the terminal.
    """
    effects = measured.effects
    most_said = max(sum(cell_len(_word(r.says)) for r in (e.before, e.after)) for e in effects) + len(_ARROW)
    said_width = max(len("says"), min(_MOST_SAID, most_said))
    room = console.width - 2 * (_PAIR + len(_GAP)) - said_width - len(_GAP)
    prompt_width = max(20, min(room, max(cell_len(visible(e.prompt)) for e in effects) + len(_GAP)))

    def print_row(prompt: str, target: str, old: str, said: str, style: str = "") -> None:
        row = _GAP.join((pad(prompt, prompt_width), pad(target, _PAIR), pad(old, _PAIR), said))
        console.print(row, style=style, soft_wrap=True)

    target, old = (f"p({shorten(answer.strip(), _PAIR - 3)})" for answer in (edit.request.target_new, edit.old_answer))
    for kind, title, old_name in (
        ("prompt", "The prompt", old),
        ("paraphrase", "Paraphrases", None),
        ("behind_text", f"The prompt behind texts that the model wrote (seed {texts_seed})", None),
        ("neighbour", "Other subjects", "p(its own)"),
    ):
        of_kind = [effect for effect in effects if effect.kind == kind]
        if of_kind and old_name is not None:  # the columns are other ones than above
            print_row(shorten(title, prompt_width), target, old_name, "says", "bold")
        elif of_kind:
            console.print(title, style="bold", soft_wrap=True)
        for effect in of_kind:
            before, after = effect.before, effect.after
            words = [_word(reading.says) for reading in (before, after)]
            if sum(map(cell_len, words)) > said_width - len(_ARROW):
                words = _cut(words, (said_width - len(_ARROW)) // 2)
            print_row(
                _GAP + shorten(effect.prompt, prompt_width - len(_GAP)),
                change(before.target, after.target),
                change(before.old, after.old),
                _ARROW.join(words),
            )
    if measured.continuations is not None:
        console.print()
        for label, text in zip(("before", "after"), measured.continuations, strict=True):
            print_labelled(console, label, f"{visible(edit.request.text)}{visible(text)}")


def change(before: float | None, after: float | None) -> str:
    """Two numbers, before and after; a dash for what was not measured."""
    return f"{before:.3f}{_ARROW}{'–' if after is None else f'{after:.3f}'}"


def _cut(words: Sequence[str], width: int) -> list[str]:
    """Two answers, each as wide as that; where they differ, without the words that both begin with."""
    alike = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*words, strict=False)))
    start = alike.rfind(" ") + 1
    if not start or len(set(words)) == 1:
        return [shorten(word, width) for word in words]
    return [shorten(f"…{word[start:]}", width) for word in words]


def _word(token: str) -> str:
    return visible(token.strip(" ") or token)
