"""Conformal scores, thresholds and sets: by hand, by numpy, and how often they hold the truth."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf
from scipy import stats
from scipy.special import softmax

import jaxlogits as jl
from jaxlogits._src.calibration.conformal import _ceil_of_share, _digits

aps_scores = jax.jit(jl.aps_scores)
threshold = jax.jit(jl.conformal_threshold)


def published(z: np.ndarray) -> np.ndarray:
    """Romano's scores: the probability of the classes up to and with each, likeliest first."""
    p = softmax(z.astype(float), axis=-1)
    order = np.argsort(-p, axis=-1, kind="stable")
    sums = np.cumsum(np.take_along_axis(p, order, axis=-1), axis=-1)
    return np.take_along_axis(sums, np.argsort(order, axis=-1), axis=-1)


# Scores.


def test_aps_scores() -> None:
    z = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    z[3, 2:5] = 1  # the first of equal ones comes first
    got = aps_scores(z)
    last = z == z.min(axis=-1, keepdims=True)
    assert (np.isposinf(got) == last).all()
    # 6 terms of 2^-24 and the 4 ulp of a logarithm, above 1 relative.
    want = -np.log1p(-published(z), where=~last, out=np.full(z.shape, -np.inf))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_penalties_of_raps() -> None:
    z = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    rank = 1 + np.argsort(np.argsort(-z, axis=-1), axis=-1)
    scores = jax.jit(lambda penalty, free: jl.aps_scores(z, penalty=penalty, num_free=free))
    for penalty, free in ((0.25, 0), (0.1, 2), (3.0, 6)):
        want = published(z) + penalty * np.maximum(rank - free, 0)
        np.testing.assert_allclose(scores(penalty, free), want, rtol=2e-6)
    # A large one cuts sets off after as many classes as are free.
    assert (np.sum(np.asarray(scores(3.0, 2)) <= 1.5, axis=-1) <= 2).all()
    with pytest.raises(ValueError, match="penalty must be at least 0, got -1"):
        jl.aps_scores(z, penalty=-1.0)
    with pytest.raises(ValueError, match="num_free must be at least 0, got -1"):
        jl.aps_scores(z, num_free=-1)
    assert np.isnan(scores(0.25, -1)).all()
    with pytest.raises(TypeError, match="num_free must be integers"):
        jl.aps_scores(z, penalty=1.0, num_free=1.5)


def test_random_scores_take_off_one_share_for_each_row() -> None:
    z = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    s = 1 - np.exp(-np.asarray(aps_scores(z, key=jax.random.key(0)), float))
    u = (published(z) - s) / softmax(z, axis=-1)
    np.testing.assert_allclose(u, u[:, :1] * np.ones(6), atol=1e-4)  # p may be 1e-3
    assert (u[:, 0] >= -1e-6).all()
    assert (u[:, 0] < 1 + 1e-6).all()
    assert stats.kstest(u[:, 0], "uniform").pvalue > 1e-6


def test_a_sure_row_keeps_its_classes_apart() -> None:
    z = jnp.array([[50.0, 10.0, 0.0, -jnp.inf]])
    assert (1 - np.exp(-np.asarray(aps_scores(z), np.float32)) == 1).all()
    # What is left after the first is exp(-40), after the second exp(-50).
    np.testing.assert_allclose(aps_scores(z), [[40, 50, np.inf, np.inf]], rtol=1e-4)


def test_masked_and_bad_classes() -> None:
    z = jnp.array([[0.0, 1.0, jnp.nan], [0.0, 1.0, 2.0], [jnp.inf, 0.0, jnp.inf]])
    where = jnp.array([[True, True, False], [False] * 3, [True] * 3])
    got = aps_scores(z, where=where)
    np.testing.assert_allclose(got[0], [np.inf, np.log1p(np.e), np.inf], rtol=1e-6)
    np.testing.assert_array_equal(got[1], np.inf)
    assert np.isnan(got[2]).all()
    assert np.isnan(aps_scores(z)[0]).all()


# The threshold.


def test_threshold_is_the_right_one_in_order() -> None:
    """For every coverage in hundredths, however it rounds."""
    levels = np.arange(101)
    for n in (0, 9, 19, 99, 199):
        scores = np.random.default_rng(n).permutation(n).astype(np.float32)
        rows, labels = np.stack([scores, scores + n], axis=1), np.zeros(n, np.int32)
        of_level = jax.jit(jax.vmap(lambda c, x=rows, y=labels: jl.conformal_threshold(x, y, c)))
        rank = np.array([math.ceil((n + 1) * Fraction(int(level), 100)) for level in levels])
        want = np.where(rank == 0, -np.inf, np.where(rank > n, np.inf, rank - 1.0))
        np.testing.assert_array_equal(of_level(levels.astype(np.float32) / 100), want)


def test_ranks_of_any_number_of_rows() -> None:
    """ceil((n + 1) coverage) for n up to 2**31 - 1, from a Python number or float32's."""
    rank = jax.jit(_ceil_of_share)
    for n in (0, 9, 470_008, 10**6 - 1, 123_456_789, 2**31 - 1):
        for hundredths in (0, 1, 10, 33, 50, 90, 95, 99, 100):
            want = math.ceil((n + 1) * Fraction(hundredths, 100))
            for coverage in (hundredths / 100, np.float32(hundredths / 100)):
                assert int(rank(jnp.uint32(n + 1), _digits(coverage))) == want, (n, coverage)


def test_a_traced_coverage_is_right_to_rounding() -> None:
    traced = jax.jit(lambda count, coverage: _ceil_of_share(count, _digits(coverage)))
    for n in (9, 999, 470_008, 123_456_789):
        for coverage in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
            want = math.ceil((n + 1) * Fraction(f"{coverage}"))
            assert abs(int(traced(jnp.uint32(n + 1), coverage)) - want) <= (n + 1) * 2**-23
    z = jnp.zeros([3, 2])
    assert jnp.isnan(jax.jit(lambda c: jl.conformal_threshold(z, jnp.zeros(3, int), c))(1.5))


def test_the_threshold_of_half_a_million_rows() -> None:
    n = 470_008
    scores = np.arange(n, dtype=np.float32)[:, None]
    want = math.ceil((n + 1) * Fraction(9, 10)) - 1
    assert jl.conformal_threshold(scores, np.zeros(n, np.int32), 0.9) == want


@pytest.mark.parametrize("key", [None, 0])
def test_slopes_of_scores_with_impossible_classes(key: int | None) -> None:
    """A class that is masked, or at -inf, has no slope, and the others that of a shorter row."""
    random = None if key is None else jax.random.key(key)
    short = jnp.array([[1.0, 2.0, 0.5]])

    def number(z: jax.Array, where: jax.Array) -> jax.Array:
        scores = jl.aps_scores(z, where=where, key=random)
        return jnp.where(jnp.isfinite(scores), scores, 0.0).sum()

    slopes = jax.jit(jax.grad(number))
    want = np.pad(slopes(short, jnp.ones_like(short, bool)), [(0, 0), (0, 2)])
    for fill in (3.0, jnp.nan, -jnp.inf):
        z = jnp.pad(short, [(0, 0), (0, 2)], constant_values=fill)
        got = slopes(z, jnp.array([[True] * 3 + [fill == -jnp.inf] * 2]))
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_threshold_of_masked_and_bad_rows() -> None:
    scores = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    labels = np.arange(20, dtype=np.int32) % 3
    where = np.arange(20) % 4 > 0
    bad, bad_labels = scores.copy(), labels.copy()
    bad[~where], bad_labels[~where] = np.nan, 99
    want = np.sort(scores[where, labels[where]])[math.ceil(16 * 0.75) - 1]
    assert threshold(bad, bad_labels, 0.75, where=where) == want
    assert threshold(bad, labels, 1.0, where=where) == np.inf
    assert threshold(bad, labels, 0.75, where=np.zeros(20, bool)) == np.inf
    assert np.isnan(threshold(bad, labels, 0.75))
    assert np.isnan(threshold(scores, bad_labels, 0.75))
    assert jl.conformal_threshold(scores.T, labels, 0.5, axis=0) == threshold(scores, labels, 0.5)


def test_sets() -> None:
    scores = jnp.array([[0.1, 0.5, jnp.nan], [jnp.inf, 0.5, 0.6]])
    got = jl.conformal_set(scores, 0.5)
    np.testing.assert_array_equal(got, [[True, True, True], [False, True, False]])
    by_class = jl.conformal_set(scores, jnp.array([0.0, 1.0, jnp.nan]))
    np.testing.assert_array_equal(by_class, [[False, True, True], [False, True, True]])
    assert jl.conformal_set(scores, jnp.inf).all()


@pytest.mark.newest
def test_coverage() -> None:
    """The truth of a new row is in the set as often as promised, by a model that knows little.

    Each trial draws n rows and a new one, so that trials are independent and the true share is
    ceil((n + 1) coverage) / (n + 1) = 18/20, if no scores are equal. The seed is fixed; for
    another, one of the three counts falls outside its bounds with a chance of at most 3e-6.
    """
    n, trials = 19, 4000

    def trial(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 3)
        z = 2 * jax.random.normal(keys[0], (n + 1, 4))
        labels = jax.random.categorical(keys[1], z / 3 + jnp.array([[1.0, 0, 0, 0]]))
        each = (-jl.log_softmax(z), jl.aps_scores(z, key=keys[2]), jl.aps_scores(z))
        holds = []
        for scores in each:
            limit = jl.conformal_threshold(scores[:n], labels[:n], 0.9)
            holds.append(jl.conformal_set(scores[n], limit)[labels[n]])
        return jnp.stack(holds)

    holds = jax.jit(jax.vmap(trial))(jax.random.split(jax.random.key(0), trials))
    counts = np.asarray(holds).sum(axis=0)
    low, high = stats.binom.interval(1 - 1e-6, trials, 18 / 20)
    assert (counts >= low).all()
    assert (counts[:2] <= high).all()  # without a key, every row has a class at +inf


# Transforms.

Z = np.array([[6.0, -1.5, 0.25], [0.5, 1.75, -2.0]], np.float32)
WHERE = np.array([[True, True, True], [True, False, True]])


def exact_scores(z: Any, where: Any) -> Any:
    """log of what is left after each class, of which there is nothing after the last."""
    p = ro.softmax(z, where)
    left = [sum(p[j] for j in range(3) if p[j] < p[k]) for k in range(3)]
    return np.array([ro.mp.log(x) if x > 0 else -ro.mp.inf for x in left], dtype=object)


def exact_threshold(scores: Any, labels: Any) -> Any:
    return sorted(row[label] for row, label in zip(scores, labels, strict=True))[1]


def test_transforms() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2, 3, 2)).astype(np.float32)
    labels = np.array([[0, 1, 1], [1, 0, 0]], np.int32)
    cases = [
        tf.Case(
            "aps_scores", lambda z, where: -jl.aps_scores(z, where=where), exact_scores, (Z, WHERE)
        ),
        tf.Case(
            "conformal_threshold",
            lambda s, y: jl.conformal_threshold(s, y, 0.5),
            exact_threshold,
            (scores, labels),
        ),
    ]
    for case in cases:
        exact, f = tf.exact(case), tf.joined(case)
        results = {
            "grad of checkpoint": jax.jit(jax.grad(jax.checkpoint(f.number)))(f.point),
            "jacfwd": jax.jit(jax.jacfwd(f.number))(f.point),
        }
        atol = 32 * 2**-23 * np.max(np.abs(exact.gradient))
        for transform, got in results.items():
            np.testing.assert_allclose(got, exact.gradient, rtol=0, atol=atol, err_msg=transform)
        np.testing.assert_allclose(jax.jit(f.value)(f.point), exact.value, rtol=2e-6)


def test_refused() -> None:
    scores, labels = jnp.zeros([4, 3]), jnp.zeros([4], jnp.int32)
    with pytest.raises(TypeError, match=r"^scores must be floating point"):
        jl.conformal_threshold(labels, labels, 0.9)
    with pytest.raises(
        ValueError, match=r"^labels must have the shape of scores without axis, \[4\]"
    ):
        jl.conformal_threshold(scores, labels[:3], 0.9)
    with pytest.raises(ValueError, match=r"^axis must name dimensions of scores"):
        jl.conformal_threshold(scores, labels, 0.9, axis=2)
    with pytest.raises(ValueError, match=r"^coverage must be at least 0 and at most 1, got 90$"):
        jl.conformal_threshold(scores, labels, 90)
    with pytest.raises(ValueError, match=r"^threshold must broadcast to \[4,3\]"):
        jl.conformal_set(scores, jnp.zeros([4]))
    with pytest.raises(ValueError, match=r"^conformal_threshold: labels must be in \[0, 3\)"):
        jl.checked(jl.conformal_threshold)(scores, labels + 3, 0.9)
