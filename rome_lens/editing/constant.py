"""What no value can change, computed once for all steps of its optimisation (SPEC 2, "Cost").

Below the edited layer nothing changes at all, and above it nothing before the subject's last token: their keys and
values are kept for attention to read. What is left of a step are the layers from the edited one on, at the positions
from the subject's last token on, unembedded where something is read. Rows begin at positions of their own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend, BlockReplay, KeysValues, ReplayError, check_replayed, fast_products
from rome_lens.editing.rows import Batch
from rome_lens.memory import free_bytes


@dataclass(frozen=True)
class Known:
    """What is read off the unedited model at the edited layer.

    Attributes:
        key: [row, d_mlp] at the subject's last token.
        value: [row, d_model] there.
        logits: [read + request, d_vocab] at the positions that are read, the essences' last.
    """

    key: Float[Tensor, "row d_mlp"]
    value: Float[Tensor, "row d_model"]
    logits: Float[Tensor, "read_and_request d_vocab"]


class Forward:
    """Logits at the positions that are read, as a function of what is added to the values: whole forwards.

    The plain way, for models whose blocks cannot be called alone and for models with hooks of their owner's.
    """

    name = "plain"

    def __init__(self, backend: Backend, layer: int, batch: Batch) -> None:
        self.backend, self.layer, self.batch = backend, layer, batch

    def known(self) -> Known:
        """Run the unedited model."""
        seen: dict[str, Tensor] = {}
        rows = torch.arange(self.batch.tokens.shape[0], device=self.batch.tokens.device)

        def keep(what: str, x: Tensor) -> None:
            seen[what] = x[rows, self.batch.subject_last].detach().clone()

        hooks = [
            (self.backend.key_hook(self.layer), lambda x: keep("key", x)),
            (self.backend.value_hook(self.layer), lambda x: keep("value", x)),
        ]
        with torch.no_grad(), self.backend.hooked(hooks):
            logits = self._read(None)
        return Known(seen["key"], seen["value"], logits)

    def logits(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, "read_and_request d_vocab"]:
        """Run the model with `delta` added to the values of each request's rows."""
        return self._read(delta)

    def keep(self, requests: Int[Tensor, " kept"], batch: Batch) -> None:
        """Go on with some of the requests; `batch` holds them alone."""
        self.batch = batch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Open while many steps are made."""
        yield

    def _read(self, delta: Tensor | None) -> Tensor:
        batch = self.batch
        rows = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)

        def add(x: Tensor) -> Tensor:
            assert delta is not None
            here = torch.zeros_like(x)
            here[rows, batch.subject_last] = delta.to(x.dtype)[batch.request]
            return x + here

        read_rows = torch.cat([batch.read_row, batch.essence_row])
        columns = torch.cat([batch.read_column, batch.essence_column]) + batch.subject_last[read_rows]
        hooks = [] if delta is None else [(self.backend.value_hook(self.layer), add)]
        with self.backend.hooked(hooks):
            logits = self.backend.run(batch.tokens)
        return logits[read_rows, columns]


class ReplayForward(Forward):
    """The same numbers from the edited layer on and from the subject's last token on."""

    name = "blocks"

    def __init__(self, backend: Backend, layer: int, batch: Batch) -> None:
        super().__init__(backend, layer, batch)
        self.layers = range(layer, backend.n_layers)
        self.past: list[KeysValues | None] = []

    def known(self) -> Known:
        """Run the unedited model once, keeping keys and values in front of the subject's last token.

        Raises:
            ReplayError: blocks called alone give other numbers than the model.
        """
        backend, batch = self.backend, self.batch
        rows = torch.arange(batch.tokens.shape[0], device=batch.tokens.device)
        seen: dict[str, Tensor] = {}
        hooks = [
            (backend.key_hook(self.layer), lambda x: seen.update(key=x.clone())),
            (backend.value_hook(self.layer), lambda x: seen.update(value=x.clone())),
        ]
        with torch.no_grad(), fast_products(device=backend.device, dtype=backend.dtype):
            self.replay, final = self._record(batch)
            resid = entering = self._entering(batch)
            self.entering = resid[rows, batch.subject_last][:, None]
            for layer in self.layers:
                with backend.hooked(hooks if layer == self.layer else []):
                    resid, past = self.replay.run(layer, resid, first=0, past=None)
                self.past.append(self._before_subject(past))
                if layer == self.layer:
                    self.leaving = batch.suffix(resid)
            check_replayed(resid[:1], final, entering[:1], "on all positions")
            state = self._state(None)
            read = batch.read_row, batch.read_column
            check_replayed(
                state[read], batch.suffix(resid)[read], batch.suffix(entering)[read], "for rows that begin apart"
            )
            logits = self._unembed(state)
        missing = {"key", "value"} - set(seen)
        if missing:
            raise ReplayError(f"a block called alone does not show its {' and its '.join(sorted(missing))}")
        return Known(seen["key"][rows, batch.subject_last], seen["value"][rows, batch.subject_last], logits)

    def logits(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, "read_and_request d_vocab"]:
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            return self._unembed(self._state(delta))

    def keep(self, requests: Int[Tensor, " kept"], batch: Batch) -> None:
        rows = torch.isin(self.batch.request, requests).nonzero()[:, 0]
        self.past = [None if past is None else past.take(rows) for past in self.past]
        self.entering, self.leaving = self.entering[rows], self.leaving[rows, : batch.n_suffix]
        self.batch = batch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Weights laid out once for all steps, where there is room for a copy of them."""
        size = sum(p.numel() * p.element_size() for p in self.backend.model.parameters())
        with ExitStack() as stack:
            if self.backend.device.type == "cpu" and 3 * size < free_bytes(self.backend.device):
                for layer in self.layers:
                    stack.enter_context(self.replay.layer_ready(layer))
                stack.enter_context(self.replay.unembed_ready())
            yield

    def _record(self, batch: Batch) -> tuple[BlockReplay, Tensor]:
        """Watch the model run the first row: how it calls its blocks, and what leaves the last of them."""
        final: list[Tensor] = []
        point = self.backend.stream_hook("resid", self.backend.n_layers - 1)
        with self.backend.recording() as replay, self.backend.hooked([(point, lambda x: final.append(x.clone()))]):
            self.backend.logits(batch.tokens[:1], keep=1)
        return replay, final[0]

    def _entering(self, batch: Batch) -> Float[Tensor, "row pos d_model"]:
        """What enters the edited layer, from the model's own forward of the layers below."""
        seen: list[Tensor] = []
        with self.backend.hooked([(f"blocks.{self.layer}.hook_resid_pre", lambda x: seen.append(x.clone()))]):
            self.backend.run(batch.tokens, layers=self.layer + 1)
        return seen[0]

    def _before_subject(self, past: KeysValues) -> KeysValues | None:
        return past.ending_at(self.batch.subject_last) if int(self.batch.subject_last.max()) else None

    def _state(self, delta: Tensor | None) -> Float[Tensor, "row n_suffix d_model"]:
        """What leaves the last block."""
        backend, first = self.backend, self.batch.subject_last

        def add(x: Tensor) -> Tensor | None:
            return None if delta is None else x + delta.to(x.dtype)[self.batch.request][:, None].reshape(x.shape)

        with backend.hooked([(backend.value_hook(self.layer), add)]):
            changed, _ = self.replay.run(self.layer, self.entering, first=first, past=self.past[0])
        state = torch.cat([changed, self.leaving[:, 1:]], dim=1)
        for layer, past in zip(self.layers[1:], self.past[1:], strict=True):
            state, _ = self.replay.run(layer, state, first=first, past=past)
        return state

    def _unembed(self, state: Tensor) -> Float[Tensor, "read_and_request d_vocab"]:
        batch = self.batch
        rows = torch.cat([batch.read_row, batch.essence_row])
        columns = torch.cat([batch.read_column, batch.essence_column])
        return self.replay.unembed(state[rows, columns][:, None])[:, 0]
