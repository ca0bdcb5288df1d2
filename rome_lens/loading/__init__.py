"""From a name to a TransformerLens model: the default model, a local folder, or the Hugging Face hub.

Importing this package imports neither torch nor TransformerLens: they are imported when a model is loaded.
"""

from rome_lens.loading.converted import cached_conversion
from rome_lens.loading.default_model import DEFAULT_MODEL, CacheState, cached_default_model, default_model_path
from rome_lens.loading.load import BACKENDS, load_model
from rome_lens.loading.pretrained import default_model_folder
from rome_lens.progress import Progress

__all__ = [
    "BACKENDS",
    "DEFAULT_MODEL",
    "CacheState",
    "Progress",
    "cached_conversion",
    "cached_default_model",
    "default_model_folder",
    "default_model_path",
    "load_model",
]
