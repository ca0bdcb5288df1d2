"""Requests as rows of a batch: every prompt under every context template, where targets are read, what shall stay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import ceil
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.decoding import pad_rows
from rome_lens.checks import is_list, shown
from rome_lens.editing.batches import batch_size_for, check_gradients_fit, kept_for_gradients, split_by_length
from rome_lens.editing.keys import KeysOfFact
from rome_lens.errors import PromptError, SettingError
from rome_lens.facts import EditRequest
from rome_lens.runs.side_by_side import side_by_side
from rome_lens.tokens import TokenisedPrompt, joint, tokenise_span

BARE = "{}"
EssenceAt = Literal["last", "subject"]
"""Where the essence is read: after "is a", or at the subject's last token, as the released code reads it."""

_SMALLER = "shorten the prompt, or give fewer or shorter context templates"
# What shall stay as it is, whatever is edited (paper, equation 4).
_ESSENCE = "{} is a"
# A larger batch no longer pays (benchmarks/edit.py): on a CPU what is kept for the gradient leaves the caches, and its
# pages are handed back to the system and taken again at every step.
_MOST_TOGETHER = {"cpu": 4}


@dataclass(frozen=True)
class RequestRows:
    """One request in tokens.

    Attributes:
        request: the request.
        rewriting: the prompt under each context template, followed by the target; the bare prompt first.
        essence: "{subject} is a".
    """

    request: EditRequest
    rewriting: tuple[TokenisedPrompt, ...]
    essence: TokenisedPrompt

    @property
    def rows(self) -> tuple[TokenisedPrompt, ...]:
        """All texts, the essence last."""
        return (*self.rewriting, self.essence)

    @property
    def n_suffix(self) -> int:
        """Positions from the subject's last token to the end of what is run, of the row that has most of them."""
        return max(len(row.ids) - bool(row.answer_ids) - row.subject_span[1] + 1 for row in self.rows)


@dataclass(frozen=True)
class Targets:
    """Where the tokens of targets are read, teacher forced, and how much each of them counts.

    Attributes:
        row: [read] rows of the positions that are read.
        column: [read] these positions.
        token: [read] the target's token that is to follow there.
        weight: [read] its share in its request's loss.
        request: [read] which request it belongs to.
        n_requests: how many there are.
    """

    row: Int[Tensor, " read"]
    column: Int[Tensor, " read"]
    token: Int[Tensor, " read"]
    weight: Float[Tensor, " read"]
    request: Int[Tensor, " read"]
    n_requests: int

    @classmethod
    def of(
        cls, rows: Sequence[TokenisedPrompt], *, requests: Sequence[int], weights: Sequence[float], device: torch.device
    ) -> "Targets":
        """The answers of some rows.

        Args:
            rows: prompts, with answers or without.
            requests: which request each row belongs to.
            weights: each row's share in its request's loss.
            device: where the tensors go.
        """
        reads = [
            (number, row.n_prompt - 1 + i, token, weights[number] / len(row.answer_ids), requests[number])
            for number, row in enumerate(rows)
            for i, token in enumerate(row.answer_ids)
        ]
        row, column, token, weight, request = zip(*reads, strict=True)
        row, column, token, request = (torch.tensor(each, device=device) for each in (row, column, token, request))
        weight = torch.tensor(weight, dtype=torch.float64, device=device)
        return cls(row, column, token, weight, request, max(requests) + 1)

    def losses(self, log_probs: Float[Tensor, "read d_vocab"]) -> Float[Tensor, " request"]:
        """Mean negative log-probability of each request's target."""
        said = log_probs.gather(1, self.token[:, None])[:, 0] * self.weight.to(log_probs)
        return said.new_zeros(self.n_requests).index_add(0, self.request, -said)

    def said(self, logits: Float[Tensor, "read d_vocab"]) -> Bool[Tensor, " request"]:
        """Whether each token of a request's target is the likeliest at its place, in every row."""
        missed = (logits.argmax(dim=-1) != self.token).long()
        return missed.new_zeros(self.n_requests).index_add(0, self.request, missed) == 0


@dataclass(frozen=True)
class Rows:
    """Prompts with their targets, padded on the right, which earlier positions of a causal decoder never see.

    Attributes:
        tokens: [row, pos] token ids; the target's last token is read and never run.
        targets: where the targets are read.
    """

    tokens: Int[Tensor, "row pos"]
    targets: Targets

    @classmethod
    def of(cls, prompts: Sequence[TokenisedPrompt], device: torch.device) -> "Rows":
        """A row for each prompt, which has the target for its answer."""
        requests, weights = range(len(prompts)), [1.0] * len(prompts)
        return cls(_run(prompts, device), Targets.of(prompts, requests=requests, weights=weights, device=device))

    @property
    def read_at(self) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Rows and columns where logits are read."""
        return self.targets.row, self.targets.column


@dataclass(frozen=True)
class Batch(Rows):
    """The rows of several requests under their templates.

    Attributes:
        tokens: [row, pos] token ids; the target's last token is read and never run.
        targets: where the targets are read.
        subject_last: [row] position of the subject's last token, where keys and values are read and changed.
        request: [row] which request a row belongs to.
        n_suffix: positions from the subject's last token to the end, of the row that has most of them.
        row_weight: [row] share of a row in its request's mean key and mean loss; 0 for the essence.
        bare_row: [request] the row of the bare prompt.
        essence_row: [request] the row of the essence.
        essence_column: [request] where the essence is read.
    """

    subject_last: Int[Tensor, " row"]
    request: Int[Tensor, " row"]
    n_suffix: int
    row_weight: Float[Tensor, " row"]
    bare_row: Int[Tensor, " request"]
    essence_row: Int[Tensor, " request"]
    essence_column: Int[Tensor, " request"]

    @property
    def read_at(self) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Rows and columns where logits are read: of the targets, then of the essences."""
        rows = torch.cat([self.targets.row, self.essence_row])
        return rows, torch.cat([self.targets.column, self.essence_column])

    def weights(self, index: int) -> Float[Tensor, " row"]:
        """Shares of all rows in a request's mean key."""
        return torch.where(self.request == index, self.row_weight, 0.0)

    def keys_of(self, index: int, which: KeysOfFact) -> tuple[Float[Tensor, "key row"], tuple[float, ...]]:
        """What each key of a request is the mean of, as shares of all rows, and the keys' own shares of the request."""
        weights = self.weights(index)
        if which == "mean":
            return weights[None], (1.0,)
        groups = torch.stack(
            [torch.zeros_like(weights).index_copy(0, r, weights[r]) for r in _key_rows(weights, which)]
        )
        shares = groups.sum(dim=1)
        return groups / shares[:, None], tuple(shares.tolist())

    def suffix(self, x: Float[Tensor, "row pos d"]) -> Float[Tensor, "row n_suffix d"]:
        """Positions from each row's subject's last token on; past the text's end the last one again."""
        columns = self.subject_last[:, None] + torch.arange(self.n_suffix, device=x.device)
        return x[torch.arange(x.shape[0], device=x.device)[:, None], columns.clamp(max=x.shape[1] - 1)]


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Context templates, the bare one first.

    Raises:
        SettingError: they are no list, or one of them does not end with its only `{}`.
    """
    if isinstance(templates, str):
        templates = (templates,)
    if not is_list(templates):
        raise SettingError(f"context_templates is {shown(templates)}; expected a list of texts that end with {BARE}")
    for template in templates:
        if not isinstance(template, str) or template.count(BARE) != 1 or not template.endswith(BARE):
            raise SettingError(
                f"context template is {template!r}; expected a text that ends with {BARE}, where the prompt follows, "
                "such as 'The weather was good. {}'"
            )
    return (BARE, *(template for template in templates if template != BARE))


def tokenise_request(
    backend: Backend, request: EditRequest, *, templates: Sequence[str], prepend_bos: bool, essence_at: EssenceAt
) -> RequestRows:
    """Tokenise a request under its templates, prefix, prompt and target as one text.

    Args:
        backend: the model.
        request: the request.
        templates: context templates, the bare one first.
        prepend_bos: put BOS in front of every row.
        essence_at: where the essence is read.

    Raises:
        PromptError: a row is longer than the model's context. SubjectError, AnswerError: as `tokens.tokenise` raises.
    """
    start, end = request.subject_span
    # What joins a prompt to its target does not depend on what stands in front of the prompt.
    joined = joint(backend.tokenizer, request.text, request.target_new, request.answer_joined)
    rewriting = []
    for template in templates:
        prefix = template.removesuffix(BARE)
        span = (len(prefix) + start, len(prefix) + end)
        text = prefix + request.text
        rewriting.append(
            tokenise_span(
                backend.tokenizer, text, span, answer=request.target_new, answer_joined=joined, prepend_bos=prepend_bos
            )
        )
    subject = request.subject
    essence = tokenise_span(
        backend.tokenizer, _ESSENCE.replace(BARE, subject), (0, len(subject)), prepend_bos=prepend_bos
    )
    if essence_at == "subject":
        end = essence.subject_span[1]
        essence = replace(essence, ids=essence.ids[:end], tokens=essence.tokens[:end], n_prompt=end)
    rows = RequestRows(request, tuple(rewriting), essence)
    for row in rows.rows:
        backend.check_vocabulary(row)
    longest = max(len(row.ids) - bool(row.answer_ids) for row in rows.rows)
    if backend.n_ctx is not None and longest > backend.n_ctx:
        raise PromptError(
            f"the prompt {request.text!r} with its longest context template and target takes {longest} positions, and "
            f"{backend.model_name} has {backend.n_ctx}; shorten it, or give shorter context templates"
        )
    return rows


def make_batch(requests: Sequence[RequestRows], *, bare_weight: float | None, device: torch.device) -> Batch:
    """Put the rows of several requests into one batch.

    Args:
        requests: the requests in tokens.
        bare_weight: share of the bare prompt among the rows of a request; None is the same share as the others'.
        device: where the tensors go.
    """
    rows = [row for request in requests for row in request.rows]
    owners = [index for index, request in enumerate(requests) for _ in request.rows]
    weights = [share for request in requests for share in (*_row_weights(len(request.rewriting), bare_weight), 0.0)]
    ends = list(accumulate(len(request.rows) for request in requests))

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Batch(
        tokens=_run(rows, device),
        targets=Targets.of(rows, requests=owners, weights=weights, device=device),
        subject_last=whole([row.subject_span[1] - 1 for row in rows]),
        request=whole(owners),
        n_suffix=max(request.n_suffix for request in requests),
        row_weight=torch.tensor(weights, dtype=torch.float64, device=device),
        bare_row=whole([0, *ends[:-1]]),
        essence_row=whole([end - 1 for end in ends]),
        essence_column=whole([len(request.essence.ids) - 1 for request in requests]),
    )


def n_keys_of(n_templates: int, *, bare_weight: float | None, which: KeysOfFact) -> int:
    """How many keys a fact has.

    Args:
        n_templates: the context templates, the bare one among them.
        bare_weight: its share; None is the same share as the others'.
        which: which keys these are.
    """
    return len(_key_rows(torch.tensor(_row_weights(n_templates, bare_weight)), which))


def processes_for(backend: Backend, requests: Sequence[RequestRows], *, layer: int, batch_size: int | None) -> int:
    """In how many processes these requests are best worked on while gradients are taken.

    Args:
        backend: the model.
        requests: the requests in tokens.
        layer: the edited layer.
        batch_size: requests that are worked on together; None leaves it open.
    """
    together = batch_size or 1
    n_bytes = min(together, len(requests)) * _most_bytes(backend, requests, layer)
    return side_by_side(ceil(len(requests) / together), backend.device, n_bytes=n_bytes)


def split_requests(
    backend: Backend, requests: Sequence[RequestRows], *, layer: int, batch_size: int | None, n_processes: int = 1
) -> list[list[int]]:
    """Requests in batches, by number: as many as asked for, or as memory holds while gradients are taken.

    Requests of like length go together, since all rows of a batch are as long as its longest. Several processes, each
    with a batch of its own, share the memory, and none is left without a batch.

    Raises:
        OutOfMemoryError: not even one of them fits, or not as many as were asked for.
    """
    n_bytes = _most_bytes(backend, requests, layer)
    if batch_size is None:
        batch_size = batch_size_for(backend, n_processes * n_bytes, most=_MOST_TOGETHER)
        batch_size = min(batch_size, ceil(len(requests) / n_processes) or 1)
    check_gradients_fit(backend, layer, n_bytes, n_together=min(batch_size, len(requests)), instead=_SMALLER)
    return split_by_length([request.n_suffix for request in requests], batch_size=batch_size)


def _most_bytes(backend: Backend, requests: Sequence[RequestRows], layer: int) -> int:
    """Roughly what the largest of the requests holds."""
    kept, d_vocab = kept_for_gradients(backend, layer, n_positions=1), backend.d_vocab

    def numbers(request: RequestRows) -> int:
        """What its rows hold for the gradient, from the edited layer up, and their logits."""
        n_read = sum(len(row.answer_ids) or 1 for row in request.rows)
        return len(request.rows) * request.n_suffix * kept + 4 * d_vocab * n_read

    return max((numbers(request) * max(4, backend.dtype.itemsize) for request in requests), default=1)


def _run(rows: Sequence[TokenisedPrompt], device: torch.device) -> Int[Tensor, "row pos"]:
    """What is run of these rows: all but the answer's last token."""
    return pad_rows([row.ids[:-1] if row.answer_ids else row.ids for row in rows], device)


def _key_rows(weights: Float[Tensor, " row"], which: KeysOfFact) -> Sequence[Int[Tensor, " some"]]:
    """The rows that make up each key of a request, among rows of these shares; the first that counts is bare."""
    counted = weights.nonzero()[:, 0]
    if which == "each":
        return counted.split(1)
    parts = [counted] if which == "mean" else [counted[:1], counted[1:]]
    return [part for part in parts if len(part)]


def _row_weights(n_rows: int, bare_weight: float | None) -> list[float]:
    if bare_weight is None or n_rows == 1:
        return [1 / n_rows] * n_rows
    return [bare_weight, *[(1 - bare_weight) / (n_rows - 1)] * (n_rows - 1)]
