"""Trace a list of prompts, and keep a row a prompt: what the model says, and where each stream brings it back."""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rome_lens as rl

COLUMNS = ["prompt", "subject", "answer", "high", "low", "noise"]
COLUMNS += [f"{stream}_{what}" for stream in ("resid", "mlp", "attn") for what in ("layer", "token", "score")]
COLUMNS += ["error"]


def trace_prompts(
    model: Any, prompts: Iterable[tuple[str, str]], *, noise: float | str | None = None
) -> Iterator[dict[str, Any]]:
    """Trace each prompt with its subject: a row each, as soon as it is there. One that cannot be traced says why."""
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
        yield row


def read_prompts(path: str) -> list[tuple[str, str]]:
    """The columns `prompt` and `subject` of a CSV file."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        if missing := {"prompt", "subject"} - set(rows.fieldnames or ()):
            sys.exit(f"{path}: no column {' and no column '.join(sorted(missing))}; its first line names the columns")
        return [(row["prompt"], row["subject"]) for row in rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and the prompts, load the model, trace and write the table."""
    parser = argparse.ArgumentParser(description="Trace a list of prompts, and write a CSV with a row a prompt.")
    parser.add_argument("out", help="the CSV file to write")
    parser.add_argument("--prompts", help="a CSV file with the columns prompt and subject; else some built-in facts")
    parser.add_argument("--limit", type=int, default=5, help="how many")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    options = parser.parse_args(arguments)

    ours = [(fact.text, fact.subject) for fact in rl.builtin_facts()]
    prompts = ours if options.prompts is None else read_prompts(options.prompts)
    model = rl.load_model(options.model)
    with Path(options.out).open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for number, row in enumerate(trace_prompts(model, prompts[: options.limit]), 1):
            table.writerow(row)
            file.flush()
            print(f"{number}: {row['prompt']}", file=sys.stderr)


if __name__ == "__main__":
    main()
