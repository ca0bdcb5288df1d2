"""Questions as a chat model reads them: through its tokenizer's chat template, up to where the assistant answers."""

from dataclasses import dataclass
from typing import Any

from rome_lens.checks import as_text, shown
from rome_lens.errors import ModelError, PromptError, SettingError
from rome_lens.subjects import PLACE, Template, find_subject, occurrence_at
from rome_lens.tokens import check_prompt, check_tokenizer, encode

# No template has this in it, and none takes anything away from it.
_MARK = "rome7lens7question"


@dataclass(frozen=True)
class Chat:
    """One question as the model reads it.

    Attributes:
        before: what the template puts in front of the question.
        question: the question, without white space around it.
        after: what the template puts behind it, and what the assistant's reply begins with.
    """

    before: str
    question: str
    after: str

    @classmethod
    def ask(cls, tokenizer: Any, question: str, reply: str | None = None) -> "Chat":
        """Put a question through a chat template, as the only message of the user.

        Args:
            tokenizer: a tokenizer with a chat template.
            question: the message.
            reply: what the assistant's reply begins with; None is nothing: the next token is its first.

        Raises:
            PromptError: the question is empty, or the template does not keep it or the reply as they are.
            ModelError: there is no chat template, or it does not take a single message of a user.
        """
        check_prompt(question)
        begun = "" if reply is None else as_text("reply", reply, error=PromptError).rstrip()
        check_tokenizer(tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise ModelError("the tokenizer has no chat template, so its model is asked without chat; leave chat out")
        asked = question.strip()
        try:
            around, whole = (_put(tokenizer, content, begun) for content in (_MARK, asked))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"the tokenizer's chat template cannot put a user's question: {said}") from error
        before, _, after = around.partition(_MARK)
        if before + asked + after != whole:
            raise PromptError(f"the chat template does not keep the question {asked!r} as it is; ask it in other words")
        if not after.endswith(begun):
            raise PromptError(f"the chat template does not keep the reply {begun!r} as it is; begin it otherwise")
        return cls(before, asked, after)

    @property
    def text(self) -> str:
        """All of it."""
        return self.before + self.question + self.after

    def first_token(self, tokenizer: Any) -> int:
        """The first of the tokens of `text` that holds a character of the question."""
        _, offsets = encode(tokenizer, self.text)
        return next(index for index, (_, end) in enumerate(offsets) if end > len(self.before))

    def occurrence(self, subject: str, occurrence: int) -> int:
        """Which occurrence in `text` a subject of the question is: 1 is the first.

        Args:
            subject: the subject.
            occurrence: which occurrence in the question it is: 1 is the first, -1 the last.

        Raises:
            SubjectError: the question does not hold it, or not that often. SettingError: an occurrence of 0.
            PromptError: it stands inside of a word there, and elsewhere as a word of its own.
        """
        start = len(self.before) + find_subject(self.question, subject, occurrence)[0]
        here = occurrence_at(self.text, subject.strip(), start)
        if here is None:
            raise PromptError(
                f"the subject {subject.strip()!r} is inside of another word in the question, and a word of its own "
                "elsewhere in the chat; ask in other words"
            )
        return here


def _put(tokenizer: Any, question: str, reply: str) -> str:
    """A question, and the beginning of a reply, as the template writes them."""
    messages = [{"role": "user", "content": question}]
    if not reply:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    messages.append({"role": "assistant", "content": reply})
    return tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)


def check_chat(chat: bool, reply: str | None, *, prepend_bos: bool) -> None:
    """Refuse what has no meaning with a chat template, or without.

    Raises:
        SettingError: so it is.
    """
    if reply is not None and not chat:
        raise SettingError(f"reply is {shown(reply)}, and no chat was asked for; it goes with chat")
    if chat and prepend_bos:
        raise SettingError("prepend_bos is True, but a chat template says what stands in front; leave prepend_bos off")


def chat_prompt(model: Any, question: str, *, reply: str | None = None) -> str:
    """A question as a chat model reads it, for `EditRequest` and `Fact`: the target is what the assistant says next.

    Args:
        model: a HookedTransformer or a TransformerBridge whose tokenizer has a chat template.
        question: the user's message, with `{}` where the subject stands, or without.
        reply: what the assistant's reply begins with: where a model answers in whole sentences, their beginning. None
            is nothing: the target is the first that it says.

    Returns:
        The prompt, with `{}` where the question had it.

    Raises:
        PromptError: the question is empty, has several `{}`, or the template does not keep it as it is.
        ModelError: there is no chat template, or it does not take a single message of a user.

    !!! example
        ```python
        prompt = rl.chat_prompt(model, "In which city is {}?", reply="It is located in the city of")
        request = rl.EditRequest(prompt, subject="the Eiffel Tower", target_new="Rome")
        ```
    """
    check_prompt(question)
    template = Template.read(question) if PLACE in question else None
    chat = Chat.ask(getattr(model, "tokenizer", None), question, reply)
    if template is None:
        return chat.text
    before, after = template.before.lstrip(), template.after.rstrip()
    return Template(chat.before + before, after + chat.after).prompt
