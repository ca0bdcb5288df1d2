"""A small evaluation with checkpoints that every process can start by itself; as a script it is killed and restarted.

python tests/helpers/tiny_together.py FOLDER MOMENT KILLS SEED
"""

import sys
from pathlib import Path

import torch
from tiny_evaluation import make_model, make_records

import rome_lens as rl

EDITORS = {"memit": "memit", "emmet": "emmet", "stacked": "r-rome", "sequence": "r-rome", "ft": "ft"}
KILLED = ("memit", "sequence")
"""A set and a sequence: those of the run that is killed."""

AT = (2, 5, 12)
MEASURES = rl.Measures(n_texts=0, watched=("hello there", "you"))
_SETTINGS = (
    'context_templates=["{}", "so. {}"]',
    "v_num_grad_steps=2",
    *(f"{name}.layers=[1]" for name in ("memit", "emmet")),
    *(f"{name}.layer=1" for name in ("stacked", "sequence", "ft")),
    'sequence.found_on="edited"',
    "ft.num_steps=2",
)


def settings_for(editors):
    """The settings that these editors take."""
    rome = set(editors) - {"ft"}
    return [
        text
        for text in _SETTINGS
        if (text.partition(".")[0] in editors) or ("." not in text.partition("=")[0] and rome)
    ]


def evaluate(out, moment, *, model=make_model, editors=tuple(EDITORS), at=AT, together=None, count=12, **how):
    """The evaluation, in a folder or in memory."""
    how = {"measures": MEASURES, "batch_size": 2} | how
    return rl.evaluate_counterfact(
        model,
        {name: EDITORS[name] for name in editors},
        make_records(count),
        together=rl.Together(at, **together or {}),
        settings=settings_for(editors),
        second_moments=[moment],
        out=out,
        **how,
    )


if __name__ == "__main__":
    from kill_and_resume import kill_and_resume

    # Imported before the fork, and computed with afterwards alone: a fork copies no threads.
    torch.set_num_threads(1)
    path, moment_file, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    counts = kill_and_resume(lambda: evaluate(path, moment_file, editors=KILLED) and None, kills, seed, path)
    sys.stdout.write(f"{counts}\n")
