"""Scores in figures, the same on the terminal, on a page and in a plot."""

import math


def format_probability(value: float, decimals: int = 3) -> str:
    """A probability for people: with these decimals, or a power of ten where these would all be 0 and it is not."""
    shown = f"{value:.{decimals}f}"
    return f"{value:.1e}" if value != 0 and float(shown) == 0 else shown


def format_score(value: float, decimals: int = 1) -> str:
    """A score for people: with these decimals, fewer where the number is huge, `–` for none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if abs(value) >= 1000:
        return f"{value:.1e}" if abs(value) >= 100000 else f"{value:.0f}"
    shown = f"{value:.{decimals}f}"
    return shown[1:] if shown.startswith("-") and float(shown) == 0 else shown
