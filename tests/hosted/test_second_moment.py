"""C as an object: what it solves, what it refuses, and that its file gives it back."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import BRIDGE, architecture, hugging_face_model, own
from refused import refused
from safetensors import safe_open
from safetensors.torch import save_file

from rome_lens.backends import as_backend
from rome_lens.editing.second_moment.inverse import RIDGES
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.errors import ArtefactError, ModelError, ModelMismatchError, SettingError
from rome_lens.storage import load_tensors, save_tensors

TEXTS = ["The tower is in the city of Paris.", "A short one", "Water boils at a hundred degrees" * 3]


@pytest.fixture(scope="module")
def moment():
    return SecondMoment.collect(architecture("gpt2", BRIDGE), layers=[2], texts=TEXTS, command="a command")[2]


@pytest.fixture
def path(moment, tmp_path):
    """The file of `moment`."""
    moment.save(tmp_path / "c.safetensors")
    return tmp_path / "c.safetensors"


def _random(size=12, n=50, seed=0):
    keys = torch.randn(n, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keys.t() @ keys / n


def _ridged(matrix, ridge=RIDGES[0]):
    return matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12), (0, 12)])
@pytest.mark.parametrize("ridge", [None, 0.0, 0.5])
def test_solving(shape, ridge):
    matrix = _random()
    keys = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ridged = _ridged(matrix) if ridge is None else _ridged(matrix, ridge)
    expected = torch.linalg.solve(ridged, keys.double().reshape(-1, 12).t()).t().reshape(shape)
    solved = SecondMoment.from_matrix(matrix, layer=0).solve(keys, ridge)
    assert solved.dtype == torch.float64
    torch.testing.assert_close(solved, expected, rtol=1e-10, atol=1e-12)


def test_the_factor_is_made_once_for_a_ridge(monkeypatch):
    moment, made = SecondMoment.from_matrix(_random(), layer=0), []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: made.append(1) or cholesky(matrix))
    key = torch.ones(12)
    first = moment.solve(key)
    assert torch.equal(moment.solve(key), first)
    assert len(made) == 1
    assert not torch.equal(moment.solve(key, 0.1), first)
    assert torch.equal(moment.solve(key), first)
    assert len(made) == 3


def test_solving_leaves_the_matrix_and_the_gradient_alone():
    matrix = _random()
    moment = SecondMoment.from_matrix(matrix, layer=0)
    before = moment.matrix.clone()
    assert not moment.solve(torch.ones(12, requires_grad=True)).requires_grad
    assert moment.condition_number > 1
    assert torch.equal(moment.matrix, before)
    assert torch.equal(matrix, _random())


def test_a_singular_matrix_is_solved_with_a_ridge_only():
    key = torch.randn(8, generator=torch.Generator().manual_seed(0))
    moment = SecondMoment.from_matrix(torch.outer(key, key), layer=7)
    assert moment.solve(key).isfinite().all()
    # One eigenvalue is the trace, the others are the ridge times a D-th of it.
    assert moment.condition_number == pytest.approx(8 / RIDGES[0], rel=0.1)
    moment = SecondMoment.from_matrix(torch.diag(torch.tensor([1.0, 0.0])), layer=7)
    assert refused(SettingError, moment.solve, torch.ones(2), 0) == (
        "the second moment of layer 7 is not positive definite with a ridge of 0; collect it from more tokens, or give "
        "a larger ridge"
    )


def test_the_condition_number_is_computed_once(monkeypatch):
    moment = SecondMoment.from_matrix(_random(), layer=0)
    expected = torch.linalg.cond(_ridged(_random())).item()
    assert moment.condition_number == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    assert moment.condition_number == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("matrix", [torch.zeros(3, 3), torch.tensor([[1.0, 2], [2, 1]])])
def test_a_matrix_that_no_ridge_helps(matrix):
    moment = SecondMoment.from_matrix(matrix, layer=0)
    for ask in (lambda: moment.condition_number, lambda: moment.ridge, lambda: moment.solve(torch.ones(len(matrix)))):
        assert "is not positive definite with a ridge of 0.001; collect it" in refused(SettingError, ask)


def test_a_larger_ridge_is_taken_where_it_takes_one():
    # What is below zero is what rounding left of nothing.
    moment = SecondMoment.from_matrix(torch.diag(torch.tensor([3.0, -1e-5, 0.0])) + 0, layer=0)
    assert moment.ridge == 1e-4
    assert moment.solve(torch.eye(3, dtype=torch.float64)).diagonal()[2].item() == pytest.approx(1e4, rel=1e-4)
    assert moment.warnings == (
        "C is singular as far as float32 can tell, and took a ridge of 0.0001 where 1e-06 is the rule; collect it from "
        "more tokens, or from texts that differ more",
    )
    assert SecondMoment.from_matrix(_random(), layer=0).ridge == RIDGES[0]


@pytest.mark.parametrize(
    ("key", "ridge", "said"),
    [
        (torch.ones(5), 0.1, "the key has 5 numbers, and the second moment 12 rows"),
        (torch.full((12,), torch.nan), 0.1, "the key holds numbers that are not finite; load the model in float32"),
        (torch.ones(12), -1.0, "ridge is -1.0; expected a number, 0 or more, in units of the diagonal's mean"),
        (torch.ones(12), float("nan"), "ridge is nan; expected a number, 0 or more, in units of the diagonal's mean"),
        (torch.ones(12), float("inf"), "ridge is inf; expected a number, 0 or more, in units of the diagonal's mean"),
    ],
)
def test_what_is_not_solved(key, ridge, said):
    assert refused(SettingError, SecondMoment.from_matrix(_random(), layer=0).solve, key, ridge) == said


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (torch.ones(2, 3), "has shape (2, 3)"),
        (torch.ones(3), "has shape (3,)"),
        (torch.ones(0, 0), "has shape (0, 0)"),
        (torch.tensor([[1.0, 2], [0, 1]]), "is not symmetric"),
        (torch.tensor([[1.0, torch.nan], [torch.nan, 1]]), "holds numbers that are not finite"),
        (torch.ones(2, 2, dtype=torch.long), "is of torch.int64, no tensor of floating-point numbers"),
        ([[1.0]], "is list, no tensor of floating-point numbers"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_matrices_that_are_no_second_moments(matrix, said):
    for make in (SecondMoment.from_matrix, SecondMoment):
        found = refused(SettingError, make, matrix, layer=0)
        assert found == f"a second moment is square, symmetric and finite; this matrix {said}"


@pytest.mark.parametrize("layer", [-1, True, 1.0, "1", None])
def test_layers_that_are_none(layer):
    with pytest.raises(SettingError, match="expected a whole number, 0 or more"):
        SecondMoment.from_matrix(_random(), layer=layer)


def test_a_bare_matrix_in_another_type():
    moment = SecondMoment.from_matrix(_random().bfloat16().requires_grad_(), layer=0)
    assert (moment.matrix.dtype, moment.matrix.requires_grad) == (torch.float64, False)
    assert torch.equal(moment.matrix, moment.matrix.t())


def test_too_few_tokens_are_warned_about(moment):
    few = SecondMoment(matrix=torch.eye(1536), layer=0, n_tokens=900)
    (warning,) = few.warnings
    assert warning == (
        "collected from 900 tokens, fewer than the 1536 rows of C: it has no inverse of its own, and the ridge decides "
        "what an edit spares; collect 30720 tokens or more"
    )
    assert moment.n_tokens > moment.d_mlp
    assert moment.warnings == replace(few, n_tokens=1536).warnings == replace(few, n_tokens=None).warnings == ()


def test_the_file_gives_everything_back(moment, path, tmp_path):
    loaded = SecondMoment.load(path)
    assert loaded.to_dict() == moment.to_dict()
    assert loaded.fingerprint == moment.fingerprint
    assert torch.equal(loaded.matrix, moment.matrix.float())
    # What was rounded once is not rounded again.
    loaded.save(tmp_path / "again.safetensors")
    assert torch.equal(SecondMoment.load(tmp_path / "again.safetensors").matrix, loaded.matrix)
    with safe_open(path, "pt") as file:
        assert file.get_tensor("triangle").shape == (moment.d_mlp * (moment.d_mlp + 1) // 2,)


def test_the_history(moment):
    history = moment.to_dict()
    assert json.loads(json.dumps(history)) == history
    assert history["versions"].keys() == {"rome-lens", "torch", "transformer-lens", "transformers"}
    assert (moment.model_name, moment.layer, moment.backend, moment.command) == ("gpt2", 2, BRIDGE, "a command")
    assert (moment.dtype, moment.device, moment.prepend_bos, moment.source) == ("float64", "cpu", False, "texts")
    assert moment.n_tokens == sum(len(text) for text in TEXTS)
    assert (moment.text_length, moment.n_pieces, moment.seed) == (64, 4, None)
    assert moment.created.endswith("+00:00")
    assert repr(moment) == "SecondMoment(layer 2 of gpt2, 64 x 64, 141 tokens of texts)"


DAMAGE = {
    "n_tokens": ("many", "n_tokens is 'many'"),
    "layer": (True, "layer is True"),
    "source": (None, "source is None"),
    "prepend_bos": (1, "prepend_bos is 1"),
    "versions": ({"torch": 2}, "versions holds something else than texts"),
    "fingerprint": ({"layer": 1}, "the fingerprint of a model is damaged (model_name is missing)"),
    "d_mlp": (63, "a triangle of torch.float32 and shape (2080,) belongs to no 63 x 63 matrix"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("absent", [False, True])
def test_damaged_fields(path, name, absent):
    tensors, settings = load_tensors(path, kind="second_moment")
    settings[name], said = DAMAGE[name]
    if absent:
        del settings[name]
        said = f"{name} is missing"
        if name in ("n_tokens", "prepend_bos", "fingerprint"):
            said = None
    save_tensors(path, kind="second_moment", tensors=tensors, settings=settings)
    if said is None:
        assert getattr(SecondMoment.load(path), name) is None
        return
    found = refused(ArtefactError, SecondMoment.load, path)
    assert found == f"cannot use {str(path)!r}: a second_moment that is damaged ({said})"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda triangle: {}, "a second_moment that is damaged (it holds no triangle)"),
        (lambda triangle: {"triangle": triangle[1:]}, "a triangle of torch.float32 and shape (2079,) belongs to no 64"),
        (lambda triangle: {"triangle": triangle.double()}, "a triangle of torch.float64 and shape (2080,) belongs to"),
        (lambda triangle: {"triangle": triangle.clone().fill_(torch.nan)}, "this matrix holds numbers that are not"),
    ],
)
def test_damaged_triangles(path, change, said):
    tensors, settings = load_tensors(path, kind="second_moment")
    save_tensors(path, kind="second_moment", tensors=change(tensors["triangle"]), settings=settings)
    found = refused(ArtefactError, SecondMoment.load, path)
    assert said in found
    assert found.startswith(f"cannot use {str(path)!r}: ")


@pytest.mark.parametrize("kept", [0, 3, 100, 5000])
def test_files_that_are_cut_short(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut short, damaged or no safetensors file" in refused(ArtefactError, SecondMoment.load, path)


def test_foreign_files(tmp_path):
    save_file({"triangle": torch.ones(3)}, tmp_path / "c")
    with pytest.raises(ArtefactError, match="expected a second_moment of rome_lens, found something that"):
        SecondMoment.load(tmp_path / "c")
    assert "there is no file" in refused(ArtefactError, SecondMoment.load, tmp_path / "none")


def _published(path, **changes):
    """Statistics as the released code writes them (`CombinedStat(mom2=SecondMoment())` through `save_cached_state`)."""
    total = (_random() * 700).float().numpy()
    state = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "mom2.count": 700,
        "mom2.mom2": total,
        "sample_size": 100000,
    }
    with path.open("wb") as file:
        np.savez(file, **{k: v for k, v in (state | changes).items() if v is not None})
    return path


@pytest.mark.parametrize("name", ["transformer.h.2.mlp.c_proj_float32_mom2_100000.npz", "renamed"])
@pytest.mark.parametrize("size", [100000, np.array(np.nan), None])
def test_published_statistics(tmp_path, name, size):
    path = _published(tmp_path / name, sample_size=size)
    moment = SecondMoment.load(path, layer=2)
    torch.testing.assert_close(moment.matrix, _random().float())
    assert (moment.n_tokens, moment.layer, moment.fingerprint, moment.model_name) == (700, 2, None, None)
    assert moment.source == f"published statistics {name}" + (", 100000 texts" if size == 100000 else "")
    assert torch.equal(SecondMoment.from_npz(path, layer=2).matrix, moment.matrix)
    moment.save(tmp_path / "ours")
    assert SecondMoment.load(tmp_path / "ours").to_dict() == moment.to_dict()


def test_published_statistics_do_not_say_their_layer(tmp_path):
    path = _published(tmp_path / "c.npz")
    assert refused(SettingError, SecondMoment.load, path) == (
        f"{str(path)!r} holds published statistics, which do not say of which layer; give the layer"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mom2.mom2": None}, "expected mom2.mom2 and mom2.count, as the released code writes them; it holds mom2.con"),
        ({"mom2.count": 0}, "its count is 0, no number of tokens"),
        ({"mom2.count": 1.5}, "its count is 1.5, no number of tokens"),
        ({"mom2.mom2": np.ones((2, 3))}, "its mom2 is float64 of shape (2, 3), no square matrix"),
        ({"mom2.mom2": np.array([[1, None]], dtype=object)}, "cut short, damaged or no NumPy archive"),
        ({"mom2.mom2": np.full((2, 2), np.nan)}, "this matrix holds numbers that are not finite"),
    ],
)
def test_damaged_statistics(tmp_path, changes, said):
    path = _published(tmp_path / "c.npz", **changes)
    found = refused(ArtefactError, SecondMoment.load, path, layer=0)
    assert said in found
    assert repr(str(path)) in found


@pytest.mark.parametrize("kept", [4, 200, 700])
def test_statistics_that_are_cut_short(tmp_path, kept):
    path = _published(tmp_path / "c.npz")
    path.write_bytes(path.read_bytes()[:kept])
    assert "cut short, damaged or no NumPy archive" in refused(ArtefactError, SecondMoment.load, path, layer=0)
    assert "there is no file" in refused(ArtefactError, SecondMoment.from_npz, tmp_path / "none.npz", layer=0)


def test_the_model_it_belongs_to_takes_it(moment, path, backend):
    model = architecture("gpt2", backend)
    moment.check(as_backend(model), 2)
    assert SecondMoment.load(path, model=model, layer=2).layer == 2


def _other_model():
    model = hugging_face_model("gpt2")
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight.mul_(-1)
    return own("other", BRIDGE, model=model)


def test_another_layer_width_or_model_is_refused(moment, path):
    said = (
        "the second moment is of layer 2, and layer 3 was asked for; collect that one (rome-lens stats --model gpt2 "
        "--layer 3)"
    )
    assert refused(ModelMismatchError, SecondMoment.load, path, layer=3) == said
    assert refused(ModelMismatchError, moment.check, as_backend(architecture("gpt2", BRIDGE)), 3) == said
    assert refused(ModelMismatchError, SecondMoment.load, path, model=architecture("llama", BRIDGE)) == (
        "the second moment has 64 rows, but layer 2 of llama has keys of 24 numbers; collect one from this model "
        "(rome-lens stats --model llama --layer 2)"
    )
    assert refused(ModelMismatchError, SecondMoment.load, path, model=_other_model()) == (
        "the second moment was collected from gpt2, and this other is another model (other weights in layer 2); "
        "collect one from it (rome-lens stats --model other --layer 2)"
    )
    with pytest.raises(SettingError, match="layer is 4; gpt2 has layers 0 to 3"):
        moment.check(as_backend(architecture("gpt2", BRIDGE)), 4)
    with pytest.raises(ModelError, match="expected a HookedTransformer or a TransformerBridge"):
        SecondMoment.load(path, model="gpt2")


def test_an_edited_model_is_known_by_its_original_matrix(moment):
    backend = as_backend(_other_model())
    original = -backend.w_out(2).matrix
    moment.check(backend, 2, original)
    with pytest.raises(ModelMismatchError):
        moment.check(backend, 2)


def test_a_bare_matrix_is_taken_for_its_width_and_layer():
    backend = as_backend(architecture("gpt2", BRIDGE))
    SecondMoment.from_matrix(_random(64, 100), layer=1).check(backend, 1)
    with pytest.raises(ModelMismatchError):
        SecondMoment.from_matrix(_random(), layer=1).check(backend, 1)


def test_it_can_be_copied(moment):
    moment.solve(torch.ones(64))
    twin = copy.deepcopy(moment)
    assert torch.equal(twin.solve(torch.ones(64)), moment.solve(torch.ones(64)))
    # A changed copy shares no factor.
    doubled = replace(moment, matrix=2 * moment.matrix)
    torch.testing.assert_close(2 * doubled.solve(torch.ones(64)), moment.solve(torch.ones(64)))
