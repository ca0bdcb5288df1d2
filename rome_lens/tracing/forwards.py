"""The clean run and the corrupted runs that every cell of a trace is measured against, of one case or of several."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from einops import reduce, repeat
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rome_lens.backends import Backend, BlockReplay
from rome_lens.backends.likelihood import log_probabilities


@dataclass(frozen=True)
class Corruption:
    """What is broken in the corrupted copies: the subject's embeddings, or its tokens.

    Attributes:
        span: positions (first, end) of the subject's tokens.
        noise: [sample, span, d_model] for the positions of the span; None where the tokens are swapped instead.
        replace: the noise takes the place of the embeddings instead of being added.
        tokens: the corrupted copies' token ids, [pos]; the clean ones where noise does the breaking.
    """

    span: tuple[int, int]
    noise: Float[Tensor, "sample span d_model"] | None
    replace: bool
    tokens: Int[Tensor, " pos"]

    @property
    def n_samples(self) -> int:
        return 1 if self.noise is None else self.noise.shape[0]

    def part(self, samples: slice) -> "Corruption":
        """The same corruption with some of its samples."""
        noise = None if self.noise is None else self.noise[samples]
        return Corruption(self.span, noise, self.replace, self.tokens)

    def break_rows(
        self, embed: Float[Tensor, "row pos d_model"], samples: Int[Tensor, " row"]
    ) -> Float[Tensor, "row pos d_model"] | None:
        """Corrupt embeddings, a copy: row i takes the noise of sample `samples[i]`, none where that is negative."""
        if self.noise is None:
            return None
        first, end = self.span
        noise = self.noise.to(embed.device)[samples.clamp(min=0)]
        broken = embed.clone()
        old = embed[:, first:end]
        # The sum is taken in the noise's precision (float64), as the released code takes it.
        new = (noise if self.replace else old + noise).to(embed.dtype)
        broken[:, first:end] = torch.where((samples >= 0)[:, None, None], new, old)
        return broken


@dataclass(frozen=True)
class Case:
    """One fact in tokens, and how it is broken. Cases of equal shape go through the model together.

    Attributes:
        tokens: the clean token ids, [pos]: the prompt, and all but the last token of the answer.
        corruption: what is broken in the corrupted copies.
        answer_ids: the answer's token ids, [read].
    """

    tokens: Int[Tensor, " pos"]
    corruption: Corruption
    answer_ids: Int[Tensor, " read"]

    @property
    def n_prompt(self) -> int:
        """How many of the tokens are the prompt's: a grid has as many positions."""
        return self.tokens.shape[0] - self.answer_ids.shape[0] + 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """What cases that are run together have in common: tokens, tokens of the answer, corrupted copies."""
        return self.tokens.shape[0], self.answer_ids.shape[0], self.corruption.n_samples

    def part(self, samples: slice) -> "Case":
        """The same case with some of its corrupted copies."""
        return replace(self, corruption=self.corruption.part(samples))


@dataclass(frozen=True)
class Runs:
    """The clean and the corrupted runs of some cases, in one forward.

    The first rows are the clean runs, one a case; then come the corrupted runs, case by case.

    Attributes:
        cases: the cases, of one shape.
        tokens: [row, pos] token ids.
        resid_pre: what enters the first block, [row, pos, d_model]; None where nothing shows it.
        resid_post: what leaves each block in the rows `watched`, [watched, pos, d_model] a layer; where recorded.
        high: by case, the answer's probability in the clean run.
        low: by case, the answer's probability in the corrupted runs, averaged.
        replay: the model's blocks, to be called alone.
    """

    cases: tuple[Case, ...]
    tokens: Int[Tensor, "row pos"]
    resid_pre: Float[Tensor, "row pos d_model"] | None
    resid_post: Sequence[Float[Tensor, "watched pos d_model"]]
    high: tuple[float, ...]
    low: tuple[float, ...]
    replay: BlockReplay | None

    @property
    def n_cases(self) -> int:
        return len(self.cases)

    @property
    def n_tokens(self) -> int:
        return self.tokens.shape[1]

    @property
    def n_samples(self) -> int:
        return self.cases[0].corruption.n_samples

    @property
    def n_read(self) -> int:
        """How many positions the answer is read from: the last so many."""
        return self.cases[0].answer_ids.shape[0]

    @property
    def watched(self) -> Int[Tensor, " watched"]:
        """The clean row and the first corrupted one of every case."""
        return _watched(self.n_cases, self.n_samples, self.tokens.device)

    def corrupted_rows(self, cases: Int[Tensor, "..."]) -> Int[Tensor, "... sample"]:
        """The rows of these cases' corrupted copies."""
        return self.n_cases + cases[..., None] * self.n_samples + torch.arange(self.n_samples, device=cases.device)

    def answer_probability(
        self, logits: Float[Tensor, "row read d_vocab"], cases: Int[Tensor, " row"]
    ) -> Float64[Tensor, " row"]:
        """Joint probability of the answer's tokens of each row's case."""
        return self.answer_log_probability(logits, cases).exp()

    def answer_log_probability(
        self, logits: Float[Tensor, "row read d_vocab"], cases: Int[Tensor, " row"]
    ) -> Float64[Tensor, " row"]:
        """Its natural logarithm, which is a number even where the probability is too small for one."""
        return _joint_log_probability(logits, torch.stack([case.answer_ids for case in self.cases])[cases])


def joint_probability(
    logits: Float[Tensor, "row read d_vocab"], answer_ids: Int[Tensor, " read"] | Int[Tensor, "row read"]
) -> Float64[Tensor, " row"]:
    """Probability of the answer's tokens one after the other, teacher forced: the product of their softmaxes."""
    return _joint_log_probability(logits, answer_ids).exp()


def _joint_log_probability(logits: Tensor, answer_ids: Tensor) -> Float64[Tensor, " row"]:
    return log_probabilities(logits, answer_ids.expand(logits.shape[0], -1)).sum(dim=-1)


def break_embeddings(
    cases: Sequence[Case], embed: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """Corrupt the embeddings of the rows of `Runs`, a copy."""
    broken = embed.clone()
    start = len(cases)
    for case in cases:
        rows = slice(start, start + case.corruption.n_samples)
        samples = torch.arange(case.corruption.n_samples, device=embed.device)
        here = case.corruption.break_rows(embed[rows], samples)
        if here is not None:
            broken[rows] = here
        start = rows.stop
    return broken


@torch.no_grad()
def make_runs(backend: Backend, cases: Sequence[Case], *, record: bool = True) -> Runs:
    """Run the clean and the corrupted rows once through the model itself.

    Args:
        backend: the model.
        cases: cases of one shape.
        record: watch how the model calls its blocks, so that they can be called alone afterwards.

    Raises:
        ModelError: noise has to break the embeddings, and nothing passes `hook_embed`.
    """
    n_samples, n_read = cases[0].corruption.n_samples, cases[0].answer_ids.shape[0]
    clean = torch.stack([case.tokens for case in cases])
    rows = torch.cat([clean, *(case.corruption.tokens.expand(n_samples, -1) for case in cases)])
    watched = _watched(len(cases), n_samples, rows.device)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    noisy = any(case.corruption.noise is not None for case in cases)
    broken: list[bool] = []

    def corrupt(x: Tensor) -> Tensor:
        broken.append(True)
        return break_embeddings(cases, x)

    hooks = [
        ("hook_embed", corrupt),
        ("blocks.0.hook_resid_pre", lambda x: entering.append(x.clone())),
    ]
    if record:
        hooks += [
            (backend.stream_hook("resid", layer), lambda x: leaving.append(x[watched.to(x.device)]))
            for layer in range(backend.n_layers)
        ]
    with backend.recording() if record else nullcontext() as replay, backend.hooked(hooks):
        logits = backend.logits(rows, keep=n_read)
    if noisy and not broken:
        raise backend.silent("hook_embed")
    answers = torch.stack([case.answer_ids for case in cases])
    answers = torch.cat([answers, repeat(answers, "case read -> (case sample) read", sample=n_samples)])
    scores = joint_probability(logits, answers)
    return Runs(
        cases=tuple(cases),
        tokens=rows,
        resid_pre=entering[0] if entering else None,
        resid_post=leaving,
        high=tuple(scores[: len(cases)].tolist()),
        low=tuple(reduce(scores[len(cases) :], "(case sample) -> case", "mean", sample=n_samples).tolist()),
        replay=replay,
    )


def _watched(n_cases: int, n_samples: int, device: torch.device) -> Int[Tensor, " watched"]:
    cases = torch.arange(n_cases, device=device)
    return torch.cat([cases, n_cases + cases * n_samples])
