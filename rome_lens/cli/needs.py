"""What working on a model takes, from its sizes alone: memory at most, roughly, and time at the rate measured here."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rome_lens.editing.batches import MOST_LAID_OUT, kept_of_position
from rome_lens.editing.second_moment.collect import TOKENS_PER_ROW
from rome_lens.editing.second_moment.inverse import bytes_to_invert
from rome_lens.editing.second_moment.sums import bytes_to_collect
from rome_lens.editing.together.system import bytes_to_solve
from rome_lens.loading.shape import Shape
from rome_lens.memory import free_bytes
from rome_lens.tracing.cells import known_score, plan_cells, window_of
from rome_lens.tracing.lanes import count_positions, plan_lanes
from rome_lens.tracing.memory import Budget, numbers_of_position

# A prompt such as the Eiffel Tower's: ten tokens, of which the subject begins with the second.
_N_TOKENS, _FIRST, _SAMPLES = 10, 1, 10
# An edit's rows, the divergence's among them, the positions from the subject's last on, and the steps of the optimiser.
_ROWS, _SUFFIX, _STEPS = 22, 8, 20
# Keys of a fact of a set.
_KEYS = 2
# Positions that statistics run at once.
_STATS_POSITIONS = 1024
# What tracing and editing get of the rate of matrix products; measured on the default model (docs/benchmarks.md).
_SHARE = 0.6
# What a forked process takes by itself: pages that it writes to.
_PROCESS_BYTES = 40 * 2**20


@dataclass(frozen=True)
class Need:
    """What one kind of work takes.

    Attributes:
        what: the work.
        n_bytes: memory at most, roughly; of all but the model itself, above the model.
        seconds: roughly; None for the model.
        of: what was reckoned with.
    """

    what: str
    n_bytes: int
    seconds: float | None
    of: str


@dataclass(frozen=True)
class Place:
    """Where the work is to be done.

    Attributes:
        device: the device.
        dtype: of the weights.
        free: bytes that are free there now.
        n_processes: how many share a trace out, at most.
        rate: operations a second of matrix products of the model's size.
    """

    device: torch.device
    dtype: torch.dtype
    free: int
    n_processes: int
    rate: float

    @classmethod
    def measured(cls, shape: Shape, device: torch.device, dtype: torch.dtype) -> "Place":
        """This machine as it is now."""
        n_processes = torch.get_num_threads() if device.type == "cpu" else 1
        return cls(device, dtype, free_bytes(device), n_processes, _rate(shape, device, dtype))

    def seconds(self, flop: float) -> float:
        """About how long so many operations take."""
        return flop / (_SHARE * self.rate)


def needs_of(shape: Shape, place: Place, n_facts: int) -> Iterator[Need]:
    """What the model, a trace, an edit, statistics and a set of facts take."""
    size = place.dtype.itemsize
    # HookedTransformer keeps what embeds and what unembeds apart.
    model = size * (shape.n_parameters + shape.d_vocab * shape.d_model)
    dtype = str(place.dtype).removeprefix("torch.")
    yield Need("model", model, None, f"{shape.n_parameters / 1e6:,.0f} million parameters in {dtype}")
    yield _trace(shape, place, place.free - model)
    edit_bytes, edit_flop = _edit(shape, size)
    second_moment = 4 * shape.d_mlp**2 + bytes_to_invert(shape.d_mlp)
    yield Need("edit", edit_bytes + second_moment, place.seconds(edit_flop), "one request of ten tokens")
    yield _stats(shape, place)
    rows = _KEYS * n_facts
    solving = bytes_to_solve(rows, widths=[shape.d_mlp], d_mlp=[shape.d_mlp], d_model=shape.d_model)
    yield Need(
        f"{n_facts:,} facts",
        max(place.n_processes * edit_bytes, solving) + second_moment,
        place.seconds(n_facts * edit_flop),
        "one set, each fact of two keys",
    )


def _trace(shape: Shape, place: Place, free: int) -> Need:
    size = place.dtype.itemsize
    cells = [
        cell
        for stream in ("resid", "mlp", "attn")
        for cell in plan_cells(
            stream, n_layers=shape.n_layers, positions=range(_N_TOKENS), window=window_of(None, shape.n_layers)
        )
        if not known_score(cell, n_layers=shape.n_layers, first_corrupted=_FIRST, read=range(_N_TOKENS - 1, _N_TOKENS))
    ]
    lanes = plan_lanes([cells])
    positions = count_positions(lanes, n_layers=shape.n_layers, n_tokens=_N_TOKENS)
    unembedding = len(lanes) * 2 * shape.d_model * shape.d_vocab
    flop = _SAMPLES * (positions * 2 * shape.n_block + unembedding)
    on_gpu = place.device.type == "cuda"
    budget = Budget.of_sizes(shape.d_model, shape.d_mlp, dtype=place.dtype, on_gpu=on_gpu, free=max(free, 1))
    states = _SAMPLES * sum(_N_TOKENS - lane.cell.pos for lane in lanes)
    held = size * shape.d_model * min(states, place.n_processes * budget.state_positions)
    call = size * budget.call_positions * numbers_of_position(shape.d_model, shape.d_mlp)
    # Logits, and their probabilities in float64.
    each = call + 6 * 4 * min(budget.logits, states * shape.d_vocab) + size * shape.n_block
    each += _PROCESS_BYTES if place.n_processes > 1 else 0
    return Need("trace", held + place.n_processes * each, place.seconds(flop), "ten tokens, ten samples, three streams")


def _edit(shape: Shape, size: int) -> tuple[int, int]:
    """Bytes and operations of one value, of a layer in the first third of the model."""
    above = shape.n_layers - shape.n_layers // 3
    positions = _ROWS * _SUFFIX
    forward = positions * above * 2 * shape.n_block + 2 * _ROWS * shape.d_model * shape.d_vocab
    weights = size * (above * shape.n_block + shape.d_model * shape.d_vocab)
    twice = weights > MOST_LAID_OUT
    kept = max(size, 4) * positions * kept_of_position(above, shape.d_model, shape.d_mlp, twice=twice)
    logits = 3 * max(size, 4) * _ROWS * shape.d_vocab
    if not twice:
        return kept + logits, 2 * _STEPS * forward
    # Copies of the weights of one layer at a time.
    copies = size * (2 * shape.n_block + shape.d_model * shape.d_vocab)
    return kept + copies + logits, 3 * _STEPS * forward


def _stats(shape: Shape, place: Place) -> Need:
    n_tokens = TOKENS_PER_ROW * shape.d_mlp
    flop = n_tokens * (2 * shape.n_block * (shape.n_layers // 3 + 1) + 2 * shape.d_mlp**2)
    run = _STATS_POSITIONS * (place.dtype.itemsize * numbers_of_position(shape.d_model, shape.d_mlp) + 12 * shape.d_mlp)
    return Need("stats", bytes_to_collect([shape.d_mlp]) + run, place.seconds(flop), f"one layer, {n_tokens:,} tokens")


def _rate(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the MLP's own product on 512 rows, the best of some."""
    x = torch.randn(512, shape.d_model, device=device).to(dtype)
    weight = torch.randn(shape.d_mlp, shape.d_model, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * x.shape[0] * weight.numel() / best
