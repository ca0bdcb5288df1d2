"""A model that is open for a batch of records: the answers it gives, and the texts it writes by itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rome_lens.backends.generation import never_text
from rome_lens.data.records import CounterFactRecord
from rome_lens.editing.hooks import RowUpdates
from rome_lens.evaluation.answering import Answered, Answerer
from rome_lens.evaluation.continuing import Prompt, continue_prompts
from rome_lens.evaluation.findings import AskedQuestion, Findings, Record
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.metrics import may_begin_with
from rome_lens.evaluation.questions import Reading
from rome_lens.tokens import encode

# A free answer may be written in more tokens than the one that is read, and a word has to end behind it.
FREE_MARGIN = 3


@dataclass(frozen=True)
class Batch:
    """Records of one batch, put to the unedited model.

    Attributes:
        given: the whole batch.
        records: those that can be put to this model.
        unfit: the others, each with the reason.
        answered: the questions, which name records by their place in `records`.
        n_tokens: positions of the longest row that may be run.
        watched: the watched texts, read by the unedited model; None where there are none.
    """

    given: tuple[Record, ...]
    records: tuple[Record, ...]
    unfit: tuple[tuple[Record, str], ...]
    answered: Answered
    n_tokens: int
    watched: Answered | None


@dataclass(frozen=True)
class OpenModel:
    """A model that is open.

    Attributes:
        answerer: what runs it.
        measures: what is measured.
    """

    answerer: Answerer
    measures: Measures

    def findings(
        self, batch: Batch, after: Mapping[int, tuple[Reading, ...]], updates: RowUpdates | None
    ) -> dict[int, Findings]:
        """Everything about some records of a batch, by their places in it.

        Args:
            batch: the batch.
            after: number of a question -> its answers under the edits; all questions of the records that are wanted.
            updates: edits of the whole batch; None where they are in the weights.
        """
        answered, watched = batch.answered, batch.watched
        found: dict[int, Findings] = {}
        for number, readings in after.items():
            place, question = answered.questions[number]
            asked = AskedQuestion(question, answered.readings[number], readings)
            found.setdefault(place, Findings()).asked.append(asked)
        self._answer_freely(found, updates)
        to_write = [
            (place, text, (self.measures.seed, batch.records[place].number, index))
            for place in found
            for index, text in enumerate(_prompts_to_write_from(batch.records[place])[: self.measures.n_texts])
        ]
        for (place, prompt, _), text in zip(to_write, self.texts(to_write, updates), strict=True):
            found[place].texts.append((prompt, text))
        if watched is not None:
            for place, one in found.items():
                if updates is None:
                    now = self.answerer.ask(watched.questions).readings
                else:
                    now = self.answerer.ask_again(watched, updates.of(place))
                one.perplexity = perplexity(watched, watched.readings), perplexity(watched, now)
        return found

    def texts(self, asked: Sequence[tuple[int, str, tuple[int, ...]]], updates: RowUpdates | None) -> list[str]:
        """What the model writes after prompts, up to `text_length` tokens in all.

        Args:
            asked: each prompt, with the place of its record in front and the seed of what is drawn behind it.
            updates: edits of the records; None leaves the model as it is.
        """
        answerer, measures, tokenizer = self.answerer, self.measures, self.answerer.backend.tokenizer
        bos = (int(tokenizer.bos_token_id),) if measures.prepend_bos else ()
        longest = min(measures.text_length, answerer.n_tokens)
        prompts = [
            Prompt(place, (*bos, *encode(tokenizer, prompt)[0])[: longest - 1], seed) for place, prompt, seed in asked
        ]
        n_new = longest - min((len(prompt.ids) for prompt in prompts), default=longest)
        new = continue_prompts(
            answerer, prompts, n_new=n_new, updates=updates, top_k=measures.top_k, banned=never_text(answerer.backend)
        )
        return [tokenizer.decode(ids[: longest - len(prompt.ids)]) for prompt, ids in zip(prompts, new, strict=True)]

    def _answer_freely(self, found: Mapping[int, Findings], updates: RowUpdates | None) -> None:
        """Greedy continuations, as far as they may yet be the answer that is wanted."""
        tokenizer = self.answerer.backend.tokenizer
        end = tokenizer.eos_token_id
        going: list[tuple[AskedQuestion, Prompt]] = []
        for place, one in found.items():
            for asked in one.asked:
                answers, said = asked.question.wanted_answers, asked.after[0].said
                asked.free = "" if said == end else tokenizer.decode([said])
                if said != end and any(may_begin_with(asked.free, answer.answer) for answer in answers):
                    going.append((asked, Prompt(place, answers[0].ids[: answers[0].n_prompt])))
        rooms = [max(len(a.answer_ids) for a in asked.question.wanted_answers) + FREE_MARGIN for asked, _ in going]
        prompts = [prompt for _, prompt in going]
        new = continue_prompts(self.answerer, prompts, n_new=max(rooms, default=FREE_MARGIN), updates=updates)
        for (asked, prompt), room, ids in zip(going, rooms, new, strict=True):
            kept = ids[: min(room, self.answerer.n_tokens - len(prompt.ids))]
            asked.free = tokenizer.decode(kept[: kept.index(end)] if end in kept else kept)


def writes_texts(record: Record, measures: Measures) -> bool:
    """Whether the model writes texts about a record's subject."""
    return measures.n_texts > 0 and isinstance(record, CounterFactRecord)


def _prompts_to_write_from(record: Record) -> tuple[str, ...]:
    return record.generation_prompts if isinstance(record, CounterFactRecord) else ()


def perplexity(asked: Answered, readings: Sequence[tuple[Reading, ...]]) -> float:
    """Of texts, every token of which but the first is an answer."""
    lengths = [len(question.answers[0].answer_ids) for _, question in asked.questions]
    total = sum(reading.nll * length for (reading,), length in zip(readings, lengths, strict=True))
    try:
        return math.exp(total / sum(lengths))
    except OverflowError:
        return math.inf
