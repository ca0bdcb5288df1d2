"""The record that a picture is drawn from: figures know grids and labels, not models or traces."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class HeatMap:
    """One grid of probabilities, or of another measure, over tokens and layers, ready to draw.

    Attributes:
        stream: `resid`, `mlp`, `attn` or `heads`; it chooses the colours (the paper's purple, green and red; blue).
        scores: answer probability of each cell, as nested lists `[layer][pos]`, each between 0 and 1 where it is one.
        labels: one label a row: a position's token, the subject's already marked with a trailing `*`. Raw text: it may
            hold markup, control characters or HTML, which a renderer must show and never interpret.
        low: probability of the answer with nothing restored; the bottom of the colour scale.
        high: probability of the answer in the clean run.
        answer: the answer's text, raw.
        title: what was restored, in words.
        layer_title: what the layer axis counts, in words.
        measure: what the numbers are, in a word, where they are no probability of the answer, such as `AIE`.
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
    of_heads: bool = False
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
        """The cell (layer, pos) with the highest score; the first of them, layers first, when several share it."""
        return self.peak_of(range(len(self.labels)))

    def peak_of(self, positions: range) -> tuple[int, int]:
        """The same of some positions."""
        cells = ((layer, pos) for layer in range(len(self.scores)) for pos in positions)
        return max(cells, key=lambda cell: _number(self.score(*cell)))

    @cached_property
    def top(self) -> float:
        """The top of the colour scale: a restored state can beat the clean run, and must not run off the scale."""
        peak = _number(self.score(*self.peak))
        return max(_number(self.low if self.of_heads else self.high), peak)

    @property
    def blank(self) -> bool:
        """Whether the answer has no probability anywhere, so that no cell is the highest."""
        return not self.measure and self.top == 0

    def score(self, layer: int, pos: int) -> float:
        """The answer's probability with this cell restored."""
        return float(self.scores[layer][pos])

    def level(self, score: float) -> float:
        """Where a probability stands between `low` (0.0) and `top` (1.0); below `low` is 0.0, as in the paper."""
        reach = self.top - self.low
        return min(1.0, max(0.0, (_number(score) - self.low) / reach)) if reach > 0 else 0.0


def _number(score: float) -> float:
    """A score that can be compared: NaN, which half precision can yield, counts as nothing."""
    return float(score) if score == score else 0.0
