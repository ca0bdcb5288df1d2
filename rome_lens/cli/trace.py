"""`rome-lens trace`: where does the model keep this fact?"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rome_lens.chat import check_chat
from rome_lens.checks import whole_number
from rome_lens.cli.options import (
    ASKED_IN_CHAT,
    JSON,
    OUT,
    TRACE,
    ModelOptions,
    Panel,
    TraceOptions,
    argument,
    read_edits,
    takes_options,
)
from rome_lens.cli.output import check_files, print_result, progress_bar, say, stdout
from rome_lens.errors import SettingError
from rome_lens.facts import read_known_facts
from rome_lens.subjects import PLACE, find_subject
from rome_lens.tokens import check_prompt

_FACT = Panel("The fact")
# Of the built-in facts the one that shows best what the paper does (benchmarks/example.py).
_PROMPT, _SUBJECT = "The capital of South Korea is", "South Korea"


@dataclass(frozen=True)
class _FactOptions:
    """What is traced, and with which edits."""

    prompt: str | None = argument(
        "A text that the model continues with the answer.", "PROMPT", shown="South Korea's capital"
    )
    subject: str | None = _FACT("The part of the prompt to corrupt, letter for letter; needed with a prompt.", "-s")
    expect: str | None = _FACT("The answer; refuse to trace if the model does not predict it.")
    answer: str | None = _FACT("Trace this answer, predicted or not.", shown="the model's next token")
    answer_joined: str | None = _FACT.answer_joined()
    occurrence: int = _FACT("Which occurrence of the subject: 1 is the first, -1 the last.", default=1)
    chat: bool = _FACT.chat()
    reply: str | None = _FACT.reply()
    edits: list[Path] | None = _FACT(
        "Trace before and after this edit, a file of 'rome-lens edit --save'; repeat it for several.", "--edit"
    )

    def asked(self) -> dict[str, Any]:
        """What `causal_trace` is asked for, by name: of edits their own prompt, of neither South Korea's capital.

        Raises:
            SettingError: a prompt stands without a subject, or a subject without a prompt. ArtefactError: no edit.
        """
        edits = read_edits(self.edits)
        prompt, subject, occurrence, joined = self.prompt, self.subject, self.occurrence, self.answer_joined
        reply = self.reply
        if prompt is None and subject is None and self.chat:
            if edits:
                raise SettingError("--chat asks a question, which an edit does not hold; give PROMPT and --subject")
            question, subject, begun = ASKED_IN_CHAT
            prompt, reply = question.replace(PLACE, subject), begun if reply is None else reply
        elif prompt is None and subject is None:
            prompt, subject = _PROMPT, _SUBJECT
            if edits:
                prompt, subject, own = edits[0].request.asked
                occurrence = own if occurrence == 1 else occurrence
                if joined is None and (self.answer is not None or self.expect is not None):
                    joined = edits[0].request.answer_joined
        elif prompt is None or subject is None:
            missing = "--subject" if subject is None else "PROMPT"
            default = "the Eiffel Tower" if self.chat else "South Korea's capital"
            raise SettingError(f"{missing} is missing; give a prompt and its --subject, or neither for {default}")
        found = {"prompt": prompt, "subject": subject, "answer_joined": joined, "occurrence": occurrence}
        return vars(self) | found | {"edits": edits, "reply": reply}


@dataclass(frozen=True)
class _OneTraceOptions(TraceOptions):
    """How one fact is traced, and what is written."""

    severed_at: str = field(default="last-subject", init=False)
    neurons: int | None = TRACE(
        "Restore one by one, and together, this many neurons of one cell of the MLP stream: those that gradient times "
        "difference proposes.",
        metavar="N",
        shown="none",
    )
    neurons_at: str | None = TRACE(
        "The cell of --neurons, a layer and a position such as 5,3.", metavar="LAYER,POS", shown="the MLP stream's peak"
    )
    html: Path | None = OUT("Write a page to explore the trace; it needs no network.")
    png: Path | None = OUT("Write the figure as PNG (needs the extra 'images').")
    save: Path | None = OUT("Write the trace, to be read with CausalTrace.load.")

    def cell(self) -> dict[str, int | None]:
        """The cell whose neurons are restored, as `trace_neurons` takes it.

        Raises:
            SettingError: it is no layer and position, or nothing asks for neurons; or without it the MLP stream is not
                traced.
        """
        if self.neurons is not None:
            whole_number("neurons", self.neurons, least=1, expected="a whole number of neurons")
        if self.neurons_at is None:
            if self.neurons is not None and self.streams and "mlp" not in self.streams:
                raise SettingError("neurons are of the MLP stream; add --stream mlp, or name their cell: --neurons-at")
            return {"layer": None, "pos": None}
        if self.neurons is None:
            raise SettingError("--neurons-at is given without --neurons; say how many neurons: --neurons 20")
        found = re.fullmatch(r"\s*(\d+)\s*,\s*(-?\d+)\s*", self.neurons_at)
        if found is None:
            raise SettingError(f"neurons_at is {self.neurons_at!r}; expected a layer and a position, such as 5,3")
        return {"layer": int(found[1]), "pos": int(found[2])}

    def write(self, trace: Any) -> None:
        """Write what was asked for, and say so."""
        from rome_lens.figures.files import write_png

        if self.save is not None:
            trace.save(self.save)
        if self.html is not None:
            trace.write_html(self.html)
        if self.png is not None:
            write_png(trace.figure(), self.png)
        for path in (self.save, self.html, self.png):
            if path is not None:
                say(f"wrote {path}")


@takes_options
def trace(fact: _FactOptions, model: ModelOptions, how: _OneTraceOptions, as_json: bool = JSON) -> None:
    """Trace where a model keeps a fact: corrupt the subject, restore one state at a time, see what brings it back.

    Prints a heat map for each stream: tokens down (the subject's marked *), layers across, the answer's probability,
    or another --measure, in colour, from low (the subject corrupted, nothing restored) to high (the clean run) or
    beyond.

    For example: rome-lens trace "The Colosseum is located in the city of" -s "The Colosseum" --expect Rome
    """
    asked = fact.asked()
    check_files(how.html, how.png, how.save, png=how.png is not None)
    known = None if how.facts is None else read_known_facts(how.facts)
    with progress_bar() as progress:
        from rome_lens.cli.trace_report import print_neurons, print_trace
        from rome_lens.tracing import TraceSettings, causal_trace, trace_neurons
        from rome_lens.tracing.answers import named_answer
        from rome_lens.tracing.trace import carrying

        check_prompt(asked["prompt"])
        find_subject(asked["prompt"], asked["subject"], asked["occurrence"])
        settings = how.settings(TraceSettings, how.severed or ())
        check_chat(asked["chat"], asked["reply"], prepend_bos=how.prepend_bos)
        named_answer(asked["answer"], asked["expect"], asked["answer_joined"])
        cell = how.cell()
        # One layer is what every model has, whose configuration need not be read for it.
        model.check(
            layers=[cell["layer"]], window=how.window, heads_window=None if how.heads_window == 1 else how.heads_window
        )
        loaded = model.load(progress)
        traced = causal_trace(loaded, **asked, settings=settings, facts=known, progress=progress)
    # What there is by now is no neuron's to lose.
    how.write(traced)
    if how.neurons is None:
        print_result(as_json, traced.to_dict, lambda console: print_trace(console, traced))
        return
    if not as_json:
        print_trace(stdout(), traced)
    with progress_bar() as progress, carrying(asked["edits"], loaded):
        found = trace_neurons(loaded, traced, **cell, n_best=how.neurons, facts=known, progress=progress)
    print_result(
        as_json,
        lambda: traced.to_dict() | {"neurons": found.to_dict()},
        lambda console: print_neurons(console, found),
    )
