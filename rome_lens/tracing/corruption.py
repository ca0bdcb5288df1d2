"""What is broken in the corrupted copies: noise on the subject's embeddings, or another subject in its place.

The default draw is the released code's: numpy's `RandomState(seed).randn(samples, span, d_model)` in float64, times the
level, so that grids can be compared number by number.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from rome_lens.backends import Backend
from rome_lens.checks import as_real, as_text, shown
from rome_lens.data import builtin_facts
from rome_lens.errors import OutOfMemoryError, SettingError, SubjectError
from rome_lens.facts import Fact
from rome_lens.kinds import facts_of
from rome_lens.subjects import find_subject
from rome_lens.tokens import TokenisedPrompt, encode, joint

_FORMS = "a number, s3 (times the embeddings' deviation), m, t5 (degrees of freedom) or u0.5 (uniform, half width)"


@dataclass(frozen=True)
class NoiseRule:
    """How noise is drawn (paper, section 2.1).

    Attributes:
        kind: `number` (an absolute level), `s` (times the unbiased scalar standard deviation of the subjects'
            embeddings), `m` (Gaussian fitted to embeddings of text, its mean added too), `t` (multivariate Student-t
            of the same mean and covariance) or `u` (uniform).
        value: the level, the factor, the degrees of freedom or the half width; 1 for `m`.
        replace: assign the noise instead of adding it.
    """

    kind: str
    value: float
    replace: bool = False

    def __str__(self) -> str:
        if self.kind == "m":
            return "m"
        return f"{'' if self.kind == 'number' else self.kind}{self.value:g}"


def parse_noise(noise: float | str | None, *, replace: bool = False) -> NoiseRule:
    """Read a noise rule: None is `s3`, the released code's default.

    Raises:
        SettingError: it is no rule, negative, infinite or not a number, or a `t` of 2 degrees of freedom or fewer.
    """
    given = shown(noise)
    if not isinstance(noise, str | None):
        noise = noise if isinstance(noise, Real) and not isinstance(noise, bool) else as_real(noise)
        if noise is None:
            raise SettingError(f"noise is {given}; expected {_FORMS}")
    text = "s3" if noise is None else str(noise).strip().lower()
    if text == "m":
        return NoiseRule("m", 1.0, replace)
    kind, number = (text[:1], text[1:]) if text[:1] in ("s", "t", "u") else ("number", text)
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?|nan", number):
        raise SettingError(f"noise is {given}; expected {_FORMS}")
    value = float(number)
    if not math.isfinite(value) or value < 0:
        raise SettingError(f"noise is {given}; expected {_FORMS}; the number must be finite and not negative")
    if kind == "t" and value <= 2:
        raise SettingError(f"noise is {given}; a Student-t needs more than 2 degrees of freedom, as in t5")
    return NoiseRule(kind, value, replace)


@dataclass(frozen=True)
class FittedNoise:
    """A noise rule with what it needs of the model.

    Attributes:
        rule: the rule.
        level: root mean square of one coordinate of the noise (without the mean that `m` and `t` add), in the units of
            `hook_embed`; for `u` the half width.
        mean: [d_model] for `m` and `t`.
        root: a square root of the covariance, [d_model d_model], for `m` and `t`.
    """

    rule: NoiseRule
    level: float
    mean: Float[Tensor, " d_model"] | None = None
    root: Float[Tensor, "d_model d_model"] | None = None

    def draw(self, *, samples: int, n_tokens: int, d_model: int, seed: int) -> Float[Tensor, "sample span d_model"]:
        """Noise for the subject's tokens, in float64 on the CPU; the same for the same seed.

        Raises:
            OutOfMemoryError: so much noise does not fit into memory.
        """
        try:
            return self._draw((samples, n_tokens, d_model), np.random.RandomState(seed))
        except (MemoryError, ValueError) as error:  # ValueError: more numbers than numpy can count
            raise OutOfMemoryError(
                f"the noise of {samples} samples does not fit into memory; take fewer samples"
            ) from error

    def _draw(self, shape: tuple[int, int, int], random: np.random.RandomState) -> Float[Tensor, "sample span d_model"]:
        if self.rule.kind == "u":
            return torch.from_numpy(random.uniform(-1, 1, shape)) * self.level
        normal = torch.from_numpy(random.randn(*shape))
        if self.mean is None or self.root is None:
            return normal * self.level
        gaussian = normal @ self.root
        if self.rule.kind == "t":
            # sqrt(K / chi2_K) makes a normal a Student-t; (K - 2) / K gives it the covariance that was fitted.
            chi2 = torch.from_numpy(random.chisquare(self.rule.value, size=(*shape[:2], 1)))
            gaussian = gaussian * ((self.rule.value - 2) / chi2).sqrt()
        return gaussian + self.mean


def fit_noise(backend: Backend, rule: NoiseRule, *, subjects: Iterable[str], texts: Iterable[str]) -> FittedNoise:
    """Measure what the rule needs: embeddings as they pass `hook_embed`, whatever the model does to `W_E` before.

    Args:
        backend: the model.
        rule: the rule.
        subjects: for `s`: the subjects of the fact set, each tokenised alone.
        texts: for `m` and `t`: texts whose token embeddings the distribution is fitted to.

    Raises:
        SettingError: there is nothing to measure.
    """
    if rule.kind in ("number", "u"):
        return FittedNoise(rule, rule.value)
    embeddings = _embeddings_of(backend, subjects if rule.kind == "s" else texts)
    if embeddings.shape[0] < 2:
        raise SettingError(f"noise is {str(rule)!r}, but the facts are too few to measure it on; give two or more")
    if rule.kind == "s":
        return FittedNoise(rule, rule.value * embeddings.std().item())
    covariance = torch.cov(embeddings.double().T)
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return FittedNoise(rule, covariance.diagonal().mean().sqrt().item(), embeddings.double().mean(dim=0), root)


def fitted_noise(backend: Backend, rule: NoiseRule, facts: Sequence[Fact] | None) -> FittedNoise:
    """The noise that the rule asks for, measured on these facts, or on the built-in ones.

    Raises:
        SettingError: the facts give nothing to measure.
    """
    measured = builtin_facts() if facts is None else facts_of(facts)
    return fit_noise(
        backend,
        rule,
        subjects=[fact.subject for fact in measured],
        # Put together where the rule asks for them alone: most measure subjects.
        texts=(
            fact.text + joint(backend.tokenizer, fact.text, fact.answer, fact.answer_joined) + fact.answer
            for fact in measured
        ),
    )


def _embeddings_of(backend: Backend, texts: Iterable[str]) -> Float[Tensor, "token d_model"]:
    """Embeddings of all tokens of all texts, each text tokenised alone."""
    ids = [i for text in texts for i in encode(backend.tokenizer, text)[0]]
    step = min(backend.n_ctx or 512, 512)
    rows = [torch.tensor([ids[i : i + step]], device=backend.device) for i in range(0, len(ids), step)]
    return torch.cat([backend.embeddings(row)[0].cpu() for row in rows]) if rows else torch.empty(0, 1)


def swapped_tokens(
    tokenizer: Any, clean: TokenisedPrompt, prompt: str, subject: str, *, swap: str, occurrence: int
) -> Int[Tensor, " pos"]:
    """Token ids of the prompt with another subject of the same token count (symmetric token replacement).

    Raises:
        SubjectError: the other subject does not fit: another number of tokens, or the tokens around it change too.
    """
    if not as_text("swap", swap, error=SubjectError).strip():
        raise SubjectError(f"swap {swap!r} is empty; expected another subject of as many tokens as {subject!r}")
    start, end = find_subject(prompt, subject, occurrence)
    ids, _ = encode(tokenizer, prompt[:start] + swap.strip() + prompt[end:] + clean.answer)
    ids = [*clean.bos, *ids]
    first, last = clean.subject_span
    if len(ids) != len(clean.ids):
        raise SubjectError(
            f"swap {swap!r} takes {last - first + len(ids) - len(clean.ids)} tokens where {subject!r} takes "
            f"{last - first}; symmetric token replacement needs as many"
        )
    if ids[:first] != list(clean.ids[:first]) or ids[last:] != list(clean.ids[last:]):
        raise SubjectError(f"swap {swap!r} changes the tokens around {subject!r} too; choose another subject")
    if ids == list(clean.ids):
        raise SubjectError(f"swap {swap!r} is the subject itself; nothing would be corrupted")
    return torch.tensor(ids)
