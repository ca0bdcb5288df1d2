"""What a benchmark says about the machine that it ran on, which backends are here, and what a call takes."""

import ctypes
import gc
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import torch
from memory import watched

_T = TypeVar("_T")


def machine_line(device: str | None) -> str:
    """Processor or GPU, threads and versions, on one line."""
    name = torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else _processor()
    return (
        f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformer-lens {version('transformer-lens')}"
    )


def installed_backends() -> list[str]:
    """The backends that the installed TransformerLens has."""
    hooked = version("transformer-lens") < "4"
    return [*(["hooked-transformer"] if hooked else []), "transformer-bridge"]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


def measured(run: Callable[[], _T], device: torch.device) -> tuple[_T, float, float]:
    """What a call gives, its seconds, and the MiB that it takes at most: of the device, or of all processes here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        found, seconds = _timed(run, device)
        return found, seconds, (torch.cuda.max_memory_allocated(device) - before) / 2**20
    # Pages that the allocator keeps for itself would count as held before.
    ctypes.CDLL(None).malloc_trim(0)
    with watched() as peak:
        found, seconds = _timed(run, device)
    return found, seconds, peak.above / 2**20


def _timed(run: Callable[[], _T], device: torch.device) -> tuple[_T, float]:
    started = time.perf_counter()
    found = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return found, time.perf_counter() - started
