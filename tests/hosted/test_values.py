"""Values at the block's output, early stops, least scales and bounds, against whole forwards; keys of layers."""

from types import SimpleNamespace

import pytest
import torch
from architectures import BACKENDS, BRIDGE, HOOKED, architecture, byte_tokenizer, hugging_face_model, own
from effort import slow
from hosts import hosted, needs_hooked
from rome_oracle import plain_rome, says
from tiny_rome import REQUEST, SETTINGS, TEMPLATES, moment

import rome_lens as rl
from rome_lens.backends import as_backend
from rome_lens.backends.base import Backend
from rome_lens.editing.settings import Choices, Settings
from rome_lens.editing.solved import solve_requests
from rome_lens.editing.value_lengths import _least_scales
from rome_lens.editing.value_settings import ValueSettings
from rome_lens.loading.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")

# Their blocks norm or scale what their MLPs give.
NOT_ADDED = ["gemma2", "gemma3", "granite", "olmo2"]
PARALLEL = [("gptj", BACKENDS[0]), slow("gptj", BRIDGE), slow("neox", BACKENDS[0]), ("neox", BRIDGE)]

WORDS = {"v_num_grad_steps": 20, "v_lr": 0.2, "v_weight_decay": 0.01, "clamp_norm_factor": 20.0, "kl_factor": 0.01}
WORD_TEMPLATES = ("{}", "the city. {}", "is in. {}")
# The first is said by the bare prompt before the others, the second by the others before the bare prompt; the last two
# are never said.
REQUESTS = [
    rl.EditRequest("the city is {}", subject="the tower", target_new="is"),
    rl.EditRequest("{}", subject="the city in the city of", target_new="tower"),
    rl.EditRequest("in {}", subject="the tower", target_new="of is"),
    rl.EditRequest("{} city", subject="the tower", target_new="in"),
]
LETTER = rl.EditRequest("ab {}", subject="cd", target_new="x")
LETTERS = {**WORDS, "v_num_grad_steps": 25, "v_lr": 1.0}


def few_letters(name, backend):
    """A model of that architecture with so few answers that it can be brought to say one."""
    model = hugging_face_model(name)
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        kept = torch.zeros(len(weight), 1, dtype=weight.dtype)
        kept[byte_tokenizer()(" x", add_special_tokens=False)["input_ids"]] = 6
        weight.mul_(kept)
    return own(name, backend, model=model)


def words(backend):
    return tiny_model(backend).to(torch.float64)


def values(
    model,
    requests,
    settings,
    *,
    layer=0,
    templates=WORD_TEMPLATES,
    engine="auto",
    key_layers=(),
    batch_size=None,
    **new,
):
    """What is found, in one batch unless said otherwise."""
    backend = as_backend(model)
    with backend.evaluating():
        solved = solve_requests(
            backend,
            requests,
            settings=Settings(layer=layer, source="a test", **settings),
            choices=Choices(context_templates=templates, engine=engine),
            batch_size=batch_size,
            value_settings=ValueSettings(**new),
            key_layers=key_layers,
            progress=None,
        )
    return [one.value for one in solved.requests]


def oracle_of(model, request, settings, *, layer=0, templates=WORD_TEMPLATES, at="w_out"):
    c = moment(as_backend(model).w_out(layer).matrix.shape[0])
    return plain_rome(
        model, request, layer=layer, second_moment=c, templates=templates, bare_weight=0.5, at=at, **settings
    )


def assert_equals(value, oracle, *, backend, index=-1):
    """The value is the one that the oracle had at this evaluation."""
    # Hugging Face takes some norms and softmaxes in float32.
    rtol = 1e-9 if backend == HOOKED else 5e-6
    delta = oracle.deltas[index]
    assert (value.change - delta).norm() <= rtol * delta.norm()
    assert (value.goal[0] - oracle.bare_value - delta).norm() <= rtol * delta.norm()
    curve = torch.tensor([[loss.total, loss.target, loss.kl, loss.decay] for loss in value.curve])
    expected = torch.tensor(oracle.loss_curve[: len(oracle.loss_curve) + 1 + index if index < 0 else index + 1])
    torch.testing.assert_close(curve, expected, rtol=rtol, atol=rtol * float(curve.max()))


@pytest.mark.parametrize(
    ("name", "backend"),
    hosted(without=["mixtral", *NOT_ADDED], at_landing=["gpt2", "llama", "gptj", "neox", "falcon", "bloom", "opt"]),
)
def test_values_at_the_block_equal_the_oracle(name, backend):
    model = architecture(name, backend)
    (value,) = values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, at="block")
    oracle = oracle_of(model, REQUEST, SETTINGS, layer=1, templates=TEMPLATES, at="block")
    assert (value.engine, value.scale, value.said) == ("blocks", 1.0, None)
    assert_equals(value, oracle, backend=backend)
    torch.testing.assert_close(value.resid_bare, oracle.base.double(), rtol=1e-6, atol=1e-6)
    # Clamp and decay go by the block's output, which is longer than the value, or shorter.
    assert value.change.norm() <= 0.4 * oracle.base.norm() * (1 + 1e-6)
    assert abs(oracle.base.norm() / oracle.bare_value.norm() - 1) > 0.01


@pytest.mark.parametrize("name", ["llama", slow("gptj"), slow("neox")])
def test_whole_forwards_give_the_same_values_at_the_block(name, backend):
    model = architecture(name, backend)
    (value,) = values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, at="block", engine="plain")
    assert value.engine == "plain"
    oracle = oracle_of(model, REQUEST, SETTINGS, layer=1, templates=TEMPLATES, at="block")
    assert_equals(value, oracle, backend=backend)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize(("name", "host"), [("gpt2", BACKENDS[0]), *PARALLEL, slow("llama", BRIDGE)])
def test_both_places_are_one_but_for_the_length_that_is_gone_by(name, host, engine):
    model = architecture(name, host)
    free = SETTINGS | {"clamp_norm_factor": 1e6, "v_weight_decay": 0}
    here, there = (
        values(model, [REQUEST], free, layer=1, templates=TEMPLATES, engine=engine, at=at)[0]
        for at in ("w_out", "block")
    )
    rtol = 1e-8 if host == HOOKED else 1e-5
    assert (here.change - there.change).norm() <= rtol * here.change.norm()
    assert torch.equal(here.known.mean_key, there.known.mean_key)
    bound = SETTINGS | {"v_weight_decay": 0}
    here, there = (
        values(model, [REQUEST], bound, layer=1, templates=TEMPLATES, engine=engine, at=at)[0]
        for at in ("w_out", "block")
    )
    assert (here.change - there.change).norm() > 0.01 * here.change.norm()


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("name", ["gemma2", slow("gemma3"), "granite", "olmo2"])
def test_a_block_that_adds_something_else_is_refused(name, engine):
    model = architecture(name, BRIDGE)
    match = r"what leaves the MLP of layer 1 of .* is not added to the block's output as it is \(relative difference "
    with pytest.raises(rl.errors.ModelError, match=match):
        values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, engine=engine, at="block")
    assert values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, engine=engine)[0].resid_bare is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_is_no_reason_to_refuse(dtype, backend):
    model = architecture("llama", backend, dtype)
    (value,) = values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, at="block")
    assert value.change.norm() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rounding_hides_no_scale(dtype):
    model = architecture("granite", BRIDGE, dtype)
    with pytest.raises(rl.errors.ModelError, match="is not added to the block's output as it is"):
        values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, at="block")


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("at", ["w_out", "block"])
@pytest.mark.parametrize("stop_said", [0, 3])
def test_the_early_stop_equals_the_oracle(backend, stop_said, at, engine):
    model = words(backend)
    found = values(model, REQUESTS, WORDS, engine=engine, at=at, stop_said=stop_said)
    firsts = []
    for request, value in zip(REQUESTS, found, strict=True):
        oracle = oracle_of(model, request, WORDS, at=at)
        by_template = [
            [says(model, request, delta, layer=0, templates=[template], at=at) for template in WORD_TEMPLATES]
            for delta in oracle.deltas
        ]
        said = [all(one) for one in by_template]
        last = min(said.index(True) + stop_said, len(said) - 1) if any(said) else len(said) - 1
        assert len(value.curve) == last + 1
        assert_equals(value, oracle, backend=backend, index=last)
        assert (value.said, value.scale) == (said[last], 1.0)
        bare, *others = (next((i for i, one in enumerate(by_template) if one[t]), None) for t in range(3))
        firsts.append((bare, max(others) if None not in others else None))
    # What the bare prompt says counts, and what the templates say counts.
    assert firsts[0][0] < firsts[0][1]
    assert firsts[1][0] > firsts[1][1]
    assert firsts[2] == firsts[3] == (None, None)


@pytest.mark.parametrize("at", ["w_out", "block"])
@pytest.mark.parametrize(("name", "host"), PARALLEL)
def test_parallel_attention_stops_and_scales_as_whole_forwards_say(name, host, at):
    model = few_letters(name, host)
    oracle = oracle_of(model, LETTER, LETTERS, templates=TEMPLATES, at=at)

    def said(delta):
        return says(model, LETTER, delta, layer=0, templates=TEMPLATES, at=at)

    first = [said(delta) for delta in oracle.deltas].index(True)
    (stopped,) = values(model, [LETTER], LETTERS, templates=TEMPLATES, at=at, stop_said=1)
    assert len(stopped.curve) == first + 2
    (scaled,) = values(model, [LETTER], LETTERS, templates=TEMPLATES, at=at, least_scale=1)
    whole = oracle.deltas[-1]
    assert scaled.scale < 1
    assert (scaled.change - scaled.scale * whole).norm() <= 1e-5 * whole.norm()
    assert said(scaled.scale * whole)
    assert not said((scaled.scale - 1 / 16) * whole)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("at", ["w_out", "block"])
def test_the_least_scale_says_it_and_less_does_not(backend, at, engine):
    model = words(backend)
    whole = values(model, REQUESTS, WORDS, engine=engine, at=at)

    def said(request, change):
        return says(model, request, change, layer=0, templates=WORD_TEMPLATES, at=at)

    grids = [
        [said(r, value.change * step / 32) for step in range(33)] for r, value in zip(REQUESTS, whole, strict=True)
    ]
    assert [grid[-1] for grid in grids] == [True, True, False, False]
    for margin in (1, 1.2, 100):
        scaled = values(model, REQUESTS, WORDS, engine=engine, at=at, least_scale=margin)
        for request, value, before, grid in zip(REQUESTS, scaled, whole, grids, strict=True):
            assert value.said == grid[-1] == said(request, value.change)
            assert (value.change - value.scale * before.change).norm() <= 1e-10 * before.change.norm()
            assert value.curve == before.curve
            if not grid[-1]:
                assert value.scale == 1
                continue
            least = grid.index(True)
            assert least > 1
            assert all(grid[least:])  # else more scales than one would be right
            assert value.scale == min(1, margin * (least / 32))
            assert (margin < 100) == (value.scale < 1)


def test_a_scale_that_the_margin_makes_silent_grows_until_it_says_it():
    def said(scales):
        return (scales >= 0.2) & (scales <= 0.35) | (scales >= 0.5)

    targets = SimpleNamespace(row=range(2), said=lambda logits: said(logits[:, 0]) & (logits[:, 1] < 5))
    forward = SimpleNamespace(batch=SimpleNamespace(targets=targets), logits=lambda change: change)
    found = torch.tensor([[1.0, 0.0], [1.0, 9.0]], dtype=torch.float64)
    # 7/32 is the boundary, 1.75 times that is not said, nor are the next three; the second is never said.
    for margin, scale in [(1, 7 / 32), (1.5, 1.5 * 7 / 32), (1.75, 1.75 * 7 / 32 + 4 / 32), (9, 1)]:
        assert _least_scales(forward, found, margin).tolist() == [scale, 1]


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("at", ["w_out", "block"])
def test_no_value_is_longer_than_it_may_be(backend, at, engine):
    model = words(backend)

    def whole(value):
        """What is bounded: what leaves `W_out`, or the block."""
        return value.goal[0] if at == "w_out" else value.resid_bare + value.change

    free = values(model, REQUESTS, WORDS, engine=engine, at=at, least_scale=1.2)
    lengths = sorted(whole(value).norm().item() for value in free)
    longest = (lengths[1] + lengths[2]) / 2
    bound = values(model, REQUESTS, WORDS, engine=engine, at=at, least_scale=1.2, longest=longest)
    for request, before, after in zip(REQUESTS, free, bound, strict=True):
        assert after.scale == before.scale
        if whole(before).norm() <= longest:
            assert torch.equal(after.goal, before.goal)
        else:
            torch.testing.assert_close(whole(after), whole(before) * (longest / whole(before).norm()))
            assert whole(after).norm().item() == pytest.approx(longest)
        assert after.said == says(model, request, after.change, layer=0, templates=WORD_TEMPLATES, at=at)


def test_a_value_depends_on_no_other_request(backend):
    model = words(backend)
    choices = {"at": "block", "stop_said": 2, "least_scale": 1.2, "longest": 2.0}
    together = values(model, REQUESTS, WORDS, key_layers=(0, 1), **choices)
    alone = [values(model, [request], WORDS, key_layers=(0, 1), **choices)[0] for request in REQUESTS]
    assert min(len(value.curve) for value in alone) < max(len(value.curve) for value in alone)
    for one, other in zip(together, alone, strict=True):
        assert len(one.curve) == len(other.curve)
        assert (one.scale, one.said) == (other.scale, other.said)
        for a, b in ((one.goal, other.goal), (one.keys[1], other.keys[1]), (one.resid_bare, other.resid_bare)):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize(("name", "host"), [("llama", BACKENDS[0]), ("gptj", BACKENDS[0]), slow("opt", BRIDGE)])
def test_keys_of_several_layers_come_from_one_forward(monkeypatch, name, host, engine):
    model = architecture(name, host)
    runs, run = [], Backend.run

    def counted(self, tokens, *, layers=None):
        runs.append(layers)
        return run(self, tokens, layers=layers)

    requests = [REQUEST, rl.EditRequest("ab {} f", subject="longer", target_new="x")]
    short = SETTINGS | {"v_num_grad_steps": 2}
    plain = values(model, requests, short, layer=1, templates=TEMPLATES, engine=engine)
    monkeypatch.setattr(Backend, "run", counted)
    several = values(model, requests, short, layer=1, templates=TEMPLATES, engine=engine, key_layers=(2, 1, 0, 3))
    assert runs.count(4) == 1
    monkeypatch.undo()
    for value, without in zip(several, plain, strict=True):
        assert list(value.keys) == [2, 1, 0, 3]
        assert torch.equal(value.keys[1], without.known.mean_key)
        assert torch.equal(value.goal, without.goal)
        assert without.keys == {}
    for layer in (0, 2):
        there = values(model, requests, short, layer=layer, templates=TEMPLATES, engine=engine)
        for value, other in zip(several, there, strict=True):
            assert value.keys[layer].dtype == torch.float64
            torch.testing.assert_close(value.keys[layer], other.known.mean_key, rtol=1e-6, atol=1e-6)


def test_key_layers_are_refused_before_long_work(gpt2):
    with pytest.raises(rl.errors.SettingError, match=r"layer is 4; .* has layers 0 to 3, counted from 0"):
        values(gpt2, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, key_layers=(0, 4))


@needs_hooked
def test_a_key_layer_whose_values_are_something_else_is_refused():
    model = own("gpt2", HOOKED)
    with (
        model.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: x * 0.5)]),
        pytest.raises(rl.errors.ModelError, match=r"what leaves the MLP of layer 0 of .* is not its key times W_out"),
    ):
        values(model, [REQUEST], SETTINGS, layer=1, templates=TEMPLATES, key_layers=(0, 1))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"at": "mlp"}, "at is 'mlp'; choose one of w_out, block"),
        ({"stop_said": -1}, "stop_said is -1; expected None or a whole number of steps, 0 or more"),
        ({"stop_said": True}, "stop_said is True; expected None or a whole number of steps, 0 or more"),
        ({"least_scale": 0.9}, "least_scale is 0.9; expected a number, 1 or more, or None"),
        ({"least_scale": "1.2"}, "least_scale is '1.2'; expected a number, 1 or more, or None"),
        ({"longest": 0}, "longest is 0; expected a number above 0, None"),
        ({"longest": float("inf")}, "longest is inf; expected a number above 0, None"),
    ],
)
def test_settings_out_of_their_range_are_refused(given, said):
    with pytest.raises(rl.errors.SettingError) as refused:
        ValueSettings(**given)
    assert str(refused.value) == said
    assert not ValueSettings(at="block").looks_again
