"""ROME on tiny models: a request, settings that reach every branch, and a second moment."""

from functools import cache
from types import SimpleNamespace

import torch

import rome_lens as rl
from rome_lens.backends import as_backend

REQUEST = rl.EditRequest("ab {} fgh", subject="cde", target_new="xy")
TEMPLATES = ("{}", "up. {}", "a bit. {}")
# The third step reaches the clamp, so both sides of it are compared.
SETTINGS = {"v_num_grad_steps": 6, "v_lr": 0.5, "v_weight_decay": 0.3, "clamp_norm_factor": 0.4, "kl_factor": 0.5}
DEFAULTS = {"layer": 1, "context_templates": TEMPLATES, **SETTINGS}


@cache
def moment(size):
    """Some C with directions that matter and others that do not."""
    keys = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys = keys * torch.logspace(0, -1, size, dtype=torch.float64)
    return keys.t() @ keys / len(keys)


def rome(model, **settings):
    settings = DEFAULTS | settings
    size = as_backend(model).w_out(settings["layer"]).matrix.shape[0]
    return rl.ROME(model, **{"second_moment": moment(size)} | settings)


def named(name, n_layers=48, positions="rotary"):
    """As much of a backend as settings are chosen by."""
    cfg = SimpleNamespace(positional_embedding_type=positions)
    return SimpleNamespace(model_name=name, n_layers=n_layers, model=SimpleNamespace(cfg=cfg))
