"""How many forked processes are worth it for work on a model: one thread each instead of all threads on one task."""

import torch

from rome_lens.memory import free_bytes
from rome_lens.runs import may_fork, n_cores


def side_by_side(n_tasks: int, device: torch.device, *, n_bytes: int = 0) -> int:
    """In how many forked processes to do tasks that do not need each other; 1 is to do them here, one after the other.

    Several threads on one task are seldom much faster than one: two tasks side by side, a thread each, took 0.6 of the
    time of both one after the other with two threads (SmolLM2-135M, two cores). Too few tasks for half of the threads
    stay here, and so does everything off the CPU, where PyTorch sees an accelerator (autograd has a thread for it,
    which no fork survives), and where `may_fork` refuses.

    Args:
        n_tasks: how many there are.
        device: where the model is.
        n_bytes: what one task takes beside the model, roughly.
    """
    n_threads = torch.get_num_threads()
    if min(n_tasks, n_threads) < 2 or device.type != "cpu" or not may_fork() or torch.accelerator.is_available():
        return 1
    n_workers = min(n_threads, n_cores(), n_tasks)
    if n_bytes:
        n_workers = min(n_workers, free_bytes(device) // 3 // n_bytes)
    return n_workers if n_workers > 1 and 2 * n_workers >= n_threads else 1
