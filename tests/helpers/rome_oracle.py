"""ROME the plain way, as the released code does it: whole forwards, all positions, all logits, one request at a time.

Slow and obviously right: everything faster is held against it (tests/hosted/test_rome.py) and timed against it
(benchmarks). It knows no more of a model than its public hook points, the two of a layer's MLP.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hooked import forward
from torch import Tensor

from rome_lens.facts import EditRequest

STOP_LOSS = 0.05


@dataclass(frozen=True)
class PlainEdit:
    """What ROME finds: `W_out` gains `outer(u, v)`.

    Attributes:
        u: [d_mlp], of length 1, float64.
        v: [d_model], float64.
        loss_curve: (total, target, kl, decay) of every evaluation.
        deltas: [evaluation, d_model] at which the loss was evaluated.
        goal: v*, [d_model].
        key: the key in the denominator, which is answered with `goal`, [d_mlp].
        value: what the layer said to it before, [d_model].
        bare_value: v0, [d_model].
        base: what delta is added to under the bare prompt, whose length bounds that of delta: v0, or what leaves the
            block, [d_model].
    """

    u: Tensor
    v: Tensor
    loss_curve: list[tuple[float, float, float, float]]
    deltas: Tensor
    goal: Tensor
    key: Tensor
    value: Tensor
    bare_value: Tensor
    base: Tensor

    @property
    def update(self) -> Tensor:
        return torch.outer(self.u, self.v)


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    subject_last: int
    n_target: int


def plain_rome(
    model: Any,
    request: EditRequest,
    *,
    layer: int,
    second_moment: Tensor,
    templates: Sequence[str] = ("{}",),
    variant: str = "r-rome",
    bare_weight: float | None = None,
    essence_at: str = "last",
    prepend_bos: bool = False,
    v_num_grad_steps: int = 20,
    v_lr: float = 0.5,
    v_weight_decay: float = 0.5,
    clamp_norm_factor: float = 4.0,
    kl_factor: float = 0.0625,
    ridge: float = 1e-6,
    at: str = "w_out",
) -> PlainEdit:
    """Find one edit (SPEC 2).

    Args:
        model: a HookedTransformer or a TransformerBridge, in evaluation mode; its tokenizer pads on the right.
        request: what to edit.
        layer: the layer whose `W_out` is edited.
        second_moment: C, [d_mlp, d_mlp].
        templates: texts that end with `{}`, the bare one first.
        variant: which key is read and which is answered: `r-rome`, `rome` or `p-rome`.
        bare_weight: share of the bare prompt in the mean key and in the loss; None is an equal share.
        essence_at: where "{subject} is a" is read: at its `last` token, or at the `subject`'s last.
        prepend_bos: put BOS in front of every row.
        v_num_grad_steps: evaluations of the loss, at most; the last is followed by no step.
        v_lr: Adam's learning rate.
        v_weight_decay: factor of `|delta| / |base|^2`.
        clamp_norm_factor: `|delta|` never exceeds so many times `|base|`.
        kl_factor: factor of the divergence from the unedited model.
        ridge: what is added to C's diagonal, in units of its mean (the first of `second_moment.RIDGES`).
        at: delta is added to what leaves `W_out`, or at `block` to what leaves the block (MEMIT's compute_z).
    """
    tokenizer = model.tokenizer
    rows = []
    for template in templates:
        text, first = template.replace("{}", request.text), template.index("{}")
        last_character = first + request.subject_span[1] - 1
        rows.append(_tokenise(tokenizer, text, last_character, " " + request.target_new.strip(), prepend_bos))
    essence = _tokenise(tokenizer, f"{request.subject} is a", len(request.subject) - 1, "", prepend_bos)
    device = next(model.parameters()).device
    tokens, last = (x.to(device) for x in _padded([*rows, essence]))
    essence_column = len(essence.ids) - 1 if essence_at == "last" else essence.subject_last
    n = len(rows)
    weight = torch.full((n,), 1 / n, dtype=torch.float64)
    if bare_weight is not None and n > 1:
        weight = torch.tensor([bare_weight, *[(1 - bare_weight) / (n - 1)] * (n - 1)], dtype=torch.float64)
    key_hook, value_hook = f"blocks.{layer}.mlp.hook_post", _point(model, layer, "w_out")
    every = torch.arange(n + 1, device=device)

    with _frozen(model):
        keys, values = _keys_and_values(model, tokens, key_hook, value_hook)
        keys, values = keys[every, last], values[every, last]
        _, base = _keys_and_values(model, tokens, key_hook, _point(model, layer, at))
        base = base[0, last[0]]
        v0 = base.to(torch.promote_types(values.dtype, torch.float32))

        delta = torch.zeros_like(v0, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=v_lr)

        def add_delta(value: Tensor, hook: Any = None) -> Tensor:
            value = value.clone()
            value[every, last] = value[every, last] + delta.to(value.dtype)
            return value

        unedited: Tensor | None = None
        curve, deltas = [], []
        for step in range(v_num_grad_steps):
            optimiser.zero_grad()
            logits = forward(model, tokens, [(_point(model, layer, at), add_delta)])
            log_probs = logits.to(v0.dtype).log_softmax(dim=-1)
            said = [_mean_log_prob(log_probs[i], row) for i, row in enumerate(rows)]
            target = -(torch.stack(said) * weight.to(v0)).sum()
            now = log_probs[-1, essence_column]
            unedited = now.detach().clone() if unedited is None else unedited
            kl = kl_factor * F.kl_div(unedited, now, log_target=True, reduction="sum")
            decay = v_weight_decay * delta.norm() / v0.norm() ** 2
            loss = target + kl + decay
            curve.append((loss.item(), target.item(), kl.item(), decay.item()))
            deltas.append(delta.detach().clone())
            if loss < STOP_LOSS or step == v_num_grad_steps - 1:
                break
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                longest = clamp_norm_factor * v0.norm()
                if delta.norm() > longest:
                    delta *= longest / delta.norm()

    keys, values, weight = keys.double(), values.double(), weight.to(keys.device)
    mean_key, mean_value = weight @ keys[:-1], weight @ values[:-1]
    reading, answered, value = {
        "r-rome": (mean_key, mean_key, mean_value),
        "rome": (mean_key, keys[0], values[0]),
        "p-rome": (keys[0], keys[0], values[0]),
    }[variant]
    moment = second_moment.double()
    moment = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
    u = torch.linalg.solve(moment, reading.to(moment.device)).to(reading.device)
    u = u / u.norm()
    goal = values[0] + delta.detach().double()
    v = (goal - value) / (u @ answered)
    return PlainEdit(u, v, curve, torch.stack(deltas), goal, answered, value, values[0], base)


@torch.no_grad()
def says(
    model: Any, request: EditRequest, delta: Tensor, *, layer: int, templates: Sequence[str], at: str = "w_out"
) -> bool:
    """Whether a change says the target under every template: one whole forward a template, all logits."""
    for template in templates:
        text, first = template.replace("{}", request.text), template.index("{}")
        last_character = first + request.subject_span[1] - 1
        row = _tokenise(model.tokenizer, text, last_character, " " + request.target_new.strip(), False)

        def add_delta(x: Tensor, hook: Any = None, place: int = row.subject_last) -> Tensor:
            x = x.clone()
            x[0, place] = x[0, place] + delta.to(x.dtype)
            return x

        logits = forward(model, torch.tensor([row.ids], device=delta.device), [(_point(model, layer, at), add_delta)])
        for position in range(len(row.ids) - row.n_target, len(row.ids)):
            if logits[0, position - 1].argmax() != row.ids[position]:
                return False
    return True


def _point(model: Any, layer: int, at: str) -> str:
    """Name of the hook point behind `W_out`, or behind the block."""
    if at == "block":
        return f"blocks.{layer}.hook_resid_post"
    return f"blocks.{layer}." + ("mlp.out.hook_out" if hasattr(type(model), "boot_transformers") else "hook_mlp_out")


def _tokenise(tokenizer: Any, text: str, last_character: int, target: str, prepend_bos: bool) -> _Row:
    """A text and its target as one; the token of the subject's last character, and how many are the target's."""
    encoded = tokenizer(text + target, add_special_tokens=False, return_offsets_mapping=True)
    bos = [tokenizer.bos_token_id] if prepend_bos else []
    offsets = encoded["offset_mapping"]
    (*_, last) = (i for i, (first, end) in enumerate(offsets) if first <= last_character < end)
    return _Row([*bos, *encoded["input_ids"]], len(bos) + last, sum(end > len(text) for _, end in offsets))


def _padded(rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
    """Whole rows, padded on the right, [row pos], and where their subjects end, [row]."""
    longest = max(len(row.ids) for row in rows)
    tokens = [[*row.ids, *[row.ids[-1]] * (longest - len(row.ids))] for row in rows]
    return torch.tensor(tokens), torch.tensor([row.subject_last for row in rows])


def _mean_log_prob(log_probs: Tensor, row: _Row) -> Tensor:
    """Mean log-probability of a row's target, teacher forced; `log_probs` is [pos d_vocab]."""
    positions = range(len(row.ids) - row.n_target, len(row.ids))
    return torch.stack([log_probs[position - 1, row.ids[position]] for position in positions]).mean()


@torch.no_grad()
def _keys_and_values(model: Any, tokens: Tensor, key_hook: str, value_hook: str) -> tuple[Tensor, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(what: str) -> Any:
        return lambda x, hook=None: seen.update({what: x.detach().clone()})

    forward(model, tokens, [(key_hook, keep("key")), (value_hook, keep("value"))])
    return seen["key"], seen["value"]


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No gradients for the weights, as in the released code; gradients for what is optimised, whatever the caller's."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, want in wanted:
            parameter.requires_grad_(want)
