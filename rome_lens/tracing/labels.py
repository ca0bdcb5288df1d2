"""What streams and grids are called in titles, legends and tables."""

RESTORED = {"resid": "residual state", "mlp": "MLP outputs", "attn": "attention outputs"}
SEVERED_IN_WORDS = {"mlp": "MLPs severed", "attn": "attention severed"}


def title_of(stream: str, *, severed: str | None = None, approximate: bool = False) -> str:
    """What a grid shows.

    Args:
        stream: what was restored.
        severed: what was severed meanwhile.
        approximate: the scores are attribution patching's.
    """
    if severed is not None:
        return f"Restoring the {RESTORED[stream]}, {RESTORED[severed]} severed"
    return f"Restoring the {RESTORED[stream]}{' (attribution patching: an approximation)' if approximate else ''}"


def layer_title_of(stream: str, window: int) -> str:
    """What the layers of a grid count."""
    return "restored layer" if stream == "resid" else f"centre of {window} restored layers"
