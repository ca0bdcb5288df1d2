"""Causal tracing the plain way, as the paper has it: one forward of the whole model per cell, by hooks.

Row 0 is the clean run, the other rows are the corrupted copies; in a cell's forward the copies take the clean row's
value at the cell's position. Slow and obviously right: everything faster is held against it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from hooked import forward
from torch import Tensor

HOOKS = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}
PARTS = {"heads": "attn.hook_z", "neurons": "mlp.hook_post"}


def request_of(model: Any, traced: Any) -> tuple[Tensor, dict[str, Any]]:
    """The rows of a trace by noise, and what was asked of it, for `cell_score`."""
    first, end = traced.subject_span
    noise = np.random.RandomState(traced.seed).randn(traced.samples, end - first, model.cfg.d_model) * traced.noise
    device = next(model.parameters()).device
    rows = torch.tensor([*traced.token_ids, *traced.answer_ids[:-1]], device=device).expand(traced.samples + 1, -1)
    return rows, {
        "noise": torch.from_numpy(noise).to(device),
        "span": traced.subject_span,
        "answer_ids": list(traced.answer_ids),
        "replace": traced.noise_replaces,
    }


def restored_layers(stream: str, layer: int, window: int, n_layers: int) -> range:
    if stream == "resid":
        return range(layer, layer + 1)
    return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))


def cell_score(model: Any, rows: Tensor, *, answer_ids: list[int], **cell: Any) -> Tensor:
    """Joint probability of the answer's tokens in every row, [row]."""
    read = cell_logits(model, rows, **cell)[:, -len(answer_ids) :].softmax(dim=-1)
    return torch.stack([read[:, i, token] for i, token in enumerate(answer_ids)]).prod(dim=0)


@torch.no_grad()
def cell_logits(
    model: Any,
    rows: Tensor,
    *,
    noise: Tensor | None,
    span: tuple[int, int],
    stream: str | None = None,
    pos: int = 0,
    layers: range = range(0),
    parts: Sequence[int] | None = None,
    replace: bool = False,
    more: Sequence[tuple[str, Any]] = (),
) -> Tensor:
    """The logits of one forward, [row pos d_vocab]; without a stream nothing is restored."""

    def corrupt(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        if noise is not None:
            first, end = span
            x[1:, first:end] = (noise if replace else x[1:, first:end] + noise).to(x.dtype)
        return x

    def restore(x: Tensor, hook: Any) -> Tensor:
        x = x.clone()
        if parts is None:
            x[1:, pos] = x[0, pos]
        for part in parts or ():
            x[1:, pos, part] = x[0, pos, part]
        return x

    hooks = [("hook_embed", corrupt)]
    if stream is not None:
        hooks += [(f"blocks.{layer}.{(HOOKS | PARTS)[stream]}", restore) for layer in layers]
    return forward(model, rows, [*hooks, *more])


def grid(model: Any, rows: Tensor, stream: str, *, n_prompt: int, window: int, **request: Any) -> Tensor:
    """All cells of one stream, [layer pos]."""
    n_layers = model.cfg.n_layers
    scores = torch.empty(n_layers, n_prompt, dtype=torch.float64)
    for layer, pos in _cells(n_layers, n_prompt):
        layers = restored_layers(stream, layer, window, n_layers)
        row_scores = cell_score(model, rows, stream=stream, pos=pos, layers=layers, **request)
        scores[layer, pos] = row_scores[1:].double().mean()
    return scores


def heads_grid(model: Any, rows: Tensor, *, pos: int, window: int, **request: Any) -> Tensor:
    """All heads at one position, [layer head]."""
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    scores = torch.empty(n_layers, n_heads, dtype=torch.float64)
    for layer, head in _cells(n_layers, n_heads):
        layers = restored_layers("heads", layer, window, n_layers)
        row_scores = cell_score(model, rows, stream="heads", pos=pos, layers=layers, parts=[head], **request)
        scores[layer, head] = row_scores[1:].double().mean()
    return scores


def severed_grid(model: Any, rows: Tensor, severed: str, *, n_prompt: int, **request: Any) -> Tensor:
    """The residual stream's grid while a stream's outputs at the cell's token stay as they are in the corrupted run."""
    n_layers = model.cfg.n_layers
    names = [f"blocks.{layer}.{HOOKS[severed]}" for layer in range(n_layers)]
    corrupted: dict[str, Tensor] = {}
    watch = [(name, lambda x, hook, name=name: corrupted.update({name: x.clone()})) for name in names]
    cell_score(model, rows, more=watch, **request)
    scores = torch.empty(n_layers, n_prompt, dtype=torch.float64)
    for layer, pos in _cells(n_layers, n_prompt):

        def hold(x: Tensor, hook: Any, name: str, pos: int = pos) -> Tensor:
            x = x.clone()
            x[1:, pos] = corrupted[name][1:, pos]
            return x

        cut = [(name, partial(hold, name=name)) for name in names]
        there = {"stream": "resid", "pos": pos, "layers": range(layer, layer + 1)}
        scores[layer, pos] = cell_score(model, rows, more=cut, **there, **request)[1:].double().mean()
    return scores


def _cells(n_layers: int, n_columns: int) -> Iterator[tuple[int, int]]:
    return ((layer, column) for layer in range(n_layers) for column in range(n_columns))
