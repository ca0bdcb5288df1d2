"""What a trace found: grids of probabilities, with everything that they depend on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import HEADS, STREAMS
from rome_lens.errors import ArtefactError, SettingError
from rome_lens.figures import format_probability
from rome_lens.storage import load_tensors, save_tensors
from rome_lens.tracing.measures import PROBABILITY
from rome_lens.tracing.patching import patching_result
from rome_lens.tracing.pictures import TracePictures
from rome_lens.tracing.said import SaidGrids, grid_name

if TYPE_CHECKING:
    import pandas as pd

_UNEDITED = "unedited."
_GRIDS = ("scores", "severed", "said")


@dataclass(frozen=True, eq=False, repr=False)
class CausalTrace(TracePictures):
    """The grids of one fact, and everything that they depend on.

    Traces are equal when all that they hold is, to the bit: one that was saved and loaded is the one that it was; of
    two runs `seconds` differs.

    Attributes:
        scores: by stream (`resid`, `mlp`, `attn`) the answer's probability with one cell restored, averaged over the
            corrupted copies, [layer pos]; of `heads`, at one token, [layer head].
        severed: by severed stream (`mlp`, `attn`) the same for the residual stream, [layer pos], while that stream's
            outputs at the cell's token are held at the corrupted run's in all layers (paper, figure 3); empty where
            nothing was severed.
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
        engine: `blocks` (the fast way) or `plain` (whole forwards), whose numbers are the same; or `attribution`, whose
            scores are an approximation.
        notes: why, where `auto` could not take `blocks`; and that there is little to bring back, where the answer keeps
            half of its probability or more with the subject corrupted.
        seconds: how long the trace took.
        edits: the edits that the model carried while it was traced, in words; empty for the model as it is.
        said: what the model says in each cell (`says`); None for an approximation, and in files of earlier versions.
        occurrence: which occurrence of the subject in the prompt: 1 is the first, -1 the last.
        heads_at: the position at which `heads` were restored; None where they were not.
        heads_window: layers in which the heads of one number were restored together.
        unedited: the same trace of the model without these edits: same answer, same noise. None without edits.
        measure: what the scores are: `probability`, `log_probability`, `logit_difference`, `kl`, or what one's own
            function is called, with `()` behind it. Scores, low and high are then that instead of a probability.
        question: of a chat model, what it was asked; `prompt` is then all that it read. None otherwise.
        reply: what the assistant's reply begins with, if that was given.
        shown_from: the first position that figures show, the question's; what stands in front cannot be changed.
        against: the other answer of `logit_difference`, its leading space included. against_id: its token.
    """

    scores: Mapping[str, Float[Tensor, "layer column"]]
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
    edits: tuple[str, ...] = ()
    unedited: "CausalTrace | None" = None
    severed: Mapping[str, Float[Tensor, "layer pos"]] = field(default_factory=dict)
    said: SaidGrids | None = None
    occurrence: int = 1
    heads_at: int | None = None
    heads_window: int | None = None
    question: str | None = None
    reply: str | None = None
    shown_from: int = 0
    measure: str = "probability"
    against: str | None = None
    against_id: int | None = None

    def __repr__(self) -> str:
        peaks = ", ".join(
            f"{stream} {format_probability(float(grid[layer, column]))} at "
            f"({layer}, {'head ' if stream == HEADS else ''}{column})"
            for stream, grid in self.scores.items()
            for layer, column in (self.peak(stream),)
            if self.measure != PROBABILITY.name or max(self.high, float(grid[layer, column]))
        )
        how = ", approximated" if self.approximate else ""
        return (
            f"CausalTrace({self.asked!r} -> {self.answer!r}, {self.model_name}{self._measured}, "
            f"low {format_probability(self.low)}, high {format_probability(self.high)}, "
            f"peaks by (layer, pos){how}: {peaks or 'none, all scores are 0'})"
        )

    @property
    def _measured(self) -> str:
        """What was read, in words, where it is no probability."""
        return "" if self.measure == PROBABILITY.name else f", {self.measure_words}"

    @property
    def total_effect(self) -> float:
        """What the corruption costs: `high - low`."""
        return self.high - self.low

    def effect(self, stream: str, *, severed: str | None = None) -> Float[Tensor, "layer column"]:
        """The indirect effect of every cell of a stream: `score - low`, [layer pos]; of `heads` [layer head].

        Args:
            stream: `resid`, `mlp`, `attn` or `heads`.
            severed: the stream that was severed (`mlp`, `attn`) while `resid` was restored.

        Raises:
            SettingError: that was not traced.
        """
        return (self._grid(stream) if severed is None else self._severed_grid(stream, severed)) - self.low

    def normalized(self, stream: str, *, severed: str | None = None) -> Float[Tensor, "layer column"]:
        """The effect of every cell as a share of the total one: `(score - low) / (high - low)`.

        0 is what the corrupted run has and 1 what the clean one has, as in TransformerLens's `PatchingResult`. Where
        the corruption changes nothing there is no such share: `nan`, or infinite.

        Args:
            stream: as `effect` takes it.
            severed: as `effect` takes it.

        Raises:
            SettingError: that was not traced.
        """
        return self.effect(stream, severed=severed) / self.total_effect

    def _severed_grid(self, stream: str, severed: str) -> Float[Tensor, "layer pos"]:
        if stream != "resid" or severed not in self.severed:
            raise SettingError(
                f"{stream!r} with {severed!r} severed was not traced; ask causal_trace for severed=({severed!r},) and "
                "for the effect of 'resid'"
            )
        return self.severed[severed]

    def peak(self, stream: str, *, positions: range | None = None) -> tuple[int, int]:
        """The cell (layer, pos) of a stream with the highest score, of all or of some; for heads (layer, head).

        Of a measure that falls as more is restored (`falls`) it is the lowest.

        Raises:
            SettingError: the stream was not traced, or positions are given for heads, which were restored at one.
        """
        if positions is not None and stream == HEADS:
            raise SettingError(f"heads were restored at position {self.heads_at} alone; leave positions out")
        grid = self._grid(stream)
        among = range(grid.shape[1]) if positions is None else positions
        grid = grid[:, list(among)]
        best = grid.argmin() if self.falls else grid.argmax()
        layer, index = divmod(int(best), grid.shape[1])
        return layer, among[index]

    def says(
        self, stream: str, layer: int | None = None, column: int | None = None, *, severed: str | None = None
    ) -> list[tuple[str, float]]:
        """The most probable next tokens with one cell restored, by their mean over the corrupted copies.

        They stand behind the prompt: of an answer of several tokens, in the place of its first. Where memory held some
        of the copies at a time, only those are named that are certain to be the most probable of all copies.

        Args:
            stream: `resid`, `mlp`, `attn` or `heads`; or, without a cell, `clean` and `corrupted` for the runs with
                nothing restored.
            layer: the cell's layer.
            column: its position; for `heads` its head. Negative numbers count from the end.
            severed: the stream that was severed (`mlp`, `attn`) while `resid` was restored.

        Returns:
            Tokens and their probabilities, the most probable first: five where the vocabulary has as many.

        Raises:
            SettingError: the trace has no such cell, or none says anything (an approximation, an older file).
        """
        if self.said is None:
            why = "an approximation says nothing; trace with another engine" if self.approximate else "trace again"
            raise SettingError(f"this trace does not hold what its cells say: {why}")
        if severed is not None:
            self._severed_grid(stream, severed)
        return self.said.asked(grid_name(stream, severed), layer, column)

    def _grid(self, stream: str) -> Float[Tensor, "layer column"]:
        if stream not in self.scores:
            raise SettingError(f"the stream {stream!r} was not traced; this trace has {', '.join(self.scores)}")
        return self.scores[stream]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CausalTrace):
            return NotImplemented
        plain = (f.name for f in fields(self) if f.name not in ("scores", "severed"))
        return all(getattr(self, name) == getattr(other, name) for name in plain) and all(
            _equal_grids(getattr(self, name), getattr(other, name)) for name in ("scores", "severed")
        )

    def __hash__(self) -> int:
        return hash((self.prompt, self.subject, self.answer_ids, self.model_name, self.seed, self.low, self.high))

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a cell: stream, severed, layer, pos, head, token, in_subject, score, effect; with edits unedited_score.

        `severed` is empty but for the cells of the severed grids, whose stream is `resid`; `head` but for heads. Then
        come `metric`, `value` (the score once more) and `normalized`, as TransformerLens's `PatchingResult` names them.
        """
        import pandas as pd

        first, end = self.subject_span
        columns = ["stream", "severed", "layer", "pos", "head", "token", "in_subject", "score"]
        rows = []
        for stream, severed, grid in self._grids():
            for layer, row in enumerate(grid.tolist()):
                for column, score in enumerate(row):
                    pos, head = (column, None) if self.heads_at is None or stream != HEADS else (self.heads_at, column)
                    where = (pos, head, self.tokens[pos], first <= pos < end)
                    rows.append((stream, severed or "", layer, *where, score))
        table = pd.DataFrame(rows, columns=columns).astype({"head": "Int64"})
        table["effect"] = table["score"] - self.low
        table["metric"], table["value"] = self.measure, table["score"]
        table["normalized"] = table["effect"] / self.total_effect
        if self.unedited is not None:
            table["unedited_score"] = self.unedited.to_dataframe()["score"]
        return table

    def to_patching_result(self, stream: str | None = None) -> Any:
        """The grids as TransformerLens's own result of activation patching, of version 4.3 on.

        Its `values` are the scores and its `baseline` is `low`: its `effect()` and `normalized(high)` are the trace's.

        Args:
            stream: one stream: axes `layer` and `pos`, of heads `layer` and `head`. None is all that were restored at
                every token, behind one another on an axis `patch_type`; where there is only one stream, that one.

        Raises:
            SettingError: the stream was not traced.
            ModelError: the TransformerLens that is installed is older.
        """
        several = [name for name in self.scores if name != HEADS]
        chosen = [stream] if stream is not None else several or list(self.scores)
        return patching_result({name: self._grid(name) for name in chosen}, baseline=self.low, metric=self.measure)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it: the grids as nested lists `[layer][pos]`, of heads `[layer][head]`.

        What the cells say stands under `said`, by grid: `[layer][pos]`, tokens and their probabilities.
        """
        scores, severed = ({name: x.tolist() for name, x in grids.items()} for grids in (self.scores, self.severed))
        said = None if self.said is None else self.said.to_dict()
        unedited = None if self.unedited is None else self.unedited.to_dict()
        return {**self._plain(), "unedited": unedited, "scores": scores, "severed": severed, "said": said}

    def _plain(self) -> dict[str, Any]:
        """All that is no grid, of this trace alone."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*_GRIDS, "unedited")}

    def _settings(self) -> dict[str, Any]:
        """What a file holds beside the grids."""
        unedited = None if self.unedited is None else self.unedited._settings()
        return {**self._plain(), "unedited": unedited, "said_tokens": () if self.said is None else self.said.tokens}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to a file (safetensors; its metadata holds all that is no grid).

        Raises:
            ArtefactError: the file cannot be written.
        """
        save_tensors(path, kind="causal_trace", tensors=self._tensors(), settings=self._settings())

    def _tensors(self) -> dict[str, Tensor]:
        severed = {grid_name("resid", stream): grid for stream, grid in self.severed.items()}
        unedited = {} if self.unedited is None else self.unedited._tensors()
        said = {} if self.said is None else self.said.tensors()
        return {**self.scores, **severed, **said, **{f"{_UNEDITED}{name}": grid for name, grid in unedited.items()}}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "CausalTrace":
        """Read a file that `save` wrote.

        Raises:
            ArtefactError: there is no such file, or it is none of ours.
        """
        tensors, settings = load_tensors(path, kind="causal_trace")
        if not set(tensors) & set(STREAMS):
            raise ArtefactError(f"cannot use {os.fspath(path)!r}: a causal_trace without a grid")
        try:
            return cls._of(settings, tensors)
        except (AttributeError, TypeError) as error:
            raise ArtefactError(
                f"cannot use {os.fspath(path)!r}: a causal_trace with fields missing ({error})"
            ) from error

    @classmethod
    def _of(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "CausalTrace":
        known = {f.name for f in fields(cls)} - {*_GRIDS, "unedited"}
        said = SaidGrids.from_tensors(settings.get("said_tokens", ()), tensors)
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items() if k in known}
        scores = {stream: tensors[stream] for stream in STREAMS if stream in tensors}
        severed = {stream: tensors[name] for stream in STREAMS if (name := grid_name("resid", stream)) in tensors}
        unedited = settings.get("unedited")
        if unedited is not None:
            grids = {name.removeprefix(_UNEDITED): x for name, x in tensors.items() if name.startswith(_UNEDITED)}
            unedited = cls._of(unedited, grids)
        return cls(**values, scores=scores, severed=severed, said=said, unedited=unedited)


def _equal_grids(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether the same streams have the same numbers, wherever they lie."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name].cpu(), other[name].cpu()) for name in one
    )
