"""How many forked processes are worth it for work on a model: one thread each instead of all threads on one task."""

import torch

from rome_lens.memory import free_bytes
from rome_lens.runs import may_fork, n_cores

# Tasks that hold less than this, all of them together, are as good as done by the time that processes have started: one
# edit of the default model holds six times as much, and takes some ten seconds.
_LEAST_BYTES = 64 * 2**20


def side_by_side(n_tasks: int, device: torch.device, *, n_bytes: int = 0) -> int:
    """In how many forked processes to do tasks that do not need each other; 1 is to do them here, one after the other.

    Several threads on one task are seldom much faster than one: 16 tasks side by side, a thread each, took 0.74 of the
    time of all one after the other with two threads (SmolLM2-135M, two cores). Here stay small tasks, too few for half
    of the threads, those of a model that is not on the CPU, and all where PyTorch sees an accelerator (autograd has a
    thread for it, which no fork survives) or `may_fork` refuses.

    Args:
        n_tasks: how many there are.
        device: where the model is.
        n_bytes: what one task takes beside the model, roughly; 0 where that is not known.
    """
    n_threads = torch.get_num_threads()
    if min(n_tasks, n_threads) < 2 or device.type != "cpu" or not may_fork() or torch.accelerator.is_available():
        return 1
    n_workers = min(n_threads, n_cores(), n_tasks)
    if n_bytes:
        if n_tasks * n_bytes < _LEAST_BYTES:
            return 1
        n_workers = min(n_workers, free_bytes(device) // 3 // n_bytes)
    return n_workers if n_workers > 1 and 2 * n_workers >= n_threads else 1
