"""What streams and grids are called in titles, legends and tables."""

from collections.abc import Sequence

from rome_lens.figures import format_probability

RESTORED = {
    "resid": "residual state",
    "mlp": "MLP outputs",
    "attn": "attention outputs",
    "heads": "output of single heads",
}
SEVERED_IN_WORDS = {"mlp": "MLPs severed", "attn": "attention severed"}


def title_of(stream: str, *, severed: str | None = None, approximate: bool = False, at: str = "") -> str:
    """What a grid shows.

    Args:
        stream: what was restored.
        severed: what was severed meanwhile.
        approximate: the scores are attribution patching's.
        at: the token of a grid that has only one.
    """
    if severed is not None:
        return f"Restoring the {RESTORED[stream]}, {RESTORED[severed]} severed"
    where = f" at “{at}”" if at else ""
    how = " (attribution patching: an approximation)" if approximate else ""
    return f"Restoring the {RESTORED[stream]}{where}{how}"


def in_words(said: Sequence[tuple[str, float]]) -> str:
    """What a model says: tokens, and how probable they are."""
    return ", ".join(f'"{token}" {format_probability(p)}' for token, p in said)


def layer_title_of(stream: str, window: int) -> str:
    """What the layers of a grid count."""
    return "restored layer" if stream == "resid" or window == 1 else f"centre of {window} restored layers"
