"""How far float32 grids are from float64's, by the engine and the plain way: python benchmarks/rounding.py.

The prompts are those of the reference grids (tests/reference/trace.json), at their noise. Both are held against the
engine's float64 grids; the plain way is one forward a cell on the same rows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from machine import installed_backends, machine_line
from plain import cells_of, plain_scores

import rome_lens as rl

REFERENCE = Path(__file__).parents[1] / "tests" / "reference" / "trace.json"
STREAMS = ["resid", "mlp", "attn"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--backend", default=installed_backends()[0])
    parser.add_argument("--device", default=None)
    parser.add_argument("--stream", action="append", choices=STREAMS, help="repeat for several; default: all three")
    parser.add_argument("--every", type=int, default=1, help="take every n-th cell")
    options = parser.parse_args()
    print(machine_line(options.device))
    half, full = (
        rl.load_model(options.model, backend=options.backend, device=options.device, dtype=dtype)
        for dtype in ("float32", "float64")
    )
    print("largest distance from float64    engine    plain  ratio")
    for reference in json.loads(REFERENCE.read_text("utf-8")):
        for stream in options.stream or STREAMS:
            engine, plain = _off(half, full, reference, stream, every=options.every)
            print(f"{reference['subject']:22} {stream:9} {engine:7.1e}  {plain:7.1e} {engine / plain:6.2f}", flush=True)


def _off(half: Any, full: Any, reference: dict[str, Any], stream: str, *, every: int) -> tuple[float, float]:
    """How far the engine and the plain way are off at most, in the same cells of one grid."""
    asked = {name: reference[name] for name in ("subject", "noise", "window", "samples", "seed", "prepend_bos")}
    asked["streams"] = stream
    exact, engine = (rl.causal_trace(model, reference["prompt"], **asked) for model in (full, half))
    cells = cells_of(half, engine, [stream])[::every]
    true, fast = ([float(trace.scores[stream][layer][pos]) for _, layer, pos in cells] for trace in (exact, engine))
    plain = plain_scores(half, engine, cells)
    engine_off, plain_off = (max(abs(p - q) for p, q in zip(held, true, strict=True)) for held in (fast, plain))
    return engine_off, plain_off


if __name__ == "__main__":
    main()
