"""A small evaluation that every process can start by itself; as a script it is killed and started again.

python tests/helpers/tiny_evaluation.py FOLDER MOMENT RECORDS KILLS SEED
"""

import sys
from pathlib import Path

import torch
from architectures import BACKENDS, architecture

import rome_lens as rl
from rome_lens.data.records import CounterFactRecord, RecordSet

EDITORS = ("none", "r-rome", "identity", "ft")
SETTINGS = (
    *(
        f"{name}.{text}"
        for name in ("r-rome", "identity")
        for text in ('context_templates=["{}", "so. {}"]', "v_num_grad_steps=2")
    ),
    *(f"{name}.layer=1" for name in ("r-rome", "identity", "ft")),
    "ft.num_steps=2",
)
MEASURES = rl.Measures(n_texts=2, text_length=8, watched=("hello there", "you"))


def make_model():
    """A model of a process's own."""
    return architecture("gpt2", BACKENDS[0])


def make_records(count):
    """Records of which no two are alike."""
    names = ["the tower", "it", "a hill", "the old lake", "one", "her house", "the sea"]
    places = ["rome", "paris", "p", "oslo in fog", "one"]
    records = [
        CounterFactRecord(
            number=number,
            case_id=f"c{number}",
            relation=f"P{number % 2}",
            request=rl.EditRequest("{} is in", names[number % 7], places[number % 5], places[(number + 2) % 5]),
            paraphrases=(f"{number}: it is in",),
            neighbours=("a road is in", f"road {number} is in"),
            generation_prompts=(f"{names[number % 7]} is", f"near {number}"),
        )
        for number in range(count)
    ]
    return RecordSet(tuple(records), (), "made up")


def save_moment(folder):
    """The second moment of layer 1, as a file."""
    path = Path(folder) / "moment.safetensors"
    width = make_model().cfg.d_mlp
    rl.SecondMoment.from_matrix(torch.diag(torch.linspace(1, 2, width, dtype=torch.float64)), layer=1).save(path)
    return path


def evaluate(out, moment, *, model=make_model, editors=EDITORS, count=6, **how):
    """The evaluation, in a folder or in memory."""
    return rl.evaluate_counterfact(
        model,
        list(editors),
        make_records(count),
        measures=MEASURES,
        settings=[text for text in SETTINGS if text.partition(".")[0] in editors],
        second_moments=[moment],
        out=out,
        batch_size=2,
        **how,
    )


if __name__ == "__main__":
    from kill_and_resume import kill_and_resume

    # Imported before the fork, and computed with afterwards alone: a fork copies no threads.
    torch.set_num_threads(1)
    path, moment_file = Path(sys.argv[1]), Path(sys.argv[2])
    count, kills, seed = map(int, sys.argv[3:])
    counts = kill_and_resume(lambda: evaluate(path, moment_file, count=count) and None, kills, seed, path)
    sys.stdout.write(f"{counts}\n")
