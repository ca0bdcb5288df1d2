"""The pass over text, held against a plain loop: one text at a time, products in float64."""

from dataclasses import fields
from typing import Any

import pytest
import torch
from architectures import BRIDGE, architecture, own
from effort import slow
from hosts import EACH_BACKEND
from left_alone import left_alone
from refused import refused

from rome_lens.backends import Backend, as_backend
from rome_lens.editing.second_moment import budget as row_budget
from rome_lens.editing.second_moment import checkpoint as checkpoints
from rome_lens.editing.second_moment import collect as collecting
from rome_lens.editing.second_moment import sums as summing
from rome_lens.editing.second_moment.budget import RowBudget
from rome_lens.editing.second_moment.collect import CollectChanges, CollectSettings
from rome_lens.editing.second_moment.moment import SecondMoment
from rome_lens.errors import ArtefactError, ModelError, OutOfMemoryError, PromptError, SettingError

NAMES = ["gpt2", "llama", "neox", "opt", "gemma2", "bloom", "mistral"]
TEXTS = [
    "The tower is in the city of Paris.",
    "",
    "Water",
    "In the year of 1889 the tower was finished, and the city had a lamp that was seen from everywhere." * 2,
    "x",
    "Nobody knew who had built it",
]


def oracle(model, layer, texts, *, length=None, bos=(), most=None):
    """C by the book, and how many tokens went into it."""
    backend, total, left = as_backend(model), 0, most
    length = length or min(256, backend.n_ctx or 256)
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        room = length - len(bos)
        for piece in ([*bos, *ids[i : i + room]][:left] for i in range(0, len(ids), room)):
            if left is not None and not piece:
                break
            left = None if left is None else left - len(piece)
            key, _ = backend.keys_and_values(layer, torch.tensor([piece]))
            total += sum(torch.outer(k, k) for k in key[0].double())
    n = sum(len(t) + len(bos) * -(-len(t) // (length - len(bos))) for t in texts)
    n = n if most is None else min(n, most)
    return total / n, n


# Hugging Face computes norms and rotary angles in float32, whatever the model's type.
def _same(moment, expected, n_tokens, *, tolerance=1e-6):
    assert moment.n_tokens == n_tokens
    assert moment.matrix.dtype == torch.float64
    assert torch.equal(moment.matrix, moment.matrix.t())
    torch.testing.assert_close(moment.matrix, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize("name", NAMES)
def test_several_layers_in_one_pass(name, backend):
    if name == "gemma2" and backend != BRIDGE:
        pytest.skip("a norm behind the MLP is refused")
    model = architecture(name, backend)
    moments = SecondMoment.collect(model, layers=[2, 0, 2], texts=TEXTS)
    assert list(moments) == [2, 0]
    for layer, moment in moments.items():
        assert moment.layer == layer
        _same(moment, *oracle(model, layer, TEXTS))


@pytest.mark.parametrize("backend", EACH_BACKEND)
@pytest.mark.parametrize(
    ("settings", "book"),
    [
        ({"prepend_bos": True}, {"bos": (0,)}),
        ({"text_length": 7}, {"length": 7}),
        ({"text_length": 7, "prepend_bos": True, "max_tokens": 45}, {"length": 7, "bos": (0,), "most": 45}),
        ({"max_tokens": 45}, {"most": 45}),
        ({"max_tokens": 1}, {"most": 1}),
        ({"batch_positions": 1}, {}),
        ({"batch_positions": 100}, {}),
    ],
    ids=str,
)
def test_settings(backend, settings, book):
    model = architecture("llama", backend)
    _same(SecondMoment.collect(model, layers=[3], texts=TEXTS, **settings)[3], *oracle(model, 3, TEXTS, **book))


def test_settings_together_and_by_name():
    model = architecture("gpt2", BRIDGE)
    settings = CollectSettings(text_length=7, max_tokens=45)
    together = SecondMoment.collect(model, layers=[3], texts=TEXTS, settings=settings, max_tokens=40)[3]
    by_name = SecondMoment.collect(model, layers=[3], texts=TEXTS, text_length=7, max_tokens=40)[3]
    assert together.n_tokens == 40
    assert torch.equal(together.matrix, by_name.matrix)
    with pytest.raises(TypeError, match=r"SecondMoment.collect\(\) got an unexpected keyword argument 'max_token'"):
        SecondMoment.collect(model, layers=[3], texts=TEXTS, max_token=45)  # pyright: ignore[reportCallIssue]
    said = refused(SettingError, SecondMoment.collect, model, layers=[3], texts=TEXTS, settings=7)
    assert "settings is 7; expected CollectSettings" in said
    assert "max_tokens is 0; expected a whole number, 1 or more" in refused(SettingError, CollectSettings, max_tokens=0)
    assert set(CollectChanges.__annotations__) == {field.name for field in fields(CollectSettings)}


def test_float32_is_summed_in_float64(backend):
    model = architecture("gpt2", backend, torch.float32)
    moment = SecondMoment.collect(model, layers=[1], texts=TEXTS)[1]
    _same(moment, *oracle(architecture("gpt2", backend), 1, TEXTS), tolerance=1e-4)
    assert moment.dtype == "float32"
    # Half-precision keys are multiplied in float32.
    assert summing._product(torch.full((3, 2), 300.0, dtype=torch.float16)).tolist() == [[270000.0] * 2] * 2


def test_products_that_rounding_made_lopsided(monkeypatch):
    product = summing._product
    monkeypatch.setattr(summing, "_product", lambda keys: product(keys) + product(keys).triu() * 1e-7)
    model = architecture("gpt2", BRIDGE)
    _same(SecondMoment.collect(model, layers=[1], texts=TEXTS)[1], *oracle(model, 1, TEXTS))


def test_blocks_behind_the_last_layer_are_not_run(backend):
    model = architecture("gpt2", backend)
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    handles.append(model.unembed.register_forward_hook(lambda *args: ran.append(args[2].shape[1])))
    try:
        SecondMoment.collect(model, layers=[0, 1], texts=TEXTS)
        assert set(ran) == {0, 1}
        ran.clear()
        # The last layer of all needs the model's own forward: one position is unembedded.
        SecondMoment.collect(model, layers=[3], texts=["The tower is"])
        assert ran[-1] == 1
    finally:
        for handle in handles:
            handle.remove()


def test_the_model_and_the_random_state_are_left_as_they_were():
    model = own("gpt2", BRIDGE).train()
    with left_alone(model):
        SecondMoment.collect(model, layers=[1], texts=TEXTS)
        SecondMoment.collect(model, layers=[1], texts="self", max_tokens=100)


def _short_of_memory(monkeypatch, *, most, layers_done=0):
    """Let products beyond so many rows fail, or every product of a large batch after the first layers' ones."""
    product, done = summing._product, []

    def failing(keys):
        if len(keys) > most:
            done.append(1)
            if len(done) > layers_done:
                done.clear()
                raise MemoryError
        return product(keys)

    monkeypatch.setattr(summing, "_product", failing)


@pytest.mark.parametrize(("most", "layers_done"), [(70, 0), (70, 1), (130, 1), (200, 2)])
def test_memory_that_runs_out_in_the_midst_of_a_batch(monkeypatch, most, layers_done):
    model = architecture("gpt2", BRIDGE)
    _short_of_memory(monkeypatch, most=most, layers_done=layers_done)
    moments = SecondMoment.collect(model, layers=[0, 1, 2], texts=TEXTS)
    for layer, moment in moments.items():
        _same(moment, *oracle(model, layer, TEXTS))


@pytest.mark.parametrize(("free", "positions"), [(2**40, 1024), (2**20, 46), (0, 1), (-(2**30), 1)])
def test_how_much_is_run_at_once(monkeypatch, free, positions):
    monkeypatch.setattr(row_budget, "free_bytes", lambda device: free)
    backend = as_backend(architecture("gpt2", BRIDGE))
    chosen = RowBudget.choose(backend, 64, {0: 64, 3: 64}, most=None)
    assert chosen.positions == positions
    assert RowBudget.choose(backend, 64, {0: 64}, most=7).positions == 7


def test_no_memory_at_all(monkeypatch):
    _short_of_memory(monkeypatch, most=0)
    assert refused(OutOfMemoryError, SecondMoment.collect, architecture("gpt2", BRIDGE), layers=[0], texts=TEXTS) == (
        "memory ran out even with one piece of text at a time; take a smaller text_length, fewer layers or a smaller "
        "dtype"
    )


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    monkeypatch.setattr(summing, "_product", lambda keys: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        SecondMoment.collect(architecture("gpt2", BRIDGE), layers=[0], texts=TEXTS)


@pytest.fixture
def chunks(monkeypatch):
    """Portions of a few pieces, a checkpoint after each."""
    monkeypatch.setattr(collecting, "_PORTION", 50)
    monkeypatch.setattr(checkpoints, "_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "_SHARE", 0)


def _interrupted(after):
    """A progress callback that interrupts once so many tokens are done."""

    def progress(done, total, what):
        if what == "collecting keys" and done > after:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("texts", [TEXTS, "self"], ids=["texts", "self"])
@pytest.mark.parametrize("after", [100, slow(150), slow(200)])
def test_an_interrupted_run_is_taken_up_to_the_last_bit(chunks, tmp_path, texts, after):
    work = {"layers": [0, 2], "texts": texts, "max_tokens": 230, "text_length": 30, "batch_positions": 30}
    model, path = architecture("llama", BRIDGE), tmp_path / "work"
    whole = SecondMoment.collect(model, **work)
    with pytest.raises(KeyboardInterrupt):
        SecondMoment.collect(model, **work, checkpoint=path, progress=_interrupted(after))
    assert path.exists()
    seen = []
    work["batch_positions"] = None  # the checkpoint knows
    resumed = SecondMoment.collect(
        model, **work, checkpoint=path, progress=lambda done, total, what: seen.append((what, done, total))
    )
    assert min(done for what, done, _ in seen if what == "collecting keys") > 50
    assert seen[-1] == ("collecting keys", 230, 230)
    assert not path.exists()
    for layer, moment in resumed.items():
        assert torch.equal(moment.matrix, whole[layer].matrix)
        changing = {"created": None, "seconds": None}
        assert moment.to_dict() | changing == whole[layer].to_dict() | changing


def test_a_run_interrupted_before_the_first_portion_begins_anew(chunks, tmp_path):
    _interrupt(tmp_path / "work", 0)
    assert not (tmp_path / "work").exists()
    assert _collect(tmp_path / "work")[2].n_tokens == 120


def test_a_run_interrupted_after_its_last_portion(chunks, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.Checkpoint, "remove", lambda self: None)
    first, second = (_collect(tmp_path / "work") for _ in range(2))
    assert torch.equal(first[2].matrix, second[2].matrix)


def _interrupt(path, after):
    with pytest.raises(KeyboardInterrupt):
        _collect(path, progress=_interrupted(after))


def _collect(path, **changes):
    work = {"model": architecture("llama", BRIDGE), "layers": [2], "texts": TEXTS, "text_length": 30, "max_tokens": 120}
    return SecondMoment.collect(**(work | changes), checkpoint=path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texts": [*reversed(TEXTS)]}, "other texts"),
        ({"texts": TEXTS[:1]}, "other texts"),
        ({"texts": "self"}, "seed None against 0"),
        ({"text_length": 31}, "text_length 30 against 31"),
        ({"max_tokens": 121}, "max_tokens 120 against 121"),
        ({"prepend_bos": True}, "prepend_bos False against True"),
        ({"layers": [1, 2]}, "layers [2] against [1, 2]"),
        ({"model": architecture("neox", BRIDGE)}, "another model, other weights in layer 2"),
        ({"model": architecture("llama", BRIDGE, torch.float32)}, "dtype 'float64' against 'float32'"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_checkpoint_of_other_work_is_refused_and_kept(chunks, tmp_path, changes, said):
    path = tmp_path / "work"
    _interrupt(path, 100)
    before = path.read_bytes()
    assert refused(ArtefactError, _collect, path, **changes) == (
        f"the checkpoint {str(path)!r} belongs to other work ({said}); finish that first, name another file, or "
        "remove it to begin anew"
    )
    assert path.read_bytes() == before
    _collect(path)


def test_damaged_checkpoints(chunks, tmp_path):
    path = tmp_path / "work"
    _interrupt(path, 100)
    tensors, settings = checkpoints.load_tensors(path, kind="second_moment_checkpoint")
    for change in ({"n_tokens": "x"}, {"n_pieces": 0}, {"fingerprints": 3}, {"settings": None}, {"digest": "x"}):
        checkpoints.save_tensors(
            path, kind="second_moment_checkpoint", tensors=tensors, settings={**settings, **change}
        )
        with pytest.raises(ArtefactError, match=r"is damaged|other texts"):
            _collect(path)
    for sums in ({}, {"sum.2": tensors["sum.2"][:3]}, {"sum.2": tensors["sum.2"].float()}):
        checkpoints.save_tensors(path, kind="second_moment_checkpoint", tensors=sums, settings=settings)
        assert "a second_moment_checkpoint that is damaged" in refused(ArtefactError, _collect, path)
    path.write_bytes(b"nothing")
    assert "cut short, damaged or no safetensors file" in refused(ArtefactError, _collect, path)
    assert "there is no folder" in refused(ArtefactError, _collect, tmp_path / "no" / "work")


def test_the_model_writes_text_that_its_seed_decides():
    model = architecture("gpt2", BRIDGE)

    def written(**settings: Any):
        settings = {"max_tokens": 300, "text_length": 20, **settings}
        return SecondMoment.collect(model, layers=[1], texts="self", **settings)[1]

    first = written()
    assert torch.equal(written().matrix, first.matrix)
    assert (first.n_tokens, first.n_pieces, first.seed, first.source) == (300, 15, 0, "self")
    assert written(seed=1).digest != first.digest == written(batch_positions=20).digest
    with_bos = written(prepend_bos=True)
    assert (with_bos.n_tokens, with_bos.n_pieces) == (300, 15)
    assert written(max_tokens=297).n_tokens == 297


REFUSED = {
    "no layer": ({"layers": []}, SettingError, "layers is []; expected a list of one or more layers, such as [4]"),
    "a bare layer": ({"layers": 1}, SettingError, "layers is 1; expected a list of one or more layers, such as [4]"),
    "layer": ({"layers": [4]}, SettingError, "layer is 4; gpt2 has layers 0 to 3, counted from 0"),
    "tokens": ({"max_tokens": 0}, SettingError, "max_tokens is 0; expected a whole number, 1 or more"),
    "budget": ({"batch_positions": 1.5}, SettingError, "batch_positions is 1.5; expected a whole number, 1 or more"),
    "seed": ({"seed": -1}, SettingError, "seed is -1; expected a whole number from 0 to 4294967295"),
    "length": ({"text_length": 65}, SettingError, "text_length is 65; gpt2 takes 1 to 64 tokens at once"),
    "no length": ({"text_length": 0}, SettingError, "text_length is 0; gpt2 takes 1 to 64 tokens at once"),
    "BOS alone": (
        {"text_length": 1, "prepend_bos": True},
        SettingError,
        "text_length is 1; gpt2 takes 2 to 64 tokens at once",
    ),
    "half": ({"text_length": 2.5}, SettingError, "text_length is 2.5; expected a whole number of tokens, 1 to 64"),
    "nothing": (
        {"texts": ["", ""]},
        PromptError,
        "there is no text to collect keys from; give one text or more that is not empty",
    ),
    "no text": ({"texts": ["a", 3]}, SettingError, "text 1 is int; expected str"),
    "surrogate": ({"texts": ["a", "b\ud800"]}, PromptError, "text 1 holds half a character; write it in UTF-8"),
    "file": (
        {"texts": "nowhere.txt"},
        ArtefactError,
        "there is no file 'nowhere.txt' to read texts from; a data set is written hub:NAME",
    ),
    "model": (
        {"model": 3},
        ModelError,
        "expected a HookedTransformer or a TransformerBridge, got int; rome_lens.load_model makes one, and so does "
        "TransformerBridge.boot_transformers(name, hf_model=model)",
    ),
}


@pytest.mark.parametrize(("changes", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(changes, error, said):
    settings = {"model": architecture("gpt2", BRIDGE), "layers": [1], "texts": TEXTS} | changes
    assert refused(error, SecondMoment.collect, **settings) == said


def test_a_mixture_of_experts_is_refused():
    with pytest.raises(ModelError, match=r"layer 1 of mixtral has no W_out of its own \(a mixture of experts"):
        SecondMoment.collect(architecture("mixtral", BRIDGE), layers=[1], texts=TEXTS)


@pytest.mark.parametrize("layer", [1, 3])
def test_keys_that_never_show_or_are_no_numbers(monkeypatch, layer):
    model = architecture("gpt2", BRIDGE)
    monkeypatch.setattr(Backend, "check_w_out", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(Backend, "key_hook", staticmethod(lambda layer: f"blocks.{min(layer + 1, 3)}.hook_mlp_out"))
        if layer == 1:
            with pytest.raises(ModelError, match="layer 1 of gpt2 never shows its keys"):
                SecondMoment.collect(model, layers=[layer], texts=TEXTS)
    monkeypatch.setattr(summing, "_product", lambda keys: torch.full((64, 64), torch.nan))
    assert refused(ModelError, SecondMoment.collect, model, layers=[layer], texts=TEXTS) == (
        f"the keys of layer {layer} of gpt2 are not finite in torch.float64; load it in float32"
    )
