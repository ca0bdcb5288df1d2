"""The engine against the plain oracle, in one run: python benchmarks/trace.py [--backend …] [--device …].

The oracle is the released code's way: one forward per cell, samples + 1 rows, logits at every position. Its streams and
the engine's runs take turns, so that a machine that changes its speed changes both. The arithmetic floor is the FLOP
that the method leaves, at the fastest matrix products that were measured here in the same run.
"""

import argparse
import gc
import time
from functools import partial
from typing import Any

import torch
from machine import installed_backends, machine_line, measured
from plain import time_oracle

import rome_lens as rl
from rome_lens.backends import as_backend, fast_products
from rome_lens.loading import BACKENDS
from rome_lens.tracing.cells import known_score, plan_cells

PROMPT, SUBJECT = "The Eiffel Tower is located in the city of", "The Eiffel Tower"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--backend", action="append", choices=BACKENDS[1:], help="repeat for several; default: all here"
    )
    parser.add_argument("--device", default=None)
    parser.add_argument("--every", type=int, default=1, help="run every n-th cell of the oracle and scale its time up")
    parser.add_argument("--heads", action="store_true", help="time single heads against the attention stream instead")
    options = parser.parse_args()
    print(machine_line(options.device))
    if not options.heads:
        print("backend             oracle s  engine s   ratio  floor s  of floor  above model  largest difference")
    for backend in options.backend or installed_backends():
        model = rl.load_model(options.model, backend=backend, device=options.device)
        print(_heads_row(model, backend) if options.heads else _row(model, backend, every=options.every))
        del model
        gc.collect()


def _row(model: Any, name: str, *, every: int) -> str:
    trace = rl.causal_trace(model, PROMPT, subject=SUBJECT)  # warm, and what the oracle is asked for
    oracle_seconds, engine_seconds, apart, memory, rates = 0.0, [], 0.0, 0.0, []
    for stream in trace.scores:
        seconds, difference = time_oracle(model, trace, [stream], every=every)
        oracle_seconds, apart = oracle_seconds + seconds, max(apart, difference)
        _, seconds, taken = measured(lambda: rl.causal_trace(model, PROMPT, subject=SUBJECT), as_backend(model).device)
        engine_seconds.append(seconds)
        memory = max(memory, taken)
        rates.append(_product_rate(model))
    engine = sorted(engine_seconds)[len(engine_seconds) // 2]
    rate = max(max(pair) for pair in rates)
    floor = _floor_flop(model, trace) / rate
    print(
        f"  matrix products: {max(r[0] for r in rates) / 1e9:.0f} GFLOP/s as PyTorch does them, "
        f"{max(r[1] for r in rates) / 1e9:.0f} through oneDNN; floor {_floor_flop(model, trace) / 1e12:.2f} TFLOP; "
        f"engine {', '.join(f'{s:.1f}' for s in engine_seconds)} s"
    )
    scaled = "" if every == 1 else f" (oracle: every {every}th cell)"
    return (
        f"{name:18} {oracle_seconds:9.1f} {engine:9.1f} {oracle_seconds / engine:6.1f}x {floor:8.1f} "
        f"{floor / engine:8.0%} {memory:8.0f} MiB {apart:19.1e}{scaled}"
    )


def _heads_row(model: Any, name: str) -> str:
    """Single heads at two tokens against the attention stream, taking turns: the lower of two times of each."""
    asked = {
        "attn": {"streams": "attn"},
        "heads at the last token": {"streams": "heads"},
        "at the subject's last": {"streams": "heads", "heads_at": "last-subject"},
    }
    seconds: dict[str, list[float]] = {what: [] for what in asked}
    rl.causal_trace(model, PROMPT, subject=SUBJECT, streams="attn", samples=1)
    for _ in range(2):
        for what, settings in asked.items():
            trace = partial(rl.causal_trace, model, PROMPT, subject=SUBJECT, **settings)
            seconds[what].append(measured(trace, as_backend(model).device)[1])
    least = {what: min(times) for what, times in seconds.items()}
    said = ", ".join(f"{what} {time:.1f} s ({time / least['attn']:.2f}x)" for what, time in least.items())
    return f"{name}: {said}"


def _floor_flop(model: Any, trace: rl.CausalTrace) -> float:
    """What the method leaves: each unknown cell from its first restored layer and position on, and one unembedding."""
    cfg, n_tokens = model.cfg, len(trace.tokens)
    block = sum(p.numel() for p in model.blocks[0].parameters() if p.ndim >= 2)
    total = 0.0
    for stream in trace.scores:
        for cell in plan_cells(stream, n_layers=cfg.n_layers, positions=range(n_tokens), window=trace.window):
            read = range(n_tokens - 1, n_tokens)
            first = trace.subject_span[0]
            if known_score(cell, n_layers=cfg.n_layers, first_corrupted=first, read=read) is not None:
                continue
            layers = cfg.n_layers - cell.first - (stream == "resid")
            positions = n_tokens - cell.pos
            attention = 4 * cfg.n_heads * cfg.d_head * n_tokens
            total += trace.samples * (layers * positions * (2 * block + attention) + 2 * cfg.d_model * cfg.d_vocab)
    return total


def _product_rate(model: Any) -> tuple[float, float]:
    """FLOP a second of the MLP's own matrix product on 1024 rows: as PyTorch does it, and as the engine does."""
    backend = as_backend(model)
    x = torch.randn(1024, model.cfg.d_model, device=backend.device, dtype=backend.dtype)
    weight = torch.randn(model.cfg.d_mlp, model.cfg.d_model, device=backend.device, dtype=backend.dtype)

    def rate() -> float:
        times = []
        for _ in range(60):
            started = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            _finish(model)
            times.append(time.perf_counter() - started)
        return 2 * x.shape[0] * weight.numel() / sorted(times)[len(times) // 2]

    with torch.no_grad():
        plain = rate()
        with fast_products(device=backend.device, dtype=backend.dtype):
            return plain, rate()


def _finish(model: Any) -> None:
    if torch.cuda.is_available() and as_backend(model).device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
