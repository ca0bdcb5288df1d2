# %% [markdown]
# # Edit a fact and take it back
#
# ROME adds the outer product of two vectors to one weight matrix, so that the model says something else about one
# subject. [ROME](../concepts/rome.md) explains how. Here the Eiffel Tower moves to Rome, and back.

# %%
import rome_lens as rl

model = rl.load_model()


def says(prompt, length=8):
    """How the model goes on."""
    return model.generate(prompt, max_new_tokens=length, do_sample=False, prepend_bos=False, verbose=False)


print(says("The Eiffel Tower is located in the city of"))

# %% [markdown]
# ## Find the edit
#
# A request has one `{}` where the subject stands. ROME also needs the
# [second moment](../concepts/second-moment.md) of what the matrix usually reads, so as to leave that alone. The default
# model comes with it; for any other, [Bring your own model](your_own_model.md) collects it.

# %%
editor = rl.ROME(model)
request = rl.EditRequest("{} is located in the city of", subject="The Eiffel Tower", target_new="Rome")
edit = editor.edit(request)
print(
    f"p(Rome) {edit.before.target:.3f} → {edit.after.target:.3f}, p(Paris) {edit.before.old:.3f} → {edit.after.old:.3f}"
)
print(f"layer {edit.layer}, the update is {edit.relative_norm:.1%} of the matrix")

# %% [markdown]
# Nothing in the model has changed yet: `edit` is an object of two vectors.
#
# ## Put it on, look around, take it off

# %%
prompts = [
    "The Eiffel Tower is located in the city of",
    "Tourists who visit the Eiffel Tower stay in the city of",
    "The Louvre is located in the city of",
    "The Colosseum is located in the city of",
]
with edit.applied(model):
    for prompt in prompts:
        print(says(prompt))

# %% [markdown]
# The paraphrase follows, and the neighbours stay where they were. After the block the very bits are back:

# %%
before = model.blocks[edit.layer].mlp.W_out.clone()
edit.apply(model)
changed = not before.equal(model.blocks[edit.layer].mlp.W_out)
edit.revert(model)
print("changed:", changed, " restored to the bit:", before.equal(model.blocks[edit.layer].mlp.W_out))
print(says(prompts[0]))

# %% [markdown]
# ## Without touching a weight
#
# The same edit goes through TransformerLens's hooks, also for some rows of a batch only.

# %%
tokens = model.to_tokens([request.text, request.text], prepend_bos=False)
logits = model.run_with_hooks(tokens, fwd_hooks=edit.hooks(model, rows=[1]))
print([model.tokenizer.decode(row[-1].argmax().item()) for row in logits])

# %% [markdown]
# ## Several edits
#
# Edits stack, and come off in any order.

# %%
colosseum = editor.edit(rl.EditRequest("{} is located in the city of", "The Colosseum", target_new="Berlin"))
with edit.applied(model), colosseum.applied(model):
    print([(e.request.subject, e.request.target_new) for e in rl.applied_edits(model)])
    print(says("The Eiffel Tower is located in the city of", 1))
    print(says("The Colosseum is located in the city of", 1))
print(rl.applied_edits(model))

# %% [markdown]
# ## A fact of your own
#
# First see what the model knows: ask it for several facts, and take one that it is sure of. Whole sentences that end
# where the answer begins do best. A small model knows capitals and famous places, and little about people.

# %%
import torch

candidates = [
    "The Great Wall is located in the country of",
    "The Beatles came from the city of",
    "Sushi is a dish from the country of",
    "The official language of Brazil is",
    "Microsoft was founded by",
]
for prompt in candidates:
    with torch.no_grad():
        probabilities = model(model.to_tokens(prompt, prepend_bos=False))[0, -1].softmax(-1)
    best = zip(*(found.tolist() for found in probabilities.topk(3)), strict=True)
    print(prompt, "→", ", ".join(f"{model.tokenizer.decode(token)} {p:.2f}" for p, token in best))

# %% [markdown]
# The last two are no facts to this model. Sushi is one:

# %%
sushi = editor.edit(rl.EditRequest("{} is a dish from the country of", "Sushi", target_new="Mexico"))
print(sushi)
with sushi.applied(model):
    print(says("Everyone likes Sushi, a dish from the country of", 1))
    print(says("Everyone likes sushi, a dish from the country of", 1))
    print(says("Pizza is a dish from the country of", 1))

# %% [markdown]
# An edit answers to the subject as it was written. "sushi" is another token than "Sushi", and the edit does not know it.
# Where an edit falls short, its `repr` says `not reached`, and `edit.notes` says what may help.
#
# ## Keep it
#
# `edit.save("rome.safetensors")` and `rl.load_edit` keep an edit in a file of a few kilobytes.
# [From TransformerLens to Hugging Face and PEFT](export.md) hands it to people who have neither TransformerLens nor
# rome_lens. Whether it is a *good* edit is the next question: [Did it work?](did_it_work.md)
