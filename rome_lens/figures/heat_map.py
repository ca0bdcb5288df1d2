"""The record that a picture is drawn from: figures know grids and labels, not models or traces."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class HeatMap:
    """One grid of probabilities, or of another measure, over tokens and layers, ready to draw.

    Attributes:
        stream: `resid`, `mlp`, `attn` or `heads`; it chooses the colours (the paper's purple, green and red; blue).
        scores: what each cell has, as nested lists `[layer][pos]`: a probability of the answer, or another measure.
        labels: one label a row: a position's token, the subject's already marked with a trailing `*`. Raw text: it may
            hold markup, control characters or HTML, which a renderer must show and never interpret.
        low: what is measured with nothing restored; the bottom of the colour scale.
        high: the same in the clean run.
        answer: the answer's text, raw.
        title: what was restored, in words.
        layer_title: what the layer axis counts, in words.
        measure: what the numbers are, in a few words, where they are no probability of the answer, such as `AIE`.
        of_effects: the numbers are effects themselves, which neither run has.
        falls: they go down as more is restored, so that the lowest is the peak.
        first: the position of the first row, where those in front of it are left out.
        said: what the model says with each cell restored, in words, `[layer][pos]`; empty where that is not known.
        of_heads: the rows are heads of attention, and no tokens. One head brings back little of what all of them do, so
            the scale ends with the highest of them, and not with the clean run.

    Raises:
        ValueError: the grid has no cell, or a layer holds another number of scores than there are labels.
    """

    stream: str
    scores: Sequence[Sequence[float]]
    labels: Sequence[str]
    low: float
    high: float
    answer: str
    title: str
    layer_title: str
    measure: str = ""
    of_effects: bool = False
    falls: bool = False
    of_heads: bool = False
    first: int = 0
    said: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        if len(self.scores) == 0 or len(self.labels) == 0:
            raise ValueError(f"a heat map needs a cell: got {len(self.scores)} layers and {len(self.labels)} labels")
        for layer, row in enumerate(self.scores):
            if len(row) != len(self.labels):
                raise ValueError(
                    f"layer {layer} has {len(row)} scores for {len(self.labels)} labels: scores are [layer][pos]"
                )

    @cached_property
    def peak(self) -> tuple[int, int]:
        """The cell (layer, pos) with the highest score; the first of them, layers first, when several share it.

        Of a measure that falls it is the lowest.
        """
        return self.peak_of(range(len(self.labels)))

    def peak_of(self, positions: range) -> tuple[int, int]:
        """The same of some positions."""
        cells = ((layer, pos) for layer in range(len(self.scores)) for pos in positions)
        return max(cells, key=lambda cell: self._risen(self.score(*cell)))

    @cached_property
    def top(self) -> float:
        """The end of the colour scale: a restored state can beat the clean run, and must not run off the scale."""
        peak = self.score(*self.peak)
        return max(self.low if self.of_heads else self.high, peak, key=self._risen)

    @property
    def blank(self) -> bool:
        """Whether the answer has no probability anywhere, so that no cell is the highest."""
        return not self.measure and self.top == 0

    def score(self, layer: int, pos: int) -> float:
        """What is measured with this cell restored."""
        return float(self.scores[layer][pos])

    def level(self, score: float) -> float:
        """Where a score stands between `low` (0.0) and `top` (1.0); below `low` is 0.0, as in the paper."""
        reach = self._risen(self.top)
        return min(1.0, max(0.0, self._risen(score) / reach)) if reach > 0 else 0.0

    def shared_scale(self, maps: Iterable["HeatMap"]) -> tuple[float, float]:
        """The lower and the upper end of the colour scale that it shares with others of a figure.

        A shade then means the same in all of them. Single heads have a scale of their own, as has a grid of effects.
        """
        sharing = [self] if self.of_effects else [other for other in maps if other.of_heads == self.of_heads]
        bounds = [end for other in sharing for end in (other.low, other.top)]
        return min(bounds), max(bounds)

    def _risen(self, score: float) -> float:
        """How far a score is from `low`, to where more is restored; NaN, which half precision can yield, not at all."""
        risen = self.low - score if self.falls else score - self.low
        return risen if risen == risen else 0.0
