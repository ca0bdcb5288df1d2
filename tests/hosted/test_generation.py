"""Generation with keys and values kept, against plain loops of whole forwards."""

import pytest
import torch
from architectures import BACKENDS, BRIDGE, architecture, own
from hosts import hosted
from left_alone import left_alone

import rome_lens as rl
from rome_lens.backends import ReplayError, as_backend, decoding, generation
from rome_lens.backends.generation import continue_text, sample

PROMPTS = torch.tensor([[5, 77, 9, 200, 31], [100, 3, 44, 17, 90], [64, 65, 66, 67, 68]])
N_NEW = 6

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformer_lens")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def plain(model, tokens, choose, *, n_new=N_NEW):
    """One whole forward a token; `choose` maps logits [row, d_vocab] to ids [row, 1]."""
    for _ in range(n_new):
        tokens = torch.cat([tokens, choose(model(tokens)[:, -1])], dim=1)
    return tokens


def greedy(logits):
    return logits.argmax(dim=-1, keepdim=True)


def drawn(generator, *, temperature=1.0):
    return lambda logits: torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)


@pytest.fixture
def paths(monkeypatch):
    """How often each step's logits came from kept keys and values, and how many rows ran whole."""
    counts = {"cached": 0, "whole": []}
    cached, whole = generation._Cached.logits, generation._Steps._whole

    def count_cached(self, n_seen):
        counts["cached"] += 1
        return cached(self, n_seen)

    def count_whole(self, rows, n_seen):
        logits = whole(self, rows, n_seen)
        counts["whole"].append(logits.shape[0])
        return logits

    monkeypatch.setattr(generation._Cached, "logits", count_cached)
    monkeypatch.setattr(generation._Steps, "_whole", count_whole)
    return counts


def assert_cached(paths, n_new=N_NEW):
    # Two rows are checked in the first two steps; nothing else runs whole.
    assert paths == {"cached": n_new, "whole": [2, 2]}


def assert_greedy_and_cached(paths, model, prompts=PROMPTS):
    """The tokens, which whole forwards give, too."""
    tokens = sample(as_backend(model), prompts, n_new=N_NEW, generator=None)
    assert_cached(paths)
    assert torch.equal(tokens, plain(model, prompts, greedy))
    return tokens


@pytest.mark.parametrize(("name", "backend"), hosted())
def test_greedy_equals_whole_forwards(name, backend, paths):
    tokens = assert_greedy_and_cached(paths, architecture(name, backend))
    assert tokens[:, 5:].unique().numel() > 4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sampled_equals_whole_forwards(name, backend, paths):
    model = architecture(name, backend)
    tokens = sample(as_backend(model), PROMPTS, n_new=N_NEW, generator=seeded(3), temperature=0.7)
    assert_cached(paths)
    assert torch.equal(tokens, plain(model, PROMPTS, drawn(seeded(3), temperature=0.7)))
    again = [sample(as_backend(model), PROMPTS, n_new=N_NEW, generator=seeded(s), temperature=0.7) for s in (3, 4)]
    assert torch.equal(tokens, again[0])
    assert not torch.equal(tokens, again[1])


def test_float32_equals_whole_forwards(backend, paths):
    assert_greedy_and_cached(paths, architecture("gpt2", backend, torch.float32))


def test_bfloat16_keeps_the_cache(paths):
    model = architecture("gpt2", BRIDGE, torch.bfloat16)
    assert sample(as_backend(model), PROMPTS, n_new=N_NEW, generator=seeded()).shape == (3, 11)
    assert_cached(paths)


def test_prompt_of_one_token_equals_whole_forwards(gpt2, paths):
    assert_greedy_and_cached(paths, gpt2, PROMPTS[:, :1])


@pytest.mark.parametrize(("rows", "n_new"), [(3, 0), (0, 4), (1, 1), (1, 2)])
def test_small_requests(llama, rows, n_new):
    tokens = sample(as_backend(llama), PROMPTS[:rows], n_new=n_new, generator=None)
    assert tokens.shape == (rows, 5 + n_new)
    if rows:
        assert torch.equal(tokens, plain(llama, PROMPTS[:rows], greedy, n_new=n_new))


def test_temperature_zero_and_top_one_are_greedy(llama):
    expected = plain(llama, PROMPTS, greedy)
    for settings in ({"temperature": 0.0}, {"top_k": 1}, {"temperature": 1e-320}):
        tokens = sample(as_backend(llama), PROMPTS, n_new=N_NEW, generator=seeded(), **settings)
        assert torch.equal(tokens, expected)


def test_top_k_draws_from_the_most_probable(llama):
    rows = PROMPTS[:1].expand(200, -1)
    first = sample(as_backend(llama), rows, n_new=1, generator=seeded(), temperature=5.0, top_k=3)[:, -1]
    top = llama(PROMPTS[:1])[0, -1].topk(3).indices
    assert set(first.tolist()) == set(top.tolist())
    everything = sample(as_backend(llama), PROMPTS, n_new=N_NEW, generator=seeded(), top_k=1000)
    assert torch.equal(everything, sample(as_backend(llama), PROMPTS, n_new=N_NEW, generator=seeded()))


def test_frequencies_are_the_softmax(llama):
    rows = PROMPTS[:1].expand(4000, -1)
    first = sample(as_backend(llama), rows, n_new=1, generator=seeded(), temperature=2.0)[:, -1]
    expected = (llama(PROMPTS[:1])[0, -1] / 2).softmax(dim=-1)
    assert (first.bincount(minlength=258) / 4000 - expected).abs().max() < 0.03


@pytest.mark.parametrize("generator", [None, 0])
def test_banned_tokens_never_come(gpt2, generator):
    banned = plain(gpt2, PROMPTS, greedy)[:, 5:].unique().tolist()

    def without(logits):
        logits[:, banned] = -torch.inf
        return greedy(logits) if generator is None else drawn(rng)(logits)

    rng = seeded(0)
    tokens = sample(
        as_backend(gpt2),
        PROMPTS,
        n_new=N_NEW,
        generator=None if generator is None else seeded(0),
        banned=banned,
    )
    assert not set(tokens[:, 5:].flatten().tolist()) & set(banned)
    assert torch.equal(tokens, plain(gpt2, PROMPTS, without))


def edit_of(backend, *, layer=1):
    """A strong rank-one edit: u [d_mlp], v [d_model]."""
    d_mlp, d_model = backend.w_out(layer).matrix.shape
    return torch.randn(d_mlp, generator=seeded(1)).double() * 3, torch.randn(d_model, generator=seeded(2)).double()


def edit_hooks(backend, u, v, *, layer=1):
    keys = {}
    return [
        (backend.key_hook(layer), lambda x: keys.update(key=x)),
        (backend.value_hook(layer), lambda x: x + (keys["key"] @ u)[..., None] * v),
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_edit_under_hooks_equals_edited_weights(name, backend, paths):
    model = own(name, backend)
    wrapped = as_backend(model)
    u, v = edit_of(wrapped)
    with wrapped.hooked(edit_hooks(wrapped, u, v)):
        assert wrapped.foreign_hooks()
        hooked = sample(wrapped, PROMPTS, n_new=N_NEW, generator=None)
    assert_cached(paths)
    unedited = sample(wrapped, PROMPTS, n_new=N_NEW, generator=None)
    with torch.no_grad():
        wrapped.w_out(1).matrix.add_(torch.outer(u, v))
    assert torch.equal(hooked, sample(wrapped, PROMPTS, n_new=N_NEW, generator=None))
    assert torch.equal(hooked, plain(model, PROMPTS, greedy))
    assert not torch.equal(hooked, unedited)


@pytest.mark.parametrize("name", ["hook_embed", "blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"])
def test_steering_hook_acts_once_at_every_position(name, backend, paths):
    model = architecture("gpt2", backend)
    wrapped = as_backend(model)
    push = torch.randn(16, generator=seeded()).double() * 2
    with wrapped.hooked([(name, lambda x: x + push)]):
        tokens = assert_greedy_and_cached(paths, model)
    assert not torch.equal(tokens, plain(model, PROMPTS, greedy))


def set_first(x):
    return torch.cat([x[:, :1] * -3, x[:, 1:]], dim=1)


def set_last(x):
    return torch.cat([x[:, :-1], x[:, -1:] * -3], dim=1)


def set_third(x):
    x = x.clone()
    x[:, 2] *= -3
    return x


@pytest.mark.parametrize("function", [set_first, set_last, set_third])
def test_hooks_that_look_at_the_position_fall_back(function, backend, paths):
    model = architecture("gpt2", backend)
    wrapped = as_backend(model)
    with wrapped.hooked([("blocks.1.hook_resid_post", function)]):
        tokens = sample(wrapped, PROMPTS, n_new=N_NEW, generator=seeded())
        assert paths["whole"].count(3) >= N_NEW - 1
        assert torch.equal(tokens, plain(model, PROMPTS, drawn(seeded())))


def test_hook_that_always_fails_is_heard(gpt2):
    def fail(x):
        raise ValueError("the hook's own error")

    wrapped = as_backend(gpt2)
    with wrapped.hooked([("blocks.1.hook_resid_post", fail)]), pytest.raises(ValueError, match="own error"):
        sample(wrapped, PROMPTS, n_new=N_NEW, generator=None)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_refused_replay_falls_back(llama, after, monkeypatch, paths):
    run = generation._Cached.logits

    def refuse(self, n_seen):
        if n_seen >= 5 + after:
            raise ReplayError("no")
        return run(self, n_seen)

    monkeypatch.setattr(generation._Cached, "logits", refuse)
    tokens = sample(as_backend(llama), PROMPTS, n_new=N_NEW, generator=seeded())
    assert paths["whole"].count(3) == N_NEW - after
    assert torch.equal(tokens, plain(llama, PROMPTS, drawn(seeded())))


def test_embeddings_that_are_no_sum_of_token_and_position_are_taken_whole(backend, paths):
    model = architecture("gpt2", backend)
    wrapped = as_backend(model)
    factor = torch.linspace(1, 3, 64).double()[:, None]
    with wrapped.hooked([("hook_embed", lambda x: x * factor[: x.shape[1]])]):
        assert decoding.Embedding.of(wrapped, PROMPTS[:1]).whole
        assert_greedy_and_cached(paths, model)


@pytest.mark.parametrize(("name", "adds"), [("gpt2", True), ("opt", True), ("llama", False), ("gemma", False)])
def test_embedding_is_understood(name, adds):
    text = PROMPTS[:1].repeat(1, 3)
    embedding = decoding.Embedding.of(as_backend(architecture(name, BRIDGE)), text)
    assert not embedding.whole
    assert (embedding.shift is not None) == adds


def test_model_and_global_generator_are_left_as_they_were(backend):
    model = own("gpt2", backend).train()
    model.blocks[1].eval()
    with left_alone(model):
        sample(as_backend(model), PROMPTS, n_new=N_NEW, generator=seeded())


def test_progress_counts_the_steps(llama):
    calls = []
    model = as_backend(llama)
    sample(model, PROMPTS, n_new=3, generator=None, progress=lambda *call: calls.append(call))
    assert calls == [(1, 3, "generating"), (2, 3, "generating"), (3, 3, "generating")]


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"n_new": -1}, rl.SettingError, "n_new is -1; expected the number of tokens to add, 0 or more"),
        (
            {"n_new": 60},
            rl.PromptError,
            r"a prompt of 5 tokens and 60 new ones make 65, and .* has 64 positions; shorten",
        ),
        ({"temperature": -1.0}, rl.SettingError, r"temperature is -1\.0; expected 0"),
        ({"temperature": float("nan")}, rl.SettingError, "temperature is nan; expected 0"),
        ({"top_k": 0}, rl.SettingError, "top_k is 0; expected 1 or more"),
        ({"banned": [3, 258]}, rl.SettingError, "banned holds 258; .* has token ids 0 to 257"),
        ({"banned": range(258)}, rl.SettingError, "banned holds all 258 token ids; leave at least one"),
        ({"prompts": PROMPTS[0]}, rl.PromptError, r"of shape \(5,\); expected token ids \[row, pos\]"),
        ({"prompts": PROMPTS[:, :0]}, rl.PromptError, "with at least one position"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_to_do(gpt2, settings, error, text):
    settings = {"prompts": PROMPTS, "n_new": 2, "generator": None} | settings
    with pytest.raises(error, match=text):
        sample(as_backend(gpt2), settings.pop("prompts"), **settings)


def test_the_longest_text_that_fits_is_taken(gpt2):
    assert sample(as_backend(gpt2), PROMPTS, n_new=59, generator=None).shape == (3, 64)


def test_logits_that_are_no_numbers_are_refused(gpt2):
    wrapped = as_backend(gpt2)
    with (
        wrapped.hooked([("blocks.3.hook_resid_post", lambda x: x * torch.nan)]),
        pytest.raises(rl.ModelError, match="logits that are no numbers"),
    ):
        sample(wrapped, PROMPTS, n_new=2, generator=None)


@pytest.mark.parametrize("text", ["ab cde", "xyz", "fgh ij", "q"])
def test_a_text_is_continued_by_whole_forwards_tokens(backend, text):
    model = architecture("llama", backend)
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    new = plain(model, ids, greedy, n_new=4)[0, ids.shape[1] :]
    assert model.tokenizer.eos_token_id not in new
    assert continue_text(as_backend(model), text, n_new=4) == model.tokenizer.decode(new)


def test_continuation_ends_in_front_of_eos(monkeypatch):
    model = architecture("llama", BACKENDS[0])
    new = torch.tensor(model.tokenizer("xy<s>z", add_special_tokens=False)["input_ids"])
    assert new.tolist().count(model.tokenizer.eos_token_id) == 1
    monkeypatch.setattr(generation, "sample", lambda backend, prompts, **_: torch.cat([prompts, new[None]], dim=1))
    assert continue_text(as_backend(model), "ab", n_new=4) == "xy"


def test_bos_goes_in_front():
    model = architecture("llama", BACKENDS[0])
    got = continue_text(as_backend(model), "ab", n_new=4, prepend_bos=True)
    ids = torch.tensor([[0, *model.tokenizer("ab", add_special_tokens=False)["input_ids"]]])
    assert got == model.tokenizer.decode(plain(model, ids, greedy, n_new=4)[0, 3:])
    assert continue_text(as_backend(model), "", n_new=2, prepend_bos=True)
    with pytest.raises(rl.PromptError, match="the text '' gives no tokens to continue; give a longer one"):
        continue_text(as_backend(model), "", n_new=2)


class SentencePieceLike:
    """Drops the space in front of whatever it decodes, as SentencePiece does."""

    def decode(self, ids, *, clean_up_tokenization_spaces):
        return "".join({1: " the", 2: " city", 3: " of"}[i] for i in ids)[1:]


def test_new_words_keep_the_space_in_front():
    assert generation._decode_after(SentencePieceLike(), [1, 2], [3]) == " of"
