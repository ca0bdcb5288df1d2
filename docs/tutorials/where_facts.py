# %% [markdown]
# # Where does my model keep facts?
#
# A trace of one fact shows one fact. Averages over many, by what a token is to its fact, show what the model does as a
# rule: figures 2 and 3 of [Meng et al. 2022](https://arxiv.org/abs/2202.05262), for any model.

# %%
import rome_lens as rl

model = rl.load_model()

# %% [markdown]
# ## A few facts
#
# 150 facts come with rome_lens; facts that the model does not know are set aside and counted. Five of them, two noisy
# copies each, take about a minute. For a result use more facts and ten copies (the default), and a run folder:
# `rl.average_causal_effect(model, facts, out="run")` goes on where it was interrupted.

# %%
average = rl.average_causal_effect(model, rl.builtin_facts()[:5], samples=2, severed=("mlp", "attn"))
total = average.total_effect
print(f"{len(average.facts)} known, {len(average.set_aside)} set aside; total effect {total.mean:.3f}")
for stream in average.streams:
    for role in ("last subject token", "last token"):
        peak = average.peak(stream, role)
        print(f"{stream:5} {role:18} {peak.effect.mean:.3f} at layer {peak.layer} [{peak.first}, {peak.last}]")

# %% [markdown]
# The brackets are the 95 % interval of the layer, by bootstrap over facts: with so few facts it is wide.

# %%
figures = average.figures()
print(list(figures))
figures["roles"]

# %% [markdown]
# ## Severed paths
#
# Does a restored state work through the MLPs above it? Restore it again with the MLPs' outputs held at their corrupted
# values, and the same for attention.

# %%
figures["severed"]

# %% [markdown]
# ## In an eighteenth of the time
#
# Attribution patching approximates every cell from one backward pass. It says so everywhere, since it can be far off.

# %%
rough = rl.average_causal_effect(model, rl.builtin_facts()[:5], samples=2, engine="attribution")
print("approximate:", rough.approximate)
for stream in average.streams:
    exact, fast = average.peak(stream, "last subject token"), rough.peak(stream, "last subject token")
    print(f"{stream:5} peak at layer {exact.layer} exactly, {fast.layer} by attribution")

# %% [markdown]
# ## A result
#
# [Averages](../averages.md#results) has the run over a hundred known facts with its figures, and what it says about this
# model. In a shell:
#
# ```sh
# rome-lens average --facts known_1000.json --limit 100 --out known
# rome-lens suggest known
# ```
#
# `rome-lens suggest` edits a few records at several layers, since
# [where a fact is traced to need not be where editing it works](../concepts/limits.md#localisation-and-editing).
