"""Colours for a terminal: from near-white to deep, in even steps of lightness, in the hues of the paper."""

from rich.color import Color

_RGB = tuple[int, int, int]
_STEPS = 101
# Purple for states, green for MLPs, red for attention; blue for its heads, of which the paper has none.
_STOPS: dict[str, tuple[_RGB, ...]] = {
    "resid": ((247, 245, 251), (208, 204, 230), (157, 150, 201), (113, 82, 168), (62, 7, 122)),
    "mlp": ((244, 250, 242), (195, 230, 189), (121, 196, 123), (43, 144, 76), (0, 71, 29)),
    "attn": ((255, 244, 240), (252, 193, 172), (248, 119, 88), (208, 39, 36), (106, 2, 14)),
    "heads": ((247, 251, 255), (195, 216, 239), (111, 172, 218), (33, 113, 181), (8, 48, 107)),
}
_GREY_STOPS: tuple[_RGB, ...] = ((248, 248, 248), (205, 205, 205), (140, 140, 140), (85, 85, 85), (15, 15, 15))
# Chosen one by one: the nearest of the 256 colours wanders through greys and blues on its way to purple.
_NUMBERS: dict[str, tuple[int, ...]] = {
    "resid": (231, 189, 183, 141, 98, 91, 55, 54),
    "mlp": (231, 194, 151, 114, 71, 28, 22),
    "attn": (231, 224, 217, 210, 203, 160, 124, 88, 52),
    "heads": (231, 195, 153, 111, 69, 26, 19, 17),
}
_GREY_NUMBERS = (231, 253, 250, 246, 242, 238, 235)


def colour_ramp(stream: str, color_system: str | None) -> tuple[Color, ...] | None:
    """The colours of a stream from low to high, for a colour system in rich's words.

    Returns:
        None where there are too few colours for a ramp: sixteen, of which the user has redefined half, or none.
    """
    if color_system == "truecolor":
        stops = _STOPS.get(stream, _GREY_STOPS)
        return tuple(Color.from_rgb(*_blend(stops, step / (_STEPS - 1))) for step in range(_STEPS))
    if color_system == "256":
        return tuple(Color.from_ansi(number) for number in _NUMBERS.get(stream, _GREY_NUMBERS))
    return None


def _blend(stops: tuple[_RGB, ...], level: float) -> _RGB:
    place = level * (len(stops) - 1)
    left = min(int(place), len(stops) - 2)
    part = place - left
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(stops[left], stops[left + 1], strict=True))
    return red, green, blue
