# %% [markdown]
# # Did it work? CounterFact on your edit
#
# An edit that says what it was asked to has done the least. [CounterFact](../concepts/metrics.md) asks the same fact in
# other words (the new answer is wanted) and asks about neighbours (the old answer is).

# %%
import rome_lens as rl

model = rl.load_model()

# %% [markdown]
# ## One record
#
# 75 records come with rome_lens, in CounterFact's form, about facts that the default model knows. Your file is read by
# `rl.read_counterfact(path)`.

# %%
records = rl.builtin_counterfact()
record = records[0]
print(len(records), "records")
print("edit       ", record.request.text, "→", record.request.target_new, f"(instead of {record.request.target_true})")
print("paraphrase ", record.paraphrases[0])
print("neighbour  ", record.neighbours[0])

# %% [markdown]
# ## Editors side by side
#
# Each record is edited by itself, on the unedited model. `none` is that model; `ft` is fine-tuning of one matrix. Two
# records are very few, so mind the intervals; `n_texts=0` leaves out what takes longest, the texts
# that the model writes about each subject.

# %%
report = rl.evaluate_counterfact(model, ["none", "r-rome", "ft"], records[:2], measures=rl.Measures(n_texts=0))
for name, editor in report.editors.items():
    found = {metric: editor.intervals[metric] for metric in ("S", "ES", "PS", "NS")}
    print(f"{name:7}", *(f"{metric} {e.mean:.1f} [{e.low:.1f}, {e.high:.1f}]" for metric, e in found.items()), sep="  ")

# %%
report.figures()["scores"]

# %% [markdown]
# - **ES** is 100 for both editors: after the edited prompt the new answer is the likelier one.
# - **PS** tells whether the edit carries over to other words.
# - **NS** tells what it does to neighbours, and is read against that of `none`.
#
# ## The records behind a score
#
# A row a record and editor, to be sorted and looked into:

# %%
table = report.to_dataframe()
worst = table[table.editor == "r-rome"].nsmallest(3, "NS")
worst[["number", "subject", "target_new", "ES", "PS", "NS", "before_NS"]]

# %% [markdown]
# ## Your own editor
#
# Anything with `edit(request)` can be measured in the same way. This one shortens what ROME finds to half, and asks
# whether half an edit does half the harm.


# %%
class Half:
    """ROME's edit at half its length."""

    def __init__(self, model):
        self.model, self.rome = model, rl.ROME(model)

    def edit(self, request):
        return self.rome.edit(request).scaled(0.5)


half = rl.evaluate_counterfact(model, {"half": Half(model)}, records[:2], measures=rl.Measures(n_texts=0))
print({metric: round(half.editors["half"].scores[metric], 1) for metric in ("S", "ES", "PS", "NS")})

# %% [markdown]
# A run with `out="folder"` keeps every record as soon as it is finished, goes on after an interruption, and writes a page
# with the worst records. [Evaluation](../evaluation.md) has all metrics and options; the table of seven editors on a hundred
# records of CounterFact is [there, too](../evaluation.md#results).
