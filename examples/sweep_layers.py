"""Edit the same records at several layers, and see at which of them editing works best."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rome_lens as rl


def sweep_layers(
    model: Any,
    layers: Sequence[int],
    records: Sequence[rl.CounterFactRecord],
    *,
    tokens: int | None = None,
    out: str | None = None,
) -> rl.Report:
    """Collect the second moments of all layers in one pass over text, edit at each layer, and print the scores.

    Args:
        model: HookedTransformer or TransformerBridge.
        layers: where to edit.
        records: what to edit; each by itself.
        tokens: of the text, which the model writes itself; 20 for each number of a key by default.
        out: a folder that keeps every record; the same call goes on there, with the second moments beside it.
    """
    moments = second_moments(model, layers, tokens=tokens, out=out)
    editors = {f"layer-{layer}": rl.ROME(model, layer=layer, second_moment=moments[layer]) for layer in layers}
    report = rl.evaluate_counterfact(model, editors, records, measures=rl.Measures(n_texts=0), out=out)
    for name, editor in report.editors.items():
        scores = {metric: editor.intervals[metric] for metric in ("S", "ES", "PS", "NS")}
        print(f"{name:8}", "  ".join(f"{m} {s.mean:5.1f} [{s.low:5.1f}, {s.high:5.1f}]" for m, s in scores.items()))
    return report


def second_moments(
    model: Any, layers: Sequence[int], *, tokens: int | None, out: str | None
) -> dict[int, rl.SecondMoment]:
    """New ones, or those that an earlier call left beside its folder: a run goes on with the very same ones only."""
    if out is None:
        return rl.SecondMoment.collect(model, layers=layers, texts="self", max_tokens=tokens)
    files = {layer: Path(f"{out}-layer-{layer}.safetensors") for layer in layers}
    if not all(path.is_file() for path in files.values()):
        for layer, moment in rl.SecondMoment.collect(model, layers=layers, texts="self", max_tokens=tokens).items():
            moment.save(files[layer])
    return {layer: rl.SecondMoment.load(path, model=model) for layer, path in files.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the model and sweep."""
    parser = argparse.ArgumentParser(description="Edit the same records at several layers.")
    parser.add_argument("layers", type=int, nargs="+", help="the layers, from 0")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--limit", type=int, default=8, help="how many of the built-in records")
    parser.add_argument("--tokens", type=int, help="of text for the second moments; 20 for each number of a key")
    parser.add_argument("--out", help="a folder that keeps every record; the same command goes on there")
    options = parser.parse_args(arguments)

    records = rl.builtin_counterfact()[: options.limit]
    sweep_layers(rl.load_model(options.model), options.layers, records, tokens=options.tokens, out=options.out)


if __name__ == "__main__":
    main()
