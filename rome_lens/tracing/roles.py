"""What a token is to a fact: six roles that make facts of different lengths comparable (paper, section 2.2)."""

FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT = "first subject token", "middle subject tokens", "last subject token"
FIRST_AFTER, FURTHER, LAST = "first subsequent token", "further tokens", "last token"
ROLES = (FIRST_SUBJECT, MIDDLE_SUBJECT, LAST_SUBJECT, FIRST_AFTER, FURTHER, LAST)
"""In the order of a prompt, as the paper's figures print them from the top."""

EARLY, LATE = ("mlp", LAST_SUBJECT), ("attn", LAST)
"""The two sites that the paper finds: MLPs at the subject's last token, attention at the prompt's."""


def roles_of(subject_span: tuple[int, int], n_tokens: int) -> dict[str, range]:
    """The positions of each role that a prompt has; every position from the subject on has exactly one.

    The last token of a prompt is its last token whatever else it is, and the only token of a subject is the subject's
    last. The released code counts such tokens twice. Tokens in front of the subject have no role: nothing that is
    restored there changes anything.

    Args:
        subject_span: positions (first, end) of the subject's tokens; the end is exclusive.
        n_tokens: tokens of the prompt.
    """
    first, end = subject_span
    last = n_tokens - 1
    bounds = {
        FIRST_SUBJECT: (first, first + 1 if end - first > 1 else first),
        MIDDLE_SUBJECT: (first + 1, end - 1),
        LAST_SUBJECT: (end - 1, end),
        FIRST_AFTER: (end, end + 1),
        FURTHER: (end + 1, last),
        LAST: (last, last + 1),
    }
    found = {role: range(start, stop if role == LAST else min(stop, last)) for role, (start, stop) in bounds.items()}
    return {role: positions for role, positions in found.items() if positions}
