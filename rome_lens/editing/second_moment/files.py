"""Files of second moments: our own, and the statistics that the released code of ROME and MEMIT writes.

Ours hold the upper triangle, row by row, in float32: half of what the matrix would take, and more than the sample
behind it is worth. Shards, which are yet to be added to each other, are kept in float64. Theirs are NumPy archives of a
`CombinedStat` (`util/runningstats.py`): `mom2.mom2` is the sum of the products and `mom2.count` how many there were.
"""

import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import Fingerprint
from rome_lens.checks import as_path
from rome_lens.errors import ArtefactError, SettingError
from rome_lens.runs import Shard
from rome_lens.storage import load_tensors, read_fields, save_tensors

KIND = "second_moment"

# Fields of the history and what they may be; a field that may be None may also be absent.
_FIELDS = {
    "layer": int,
    "source": str,
    "versions": dict,
    **dict.fromkeys(("n_tokens", "text_length", "n_pieces", "seed", "n_portions"), int | None),
    **dict.fromkeys(("model_name", "loaded_from", "backend", "revision", "dtype", "device"), str | None),
    **dict.fromkeys(("digest", "created", "command", "shard"), str | None),
    "prepend_bos": bool | None,
    "seconds": int | float | None,
    "fingerprint": dict | None,
    "d_mlp": int,
}


def write_moment(
    path: str | os.PathLike[str], matrix: Float[Tensor, "d_mlp d_mlp"], history: Mapping[str, Any]
) -> None:
    """Write a matrix and its history.

    Raises:
        ArtefactError: the file cannot be written.
    """
    tensors = {"triangle": _pack(matrix, _dtype_of(history))}
    save_tensors(path, kind=KIND, tensors=tensors, settings={**history, "d_mlp": len(matrix)})


def read_moment(path: str | os.PathLike[str]) -> tuple[Float[Tensor, "d_mlp d_mlp"], dict[str, Any]]:
    """Read what `write_moment` wrote: the matrix, and its history with the fingerprint in it.

    Raises:
        ArtefactError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, settings = load_tensors(path, kind=KIND)
    try:
        history = read_fields(settings, _FIELDS)
        d_mlp, fingerprint = history.pop("d_mlp"), history["fingerprint"]
        if not all(isinstance(version, str) for version in history["versions"].values()):
            raise ValueError("versions holds something else than texts")
        if fingerprint is not None:
            history["fingerprint"] = Fingerprint.from_dict(fingerprint)
        if history.get("shard") is not None:
            _check_shard(history)
        if "triangle" not in tensors:
            raise ValueError("it holds no triangle")
        return _unpack(tensors["triangle"], d_mlp, _dtype_of(history)), history
    except (ValueError, ArtefactError, SettingError) as error:
        raise ArtefactError(f"cannot use {os.fspath(path)!r}: a {KIND} that is damaged ({error})") from error


def _dtype_of(history: Mapping[str, Any]) -> torch.dtype:
    return torch.float32 if history.get("shard") is None else torch.float64


def _check_shard(history: Mapping[str, Any]) -> None:
    """Refuse a shard without what all of them are joined by.

    Raises:
        ValueError: it lacks something.
    """
    Shard.parse(history["shard"])
    needed = ("n_tokens", "n_pieces", "n_portions", "digest", "device", "seconds", "fingerprint")
    lacking = next((name for name in needed if history.get(name) is None), None)
    if lacking is not None:
        raise ValueError(f"it is a shard without {lacking}")


def _pack(matrix: Float[Tensor, "d_mlp d_mlp"], dtype: torch.dtype) -> Float[Tensor, " triangle"]:
    """The upper triangle, row by row, on the CPU."""
    return torch.cat([row[i:] for i, row in enumerate(matrix.detach().to("cpu", dtype))])


def _unpack(triangle: Tensor, d_mlp: int, dtype: torch.dtype) -> Float[Tensor, "d_mlp d_mlp"]:
    """The matrix that `_pack` packed.

    Raises:
        ValueError: the triangle belongs to no such matrix.
    """
    if triangle.ndim != 1 or triangle.dtype != dtype or 2 * len(triangle) != d_mlp * (d_mlp + 1):
        raise ValueError(
            f"a triangle of {triangle.dtype} and shape {tuple(triangle.shape)} belongs to no {d_mlp} x {d_mlp} matrix"
        )
    matrix = triangle.new_empty(d_mlp, d_mlp)
    first = 0
    for i in range(d_mlp):
        row = triangle[first : first + d_mlp - i]
        matrix[i, i:] = row
        matrix[i:, i] = row
        first += len(row)
    return matrix


def is_npz(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a NumPy archive does, whatever it is called."""
    path = as_path("the file", path)
    try:
        with Path(path).open("rb") as file:
            return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")
    except (OSError, ValueError):
        return False


def read_npz(path: str | os.PathLike[str]) -> tuple[Float[Tensor, "d_mlp d_mlp"], int, str]:
    """Read statistics of the released code.

    Returns:
        The second moment in the file's dtype, how many tokens it is the mean over, and what the file says of its texts.

    Raises:
        ArtefactError: there is no such file, it is damaged, or it holds something else.
    """
    name = repr(os.fspath(path))
    if not Path(path).is_file():
        raise ArtefactError(f"there is no file {name}; expected statistics that the released code wrote")
    try:
        # Opened here: NumPy leaves a damaged file open.
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            prefix = "mom2." if "mom2.mom2" in archive else ""
            if f"{prefix}mom2" not in archive or f"{prefix}count" not in archive:
                held = ", ".join(sorted(archive)[:6]) or "nothing"
                raise ArtefactError(
                    f"cannot use {name}: expected mom2.mom2 and mom2.count, as the released code writes them; "
                    f"it holds {held}"
                )
            total, count = archive[f"{prefix}mom2"], archive[f"{prefix}count"]
            size = archive["sample_size"] if "sample_size" in archive else np.array(math.nan)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ArtefactError(f"cannot read {name}: it is cut short, damaged or no NumPy archive ({error})") from error
    if total.dtype not in (np.float16, np.float32, np.float64) or total.ndim != 2 or total.shape[0] != total.shape[1]:
        raise ArtefactError(f"cannot use {name}: its mom2 is {total.dtype} of shape {total.shape}, no square matrix")
    if count.shape != () or not np.issubdtype(count.dtype, np.integer) or count < 1:
        raise ArtefactError(f"cannot use {name}: its count is {count}, no number of tokens")
    if total.dtype == np.float16:
        total = total.astype(np.float32)
    matrix = torch.from_numpy(total) / int(count)
    # The released code writes None as a number that is not finite.
    known = size.shape == () and np.issubdtype(size.dtype, np.number) and np.isfinite(size)
    texts = f", {int(size)} texts" if known else ""
    return (matrix + matrix.t()) / 2, int(count), f"published statistics {Path(path).name}{texts}"
