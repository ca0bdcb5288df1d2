"""How much text is run at once: bounded by what is free, halved when memory runs out all the same."""

from collections.abc import Mapping
from dataclasses import dataclass

from rome_lens.backends import Backend
from rome_lens.errors import OutOfMemoryError
from rome_lens.memory import free_bytes, is_out_of_memory

# More positions than these make nothing faster; on a CPU large tensors are slower (see tracing.memory).
_CPU_POSITIONS = 1024
_GPU_POSITIONS = 65536


@dataclass
class RowBudget:
    """Rows times positions in one call of the model, a row being the least. It only ever shrinks."""

    positions: int

    @classmethod
    def choose(
        cls, backend: Backend, text_length: int, widths: Mapping[int, int], *, most: int | None, n_workers: int = 1
    ) -> "RowBudget":
        """A size for this model from the memory that is free on its device now.

        Args:
            backend: the model.
            text_length: the longest row in tokens.
            widths: d_mlp of the layers whose products are summed.
            most: a size that the caller chose; memory is not looked at then.
            n_workers: processes that run so much each, with sums of their own, in the memory of this machine.
        """
        if most is not None:
            return cls(most)
        cfg, size = backend.model.cfg, backend.dtype.itemsize
        on_gpu = backend.device.type == "cuda"
        free = free_bytes(backend.device) // n_workers
        # The sums of a CPU are promised but not yet taken; a product is made beside them, one at a time.
        free -= sum(8 * width**2 for width in widths.values()) * (not on_gpu) + 4 * max(widths.values()) ** 2
        d_mlp = max(widths.values())
        # A block's largest moment, its attention pattern about three times over, and keys in float32 on their side.
        per_position = size * (4 * d_mlp + 12 * int(cfg.d_model) + 3 * int(cfg.n_heads) * text_length) + 12 * d_mlp
        cap = _GPU_POSITIONS if on_gpu else _CPU_POSITIONS
        return cls(max(1, min(cap, free // 2 // per_position)))

    def halve_after(self, error: BaseException, *, n_rows: int) -> None:
        """Halve the size if the error says that memory ran out, and raise it otherwise.

        Raises:
            OutOfMemoryError: it was one row alone.
        """
        if not is_out_of_memory(error):
            raise error
        if n_rows == 1:
            raise OutOfMemoryError(
                "memory ran out even with one piece of text at a time; take a smaller text_length, fewer layers or a "
                "smaller dtype"
            ) from error
        self.positions = max(1, self.positions // 2)
