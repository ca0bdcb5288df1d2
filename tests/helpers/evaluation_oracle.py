"""Evaluation as one would write it down: Hugging Face's model, edited weights, one prompt and answer at a time.

Slow, and short enough to be checked by reading. It shares no code with `rome_lens.evaluation`.
"""

import math
from contextlib import contextmanager

import torch


@contextmanager
def edited(model, edits):
    """The model with `outer(u, v)`, or the whole matrix of an edit, in the weights of the edited modules."""
    kept = []
    try:
        for edit in edits:
            weight = model.get_submodule(edit.module).weight
            kept.append((weight, weight.detach().clone()))
            update = torch.outer(edit.u.double(), edit.v.double()) if hasattr(edit, "u") else edit.delta.double()
            with torch.no_grad():
                weight.copy_(weight.double() + (update.T if edit.module_transposed else update))
        yield model
    finally:
        for weight, original in reversed(kept):
            with torch.no_grad():
                weight.copy_(original)


@torch.no_grad()
def token_log_probs(model, tokenizer, prompt, answer):
    """Log-probabilities of the answer's tokens after the prompt, and whether each is the most probable one."""
    n_prompt = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    ids = tokenizer(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
    logits = model(torch.tensor([ids])).logits[0]
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    answers = ids[n_prompt:]
    read = [log_probs[n_prompt - 1 + i] for i in range(len(answers))]
    return [row[i].item() for row, i in zip(read, answers, strict=True)], [
        int(row.argmax()) == i for row, i in zip(read, answers, strict=True)
    ]


def nll(model, tokenizer, prompt, answer):
    """Mean negative log-probability of the answer's tokens."""
    log_probs, _ = token_log_probs(model, tokenizer, prompt, answer)
    return -sum(log_probs) / len(log_probs)


@torch.no_grad()
def greedy(model, tokenizer, prompt, n_new):
    """The most probable continuation, one whole forward a token, up to the end of the text."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    new = []
    for _ in range(n_new):
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new)


def counterfact(model, tokenizer, record):
    """ES, PS, NS, EM, PM, NM of one record, in percent, on the model as it is; portability where something follows."""
    new, true = record.request.target_new, record.request.target_true
    groups = {"E": [record.request.text], "P": record.paraphrases, "N": record.neighbours}
    scores = portability(model, tokenizer, record)
    for letter, prompts in groups.items():
        others = (record.neighbour_answers if letter == "N" else ()) or [true] * len(prompts)
        asked = list(zip(prompts, others, strict=True))
        pairs = [(nll(model, tokenizer, p, new), nll(model, tokenizer, p, other)) for p, other in asked]
        if letter == "N":
            pairs = [(true_nll, new_nll) for new_nll, true_nll in pairs]
        wins = [other > wanted for wanted, other in pairs]
        margins = [math.exp(-wanted) - math.exp(-other) for wanted, other in pairs]
        scores[f"{letter}S"] = 100 * sum(wins) / len(wins)
        scores[f"{letter}M"] = 100 * sum(margins) / len(margins)
    return scores


def zsre(model, tokenizer, record):
    """Efficacy, paraphrase and specificity of one record, in percent; portability where something follows."""
    asked = {
        "efficacy": (record.request.text, record.request.target_new),
        "paraphrase": (record.rephrase, record.request.target_new),
        "specificity": (record.unrelated, record.unrelated_answer),
    }
    right = {name: token_log_probs(model, tokenizer, *pair)[1] for name, pair in asked.items()}
    scores = {name: 100 * sum(hits) / len(hits) for name, hits in right.items()}
    return scores | portability(model, tokenizer, record)


def portability(model, tokenizer, record):
    """The share of tokens that are right of the best answer to each prompt that follows from the fact, in percent."""
    shares = []
    for follow_up in record.follows:
        right = [token_log_probs(model, tokenizer, follow_up.prompt, answer)[1] for answer in follow_up.answers]
        shares.append(max(sum(hits) / len(hits) for hits in right))
    return {"portability": 100 * sum(shares) / len(shares)} if shares else {}


def perplexity(model, tokenizer, texts):
    """Of texts together: every token but each text's first is predicted."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].double().log_softmax(dim=-1)
        total -= log_probs.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    return math.exp(total / count)
