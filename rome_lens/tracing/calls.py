"""One block called on the rows of a trace: what is recorded of it, and what is held in it where a cell restores."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rome_lens.backends import HEADS, NEURONS, Backend, BlockReplay, First, KeysValues, ReplayError, check_replayed
from rome_lens.memory import is_out_of_memory
from rome_lens.tracing.forwards import Runs, check_parts
from rome_lens.tracing.lanes import Lane


@dataclass(frozen=True)
class Layer:
    """One layer of the clean and the corrupted runs, in their rows: what it gave.

    Attributes:
        outputs: what passed the hook points by stream, [row pos d_model]: of attention and, where the layer has one, of
            the MLP; where heads or neurons are restored theirs, [row pos head d_head] and [row pos d_mlp].
        resid: what left the layer.
        past: its keys and values.
    """

    outputs: dict[str, Tensor]
    resid: Float[Tensor, "row pos d_model"]
    past: KeysValues


@dataclass(eq=False)
class BlockCalls:
    """Calls a model's blocks as the model calls them, with their hook points; restoring and severing happen in hooks.

    Attributes:
        backend: the model.
        runs: the clean and corrupted runs.
        replay: the model's blocks.
        parts: (stream, layer) where single heads or neurons are restored, so that what they give is recorded.
        acts: what the hooks do in the call that is running, by stream.
    """

    backend: Backend
    runs: Runs
    replay: BlockReplay
    parts: Collection[tuple[str, int]]
    acts: dict[str, Callable[[Tensor], Tensor | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = [stream for stream in self.backend.streams() if stream in ("attn", "mlp")]
        # By layer, the streams that are watched.
        self.streams = [
            whole + [stream for stream in (HEADS, NEURONS) if (stream, layer) in self.parts]
            for layer in range(self.backend.n_layers)
        ]

    def hooked(self) -> AbstractContextManager[None]:
        """The hooks, attached for as long as the block lasts."""
        points = [(stream, layer) for layer, streams in enumerate(self.streams) for stream in streams]
        return self.backend.hooked([(self.backend.stream_hook(*at), partial(self._act, at[0])) for at in points])

    def _act(self, stream: str, x: Tensor) -> Tensor | None:
        return self.acts[stream](x) if stream in self.acts else None

    def record(self, layer: int, resid_pre: Float[Tensor, "row pos d_model"]) -> Layer:
        """Run one layer on whole rows.

        Raises:
            ReplayError: its hook points do not fire, or the block cannot be called this way.
        """
        seen: dict[str, Tensor] = {}
        self.acts = {s: lambda x, s=s: seen.update({s: x.clone()}) for s in ("attn", *self.streams[layer])}
        resid, past = self.replay.run(layer, resid_pre, first=0, past=None)
        silent = [stream for stream in self.streams[layer] if stream not in seen]
        if silent or "attn" not in seen:
            points = " and ".join(self.backend.stream_hook(stream, layer) for stream in silent or ["attn"])
            raise ReplayError(f"a block called alone does not reach {points}")
        for stream, output in seen.items():
            check_parts(self.backend, stream, output)
        return Layer(seen, resid, past)

    def check(self, layer: int, entering: Float[Tensor, "checked pos d_model"], *, own_rows: bool) -> bool:
        """Hold the ways of calling a block against the model's own forward, on clean and corrupted rows.

        Args:
            layer: which block.
            entering: what the model itself put into it: what rounding did in the layers below is no fault of the call,
                and where a layer writes numbers of a thousand times the usual size it would be taken for one.
            own_rows: also look whether rows may begin at positions of their own.

        Returns:
            Whether they may.

        Raises:
            ReplayError: a call gives other numbers.
        """
        expected, half = self.runs.resid_post[layer], self.runs.n_tokens // 2
        whole = self.record(layer, entering)
        check_replayed(whole.resid, expected, entering, "on all positions")
        self.acts = {}
        if half > 0:
            part, _ = self.replay.run(layer, entering[:, half:], first=half, past=whole.past.before(half))
            check_replayed(part, expected[:, half:], entering[:, half:], "from a later position on")
        single = "row pos d_model -> (row pos) 1 d_model"
        # What attention gives is set where a window begins, and what its heads give where heads are restored.
        for stream in ("attn", HEADS) if HEADS in whole.outputs else ("attn",):
            self.acts = {stream: lambda _, stream=stream: whole.outputs[stream].flatten(0, 1)[:, None]}
            alone, _ = self.replay.run(layer, rearrange(entering, single), first=0, past=None)
            check_replayed(alone, rearrange(expected, single), rearrange(entering, single), "on single positions")
        self.acts = {}
        return own_rows and half > 0 and self._takes_own_rows(layer, entering, expected, whole.past)

    def _takes_own_rows(self, layer: int, entering: Tensor, expected: Tensor, past: KeysValues) -> bool:
        """Whether rows that begin at positions of their own give the model's numbers, too."""
        half = self.runs.n_tokens // 2
        # The last row begins in the middle, and the others at the first position.
        first = torch.zeros(len(entering), dtype=torch.long, device=entering.device)
        first[-1] = half
        begun = padded([entering[:-1, None], entering[-1:, None, half:]])[:, 0]
        real, how = self.runs.n_tokens - half, "on rows of their own"
        try:
            after, _ = self.replay.run(layer, begun, first=first, past=past.before(half).ending_at(first, half))
            check_replayed(after[:-1], expected[:-1], entering[:-1], how)
            check_replayed(after[-1, :real], expected[-1, half:], entering[-1, half:], how)
        except Exception as error:  # whatever a block raises that does not know such rows
            if is_out_of_memory(error):
                raise
            return False
        return True

    def advance(
        self,
        layer: int,
        here: Layer,
        lanes: Sequence[Lane],
        cases: Int[Tensor, " lane"],
        state: Float[Tensor, "lane sample pos d_model"],
    ) -> Float[Tensor, "lane sample pos d_model"]:
        """Run one layer on lanes, those of the earliest position first; the others are padded behind.

        Args:
            layer: which block.
            here: what it gave in the clean and the corrupted runs.
            lanes: the lanes.
            cases: whose they are.
            state: what enters the block.
        """
        n_samples = self.runs.n_samples
        positions = torch.tensor([lane.cell.pos for lane in lanes], device=state.device)
        corrupted = self.runs.corrupted_rows(cases)
        held = {stream: _Held.of(stream, layer, lanes, device=state.device) for stream in here.outputs}
        self.acts = {
            stream: some.act(here.outputs[stream], cases, corrupted, positions)
            for stream, some in held.items()
            if some is not None
        }
        first: First = lanes[0].cell.pos
        last, past = lanes[-1].cell.pos, None
        if last:
            past = here.past.before(last).take(rearrange(corrupted, "lane sample -> (lane sample)"))
        if first != last:
            first = repeat(positions, "lane -> (lane sample)", sample=n_samples)
            past = None if past is None else past.ending_at(first, last)
        rows_of = "lane sample pos d_model -> (lane sample) pos d_model"
        after, _ = self.replay.run(layer, rearrange(state, rows_of), first=first, past=past)
        return rearrange(after, "(lane sample) pos d_model -> lane sample pos d_model", sample=n_samples)

    def begin(
        self, layer: int, here: Layer, lanes: Sequence[Lane], base: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "lane sample d_model"]:
        """What leaves a window's first layer at its restored position, for lanes of all positions at once.

        What attention gives there is known, or what its heads give, so what it sees does not matter: every row is a
        single position.

        Args:
            layer: the first restored layer.
            here: what it gave in the clean and the corrupted runs.
            lanes: the lanes whose windows begin with it.
            base: what enters it in these runs.
        """
        positions = torch.tensor([lane.cell.pos for lane in lanes], device=base.device)[:, None]
        cases = torch.tensor([lane.case for lane in lanes], device=base.device)
        corrupted = self.runs.corrupted_rows(cases)
        clean = cases[:, None].expand_as(corrupted)

        def of_stream(stream: str) -> Bool[Tensor, "lane 1"]:
            return torch.tensor([lane.cell.stream == stream for lane in lanes], device=base.device)[:, None]

        def rows_of(stream: Bool[Tensor, "lane 1"]) -> Bool[Tensor, "_ 1 1"]:
            return repeat(stream, "lane 1 -> (lane sample) 1 1", sample=self.runs.n_samples)

        of_mlp = of_stream("mlp")
        single = "lane sample d_model -> (lane sample) 1 d_model"
        source = torch.where(of_mlp | of_stream(NEURONS), corrupted, clean)
        attn = rearrange(here.outputs["attn"][source, positions], single)
        self.acts = {"attn": lambda _: attn}
        if HEADS in here.outputs:
            # Attention's output of these rows is what the block makes of the heads'.
            by_heads = rows_of(of_stream(HEADS))
            self.acts["attn"] = lambda x: torch.where(by_heads, x, attn)
            restored = rearrange(_parts_of(HEADS, layer, here, lanes), "lane head -> lane 1 head 1")
            outputs = here.outputs[HEADS]
            z = torch.where(restored, outputs[clean, positions], outputs[corrupted, positions])
            z = rearrange(z, "lane sample head d_head -> (lane sample) 1 head d_head")
            self.acts[HEADS] = lambda _: z
        if NEURONS in here.outputs:
            restored = _parts_of(NEURONS, layer, here, lanes)
            neurons = repeat(restored, "lane neuron -> (lane sample) 1 neuron", sample=self.runs.n_samples)
            cleanly = rearrange(here.outputs[NEURONS][clean, positions], single)
            self.acts[NEURONS] = lambda x: torch.where(neurons, cleanly, x)
        if "mlp" in here.outputs:
            mlp, by_mlp = rearrange(here.outputs["mlp"][clean, positions], single), rows_of(of_mlp)
            self.acts["mlp"] = lambda x: torch.where(by_mlp, mlp, x)
        after, _ = self.replay.run(layer, rearrange(base[corrupted, positions], single), first=0, past=None)
        return rearrange(after, "(lane sample) 1 d_model -> lane sample d_model", sample=self.runs.n_samples)


@dataclass(frozen=True)
class _Held:
    """Where a stream's output of a layer is set in a call: at the first position of some lanes.

    Attributes:
        lanes: [held] which lanes of the call, once for each of their parts where parts are set.
        cleanly: [held] whether to the clean run's output, else to the corrupted run's.
        parts: [held] which head or neuron; None where the whole output is set.
    """

    lanes: Int[Tensor, " held"]
    cleanly: Bool[Tensor, " held"]
    parts: Int[Tensor, " held"] | None

    @classmethod
    def of(cls, stream: str, layer: int, lanes: Sequence[Lane], *, device: torch.device) -> "_Held | None":
        """None where no lane's output is set."""
        held = [
            (index, cleanly, part)
            for index, lane in enumerate(lanes)
            if (cleanly := _is_held(lane, stream, layer)) is not None
            for part in lane.cell.parts_at(layer) or (0,)
        ]
        if not held:
            return None
        index, cleanly, parts = torch.tensor(held, device=device).T
        return cls(index, cleanly == 1, parts if stream in (HEADS, NEURONS) else None)

    def act(
        self,
        output: Float[Tensor, "row pos ..."],
        cases: Int[Tensor, " lane"],
        corrupted: Int[Tensor, "lane sample"],
        positions: Int[Tensor, " lane"],
    ) -> Callable[[Tensor], Tensor]:
        """What the hook does, in a call whose rows are the lanes' samples."""
        n_samples = corrupted.shape[1]
        source = torch.where(self.cleanly[:, None], cases[self.lanes, None], corrupted[self.lanes])
        rows = self.lanes[:, None] * n_samples + torch.arange(n_samples, device=output.device)
        taken, placed = [source, positions[self.lanes, None]], [rows, torch.zeros_like(rows)]
        if self.parts is not None:
            taken.append(self.parts[:, None])
            placed.append(self.parts[:, None].expand_as(rows))
        values = output[tuple(taken)].flatten(0, 1)
        places = tuple(index.flatten() for index in placed)
        return lambda x: x.index_put(places, values)


def padded(states: Sequence[Float[Tensor, "_ sample _ d_model"]]) -> Float[Tensor, "lane sample pos d_model"]:
    """States of several positions in one, the longest first; behind the others stand zeros, which nothing reads."""
    if len(states) == 1:
        return states[0]
    _, n_samples, n_pos, d_model = states[0].shape
    together = states[0].new_zeros(sum(map(len, states)), n_samples, n_pos, d_model)
    for part, state in zip(together.split(list(map(len, states))), states, strict=True):
        part[:, :, : state.shape[2]] = state
    return together


def _parts_of(stream: str, layer: int, here: Layer, lanes: Sequence[Lane]) -> Bool[Tensor, "lane part"]:
    """Which heads or neurons of a layer each lane's cell restores."""
    output = here.outputs[stream]
    restored = torch.zeros(len(lanes), output.shape[2], dtype=torch.bool)
    for mask, lane in zip(restored, lanes, strict=True):
        if lane.cell.stream == stream:
            mask[lane.cell.parts_at(layer)] = True
    return restored.to(output.device)


def _is_held(lane: Lane, stream: str, layer: int) -> bool | None:
    """Whether a stream's output of a layer is set to the clean run's (True), the corrupted run's, or left (None)."""
    cell = lane.cell
    if cell.stream == stream and cell.first <= layer < cell.end and (not cell.parts or cell.parts_at(layer)):
        return True
    return False if cell.severed == stream else None
