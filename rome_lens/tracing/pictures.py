"""A trace in pictures: grids ready to draw, a plotly figure, and a page to explore them."""

import os
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import HEADS
from rome_lens.figures import HeatMap, format_probability, visible
from rome_lens.figures.explorer import explorer_page
from rome_lens.figures.plotly_figure import heat_map_figure
from rome_lens.storage import write_whole
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.labels import layer_title_of, title_of
from rome_lens.tracing.measures import PROBABILITY, falls, measure_in_words
from rome_lens.tracing.said import SaidGrids, grid_name

_BEFORE, _AFTER = "before the edit", "after the edit"
# What a page's table of settings holds.
_SETTINGS = (
    "prompt",
    "question",
    "reply",
    "subject",
    "occurrence",
    "answer",
    "measure",
    "against",
    "noise",
    "noise_rule",
    "noise_replaces",
    "swap",
    "samples",
)
_SETTINGS += ("seed", "window", "heads_at", "heads_window", "prepend_bos", "model_name", "backend", "dtype", "device")
_SETTINGS += ("engine", "seconds")


class TracePictures:
    """What is drawn of a trace, whose fields these are."""

    scores: Mapping[str, Float[Tensor, "layer column"]]
    severed: Mapping[str, Float[Tensor, "layer pos"]]
    said: SaidGrids | None
    subject: str
    noise: float | None
    noise_rule: str | None
    noise_replaces: bool
    swap: str | None
    samples: int
    seed: int
    prepend_bos: bool
    backend: str
    dtype: str
    device: str
    seconds: float
    low: float
    high: float
    measure: str
    answer: str
    against: str | None
    prompt: str
    occurrence: int
    question: str | None
    reply: str | None
    tokens: tuple[str, ...]
    subject_span: tuple[int, int]
    shown_from: int
    heads_at: int | None
    heads_window: int | None
    window: int
    model_name: str
    engine: str
    edits: tuple[str, ...]
    notes: tuple[str, ...]
    unedited: Any

    @property
    def asked(self) -> str:
        """What was asked, for people to read: the prompt, or the question and what the reply begins with."""
        return self.prompt if self.question is None else " ".join(filter(None, (self.question, self.reply)))

    @property
    def measure_words(self) -> str:
        """What the scores are, in words, such as `p(Paris)`."""
        return measure_in_words(self.measure, self.answer, self.against)

    @property
    def falls(self) -> bool:
        """Whether the measure goes down as more is restored, as `kl` does: peaks are the lowest scores then.

        Of one's own function the clean and the corrupted run tell.
        """
        return falls(self.measure, low=self.low, high=self.high)

    @property
    def approximate(self) -> bool:
        """Whether the scores are attribution patching's, and no exact ones."""
        return self.engine == ATTRIBUTION

    def _grids(self) -> Iterator[tuple[str, str | None, Float[Tensor, "layer column"]]]:
        """All grids: what was restored, and what was severed meanwhile."""
        yield from ((stream, None, grid) for stream, grid in self.scores.items())
        yield from (("resid", stream, grid) for stream, grid in self.severed.items())

    def marked_tokens(self) -> tuple[str, ...]:
        """The prompt's tokens, the subject's marked with a `*` as the paper's figures mark them."""
        first, end = self.subject_span
        return tuple(f"{token}*" if first <= i < end else token for i, token in enumerate(self.tokens))

    def heat_maps(self) -> tuple[HeatMap, ...]:
        """One picture's worth of numbers and labels a stream; with edits, those of the unedited model come first."""
        before = () if self.unedited is None else self.unedited._maps(self.falls, f", {_BEFORE}")
        return (*before, *self._maps(self.falls, "" if self.unedited is None else f", {_AFTER}"))

    def _maps(self, falls: bool, when: str = "") -> tuple[HeatMap, ...]:
        return tuple(
            HeatMap(
                stream=stream,
                scores=grid[:, self._first_row(stream) :].tolist(),
                labels=self._labels(stream, grid.shape[1]),
                first=self._first_row(stream),
                low=self.low,
                high=self.high,
                answer=self.answer,
                title=title_of(stream, severed=severed, approximate=self.approximate, at=self._place(stream)) + when,
                layer_title=layer_title_of(stream, (self.heads_window or 1) if stream == HEADS else self.window),
                of_heads=stream == HEADS,
                measure="" if self.measure == PROBABILITY.name else self.measure_words,
                falls=falls,
                said=self._said_in_words(stream, severed),
            )
            for stream, severed, grid in self._grids()
        )

    def _labels(self, stream: str, n_columns: int) -> tuple[str, ...]:
        """What the rows of a figure of a stream are called."""
        if stream == HEADS:
            return tuple(f"head {head}" for head in range(n_columns))
        return self.marked_tokens()[self.shown_from :]

    def _first_row(self, stream: str) -> int:
        """The first column of a stream's grid that a figure shows."""
        return 0 if stream == HEADS else self.shown_from

    def _said_in_words(self, stream: str, severed: str | None) -> list[list[str]]:
        """What is said in each cell that a figure shows; empty where nothing is known of it."""
        words = [] if self.said is None else self.said.in_words(grid_name(stream, severed))
        return [row[self._first_row(stream) :] for row in words]

    def _place(self, stream: str) -> str:
        """The token of a stream that is restored at one alone."""
        return self.marked_tokens()[self.heads_at] if stream == HEADS and self.heads_at is not None else ""

    def figure(self) -> go.Figure:
        """The grids as an interactive plotly figure, a panel a grid; with edits, a row before and a row after."""
        edited = "".join(f" · edited: {edit}" for edit in self.edits)
        title = f"{self.asked} [{self.answer.strip()}] · {self.model_name}{edited}"
        return heat_map_figure(self.heat_maps(), title=title, columns=len(self.scores) + len(self.severed))

    @property
    def corruption_words(self) -> str:
        """How the subject was corrupted, for people to read."""
        if self.noise is None:
            return f"subject swapped for {self.swap!r}"
        rule = self.noise_rule
        named = "" if rule is not None and rule[:1].isdigit() else f" ({rule})"
        how, copies = "replaced by" if self.noise_replaces else "under", "sample" if self.samples == 1 else "samples"
        return f"subject {how} noise of {self.noise:.4g}{named}, {self.samples} {copies}, seed {self.seed}"

    def to_html(self) -> str:
        """A page to explore the trace, in one file that asks for nothing from a network.

        It shows every grid; what a cell says stands beside it where the pointer or the keyboard is, and a click on a
        cell, a token or a layer compares it over all grids; with edits, before and after stand side by side.
        """
        states = {"": self} if self.unedited is None else {_BEFORE: self.unedited, _AFTER: self}
        runs = [
            f"{self.measure_words}{' ' * bool(name)}{name}: {format_probability(trace.high, 4)} in the clean run, "
            f"{format_probability(trace.low, 4)} with the subject corrupted"
            for name, trace in states.items()
        ]
        return explorer_page(
            {name: trace._maps(self.falls) for name, trace in states.items()},
            heading=f"{self.asked} [{self.answer.strip()}]",
            lines=[f"{self.model_name}, {self.corruption_words}", *(f"edited: {edit}" for edit in self.edits), *runs],
            notes=[
                *(() if self.unedited is None else (f"{_BEFORE}: {note}" for note in self.unedited.notes)),
                *self.notes,
            ],
            measure=self.measure_words,
            settings={name: getattr(self, name) for name in _SETTINGS},
        )

    def _repr_html_(self) -> str:
        """The page, as a notebook shows a trace."""
        return (
            f'<iframe srcdoc="{escape(self.to_html())}" title="{escape(visible(self.asked))}" loading="lazy" '
            'style="width: 100%; height: 620px; border: 0" sandbox="allow-scripts"></iframe>'
        )

    def write_html(self, path: str | os.PathLike[str]) -> None:
        """Write what `to_html` gives.

        Raises:
            ArtefactError: the file cannot be written; nothing is left behind.
        """
        write_whole(path, self.to_html().encode())
