"""The part of the forward pass that an optimiser repeats, by the model's blocks or by whole forwards.

What is optimised enters at one place of one layer: a value at the subject's last token (`ValueForward`), or the layer's
whole `W_out` (in `tuning`). Below that layer nothing changes at all, so what enters it is computed once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rome_lens.backends import Backend, BlockReplay, First, KeysValues, ReplayError, check_replayed, fast_products
from rome_lens.backends.decoding import make_ready, record_blocks
from rome_lens.editing.batches import MOST_LAID_OUT
from rome_lens.editing.hooks import Hook
from rome_lens.editing.prompts import Batch, Rows
from rome_lens.editing.value_settings import At
from rome_lens.errors import ModelError

_R = TypeVar("_R", bound=Rows)


class Forward(ABC, Generic[_R]):
    """Logits where they are read, as a function of what is optimised: whole forwards.

    The plain way, for models whose blocks cannot be called alone and for models with hooks of their owner's.

    Attributes:
        name: `plain`, or `blocks`.
        backend: the model.
        layer: the layer at which what is optimised enters.
        batch: the rows of the requests that are still under way.
    """

    name = "plain"

    def __init__(self, backend: Backend, layer: int, batch: _R) -> None:
        self.backend, self.layer, self.batch = backend, layer, batch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Open while the forward is used: whatever can be prepared once for all calls is.

        Raises:
            ReplayError: this way is not open for this model.
        """
        yield

    @abstractmethod
    def hooks(self, found: Float[Tensor, "request ..."]) -> list[tuple[str, Hook]]:
        """What adds the parameters of each request to its rows."""

    def logits(self, found: Float[Tensor, "request ..."]) -> Float[Tensor, "place d_vocab"]:
        """Run the model with each request's parameters in its rows, and read it at `batch.read_at`."""
        with self.backend.hooked(self.hooks(found)):
            logits = self.backend.run(self.batch.tokens)
        rows, columns = self.batch.read_at
        return logits[rows, columns]

    def keep(self, kept: Int[Tensor, " kept"], batch: _R) -> None:
        """Go on with some of the requests, by their places in the batch so far; `batch` holds them alone."""
        self.batch = batch


class BlockForward(Forward[_R]):
    """The same numbers by the model's blocks, from the layer on.

    Where weights are too large to be kept a second time, a layer keeps for the gradient what enters it alone, and is
    run once more when the gradient is taken. What it would keep otherwise has copies of its weights in it:
    HookedTransformer makes them in every call.
    """

    name = "blocks"
    replay: BlockReplay
    runs_twice = False

    @contextmanager
    def ready(self) -> Iterator[None]:
        self.record()
        with ExitStack() as stack:
            self.runs_twice = not make_ready(self.backend, self.replay, stack, first=self.layer, most=MOST_LAID_OUT)
            yield

    def leaving_above(
        self, layer: int, state: Float[Tensor, "row pos d_model"], *, first: First, past: KeysValues | None
    ) -> Float[Tensor, "row pos d_model"]:
        """What leaves a layer above the one at which what is optimised enters."""
        if not (self.runs_twice and state.requires_grad):
            return self.replay.run(layer, state, first=first, past=past)[0]

        def run(state: Tensor) -> Tensor:
            # The second time the caller's products are another library's.
            with fast_products(device=self.backend.device, dtype=self.backend.dtype):
                return self.replay.run(layer, state, first=first, past=past)[0]

        found = checkpoint(run, state, use_reentrant=False, preserve_rng_state=False)
        assert isinstance(found, Tensor)
        return found

    @abstractmethod
    def record(self) -> None:
        """Watch the model run: how it calls its blocks (`replay`), and what they are to be held against."""

    @property
    def above(self) -> range:
        """The layers above the one at which what is optimised enters."""
        return range(self.layer + 1, self.backend.n_layers)


def way_and_notes(done: str, reason: str | None) -> tuple[str, tuple[str, ...]]:
    """What a result says of how the model was run.

    Args:
        done: what was done, such as "values were optimised".
        reason: why whole forwards were run; None where the blocks were.
    """
    if reason is None:
        return BlockForward.name, ()
    return Forward.name, (f"{done} by whole forwards, which is slower: {reason}",)


class Known(NamedTuple):
    """What is read off the unedited model at the edited layer, at the subject's last token.

    Attributes:
        key: what enters `W_out`.
        value: what leaves it.
        base: what is optimised is added to this: the value, or what leaves the block.
    """

    key: Float[Tensor, "row d_mlp"]
    value: Float[Tensor, "row d_model"]
    base: Float[Tensor, "row d_model"]


class ValueForward(Forward[Batch]):
    """What is optimised is added to the layer's value at each row's subject's last token, or to the block's output.

    Attributes:
        at: to which of them.
    """

    def __init__(self, backend: Backend, layer: int, batch: Batch, at: At = "w_out") -> None:
        super().__init__(backend, layer, batch)
        self.at: At = at

    @property
    def point(self) -> str:
        """Name of the hook point where what is optimised is added."""
        if self.at == "block":
            return self.backend.stream_hook("resid", self.layer)
        return self.backend.value_hook(self.layer)

    def hooks(self, found: Float[Tensor, "request d_model"]) -> list[tuple[str, Hook]]:
        return [(self.point, self._adding(found, self.batch.request))]

    def known(self) -> Known:
        """Run the unedited model.

        Raises:
            ReplayError: blocks called alone give other numbers than the model. ModelError: they do not show their keys,
                values or outputs, or at `block` what leaves `W_out` is not added to the block's output as it is.
        """
        backend, tokens, leaving = self.backend, self.batch.tokens, {}
        with backend.hooked([] if self.at == "w_out" else [(self.point, lambda x: leaving.update(base=x.clone()))]):
            key, value = backend.keys_and_values(self.layer, tokens)
        if self.at == "block" and not leaving:
            raise backend.silent(self.point)
        known = self._at_subject(key, value, leaving.get("base", value))
        self._check_reaches(known, lambda: backend.run(tokens, layers=self.layer + 1))
        return known

    def _adding(self, changes: Float[Tensor, "change d_model"], which: Int[Tensor, " row"]) -> Hook:
        """What adds one of some changes to each row at its subject's last token."""
        rows, columns = torch.arange(which.shape[0], device=which.device), self.batch.subject_last

        def add(x: Tensor) -> Tensor:
            here = torch.zeros_like(x)
            here[rows, columns] = changes.to(x.dtype)[which]
            return x + here

        return add

    def _at_subject(self, *seen: Tensor) -> Known:
        rows, columns = torch.arange(seen[0].shape[0], device=seen[0].device), self.batch.subject_last
        return Known(*(x[rows, columns] for x in seen))

    @torch.no_grad()
    def _check_reaches(self, known: Known, run: Callable[[], object]) -> None:
        """Hold what the block's output gains by a change of its value against the change.

        What is found for the block's output is written into `W_out`, and so has to arrive there as it is.

        Args:
            known: of the unedited model.
            run: runs the layer as it was run for that.

        Raises:
            ModelError: it gains something else.
        """
        if self.at == "w_out":
            return
        base, seen = known.base.double(), []
        noise = torch.randn(base.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(base)
        change = noise * (base.norm(dim=1) / noise.norm(dim=1))[:, None]
        rows = torch.arange(base.shape[0], device=base.device)
        hooks = [
            (self.backend.value_hook(self.layer), self._adding(change, rows)),
            (self.point, lambda x: seen.append(x.clone())),
        ]
        with self.backend.hooked(hooks):
            run()
        gained = seen[0][rows, self.batch.subject_last].double() - base
        apart = (gained - change).norm() / change.norm().clamp(min=1e-30)
        if not apart <= 8 * torch.finfo(self.backend.dtype).eps:
            raise ModelError(
                f"what leaves the MLP of layer {self.layer} of {self.backend.model_name} is not added to the block's "
                f"output as it is (relative difference {apart:.1e}): a norm or a scale stands in between, and what is "
                "found for the block's output cannot be written into W_out; find values at='w_out'"
            )


class ValueBlocks(BlockForward[Batch], ValueForward):
    """The same numbers from the subject's last token on.

    Above the layer nothing changes in front of that token: keys and values there are kept for attention to read. What
    is left of a step are the layers from the edited one on, at the positions from the subject's last token on,
    unembedded where something is read. Rows begin at positions of their own.
    """

    @torch.no_grad()
    def known(self) -> Known:
        """Run the unedited model once, keeping keys and values in front of the subject's last token."""
        backend, batch = self.backend, self.batch
        seen: dict[str, Tensor] = {}
        points = {"key": backend.key_hook(self.layer), "value": backend.value_hook(self.layer), "base": self.point}
        hooks = [(point, lambda x, what=what: seen.update({what: x.clone()})) for what, point in points.items()]
        with fast_products(device=backend.device, dtype=backend.dtype):
            entering = self._entering()
            with backend.hooked(hooks):
                resid, past = self.replay.run(self.layer, entering, first=0, past=None)
            missing = points.keys() - seen.keys()
            if missing:
                raise ReplayError(f"a block called alone does not show its {' and its '.join(sorted(missing))}")
            known = self._at_subject(*(seen[what] for what in points))
            self._check_reaches(known, lambda: self.replay.run(self.layer, entering, first=0, past=None))
            rows = torch.arange(entering.shape[0], device=entering.device)
            self.entering, self.leaving = entering[rows, batch.subject_last][:, None], batch.suffix(resid)
            # Above the edited layer only what stands in front of the subject's last token stays as it is.
            resid = resid[:, : int(batch.subject_last.max())]
            self.past: list[KeysValues | None] = [self._before_subject(past)]
            for layer in self.above:
                if not resid.shape[1]:
                    self.past.append(None)
                    continue
                resid, past = self.replay.run(layer, resid, first=0, past=None)
                self.past.append(self._before_subject(past))
            self._check(entering)
        return known

    def logits(self, found: Float[Tensor, "request d_model"]) -> Float[Tensor, "place d_vocab"]:
        rows, columns = self.batch.read_at
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            state = self._state(found)
            return self.replay.unembed(state[rows, columns - self.batch.subject_last[rows]][:, None])[:, 0]

    def keep(self, kept: Int[Tensor, " kept"], batch: Batch) -> None:
        rows = torch.isin(self.batch.request, kept).nonzero()[:, 0]
        self.past = [None if past is None else past.take(rows) for past in self.past]
        self.entering, self.leaving = self.entering[rows], self.leaving[rows, : batch.n_suffix]
        self.batch = batch

    def record(self) -> None:
        """Two rows: the bare prompt, whose keys and values are padded most, and the one whose subject stands last."""
        batch = self.batch
        self.checked = torch.stack([batch.bare_row[0], batch.subject_last.argmax()])
        point = self.backend.stream_hook("resid", self.backend.n_layers - 1)
        self.replay, seen = record_blocks(self.backend, batch.tokens[self.checked], final=point)
        self.final: Float[Tensor, "2 pos d_model"] = seen["final"]

    def _check(self, entering: Float[Tensor, "row pos d_model"]) -> None:
        """Hold what leaves the last block against the model's own forward, where the checked rows are read."""
        batch, targets = self.batch, self.batch.targets
        got = self._state(None, self.checked)
        for index, row in enumerate(self.checked.tolist()):
            places = targets.column[targets.row == row]
            check_replayed(
                got[index, places - batch.subject_last[row]], self.final[index, places], entering[row, places], "alone"
            )

    def _entering(self) -> Float[Tensor, "row pos d_model"]:
        """What enters the edited layer, from the model's own forward of the layers below."""
        seen: list[Tensor] = []
        with self.backend.hooked([(f"blocks.{self.layer}.hook_resid_pre", lambda x: seen.append(x.clone()))]):
            self.backend.run(self.batch.tokens, layers=self.layer + 1)
        return seen[0]

    def _before_subject(self, past: KeysValues) -> KeysValues | None:
        return past.ending_at(self.batch.subject_last) if int(self.batch.subject_last.max()) else None

    def _state(self, delta: Tensor | None, rows: Tensor | None = None) -> Float[Tensor, "row n_suffix d_model"]:
        """What leaves the last block, of all rows or of some."""
        first, entering, leaving, pasts = self.batch.subject_last, self.entering, self.leaving, self.past
        if rows is not None:
            first, entering, leaving = first[rows], entering[rows], leaving[rows]
            pasts = [None if past is None else past.take(rows) for past in pasts]

        def add(x: Tensor) -> Tensor | None:
            return None if delta is None else x + delta.to(x.dtype)[self.batch.request][:, None].reshape(x.shape)

        with self.backend.hooked([(self.point, add)]):
            changed, _ = self.replay.run(self.layer, entering, first=first, past=pasts[0])
        state = torch.cat([changed, leaving[:, 1:]], dim=1)
        for layer, past in zip(self.above, pasts[1:], strict=True):
            state = self.leaving_above(layer, state, first=first, past=past)
        return state
