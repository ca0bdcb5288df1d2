"""Answerers: a model answers the questions of many records at once, each under its record's edit, weights untouched.

Layers under an edit give what they gave before it: they are run once, for the unedited model, and every editor goes on
from what enters the lowest layer that it edits. Only the places that answers are read from are unembedded.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import (
    Backend,
    BlockReplay,
    KeysValues,
    ReplayError,
    called_alone,
    check_replayed,
    fast_products,
    prefer_blocks,
)
from rome_lens.backends.decoding import Embedding, enter, make_ready
from rome_lens.editing.hooks import RowUpdates
from rome_lens.evaluation.measures import Engine
from rome_lens.evaluation.questions import Chunk, Question, Reading, make_chunks


@dataclass(frozen=True)
class _Entering:
    """What enters a layer: of the stems at all positions, of the branches at what they add."""

    stems: Float[Tensor, "stem pos d_model"]
    branches: Float[Tensor, "branch n_new d_model"]


@dataclass(frozen=True)
class Answered:
    """Questions that the unedited model has answered.

    Attributes:
        questions: each with the number of its record.
        chunks: how they are laid out.
        readings: [question][answer] of the unedited model.
        entering: [chunk] layer -> what enters it there; empty where whole forwards are run.
    """

    questions: tuple[tuple[int, Question], ...]
    chunks: tuple[Chunk, ...]
    readings: tuple[tuple[Reading, ...], ...]
    entering: tuple[dict[int, _Entering], ...]


class Answerer:
    """Answers questions with a model, under the edits of their records or without any.

    This one runs whole forwards, a row an answer: it is for models with their owner's hooks, or whose blocks cannot be
    called alone. `BlockAnswerer` is the fast way.

    Attributes:
        backend: the model, in evaluation mode.
        name: `plain` for whole forwards, or `blocks`.
        n_tokens: positions of the longest row that can be run.
        reason: why it is `plain`; None for `blocks`.
    """

    name: Literal["plain", "blocks"] = "plain"

    def __init__(self, backend: Backend, n_tokens: int, reason: str | None = None) -> None:
        self.backend, self.n_tokens, self.reason = backend, n_tokens, reason

    @torch.no_grad()
    def ask(self, questions: Sequence[tuple[int, Question]], *, keep: Collection[int] = ()) -> Answered:
        """Put questions to the model as it is.

        Args:
            questions: each with the number of its record.
            keep: layers from which edits will go on.

        Raises:
            ReplayError: a block fails on these texts that did not on the first ones.
        """
        chunks = make_chunks(self.backend, questions, share=False)
        readings = self._sorted(questions, [(chunk, self._forward(chunk, None)) for chunk in chunks])
        return Answered(tuple(questions), tuple(chunks), tuple(readings), ())

    @torch.no_grad()
    def ask_again(self, asked: Answered, updates: RowUpdates) -> list[tuple[Reading, ...]]:
        """Put the same questions to the model under edits, [question][answer].

        Raises:
            ReplayError: as `ask` does.
        """
        return self._sorted(asked.questions, [(chunk, self._forward(chunk, updates)) for chunk in asked.chunks])

    def _forward(self, chunk: Chunk, updates: RowUpdates | None) -> list[Reading]:
        hooks = [] if updates is None else updates.all_hooks(chunk.stem_record)
        with self.backend.hooked(hooks):
            return chunk.read(self.backend.logits_at(chunk.stems, chunk.place_row, chunk.place_column))

    @staticmethod
    def _sorted(asked: Sequence[tuple[int, Question]], readings: Sequence[tuple[Chunk, Sequence[Reading]]]) -> list:
        found = {
            owner: reading for chunk, several in readings for owner, reading in zip(chunk.owners, several, strict=True)
        }
        return [
            tuple(found[number, index] for index in range(len(question.answers)))
            for number, (_, question) in enumerate(asked)
        ]


class BlockAnswerer(Answerer):
    """The model's own blocks, called one by one.

    Attributes:
        replay: the blocks.
        embedding: what enters the first of them.
    """

    name = "blocks"

    def __init__(self, backend: Backend, replay: BlockReplay, embedding: Embedding, n_tokens: int) -> None:
        super().__init__(backend, n_tokens)
        self.replay, self.embedding = replay, embedding

    @classmethod
    @contextmanager
    def opened(cls, backend: Backend, text: Int[Tensor, "row pos"]) -> Iterator["BlockAnswerer"]:
        """Watch the model run a text, and take its blocks from there.

        Args:
            backend: the model, in evaluation mode.
            text: as long as any row that will be run.

        Raises:
            ReplayError: the blocks called alone give other numbers than the model.
        """
        final: list[Tensor] = []
        point = backend.stream_hook("resid", backend.n_layers - 1)
        with ExitStack() as stack:
            with torch.no_grad():
                with backend.recording() as replay, backend.hooked([(point, lambda x: final.append(x.clone()))]):
                    backend.logits(text, keep=1)
                if len(final) != 1:
                    raise ReplayError(f"nothing passes {point} in a forward")
                answerer = cls(backend, replay, Embedding.of(backend, text[:1]), text.shape[1])
                make_ready(backend, replay, stack)
                answerer._check(text, final[0])
            yield answerer

    def _check(self, text: Int[Tensor, "row pos"], final: Float[Tensor, "row pos d_model"]) -> None:
        """Hold the blocks against the model's own forward, on whole rows and on rows that go on from their past."""
        entering, n_tokens = enter(self.backend, text), text.shape[1]
        rows = torch.arange(text.shape[0], device=text.device)
        first = (n_tokens // (rows + 2)).clamp(min=1)
        n_new = n_tokens - int(first.max())
        columns = first[:, None] + torch.arange(n_new, device=text.device)
        whole, added = entering, entering[rows[:, None], columns]
        for layer in range(self.backend.n_layers):
            whole, past = self.run_block(layer, whole)
            if n_new:
                added, _ = self.run_block(layer, added, first=first, past=past.ending_at(first))
        check_replayed(whole, final, entering, "alone")
        if n_new:
            places = rows[:, None], columns
            check_replayed(added, final[places], entering[places], "on a part of the positions")

    @torch.no_grad()
    @called_alone()
    def ask(self, questions: Sequence[tuple[int, Question]], *, keep: Collection[int] = ()) -> Answered:
        chunks = make_chunks(self.backend, questions, share=True)
        entering = [{0: self._start(chunk)} for chunk in chunks]
        readings = [(chunk, self._run(chunk, kept, None, keep)) for chunk, kept in zip(chunks, entering, strict=True)]
        return Answered(tuple(questions), tuple(chunks), tuple(self._sorted(questions, readings)), tuple(entering))

    @torch.no_grad()
    @called_alone()
    def ask_again(self, asked: Answered, updates: RowUpdates) -> list[tuple[Reading, ...]]:
        if updates.start >= self.backend.n_layers:
            return list(asked.readings)
        chunks = zip(asked.chunks, asked.entering, strict=True)
        readings = [(chunk, self._run(chunk, entering, updates)) for chunk, entering in chunks]
        return self._sorted(asked.questions, readings)

    def _start(self, chunk: Chunk) -> _Entering:
        branches, stems = chunk.branches, enter(self.backend, chunk.stems)
        if not branches.shape[0]:
            return _Entering(stems, stems.new_empty(0, 0, stems.shape[-1]))
        # Whole rows are embedded, whatever a position adds, and what the branches add is cut out of them.
        columns = chunk.first[:, None] + torch.arange(chunk.n_new, device=branches.device)
        rows = torch.arange(branches.shape[0], device=branches.device)[:, None]
        added = enter(self.backend, branches)[rows, columns.clamp(max=branches.shape[1] - 1)]
        return _Entering(stems, added)

    def _run(
        self, chunk: Chunk, entering: dict[int, _Entering], updates: RowUpdates | None, keep: Collection[int] = ()
    ) -> list[Reading]:
        """The readings. It goes on from the highest layer below the updates that is known to be entered with what.

        What enters the layers to `keep` is added to that.
        """
        first_layer = max(layer for layer in entering if updates is None or layer <= updates.start)
        stems, branches = entering[first_layer].stems, entering[first_layer].branches
        has_branches, branch_record = chunk.branch_stem.numel() > 0, chunk.stem_record[chunk.branch_stem]
        for layer in range(first_layer, self.backend.n_layers):
            if layer in keep:
                entering[layer] = _Entering(stems, branches)
            stems, past = self.run_block(layer, stems, updates=updates, records=chunk.stem_record)
            if has_branches:
                past = past.take(chunk.branch_stem).ending_at(chunk.first)
                branches, _ = self.run_block(
                    layer, branches, first=chunk.first, past=past, updates=updates, records=branch_record
                )
        rows, columns = chunk.place_row, chunk.place_column
        n_stems, of_stem = stems.shape[0], rows < stems.shape[0]
        states = stems.new_empty(len(rows), stems.shape[-1])
        states[of_stem] = stems[rows[of_stem], columns[of_stem]]
        if has_branches:
            states[~of_stem] = branches[rows[~of_stem] - n_stems, columns[~of_stem]]
        return chunk.read(self.unembed(states))

    def run_block(
        self,
        layer: int,
        entering: Float[Tensor, "row pos d_model"],
        *,
        first: int | Int[Tensor, " row"] = 0,
        past: KeysValues | None = None,
        updates: RowUpdates | None = None,
        records: Int[Tensor, " row"] | None = None,
    ) -> tuple[Float[Tensor, "row pos d_model"], KeysValues]:
        """One block as `BlockReplay.run` calls it, each row under the edits of its record."""
        hooks = [] if updates is None or records is None else updates.hooks(layer, records)
        with fast_products(device=self.backend.device, dtype=self.backend.dtype), self.backend.hooked(hooks):
            return self.replay.run(layer, entering, first=first, past=past)

    def unembed(self, states: Float[Tensor, "place d_model"]) -> Float[Tensor, "place d_vocab"]:
        """Logits of what leaves the last block."""
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            return self.replay.unembed(states[:, None])[:, 0]


@contextmanager
def open_answerer(
    backend: Backend, text: Int[Tensor, "row pos"], *, engine: Engine = "auto", failed: str | None = None
) -> Iterator[Answerer]:
    """The fast way where the model's blocks can be called alone, whole forwards where not.

    Args:
        backend: the model, in evaluation mode.
        text: as long as any row that will be run.
        engine: `auto`, or `plain` for whole forwards.
        failed: why the blocks are not to be tried again; None where nothing is known against them.
    """
    if failed is not None:
        yield Answerer(backend, text.shape[1], failed)
        return
    with ExitStack() as stack:
        yield prefer_blocks(
            backend,
            engine=engine,
            blocks=lambda _: stack.enter_context(BlockAnswerer.opened(backend, text)),
            whole=lambda reason: Answerer(backend, text.shape[1], reason),
        )
