"""How much memory is free, what does not fit into it, and how errors say that it ran out."""

import psutil
import torch

from rome_lens.errors import OutOfMemoryError


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device now."""
    if device.type == "cuda":
        # What PyTorch keeps for its next tensors is free for these.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def size_in_words(n_bytes: int) -> str:
    """Such as `1.2 GB`."""
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.0f} MB"


def check_fits(what: str, n_bytes: int, device: torch.device, *, instead: str) -> None:
    """Refuse work that memory cannot hold, before it begins: the system kills a process that takes more than there is.

    Args:
        what: the work, as a sentence begins with it.
        n_bytes: what it takes, roughly.
        device: where.
        instead: what to do.

    Raises:
        OutOfMemoryError: less is free.
    """
    free = free_bytes(device)
    if n_bytes > free:
        there = "" if device.type == "cpu" else f" on {device}"
        raise OutOfMemoryError(
            f"{what} takes about {size_in_words(n_bytes)}, and {size_in_words(free)} are free{there}; {instead}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed; PyTorch's CPU allocator has no class of its own for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
