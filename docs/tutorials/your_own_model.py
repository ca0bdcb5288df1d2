# %% [markdown]
# # Bring your own model
#
# rome_lens takes any decoder that TransformerLens hosts: a `HookedTransformer` or a `TransformerBridge` that you hold, a
# name on the hub, or a folder. To keep this page quick, its model is a small random one that is saved as a fine-tuned one
# would be. It knows nothing, so mind the calls and not the numbers.

# %%
import tempfile
from pathlib import Path

import torch
import transformers

import rome_lens as rl

default = rl.load_model()
folder = Path(tempfile.mkdtemp()) / "my-fine-tune"
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=len(default.tokenizer),
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    bos_token_id=1,
    eos_token_id=2,
)
transformers.LlamaForCausalLM(config).save_pretrained(folder)
default.tokenizer.save_pretrained(folder)

# %% [markdown]
# ## A folder, or a name on the hub
#
# `backend="auto"` takes a HookedTransformer where TransformerLens has one that gives the model's own logits, and a
# TransformerBridge otherwise.

# %%
model = rl.load_model(folder)
print(type(model).__name__, model.cfg.n_layers, "layers", model.cfg.dtype)

# %% [markdown]
# ## A model in memory
#
# Wrap a Hugging Face model in a `TransformerBridge`; its weights are shared, not copied.

# %%
from transformer_lens.model_bridge import TransformerBridge

hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
bridge = TransformerBridge.boot_transformers("my-fine-tune", hf_model=hf_model, tokenizer=default.tokenizer)
trace = rl.causal_trace(bridge, "The Colosseum is in", subject="The Colosseum", samples=2)
print(trace.backend, trace.engine, tuple(trace.scores["mlp"].shape))

# %% [markdown]
# Hooks of your own stay on the model and take part in the trace; `trace.notes` says that whole forwards were run then.
#
# ## GPU and half precision
#
# `device="cuda"` and `dtype="bfloat16"` are options of `load_model`; a model object keeps what it has. Half precision
# rounds small probabilities: find edits in float32 where you can, and put them on the bf16 model.

# %%
half = rl.load_model(folder, dtype="bfloat16")
print(half.cfg.dtype, rl.causal_trace(half, "The Colosseum is in", subject="The Colosseum", samples=2).dtype)

# %% [markdown]
# ## What an edit needs
#
# The second moment of the layer's keys: once for each model and layer, from text of yours or from text that the model
# writes (`texts="self"`). It is an artefact with a history; save it.

# %%
layer = 2
moment = rl.SecondMoment.collect(model, layers=[layer], texts="self", max_tokens=2000, text_length=64)[layer]
moment.save(folder / "layer-2.safetensors")
print(moment.n_tokens, moment.source, f"condition number {moment.condition_number:.0f}")

# %%
editor = rl.ROME(model, layer=layer, second_moment=rl.SecondMoment.load(folder / "layer-2.safetensors"))
edit = editor.edit(rl.EditRequest("{} is in the city of", "The Colosseum", target_new="Berlin"))
print(f"p(Berlin) {edit.before.target:.2e} → {edit.after.target:.2e}")
print(*edit.notes, sep="\n")

# %% [markdown]
# ## Which layer?
#
# A rule of thumb by depth is the default, and the notes say so. `rl.suggest_layer(model, facts)`, or
# `rome-lens suggest`, looks: it traces facts, edits a few records at several layers, and writes settings for
# `rl.ROME(model, settings=...)`. See [Averages](../averages.md#which-layer-to-edit).
