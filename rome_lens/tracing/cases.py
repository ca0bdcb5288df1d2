"""One fact in tokens: what is read of it, and how its subject is corrupted."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.likelihood import log_probabilities
from rome_lens.tokens import TokenisedPrompt
from rome_lens.tracing.corruption import FittedNoise


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


def noisy_case(backend: Backend, text: TokenisedPrompt, noise: FittedNoise, *, samples: int, seed: int) -> Case:
    """A prompt with its answer, whose subject the noise breaks, drawn for this subject."""
    tokens = torch.tensor(text.ids[:-1], device=backend.device)
    first, end = text.subject_span
    drawn = noise.draw(samples=samples, n_tokens=end - first, d_model=backend.embed_width, seed=seed)
    corruption = Corruption(text.subject_span, drawn.to(backend.device), noise.rule.replace, tokens)
    return Case(tokens, corruption, torch.tensor(text.answer_ids, device=backend.device))


def swapped_case(backend: Backend, text: TokenisedPrompt, swapped: Int[Tensor, " pos"]) -> Case:
    """A prompt with its answer, whose subject is another one in the corrupted copy: of `swapped_tokens`."""
    tokens = torch.tensor(text.ids[:-1], device=backend.device)
    corruption = Corruption(text.subject_span, None, False, swapped[: len(tokens)].to(backend.device))
    return Case(tokens, corruption, torch.tensor(text.answer_ids, device=backend.device))


def joint_probability(
    logits: Float[Tensor, "row read d_vocab"], answer_ids: Int[Tensor, " read"] | Int[Tensor, "row read"]
) -> Float64[Tensor, " row"]:
    """Probability of the answer's tokens one after the other, teacher forced: the product of their softmaxes."""
    return joint_log_probability(logits, answer_ids).exp()


def joint_log_probability(logits: Tensor, answer_ids: Tensor) -> Float64[Tensor, " row"]:
    return log_probabilities(logits, answer_ids.expand(logits.shape[0], -1)).sum(dim=-1)
