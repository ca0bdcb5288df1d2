"""Compare the variants of ROME on the same records: what each reaches, and how far it moves the weights."""

import argparse
from collections.abc import Sequence
from typing import Any

import pandas as pd

import rome_lens as rl
from rome_lens.evaluation import builtin_texts

VARIANTS = ("r-rome", "rome", "p-rome", "identity")
METRICS = ["S", "ES", "PS", "NS"]


def compare_variants(
    model: Any, records: Sequence[rl.CounterFactRecord], *, second_moments: Sequence[str] = (), out: str | None = None
) -> pd.DataFrame:
    """Evaluate the variants on the same records, and print a row each.

    Args:
        model: HookedTransformer or TransformerBridge.
        records: what to edit; each by itself.
        second_moments: files of 'rome-lens stats', a layer each; the default model needs none.
        out: a folder that keeps every record; the same call goes on there.

    Returns:
        The mean scores, the largest relative norm of an update (Frobenius, against the weights), the mean perplexity of
        other text (after / before), and on how many records that was moved by more than a fifth.
    """
    measures = rl.Measures(n_texts=0, watched=builtin_texts()[:20])
    report = rl.evaluate_counterfact(
        model, list(VARIANTS), records, second_moments=second_moments, measures=measures, out=out
    )
    table = pd.DataFrame({name: [editor.scores[m] for m in METRICS] for name, editor in report.editors.items()}).T
    table.columns = METRICS
    edits = report.to_dataframe().groupby("editor", sort=False)
    table["largest update"] = edits["relative_norm"].max()
    table["perplexity"] = edits["perplexity_ratio"].mean()
    table["flagged"] = edits["flagged"].sum()
    print(table.round(3).to_string())
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the model and compare."""
    parser = argparse.ArgumentParser(description="Compare the variants of ROME on CounterFact.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--second-moment", action="append", default=[], help="a file of 'rome-lens stats'")
    parser.add_argument("--data", help="CounterFact as published; the built-in records by default")
    parser.add_argument("--limit", type=int, default=8, help="how many records")
    parser.add_argument("--out", help="a folder that keeps every record; the same command goes on there")
    options = parser.parse_args(arguments)

    records = rl.builtin_counterfact() if options.data is None else rl.read_counterfact(options.data)
    model, records = rl.load_model(options.model), records[: options.limit]
    compare_variants(model, records, second_moments=options.second_moment, out=options.out)


if __name__ == "__main__":
    main()
