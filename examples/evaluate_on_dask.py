"""Evaluate editors on the workers of a dask cluster: `dask scheduler` on one machine, `dask worker` on the others."""

import argparse
from collections.abc import Sequence

import rome_lens as rl
from rome_lens.runs import dask_executor


def evaluate_on_dask(
    address: str,
    model: str,
    editors: Sequence[str],
    records: Sequence[rl.CounterFactRecord],
    *,
    out: str,
    measures: rl.Measures | None = None,
) -> rl.Report:
    """Let the workers load the model and evaluate; this process hands records out and keeps what comes back.

    Args:
        address: the scheduler's.
        model: a name or a folder, which every worker loads for itself.
        editors: their names.
        records: what to evaluate.
        out: the run's folder, on this machine. If this process or the cluster ends, the same call goes on from there.
        measures: what is measured.
    """
    with dask_executor(address) as executor:
        report = rl.evaluate_counterfact(model, list(editors), records, measures=measures, out=out, executor=executor)
    for name, editor in report.editors.items():
        print(name, f"on {editor.n_records} records:", {m: round(score, 1) for m, score in editor.scores.items()})
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and evaluate the built-in records."""
    parser = argparse.ArgumentParser(description="Evaluate editors on a dask cluster.")
    parser.add_argument("address", help="the scheduler's, such as tcp://10.0.0.1:8786")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--editor", action="append", help="an editor's name; repeat it for several")
    parser.add_argument("--out", default="eval-dask", help="the run's folder")
    options = parser.parse_args(arguments)

    editors = options.editor or ["none", "r-rome"]
    evaluate_on_dask(options.address, options.model, editors, rl.builtin_counterfact(), out=options.out)


if __name__ == "__main__":
    main()
