"""How many forked processes are worth it for work on a model: one thread each instead of all threads on one task."""

import torch

from rome_lens.memory import free_bytes
from rome_lens.runs import may_fork, n_cores

# Tasks that hold less than this, all of them together, are as good as done by the time that processes have started: one
# edit of the default model holds six times as much, and takes some ten seconds.
_LEAST_BYTES = 64 * 2**20
# The same of tasks whose arithmetic is known: half a second of a core at 60 GFLOP/s, where processes start in 0.13 s.
_LEAST_FLOP = 30 * 10**9


def side_by_side(n_tasks: int, device: torch.device, *, n_bytes: int = 0, n_flop: int | None = None) -> int:
    """In how many forked processes to do tasks that do not need each other; 1 is to do them here, one after the other.

    Several threads on one task are seldom much faster than one: 16 tasks side by side, a thread each, took 0.74 of the
    time of all one after the other with two threads (SmolLM2-135M, two cores). Here stay small tasks, too few for half
    of the threads, those of a model that is not on the CPU, and all where PyTorch sees an accelerator (autograd has a
    thread for it, which no fork survives) or `may_fork` refuses.

    Args:
        n_tasks: how many there are.
        device: where the model is.
        n_bytes: what one task takes beside the model, roughly; 0 where that is not known.
        n_flop: the operations of all tasks together; None where these are not known and `n_bytes` says how large the
            tasks are.
    """
    n_threads = torch.get_num_threads()
    if min(n_tasks, n_threads) < 2 or device.type != "cpu" or not may_fork() or torch.accelerator.is_available():
        return 1
    n_workers = min(n_threads, n_cores(), n_tasks)
    small = 0 < n_tasks * n_bytes < _LEAST_BYTES if n_flop is None else n_flop < _LEAST_FLOP
    if small:
        return 1
    if n_bytes:
        n_workers = min(n_workers, free_bytes(device) // 3 // n_bytes)
    return n_workers if n_workers > 1 and 2 * n_workers >= n_threads else 1
