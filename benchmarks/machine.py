"""What a benchmark says about the machine that it ran on, and which backends are here."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


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
