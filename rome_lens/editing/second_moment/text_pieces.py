"""Pieces of text as token ids: texts tokenised and cut, or text that a model writes itself.

Pieces come in portions, one after the other and in an order that depends on nothing but the source and its settings, so
that work on them can be taken up where it was left, and shared out.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from rome_lens.backends import Backend
from rome_lens.backends.decoding import rows_together
from rome_lens.backends.generation import never_text, sample, text_start
from rome_lens.checks import as_whole, shown
from rome_lens.errors import OutOfMemoryError, PromptError, SettingError
from rome_lens.memory import is_out_of_memory
from rome_lens.progress import Progress
from rome_lens.tokens import bos_of, encode

# The rows that a model writes together share its weights on their way through the processor. How many there are decides
# which random numbers each row meets, so it follows from the model and never from the memory that happens to be free.
_MOST_ROWS = 64

# How sentences and texts begin, so that the model's own text is about more than one thing.
_FIRST_WORDS = (
    "The A In When It This He She They We You I There For After Before During While Although Because If As At On By "
    "From With Since Once Every Many Most Some One Two First New Our His Her Their My No What How Why Who Where "
    "According However Today Scientists People Children Water History Music London Paris Germany President University "
    "Football Python"
)


@dataclass(frozen=True)
class Cut:
    """How text is cut.

    Attributes:
        text_length: longest piece in tokens, BOS included.
        bos: token ids in front of every piece: BOS, or none.
    """

    text_length: int
    bos: tuple[int, ...]

    @classmethod
    def checked(cls, backend: Backend, text_length: int | None, *, prepend_bos: bool) -> "Cut":
        """Refuse a length that the model does not allow.

        Raises:
            SettingError: the length is out of its range, or `prepend_bos` for a tokenizer that has no BOS token.
        """
        # What a key is depends on what stands before it. Prompts of facts are short; long pieces would mostly show keys
        # deep inside of a text, very short ones mostly beginnings, and attention's cost grows with the length.
        most = backend.n_ctx
        if text_length is None:
            text_length = min(256, most or 256)
        bos = (bos_of(backend.tokenizer),) if prepend_bos else ()
        least = len(bos) + 1
        allowed = f"{least} or more" if most is None else f"{least} to {most}"
        length = as_whole(text_length)
        if length is None:
            raise SettingError(f"text_length is {shown(text_length)}; expected a whole number of tokens, {allowed}")
        if length < least or (most is not None and length > most):
            raise SettingError(f"text_length is {length}; {backend.model_name} takes {allowed} tokens at once")
        return cls(length, bos)

    def pieces(self, ids: list[int]) -> Iterator[list[int]]:
        """A text's ids, cut."""
        room = self.text_length - len(self.bos)
        for first in range(0, len(ids), room):
            yield [*self.bos, *ids[first : first + room]]

    @staticmethod
    def up_to(max_tokens: int | None, pieces: Iterator[list[int]]) -> Iterator[list[int]]:
        """Pieces until they hold `max_tokens` together, the last one cut; all of them for None."""
        left = max_tokens
        for piece in pieces:
            yield piece[:left]
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    return


@dataclass(frozen=True)
class Portion:
    """Pieces that are added to the sums together: what work on text is shared out by, and taken up at.

    Attributes:
        number: from 0.
        first: the number of its first piece, from 0.
        n_pieces: how many pieces it has.
        pieces: token ids of each; None where the model has yet to write them (`SelfPieces.write`).
        before: digest of all pieces before its first one; None where they are not known.
        digest: of all pieces up to its last one; None where they are not known.
    """

    number: int
    first: int
    n_pieces: int
    pieces: Sequence[list[int]] | None = None
    before: str | None = None
    digest: str | None = None

    def without(self, n_pieces: int) -> "Portion":
        """What is left behind its first pieces: a checkpoint of portions of another size may end there."""
        first, n_left, pieces, before = self.first + n_pieces, self.n_pieces - n_pieces, self.pieces, self.before
        if pieces is not None and before is not None:
            before, pieces = digest_of_all(before, pieces[:n_pieces]), pieces[n_pieces:]
        return replace(self, first=first, n_pieces=n_left, pieces=pieces, before=before)

    def read(self, source: "Pieces | None", progress: Progress | None = None) -> Sequence[list[int]]:
        """Its pieces; `source` writes them where they are not known, and may be None where they are."""
        if self.pieces is not None:
            return self.pieces
        assert isinstance(source, SelfPieces)
        return source.write(self, progress)


class Pieces(ABC):
    """A source of pieces.

    Attributes:
        source: what is read, for people.
        max_tokens: tokens in all, at most; None where the texts have an end.
    """

    source: str
    max_tokens: int | None

    @abstractmethod
    def portions(self, size: int) -> Iterator[Portion]:
        """All portions.

        Args:
            size: tokens of one, or up to a piece more; the last may have fewer.
        """


class TextPieces(Pieces):
    """Pieces of texts."""

    def __init__(self, tokenizer: Any, texts: Iterable[str], *, source: str, max_tokens: int | None, cut: Cut) -> None:
        self._tokenizer, self._texts, self.source = tokenizer, texts, source
        self.max_tokens, self._cut = max_tokens, cut

    def portions(self, size: int) -> Iterator[Portion]:
        number, first, digest = 0, 0, ""
        for pieces in _gathered(self._cut.up_to(self.max_tokens, self._all()), size):
            before, digest = digest, digest_of_all(digest, pieces)
            yield Portion(number, first, len(pieces), pieces, before, digest)
            number, first = number + 1, first + len(pieces)

    def _all(self) -> Iterator[list[int]]:
        for index, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise SettingError(f"text {index} is {type(text).__name__}; expected str")
            try:
                ids, _ = encode(self._tokenizer, text)
            except PromptError as error:
                # The text itself may be a whole book.
                raise PromptError(f"text {index} holds half a character; write it in UTF-8") from error
            yield from self._cut.pieces(ids)


class SelfPieces(Pieces):
    """Text that the model writes, each piece from a first word of its own.

    The pieces are what the model drew, token by token: decoded and tokenised again they might come out differently.

    Attributes:
        n_tokens: in all.
        seed: of the random numbers.
    """

    def __init__(self, backend: Backend, *, max_tokens: int, seed: int, cut: Cut) -> None:
        self._backend, self.seed, self._cut = backend, seed, cut
        self.n_tokens = self.max_tokens = max_tokens
        self.source = "self"
        # A portion may end in the midst of texts that are written together: the next one begins with the others.
        self._latest: tuple[int, list[list[int]]] = -1, []

    def portions(self, size: int) -> Iterator[Portion]:
        each, n_pieces = -(-size // self._cut.text_length), self._n_pieces
        for number, first in enumerate(range(0, n_pieces, each)):
            yield Portion(number, first, min(each, n_pieces - first))

    def write(self, portion: Portion, progress: Progress | None = None) -> list[list[int]]:
        """The pieces of a portion, written now.

        Args:
            portion: one of `portions`.
            progress: called with how many tokens are written.
        """
        length, rows = self._cut.text_length, self._rows()
        numbers = range(portion.first, portion.first + portion.n_pieces)
        pieces = [self._batch(number // rows, rows, progress)[number % rows] for number in numbers]
        return [piece[: self.n_tokens - number * length] for number, piece in zip(numbers, pieces, strict=True)]

    @property
    def _n_pieces(self) -> int:
        return -(-self.n_tokens // self._cut.text_length)

    def _batch(self, batch: int, rows: int, progress: Progress | None) -> list[list[int]]:
        """Texts that are written together, by a generator of their own: those before them need not be written."""
        if self._latest[0] == batch:
            return self._latest[1]
        banned, firsts = self._tokens()
        seed = int(np.random.SeedSequence((self.seed, batch)).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed)
        n_rows = min(rows, self._n_pieces - batch * rows)
        chosen = firsts[torch.randint(len(firsts), (n_rows,), generator=generator)]
        front = self._cut.bos or self._start()
        prompts = torch.tensor(front).long().expand(n_rows, -1)
        prompts = torch.cat([prompts, chosen[:, None]], dim=1).to(self._backend.device)
        texts = self._written(prompts, generator, banned, self._reporting(progress, batch * rows, n_rows))
        # What a text starts behind is no part of it, unless BOS was asked for.
        self._latest = batch, [text[len(front) - len(self._cut.bos) :] for text in texts]
        return self._latest[1]

    def _written(
        self, prompts: torch.Tensor, generator: torch.Generator, banned: list[int], progress: Progress | None
    ) -> list[list[int]]:
        n_new = self._cut.text_length - len(self._cut.bos) - 1
        try:
            texts = sample(
                self._backend,
                prompts,
                n_new=n_new,
                generator=generator,
                temperature=1.0,
                banned=banned,
                progress=progress,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"memory ran out while the model wrote {len(prompts)} texts of {self._cut.text_length} tokens; take a "
                "smaller text_length, or texts from a file"
            ) from error
        return texts.tolist()

    def _reporting(self, progress: Progress | None, first: int, n_rows: int) -> Progress | None:
        if progress is None:
            return None
        length = self._cut.text_length

        def report(done: int, total: int, what: str) -> None:
            tokens = first * length + n_rows * length * done // total
            progress(min(tokens, self.n_tokens), self.n_tokens, "writing text")

        return report

    def _rows(self) -> int:
        """How many texts are written together: which random numbers each of them meets depends on it."""
        return rows_together(self._backend, self._cut.text_length, most=_MOST_ROWS)

    def _start(self) -> list[int]:
        """What texts begin behind, where the model's context has room for it beside a text."""
        start, n_ctx = text_start(self._backend.tokenizer), self._backend.n_ctx
        return start if n_ctx is None or len(start) + self._cut.text_length <= n_ctx else []

    def _tokens(self) -> tuple[list[int], torch.Tensor]:
        """Ids that are never drawn, and those that texts begin with."""
        tokenizer, n_vocab = self._backend.tokenizer, self._backend.d_vocab
        banned = never_text(self._backend)
        begun = [encode(tokenizer, word)[0][:1] for word in _FIRST_WORDS.split()]
        firsts = [ids[0] for ids in begun if ids and ids[0] not in banned]
        if not firsts:
            # A tokenizer that knows none of these words: any token may begin a text.
            firsts = [i for i in range(n_vocab) if i not in banned]
        return banned, torch.tensor(firsts)


def _gathered(pieces: Iterator[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Pieces in lists of that many tokens, or up to a piece more."""
    held: list[list[int]] = []
    n_tokens = 0
    for piece in pieces:
        held.append(piece)
        n_tokens += len(piece)
        if n_tokens >= size:
            yield held
            held, n_tokens = [], 0
    if held:
        yield held


def digest_of_all(before: str, pieces: Iterable[list[int]]) -> str:
    """SHA-256 of each piece's ids and of the digest of all pieces before it: the last one's."""
    for piece in pieces:
        before = sha256(before.encode() + array("q", piece).tobytes()).hexdigest()
    return before
