"""What a token is to its fact: every position from the subject on has one role (SPEC 1, "Averages")."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rome_lens.tracing.roles import (
    FIRST_AFTER,
    FIRST_SUBJECT,
    FURTHER,
    LAST,
    LAST_SUBJECT,
    MIDDLE_SUBJECT,
    ROLES,
    roles_of,
)


@pytest.mark.parametrize(
    ("span", "n_tokens", "expected"),
    [
        ((1, 4), 8, {FIRST_SUBJECT: [1], MIDDLE_SUBJECT: [2], LAST_SUBJECT: [3], FIRST_AFTER: [4], FURTHER: [5, 6]}),
        ((0, 5), 8, {FIRST_SUBJECT: [0], MIDDLE_SUBJECT: [1, 2, 3], LAST_SUBJECT: [4], FIRST_AFTER: [5], FURTHER: [6]}),
        ((0, 1), 4, {LAST_SUBJECT: [0], FIRST_AFTER: [1], FURTHER: [2]}),
        ((0, 2), 3, {FIRST_SUBJECT: [0], LAST_SUBJECT: [1]}),
        ((0, 2), 4, {FIRST_SUBJECT: [0], LAST_SUBJECT: [1], FIRST_AFTER: [2]}),
        ((1, 3), 3, {FIRST_SUBJECT: [1]}),
        ((0, 1), 1, {}),
    ],
)
def test_roles_by_hand(span, n_tokens, expected):
    found = {role: list(positions) for role, positions in roles_of(span, n_tokens).items()}
    assert found == {**expected, LAST: [n_tokens - 1]}


@given(before=st.integers(0, 4), subject=st.integers(1, 6), after=st.integers(0, 6))
def test_every_position_from_the_subject_on_has_one_role(before, subject, after):
    n_tokens = before + subject + after
    roles = roles_of((before, before + subject), n_tokens)
    assert [pos for role in ROLES if role in roles for pos in roles[role]] == list(range(before, n_tokens))
    assert all(len(positions) == 1 for role, positions in roles.items() if role not in (MIDDLE_SUBJECT, FURTHER))
