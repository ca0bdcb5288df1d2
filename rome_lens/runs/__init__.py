"""Long work over many records: kept as it is made, shared out among workers and machines, and gone on with when killed.

It knows nothing of what a record holds, and importing it does not import torch.
"""

from rome_lens.runs.dask import dask_executor
from rome_lens.runs.files import digest_of
from rome_lens.runs.folder import Folder, RunFolder, open_folder
from rome_lens.runs.forked import can_fork, forked_map, forked_pool, may_fork
from rome_lens.runs.merge import merge
from rome_lens.runs.pool import n_cores, process_pool
from rome_lens.runs.runner import run
from rome_lens.runs.shard import Shard
from rome_lens.runs.work import HeldWork, RecordMaker, Task, Work, check_batches, check_name

__all__ = [
    "Folder",
    "HeldWork",
    "RecordMaker",
    "RunFolder",
    "Shard",
    "Task",
    "Work",
    "can_fork",
    "check_batches",
    "check_name",
    "dask_executor",
    "digest_of",
    "forked_map",
    "forked_pool",
    "may_fork",
    "merge",
    "n_cores",
    "open_folder",
    "process_pool",
    "run",
]
