"""Which states are restored in which cell of a grid, and what is known of a cell without running it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rome_lens.backends import HEADS
from rome_lens.checks import check_window


@dataclass(frozen=True)
class Cell:
    """One cell of one stream's grid: the layers `first .. end - 1` are restored at position `pos`.

    Attributes:
        stream: `resid`, `mlp`, `attn`, `heads` or `neurons`: what is restored.
        layer: the cell's row in the grid; for a window, its centre.
        pos: the cell's token.
        first: first restored layer.
        end: one past the last restored layer.
        severed: `mlp` or `attn` where that stream's outputs at `pos` are held at the corrupted run's, in all layers
            (paper, figure 3); None where nothing is held.
        parts: for `heads` and `neurons`, which of them are restored: pairs of a layer and a number.
    """

    stream: str
    layer: int
    pos: int
    first: int
    end: int
    severed: str | None = None
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def column(self) -> int:
        """The cell's column in the grid: its token, or its head."""
        return self.parts[0][1] if self.parts else self.pos

    def parts_of_layers(self) -> set[tuple[str, int]]:
        """Where it restores parts of an output: the stream, and layers."""
        return {(self.stream, layer) for layer, _ in self.parts}

    def parts_at(self, layer: int) -> list[int]:
        """The heads or neurons of one layer that are restored."""
        return [number for at, number in self.parts if at == layer]


def window_layers(layer: int, window: int, n_layers: int) -> range:
    """Layers that a window centred at `layer` restores, as the released code counts them: w = 10 gives l-5 .. l+4.

    Args:
        layer: the centre.
        window: how many layers, before the ends of the model cut the window short.
        n_layers: layers of the model.
    """
    return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))


def plan_cells(
    stream: str, *, n_layers: int, positions: Sequence[int], window: int, severed: str | None = None
) -> list[Cell]:
    """All cells of one stream at these positions; the residual stream is restored one layer at a time."""
    cells = []
    for pos in positions:
        for layer in range(n_layers):
            layers = range(layer, layer + 1) if stream == "resid" else window_layers(layer, window, n_layers)
            cells.append(Cell(stream, layer, pos, layers.start, layers.stop, severed))
    return cells


def plan_heads(*, n_layers: int, n_heads: int, pos: int, window: int) -> list[Cell]:
    """A cell for each head of each layer at one position; in a window the heads of one number are restored together."""
    cells = []
    for layer in range(n_layers):
        layers = window_layers(layer, window, n_layers)
        for head in range(n_heads):
            parts = tuple((restored, head) for restored in layers)
            cells.append(Cell(HEADS, layer, pos, layers.start, layers.stop, parts=parts))
    return cells


Known = Literal["low", "high"]
"""Which of a case's two scores a cell has that need not be run: nothing restored, or the clean run's."""


def known_score(cell: Cell, *, n_layers: int, first_corrupted: int, read: range) -> Known | None:
    """Which score a cell has that is known without a run, else None.

    Args:
        cell: the cell.
        n_layers: layers of the model.
        first_corrupted: first position whose embedding is corrupted; nothing before it can differ from the clean run.
        read: positions whose logits give the answer: one for each of its tokens.
    """
    if cell.pos < first_corrupted:
        return "low"
    if cell.first == n_layers - 1:
        # No later layer can carry the restored state to another position.
        if cell.pos not in read:
            return "low"
        if cell.stream == "resid" and len(read) == 1:
            return "high"
    return None


def window_of(asked: int | None, n_layers: int) -> int:
    """The window that is meant by what was asked: None is 10, or all layers of a smaller model.

    Raises:
        SettingError: it is below 1, or larger than the model.
    """
    return min(10, n_layers) if asked is None else check_window(asked, n_layers=n_layers)
