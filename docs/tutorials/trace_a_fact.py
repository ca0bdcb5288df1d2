# %% [markdown]
# # Trace a fact
#
# Where does a language model keep that Seoul is the capital of South Korea? Causal tracing answers by breaking the subject
# and putting single states back, one at a time. [Causal tracing](../concepts/causal-tracing.md) explains the idea; here it is
# done.

# %%
import rome_lens as rl

model = rl.load_model()  # SmolLM2-135M-Instruct, fetched once; or your own HookedTransformer or TransformerBridge

# %% [markdown]
# A trace needs a prompt that the model completes with the answer, and the subject as it stands in it. Four noisy copies
# of the prompt show the picture; the default is ten, as in the paper.

# %%
prompt, subject = "The capital of South Korea is", "South Korea"
trace = rl.causal_trace(model, prompt, subject=subject, samples=4)

print(f"answer {trace.answer!r}")
print(f"high   {trace.high:.3f}  the clean run")
print(f"low    {trace.low:.3f}  noise of deviation {trace.noise:.3f} on the embeddings of the subject's tokens")

# %% [markdown]
# `high` far above `low`: the model knows the fact, and the noise destroys it. Now each cell of the grids is one more
# corrupted run, in which one state is put back. Tokens go down, layers across; the subject's tokens are marked. There are
# three kinds of states: the residual stream behind a layer (`resid`), and what the MLPs (`mlp`) and the attention (`attn`)
# add to it, put back in a window of ten layers.

# %%
trace

# %% [markdown]
# Point at a cell for its probability and for what the model says there; click a token or a layer to compare the streams.
# Two places light up in the residual stream: the subject's last token, in early layers, and the prompt's last token, in
# late ones. What the first holds was written by MLPs, early: there the model turns "South Korea" into what it knows about
# it. What the second holds was carried by attention, late, from the first. That is the paper's finding in one picture, and
# this fact was [chosen](../benchmarks.md#the-default-example) because it shows it: of others a trace may look otherwise.
# `trace.figure()` is the same as a plotly figure.
#
# ## Numbers instead of colours
#
# `scores[stream]` is a tensor `[layer pos]`, `effect(stream)` the same less `low`.

# %%
print("tokens", trace.tokens)
for stream in trace.scores:
    layer, pos = trace.peak(stream, positions=range(*trace.subject_span))
    print(
        f"{stream:5} best within the subject: layer {layer:2}, token {trace.tokens[pos]!r}, {trace.scores[stream][layer, pos]:.3f}"
    )

trace.to_dataframe().nlargest(5, "effect")

# %% [markdown]
# ## Is it the noise?
#
# Noise is one way to break a subject. Putting another one of as many tokens in its place is another, with no noise at all.

# %%
swapped = rl.causal_trace(model, prompt, subject=subject, swap="North Korea", streams="resid")
print(f"high {swapped.high:.3f}, low {swapped.low:.3f}")
swapped.figure()

# %% [markdown]
# ## Keep it
#
# A trace is saved with every setting that its numbers depend on.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "seoul.safetensors"
    trace.save(path)
    again = rl.CausalTrace.load(path)
print("the same scores:", again.scores["mlp"].equal(trace.scores["mlp"]))
print(f"seed {again.seed}, {again.samples} noisy copies, windows of {again.window} layers")

# %% [markdown]
# One fact is an anecdote. [Where does my model keep facts?](where_facts.md) averages over many, and
# [Edit a fact and take it back](edit_a_fact.md) changes one.
