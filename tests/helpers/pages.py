"""What a reader sees of an HTML page, and texts that a page must show and not obey."""

from html.parser import HTMLParser

from plotly.offline import get_plotlyjs

NASTY = [
    "<script>alert(1)</script>",
    "$x$",
    "%{y}",
    "a\nb",
    "שלום",
    "🗼",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "\x1b[31m",
    "\u202eevil",
]
SHOWN = {"a\nb": "a↵b", "\x1b[31m": "␛[31m", "\u202eevil": "\\u202eevil"}


class PageReader(HTMLParser):
    """What a reader sees of a page, its tags, and its scripts apart."""

    def __init__(self, page):
        super().__init__()
        self.text, self.scripts, self.tags, self._inside = "", [], [], None
        self.feed(page.replace(get_plotlyjs(), ""))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            self.scripts += [""] * (tag == "script")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = None
        if tag in ("td", "th", "dt", "dd"):
            self.text += " "

    def handle_data(self, data):
        if self._inside is None:
            self.text += data
        elif self._inside == "script":
            self.scripts[-1] += data

    def section(self, title):
        """The text behind a heading, on one line."""
        return " ".join(self.text.split(title, maxsplit=1)[1].split())
