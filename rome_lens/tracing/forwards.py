"""The clean run and the corrupted runs that every cell of a trace is measured against, of one case or of several."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from einops import reduce, repeat
from jaxtyping import Float, Float64, Int
from torch import Tensor

from rome_lens.backends import HEADS, NEURONS, Backend, BlockReplay
from rome_lens.errors import ModelError
from rome_lens.tracing.cases import Case
from rome_lens.tracing.measures import PROBABILITY, Measure
from rome_lens.tracing.said import Reading, said_in


@dataclass(frozen=True)
class Runs:
    """The clean and the corrupted runs of some cases, in one forward.

    The first rows are the clean runs, one a case; then come the corrupted runs, case by case.

    Attributes:
        cases: the cases, of one shape.
        tokens: [row, pos] token ids.
        checked_rows: [checked] the clean row and the first corrupted one of every case.
        resid_pre: what enters the first block, [row, pos, d_model]; None where nothing shows it.
        resid_post: what leaves each block in `checked_rows`, [checked, pos, d_model] a layer; where recorded.
        high: by case, what is read in the clean run.
        low: by case, what is read in the corrupted runs, on average.
        n_said: how many of the most probable next tokens are kept of a cell.
        measure: what is read in a cell.
        clean: what the measure keeps of the clean runs, by case.
        replay: the model's blocks, to be called alone.
    """

    cases: tuple[Case, ...]
    tokens: Int[Tensor, "row pos"]
    checked_rows: Int[Tensor, " checked"]
    resid_pre: Float[Tensor, "row pos d_model"] | None
    resid_post: Sequence[Float[Tensor, "checked pos d_model"]]
    high: tuple[Reading, ...]
    low: tuple[Reading, ...]
    n_said: int
    measure: Measure
    clean: Float[Tensor, "case d_vocab"] | None
    replay: BlockReplay | None

    @property
    def n_tokens(self) -> int:
        return self.tokens.shape[1]

    @property
    def n_samples(self) -> int:
        return self.cases[0].corruption.n_samples

    @property
    def n_read(self) -> int:
        """How many positions the answer is read from: the last ones."""
        return self.cases[0].answer_ids.shape[0]

    def corrupted_rows(self, cases: Int[Tensor, "..."]) -> Int[Tensor, "... sample"]:
        """The rows of these cases' corrupted copies."""
        return len(self.cases) + cases[..., None] * self.n_samples + torch.arange(self.n_samples, device=cases.device)

    def scores(self, logits: Float[Tensor, "row read d_vocab"], cases: Int[Tensor, " row"]) -> Float64[Tensor, " row"]:
        """What the measure reads in each row, of its case."""
        return self.measure.of(logits, *self._read_of(cases))

    def slope(
        self, logits: Float[Tensor, "row read d_vocab"], cases: Int[Tensor, " row"]
    ) -> tuple[Float64[Tensor, " row"], Float64[Tensor, " row"] | None]:
        """What to differentiate to have the scores' gradient, and by what to multiply it."""
        return self.measure.slope(logits, *self._read_of(cases))

    def _read_of(self, cases: Int[Tensor, " row"]) -> tuple[Tensor, Tensor | None]:
        """The answers' tokens, and what is kept of the clean runs, of rows of these cases."""
        answers = torch.stack([case.answer_ids for case in self.cases])
        return answers[cases], None if self.clean is None else self.clean[cases]


def break_embeddings(
    cases: Sequence[Case], embed: Float[Tensor, "row pos d_model"]
) -> Float[Tensor, "row pos d_model"]:
    """Corrupt the embeddings of the rows of `Runs`, a copy."""
    broken = embed.clone()
    samples = torch.arange(cases[0].corruption.n_samples, device=embed.device)
    for case, rows in zip(cases, broken[len(cases) :].split(len(samples)), strict=True):
        here = case.corruption.break_rows(rows, samples)
        if here is not None:
            rows.copy_(here)
    return broken


@torch.no_grad()
def make_runs(
    backend: Backend,
    cases: Sequence[Case],
    *,
    record: bool = True,
    n_said: int = 0,
    measure: Measure = PROBABILITY,
) -> Runs:
    """Run the clean and the corrupted rows once through the model itself.

    Args:
        backend: the model.
        cases: cases of one shape.
        record: watch how the model calls its blocks, so that they can be called alone afterwards.
        n_said: how many of the most probable next tokens are kept of a cell; 0 is none.
        measure: what is read in a cell.

    Raises:
        ModelError: noise has to break the embeddings, and nothing passes `hook_embed`.
    """
    n_samples, n_read = cases[0].corruption.n_samples, cases[0].answer_ids.shape[0]
    clean = torch.stack([case.tokens for case in cases])
    rows = torch.cat([clean, *(case.corruption.tokens.expand(n_samples, -1) for case in cases)])
    numbers = torch.arange(len(cases), device=rows.device)
    checked = torch.cat([numbers, len(cases) + numbers * n_samples])
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
            (backend.stream_hook("resid", layer), lambda x: leaving.append(x[checked.to(x.device)]))
            for layer in range(backend.n_layers)
        ]
    with backend.recording() if record else nullcontext() as replay, backend.hooked(hooks):
        logits = backend.logits(rows, keep=n_read)
    if noisy and not broken:
        raise backend.silent("hook_embed")
    answers = torch.stack([case.answer_ids for case in cases])
    of_rows = torch.cat([numbers, repeat(numbers, "case -> (case sample)", sample=n_samples)])
    kept = measure.of_clean(logits[: len(cases)])
    scores = measure.of(logits, answers[of_rows], None if kept is None else kept[of_rows])
    low = reduce(scores[len(cases) :], "(case sample) -> case", "mean", sample=n_samples)
    said_high = said_in(logits[: len(cases)], 1, n_said)
    said_low = said_in(logits[len(cases) :], n_samples, n_said)
    return Runs(
        cases=tuple(cases),
        tokens=rows,
        checked_rows=checked,
        resid_pre=entering[0] if entering else None,
        resid_post=leaving,
        high=tuple(map(Reading, scores[: len(cases)].tolist(), said_high)),
        low=tuple(map(Reading, low.tolist(), said_low)),
        n_said=n_said,
        measure=measure,
        clean=kept,
        replay=replay,
    )


def outputs_of(
    backend: Backend,
    points: Sequence[tuple[str, int]],
    forward: Callable[[], Tensor],
    *,
    hooks: Sequence[tuple[str, Callable[[Tensor], Tensor | None]]] = (),
) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """What passes the hook points of streams in a forward by (stream, layer), and its logits.

    It is [row pos d_model], for `heads` [row pos head d_head], for `neurons` [row pos d_mlp].

    Args:
        backend: the model.
        points: (stream, layer) of each.
        forward: runs the model.
        hooks: what else is hooked meanwhile.

    Raises:
        ModelError: nothing passes one of the points, or no single heads.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    with backend.hooked([*hooks, *((backend.stream_hook(*key), partial(_keep, seen, key)) for key in points)]):
        logits = forward()
    missing = [backend.stream_hook(*key) for key in points if key not in seen]
    if missing:
        raise ModelError(
            f"{backend.model_name} lists the hook point {missing[0]!r}, but nothing passes it in a forward; leave its "
            "stream out"
        )
    for (stream, _), x in seen.items():
        check_parts(backend, stream, x)
    return seen, logits


def check_parts(backend: Backend, stream: str, x: Tensor) -> None:
    """Refuse heads that do not come head by head, [row pos head d_head], and neurons that are not [row pos d_mlp].

    Raises:
        ModelError: so it is.
    """
    if stream == HEADS and (x.ndim != 4 or x.shape[2] != backend.n_heads):
        raise ModelError(
            f"{backend.model_name} has {backend.n_heads} heads, and what passes hook_z has the shape {tuple(x.shape)}: "
            "its heads cannot be told apart; leave the stream 'heads' out"
        )
    if stream == NEURONS and x.ndim != 3:
        raise ModelError(
            f"{backend.model_name} shows its neurons as {tuple(x.shape)} (mlp.hook_post), and [batch pos d_mlp] "
            "was expected: they cannot be told apart; leave them out"
        )


def _keep(seen: dict[tuple[str, int], Tensor], key: tuple[str, int], x: Tensor) -> Tensor:
    """Keep what passes, and pass on a copy: a model may change it in place (Falcon adds attention's output to it)."""
    seen[key] = x
    return x.clone()
