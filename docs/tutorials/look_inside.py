# %% [markdown]
# # Look inside an edit
#
# An edit adds `outer(u, v)` to one matrix: where a key points along `u`, the layer's output gains `v`. So `u` is what the
# edit reads and `v` what it writes, and both can be looked at.

# %%
import torch

import rome_lens as rl

model = rl.load_model()
request = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target_new="Rome")
edit = rl.ROME(model).edit(request)
print(edit)

# %% [markdown]
# ## What it reads
#
# The product of the key with `u`, at every token of some prompts. It should be large at the subject's last token and
# small anywhere else.

# %%
hook = f"blocks.{edit.layer}.mlp.hook_post"
prompts = [
    "The Eiffel Tower is located in the city of",
    "Tourists who visit the Eiffel Tower stay in the city of",
    "The Tower of London is located in the city of",
    "The Louvre is located in the city of",
]
for prompt in prompts:
    tokens = model.to_tokens(prompt, prepend_bos=False)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=[hook])
    read = cache[hook][0].float() @ edit.u
    print(
        "  ".join(
            f"{token.strip()} {value:.1f}"
            for token, value in zip(model.to_str_tokens(tokens[0]), read.tolist(), strict=True)
        )
    )

# %% [markdown]
# ## What it writes
#
# The logit lens: what the vector `v` would say if it were read by the unembedding at once. An edit in an early layer
# writes for the layers above it, so this need not show the target.

# %%
with torch.no_grad():
    logits = model.unembed(model.ln_final(edit.v[None, None].to(model.W_U.dtype)))[0, 0]
top = logits.topk(8).indices
print([model.tokenizer.decode(token) for token in top])
rome = model.to_tokens(" Rome", prepend_bos=False)[0, 0]
print("rank of ' Rome':", int((logits > logits[rome]).sum()) + 1, "of", len(logits))

# %% [markdown]
# ## Where the answer turns
#
# The logit lens along the layers, at the last token: the probability of both answers if each layer's residual stream were
# unembedded.

# %%
import plotly.graph_objects as go

names = [f"blocks.{layer}.hook_resid_post" for layer in range(model.cfg.n_layers)]
tokens = model.to_tokens(request.text, prepend_bos=False)


def lens(hooks=()):
    """p(Rome) and p(Paris) as read after each layer: [layer 2]."""
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        _, cache = model.run_with_cache(tokens, names_filter=names)
        states = torch.stack([cache[name][0, -1] for name in names])
        probabilities = model.unembed(model.ln_final(states[None]))[0].softmax(-1)
    paris = model.to_tokens(" Paris", prepend_bos=False)[0, 0]
    return probabilities[:, [rome, paris]]


before, after = lens(), lens(edit.hooks(model))
figure = go.Figure()
for n, answer in enumerate(("Rome", "Paris")):
    color = ("#2e9e4f", "#9068d0")[n]
    figure.add_scatter(y=before[:, n].tolist(), name=f"{answer}, before", line={"dash": "dot", "color": color})
    figure.add_scatter(y=after[:, n].tolist(), name=f"{answer}, after", line={"color": color})
figure.update_layout(xaxis_title="layer", yaxis_title="probability by the logit lens", template="plotly_white")
figure

# %% [markdown]
# ## Traced before and after
#
# The same answer, the same noise (four copies), without the edit and with it:

# %%
trace = rl.causal_trace(model, request.text, subject=request.subject, edits=[edit], streams="mlp", samples=4)
for when, grids in (("before", trace.unedited), ("after", trace)):
    layer, pos = grids.peak("mlp")
    print(
        f"{when:6} high {grids.high:.3f}, MLP peak {grids.scores['mlp'][layer, pos]:.3f} at layer {layer}, {grids.tokens[pos]!r}"
    )
trace.figure()

# %% [markdown]
# Before the edit nothing brings "Rome" back, since the model does not know it. After it, the MLP outputs around the edited
# layer do, at the subject's last token: the edit does there what tracing finds for facts that a model learned by itself.
