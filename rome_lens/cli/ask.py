"""`rome-lens ask`: what does the model say next?"""

from contextlib import ExitStack
from dataclasses import MISSING, dataclass
from pathlib import Path

from rome_lens.checks import whole_number
from rome_lens.cli.options import JSON, OUT, ModelOptions, Panel, argument, read_edits, takes_options
from rome_lens.cli.output import print_result, progress_bar
from rome_lens.errors import SettingError
from rome_lens.joining import check_answer, check_joined
from rome_lens.tokens import check_prompt

_ASKED = Panel("What is asked")
_TOP = OUT("Tokens to show.", "-n", default=5)


@dataclass(frozen=True)
class _QuestionOptions:
    """What is asked, and under which edits."""

    prompts: list[str] = argument("Texts that the model continues, one or several.", "PROMPT", default=MISSING)
    answer: list[str] | None = _ASKED(
        "Say how probable this answer is, too; of several tokens, jointly. Repeat it for several.", "-a"
    )
    edit: list[Path] | None = _ASKED(
        "Ask the model with this edit in it, a file of 'rome-lens edit --save'; repeat it for several."
    )
    answer_joined: str | None = _ASKED.answer_joined()
    bos: bool = _ASKED.bos()

    def check(self) -> None:
        """Refuse texts that cannot be asked, before a model is loaded.

        Raises:
            PromptError, AnswerError: a text is empty. SettingError: there is nothing to join.
        """
        for prompt in self.prompts:
            check_prompt(prompt)
        for text in self.answer or ():
            check_answer(text)
        if self.answer_joined is not None:
            check_joined(self.answer_joined)
            if not self.answer:
                raise SettingError(
                    f"answer-joined is {self.answer_joined!r}, and no --answer was given; there is nothing to join"
                )


@takes_options
def ask(question: _QuestionOptions, model: ModelOptions, top: int = _TOP, as_json: bool = JSON) -> None:
    """Ask a model what it says next: the most probable tokens after each prompt, with their probabilities.

    A fact that the model does not know cannot be traced, and an edit needs to know
    what it says now: ask first.

    For example: rome-lens ask "The Colosseum is located in the city of" --answer Rome
    """
    whole_number("top", top, least=1, expected="a number of tokens")
    question.check()
    with progress_bar() as progress:
        from rome_lens.backends import as_backend
        from rome_lens.cli.ask_report import ask_model, print_answers

        edits = read_edits(question.edit)
        host = as_backend(model.load(progress))
        progress(0, 0, "asking")
        with ExitStack() as carried, host.evaluating():
            for each in edits:
                carried.enter_context(each.applied(host.model))
            asked = ask_model(
                host,
                question.prompts,
                question.answer or [],
                [each.words for each in edits],
                most=top,
                prepend_bos=question.bos,
                answer_joined=question.answer_joined,
            )
    print_result(as_json, lambda: asked, lambda console: print_answers(console, asked))
