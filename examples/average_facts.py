"""Average causal traces over facts, and print where each stream brings back what the model knows."""

import argparse
from collections.abc import Sequence
from typing import Any

import rome_lens as rl


def average_facts(model: Any, facts: Sequence[rl.Fact], *, out: str | None = None, **settings: Any) -> rl.AverageEffect:
    """Trace the facts, and print the highest average effect of every stream at the two tokens that the paper names."""
    average = rl.average_causal_effect(model, facts, out=out, **settings)
    total = average.total_effect
    print(f"{len(average.facts)} facts known, {len(average.set_aside)} set aside; total effect {total.mean:.3f}")
    for stream in average.streams:
        for role in ("last subject token", "last token"):
            peak = average.peak(stream, role)
            effect = f"{peak.effect.mean:.3f} [{peak.effect.low:.3f}, {peak.effect.high:.3f}]"
            print(f"{stream:5}  {role:18}  {effect} at layer {peak.layer} [{peak.first}, {peak.last}]")
    return average


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the model and average."""
    parser = argparse.ArgumentParser(description="Average causal traces over known facts.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument(
        "--facts", help="known facts as the ROME authors published theirs; the built-in ones by default"
    )
    parser.add_argument("--limit", type=int, default=10, help="how many facts")
    parser.add_argument("--out", help="a folder that keeps every fact; the same command goes on there")
    options = parser.parse_args(arguments)

    facts = rl.builtin_facts() if options.facts is None else rl.read_known_facts(options.facts)
    average = average_facts(rl.load_model(options.model), facts[: options.limit], out=options.out)
    average.write_html("average.html")


if __name__ == "__main__":
    main()
