"""Records in the form in which CounterFact is published."""


def published(record):
    """What a file holds of a CounterFactRecord."""
    request = record.request
    return {
        "case_id": record.case_id,
        "requested_rewrite": {
            "prompt": request.prompt,
            "relation_id": record.relation,
            "target_new": {"str": request.target_new},
            "target_true": {"str": request.target_true},
            "subject": request.subject,
        },
        "paraphrase_prompts": list(record.paraphrases),
        "neighborhood_prompts": list(record.neighbours),
        "generation_prompts": list(record.generation_prompts),
    }
