"""Shapes that signatures promise are held wherever a test that does not leave it off calls them."""

from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from shapes import check
from torch import Tensor

from rome_lens.checks import as_whole
from rome_lens.editing.outcome import SAID
from rome_lens.tracing.cases import joint_probability


def checked(function):
    return jaxtyped(typechecker=check)(function)


def test_the_package_is_checked():
    """A sound call goes through, and one whose rows do not fit to each other is caught before it is computed."""
    assert joint_probability(torch.zeros(2, 1, 4), torch.tensor([3])).tolist() == [0.25, 0.25]
    with pytest.raises(TypeCheckError, match="answer_ids"):
        joint_probability(torch.zeros(2, 1, 4), torch.tensor([3, 3, 3]))


def test_what_names_no_array_has_no_wrapper():
    assert hasattr(joint_probability, "__wrapped__")
    assert not hasattr(as_whole, "__wrapped__")


@checked
def promises(x: Float[Tensor, "row pos"], *, rows: Int[Tensor, " row"] | None = None) -> Float[Tensor, " row"]:
    return x[:, 0] if rows is None else x.sum(dim=1)[rows[:1]]


def test_parameters_and_results():
    assert promises(torch.ones(2, 3)).shape == (2,)
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        promises(torch.ones(2))
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        promises(torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(TypeCheckError, match="parameter 'rows'"):
        promises(torch.ones(2, 3), rows=torch.arange(3))
    with pytest.raises(TypeCheckError, match="return value"):
        promises(torch.ones(2, 3), rows=torch.arange(2))


def test_what_names_no_array_is_left_to_the_function():
    @checked
    def plain(x: Float[Tensor, " row"], factor: int) -> str:
        return x.sum().item() * factor

    assert plain(torch.ones(2), 0.5) == 1.0


def test_annotations_as_texts_and_those_that_nothing_is_known_of():
    @checked
    def quoted(x: 'Float[Tensor, " row"]', y: "NotImported", z: 'list[Float[Tensor, " row"]]' = ()) -> None:  # noqa: F821
        return None

    quoted(torch.ones(2), 3)
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        quoted(torch.ones(2, 2), 3)
    with pytest.raises(TypeCheckError, match="parameter 'z'"):
        quoted(torch.ones(2), 3, [torch.ones(3)])


def test_fields_of_a_dataclass():
    @checked
    @dataclass(frozen=True)
    class Two:
        one: Float[Tensor, "row pos"]
        other: Int[Tensor, " row"]
        name: str

    Two(torch.ones(2, 3), torch.arange(2), name=SAID)
    with pytest.raises(TypeCheckError, match="parameter 'other'"):
        Two(torch.ones(2, 3), torch.arange(3), name="")


@pytest.mark.usefixtures("unchecked")
def test_a_test_of_what_callers_get_wrong_can_leave_it_off():
    assert promises(torch.ones(2, 3, dtype=torch.long)).shape == (2,)
