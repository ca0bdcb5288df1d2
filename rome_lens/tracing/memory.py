"""How much is run at once: bounded by what is free, halved when memory runs out all the same."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from rome_lens.backends import Backend
from rome_lens.errors import OutOfMemoryError
from rome_lens.memory import check_fits, free_bytes, is_out_of_memory

_T = TypeVar("_T")

# On a CPU a call's tensors are best kept small, near the caches and below the size from which the allocator hands them
# back to the system, page by page, after every operation: measured, not derived (benchmarks/trace.py).
_CPU_CALL_POSITIONS = 512
_CPU_LOGITS = 4 * 2**20
_GPU_CALL_POSITIONS = 65536
# What the engine may hold above the model, however much is free.
_MOST_BYTES = 600 * 2**20
_GPU_MOST_BYTES = 16 * 2**30


def numbers_of_position(d_model: int, d_mlp: int) -> int:
    """How many numbers a position takes in a block's largest moment, roughly."""
    # The MLP's hidden layer about four times over, the residual a dozen times.
    return 4 * d_mlp + 12 * d_model


def _widths(backend: Backend) -> tuple[int, int]:
    """d_model and d_mlp."""
    cfg = backend.model.cfg
    return int(cfg.d_model), int(getattr(cfg, "d_mlp", None) or 4 * cfg.d_model)


@dataclass
class Budget:
    """Sizes of what is run and held at once. They only ever shrink.

    Attributes:
        call_positions: rows times positions in one call of a block.
        state_positions: rows times positions whose residuals are held between layers.
        logits: numbers in one call of the unembedding.
        run_positions: rows times positions of the clean and corrupted runs.
    """

    call_positions: int
    state_positions: int
    logits: int
    run_positions: int

    @classmethod
    def choose(cls, backend: Backend) -> "Budget":
        """Sizes for this model from the memory that is free on its device now."""
        d_model, d_mlp = _widths(backend)
        free = free_bytes(backend.device)
        return cls.of_sizes(d_model, d_mlp, dtype=backend.dtype, on_gpu=backend.device.type == "cuda", free=free)

    @classmethod
    def checked(cls, backend: Backend, n_tokens: int) -> "Budget":
        """Sizes for this model, if it can trace a prompt of so many tokens at all.

        Raises:
            OutOfMemoryError: memory does not hold the clean run and one corrupted copy, with their logits.
        """
        rows, size = 2, backend.dtype.itemsize
        least = rows * (n_tokens * size * numbers_of_position(*_widths(backend)) + 4 * size * backend.d_vocab)
        check_fits(f"a trace of {n_tokens} tokens", least, backend.device, instead="shorten the prompt")
        return cls.choose(backend)

    @classmethod
    def of_sizes(cls, d_model: int, d_mlp: int, *, dtype: torch.dtype, on_gpu: bool, free: int) -> "Budget":
        """The same for a model of these widths that leaves so many bytes free."""
        size, most = dtype.itemsize, min(free // 2, _GPU_MOST_BYTES if on_gpu else _MOST_BYTES)
        cap = _GPU_CALL_POSITIONS if on_gpu else _CPU_CALL_POSITIONS
        per_position = size * numbers_of_position(d_model, d_mlp)
        return cls(
            call_positions=max(1, min(cap, most // 4 // per_position)),
            state_positions=max(1, most // 2 // (size * d_model)),
            logits=max(1, min(most if on_gpu else _CPU_LOGITS, most // 4 // (4 * size))),
            run_positions=max(1, most // 4 // per_position),
        )

    def held_bytes(self, backend: Backend, n_positions: int) -> int:
        """What states of so many positions take while they go through layers, with one call's tensors."""
        size = backend.dtype.itemsize * backend.d_model
        return 2 * size * min(self.state_positions, n_positions)

    def lanes(self, positions: int) -> int:
        """How many lanes of this many positions go into one call of a block: at least one."""
        return max(1, self.call_positions // positions)

    def samples(self, n_tokens: int) -> int:
        """How many corrupted copies of this many tokens are run at a time, beside the clean one: at least one."""
        return max(1, self.run_positions // n_tokens - 1)

    def logit_rows(self, n_logits: int) -> int:
        """How many rows of this many logits go into one call of the unembedding: at least one."""
        return max(1, self.logits // n_logits)

    def in_parts(
        self, total: int, most: Callable[[int], int], run: Callable[[slice], _T], *, halve: bool = True
    ) -> Iterator[tuple[slice, _T]]:
        """Run a whole in parts; one that memory runs out in is run again in smaller ones.

        Args:
            total: how many things are run.
            most: how many go into the part that begins at a place, at least one.
            run: runs a part.
            halve: halve the sizes when memory runs out; otherwise the error is the caller's to answer.

        Yields:
            Each part, and what it gave.

        Raises:
            OutOfMemoryError: there is nothing left to halve.
        """
        start = 0
        while start < total:
            part = slice(start, min(total, start + most(start)))
            try:
                found = run(part)
            except (RuntimeError, MemoryError) as error:
                if not halve:
                    raise
                self.halve_after(error)
                continue
            yield part, found
            start = part.stop

    def halve_after(self, error: BaseException) -> None:
        """Halve every size if the error says that memory ran out, and raise it otherwise.

        Raises:
            OutOfMemoryError: there is nothing left to halve.
        """
        if not is_out_of_memory(error):
            raise error
        if max(vars(self).values()) == 1:
            raise OutOfMemoryError(
                "memory ran out even with one cell at a time; take fewer samples, a shorter prompt or a smaller dtype"
            ) from error
        for name, size in vars(self).items():
            setattr(self, name, max(1, size // 2))
