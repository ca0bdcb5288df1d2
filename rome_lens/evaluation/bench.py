"""A model on the bench: a batch of records at a time, put to it as it is and under an editor's edits."""

import inspect
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rome_lens.backends import Backend, ReplayError, as_backend
from rome_lens.backends.generation import never_text
from rome_lens.data.records import CounterFactRecord
from rome_lens.editing.hooks import RowUpdates
from rome_lens.errors import RomeLensError, SettingError
from rome_lens.evaluation.answering import Asked, Engine, open_engine
from rome_lens.evaluation.continuing import Prompt, continue_prompts
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.metrics import (
    may_begin_with,
)
from rome_lens.evaluation.questions import Question, Reading, questions_of, text_question
from rome_lens.evaluation.report.record import Measured, Record, unfit, written
from rome_lens.evaluation.updates import as_edits, updates_of
from rome_lens.progress import Progress
from rome_lens.tokens import encode

_T = TypeVar("_T")

# What the unedited model is asked about an object, so that there is a text to compare generations with.
_REFERENCES = ("{} is", "{} is known for", "All about {}:", "When people think of {}, they", "The story of {}:")
# A free answer may be written in more tokens than the one that is read, and a word has to end behind it.
_FREE_MARGIN = 3
# Longest rows are rounded up to a multiple of this, so that the blocks need not be looked at again for every batch.
_ROUND = 32


@dataclass(frozen=True)
class _Batch:
    """Records of one batch, put to the unedited model.

    Attributes:
        records: those that can be put to this model.
        unfit: number of a record -> why it cannot.
        asked: their questions, which name records by their place in `records`.
    """

    records: tuple[Record, ...]
    unfit: dict[int, str]
    asked: Asked


class EvaluationBench:
    """Evaluates editors on one model; what they share is computed once and kept here.

    Attributes:
        model: the model. Its weights are written only by an edit that cannot go through hooks, and then taken back.
        measures: what is measured.
    """

    def __init__(self, model: Any, measures: Measures, *, layers: Sequence[int] = ()) -> None:
        """Put a model on the bench.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            measures: what is measured.
            layers: layers from which edits will go on.
        """
        self.model, self.measures = model, measures
        self._backend: Backend = as_backend(model)
        self._layers = tuple(layers)
        self._open = ExitStack()
        self._engine: Engine | None = None
        self._batch: tuple[tuple[Record, ...], _Batch] | None = None
        self._watched: tuple[Asked, float] | None = None
        # Why the model's blocks are not called alone any more.
        self._failed: str | None = None

    def close(self) -> None:
        """Leave the model as it was found; whatever is asked next opens it again."""
        self._open.close()
        self._engine = self._batch = self._watched = None

    def evaluate(
        self, records: Sequence[Record], name: str, editor: Any, *, progress: Progress | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Evaluate a batch of records, all under one editor.

        Args:
            records: the batch; the same batches give the same numbers to the last bit.
            name: the editor's name.
            editor: anything with `edit(request)`; None leaves the model as it is.
            progress: handed on to the editor, if it takes one.

        Yields:
            The number of a record, and all that is known of it as JSON holds it.
        """
        batch = self._or_plainly(lambda: self._put(tuple(records)))
        started = time.perf_counter()
        edits = _find_edits(editor, batch.records, progress)
        seconds = (time.perf_counter() - started) / max(1, len(edits))
        # Put once more only if the engine has changed meanwhile.
        measured = self._or_plainly(lambda: self._measure(self._put(tuple(records)), edits))
        engine = self._engine
        assert engine is not None
        for number, reason in batch.unfit.items():
            yield number, unfit(next(record for record in records if record.number == number), name, reason)
        for record, edit, found in zip(batch.records, edits, measured, strict=True):
            bound = self.measures.perplexity_bound
            told = written(record, name, edit, found, seconds=seconds, perplexity_bound=bound)
            yield record.number, {**told, "engine": engine.name, "notes": [engine.reason] if engine.reason else []}

    def _or_plainly(self, run: Callable[[], _T]) -> _T:
        """What `run` gives; once more by whole forwards where a block fails that the first texts did not show."""
        try:
            return run()
        except ReplayError as error:
            self._failed = str(error)
        self.close()
        return run()

    def _put(self, records: tuple[Record, ...]) -> _Batch:
        """The batch, put to the unedited model; kept until the next one comes, for the next editor."""
        if self._batch is not None and self._batch[0] == records:
            return self._batch[1]
        fit: list[Record] = []
        unfit: dict[int, str] = {}
        questions: list[tuple[int, Question]] = []
        for record in records:
            try:
                asked = questions_of(self._backend, record, prepend_bos=self.measures.prepend_bos)
            except RomeLensError as error:
                unfit[record.number] = str(error)
                continue
            questions += [(len(fit), question) for question in asked]
            fit.append(record)
        engine = self._engine_for(self._longest(fit, questions))
        asked = engine.ask(questions, keep=self._layers)
        batch = _Batch(tuple(fit), unfit, asked)
        self._watched_before()
        self._batch = (records, batch)
        return batch

    def _longest(self, records: Sequence[Record], questions: Sequence[tuple[int, Question]]) -> int:
        """Positions of the longest row that this batch may run."""
        answers = [answer for _, question in questions for answer in question.answers]
        lengths = [len(answer.ids) + _FREE_MARGIN for answer in answers]
        if self._writes(records):
            lengths.append(self.measures.text_length)
        return max(lengths, default=2)

    def _writes(self, records: Sequence[Record]) -> bool:
        return self.measures.n_texts > 0 and any(isinstance(record, CounterFactRecord) for record in records)

    def _engine_for(self, n_tokens: int) -> Engine:
        if self._engine is None or self._engine.n_tokens < n_tokens:
            most = self._backend.n_ctx
            wanted = -(-n_tokens // _ROUND) * _ROUND
            wanted = wanted if most is None else min(wanted, most)
            if self._engine is not None and self._engine.n_tokens >= wanted:
                return self._engine
            self._open.close()
            # Any text will do: position alone decides how the blocks are called.
            ids = encode(self._backend.tokenizer, " ".join(_REFERENCES))[0]
            rows = [(ids[start:] * wanted)[:wanted] for start in (0, 1)]
            text = torch.tensor(rows, device=self._backend.device)
            self._open.enter_context(self._backend.evaluating())
            self._engine = self._open.enter_context(
                open_engine(self._backend, text, engine=self.measures.engine, failed=self._failed)
            )
        return self._engine

    def _measure(self, batch: _Batch, edits: Sequence[Any]) -> list[Measured]:
        """All records whose edits go through hooks together, the others one by one in edited weights."""
        engine = self._engine
        assert engine is not None
        through_hooks = [() if isinstance(edit, RomeLensError) else as_edits(edit) for edit in edits]
        measured: dict[int, Measured] = {}
        together = [index for index, several in enumerate(through_hooks) if several is not None]
        updates = updates_of(self._backend, [several or () for several in through_hooks])
        if together:
            readings = engine.ask_again(batch.asked, updates)
            measured |= self._read(batch, together, batch.asked.readings, readings, updates)
        for index, edit in enumerate(edits):
            if index not in measured:
                if not callable(getattr(edit, "applied", None)):
                    raise SettingError(
                        f"an editor gave a {type(edit).__name__}; expected an edit of rome_lens, None for no change, "
                        "or an object whose applied(model) puts it into the weights for a while"
                    )
                with edit.applied(self.model):
                    own = [(0, q) for number, q in batch.asked.questions if number == index]
                    measured |= self._read(batch, [index], batch.asked.readings, engine.ask(own).readings, None)
        return [measured[index] for index in range(len(edits))]

    def _read(
        self,
        batch: _Batch,
        chosen: Sequence[int],
        before: Sequence[tuple[Reading, ...]],
        after: Sequence[tuple[Reading, ...]],
        updates: RowUpdates | None,
    ) -> dict[int, Measured]:
        """Everything about some records of a batch: their answers, and what the model writes by itself.

        Args:
            batch: the batch.
            chosen: places of the records in it.
            before: [question][answer] of the whole batch.
            after: the same, or with one record chosen its own questions alone.
            updates: edits of the whole batch; None where they are in the weights.
        """
        found = {index: Measured() for index in chosen}
        alone = len(after) != len(before)
        own = iter(after)
        for place, (index, question) in enumerate(batch.asked.questions):
            if index in found:
                now = next(own) if alone else after[place]
                found[index].readings.append((question, before[place], now))
        self._let_write(batch, found, updates)
        for index, one in found.items():
            one.perplexity = self._perplexity(None if updates is None else updates.of(index))
        return found

    def _let_write(self, batch: _Batch, found: Mapping[int, Measured], updates: RowUpdates | None) -> None:
        for one in found.values():
            one.free = [""] * len(one.readings)
        self._answer_freely(found, updates)
        if not self._writes([batch.records[index] for index in found]):
            return
        asked = [
            (index, text, (self.measures.seed, batch.records[index].number, place))
            for index in found
            for place, text in enumerate(_generation_prompts(batch.records[index])[: self.measures.n_texts])
        ]
        for (index, prompt, _), text in zip(asked, self._texts(asked, updates), strict=True):
            found[index].texts.append((prompt, text))

    def _answer_freely(self, found: Mapping[int, Measured], updates: RowUpdates | None) -> None:
        """Greedy continuations, as far as they may yet be the answer that is wanted."""
        engine, tokenizer = self._engine, self._backend.tokenizer
        assert engine is not None
        going: list[tuple[int, int, Prompt]] = []
        longest = 0
        for index, one in found.items():
            for place, (question, _, now) in enumerate(one.readings):
                answer, said = question.answers[question.wanted], now[0].said
                one.free[place] = "" if said == tokenizer.eos_token_id else tokenizer.decode([said])
                if said != tokenizer.eos_token_id and may_begin_with(one.free[place], answer.answer):
                    going.append((index, place, Prompt(index, answer.ids[: answer.n_prompt])))
                    longest = max(longest, len(answer.answer_ids))
        n_new = longest + _FREE_MARGIN
        new = continue_prompts(engine, [prompt for _, _, prompt in going], n_new=n_new, updates=updates)
        for (index, place, prompt), ids in zip(going, new, strict=True):
            question = found[index].readings[place][0]
            room = len(question.answers[question.wanted].answer_ids) + _FREE_MARGIN
            kept = ids[: min(room, engine.n_tokens - len(prompt.ids))]
            end = tokenizer.eos_token_id
            found[index].free[place] = tokenizer.decode(kept[: kept.index(end)] if end in kept else kept)

    def _texts(self, asked: Sequence[tuple[int, str, tuple[int, ...]]], updates: RowUpdates | None) -> list[str]:
        """What the model writes after prompts: (record, prompt, seed) each; up to `text_length` tokens in all."""
        engine, measures = self._engine, self.measures
        assert engine is not None
        tokenizer = self._backend.tokenizer
        bos = (int(tokenizer.bos_token_id),) if measures.prepend_bos else ()
        longest = min(measures.text_length, engine.n_tokens)
        prompts = [
            Prompt(record, (*bos, *encode(tokenizer, prompt)[0])[: longest - 1], seed) for record, prompt, seed in asked
        ]
        n_new = longest - min((len(prompt.ids) for prompt in prompts), default=longest)
        new = continue_prompts(
            engine, prompts, n_new=n_new, updates=updates, top_k=measures.top_k, banned=never_text(self._backend)
        )
        return [tokenizer.decode(ids[: longest - len(prompt.ids)]) for prompt, ids in zip(prompts, new, strict=True)]

    def references(self, objects: Sequence[str]) -> list[list[str]]:
        """Texts about new objects: the user's, or what the unedited model writes; none where the user gave none.

        Args:
            objects: the objects; the same several together give the same texts to the last letter.
        """
        if self.measures.references is not None:
            return [list(self.measures.references.get(name, ())) for name in objects]
        asked = [
            (0, prompt.format(name.strip()), (self.measures.seed, zlib.crc32(name.encode()), place))
            for name in objects
            for place, prompt in enumerate(_REFERENCES)
        ]

        def written() -> list[str]:
            self._engine_for(self.measures.text_length)
            return self._texts(asked, None)

        new = self._or_plainly(written)
        texts = [prompt + text for (_, prompt, _), text in zip(asked, new, strict=True)]
        each = len(_REFERENCES)
        return [texts[place : place + each] for place in range(0, len(texts), each)]

    def _perplexity(self, updates: RowUpdates | None) -> tuple[float, float] | None:
        """Of the watched texts, in the unedited model and now."""
        if self._watched is None:
            return None
        asked, before = self._watched
        engine = self._engine
        assert engine is not None
        now = engine.ask(asked.questions).readings if updates is None else engine.ask_again(asked, updates)
        return before, _perplexity_of(asked, now)

    def _watched_before(self) -> None:
        """Read the watched texts once in the unedited model: before any edit is put into its weights."""
        if self._watched is None and self.measures.watched:
            bos = self.measures.prepend_bos
            asked = [text_question(self._backend, text, prepend_bos=bos) for text in self.measures.watched]
            questions = [(0, question) for question in asked if question is not None]
            engine = self._engine_for(max((len(q.answers[0].ids) for _, q in questions), default=2))
            found = engine.ask(questions, keep=self._layers)
            self._watched = (found, _perplexity_of(found, found.readings))


def _find_edits(editor: Any, records: Sequence[Record], progress: Progress | None) -> list[Any]:
    """An edit a record, or the error that says why there is none."""
    requests = [record.request for record in records]
    if editor is None:
        return [None] * len(requests)
    many = getattr(editor, "edit_many", None)
    if many is not None:
        try:
            told = {"progress": progress} if "progress" in inspect.signature(many).parameters else {}
            return list(many(requests, **told))
        except RomeLensError:
            # One of them cannot be edited; which one shows when each is tried by itself.
            pass
    edits: list[Any] = []
    for request in requests:
        try:
            edits.append(editor.edit(request))
        except RomeLensError as error:
            edits.append(error)
    return edits


def _generation_prompts(record: Record) -> tuple[str, ...]:
    return record.generation_prompts if isinstance(record, CounterFactRecord) else ()


def _perplexity_of(asked: Asked, readings: Sequence[tuple[Reading, ...]]) -> float:
    lengths = [len(question.answers[0].answer_ids) for _, question in asked.questions]
    total = sum(reading.nll * length for (reading,), length in zip(readings, lengths, strict=True))
    try:
        return math.exp(total / sum(lengths))
    except OverflowError:
        return math.inf
