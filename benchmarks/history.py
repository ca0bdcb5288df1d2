"""Many edits applied and reverted one by one on one wide layer: python benchmarks/history.py.

The layer is as wide as GPT-J's and everything else of the model as small as can be. The edits are of rank one and
random factors; every one is applied on top of all before it, then they are reverted in another order. The time of an
application must not grow with the number of edits, and in the end the bits have to be those from before.
"""

import argparse
import resource  # of Unix alone, as the memory that it tells
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import machine_line
from transformers import GPT2Config, GPT2LMHeadModel

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.loading.convert import to_transformer_lens
from rome_lens.loading.hugging_face import Pretrained

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
from architectures import byte_tokenizer
from edits import random_edit

_WIDTHS = {False: (16384, 4096), True: (1024, 256)}
# After how many edits a line is printed, and how many of the last applications it averages over.
_STEPS = (1, 10, 100, 1_000, 10_000)
_LAST = 10


def main() -> None:
    """Time both ways and print a line at 1, 10, 100, … edits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--edits", type=int, default=1_000)
    parser.add_argument("--small", action="store_true", help="a layer of d_mlp 1,024 and d_model 256")
    options = parser.parse_args()
    d_mlp, d_model = _WIDTHS[options.small]
    print(machine_line("cpu"))
    print(f"{options.edits} edits of rank one on a layer of d_mlp {d_mlp}, d_model {d_model}, float32", flush=True)
    model = _model(d_mlp, d_model)
    original = as_backend(model).w_out(0).matrix.clone()
    fingerprint = as_backend(model).fingerprint(0)
    edits = [random_edit(model, layer=0, seed=seed, fingerprint=fingerprint) for seed in range(options.edits)]
    before = psutil.Process().memory_info().rss
    print("edits in the weights   s an application", flush=True)
    _timed(edits, lambda edit: edit.apply(model), label=lambda done: done)
    backwards = edits[::2] + edits[1::2]
    print("edits in the weights   s a reversion", flush=True)
    _timed(backwards, lambda edit: edit.revert(model), label=lambda done: options.edits - done)
    back = torch.equal(as_backend(model).w_out(0).matrix, original)
    print(f"the bits of the original are back: {'yes' if back else 'NO'}")
    print(f"peak memory above model and edits: {(_peak() - before) / 2**20:.0f} MiB; the matrix takes {_mib(original)}")
    sys.exit(not back)


def _timed(edits: list[rl.Edit], step: Callable[[rl.Edit], None], *, label: Callable[[int], int]) -> None:
    seconds: list[float] = []
    for edit in edits:
        started = time.perf_counter()
        step(edit)
        seconds.append(time.perf_counter() - started)
        done = len(seconds)
        if done in _STEPS or done == len(edits):
            print(f"{label(done):20}   {statistics.fmean(seconds[-_LAST:]):16.3f}", flush=True)


def _model(d_mlp: int, d_model: int) -> Any:
    """A GPT-2 of one layer, of which nothing but the MLP is large."""
    config = GPT2Config(
        vocab_size=258,
        n_positions=8,
        n_embd=d_model,
        n_inner=d_mlp,
        n_layer=1,
        n_head=1,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    pretrained = Pretrained(name="one wide layer", model=model, tokenizer=byte_tokenizer())
    return to_transformer_lens(pretrained, backend="transformer-bridge")


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def _mib(matrix: torch.Tensor) -> str:
    return f"{matrix.numel() * matrix.element_size() / 2**20:.0f} MiB"


if __name__ == "__main__":
    main()
