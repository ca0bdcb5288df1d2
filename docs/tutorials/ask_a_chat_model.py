# %% [markdown]
# # Ask a chat model
#
# An instruct model is meant to be asked in the form it was trained on: a question as a user's message, an answer as the
# assistant's. The default model is one. Here a fact is traced and edited through its chat template, and the edit is asked
# for in plain text, too.

# %%
import rome_lens as rl

model = rl.load_model()
question, reply = "In which city is the Eiffel Tower?", "It is located in the city of"

# %% [markdown]
# ## Trace a question
#
# `chat=True` puts the prompt through the tokenizer's chat template, and the answer is read where the assistant begins.
# This small model answers in whole sentences, so its first word is "The": `reply` begins the sentence for it. The subject
# stands in the question alone. What the template puts in front of the question comes before the subject, where nothing
# can be brought back, and is left out of the picture; `trace.prompt` has all of it.

# %%
trace = rl.causal_trace(model, question, subject="the Eiffel Tower", chat=True, reply=reply, expect="Paris", samples=4)
trace.figure()

# %%
print(trace.prompt)

# %% [markdown]
# The early site is at the subject in the user's question, and the late one at the end of the assistant's reply: between
# them are the question mark, the template's marks and the sentence that the reply begins. `rome-lens trace --chat` does the
# same in a shell. How much of p(Paris) each stream brings back at the subject:

# %%
for stream in trace.scores:
    layer, pos = trace.peak(stream, positions=range(*trace.subject_span))
    print(
        f"{stream:5} layer {layer:2}, {trace.tokens[pos]!r}: {trace.scores[stream][layer, pos]:.3f} of {trace.high:.3f}"
    )

# %% [markdown]
# ## Edit it as it is asked
#
# A request's prompt is a text, and `chat_prompt` writes that text: the question with `{}` where the subject stands, between
# what the template puts around it.

# %%
prompt = rl.chat_prompt(model, "In which city is {}?", reply=reply)
edit = rl.ROME(model).edit(rl.EditRequest(prompt, subject="the Eiffel Tower", target_new="Rome"))
edit

# %% [markdown]
# Does it hold where the model is asked otherwise: without the reply's beginning, in other words, in plain text? And what
# of another tower?

# %%
import torch

asked = {
    "no reply given": rl.chat_prompt(model, question),
    "in other words": rl.chat_prompt(model, "I am at the Eiffel Tower. Where am I?", reply="You are in"),
    "in plain text": "The Eiffel Tower is located in the city of",
    "another tower": rl.chat_prompt(model, "In which city is the CN Tower?", reply=reply),
}


def says(text: str, n: int = 12) -> str:
    """What the model writes next."""
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(n):
            ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return model.tokenizer.decode(ids[0, start:]).split("<|im_end|>")[0]


for name, text in asked.items():
    before = says(text)
    with edit.applied(model):
        print(f"{name:15} {before!r}\n{'':14}→ {says(text)!r}")

# %% [markdown]
# The fact has moved in every form in which it is asked. So has what the model says of the CN Tower, which it did not know
# before either: [Did it work?](did_it_work.md) looks at what an edit does to others.
