"""Loading, in seconds and in memory, each in a process of its own: python benchmarks/loading.py.

First the default model as a user's first line of Python gets it: from its GGUF file, as the first start ever reads it,
and from the converted copy, as all later ones do. Then a model of GPT-2 XL's shape, made of random weights in a folder,
in both classes. Peak memory is the process's own (`ru_maxrss`), less what the imports alone take; pages of a mapped
file count from when they are touched, and a forward pass touches all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import transformers
from machine import installed_backends, machine_line
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import rome_lens as rl
from rome_lens.loading import default_model_folder
from rome_lens.loading.options import has_hooked_transformer

# Layers, width, heads and tokens. GPT-2 XL's; a smaller one is for trying a benchmark out.
SHAPES = {"gpt2-xl": (48, 1600, 25, 50257), "small": (12, 768, 12, 50257)}


def main() -> None:
    """Measure and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-xl")
    parser.add_argument("--dtype", default="float32", help="of the weights on disk")
    parser.add_argument("--backend", action="append", help="repeat for several; default: all here")
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "BACKEND", "READ"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, backend, read = options.measure
        print(json.dumps(_measured(name, backend, read=read)))
        return
    print(machine_line("cpu"))
    backends = options.backend or installed_backends()
    with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
        elsewhere.submit(default_model_folder).result()  # so that the copy is there
    print("what                            backend             seconds  peak MB  with a forward")
    for read, what in (("file", "default model, GGUF file"), ("copy", "default model, copy")):
        for backend in backends:
            _print(what, backend, _in_a_process("smollm2-135m", backend, read))
    with tempfile.TemporaryDirectory(prefix="xl_") as folder:
        started = time.perf_counter()
        # In a process of its own, too: a peak is handed down to the processes that come after it.
        with ProcessPoolExecutor(1, get_context("spawn")) as elsewhere:
            size = elsewhere.submit(write_model, Path(folder), options.shape, options.dtype).result()
        print(f"{options.shape}'s shape: {size / 1e6:.0f} MB in {options.dtype}, made in {_since(started):.0f} s")
        for backend in backends:
            _print(f"{options.shape}'s shape", backend, _in_a_process(folder, backend, "copy"))


def _print(what: str, backend: str, found: dict[str, float]) -> None:
    print(
        f"{what:31} {backend:18} {found['seconds']:8.1f} {found['loaded'] / 1e6:8.0f} {found['run'] / 1e6:15.0f}",
        flush=True,
    )


def _in_a_process(name: str, backend: str, read: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", name, backend, read]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measured(name: str, backend: str, *, read: str) -> dict[str, float]:
    """Seconds of loading once everything is imported, and the peaks after loading and after a forward pass."""
    if read == "file":
        from rome_lens.errors import ArtefactError
        from rome_lens.loading import pretrained

        def refuse(*_: object, **__: object) -> None:
            raise ArtefactError("this is the GGUF file's turn")

        setattr(pretrained, "converted_path", lambda _: Path("no copy here"))  # noqa: B010
        setattr(pretrained, "_convert_default", refuse)  # noqa: B010
    has_hooked_transformer()  # which imports TransformerLens
    before = _peak()
    started = time.perf_counter()
    model = rl.load_model(name, backend=backend, device="cpu")
    seconds, loaded = _since(started), _peak() - before
    with torch.no_grad():
        model(torch.arange(10)[None])
    return {"seconds": seconds, "loaded": loaded, "run": _peak() - before}


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _since(started: float) -> float:
    return time.perf_counter() - started


def write_model(folder: Path, shape: str, dtype: str) -> int:
    """A GPT-2 of that shape with random weights; returns its size in bytes."""
    n_layer, n_embd, n_head, vocab_size = SHAPES[shape]
    config = transformers.GPT2Config(vocab_size=vocab_size, n_embd=n_embd, n_layer=n_layer, n_head=n_head)
    with torch.device("meta"):
        empty = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype))
    empty.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in empty.parameters():
            parameter.normal_(std=0.02, generator=generator)
    empty.tie_weights()
    empty.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<s>", *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(
        folder
    )
    return sum(parameter.nbytes for parameter in empty.parameters())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    main()
