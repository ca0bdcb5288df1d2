"""How long work reports how far it is: nothing below the shell prints."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`: bytes, tensors or steps; `total` is 0 where nobody knows it."""
