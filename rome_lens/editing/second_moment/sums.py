"""Sums of products of keys, which pieces of text are added to.

Pieces are sorted by length, so that little of a batch is padding. Padding stands on the right, where no token of a
decoder sees it, and its keys are left out. Each layer's products are added to its sum while the model runs: no keys are
kept.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Backend, fast_products
from rome_lens.backends.decoding import pad_rows
from rome_lens.editing.second_moment.budget import RowBudget
from rome_lens.errors import ModelError, OutOfMemoryError
from rome_lens.memory import is_out_of_memory


class Sums:
    """Of some layers of a model.

    Attributes:
        totals: by layer, [d_mlp d_mlp], float64; on the model's device, if that has float64.
    """

    def __init__(self, backend: Backend, widths: Mapping[int, int], budget: RowBudget) -> None:
        """Take memory for the sums.

        Args:
            backend: the model.
            widths: d_mlp of each layer.
            budget: how much text is run at once.

        Raises:
            OutOfMemoryError: there is none.
        """
        self._backend, self._widths, self._budget = backend, widths, budget
        self._checked = False
        self.totals = self._zeros()

    @torch.no_grad()
    def add(self, pieces: Sequence[list[int]], done: Callable[[int], None] | None = None) -> None:
        """Add the products of the keys of some pieces.

        Args:
            pieces: token ids of each.
            done: called with how many tokens are added, now and then.

        Raises:
            ModelError: a layer's `W_out` is not where its keys are, or a layer never shows its keys.
            OutOfMemoryError: not even one piece fits into memory.
        """
        if not self._checked:
            tokens = torch.tensor([pieces[0]], device=self._backend.device)
            for layer in self._widths:
                self._backend.check_w_out(layer, tokens)
            self._checked = True
        waiting, n_done = sorted(pieces, key=len, reverse=True), 0
        with fast_products(device=self._backend.device, dtype=self._backend.dtype):
            while waiting:
                n_rows = max(1, self._budget.positions // len(waiting[0]))
                batch, waiting = waiting[:n_rows], waiting[n_rows:]
                self._add_batch(batch, set(self._widths))
                n_done += sum(map(len, batch))
                if done is not None:
                    done(n_done)

    def _zeros(self) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
        # Apple's GPUs have no float64.
        device = torch.device("cpu") if self._backend.device.type == "mps" else self._backend.device
        try:
            return {
                layer: torch.zeros(width, width, dtype=torch.float64, device=device)
                for layer, width in self._widths.items()
            }
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"the sums of {len(self._widths)} layers do not fit into memory; collect fewer layers at a time"
            ) from error

    def _add_batch(self, batch: list[list[int]], pending: set[int]) -> None:
        """Add the products of a batch to the sums of the layers that are pending."""
        try:
            self._add_whole(batch, pending)
        except (RuntimeError, MemoryError) as error:
            self._budget.halve_after(error, n_rows=len(batch))
        else:
            return
        # Layers that had their products before memory ran out are not pending any more.
        half = len(batch) // 2
        for part in (batch[:half], batch[half:]):
            self._add_batch(part, set(pending))

    def _add_whole(self, batch: list[list[int]], pending: set[int]) -> None:
        lengths = torch.tensor([len(piece) for piece in batch])
        tokens = pad_rows(batch, self._backend.device)
        real = torch.arange(tokens.shape[1]) < lengths[:, None]
        padded, last = not real.all(), max(pending)

        def adding(layer: int) -> Any:
            def add(key: Tensor) -> None:
                # A model may be spread over several devices.
                product = _product(key[real.to(key.device)] if padded else key.flatten(0, 1))
                self.totals[layer].add_(product.to(self.totals[layer].device))
                pending.remove(layer)

            return add

        hooks = [(self._backend.key_hook(layer), adding(layer)) for layer in sorted(pending)]
        with self._backend.hooked(hooks):
            if last + 1 < self._backend.n_layers:
                self._backend.run(tokens, layers=last + 1)
            else:
                self._backend.logits(tokens, keep=1)
        if pending:
            raise ModelError(f"layer {min(pending)} of {self._backend.model_name} never shows its keys")


def bytes_to_collect(widths: Sequence[int]) -> int:
    """What sums of these widths take in bytes: each in float64, and beside them the product that is added or the mean
    that is made of the widest.
    """
    return 8 * (sum(width**2 for width in widths) + max(widths) ** 2)


def _product(keys: Float[Tensor, "token d_mlp"]) -> Float[Tensor, "d_mlp d_mlp"]:
    """Sum over tokens of k k^T, in float32, or in float64 for keys in float64."""
    # As a linear map it goes through the faster of PyTorch's libraries (backends.products), which wants rows in order.
    across = keys.detach().t().to(torch.promote_types(keys.dtype, torch.float32)).contiguous()
    return F.linear(across, across)
