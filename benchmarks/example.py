"""Which built-in fact shows the paper's picture best: python benchmarks/example.py [--facts N] [--samples N].

The paper's picture (Meng et al. 2022, figure 1) has an early site, MLPs at the subject's last token, and a late one,
attention at the prompt's last. The facts that the corruption costs most are traced, and scored by how much of the
answer's probability the two sites bring back, the less of the two, less the most that MLPs at the last token, attention
at the subject and either in between bring back. All are shares of what the corruption took.
"""

import argparse

import rome_lens as rl


def separation(trace: rl.CausalTrace) -> dict[str, float]:
    """How far the two sites stand out."""
    first, end = trace.subject_span
    mlp, attn = (trace.normalized(stream) for stream in ("mlp", "attn"))
    early, late = mlp[:, end - 1].max().item(), attn[:, -1].max().item()
    elsewhere = [mlp[:, -1].max().item(), attn[:, first:end].max().item()]
    elsewhere += [grid[:, end:-1].max().item() for grid in (mlp, attn) if end < len(trace.tokens) - 1]
    return {"early": early, "late": late, "elsewhere": max(elsewhere), "apart": min(early, late) - max(elsewhere)}


def main() -> None:
    """Trace facts and print them, the one that shows most first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--facts", type=int, default=16, help="facts that are traced, those of the largest total effect"
    )
    parser.add_argument("--samples", type=int, default=4)
    options = parser.parse_args()
    model = rl.load_model()
    known = []
    for fact in rl.builtin_facts():
        asked = {"prompt": fact.text, "subject": fact.subject, "expect": fact.answer, "samples": options.samples}
        try:
            quick = rl.causal_trace(model, **asked, streams="resid", engine="attribution")
        except rl.FactNotKnownError:
            continue
        known.append((quick.total_effect, asked))
    known.sort(key=lambda one: one[0], reverse=True)
    found = []
    for _, asked in known[: options.facts]:
        trace = rl.causal_trace(model, **asked, streams=("mlp", "attn"))
        found.append((separation(trace), trace))
        print(f"traced {trace.prompt!r}", flush=True)
    print("\n apart  early   late  elsewhere")
    for scores, trace in sorted(found, key=lambda one: one[0]["apart"], reverse=True):
        apart, early, late, elsewhere = (scores[name] for name in ("apart", "early", "late", "elsewhere"))
        print(f"{apart:6.2f} {early:6.2f} {late:6.2f} {elsewhere:10.2f}  {trace.prompt} →{trace.answer}")


if __name__ == "__main__":
    main()
