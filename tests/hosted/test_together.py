"""Many facts of a model together, against plain systems of equations and the plain oracles."""

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture, own
from effort import slow
from hosts import HOOKED_HOSTS, SIX
from memit_oracle import alpha_edit, inserted, memit, read
from rome_oracle import plain_rome
from tiny_rome import SETTINGS, TEMPLATES, moment

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.errors import RomeLensError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

REQUESTS = (
    rl.EditRequest("ab {} fgh", subject="cde", target_new="xy"),
    rl.EditRequest("{} is in", subject="The tower", target_new="Rome"),
    rl.EditRequest("We saw {} in", subject="my car", target_new="Oslo"),
)
RIDGE = 1e-6
# Of these the code of transformers rounds to float32 on the way (norms, rotary positions, the softmax), whatever the
# model's precision, so that how rows are put together shows.
ROUNDED = ("llama", "gemma2", "gptj", "bloom")
CASES = [(name, backend) for backend in BACKENDS for name in SIX if backend == BRIDGE or name in HOOKED_HOSTS]


def near(name, backend, within=1e-9):
    """How close two ways of running a float64 model come."""
    return 5e-6 if backend == BRIDGE and name in ROUNDED else within


def size(model):
    return as_backend(model).w_out(1).matrix.shape[0]


def together(kind, model, layers=(1,), **changes):
    moments = {layer: moment(size(model)) for layer in layers}
    settings = {"context_templates": TEMPLATES, "least_scale": None, "keys": "mean", **SETTINGS, **changes}
    return kind(model, layers=layers, second_moments=moments, **settings)


def close(one, other, within=1e-9):
    assert (one - other).norm() <= within * other.norm()


def of_facts(found, place=0):
    """Keys [fact, d_mlp] and what is missing [fact, d_model]."""
    return torch.cat([f.keys[place] for f in found]), torch.stack([f.residual for f in found])


def matrix(found, place=0):
    return found.layers[place].update.matrix


def cost(model):
    c = moment(size(model))
    return c + RIDGE * c.diagonal().mean() * torch.eye(len(c), dtype=torch.float64)


def oracle_of(editor, request):
    choices, settings = editor.finding.choices, {name: getattr(editor.settings, name) for name in SETTINGS}
    return plain_rome(
        editor.model,
        request,
        layer=editor.layers[-1],
        second_moment=moment(size(editor.model)),
        templates=TEMPLATES,
        bare_weight=choices.bare_weight,
        essence_at=choices.essence_at,
        prepend_bos=choices.prepend_bos,
        **settings,
    )


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_facts_and_what_is_made_of_them(name, backend, tmp_path):
    model = architecture(name, backend)
    d_mlp, within = size(model), near(name, backend)
    editor = together(rl.MEMIT, model, preserve=0.05)
    found = editor.edit_together(REQUESTS[:2], out=tmp_path, workers=1)
    oracles = [oracle_of(editor, request) for request in REQUESTS[:2]]
    for fact, oracle in zip(found, oracles, strict=True):
        close(fact.keys[0], oracle.key[None], within)
        close(fact.residual, oracle.goal - oracle.value, within)
    keys, lacks = of_facts(found)
    close(matrix(found), torch.linalg.solve(0.05 * d_mlp * cost(model) + keys.t() @ keys, keys.t() @ lacks))

    emmet = together(rl.EMMET, model, weight=3.0, epsilon=0.05 * d_mlp / 3)
    close(matrix(emmet.edit_together(REQUESTS[:2], out=tmp_path)), matrix(found), 1e-12)
    null = together(rl.AlphaEdit, model, energy=0.3, l2_absolute=0.7)
    values, vectors = torch.linalg.eigh(moment(d_mlp))
    small = vectors[:, values.cumsum(0) <= 0.3 * values.sum()]
    asked = small @ small.t() @ keys.t()
    expected = torch.linalg.solve(asked @ keys + 0.7 * torch.eye(d_mlp, dtype=torch.float64), asked @ lacks)
    close(matrix(null.edit_together(REQUESTS[:2], out=tmp_path)), expected)

    exact = together(rl.EMMET, model, epsilon=0).edit_together(REQUESTS[:1], out=tmp_path)
    close(matrix(exact), oracles[0].update, within)


@pytest.mark.parametrize(("name", "backend"), [("gpt2", BACKENDS[0]), ("llama", BRIDGE), slow("gptj", BACKENDS[0])])
@pytest.mark.parametrize("layers", [(1,), slow((0, 2))], ids=str)
def test_several_keys_of_a_fact(name, backend, layers):
    model, within = architecture(name, backend), near(name, backend)
    one = [
        [
            [read(model, request, layer=layer, last=2, templates=[text], bare_weight=1)[0] for text in TEMPLATES]
            for layer in layers
        ]
        for request in REQUESTS
    ]
    n_others = len(TEMPLATES) - 1
    for keys, shares in (("split", [0.7, 0.3]), ("each", [0.7, *[0.3 / n_others] * n_others])):
        editor = together(rl.MEMIT, model, layers, keys=keys, bare_weight=0.7, preserve=0.05)
        found = editor.edit_together(REQUESTS, workers=1)
        system = 0.05 * size(model) * torch.block_diag(*[cost(model)] * len(layers))
        wanted = torch.zeros(len(system), found[0].residual.shape[0], dtype=torch.float64)
        for fact, by_layer, request in zip(found, one, REQUESTS, strict=True):
            oracle = oracle_of(editor, request)
            close(fact.residual, oracle.goal - oracle.bare_value, within)
            assert fact.shares == pytest.approx(shares)
            for read_keys, apart in zip(fact.keys, by_layer, strict=True):
                expected = apart if keys == "each" else [apart[0], torch.stack(apart[1:]).mean(dim=0)]
                close(read_keys, torch.stack(expected), within)
            for share, *of_layers in zip(fact.shares, *fact.keys, strict=True):
                key = torch.cat(of_layers)
                system = system + share * torch.outer(key, key)
                wanted += share * torch.outer(key, fact.residual)
        expected = torch.linalg.solve(system, wanted).split(size(model))
        for place in range(len(layers)):
            close(matrix(found, place), expected[place])
        assert matrix(found.without(1)).shape == matrix(found).shape


def test_one_fact_that_is_answered_exactly_is_an_edit_of_rome(backend):
    model = architecture("llama", backend)
    editor = together(rl.EMMET, model, epsilon=0)
    rome = rl.ROME(
        model,
        layer=1,
        second_moment=moment(size(model)),
        context_templates=TEMPLATES,
        bare_weight=editor.finding.choices.bare_weight,
        **SETTINGS,
    )
    one, edit = editor.edit_together(REQUESTS[:1], workers=1), rome.edit(REQUESTS[0])
    close(one.update, edit.update)
    assert one[0].outcome.before == edit.before
    assert one[0].outcome.after.target == pytest.approx(edit.after.target, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "backend"), [("gpt2", BACKENDS[0]), slow("gpt2", BRIDGE), slow("llama", BRIDGE), slow("gptj", BRIDGE)]
)
def test_several_layers_by_one_system(name, backend):
    model, layers = architecture(name, backend), (0, 2)
    editor = together(rl.MEMIT, model, layers, preserve=0.05)
    found = editor.edit_together(REQUESTS, workers=1)
    how = {"templates": TEMPLATES, "bare_weight": editor.finding.choices.bare_weight}
    for fact in found:
        for key, layer in zip(fact.keys, layers, strict=True):
            close(key[0], read(model, fact.request, layer=layer, last=2, **how)[0], near(name, backend))
    keys, lacks = torch.cat([of_facts(found, place)[0] for place in (0, 1)], dim=1), of_facts(found)[1]
    whole = 0.05 * size(model) * torch.block_diag(cost(model), cost(model))
    expected = torch.linalg.solve(whole + keys.t() @ keys, keys.t() @ lacks).split(size(model))
    for place in (0, 1):
        close(matrix(found, place), expected[place])


@pytest.mark.parametrize(
    ("name", "backend"), [("gpt2", BACKENDS[0]), ("gpt2", BRIDGE), ("llama", BRIDGE), slow("gptj", BRIDGE)]
)
@pytest.mark.parametrize("layers", [(1, 2), slow((0, 1, 2))], ids=str)
def test_layer_by_layer_as_the_released_code_has_it(name, backend, layers, tmp_path):
    model = own(name, backend)
    before = [as_backend(model).w_out(layer).matrix.clone() for layer in layers]
    moments, number = dict.fromkeys(layers, moment(size(model))), 5.0
    threshold = torch.linalg.eigvalsh(moment(size(model)))[size(model) // 2].item()
    of_memit = together(
        rl.MEMIT, model, layers, preserve=number / size(model), ridge=0.0, spread="released", at="block"
    )
    of_alpha = together(
        rl.AlphaEdit, model, layers, threshold=threshold, l2_absolute=0.5, spread="released", at="block"
    )
    how = {"templates": TEMPLATES, "bare_weight": of_memit.finding.choices.bare_weight}
    for editor, solve in ((of_memit, memit(moments, number)), (of_alpha, alpha_edit(moments, threshold, 0.5))):
        found = editor.edit_together(REQUESTS, out=tmp_path)
        goals = torch.stack([fact.goal for fact in found])
        expected = inserted(model, REQUESTS, goals, solve, layers=layers, **how)
        for place, update in enumerate(expected):
            close(matrix(found, place), update, near(name, backend, 1e-8))
            assert torch.equal(as_backend(model).w_out(layers[place]).matrix, before[place])
        # Another set of the facts, as if the others had never been there.
        fewer = found.without(1)
        expected = inserted(model, [REQUESTS[0], REQUESTS[2]], goals[[0, 2]], solve, layers=layers, **how)
        for place, update in enumerate(expected):
            close(matrix(fewer, place), update, near(name, backend, 1e-8))


def test_a_model_that_adds_something_else_is_refused_at_the_block():
    model = architecture("gemma2", BRIDGE)
    editor = together(rl.MEMIT, model, at="block")
    with pytest.raises(RomeLensError, match="block"):
        editor.edit_together(REQUESTS[:1], workers=1)
