"""A run that finds facts on a tiny model.

As a script: `python tests/helpers/facts_run.py FOLDER KILLS SEED` kills it at random instants until it may end.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from architectures import BACKENDS, own
from fact_sets import requests
from kill_and_resume import kill_and_resume
from tiny_rome import moment

import rome_lens as rl

LAYER = 1
FOUND: dict[str, Any] = {"v_num_grad_steps": 2, "context_templates": ["{}", "Well. {}"], "least_scale": None}
REQUESTS = requests(24)


def make_model() -> Any:
    """The same at every call, for processes that load it themselves."""
    return own("gpt2", BACKENDS[0]).to(torch.float32)


def facts_editor(model: Any, kind: Any = rl.MEMIT, **changes: Any) -> Any:
    settings = {"layers": [LAYER], "second_moments": {LAYER: moment(64)}, **FOUND, **changes}
    return kind(model, **settings)


if __name__ == "__main__":
    path, editor = Path(sys.argv[1]), facts_editor(make_model())
    counts = kill_and_resume(
        lambda: editor.edit_together(REQUESTS, out=path, workers=1), int(sys.argv[2]), int(sys.argv[3]), path, most=1
    )
    sys.stdout.write(f"{counts}\n")
