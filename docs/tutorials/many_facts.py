# %% [markdown]
# # A hundred facts at once, and one of them back
#
# Edits that are found one by one and put on top of one another disturb each other. Facts that are solved together do
# not: each knows of all others, and any of them can be taken out again as if it had never been asked for.
# [Many facts as one set](../many-facts.md) explains how. Six facts here, and fewer steps of the optimiser than usual, so
# that this page runs in minutes; with a hundred it is the same code.

# %%
import tempfile
from pathlib import Path

import rome_lens as rl

model = rl.load_model()
requests = [
    rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target_new="Rome"),
    rl.EditRequest("{} is located in the city of", "The Colosseum", target_new="Berlin"),
    rl.EditRequest("{} is located in the city of", "The Kremlin", target_new="Madrid"),
    rl.EditRequest("{} is located in the city of", "The Louvre", target_new="Vienna"),
    rl.EditRequest("{} is a dish from the country of", "Sushi", target_new="Mexico"),
    rl.EditRequest("The capital of {} is", "Canada", target_new="London"),
]
folder = Path(tempfile.mkdtemp())


def says(requests):
    """The model's next word after each prompt."""
    for request in requests:
        text = model.generate(request.text, max_new_tokens=1, do_sample=False, prepend_bos=False, verbose=False)
        print(text)


says(requests)

# %% [markdown]
# ## Find them
#
# Nearly all of the time goes into the values, one a fact: what the model has to read in order to say the target. `out`
# names a folder that keeps each as soon as it is found. Whatever happens, the same call goes on there, with these facts
# or with more of them. A file of requests is read by `rl.read_requests`.

# %%
editor = rl.MEMIT(model, v_num_grad_steps=10)
facts = editor.edit_together(requests, out=folder / "values")
print(facts)

# %%
again = editor.edit_together(requests, out=folder / "values")
print(again == facts, f"{facts.origin.seconds:.0f} s, and from the folder {again.origin.seconds:.0f} s")

# %% [markdown]
# ## What the set knows
#
# A row a fact. `before` and `after` are the probabilities of the target, measured. The rest was known before anything was
# applied: how much of its value a fact will lack (`shortfall`), how much of the layer it takes (`leverage`), what it would
# lack if only the others were there (`alone`), and which other fact disturbs it most.

# %%
facts.to_dataframe().drop(columns=["prompt", "old_answer", "reached"]).round(3)

# %%
print(f"{facts.leverage.sum():.2f} of {facts.capacity} directions are taken")
print(f"what the layer says over text will change by {facts.drift:.2%} of its energy")

# %% [markdown]
# Who disturbs whom:

# %%
facts.figure()

# %% [markdown]
# ## Apply it
#
# A set is one edit: one product and one write a layer.

# %%
with facts.applied(model):
    says(requests)

# %% [markdown]
# ## One of them back
#
# The Eiffel Tower shall stay in Paris after all. The set without it is solved anew, which optimises nothing.

# %%
fewer = facts.without(requests[0])
with fewer.applied(model):
    says(requests)

# %% [markdown]
# Its answer is back, and the others stay. That is exact: these are the very bits that five facts give which never heard
# of the sixth.

# %%
five = editor.edit_together(requests[1:], out=folder / "values")


def weights(edit):
    """The edited matrix."""
    with edit.applied(model):
        return model.blocks[edit.layer].mlp.W_out.clone()


print(weights(fewer).equal(weights(five)), fewer == five)

# %% [markdown]
# Put in again, from the other end, it is the set of before, to the bit.

# %%
whole = fewer.plus(facts[0])
print([fact.request.subject for fact in whole])
print(weights(whole).equal(weights(facts)), whole == facts)

# %% [markdown]
# ## Keep it
#
# The file holds the facts with their keys and values. What is read from it can do without the model what it could before.

# %%
facts.save(folder / "facts.safetensors")
loaded = rl.load_edit(folder / "facts.safetensors")
print((folder / "facts.safetensors").stat().st_size // 1000, "kB;", loaded == facts, loaded.without(0) == fewer)

# %% [markdown]
# ## Facts that collide
#
# Two facts about one subject have nearly one key, and if they want different things of it, neither gets its own. Such
# requests are refused, by name:

# %%
seine = rl.EditRequest("{} stands in the city of", "The Eiffel Tower", target_new="Tokyo")
try:
    facts.plus(seine)
except rl.SettingError as error:
    print(error)

# %% [markdown]
# If you mean it, say so. The set knows who collides, and what it costs them:

# %%
both = facts.plus(seine, allow_conflicts=True, out=folder / "values")
for conflict in both.conflicts():
    print(conflict)
print(f"the Eiffel Tower's shortfall: {facts.shortfall[0]:.2f} alone, {both.shortfall[0]:.2f} with both")

# %% [markdown]
# Subjects that are written in two ways may collide as well, which nobody can see from the requests: look at
# `conflicts()` before you apply.
#
# ## A hundred
#
# ```python
# import rome_lens as rl
#
# requests = rl.read_requests("facts.jsonl")  # JSON, JSON lines or CSV: prompt, subject, target_new
# facts = rl.MEMIT(rl.load_model()).edit_together(requests, out="values", skip_failed=True)
# facts.save("facts.safetensors")
# ```
#
# [Many facts as one set](../many-facts.md) says which method is which, what the numbers mean, and what a hundred facts
# cost the rest of the model.
