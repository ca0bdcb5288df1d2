# %% [markdown]
# # Coming from the released ROME code or EasyEdit
#
# What you know under one name, under its name here. First the two methods side by side, then settings and files.
#
# ## The released code
#
# | there | here |
# |---|---|
# | `experiments/causal_trace.py`, `calculate_hidden_flow` | [`rl.causal_trace`](../reference.md#rome_lens.causal_trace), `rome-lens trace` |
# | the averages of its notebooks | `rl.average_causal_effect`, `rome-lens average` |
# | `apply_rome_to_model(model, tok, [request], hparams)` | `rl.ROME(model).edit(request)`, then `edit.applied(model)` |
# | MEMIT's `apply_memit_to_model(model, tok, requests, hparams)` | `rl.MEMIT(model).edit_together(requests)`; `spread="released", at="block"` for its way through several layers |
# | `mom2_update_weight: 20000` (MEMIT), `L2`, `nullspace_threshold` (AlphaEdit) | `preserve=20000 / d_mlp`, `l2_absolute`, `threshold` |
# | `rome/layer_stats.py` | `rl.SecondMoment.collect`, `rome-lens stats` |
# | `data/stats/…/*.npz` | `rl.SecondMoment.from_npz(path, layer=17)` |
# | `data/known_1000.json` | `rl.read_known_facts(path)` |
# | `data/counterfact.json`, `data/zsre_mend_eval.json` | `rl.read_counterfact(path)`, `rl.read_zsre(path)` |
# | `experiments/evaluate.py`, `summarize.py` | `rl.evaluate_counterfact`, `rome-lens eval` |
# | `{"prompt": "{} is in", "subject": …, "target_new": {"str": …}}` | `rl.EditRequest("{} is in", subject=…, target_new=…)` |
#
# An edit there is a changed model and a copy of the old weights. Here it is an object: put on and taken off with the very
# bits restored, saved, stacked, exported.
#
# ## Settings
#
# | `hparams` there | argument of `rl.ROME` |
# |---|---|
# | `layers: [17]` | `layer=17` |
# | `v_num_grad_steps`, `v_lr`, `v_weight_decay`, `clamp_norm_factor`, `kl_factor` | the same names |
# | `fact_token: subject_last` | always so |
# | `context_template_length_params` | written by the model, by `seed`; or `context_templates=[…]` |
# | `mom2_dataset`, `mom2_n_samples`, `mom2_dtype` | `texts`, `max_tokens` of `SecondMoment.collect`; always summed in float64 |
# | `mom2_adjustment: false` | not possible; `identity` as an editor of an evaluation |
# | `rewrite_module_tmp` and the other module names | found by TransformerLens |
#
# The released settings of GPT-2 medium, large and XL, GPT-J and GPT-NeoX are the defaults of these models here, and
# EasyEdit's those of the 7 to 9 billion Llama, Mistral, Qwen and InternLM models: see
# [Settings of models](../editing.md#settings-of-models).
#
# ## The same numbers
#
# The default update is r-ROME's, since the released one [mixes two keys](../concepts/variants.md), and half of its weight
# lies on the prompt with nothing in front; `variant="rome"` gives the released update with its own weights
# ([Options](../editing.md#options) has the rest). Prompts are read without a BOS token, as in the released code and unlike
# TransformerLens's default; every result says so.

# %%
import rome_lens as rl

model = rl.load_model()
request = rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target_new="Rome")
for variant in ("rome", "r-rome"):
    edit = rl.ROME(model, variant=variant).edit(request)
    print(f"{variant:7} p(Rome) {edit.after.target:.3f}, update {edit.relative_norm:.1%} of the matrix")

# %% [markdown]
# Traces agree with the released code's cell by cell, given the same noise level; the default level is measured on our own
# facts. `noise=0.35`, or `facts=rl.read_known_facts("known_1000.json")`, sets it.

# %%
trace = rl.causal_trace(model, request.text, subject=request.subject, noise=0.35, streams="mlp", samples=4)
print(f"{trace.noise_rule}: high {trace.high:.4f}, low {trace.low:.4f}")

# %% [markdown]
# ## EasyEdit
#
# | there | here |
# |---|---|
# | `BaseEditor.from_hparams(hparams)` | `rl.ROME(model)` |
# | `editor.edit(prompts=…, subject=…, target_new=…, ground_truth=…)` | `editor.edit(rl.EditRequest(prompt, subject, target_new, target_true))` |
# | `hparams/ROME/*.yaml` | the defaults, or `rl.ROME(…)`'s arguments |
# | `sequential_edit=True` | `edit.apply(model)` between one `edit` and the next; better [all at once](../many-facts.md) |
# | `editor.batch_edit(…)` with MEMIT, EMMET, AlphaEdit | `rl.MEMIT(model).edit_together(requests)`, `rl.EMMET`, `rl.AlphaEdit` |
# | R-ROME as an editor of its own | `variant="r-rome"`, the default |
# | `metrics[i]["post"]["rewrite_acc"]` | `report.scores`, by CounterFact's and zsRE's names |
#
# For GPT-J and for the Llama, Mistral, Qwen and InternLM models EasyEdit's settings files leave the second moment out (`mom2_adjustment:
# false`), so its edits of them are those of `identity` here; for GPT-2 XL they keep it.
# [Evaluation](../evaluation.md#results) compares the two on a hundred records.
#
# ## What is mended
#
# Each page has a list of the released code's defects that are not reproduced:
# [tracing](../tracing.md#where-it-departs-from-the-released-code),
# [editing](../editing.md#where-it-departs-from-the-released-code),
# [evaluation](../evaluation.md#where-this-departs-from-the-released-code).
