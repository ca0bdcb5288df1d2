"""The clean run and the corrupted runs that every cell of a trace is measured against."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, BlockReplay


@dataclass(frozen=True)
class Corruption:
    """What is broken in the corrupted copies: the subject's embeddings, or its tokens.

    Attributes:
        span: positions (first, end) of the subject's tokens.
        noise: [sample, pos, d_model] for the positions of the span; None where the tokens are swapped instead.
        replace: the noise takes the place of the embeddings instead of being added.
        tokens: the corrupted copies' token ids, [pos]; the clean ones where noise does the breaking.
    """

    span: tuple[int, int]
    noise: Float[Tensor, "sample pos d_model"] | None
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
class Runs:
    """The clean run (row 0) and the corrupted runs (the other rows) of one forward.

    Attributes:
        tokens: [row, pos] token ids; for an answer of several tokens all but its last follow the prompt.
        corruption: what was done to rows 1 and on.
        answer_ids: the answer's token ids, [read].
        resid_pre: what enters the first block, [row, pos, d_model].
        resid_post: what leaves each block in the clean and in the first corrupted row, [2, pos, d_model] a layer.
        high: the answer's probability in the clean run.
        low: the answer's probability in the corrupted runs, averaged.
        replay: the model's blocks, to be called alone.
    """

    tokens: Int[Tensor, "row pos"]
    corruption: Corruption
    answer_ids: Int[Tensor, " read"]
    resid_pre: Float[Tensor, "row pos d_model"]
    resid_post: Sequence[Float[Tensor, "2 pos d_model"]]
    high: float
    low: float
    replay: BlockReplay | None

    @property
    def n_tokens(self) -> int:
        return self.tokens.shape[1]

    @property
    def n_samples(self) -> int:
        return self.tokens.shape[0] - 1

    @property
    def n_read(self) -> int:
        """How many positions the answer is read from: the last so many."""
        return self.answer_ids.shape[0]

    def answer_probability(self, logits: Float[Tensor, "row read d_vocab"]) -> Float[Tensor, " row"]:
        """Joint probability of the answer's tokens; in float32 at least."""
        return joint_probability(logits, self.answer_ids)


def joint_probability(
    logits: Float[Tensor, "row read d_vocab"], answer_ids: Int[Tensor, " read"]
) -> Float[Tensor, " row"]:
    """Probability of the answer's tokens one after the other, teacher forced: the product of their softmaxes."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    chosen = logits.gather(-1, answer_ids.expand(logits.shape[0], -1)[..., None]).squeeze(-1)
    return (chosen - logits.logsumexp(dim=-1)).sum(dim=-1).exp()


@torch.no_grad()
def make_runs(
    backend: Backend,
    tokens: Int[Tensor, " pos"],
    corruption: Corruption,
    answer_ids: Int[Tensor, " read"],
    *,
    record: bool = True,
) -> Runs:
    """Run the clean and the corrupted rows once through the model itself.

    Args:
        backend: the model.
        tokens: the clean token ids: the prompt, and all but the last token of the answer.
        corruption: what to break in the other rows.
        answer_ids: the answer.
        record: watch how the model calls its blocks, so that they can be called alone afterwards.
    """
    rows = torch.cat([tokens[None], corruption.tokens.expand(corruption.n_samples, -1)])
    samples = torch.arange(-1, corruption.n_samples, device=rows.device)
    entering: list[Tensor] = []
    leaving: list[Tensor] = []
    hooks = [
        ("hook_embed", lambda x: corruption.break_rows(x, samples)),
        ("blocks.0.hook_resid_pre", lambda x: entering.append(x.clone())),
        *[
            (backend.stream_hook("resid", layer), lambda x: leaving.append(x[:2].clone()))
            for layer in range(backend.n_layers)
        ],
    ]
    with backend.recording() if record else nullcontext() as replay, backend.hooked(hooks):
        logits = backend.logits(rows, keep=answer_ids.shape[0])
    scores = joint_probability(logits, answer_ids).double()
    return Runs(
        tokens=rows,
        corruption=corruption,
        answer_ids=answer_ids,
        resid_pre=entering[0],
        resid_post=leaving,
        high=scores[0].item(),
        low=scores[1:].mean().item(),
        replay=replay,
    )
