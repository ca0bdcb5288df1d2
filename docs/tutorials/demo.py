# %% [markdown]
# # Try a fact of your own
#
# Everything at once, on a fact that you choose: change the values in the cell "The fact, and what it shall
# become", and run all. On Colab they are a form; anywhere else they are five lines of Python. There are no widgets: the figures bring their own controls.

# %%
# @title The fact, and what it shall become
prompt = "{} is located in the city of"  # @param {type:"string"}
subject = "The Eiffel Tower"  # @param {type:"string"}
target = "Rome"  # @param {type:"string"}
paraphrase = "Tourists who visit {} stay in the city of"  # @param {type:"string"}
neighbour = "The Louvre is located in the city of"  # @param {type:"string"}

# %% [markdown]
# ## Does the model know it?

# %%
import torch

import rome_lens as rl

model = rl.load_model()
text = prompt.format(subject)
with torch.no_grad():
    after = model(model.to_tokens(text, prepend_bos=False))[0, -1].softmax(-1)
for probability, token in zip(*(found.tolist() for found in after.topk(5)), strict=True):
    print(f"{probability:.3f}  {model.tokenizer.decode(token)!r}")

# %% [markdown]
# If the answer is not at the top, there is nothing to trace; put the fact in other words, or take another one.
#
# ## Where is it kept?
#
# The menu of the figure chooses what is restored: the residual stream; the same while the MLPs are held at what they give
# in the corrupted run ("severed"); MLP and attention outputs, ten layers at a time; and one MLP at a time. What severing
# takes from the early layers at the subject went through the MLPs; what one layer brings back, beside ten, says how far a
# single MLP holds the fact. Four noisy copies a trace, not the usual ten, show the picture sooner.

# %%
import plotly.graph_objects as go

trace = rl.causal_trace(model, text, subject=subject, severed="mlp", samples=4)
grids = {
    "residual stream": trace.scores["resid"],
    "residual stream, MLPs severed": trace.severed["mlp"],
    "MLP outputs, 10 layers": trace.scores["mlp"],
    "attention outputs, 10 layers": trace.scores["attn"],
}
grids["MLP outputs, 1 layer"] = rl.causal_trace(
    model, text, subject=subject, streams="mlp", window=1, samples=4
).scores["mlp"]

first, last = trace.subject_span
tokens = [f"{i} {token}{'*' * (first <= i < last)}" for i, token in enumerate(trace.tokens)]
figure = go.Figure()
for name, scores in grids.items():
    figure.add_heatmap(
        z=scores.T.tolist(),
        y=tokens,
        zmin=trace.low,
        zmax=max(trace.high, *(grid.max().item() for grid in grids.values())),
        colorscale="Purples",
        visible=name == "residual stream",
        hovertemplate="layer %{x}, token %{y}: %{z:.3f}<extra></extra>",
    )
choices = [
    {"label": name, "method": "restyle", "args": ["visible", [name == other for other in grids]]} for name in grids
]
figure.update_layout(
    updatemenus=[{"buttons": choices, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}],
    xaxis_title="restored layer",
    yaxis={"autorange": "reversed"},
    template="plotly_white",
)
print(f"p({trace.answer.strip()}): {trace.high:.3f}, and {trace.low:.3f} with the subject corrupted")
figure

# %% [markdown]
# ## Change it
#
# The edit is `outer(u, v)` on one matrix. How much of it is needed? The same edit, weaker and stronger, in one batch whose
# rows have a strength each: the weights are not touched. Of a target of several tokens the first is shown. Click on a name in the legend to hide it.

# %%
edit = rl.ROME(model).edit(rl.EditRequest(prompt, subject, target_new=target))
print(edit)

strengths = [step / 10 for step in range(16)]
weakened = [edit.scaled(strength) for strength in strengths]
asked = {"the prompt": text, "the paraphrase": paraphrase.format(subject), "the neighbour": neighbour}
answer = model.to_tokens(f" {target}", prepend_bos=False)[0, 0]
figure = go.Figure()
for name, question in asked.items():
    batch = model.to_tokens([question] * len(strengths), prepend_bos=False)
    hooks = [hook for row, part in enumerate(weakened) for hook in part.hooks(model, rows=[row])]
    with torch.no_grad():
        logits = model.run_with_hooks(batch, fwd_hooks=hooks)
    figure.add_scatter(x=strengths, y=logits[:, -1].softmax(-1)[:, answer].tolist(), name=name)
figure.update_layout(
    xaxis_title="strength of the edit",
    yaxis_title=f"p({target})",
    template="plotly_white",
    legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
)
figure

# %% [markdown]
# ## And take it back


# %%
def says(question):
    """How the model goes on."""
    return model.generate(question, max_new_tokens=10, do_sample=False, prepend_bos=False, verbose=False)


weights = model.blocks[edit.layer].mlp.W_out.clone()
with edit.applied(model):
    print("edited: ", *map(says, asked.values()), sep="\n  ")
print("as before:", *map(says, asked.values()), sep="\n  ")
print("the weights, to the bit:", model.blocks[edit.layer].mlp.W_out.equal(weights))

# %% [markdown]
# One fact shows nothing about a method: [Did it work?](did_it_work.md) measures edits on many, and
# [Where does my model keep facts?](where_facts.md) traces many.
