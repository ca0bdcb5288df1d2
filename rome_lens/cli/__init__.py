"""The command line: `rome-lens trace | ask | edit | apply | show | stats | average | suggest | eval | models | doctor`.

One file per command; data to stdout, the rest to stderr.
"""

from rome_lens.cli.app import app, main

__all__ = ["app", "main"]
