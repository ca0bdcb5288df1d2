"""What is printed on consoles of several widths, with letters and without."""

import io

from rich.console import Console


class Ascii(io.StringIO):
    """A file whose encoding is ASCII."""

    encoding = "ascii"


def printed(show, report, *, width=80, file=None, **options):
    """What `show(console, report)` prints on a console of this width."""
    file = file or io.StringIO()
    settings = {"markup": False, "emoji": False, "highlight": False, "_environ": {}, "color_system": None, **options}
    show(Console(file=file, width=width, legacy_windows=False, **settings), report)
    return file.getvalue()
