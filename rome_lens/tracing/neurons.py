"""Which neurons of a cell of the MLP stream bring the answer back: proposed by attribution, and restored one by one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import NEURONS, Backend, as_backend
from rome_lens.checks import as_whole, shown, whole_number
from rome_lens.errors import ModelError, ModelMismatchError, SettingError
from rome_lens.facts import Fact
from rome_lens.figures import format_probability
from rome_lens.progress import Progress, part
from rome_lens.tokens import TokenisedPrompt
from rome_lens.tracing.attribution import ATTRIBUTION
from rome_lens.tracing.cases import Case, noisy_case, swapped_case
from rome_lens.tracing.cells import Cell, window_layers
from rome_lens.tracing.corruption import FittedNoise, fitted_noise, parse_noise, swapped_tokens
from rome_lens.tracing.grid import PLAIN, Scores, score_cells_of
from rome_lens.tracing.measures import PROBABILITY, Measure, MeasureName
from rome_lens.tracing.result import CausalTrace

if TYPE_CHECKING:
    import pandas as pd

# How far the clean and the corrupted run may be from the trace's: other batches and other machines round otherwise, and
# in half precision a logit's last digit alone is worth a tenth of a probability.
_SAME, _SAME_IN_HALF = 0.01, 0.3


@dataclass(frozen=True, eq=False, repr=False)
class NeuronEffects:
    """The neurons that carry a cell of the MLP stream, the one that brings back most first.

    Attributes:
        layers: [neuron] their layers: those of the cell's window.
        neurons: [neuron] their numbers, of d_mlp.
        scores: [neuron] what the trace measures, with this neuron alone restored (`mlp.hook_post`), averaged over the
            corrupted copies; exact.
        proposed: [neuron] what attribution expected it to be: `low` and gradient times difference.
        together: the same with all of these neurons restored.
        cell: the same with all neurons of these layers: the cell's own score.
        low: the same with nothing restored. high: in the clean run.
        n_neurons: how many neurons the cell has, of which these were proposed.
        layer: the cell's layer. pos: its position. token: the token there.
        window: layers whose MLPs the cell restores, before the ends of the model cut the window short.
        prompt: the text. answer: the answer's text.
        model_name: the model's name.
        engine: as in `CausalTrace`. notes: why, where whole forwards were run.
        seconds: how long it took.
        measure: what was measured, in words, such as `p(Paris)`.
    """

    layers: tuple[int, ...]
    neurons: tuple[int, ...]
    scores: Float[Tensor, " neuron"]
    proposed: Float[Tensor, " neuron"]
    together: float
    cell: float
    low: float
    high: float
    n_neurons: int
    layer: int
    pos: int
    token: str
    window: int
    prompt: str
    answer: str
    model_name: str
    engine: str
    notes: tuple[str, ...]
    seconds: float
    measure: str

    def __repr__(self) -> str:
        best = f"{self.layers[0]}.{self.neurons[0]} {format_probability(float(self.scores[0]))}"
        numbers = ", ".join(
            f"{name} {format_probability(value)}"
            for name, value in (("low", self.low), ("together", self.together), ("cell", self.cell))
        )
        return (
            f"NeuronEffects({len(self.neurons)} of {self.n_neurons} at layer {self.layer}, {self.token!r}, {numbers}, "
            f"best (layer.neuron) {best})"
        )

    @property
    def effects(self) -> Float[Tensor, " neuron"]:
        """The indirect effect of every neuron: `score - low`."""
        return self.scores - self.low

    @property
    def correlation(self) -> float | None:
        """Pearson's correlation between the proposed and the exact effects of these neurons; None below three."""
        both = torch.stack([self.proposed, self.scores])
        if both.shape[1] < 3 or (both.std(dim=1) == 0).any():
            return None
        return float(torch.corrcoef(both)[0, 1])

    def to_dataframe(self) -> "pd.DataFrame":
        """A row a neuron: layer, neuron, score, effect, proposed_effect."""
        import pandas as pd

        return pd.DataFrame(
            {
                "layer": self.layers,
                "neuron": self.neurons,
                "score": self.scores.tolist(),
                "effect": self.effects.tolist(),
                "proposed_effect": (self.proposed - self.low).tolist(),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        lists = {name: getattr(self, name).tolist() for name in ("scores", "proposed")}
        return {**vars(self), **lists, "correlation": self.correlation}


@torch.no_grad()
def trace_neurons(
    model: Any,
    trace: CausalTrace,
    *,
    layer: int | None = None,
    pos: int | None = None,
    n_best: int = 20,
    facts: Sequence[Fact] | None = None,
    progress: Progress | None = None,
) -> NeuronEffects:
    """Find the neurons that carry a cell of a trace's MLP stream.

    Gradient times difference (attribution patching, Syed et al. 2023) proposes the neurons whose activation, restored,
    would bring back most of what the trace measures; each of those is then restored alone, and all of them together,
    exactly, by the trace's own corrupted runs.

    Args:
        model: the model that was traced, with the trace's edits in its weights, if it has any.
        trace: what `causal_trace` gave.
        layer: the cell's layer; by default, with `pos`, the peak of the MLP stream's grid.
        pos: the cell's position; negative numbers count from the end.
        n_best: how many neurons are proposed and restored.
        facts: the facts that the trace's noise was measured on, if it was given some and is drawn by `m` or `t`.
        progress: called with (done, total, what) now and then.

    Returns:
        The neurons, the one that brings back most first.

    Raises:
        SettingError: the cell is none of the trace's, or `n_best` is not from 1 to the cell's number of neurons; or the
            trace was measured by a function, which it does not hold.
        ModelMismatchError: the model gives other numbers in the clean and the corrupted run than the trace has.
        ModelError: the model's MLPs do not show their neurons.

    !!! example
        ```python
        trace = rl.causal_trace(model, "The Eiffel Tower is located in the city of", subject="The Eiffel Tower")
        rl.trace_neurons(model, trace).to_dataframe()
        ```
    """
    started = time.perf_counter()
    backend = as_backend(model)
    measure = _measure(trace)
    layer, pos = _cell(backend, trace, layer, pos)
    layers = window_layers(layer, trace.window, backend.n_layers)
    widths = _widths(backend, layers)
    n_best = whole_number("n_best", n_best, least=1, most=sum(widths), expected="a whole number of neurons")

    def neuron(at: int, number: int) -> Cell:
        return Cell(NEURONS, at, pos, at, at + 1, parts=((at, number),))

    every = [neuron(at, number) for at, width in zip(layers, widths, strict=True) for number in range(width)]
    whole = Cell("mlp", layer, pos, layers.start, layers.stop)
    with backend.evaluating():
        case = _case(backend, trace, facts)
        scored = partial(score_cells_of, backend, [case], measure=measure)
        (likely,) = scored([every], engine=ATTRIBUTION, progress=part(progress, 0, 200))
        _check_same(backend, trace, likely.low.score, likely.high.score)
        proposed = _ranked(every, likely, trace)[:n_best]
        parts = tuple(sorted(each for cell in proposed for each in cell.parts))
        # Of one neuron that is its own cell.
        joint = Cell(NEURONS, parts[0][0], pos, parts[0][0], parts[-1][0] + 1, parts=parts)
        asked = list(dict.fromkeys([*proposed, joint, whole]))
        engine = PLAIN if trace.engine == PLAIN else "auto"
        (found,) = scored([asked], engine=engine, progress=part(progress, 200, 800))
    best = _ranked(proposed, found, trace)
    return NeuronEffects(
        layers=tuple(cell.layer for cell in best),
        neurons=tuple(cell.column for cell in best),
        scores=torch.tensor([found.cells[cell].score for cell in best], dtype=torch.float64),
        proposed=torch.tensor([likely.cells[cell].score for cell in best], dtype=torch.float64),
        together=found.cells[joint].score,
        cell=found.cells[whole].score,
        low=found.low.score,
        high=found.high.score,
        n_neurons=len(every),
        layer=layer,
        pos=pos,
        token=trace.tokens[pos],
        window=trace.window,
        prompt=trace.prompt,
        answer=trace.answer,
        model_name=trace.model_name,
        engine=found.engine,
        notes=found.notes,
        seconds=time.perf_counter() - started,
        measure=trace.measure_words,
    )


def _measure(trace: CausalTrace) -> Measure:
    """What the trace measures.

    Raises:
        SettingError: it does not hold that.
    """
    if trace.measure not in get_args(MeasureName):
        raise SettingError(
            f"the trace was measured by a function, {trace.measure}, which it does not hold; trace with one of "
            f"{', '.join(get_args(MeasureName))}"
        )
    return Measure(trace.measure, against=trace.against_id)


def _ranked(cells: Sequence[Cell], found: Scores, trace: CausalTrace) -> list[Cell]:
    """The cells, the one that brings back most first."""
    return sorted(cells, key=lambda cell: found.cells[cell].score, reverse=not trace.falls)


def _cell(backend: Backend, trace: CausalTrace, layer: int | None, pos: int | None) -> tuple[int, int]:
    """The cell that is meant.

    Raises:
        SettingError: one of its numbers is missing, or none of the trace's.
    """
    if layer is None and pos is None:
        return trace.peak("mlp")
    if layer is None or pos is None:
        raise SettingError("a cell has a layer and a pos; give both, or neither for the peak of the MLP stream")
    n_tokens = len(trace.tokens)
    number = as_whole(pos, least=-n_tokens, most=n_tokens - 1)
    if number is None:
        raise SettingError(f"pos is {shown(pos)}; expected a position of the trace's {n_tokens} tokens")
    return backend.check_layer(layer), number % n_tokens


def _widths(backend: Backend, layers: Sequence[int]) -> list[int]:
    """How many neurons each of these layers has.

    Raises:
        ModelError: one of them has no `W_out` that they enter.
    """
    try:
        return [backend.w_out(layer).matrix.shape[0] for layer in layers]
    except ModelError as error:
        raise ModelError(
            f"the neurons of {backend.model_name} at layers {layers[0]} to {layers[-1]} cannot be restored one by one, "
            f"since not each of these layers has a W_out of its own; choose a cell of others ({error})"
        ) from error


def _case(backend: Backend, trace: CausalTrace, facts: Sequence[Fact] | None) -> Case:
    """The trace's fact in tokens, corrupted as it was."""
    bos = trace.token_ids[:1] if trace.prepend_bos else ()
    prompt = TokenisedPrompt(trace.token_ids, trace.tokens, len(trace.tokens), trace.subject_span, "", bos)
    text = replace(prompt, ids=(*trace.token_ids, *trace.answer_ids), answer=trace.answer)
    backend.check_text(text)
    if trace.swap is not None:
        # Of the prompt alone: a token of the model's own need not be read as the same token behind it.
        swapped = swapped_tokens(
            backend.tokenizer, prompt, trace.prompt, trace.subject, swap=trace.swap, occurrence=trace.occurrence
        )
        return swapped_case(backend, text, torch.cat([swapped, torch.tensor(trace.answer_ids)]))
    rule = parse_noise(trace.noise_rule, replace=trace.noise_replaces)
    if rule.kind in ("m", "t"):
        noise = fitted_noise(backend, rule, facts)
    else:
        # The level is all that was measured.
        assert trace.noise is not None
        noise = FittedNoise(rule, trace.noise)
    return noisy_case(backend, text, noise, samples=trace.samples, seed=trace.seed)


def _check_same(backend: Backend, trace: CausalTrace, low: float, high: float) -> None:
    """Refuse another model than the one that was traced.

    Raises:
        ModelMismatchError: the model gives other numbers.
    """
    found = {"low": (low, trace.low), "high": (high, trace.high)}
    apart = _SAME_IN_HALF if backend.dtype.itemsize < 4 else _SAME
    # A probability cannot be small beside its own error; a difference of logits and a divergence can.
    least = 0.0 if trace.measure == PROBABILITY.name else abs(trace.total_effect)
    if all(abs(here - there) <= apart * max(abs(here), abs(there), least) for here, there in found.values()):
        return
    said = ", ".join(
        f"{name} {format_probability(here)} instead of {format_probability(there)}"
        for name, (here, there) in found.items()
    )
    edited = f"; the trace carries {len(trace.edits)} edits, which have to be in the weights" if trace.edits else ""
    raise ModelMismatchError(
        f"{backend.model_name} gives {trace.measure_words} another value than the trace has: {said}"
        f"{edited}; hand over the model that was traced, and the facts that its noise was measured on"
    )
