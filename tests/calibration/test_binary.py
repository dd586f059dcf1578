"""Calibration of yes or no, against scikit-learn and mpmath; edges; transforms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

import jaxlogits as jl

METRICS = [jl.binary_calibration_error, jl.binary_brier_score]
BINNED = [jl.binary_calibration_error, jl.binary_reliability_curve]


def some_rows(n: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds that are twice as sure as they should be."""
    rng = np.random.default_rng(n)
    x = rng.normal(size=n).astype(dtype)
    return 2 * x, (rng.uniform(size=n) < 1 / (1 + np.exp(-x))).astype(np.int32)


def all_of(x: Any, y: Any, where: Any = True, weights: Any = 1.0) -> jax.Array:
    return jnp.stack([metric(x, y, where=where, weights=weights) for metric in METRICS])


jitted = jax.jit(all_of)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_sklearn() -> None:
    x, y = some_rows(500, np.float64)
    p = 1 / (1 + np.exp(-x))
    p[:2], x[:2] = 0.5, 0.0  # on an edge of 2 bins
    for num_bins in (1, 2, 15):
        curve: jl.BinaryReliabilityCurve = jl.binary_reliability_curve(x, y, num_bins=num_bins)
        rate, probability = calibration_curve(y, p, n_bins=num_bins)
        full = np.asarray(curve.weight) > 0
        np.testing.assert_allclose(curve.rate[full], rate, rtol=1e-12)
        np.testing.assert_allclose(curve.probability[full], probability, rtol=1e-12)
        assert np.isnan(curve.rate[~full]).all()
        assert curve.weight.sum() == 500
        np.testing.assert_allclose(curve.edges, np.linspace(0, 1, num_bins + 1))
        error = np.nansum(curve.weight * abs(curve.rate - curve.probability)) / 500
        got = jl.binary_calibration_error(x, y, num_bins=num_bins)
        np.testing.assert_allclose(got, error, rtol=1e-12)
    weights = np.arange(500) % 3
    want = brier_score_loss(y, p, sample_weight=weights)
    np.testing.assert_allclose(jl.binary_brier_score(x, y, weights=weights), want, rtol=1e-12)


def test_sure_and_right_is_not_perfect() -> None:
    x = jnp.array([20.0, -20.0])
    missed = np.exp(-20.0) / (1 + np.exp(-20.0))
    np.testing.assert_allclose(jitted(x, jnp.array([1, 0])), [missed, missed**2], rtol=1e-6)
    np.testing.assert_array_equal(jitted(jnp.array([jnp.inf, -jnp.inf]), jnp.array([1, 0])), 0)
    np.testing.assert_array_equal(jitted(jnp.array([jnp.inf, -jnp.inf]), jnp.array([0, 1])), 1)


def test_half_of_the_brier_score_of_two_classes() -> None:
    x, y = some_rows(60)
    two = jl.brier_score(np.stack([np.zeros_like(x), x], axis=1), y)
    np.testing.assert_allclose(2 * jitted(x, y)[1], two, rtol=1e-6)


def test_labels_of_any_kind_and_shape() -> None:
    x, y = some_rows(60)
    want = jitted(x, y)
    for labels in (y > 0, y.astype(np.float32), y.astype(np.int8)):
        np.testing.assert_allclose(jitted(x, labels), want, rtol=1e-6)
    np.testing.assert_allclose(jitted(x.reshape(3, 20), y.reshape(3, 20)), want, rtol=1e-6)
    # A probability is so many of a row with yes and the rest with no.
    shares = np.linspace(0, 1, 60, dtype=np.float32)
    both = np.concatenate([x, x]), np.repeat([1, 0], 60)
    weights = np.concatenate([shares, 1 - shares])
    want = jl.binary_calibration_error(*both, weights=weights)
    np.testing.assert_allclose(jl.binary_calibration_error(x, shares), want, rtol=1e-5)


def test_masked_rows_never_leak() -> None:
    x, y = some_rows(60)
    keep = np.arange(60) % 4 > 0
    bad, labels = np.where(keep, x, np.nan), np.where(keep, y, 7)
    weights = np.where(keep, 1.0, -1.0).astype(np.float32)
    np.testing.assert_allclose(
        jitted(bad, labels, keep, weights), jitted(x[keep], y[keep]), rtol=1e-6
    )
    slopes = jax.grad(lambda x: all_of(x, labels, keep, weights).sum())(jnp.asarray(bad))
    assert (slopes[~keep] == 0).all()
    assert np.isfinite(slopes).all()


def test_bad_rows_of_weight_0_do_not_exist() -> None:
    x, y = some_rows(60)
    keep = np.arange(60) % 4 > 0
    bad, labels = np.where(keep, x, [np.nan, 0.0] * 30), np.where(keep, y, [0, 7] * 30)
    weights, every = keep.astype(np.float32), np.ones(60, bool)
    np.testing.assert_allclose(
        jitted(bad, labels, every, weights), jitted(x[keep], y[keep]), rtol=1e-6
    )
    slopes = jax.grad(lambda w: all_of(x, y, every, w).sum())(jnp.asarray(weights))
    assert (slopes[~keep] != 0).all()
    jl.checked(jl.binary_brier_score)(bad, labels, weights=weights)


def test_bad_values_and_no_rows_are_nan() -> None:
    x, y = (jnp.asarray(array) for array in some_rows(60))
    every, ones = np.ones(60, bool), np.ones(60, np.float32)
    bad = [
        (x, y.at[3].set(2), every, ones),
        (x, y.at[3].set(-1), every, ones),
        (x.at[3].set(jnp.nan), y, every, ones),
        (x, y, every, -ones),
        (x, y, ~every, ones),
    ]
    for x_, y_, where, weights in bad:
        assert np.isnan(jitted(x_, y_, where, weights)).all()
        curve = jl.binary_reliability_curve(x_, y_, where=where, weights=weights)
        assert np.isnan(curve.rate).all()
    # Unless the row has no weight.
    others = (np.arange(60) != 3).astype(np.float32)
    assert np.isfinite(jitted(x, y.at[3].set(2), every, others)).all()


def test_refused_and_checked() -> None:
    x, y = jnp.zeros([4]), jnp.zeros([4], jnp.int32)
    for fn in (*METRICS, jl.binary_reliability_curve):
        metric = functools.partial(jax.eval_shape, fn)  # traced only
        with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[4\]"):
            metric(y, y)
        with pytest.raises(ValueError, match=r"^labels must have the shape of logits, \[4\]"):
            metric(x, y[:3])
        with pytest.raises(ValueError, match=r"^weights must broadcast to \[4\]"):
            metric(x, y, weights=np.ones([3], np.float32))
    for fn in BINNED:
        with pytest.raises(ValueError, match=r"^num_bins must be a positive int, got 0"):
            fn(x, y, num_bins=0)
    score = jl.checked(jl.binary_brier_score)
    with pytest.raises(ValueError, match=r"^binary_brier_score: labels must be in \[0, 1\], got 2"):
        score(x, y + 2)
    with pytest.raises(ValueError, match=r"^binary_brier_score: logits must not be NaN"):
        score(x * jnp.nan, y)


# Transforms: two data sets of three rows, the last one masked.


def exact_metrics(x: Any, y: Any, where: Any, w: Any) -> Any:
    rows = [i for i in range(len(x)) if where[i]]
    p = {i: ro.sigmoid(x[i]) for i in rows}
    total = sum(w[i] for i in rows)
    # Two rows in bins of their own.
    error = sum(w[i] * abs(y[i] - p[i]) for i in rows)
    brier = sum(w[i] * (y[i] - p[i]) ** 2 for i in rows)
    probability, rate = (sum(w[i] * of[i] for i in rows) for of in (p, y))
    sums = [error, brier, probability, rate]
    return np.array([*(each / total for each in sums), total], dtype=object)


def metrics(x: Any, y: Any, where: Any, w: Any) -> jax.Array:
    options = {"where": where, "weights": w}
    curve = jl.binary_reliability_curve(x, y, num_bins=1, **options)
    return jnp.concatenate([all_of(x, y, **options), *curve[:3]])


def test_transforms() -> None:
    args = (
        np.array([[2.0, -0.5, 0.0], [-1.5, 0.25, 9.0]], np.float32),
        np.array([[1.0, 0.25, 0.0], [0.0, 0.75, 3.0]], np.float32),
        np.array([[True, True, False]] * 2),
        np.array([[1.0, 1.25, 1.0], [0.75, 0.5, 2.0]], np.float32),
    )
    case = tf.Case("all", metrics, exact_metrics, args)
    for results, want in zip(tf.few_of_each(tf.joined(case)), tf.exact(case), strict=True):
        # Five results, weighted by up to 2, of some 8 ulp each are added up.
        atol = 64 * 2**-23 * np.max(np.abs(want))
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)
