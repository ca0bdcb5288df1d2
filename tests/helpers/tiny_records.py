"""Records in CounterFact's form about the tiny model's words, and what makes their edits quick."""

from published import published

import rome_lens as rl

SUBJECTS = ["the tower", "the museum", "a river", "the city", "rome", "the old river"]
TRUE, NEW = ["paris", "rome", "berlin"], ["rome", "berlin", "paris"]


def _fact(number, subject):
    request = rl.EditRequest("where stands {}", subject, NEW[number % 3], TRUE[number % 3])
    paraphrases = (f"{subject} stands in", f"it was old . {subject} is in")
    neighbours, texts = ("where stands a museum", "the river was in"), (f"{subject} was built", f"{subject} is")
    return published(
        rl.CounterFactRecord(number, 100 + number, f"P{number % 2}", request, paraphrases, neighbours, texts)
    )


FACTS = [_fact(number, subject) for number, subject in enumerate(SUBJECTS)]
FAST = ("--set", "v_num_grad_steps=2", "--set", 'context_templates=["it was old. {}"]')
MODEL = ("--model", "MODEL", "--second-moment", "C1")
