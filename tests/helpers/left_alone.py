"""That work on a model leaves no trace of itself, neither in the model nor in what is global."""

from contextlib import contextmanager

import numpy as np
import torch

from rome_lens.backends import as_backend


@contextmanager
def left_alone(model):
    """Whatever is done meanwhile, and however it ends, the model is then as it was, and so is what is global."""
    with torch.no_grad():
        model(torch.tensor([[1, 2]]))  # a bridge attaches hooks of its own in its first forward
    before, weights = _state(model), {name: weight.clone() for name, weight in model.state_dict().items()}
    try:
        yield
    finally:
        assert _state(model) == before
        assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


def _state(model):
    return {
        "parameters": [(id(p), p.data_ptr(), p.stride(), p.requires_grad, p.grad) for p in model.parameters()],
        "places": {name: weight.data_ptr() for name, weight in model.state_dict().items()},
        "modules": [(m.training, "forward" in m.__dict__) for m in model.modules()],
        "handles": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "hooks": as_backend(model).foreign_hooks(),
        "gradients": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(np.random.get_state()),
    }
