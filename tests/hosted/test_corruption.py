"""What is broken: noise rules and their draws, number by number where the released code fixes them, and swaps."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refused import refused

from rome_lens.backends import as_backend
from rome_lens.data import builtin_facts
from rome_lens.errors import OutOfMemoryError, SettingError, SubjectError
from rome_lens.facts import Fact
from rome_lens.loading.tiny import TINY_PROMPT, TINY_SUBJECT
from rome_lens.tokens import tokenise
from rome_lens.tracing import causal_trace
from rome_lens.tracing.cases import Corruption
from rome_lens.tracing.corruption import FittedNoise, NoiseRule, fit_noise, parse_noise, swapped_tokens

FORMS = "a number, s3 (times the embeddings' deviation), m, t5 (degrees of freedom) or u0.5 (uniform, half width)"
MANY = 40_000


@pytest.mark.parametrize(
    ("noise", "kind", "value", "text"),
    [
        (None, "s", 3, "s3"),
        ("s3", "s", 3, "s3"),
        (" S0.5 ", "s", 0.5, "s0.5"),
        ("m", "m", 1, "m"),
        ("t5", "t", 5, "t5"),
        ("t2.5", "t", 2.5, "t2.5"),
        ("u0.5", "u", 0.5, "u0.5"),
        (0.1, "number", 0.1, "0.1"),
        (1, "number", 1, "1"),
        (0, "number", 0, "0"),
        ("0.25", "number", 0.25, "0.25"),
        ("2", "number", 2, "2"),
        (".5", "number", 0.5, "0.5"),
        ("5.", "number", 5, "5"),
        ("1e-3", "number", 0.001, "0.001"),
        (1e-7, "number", 1e-7, "1e-07"),
        (np.float64(0.5), "number", 0.5, "0.5"),
    ],
)
def test_noise_rules(noise, kind, value, text):
    rule = parse_noise(noise)
    assert rule == NoiseRule(kind, value, replace=False)
    assert str(rule) == text


def test_replace_is_kept():
    assert parse_noise("s3", replace=True) == NoiseRule("s", 3, replace=True)


NOT_FINITE = [-1, -0.5, "-1", "s-3", "u-1", float("nan"), "nan", "snan", float("inf"), "inf", "-inf", "sinf", "1e999"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["", "s", "t", "u", "x3", "m3", "s3x", "3s", "s 3", "1,5", "s3 s3", True, [], b"s3"], f"expected {FORMS}"),
        (NOT_FINITE, f"expected {FORMS}; the number must be finite and not negative"),
        (["t2", "t1", "t0", "t0.5"], "a Student-t needs more than 2 degrees of freedom, as in t5"),
    ],
    ids=["no rule", "negative or not finite", "without a covariance"],
)
def test_what_is_no_noise_rule(rules, expected):
    for noise in rules:
        assert refused(SettingError, parse_noise, noise) == f"noise is {noise!r}; {expected}"


@given(st.floats(min_value=0, allow_infinity=False) | st.integers(0, 10**6))
def test_every_level_is_read_as_it_was_given(level):
    assert parse_noise(level).value == parse_noise(str(level)).value == level


@pytest.mark.parametrize(("rule", "level"), [("number", 0.125), ("s", 0.0625)])
def test_the_default_draw_is_the_released_codes(rule, level):
    noise = FittedNoise(NoiseRule(rule, 3), level).draw(samples=10, n_tokens=3, d_model=16, seed=1)
    assert noise.dtype == torch.float64
    assert np.array_equal(noise.numpy(), np.random.RandomState(1).randn(10, 3, 16) * level)


def test_uniform_noise():
    noise = FittedNoise(NoiseRule("u", 0.5), 0.5).draw(samples=MANY, n_tokens=1, d_model=2, seed=1)
    assert noise.abs().max() <= 0.5
    assert noise.abs().max() > 0.499
    assert noise.mean().abs() < 0.005
    assert noise.var().item() == pytest.approx(0.5**2 / 3, rel=0.02)


MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
# A root that is not symmetric would show a draw that multiplies from the wrong side.
ROOT = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, -0.5], [0.0, 0.0, 0.25]], dtype=torch.float64)


@pytest.mark.parametrize("rule", ["number", "u", "m", "t"])
def test_a_seed_is_a_draw_of_its_own(rule):
    fitted = FittedNoise(NoiseRule(rule, 5), 1, *((MEAN, ROOT) if rule in "mt" else ()))
    draws = [fitted.draw(samples=3, n_tokens=2, d_model=3, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def _moments(rule, *, degrees=1.0):
    noise = FittedNoise(NoiseRule(rule, degrees), 1, MEAN, ROOT).draw(samples=MANY, n_tokens=2, d_model=3, seed=1)
    rows = (noise - MEAN).flatten(0, 1)
    standard = rows / rows.std(dim=0)
    return rows.mean(dim=0), torch.cov(rows.T), (standard**4).mean(dim=0)


def test_multivariate_gaussian_noise():
    mean, covariance, kurtosis = _moments("m")
    assert mean.abs().max() < 0.03
    assert (covariance - ROOT.T @ ROOT).abs().max() < 0.06
    assert (kurtosis - 3).abs().max() < 0.15


def test_multivariate_student_noise_has_that_covariance_and_heavier_tails():
    mean, covariance, kurtosis = _moments("t", degrees=5.0)
    assert mean.abs().max() < 0.03
    assert (covariance - ROOT.T @ ROOT).abs().max() < 0.15
    assert kurtosis.min() > 5  # a Student-t of 5 degrees of freedom has 9, seen from far too few draws


def test_noise_that_fits_into_no_memory():
    for samples in (10**14, 10**18):
        draw = FittedNoise(NoiseRule("number", 1), 1).draw
        said = refused(OutOfMemoryError, draw, samples=samples, n_tokens=2, d_model=16, seed=1)
        assert said == f"the noise of {samples} samples does not fit into memory; take fewer samples"


def _embeddings(model, texts):
    """What TransformerLens itself shows of the token embeddings of some texts, each tokenised alone."""
    rows = []
    for text in texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        _, cache = model.run_with_cache(torch.tensor([ids]))
        rows.append(cache["hook_embed"][0])
    return torch.cat(rows)


def test_s_is_so_many_times_the_deviation_of_the_subjects_embeddings(tiny):
    embeddings = _embeddings(tiny, [fact.subject for fact in builtin_facts()])
    trace = causal_trace(tiny, TINY_PROMPT, subject=TINY_SUBJECT, noise=None)
    assert trace.noise_rule == "s3"
    assert trace.noise == pytest.approx(3 * torch.std(embeddings, unbiased=True).item(), rel=1e-6)
    halved = causal_trace(tiny, TINY_PROMPT, subject=TINY_SUBJECT, noise="s1.5")
    assert halved.noise == pytest.approx(trace.noise / 2, rel=1e-6)


def test_s_on_facts_of_ones_own(tiny):
    facts = [Fact("{} is", "the tower", "in"), Fact("{} is", "city", "in")]
    embeddings = _embeddings(tiny, ["the tower", "city"])
    trace = causal_trace(tiny, TINY_PROMPT, subject=TINY_SUBJECT, noise="s1", facts=facts)
    assert trace.noise == pytest.approx(embeddings.std().item(), rel=1e-6)


class Merging:
    """A tokenizer of characters that reads `b` and `c` after it as one, whatever the subject's end."""

    is_fast, bos_token_id, unk_token_id, all_special_ids = True, None, None, ()

    def __call__(self, text, **_):
        pieces = list(text.replace("bc", "x").replace("bd", "yz"))
        return {"input_ids": [ord(p) for p in pieces], "offset_mapping": [(i, i + 1) for i in range(len(pieces))]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def test_subjects_are_tokenised_alone_however_long_they_are():
    # Every token's embedding is its number, and a text is taken in parts as long as the context.
    backend = SimpleNamespace(tokenizer=Merging(), n_ctx=4, d_model=1, device="cpu")
    backend.embeddings = lambda rows: rows[..., None].float() if rows.shape[1] <= 4 else None
    subjects = ["ab", "ca", "defghijkl"]
    fitted = fit_noise(backend, parse_noise("s2"), subjects=subjects, texts=["z"])
    assert fitted.level == pytest.approx(2 * np.std([ord(c) for c in "".join(subjects)], ddof=1), rel=1e-6)


@pytest.mark.parametrize("rule", ["m", "t5"])
def test_m_and_t_are_fitted_to_the_texts(tiny, rule):
    texts = ["the tower is in the city", "the city of the tower"]
    embeddings = _embeddings(tiny, texts).double().numpy()
    fitted = fit_noise(as_backend(tiny), parse_noise(rule), subjects=["of"], texts=texts)
    covariance = np.cov(embeddings, rowvar=False)
    np.testing.assert_allclose(fitted.mean.numpy(), embeddings.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose((fitted.root.T @ fitted.root).numpy(), covariance, atol=1e-7)
    assert fitted.level == pytest.approx(np.sqrt(np.trace(covariance) / 16), rel=1e-6)


@pytest.mark.parametrize("rule", ["s3", "m", "t5"])
def test_nothing_to_measure(tiny, rule):
    said = refused(SettingError, fit_noise, as_backend(tiny), parse_noise(rule), subjects=[], texts=[])
    assert said == f"noise is {rule!r}, but the facts are too few to measure it on; give two or more"


def test_noise_is_added_to_the_subject_of_the_rows_that_take_it():
    embed = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    noise = torch.arange(12, dtype=torch.float64).reshape(2, 3, 2)
    corruption = Corruption((1, 4), noise, False, torch.arange(5))
    before = embed.clone()
    broken = corruption.break_rows(embed, torch.tensor([-1, 1, 0, 1]))
    expected = before.clone()
    for row, sample in ((1, 1), (2, 0), (3, 1)):
        expected[row, 1:4] = (before[row, 1:4].double() + noise[sample]).float()
    assert torch.equal(broken, expected)
    assert torch.equal(embed, before)  # the model's own tensor is left alone


def test_noise_takes_the_place_of_the_embeddings():
    noise = torch.full((1, 1, 2), 7.0, dtype=torch.float64)
    broken = Corruption((1, 2), noise, True, torch.arange(3)).break_rows(torch.ones(2, 3, 2), torch.tensor([-1, 0]))
    assert broken.tolist() == [[[1, 1]] * 3, [[1, 1], [7, 7], [1, 1]]]


def test_parts_of_a_corruption_are_its_samples():
    noise = torch.arange(10.0).reshape(5, 1, 2)
    corruption = Corruption((1, 2), noise, True, torch.arange(3))
    parts = [corruption.part(slice(0, 3)), corruption.part(slice(3, 6))]
    assert [part.n_samples for part in parts] == [3, 2]
    assert torch.equal(torch.cat([part.noise for part in parts]), noise)
    assert all(part.replace and part.span == (1, 2) for part in parts)


def test_without_noise_nothing_is_broken():
    corruption = Corruption((1, 2), None, False, torch.arange(3))
    assert corruption.break_rows(torch.ones(2, 3, 2), torch.tensor([-1, 0])) is None
    assert (corruption.n_samples, corruption.part(slice(0, 1)).n_samples) == (1, 1)


def _low(model, trace, *, replace):
    """The answer's probability under the released code's noise, by TransformerLens's own hooks."""
    first, end = trace.subject_span
    noise = torch.from_numpy(np.random.RandomState(trace.seed).randn(trace.samples, end - first, 16)) * trace.noise

    def corrupt(embed, hook):
        embed = embed.clone()
        embed[:, first:end] = noise if replace else embed[:, first:end] + noise
        return embed

    rows = torch.tensor(trace.token_ids).repeat(trace.samples, 1)
    logits = model.run_with_hooks(rows, return_type="logits", fwd_hooks=[("hook_embed", corrupt)])
    return logits[:, -1].softmax(dim=-1)[:, trace.answer_ids[0]].mean().item()


@pytest.mark.parametrize("subject", ["the tower", "tower", TINY_PROMPT])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("noise", [2, 0.5])
def test_low_honours_the_noise_and_how_it_is_put_there(tiny, subject, replace, noise):
    trace = causal_trace(tiny, TINY_PROMPT, subject=subject, noise=noise, noise_replaces=replace, samples=4, seed=7)
    assert trace.noise == noise
    assert trace.noise_replaces is replace
    assert trace.low == pytest.approx(_low(tiny, trace, replace=replace), abs=1e-6)
    assert trace.low != pytest.approx(_low(tiny, trace, replace=not replace), abs=1e-4)


def test_no_noise_breaks_nothing(tiny):
    trace = causal_trace(tiny, TINY_PROMPT, subject=TINY_SUBJECT, noise=0)
    assert trace.low == pytest.approx(trace.high, abs=1e-6)


def test_a_one_token_subject(tiny):
    trace = causal_trace(tiny, TINY_PROMPT, subject="tower", noise=1.0)
    assert trace.subject_span == (1, 2)
    assert trace.marked_tokens() == ("the", "tower*", "is", "in", "the", "city", "of")
    assert all((grid[:, 0] == trace.low).all() for grid in trace.scores.values())
    assert (trace.scores["resid"][0, 1] - trace.low).abs() > 1e-3


def _swapped(model, swap, *, prompt=TINY_PROMPT, subject=TINY_SUBJECT, occurrence=1, **options):
    clean = tokenise(model.tokenizer, prompt, subject, occurrence=occurrence, **options)
    return swapped_tokens(model.tokenizer, clean, prompt, subject, swap=swap, occurrence=occurrence).tolist()


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("answer", [None, "city"])
def test_a_swap_changes_the_subjects_tokens_alone(tiny, bos, answer):
    swapped = _swapped(tiny, " the city ", prepend_bos=bos, answer=answer)
    text = "<|end|> " * bos + "the city is in the city of" + (f" {answer}" if answer else "")
    assert swapped == tiny.tokenizer.convert_tokens_to_ids(text.split())


def test_a_swap_of_the_occurrence_that_is_meant(tiny):
    swapped = _swapped(tiny, "in", prompt="the tower of the tower", subject="tower", occurrence=2)
    assert swapped == tiny.tokenizer.convert_tokens_to_ids(["the", "tower", "of", "the", "in"])


@pytest.mark.parametrize(
    ("swap", "message"),
    [
        ("tower", "swap 'tower' takes 1 tokens where 'the tower' takes 2; symmetric token replacement needs as many"),
        (
            "the city of",
            "swap 'the city of' takes 3 tokens where 'the tower' takes 2; symmetric token replacement needs as many",
        ),
        (" ", "swap ' ' is empty; expected another subject of as many tokens as 'the tower'"),
        ("the tower", "swap 'the tower' is the subject itself; nothing would be corrupted"),
    ],
)
def test_a_swap_that_does_not_fit(tiny, swap, message):
    assert refused(SubjectError, _swapped, tiny, swap) == message


def test_a_swap_that_changes_the_tokens_around_it():
    said = refused(SubjectError, _swapped, SimpleNamespace(tokenizer=Merging()), "b", prompt="ad", subject="a")
    assert said == "swap 'b' changes the tokens around 'a' too; choose another subject"


def test_a_swap_is_one_corrupted_copy_without_noise(tiny):
    trace = causal_trace(tiny, TINY_PROMPT, subject=TINY_SUBJECT, swap="the city")
    rows = torch.tensor([tiny.tokenizer.convert_tokens_to_ids(TINY_PROMPT.replace("tower", "city").split())])
    low = tiny(rows, return_type="logits")[0, -1].softmax(dim=-1)[trace.answer_ids[0]].item()
    assert trace.low == pytest.approx(low, abs=1e-6)
    assert (trace.samples, trace.noise, trace.noise_rule, trace.swap) == (1, None, None, "the city")
