"""What no value can change, computed once for all steps of its optimisation.

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

from rome_lens.backends import Backend, KeysValues, ReplayError, check_replayed, fast_products
from rome_lens.backends.decoding import make_ready
from rome_lens.editing.prompts import Batch


@dataclass(frozen=True)
class Known:
    """What is read off the unedited model at the edited layer, at the subject's last token.

    Attributes:
        key: [row, d_mlp].
        value: [row, d_model].
    """

    key: Float[Tensor, "row d_mlp"]
    value: Float[Tensor, "row d_model"]


class Forward:
    """Logits at the positions that are read, as a function of what is added to the values: whole forwards.

    The plain way, for models whose blocks cannot be called alone and for models with hooks of their owner's.
    """

    name = "plain"

    def __init__(self, backend: Backend, layer: int, batch: Batch) -> None:
        self.backend, self.layer, self.batch = backend, layer, batch

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Open while the forward is used: whatever can be prepared once for all calls is.

        Raises:
            ReplayError: this way is not open for this model.
        """
        yield

    def known(self) -> Known:
        """Run the unedited model.

        Raises:
            ReplayError: blocks called alone give other numbers than the model.
        """
        key, value = self.backend.keys_and_values(self.layer, self.batch.tokens)
        return self._at_subject(key, value)

    def logits(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, "read_and_request d_vocab"]:
        """Run the model with `delta` added to the values of each request's rows."""
        return self._read(delta)

    def keep(self, requests: Int[Tensor, " kept"], batch: Batch) -> None:
        """Go on with some of the requests; `batch` holds them alone."""
        self.batch = batch

    def _at_subject(self, key: Tensor, value: Tensor) -> Known:
        rows = torch.arange(key.shape[0], device=key.device)
        return Known(key[rows, self.batch.subject_last], value[rows, self.batch.subject_last])

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

    @contextmanager
    def ready(self) -> Iterator[None]:
        self._record()
        with ExitStack() as stack:
            make_ready(self.backend, self.replay, stack, first=self.layer)
            yield

    @torch.no_grad()
    def known(self) -> Known:
        """Run the unedited model once, keeping keys and values in front of the subject's last token."""
        backend, batch = self.backend, self.batch
        seen: dict[str, Tensor] = {}
        hooks = [
            (backend.key_hook(self.layer), lambda x: seen.update(key=x.clone())),
            (backend.value_hook(self.layer), lambda x: seen.update(value=x.clone())),
        ]
        with fast_products(device=backend.device, dtype=backend.dtype):
            entering = self._entering()
            with backend.hooked(hooks):
                resid, past = self.replay.run(self.layer, entering, first=0, past=None)
            missing = {"key", "value"} - set(seen)
            if missing:
                raise ReplayError(f"a block called alone does not show its {' and its '.join(sorted(missing))}")
            rows = torch.arange(entering.shape[0], device=entering.device)
            self.entering, self.leaving = entering[rows, batch.subject_last][:, None], batch.suffix(resid)
            # Above the edited layer only what stands in front of the subject's last token stays as it is.
            resid = resid[:, : int(batch.subject_last.max())]
            self.past: list[KeysValues | None] = [self._before_subject(past)]
            for layer in self.layers[1:]:
                if not resid.shape[1]:
                    self.past.append(None)
                    continue
                resid, past = self.replay.run(layer, resid, first=0, past=None)
                self.past.append(self._before_subject(past))
            self._check(entering)
        return self._at_subject(seen["key"], seen["value"])

    def logits(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, "read_and_request d_vocab"]:
        with fast_products(device=self.backend.device, dtype=self.backend.dtype):
            return self._unembed(self._state(delta))

    def keep(self, requests: Int[Tensor, " kept"], batch: Batch) -> None:
        rows = torch.isin(self.batch.request, requests).nonzero()[:, 0]
        self.past = [None if past is None else past.take(rows) for past in self.past]
        self.entering, self.leaving = self.entering[rows], self.leaving[rows, : batch.n_suffix]
        self.batch = batch

    def _record(self) -> None:
        """Watch the model run two rows: how it calls its blocks, and what leaves the last of them.

        The bare prompt, whose keys and values are padded most, and the row whose subject stands last.
        """
        batch, final = self.batch, []
        self.watched = torch.stack([batch.bare_row[0], batch.subject_last.argmax()])
        point = self.backend.stream_hook("resid", self.backend.n_layers - 1)
        keep = self.backend.hooked([(point, lambda x: final.append(x.clone()))])
        with self.backend.recording() as self.replay, keep:
            self.backend.logits(batch.tokens[self.watched], keep=1)
        if len(final) != 1:
            raise ReplayError(f"nothing passes {point} in a forward")
        self.final: Float[Tensor, "2 pos d_model"] = final[0]

    def _check(self, entering: Float[Tensor, "row pos d_model"]) -> None:
        """Hold what leaves the last block against the model's own forward, where the watched rows are read."""
        batch, watched = self.batch, self.watched
        got = self._state(None, watched)
        for index, row in enumerate(watched.tolist()):
            columns = batch.read_column[batch.read_row == row]
            places = batch.subject_last[row] + columns
            check_replayed(got[index, columns], self.final[index, places], entering[row, places], "alone")

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
        backend, first, entering, leaving, pasts = (
            self.backend,
            self.batch.subject_last,
            self.entering,
            self.leaving,
            self.past,
        )
        if rows is not None:
            first, entering, leaving = first[rows], entering[rows], leaving[rows]
            pasts = [None if past is None else past.take(rows) for past in pasts]

        def add(x: Tensor) -> Tensor | None:
            return None if delta is None else x + delta.to(x.dtype)[self.batch.request][:, None].reshape(x.shape)

        with backend.hooked([(backend.value_hook(self.layer), add)]):
            changed, _ = self.replay.run(self.layer, entering, first=first, past=pasts[0])
        state = torch.cat([changed, leaving[:, 1:]], dim=1)
        for layer, past in zip(self.layers[1:], pasts[1:], strict=True):
            state, _ = self.replay.run(layer, state, first=first, past=past)
        return state

    def _unembed(self, state: Tensor) -> Float[Tensor, "read_and_request d_vocab"]:
        batch = self.batch
        rows = torch.cat([batch.read_row, batch.essence_row])
        columns = torch.cat([batch.read_column, batch.essence_column])
        return self.replay.unembed(state[rows, columns][:, None])[:, 0]
