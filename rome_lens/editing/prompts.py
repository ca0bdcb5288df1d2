"""The texts of an edit as one batch: every request under every context template, and what keeps its subject itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.backends.decoding import pad_rows
from rome_lens.checks import is_list, shown
from rome_lens.errors import PromptError, SettingError
from rome_lens.facts import EditRequest
from rome_lens.memory import free_bytes
from rome_lens.tokens import TokenisedPrompt, joint, tokenise_span

BARE = "{}"
# What shall stay as it is, whatever is edited (paper, equation 4).
_ESSENCE = "{} is a"
# Beyond so many, a larger batch no longer pays (benchmarks/edit.py): on a CPU what is kept for the gradient leaves the
# caches, and its pages are handed back to the system and taken again at every step.
_MOST_TOGETHER = {"cpu": 4}
_MOST_TOGETHER_ELSEWHERE = 64


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
class Batch:
    """The rows of several requests, padded on the right, which earlier positions of a causal decoder never see.

    Attributes:
        tokens: [row, pos] token ids; the target's last token is read and never run.
        subject_last: [row] position of the subject's last token, where keys and values are read and changed.
        request: [row] which request a row belongs to.
        n_suffix: positions from the subject's last token to the end, of the row that has most of them.
        row_weight: [row] share of a row in its request's mean key and mean loss; 0 for the essence.
        bare_row: [request] the row of the bare prompt.
        essence_row: [request] the row of the essence.
        read_row: [read] rows of the positions from which the target's tokens are read.
        read_column: [read] these positions, counted from the subject's last token.
        read_target: [read] the target's tokens.
        read_weight: [read] share of a token in its request's loss.
        essence_column: [request] where the essence is read, counted from the subject's last token.
    """

    tokens: Int[Tensor, "row pos"]
    subject_last: Int[Tensor, " row"]
    request: Int[Tensor, " row"]
    n_suffix: int
    row_weight: Float[Tensor, " row"]
    bare_row: Int[Tensor, " request"]
    essence_row: Int[Tensor, " request"]
    read_row: Int[Tensor, " read"]
    read_column: Int[Tensor, " read"]
    read_target: Int[Tensor, " read"]
    read_weight: Float[Tensor, " read"]
    essence_column: Int[Tensor, " request"]

    @property
    def n_requests(self) -> int:
        return self.bare_row.shape[0]

    @property
    def read_request(self) -> Int[Tensor, " read"]:
        """[read] which request a read position belongs to."""
        return self.request[self.read_row]

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
    backend: Backend,
    request: EditRequest,
    *,
    templates: Sequence[str],
    prepend_bos: bool,
    essence_at: str,
) -> RequestRows:
    """Tokenise a request under its templates, prefix, prompt and target as one text.

    Args:
        backend: the model.
        request: the request.
        templates: context templates, the bare one first.
        prepend_bos: put BOS in front of every row.
        essence_at: `last`: the essence is read after "is a". `subject`: at the subject's last token, as the released
            code reads it.

    Raises:
        PromptError: a row is longer than the model's context. SubjectError, AnswerError: as `tokens.tokenise` raises.
    """
    start, end = request.subject_span
    # What stands in front of the prompt is no matter of what stands between it and its target.
    joined = joint(backend.tokenizer, request.text, request.target_new, request.answer_joined)
    rewriting = []
    for template in templates:
        prefix = template.removesuffix(BARE)
        span = (len(prefix) + start, len(prefix) + end)
        text = prefix + request.text
        rewriting.append(
            tokenise_span(
                backend.tokenizer,
                text,
                span,
                answer=request.target_new,
                answer_joined=joined,
                prepend_bos=prepend_bos,
            )
        )
    subject = request.subject
    essence = tokenise_span(
        backend.tokenizer, _ESSENCE.replace(BARE, subject), (0, len(subject)), prepend_bos=prepend_bos
    )
    if essence_at == "subject":
        essence = TokenisedPrompt(
            essence.ids[: essence.subject_span[1]],
            essence.tokens[: essence.subject_span[1]],
            essence.subject_span[1],
            essence.subject_span,
            "",
            essence.bos,
        )
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
    rows = [(index, row) for index, request in enumerate(requests) for row in request.rows]
    run = [row.ids[:-1] if row.answer_ids else row.ids for _, row in rows]
    last = [row.subject_span[1] - 1 for _, row in rows]
    bare, essence, weights = [], [], []
    for request in requests:
        bare.append(len(weights))
        weights += [*_row_weights(len(request.rewriting), bare_weight), 0.0]
        essence.append(len(weights) - 1)
    reads = [
        (number, row.n_prompt - 1 + i - last[number], token, weights[number] / len(row.answer_ids))
        for number, (_, row) in enumerate(rows)
        for i, token in enumerate(row.answer_ids)
    ]

    def whole(numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Batch(
        tokens=pad_rows(run, device),
        subject_last=whole(last),
        request=whole([index for index, _ in rows]),
        n_suffix=max(request.n_suffix for request in requests),
        row_weight=torch.tensor(weights, dtype=torch.float64, device=device),
        bare_row=whole(bare),
        essence_row=whole(essence),
        read_row=whole([read[0] for read in reads]),
        read_column=whole([read[1] for read in reads]),
        read_target=whole([read[2] for read in reads]),
        read_weight=torch.tensor([read[3] for read in reads], dtype=torch.float64, device=device),
        essence_column=whole([len(request.essence.ids) - request.essence.subject_span[1] for request in requests]),
    )


def split_requests(
    backend: Backend, requests: Sequence[RequestRows], *, layer: int, batch_size: int | None
) -> list[list[int]]:
    """Requests in batches, by number: as many as asked for, or as memory holds while gradients are taken.

    Requests of like length go together, since all rows of a batch are as long as its longest.
    """
    if batch_size is None:
        per_request = max((_bytes(backend, request, layer) for request in requests), default=1)
        most = _MOST_TOGETHER.get(backend.device.type, _MOST_TOGETHER_ELSEWHERE)
        batch_size = max(1, min(most, free_bytes(backend.device) // 3 // per_request))
    order = sorted(range(len(requests)), key=lambda index: requests[index].n_suffix)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _bytes(backend: Backend, request: RequestRows, layer: int) -> int:
    """Roughly what a request's rows hold for the gradient, from the edited layer up."""
    cfg = backend.model.cfg
    # The residual and its norms, queries, keys and values; the MLP's hidden layer before, within and after.
    numbers = 24 * int(cfg.d_model) + 8 * int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)
    layers = backend.n_layers - layer
    logits = 4 * backend.d_vocab * sum(len(row.answer_ids) or 1 for row in request.rows)
    return (len(request.rows) * request.n_suffix * layers * numbers + logits) * max(4, backend.dtype.itemsize)


def _row_weights(n_rows: int, bare_weight: float | None) -> list[float]:
    if bare_weight is None or n_rows == 1:
        return [1 / n_rows] * n_rows
    return [bare_weight, *[(1 - bare_weight) / (n_rows - 1)] * (n_rows - 1)]
