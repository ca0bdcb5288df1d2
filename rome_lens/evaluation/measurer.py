"""RecordMeasurer: a batch of records at a time, put to a model as it is and under an editor's edits."""

import inspect
import math
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rome_lens.backends import Backend, ReplayError, as_backend
from rome_lens.editing.hooks import RowUpdates
from rome_lens.errors import EditError, RomeLensError, SettingError
from rome_lens.evaluation.answering import Answered, open_answerer
from rome_lens.evaluation.findings import Findings, Record, as_edits, evaluated, finite, unfit
from rome_lens.evaluation.measures import Measures
from rome_lens.evaluation.opened import FREE_MARGIN, Batch, OpenModel, perplexity, writes_texts
from rome_lens.evaluation.questions import Question, questions_of, text_question
from rome_lens.evaluation.report.record import EvaluatedRecord
from rome_lens.progress import Progress
from rome_lens.tokens import encode

_T = TypeVar("_T")

# What the unedited model is asked about an object, so that there is a text to compare generations with.
_REFERENCES = ("{} is", "{} is known for", "All about {}:", "When people think of {}, they", "The story of {}:")
# Longest rows are rounded up to a multiple of this, so that the blocks need not be looked at again for every batch.
_ROUND = 32


class RecordMeasurer:
    """Measures editors on one model; what they share is computed once and kept here.

    Attributes:
        model: the model. Its weights are written only by an edit that cannot go through hooks, and then taken back.
        measures: what is measured.
    """

    def __init__(self, model: Any, measures: Measures, *, layers: Sequence[int] = ()) -> None:
        """Take a model.

        Args:
            model: a HookedTransformer or a TransformerBridge.
            measures: what is measured.
            layers: layers from which edits will go on.
        """
        self.model, self.measures = model, measures
        self._backend: Backend = as_backend(model)
        self._layers = tuple(layers)
        self._stack = ExitStack()
        self._open: OpenModel | None = None
        self._batch: Batch | None = None
        self._watched: Answered | None = None
        # What the unedited model gave to batches that are asked again and again.
        self._known: dict[tuple[Record, ...], Batch] = {}
        # Why the model's blocks are not called alone any more.
        self._failed: str | None = None

    def close(self) -> None:
        """Leave the model as it was found; whatever is asked next opens it again."""
        self._stack.close()
        self._open = self._batch = self._watched = None

    def measure(
        self, records: Sequence[Record], name: str, editor: Any, *, progress: Progress | None = None
    ) -> Iterator[EvaluatedRecord]:
        """Measure a batch of records, all under one editor.

        Args:
            records: the batch; the same batches give the same numbers to the last bit.
            name: the editor's name.
            editor: anything with `edit(request)`; None leaves the model as it is.
            progress: handed on to the editor, if it takes one.

        Yields:
            All that is known of each record: first of those that cannot be put to this model, then of the others.
        """
        batch = self._or_plainly(lambda: self._put(tuple(records)))
        started = time.perf_counter()
        edits = _find_edits(editor, batch.records, progress)
        seconds = (time.perf_counter() - started) / max(1, len(edits))
        # Put once more only if it has been opened anew meanwhile.
        findings = self._or_plainly(lambda: self._findings(self._put(tuple(records)), edits))
        answerer = self._opened(batch.n_tokens).answerer
        notes = [answerer.reason] if answerer.reason else []
        for record, reason in batch.unfit:
            yield unfit(record, name, reason)
        for record, edit, found in zip(batch.records, edits, findings, strict=True):
            bound = self.measures.perplexity_bound
            known = evaluated(record, name, edit, found, seconds=seconds, perplexity_bound=bound)
            yield replace(known, engine=answerer.name, notes=notes)

    def measure_edited(
        self,
        records: Sequence[Record],
        name: str,
        edited: Callable[[], AbstractContextManager[Any]],
        *,
        failed: Mapping[int, str],
    ) -> Iterator[EvaluatedRecord]:
        """Measure a batch of records with one edit of many facts in the weights.

        Args:
            records: the batch; the same batches give the same numbers to the last bit.
            name: the editor's name.
            edited: puts the edit into the weights, for as long as its block lasts.
            failed: number of a record -> why its fact could not be put in.

        Yields:
            All that is known of each record: first of those that cannot be put to this model, then of the others.
        """
        given = tuple(records)
        if given not in self._known:
            put = self._or_plainly(lambda: self._put(given))
            # What the unedited model gave is asked for at every checkpoint; what entered its layers is not.
            answered = replace(put.answered, chunks=(), entering=())
            self._known[given] = replace(put, answered=answered, watched=None)
        batch = self._known[given]

        def ask() -> dict[int, Findings]:
            opened = self._opened(batch.n_tokens)
            with edited():
                after = opened.answerer.ask(batch.answered.questions).readings
                return opened.findings(batch, dict(enumerate(after)), None)

        found = self._or_plainly(ask)
        answerer = self._opened(batch.n_tokens).answerer
        notes = [answerer.reason] if answerer.reason else []
        for record, reason in batch.unfit:
            yield unfit(record, name, reason)
        for place, record in enumerate(batch.records):
            error = EditError(failed[record.number]) if record.number in failed else None
            known = evaluated(record, name, error, found[place], seconds=0.0, perplexity_bound=math.inf)
            yield replace(known, engine=answerer.name, notes=notes)

    def perplexities(self, edited: Callable[[], AbstractContextManager[Any]]) -> tuple[float, float]:
        """Perplexity of the watched texts without and with an edit in the weights.

        Args:
            edited: as `measure_edited` takes it.
        """

        def ask() -> tuple[float, float]:
            watched = self._read_watched()
            assert watched is not None
            n_tokens = max(len(question.answers[0].ids) for _, question in watched.questions)
            answerer = self._opened(n_tokens).answerer
            with edited():
                after = answerer.ask(watched.questions).readings
            return finite(perplexity(watched, watched.readings)), finite(perplexity(watched, after))

        return self._or_plainly(ask)

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
        new = self._or_plainly(lambda: self._opened(self.measures.text_length).texts(asked, None))
        texts = [prompt + text for (_, prompt, _), text in zip(asked, new, strict=True)]
        each = len(_REFERENCES)
        return [texts[place : place + each] for place in range(0, len(texts), each)]

    def _or_plainly(self, run: Callable[[], _T]) -> _T:
        """What `run` gives; once more by whole forwards where a block fails that the first texts did not show."""
        try:
            return run()
        except ReplayError as error:
            self._failed = str(error)
        self.close()
        return run()

    def _opened(self, n_tokens: int) -> OpenModel:
        """The model, open for rows of this length; opened anew where it is not open for rows as long."""
        most = self._backend.n_ctx
        wanted = -(-n_tokens // _ROUND) * _ROUND
        wanted = wanted if most is None else min(wanted, most)
        if self._open is None or self._open.answerer.n_tokens < min(n_tokens, wanted):
            self._stack.close()
            # Any text will do: position alone decides how the blocks are called.
            ids = encode(self._backend.tokenizer, " ".join(_REFERENCES))[0]
            rows = [(ids[start:] * wanted)[:wanted] for start in (0, 1)]
            text = torch.tensor(rows, device=self._backend.device)
            self._stack.enter_context(self._backend.evaluating())
            answerer = open_answerer(self._backend, text, engine=self.measures.engine, failed=self._failed)
            self._open = OpenModel(self._stack.enter_context(answerer), self.measures)
        return self._open

    def _put(self, records: tuple[Record, ...]) -> Batch:
        """The batch, put to the unedited model; kept until the next one comes, for the next editor."""
        if self._batch is not None and self._batch.given == records:
            return self._batch
        fit: list[Record] = []
        unfit: list[tuple[Record, str]] = []
        questions: list[tuple[int, Question]] = []
        for record in records:
            try:
                asked = questions_of(self._backend, record, prepend_bos=self.measures.prepend_bos)
            except RomeLensError as error:
                unfit.append((record, str(error)))
                continue
            questions += [(len(fit), question) for question in asked]
            fit.append(record)
        lengths = [len(answer.ids) + FREE_MARGIN for _, question in questions for answer in question.answers]
        if any(writes_texts(record, self.measures) for record in fit):
            lengths.append(self.measures.text_length)
        n_tokens = max(lengths, default=2)
        answered = self._opened(n_tokens).answerer.ask(questions, keep=self._layers)
        self._batch = Batch(records, tuple(fit), tuple(unfit), answered, n_tokens, self._read_watched())
        return self._batch

    def _read_watched(self) -> Answered | None:
        """The watched texts, read once by the unedited model: before any edit is put into its weights."""
        if self._watched is None and self.measures.watched:
            bos = self.measures.prepend_bos
            asked = [text_question(self._backend, text, prepend_bos=bos) for text in self.measures.watched]
            questions = [(0, question) for question in asked if question is not None]
            n_tokens = max((len(question.answers[0].ids) for _, question in questions), default=2)
            self._watched = self._opened(n_tokens).answerer.ask(questions, keep=self._layers)
        return self._watched

    def _findings(self, batch: Batch, edits: Sequence[Any]) -> list[Findings]:
        """All records whose edits go through hooks together, the others one by one in edited weights."""
        opened, answered = self._opened(batch.n_tokens), batch.answered
        through_hooks = [() if isinstance(edit, RomeLensError) else as_edits(edit) for edit in edits]
        found: dict[int, Findings] = {}
        if any(several is not None for several in through_hooks):
            updates = [[here.update for edit in several or () for here in edit.layers] for several in through_hooks]
            updates = RowUpdates(self._backend, updates)
            after = enumerate(opened.answerer.ask_again(answered, updates))
            hooked = {n: now for n, now in after if through_hooks[answered.questions[n][0]] is not None}
            found |= opened.findings(batch, hooked, updates)
        for place, edit in enumerate(edits):
            if through_hooks[place] is None:
                if not callable(getattr(edit, "applied", None)):
                    raise SettingError(
                        f"an editor gave a {type(edit).__name__}; expected an edit of rome_lens, None for no change, "
                        "or an object whose applied(model) puts it into the weights for a while"
                    )
                own = {n: question for n, question in enumerate(answered.questions) if question[0] == place}
                with edit.applied(self.model):
                    after = opened.answerer.ask([(0, question) for _, question in own.values()]).readings
                    now = dict(zip(own, after, strict=True))
                    found |= opened.findings(batch, now, None)
        return [found[place] for place in range(len(edits))]


def _find_edits(editor: Any, records: Sequence[Record], progress: Progress | None) -> list[Any]:
    """An edit a record, or the error that says why there is none."""
    requests = [record.request for record in records]
    if editor is None:
        return [None] * len(requests)
    many = getattr(editor, "edit_many", None)
    if many is not None:
        try:
            wanted = {"progress": progress} if "progress" in inspect.signature(many).parameters else {}
            return list(many(requests, **wanted))
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
