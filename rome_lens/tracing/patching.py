"""Grids as TransformerLens's own result of activation patching, `PatchingResult`, which it has from 4.3 on."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.backends import HEADS
from rome_lens.errors import ModelError


def patching_result(grids: Mapping[str, Float[Tensor, "layer column"]], *, baseline: float, metric: str) -> Any:
    """Grids of one shape; several stand behind one another on an axis `patch_type`.

    Args:
        grids: by stream, [layer pos], of heads [layer head].
        baseline: the score with nothing restored.
        metric: what the scores are.

    Raises:
        ModelError: the TransformerLens that is installed has no such result.
    """
    import pandas as pd
    from transformer_lens import patching

    kind = getattr(patching, "PatchingResult", None)
    if kind is None:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} has no PatchingResult; install 4.3 or newer, or use "
            "to_dataframe"
        )
    names = list(grids)
    values = torch.stack(list(grids.values()))
    axes = ["patch_type", "layer", "head" if HEADS in grids else "pos"]
    if len(names) == 1:
        values, axes = values[0], axes[1:]
    return kind(
        values=values,
        axis_names=axes,
        index_df=pd.MultiIndex.from_product([range(size) for size in values.shape], names=axes).to_frame(index=False),
        metric_names=[metric],
        reduced=True,
        baseline=torch.tensor(baseline, dtype=values.dtype),
        patch_type_names=names if len(names) > 1 else None,
    )
