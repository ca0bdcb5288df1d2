"""Trace a list of prompts, and keep a row a prompt: what the model says, and where each stream brings it back."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

import rome_lens as rl


def trace_prompts(model: Any, prompts: Iterable[tuple[str, str]], *, noise: float | str | None = None) -> pd.DataFrame:
    """Trace each prompt with its subject; one that cannot be traced says why in the column `error`."""
    rows = []
    for prompt, subject in prompts:
        row: dict[str, Any] = {"prompt": prompt, "subject": subject}
        try:
            trace = rl.causal_trace(model, prompt, subject=subject, noise=noise)
        except rl.RomeLensError as error:
            row["error"] = str(error)
        else:
            row |= {"answer": trace.answer.strip(), "high": trace.high, "low": trace.low, "noise": trace.noise}
            for stream in trace.scores:
                layer, pos = trace.peak(stream, positions=range(*trace.subject_span))
                score = trace.scores[stream][layer, pos].item()
                row |= {f"{stream}_layer": layer, f"{stream}_token": trace.tokens[pos], f"{stream}_score": score}
        rows.append(row)
        print(f"{len(rows)}: {prompt}", file=sys.stderr)
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and the prompts, load the model, trace and write the table."""
    parser = argparse.ArgumentParser(description="Trace a list of prompts, and write a CSV with a row a prompt.")
    parser.add_argument("out", help="the CSV file to write")
    parser.add_argument("--prompts", help="a CSV file with the columns prompt and subject; else some built-in facts")
    parser.add_argument("--limit", type=int, default=5, help="how many")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    options = parser.parse_args(arguments)

    if options.prompts is None:
        prompts = [(fact.text, fact.subject) for fact in rl.builtin_facts()]
    else:
        table = pd.read_csv(options.prompts, keep_default_na=False)
        prompts = list(zip(table["prompt"], table["subject"], strict=True))
    trace_prompts(rl.load_model(options.model), prompts[: options.limit]).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
