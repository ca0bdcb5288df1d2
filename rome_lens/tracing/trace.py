"""Causal tracing of one fact (Meng et al. 2022, section 2; the released code's `calculate_hidden_flow`)."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import STREAMS, as_backend
from rome_lens.errors import ArtefactError, ModelError, SettingError
from rome_lens.facts import Fact
from rome_lens.figures import HeatMap
from rome_lens.progress import Progress
from rome_lens.storage import load_tensors, save_tensors
from rome_lens.tokens import tokenise
from rome_lens.tracing.cells import check_window
from rome_lens.tracing.corruption import parse_noise, swapped_tokens
from rome_lens.tracing.grid import score_grids
from rome_lens.tracing.request import (
    check_known,
    check_length,
    check_settings,
    check_streams,
    noise_corruption,
    wanted_answer,
    with_own_answer,
)
from rome_lens.tracing.runs import Corruption

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_RESTORED = {"resid": "residual state", "mlp": "MLP outputs", "attn": "attention outputs"}


@dataclass(frozen=True, repr=False)
class CausalTrace:
    """The grids of one fact, and everything that they depend on.

    Attributes:
        scores: by stream (`resid`, `mlp`, `attn`) the answer's probability with one cell restored, averaged over the
            corrupted copies, [layer pos].
        low: the answer's probability with nothing restored, averaged over the corrupted copies.
        high: the answer's probability in the clean run.
        answer: the answer's text, its leading space included.
        answer_ids: the answer's token ids; of several the score is the joint probability.
        prompt: the text that was traced.
        subject: the part of it that was corrupted.
        tokens: the prompt's tokens, decoded one by one.
        token_ids: the prompt's token ids, BOS included.
        subject_span: positions (first, end) of the subject's tokens; the end is exclusive.
        noise: level of the noise in the units of `hook_embed` (its half width where it is uniform); None for `swap`.
        noise_rule: how the level was chosen, such as `s3`; None for `swap`.
        noise_replaces: the noise took the place of the embeddings instead of being added.
        swap: the subject that was put in place of the prompt's, or None.
        window: layers restored together around each layer of `mlp` and `attn`.
        samples: corrupted copies.
        seed: seed of the noise.
        prepend_bos: whether a BOS token stands in front.
        model_name: the model's name.
        backend: `hooked-transformer` or `transformer-bridge`.
        dtype: the model's, such as `float32`.
        device: where it ran, such as `cpu`.
        engine: `blocks` (the fast way) or `plain` (whole forwards); the numbers are the same.
        notes: why it was not `blocks`.
        seconds: how long the trace took.
    """

    scores: Mapping[str, Float[Tensor, "layer pos"]]
    low: float
    high: float
    answer: str
    answer_ids: tuple[int, ...]
    prompt: str
    subject: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    subject_span: tuple[int, int]
    noise: float | None
    noise_rule: str | None
    noise_replaces: bool
    swap: str | None
    window: int
    samples: int
    seed: int
    prepend_bos: bool
    model_name: str
    backend: str
    dtype: str
    device: str
    engine: str
    notes: tuple[str, ...]
    seconds: float

    def __repr__(self) -> str:
        peaks = ", ".join(f"{s} {self.scores[s].max():.3f} at {self.peak(s)}" for s in self.scores)
        return (
            f"CausalTrace({self.prompt!r} -> {self.answer!r}, {self.model_name}, low {self.low:.3f}, "
            f"high {self.high:.3f}, peaks by (layer, pos): {peaks})"
        )

    @property
    def total_effect(self) -> float:
        """What the corruption costs: `high - low`."""
        return self.high - self.low

    def effect(self, stream: str) -> Float[Tensor, "layer pos"]:
        """The indirect effect of every cell of a stream: `score - low`.

        Raises:
            SettingError: the stream was not traced.
        """
        return self._grid(stream) - self.low

    def peak(self, stream: str, *, positions: range | None = None) -> tuple[int, int]:
        """The cell (layer, pos) of a stream with the highest score, of all positions or of some.

        Raises:
            SettingError: the stream was not traced.
        """
        wanted = range(len(self.tokens)) if positions is None else positions
        grid = self._grid(stream)[:, list(wanted)]
        layer, index = divmod(int(grid.argmax()), grid.shape[1])
        return layer, wanted[index]

    def _grid(self, stream: str) -> Float[Tensor, "layer pos"]:
        if stream not in self.scores:
            raise SettingError(f"the stream {stream!r} was not traced; this trace has {', '.join(self.scores)}")
        return self.scores[stream]

    def marked_tokens(self) -> tuple[str, ...]:
        """The prompt's tokens, the subject's marked with a `*` as the paper's figures mark them."""
        first, end = self.subject_span
        return tuple(f"{token}*" if first <= i < end else token for i, token in enumerate(self.tokens))

    def heat_maps(self) -> tuple[HeatMap, ...]:
        """One picture's worth of numbers and labels a stream."""
        return tuple(
            HeatMap(
                stream=stream,
                scores=grid.tolist(),
                labels=self.marked_tokens(),
                low=self.low,
                high=self.high,
                answer=self.answer,
                title=f"Restoring the {_RESTORED[stream]}",
                layer_title="restored layer" if stream == "resid" else f"centre of {self.window} restored layers",
            )
            for stream, grid in self.scores.items()
        )

    def figure(self) -> "go.Figure":
        """The grids as an interactive plotly figure, a panel a stream."""
        from rome_lens.figures.plotly_figure import heat_map_figure

        return heat_map_figure(self.heat_maps(), title=f"{self.prompt} [{self.answer.strip()}] · {self.model_name}")

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a cell: stream, layer, pos, token, in_subject, score, effect."""
        import pandas as pd

        first, end = self.subject_span
        rows = [
            (stream, layer, pos, self.tokens[pos], first <= pos < end, score, score - self.low)
            for stream, grid in self.scores.items()
            for layer, row in enumerate(grid.tolist())
            for pos, score in enumerate(row)
        ]
        return pd.DataFrame(rows, columns=["stream", "layer", "pos", "token", "in_subject", "score", "effect"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: the grids as nested lists `[layer][pos]`."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scores"}
        return {**plain, "scores": {stream: grid.tolist() for stream, grid in self.scores.items()}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a file (safetensors; its metadata holds all that is no grid).

        Raises:
            ArtefactError: the file cannot be written.
        """
        settings = {k: v for k, v in self.to_dict().items() if k != "scores"}
        save_tensors(path, kind="causal_trace", tensors=dict(self.scores), settings=settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CausalTrace":
        """Read a file that `save` wrote.

        Raises:
            ArtefactError: there is no such file, or it is none of ours.
        """
        tensors, settings = load_tensors(path, kind="causal_trace")
        known = {f.name for f in fields(cls)}
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known}
        if not set(tensors) & set(STREAMS):
            raise ArtefactError(f"cannot use {os.fspath(path)!r}: a causal_trace without a grid")
        try:
            return cls(**values, scores={stream: tensors[stream] for stream in STREAMS if stream in tensors})
        except TypeError as error:
            raise ArtefactError(
                f"cannot use {os.fspath(path)!r}: a causal_trace with fields missing ({error})"
            ) from error


@torch.no_grad()
def causal_trace(
    model: Any,
    prompt: str,
    *,
    subject: str,
    streams: Sequence[str] = STREAMS,
    window: int | None = None,
    samples: int = 10,
    noise: float | str | None = None,
    noise_replaces: bool = False,
    swap: str | None = None,
    seed: int = 1,
    prepend_bos: bool = False,
    answer: str | None = None,
    expect: str | None = None,
    occurrence: int = 1,
    facts: Sequence[Fact] | None = None,
    engine: str = "auto",
    progress: Progress | None = None,
) -> CausalTrace:
    """Show where a model keeps a fact: corrupt the subject, restore one state at a time, and see what brings it back.

    Args:
        model: a HookedTransformer or a TransformerBridge, processed weights or not.
        prompt: a text that the model continues with the answer.
        subject: the part of the prompt to corrupt.
        streams: what to restore: `resid` (the block's output), `mlp` and `attn` (windows of layers).
        window: layers restored together in `mlp` and `attn`; 10 covers l-5 .. l+4, as the released code has it. None
            is 10, or all layers of a smaller model.
        samples: corrupted copies to average over.
        noise: None or `s3` (3 times the standard deviation of the facts' subject embeddings), a number (absolute), `m`
            (Gaussian fitted to text), `tK` (Student-t of K degrees of freedom) or `uX` (uniform +-X).
        noise_replaces: assign the noise instead of adding it.
        swap: corrupt by putting this subject, of as many tokens, in place of the prompt's, instead of by noise.
        seed: seed of the noise; 1 is the released code's.
        prepend_bos: put BOS in front. The released code does not; TransformerLens does by default.
        answer: trace this answer's probability, of one token or several; by default the model's own next token.
        expect: the same, but refuse if the model does not predict it.
        occurrence: which occurrence of the subject in the prompt: 1 is the first, -1 the last.
        facts: the facts that `s`, `m` and `t` are measured on: by default those that ship with rome_lens.
        engine: `auto`, or `plain` to run whole forwards (slow; the same numbers).
        progress: called with (done, total, what) now and then.

    Returns:
        The grids with all that they depend on. Cells before the subject equal `low` exactly.

    Raises:
        SettingError: a setting is out of its range.
        PromptError: the prompt is empty or too long; SubjectError: the subject is not in it; AnswerError: no answer.
        FactNotKnownError: the model does not predict `expect`.
        ModelError: the object is no decoder of TransformerLens, or lacks a stream that was asked for.
    """
    started = time.perf_counter()
    check_settings(prompt, subject, streams=streams, occurrence=occurrence, samples=samples, seed=seed, engine=engine)
    wanted, rule = wanted_answer(answer, expect), parse_noise(noise, replace=noise_replaces)
    backend = as_backend(model)
    streams = check_streams(backend, streams)
    window = min(10, backend.n_layers) if window is None else check_window(window, backend.n_layers)
    if swap is not None and (noise is not None or noise_replaces):
        raise SettingError(f"swap is {swap!r} and a noise rule was given too; the subject is broken by one of them")
    text = tokenise(backend.tokenizer, prompt, subject, answer=wanted, occurrence=occurrence, prepend_bos=prepend_bos)
    check_length(backend, text)
    swapped = None
    if swap is not None:
        swapped = swapped_tokens(backend.tokenizer, text, prompt, subject, swap=swap, occurrence=occurrence)
    with backend.evaluating():
        if wanted is None:
            text = with_own_answer(backend, text)
        elif expect is not None:
            check_known(backend, text)
        tokens = torch.tensor(text.ids[:-1], device=backend.device)
        if swapped is not None:
            fitted, broken = None, swapped[: len(tokens)].to(backend.device)
            corruption = Corruption(text.subject_span, None, False, broken)
        else:
            fitted, corruption = noise_corruption(backend, rule, text, tokens, facts=facts, samples=samples, seed=seed)
        grids = score_grids(
            backend,
            tokens,
            corruption,
            torch.tensor(text.answer_ids, device=backend.device),
            n_prompt=text.n_prompt,
            streams=streams,
            window=window,
            engine=engine,
            progress=progress,
        )
    if not math.isfinite(grids.high + grids.low):
        raise ModelError(
            f"{backend.model_name} gives numbers that are not finite in {backend.dtype}; load it in float32"
        )
    return CausalTrace(
        scores=grids.scores,
        low=grids.low,
        high=grids.high,
        answer=text.answer,
        answer_ids=text.answer_ids,
        prompt=prompt,
        subject=subject.strip(),
        tokens=text.tokens,
        token_ids=text.ids[: text.n_prompt],
        subject_span=text.subject_span,
        noise=None if fitted is None else fitted.level,
        noise_rule=None if fitted is None else str(rule),
        noise_replaces=fitted is not None and noise_replaces,
        swap=swap,
        window=window,
        samples=corruption.n_samples,
        seed=seed,
        prepend_bos=prepend_bos,
        model_name=backend.model_name,
        backend=backend.name,
        dtype=str(backend.dtype).removeprefix("torch."),
        device=str(backend.device),
        engine=grids.engine,
        notes=grids.notes,
        seconds=time.perf_counter() - started,
    )
