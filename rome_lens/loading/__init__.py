"""From a name to a TransformerLens model: the default model, a local folder, or the Hugging Face hub.

Importing this package imports neither torch nor TransformerLens: they are imported when a model is loaded.
"""

from rome_lens.loading.converted import cached_conversion as cached_conversion
from rome_lens.loading.default_model import DEFAULT_MODEL as DEFAULT_MODEL
from rome_lens.loading.default_model import CacheState as CacheState
from rome_lens.loading.default_model import cached_default_model as cached_default_model
from rome_lens.loading.default_model import default_model_path as default_model_path
from rome_lens.loading.load import BACKENDS as BACKENDS
from rome_lens.loading.load import load_model as load_model
from rome_lens.loading.pretrained import default_model_folder as default_model_folder
