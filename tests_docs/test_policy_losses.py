"""The functions of docs/policy-and-preference-losses.md against their formulas in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import policy_page
import pytest

import jaxlogits as jl

pytestmark = pytest.mark.newest
RNG = np.random.default_rng(0)
B, S, D, K = 4, 5, 8, 16
WHERE = np.arange(S) < np.array([5, 3, 4, 1])[:, None]
LOG_PROBS, OLD, REFERENCE = -RNG.exponential(size=[3, B, S])
ENTROPIES, ADVANTAGES = RNG.exponential(size=[B, S]), RNG.normal(size=B)
HIDDEN, (TEACHER, STUDENT) = RNG.normal(size=[B, S, D]), 0.5 * RNG.normal(size=[2, D, K])


@pytest.fixture(scope="module")
def page() -> dict[str, Callable[..., Any]]:
    return policy_page.functions()


def low(*arrays: Any) -> list[jax.Array]:
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def close(got: Any, want: Any) -> None:
    """Sums of a few dozen products of numbers below 10."""
    np.testing.assert_allclose(got, want, rtol=2**-18, atol=2**-18)


def log_softmax(z: Any) -> Any:
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def test_reductions(page: dict[str, Any]) -> None:
    losses = np.where(WHERE, LOG_PROBS, np.nan)
    (given,) = low(losses)
    of_sequences = [row[keep].mean() for row, keep in zip(LOG_PROBS, WHERE, strict=True)]
    total = LOG_PROBS[WHERE].sum()
    close(page["reduced"](given, WHERE), total / WHERE.sum())
    close(page["reduced"](given, WHERE, "sequence"), np.mean(of_sequences))
    close(page["reduced"](given, WHERE, "batch"), total / (B * S))
    slope = jax.grad(lambda x: page["reduced"](x, WHERE, "sequence"))(given)
    close(slope, WHERE / WHERE.sum(axis=-1, keepdims=True) / B)


def test_policy_gradients(page: dict[str, Any]) -> None:
    log_probs, old, reference = low(LOG_PROBS, OLD, REFERENCE)
    entropies, advantages = low(ENTROPIES, ADVANTAGES)
    got = page["reinforce"](log_probs, entropies, advantages, 0.01)
    close(got, -ADVANTAGES[:, None] * LOG_PROBS - 0.01 * ENTROPIES)
    ratio = np.exp(LOG_PROBS - OLD)
    gain = np.minimum(ratio * ADVANTAGES[:, None], np.clip(ratio, 0.8, 1.2) * ADVANTAGES[:, None])
    close(page["clipped"](log_probs, old, advantages), -gain)
    gap = REFERENCE - LOG_PROBS
    k3 = np.exp(gap) - gap - 1
    got = page["grpo"](log_probs, old, reference, advantages, beta=0.5)
    close(got, -gain + 0.5 * k3)
    # Where the two are close exp(gap) - gap - 1 in float32 would be all rounding.
    tiny = np.float32([2.0**-12, -(2.0**-12)])
    want = np.expm1(tiny.astype(float)) - tiny.astype(float)
    np.testing.assert_allclose(page["k3"](jnp.zeros(2), tiny), want, rtol=2**-10)
    rewards = RNG.uniform(size=[3, 8])
    centred = rewards - rewards.mean(axis=-1, keepdims=True)
    want = centred / (rewards.std(axis=-1, ddof=1, keepdims=True) + 1e-4)
    close(page["group_advantages"](*low(rewards)), want)


def test_preferences(page: dict[str, Any]) -> None:
    chosen, rejected, reference_chosen, reference_rejected = 20 * LOG_PROBS.ravel()[:16].reshape(
        4, 4
    )
    log_odds = 0.5 * ((chosen - reference_chosen) - (rejected - reference_rejected))
    for smoothing in (0.0, 0.2):
        options = {"beta": 0.5, "smoothing": smoothing}
        got = page["dpo"](*low(chosen, rejected, reference_chosen, reference_rejected), **options)
        wrong = smoothing / 2
        want = (1 - wrong) * np.log1p(np.exp(-log_odds)) + wrong * np.log1p(np.exp(log_odds))
        close(got, want)


def test_distillation(page: dict[str, Any]) -> None:
    hidden, teacher, student = low(np.where(WHERE[..., None], HIDDEN, np.nan), TEACHER, STUDENT)
    p, q = (log_softmax(HIDDEN @ kernel) for kernel in (TEACHER, STUDENT))

    def kl(p: Any, q: Any) -> Any:
        return np.where(WHERE, np.sum(np.exp(p) * (p - q), axis=-1), 0.0)

    mixed = np.log(0.5 * np.exp(p) + 0.5 * np.exp(q))
    close(page["forward_kl"](hidden, teacher, student, WHERE), kl(p, q))
    close(page["reverse_kl"](hidden, teacher, student, WHERE), kl(q, p))
    want = 0.5 * kl(p, mixed) + 0.5 * kl(q, mixed)
    close(page["jensen_shannon"](hidden, teacher, student, WHERE), want)


def test_distillation_from_the_likeliest(page: dict[str, Any]) -> None:
    hidden, teacher, student = low(np.where(WHERE[..., None], HIDDEN, np.nan), TEACHER, STUDENT)
    stored = jl.linear_top_k(hidden, teacher, 4, where=WHERE)
    p, q = (log_softmax(HIDDEN @ kernel) for kernel in (TEACHER, STUDENT))
    classes = np.argsort(-p, axis=-1)[..., :4]

    def with_rest(log_probs: Any) -> Any:
        some = np.exp(np.take_along_axis(log_probs, classes, axis=-1))
        return np.concatenate([some, 1 - some.sum(axis=-1, keepdims=True)], axis=-1)

    p, q = with_rest(p), with_rest(q)
    want = np.where(WHERE, np.sum(p * np.log(p / q), axis=-1), 0.0)
    close(page["top_k_kl"](hidden, student, *stored, WHERE), want)
    same = page["top_k_kl"](hidden, teacher, *stored, WHERE)
    assert np.all((same >= 0) & (same < 1e-9))
    slope = jax.grad(lambda kernel: page["top_k_kl"](hidden, kernel, *stored, WHERE).sum())(student)
    assert np.isfinite(slope).all()
    assert slope.any()
