"""What a record asks a model, in tokens, laid out so that nothing is run twice.

Answers to one prompt share it: the prompt runs once, and only what an answer adds to it runs for that answer. Prompts
of like length go through the model together, whichever record they belong to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.decoding import pad_rows
from rome_lens.backends.likelihood import normalisers
from rome_lens.data.records import CounterFactRecord, ZsreRecord
from rome_lens.evaluation.metrics import FOLLOWS, NEIGHBOUR, PARAPHRASE, REWRITE
from rome_lens.tokens import TokenisedPrompt, encode, tokenise

# Rows times positions in one call. Larger tensors make nothing faster on a CPU (see tracing.memory).
_POSITIONS = {"cpu": 1024}
_POSITIONS_ELSEWHERE = 16384
_RUINED = 1e4

PromptKind = Literal["rewrite", "paraphrase", "neighborhood", "follows", "text"]
"""What a prompt is asked for, in the data sets' words; `follows` where its answer follows from the edited fact, and
`text` where every token of a text is read."""


@dataclass(frozen=True)
class Question:
    """A prompt and the answers whose probabilities are read after it.

    Attributes:
        kind: what it is asked for.
        prompt: the text.
        answers: the prompt followed by each answer: the new object and the true one, or a neighbour's own; zsRE's one
            answer; all that answer a prompt whose answer follows.
        wanted: which of them a good model would write by itself; where the answer follows, any of them.
    """

    kind: PromptKind
    prompt: str
    answers: tuple[TokenisedPrompt, ...]
    wanted: int

    @property
    def wanted_answers(self) -> tuple[TokenisedPrompt, ...]:
        """The prompt followed by each answer that a good model would write by itself."""
        return self.answers if self.kind == FOLLOWS else (self.answers[self.wanted],)


@dataclass(frozen=True)
class Reading:
    """What a model gives to one answer, teacher forced.

    Attributes:
        nll: mean negative log-probability of its tokens, natural logarithm.
        right: whether each of its tokens is the most probable one.
        said: the most probable token where the answer begins.
    """

    nll: float
    right: tuple[bool, ...]
    said: int


def questions_of(
    backend: Backend, record: CounterFactRecord | ZsreRecord, *, prepend_bos: bool
) -> tuple[Question, ...]:
    """What a record asks.

    Raises:
        PromptError, AnswerError: a prompt does not fit the model's context, or cannot be followed by its answer.
    """
    request = record.request
    counterfact = isinstance(record, CounterFactRecord)
    questions = []
    asked = _asked_of_counterfact(record) if counterfact else _asked_of_zsre(record)
    for kind, prompt, answers, wanted in [*asked, *((FOLLOWS, one.prompt, one.answers, 0) for one in record.follows)]:
        rows = [
            tokenise(
                backend.tokenizer,
                prompt,
                prompt,
                answer=answer,
                # The unrelated question of zsRE is another record's.
                answer_joined=request.answer_joined if counterfact or kind != NEIGHBOUR else None,
                prepend_bos=prepend_bos,
            )
            for answer in answers
        ]
        for row in rows:
            backend.check_text(row)
        questions.append(Question(kind, prompt, tuple(rows), wanted))
    return tuple(questions)


_AskedOf = list[tuple[PromptKind, str, tuple[str, ...], int]]
"""Kind, prompt, answers, and which of them is wanted."""


def _asked_of_counterfact(record: CounterFactRecord) -> _AskedOf:
    """All but what follows: without its true object a record asks for the new one alone."""
    new, true = record.request.target_new, record.request.target_true
    objects = (new,) if true is None else (new, true)
    own = record.neighbour_answers or (true,) * len(record.neighbours)
    return [
        (REWRITE, record.request.text, objects, 0),
        *((PARAPHRASE, prompt, objects, 0) for prompt in record.paraphrases),
        *(
            (NEIGHBOUR, prompt, (new, answer), 1)
            for prompt, answer in zip(record.neighbours, own, strict=True)
            if answer is not None
        ),
    ]


def _asked_of_zsre(record: ZsreRecord) -> _AskedOf:
    new = (record.request.target_new,)
    return [
        (REWRITE, record.request.text, new, 0),
        (PARAPHRASE, record.rephrase, new, 0),
        (NEIGHBOUR, record.unrelated, (record.unrelated_answer,), 0),
    ]


def text_question(backend: Backend, text: str, *, prepend_bos: bool) -> Question | None:
    """A text as a question: every token after the first one is its answer; None where it has no second token."""
    ids, _ = encode(backend.tokenizer, text)
    bos = (int(backend.tokenizer.bos_token_id),) if prepend_bos else ()
    ids = (*bos, *ids)[: backend.n_ctx]
    if len(ids) < 2:
        return None
    return Question("text", text, (TokenisedPrompt(ids, (), 1, (0, 1), text, bos),), 0)


@dataclass(frozen=True)
class Chunk:
    """Questions that go through the model in one call, padded on the right, where no earlier position looks.

    Attributes:
        stems: [stem, pos] token ids that a question's answers share.
        stem_record: [stem] the record of each.
        branches: [branch, branch_pos] stems again, with what an answer adds to them.
        branch_stem: [branch] the stem that each goes on from.
        first: [branch] the position at which it does.
        n_new: positions of the branch that adds most.
        place_row: [place] where logits are read: rows of the stems, and then of the branches.
        place_column: [place] columns there; a branch's are counted from its first position.
        read_place: [read] the place of each token that is read.
        read_target: [read] its id.
        owners: question and answer of each reading, by number.
        lengths: how many tokens each of these answers has; their reads follow one another.
    """

    stems: Int[Tensor, "stem pos"]
    stem_record: Int[Tensor, " stem"]
    branches: Int[Tensor, "branch branch_pos"]
    branch_stem: Int[Tensor, " branch"]
    first: Int[Tensor, " branch"]
    n_new: int
    place_row: Int[Tensor, " place"]
    place_column: Int[Tensor, " place"]
    read_place: Int[Tensor, " read"]
    read_target: Int[Tensor, " read"]
    owners: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]

    def read(self, logits: Float[Tensor, "place d_vocab"]) -> list[Reading]:
        """The readings, in the order of `owners`."""
        log_probs = logits[self.read_place, self.read_target].double() - normalisers(logits)[self.read_place]
        # A model that an edit has ruined gives no numbers at all: then every answer is as unlikely as can be.
        nll = -log_probs.nan_to_num(nan=-_RUINED, neginf=-_RUINED)
        said = logits.argmax(dim=-1)[self.read_place]
        parts = (x.split(list(self.lengths)) for x in (nll, said == self.read_target, said))
        return [
            Reading(part.mean().item(), tuple(hits.tolist()), int(ids[0]))
            for part, hits, ids in zip(*parts, strict=True)
        ]


def make_chunks(backend: Backend, questions: Sequence[tuple[int, Question]], *, share: bool) -> list[Chunk]:
    """Lay questions out in chunks.

    Args:
        backend: the model.
        questions: each with the number of its record.
        share: run what a question's answers share once; otherwise every answer is a row of its own.
    """
    positions = _POSITIONS.get(backend.device.type, _POSITIONS_ELSEWHERE)

    def laid_out(share: bool) -> list[_Row]:
        return [row for number, (record, asked) in enumerate(questions) for row in _rows(number, record, asked, share)]

    rows = laid_out(share)
    # The rows of a call are padded to the longest addition, and no padding may stand outside of the context.
    added = max((len(answer.ids) - 1 - len(row.stem) for row in rows for _, answer in row.answers), default=0)
    if backend.n_ctx is not None and max((len(row.stem) for row in rows), default=0) + added > backend.n_ctx:
        rows = laid_out(False)
    rows.sort(key=lambda row: len(row.stem))
    chunks: list[list[_Row]] = []
    for row in rows:
        # Rows come sorted, so this one is the longest.
        if not chunks or (len(chunks[-1]) + 1) * len(row.stem) > positions:
            chunks.append([])
        chunks[-1].append(row)
    return [_chunk(part, backend) for part in chunks]


@dataclass(frozen=True)
class _Row:
    """A stem, and the answers that go on from it: number, what is run, where it is read, and what is read there."""

    question: int
    record: int
    stem: tuple[int, ...]
    answers: tuple[tuple[int, TokenisedPrompt], ...]


def _rows(number: int, record: int, question: Question, share: bool) -> list[_Row]:
    answers = tuple(enumerate(question.answers))
    stem = _common([answer.ids[:-1] for _, answer in answers])
    # A prompt that is tokenised otherwise before another answer is another text.
    if share and len(stem) >= min(answer.n_prompt for _, answer in answers):
        return [_Row(number, record, stem, answers)]
    return [_Row(number, record, answer.ids[:-1], ((index, answer),)) for index, answer in answers]


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all rows begin with."""
    alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    return tuple(ids[0] for ids in alike)


def _chunk(rows: Sequence[_Row], backend: Backend) -> Chunk:
    device = backend.device
    branches: list[tuple[int, TokenisedPrompt]] = []
    places: dict[tuple[int, int], int] = {}
    reads: list[tuple[int, int]] = []
    owners, lengths, n_new = [], [], 0
    for stem_row, row in enumerate(rows):
        for index, answer in row.answers:
            run = len(answer.ids) - 1
            branch_row = len(rows) + len(branches)
            n_new = max(n_new, run - len(row.stem))
            if run > len(row.stem):
                branches.append((stem_row, answer))
            for position in range(answer.n_prompt - 1, run):
                inside = position < len(row.stem)
                place = (stem_row, position) if inside else (branch_row, position - len(row.stem))
                reads.append((places.setdefault(place, len(places)), answer.ids[position + 1]))
            owners.append((row.question, index))
            lengths.append(len(answer.answer_ids))

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Chunk(
        stems=pad_rows([row.stem for row in rows], device),
        stem_record=whole([row.record for row in rows]),
        branches=pad_rows([answer.ids[:-1] for _, answer in branches], device),
        branch_stem=whole([stem for stem, _ in branches]),
        first=whole([len(rows[stem].stem) for stem, _ in branches]),
        n_new=n_new,
        place_row=whole([row for row, _ in places]),
        place_column=whole([column for _, column in places]),
        read_place=whole([place for place, _ in reads]),
        read_target=whole([target for _, target in reads]),
        owners=tuple(owners),
        lengths=tuple(lengths),
    )
