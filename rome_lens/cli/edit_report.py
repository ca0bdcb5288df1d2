"""How an edit is printed: what was asked, its size, where its settings come from, and what it did."""

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console

from rome_lens.cli.layout import count, curve, pad, print_labelled, shorten
from rome_lens.figures import visible

if TYPE_CHECKING:
    from rome_lens.editing import Edit
    from rome_lens.editing.effect import Effect, Measured

_ARROW = " → "
_GAP = "  "
# "0.123 → 0.456"
_PAIR = 13
_MOST_SAID = 17
# What is printed in a place of its own.
_ELSEWHERE = {"layer", "source", "context_templates", "second_moment"}


def heading(edit: "Edit") -> str:
    """The prompt and what it is to be followed by."""
    joined = edit.request.answer_joined
    told = "" if joined is None else f" (joined by {joined!r})"
    return f"{visible(edit.request.text)}{_ARROW}{visible(edit.request.target_new.strip())}{told}"


def print_size(console: Console, edit: "Edit") -> None:
    """Layer, variant, size and loss."""
    direction = ""
    if edit.key_norm is not None and edit.key_dot is not None:
        direction = f", cos(u, k*) {edit.key_dot / edit.key_norm if edit.key_norm else math.nan:.3f}"
    print_labelled(
        console,
        "layer",
        f"{edit.layer} of {edit.fingerprint.n_layers} (from 0), {visible(edit.variant)}, |update| / |W| "
        f"{edit.relative_norm:.3g}{direction}",
    )
    losses = [loss if isinstance(loss, int | float) else loss.total for loss in edit.loss_curve]
    if losses:
        steps = edit.settings.get("v_num_grad_steps", edit.settings.get("num_steps"))
        most = f", of at most {steps}" if isinstance(steps, int) and steps != len(losses) else ""
        print_labelled(
            console,
            "loss",
            f"{losses[0]:.3f}{_ARROW}{losses[-1]:.3f} in {count(len(losses), 'step')}{most}  {curve(losses)}",
        )


def print_sources(console: Console, edit: "Edit") -> None:
    """Settings, second moment and notes."""
    settings = edit.settings
    values = ", ".join(f"{name} {value}" for name, value in settings.items() if name not in _ELSEWHERE)
    if values:
        print_labelled(console, "settings", visible(values))
    if "source" in settings:
        print_labelled(console, "", visible(f"from: {settings['source']}"))
    moment = settings.get("second_moment")
    if isinstance(moment, Mapping):
        print_labelled(console, "C", visible(f"second moment of {moment_in_words(moment)}"))
    for note in edit.notes:
        if not note.startswith("settings: "):
            print_labelled(console, "note", visible(note))


def moment_in_words(history: Mapping[str, Any]) -> str:
    """What a second moment was collected from."""
    seed = "" if history.get("seed") is None else f" (seed {history['seed']})"
    tokens = "an unknown number of" if history.get("n_tokens") is None else history["n_tokens"]
    name = "" if history.get("model_name") is None else f", from {history['model_name']}"
    return f"{tokens} tokens of {history.get('source')}{seed}{name}"


def print_measured(console: Console, edit: "Edit", measured: "Measured", *, texts_seed: int) -> None:
    """The table of prompts, and what the model writes before and after."""
    table = _Table(console, edit, measured.effects)
    effects: dict[str, list[Effect]] = {}
    for effect in measured.effects:
        effects.setdefault(effect.kind, []).append(effect)
    titles = {
        "prompt": "The prompt",
        "paraphrase": "Paraphrases",
        "behind_text": f"The prompt behind texts that the model wrote (seed {texts_seed})",
        "neighbour": "Other subjects",
    }
    for kind, title in titles.items():
        if kind in effects:
            table.print_section(title, effects[kind], headed=kind in ("prompt", "neighbour"))
    if measured.continuations is not None:
        console.print()
        for label, text in zip(("before", "after"), measured.continuations, strict=True):
            print_labelled(console, label, f"{visible(edit.request.text)}{visible(text)}")


class _Table:
    """Prompt, p(target), p(old answer) and what the model says, each before and after, as wide as the terminal."""

    def __init__(self, console: Console, edit: "Edit", effects: Sequence["Effect"]) -> None:
        self.console = console
        self.target, self.old = edit.request.target_new, edit.old_answer
        said = max(sum(cell_len(_word(r.says)) for r in (e.before, e.after)) for e in effects) + len(_ARROW)
        self.said_width = max(len("says"), min(_MOST_SAID, said))
        room = console.width - 2 * (_PAIR + len(_GAP)) - self.said_width - len(_GAP)
        widest = max(cell_len(visible(e.prompt)) for e in effects) + len(_GAP)
        self.prompt_width = max(20, min(room, widest))

    def print_section(self, title: str, effects: Sequence["Effect"], *, headed: bool) -> None:
        """A title, with the columns' names where they are new, and a line a prompt."""
        if headed:
            old = "p(its own)" if effects[0].kind == "neighbour" else self._probability(self.old)
            self._print_row(shorten(title, self.prompt_width), self._probability(self.target), old, "says", "bold")
        else:
            self.console.print(title, style="bold", soft_wrap=True)
        each = (self.said_width - len(_ARROW)) // 2
        for effect in effects:
            before, after = effect.before, effect.after
            words = [_word(reading.says) for reading in (before, after)]
            if sum(map(cell_len, words)) > self.said_width - len(_ARROW):
                words = _cut(words, each)
            self._print_row(
                _GAP + shorten(effect.prompt, self.prompt_width - len(_GAP)),
                f"{before.target:.3f}{_ARROW}{after.target:.3f}",
                f"{before.old:.3f}{_ARROW}{after.old:.3f}",
                _ARROW.join(words),
            )

    def _print_row(self, prompt: str, target: str, old: str, said: str, style: str = "") -> None:
        row = _GAP.join((pad(prompt, self.prompt_width), pad(target, _PAIR), pad(old, _PAIR), said))
        self.console.print(row, style=style, soft_wrap=True)

    @staticmethod
    def _probability(answer: str) -> str:
        return f"p({shorten(answer.strip(), _PAIR - 3)})"


def _cut(words: Sequence[str], width: int) -> list[str]:
    """Two answers, each as wide as that; where they differ, without the words that both begin with."""
    alike = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(*words, strict=False)))
    start = alike.rfind(" ") + 1
    if not start or len(set(words)) == 1:
        return [shorten(word, width) for word in words]
    return [shorten(f"…{word[start:]}", width) for word in words]


def _word(token: str) -> str:
    return visible(token.strip(" ") or token)
