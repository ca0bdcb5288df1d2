"""Measure an editor of one's own beside r-ROME: what a record's edit gains, and what it costs elsewhere."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

import rome_lens as rl


class TunedMLP:
    """An editor: all weights of one MLP take a few steps up the gradient of the target's log-probability."""

    def __init__(self, model: Any, layer: int, *, steps: int = 5, length: float = 0.5) -> None:
        """Choose the layer, and how often and how far its weights move."""
        self.model, self.steps, self.length = model, steps, length
        self.weights = list(model.blocks[layer].mlp.parameters())

    def edit(self, request: rl.EditRequest) -> "Moved":
        """Find the changes for one request; the model is left as it is."""
        prompt = self.model.to_tokens(request.text, prepend_bos=False)
        whole = self.model.to_tokens(f"{request.text} {request.target_new}", prepend_bos=False)
        edit = Moved(self.weights, [torch.zeros_like(weight) for weight in self.weights])
        for _ in range(self.steps):
            with edit.applied(self.model), torch.enable_grad():
                logits = self.model(whole)[0, prompt.shape[1] - 1 : -1]
                loss = torch.nn.functional.cross_entropy(logits, whole[0, prompt.shape[1] :])
                gradients = torch.autograd.grad(loss, self.weights)
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            edit.changes = [c - self.length * g / norm for c, g in zip(edit.changes, gradients, strict=True)]
        return edit


class Moved:
    """Its edit: what some weights gain. All that an evaluation asks of it is `applied`."""

    def __init__(self, weights: Sequence[torch.Tensor], changes: Sequence[torch.Tensor]) -> None:
        """Keep the weights and what each of them gains."""
        self.weights, self.changes = weights, list(changes)

    @contextmanager
    def applied(self, model: Any) -> Iterator[Any]:
        """The model with the changes in its weights, for as long as the block lasts."""
        kept = [weight.detach().clone() for weight in self.weights]
        try:
            with torch.no_grad():
                for weight, change in zip(self.weights, self.changes, strict=True):
                    weight.add_(change)
            yield model
        finally:
            with torch.no_grad():
                for weight, old in zip(self.weights, kept, strict=True):
                    weight.copy_(old)


def compare(
    model: Any, editors: Mapping[str, Any], records: Sequence[rl.CounterFactRecord], *, out: str | None = None
) -> rl.Report:
    """Evaluate several editors on the same records, and print the main scores with their intervals."""
    report = rl.evaluate_counterfact(model, editors, records, measures=rl.Measures(n_texts=0), out=out)
    for name, editor in report.editors.items():
        scores = {metric: editor.intervals[metric] for metric in ("S", "ES", "PS", "NS")}
        print(f"{name:8}", "  ".join(f"{m} {s.mean:5.1f} [{s.low:5.1f}, {s.high:5.1f}]" for m, s in scores.items()))
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the model and compare."""
    parser = argparse.ArgumentParser(description="Compare an editor of one's own with r-ROME on CounterFact.")
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m, a folder, or a name on the hub")
    parser.add_argument("--data", help="CounterFact as published; the built-in records by default")
    parser.add_argument("--limit", type=int, default=8, help="how many records")
    parser.add_argument("--layer", type=int, default=5, help="the layer whose MLP is tuned")
    parser.add_argument("--out", help="a folder that keeps every record; the same command goes on there")
    options = parser.parse_args(arguments)

    model = rl.load_model(options.model)
    records = rl.builtin_counterfact() if options.data is None else rl.read_counterfact(options.data)
    editors = {"none": None, "r-rome": rl.ROME(model), "tuned": TunedMLP(model, options.layer)}
    compare(model, editors, records[: options.limit], out=options.out)


if __name__ == "__main__":
    main()
