# %% [markdown]
# # From TransformerLens to Hugging Face and PEFT
#
# An edit was found on a TransformerLens model. Whoever uses it needs neither TransformerLens nor rome_lens.

# %%
import tempfile
from pathlib import Path

import rome_lens as rl

model = rl.load_model()
request = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target_new="Rome")
edit = rl.ROME(model).edit(request)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A file
#
# `u`, `v` and every setting, without a pickle. What rome_lens reads back is the same edit.

# %%
edit.save(folder / "rome.safetensors")
print((folder / "rome.safetensors").stat().st_size, "bytes")
edit = rl.load_edit(folder / "rome.safetensors")
print(edit.request.subject, "→", edit.request.target_new, "| layer", edit.layer, "|", edit.module)

# %% [markdown]
# ## A folder for transformers
#
# The edited model, whole, with its tokenizer and a note of what was edited.

# %%
edit.to_hf("smollm2-135m", folder / "edited")
print(sorted(path.name for path in (folder / "edited").iterdir()))

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

edited = AutoModelForCausalLM.from_pretrained(folder / "edited")
tokenizer = AutoTokenizer.from_pretrained(folder / "edited")
ids = tokenizer(request.text, return_tensors="pt", add_special_tokens=False)
print(tokenizer.decode(edited.generate(**ids, max_new_tokens=4, do_sample=False)[0]))

# %% [markdown]
# ## An adapter for peft
#
# A rank-one edit is a LoRA adapter of rank one: a few kilobytes beside the unedited model, to be switched on and off.
# Whoever loads it needs peft (`pip install peft`), which rome_lens itself does without.

# %%
edit.to_peft(folder / "adapter")
print(sorted((path.name, path.stat().st_size) for path in (folder / "adapter").iterdir()))

# %% [markdown]
# The base is the model that the edit was made on. The default one lies in the cache as a folder that transformers reads:

# %%
from peft import PeftModel

from rome_lens.loading import default_model_folder

base = AutoModelForCausalLM.from_pretrained(default_model_folder())
with_adapter = PeftModel.from_pretrained(base, folder / "adapter")
print(tokenizer.decode(with_adapter.generate(**ids, max_new_tokens=4, do_sample=False)[0]))
with with_adapter.disable_adapter():
    print(tokenizer.decode(with_adapter.generate(**ids, max_new_tokens=4, do_sample=False)[0]))

# %% [markdown]
# In a shell: `rome-lens apply rome.safetensors --to-hf edited`, and `--to-peft adapter`. Several edits go into one folder.
