"""The fits against scipy's, scikit-learn's and the implicit function theorem, written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms as tf
from scipy.optimize import brentq
from scipy.special import expit, softmax
from sklearn.calibration import _SigmoidCalibration

import jaxlogits as jl

N, K = 60, 3
fit_temperature = jax.jit(jl.fit_temperature)
fit_vector_scaling = jax.jit(jl.fit_vector_scaling)
fit_platt = jax.jit(jl.fit_platt)


def some_rows(n: int = N, dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overconfident logits, labels drawn at the temperature 2, and weights."""
    rng = np.random.default_rng(n)
    z = 3 * rng.standard_normal((n, K)) + 5
    labels = (softmax(z / 2, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    weights = rng.uniform(0.5, 1.5, n)
    return z.astype(dtype), labels.astype(np.int32), weights.astype(dtype)


def slope(inverse: float, z: np.ndarray, labels: np.ndarray, w: np.ndarray) -> float:
    """Of the loss in 1 / T."""
    of_label = np.take_along_axis(z, labels[:, None], axis=1)
    return float(w @ (softmax(inverse * z, axis=1) * (z - of_label)).sum(axis=1))


def temperature(*rows: np.ndarray) -> float:
    return 1 / brentq(slope, 1e-3, 1e3, args=rows, xtol=1e-300, rtol=1e-15)


# The minima.


@pytest.mark.usefixtures("x64")
def test_temperature() -> None:
    rows = some_rows()
    fit = fit_temperature(*rows[:2], weights=rows[2])
    assert isinstance(fit, jl.TemperatureFit)
    assert fit.converged
    np.testing.assert_allclose(fit.temperature, temperature(*rows), rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_vector_scaling() -> None:
    z, labels, w = some_rows()
    for l2 in (0.0, 0.5):
        fit = fit_vector_scaling(z, labels, weights=w, l2=l2)
        assert isinstance(fit, jl.VectorScalingFit)
        assert fit.converged
        scale, bias = np.asarray(fit.scale), np.asarray(fit.bias)
        residual = w[:, None] * (softmax(z * scale + bias, axis=1) - np.eye(K)[labels])
        # Where the slope is 0, which is the minimum of a convex function; a standard error of a
        # coefficient here is 0.1 or more, at which slopes are 10 or less: 1e-10 of that.
        by_scale = (residual * z).sum(axis=0) + l2 * (scale - 1)
        np.testing.assert_allclose(by_scale, 0, atol=1e-9)
        np.testing.assert_allclose(residual.sum(axis=0) + l2 * bias, 0, atol=1e-9)
        np.testing.assert_allclose(bias.sum(), 0, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_platt() -> None:
    z, labels, w = some_rows()
    scores, yes = z[:, 0], labels == 0
    fit = fit_platt(scores, yes, weights=w)
    assert isinstance(fit, jl.PlattFit)
    assert fit.converged
    targets = np.where(yes, (w[yes].sum() + 1) / (w[yes].sum() + 2), 1 / (w[~yes].sum() + 2))
    residual = w * (expit(fit.slope * scores + fit.intercept) - targets)
    np.testing.assert_allclose([residual.sum(), residual @ scores], 0, atol=1e-9)
    theirs = _SigmoidCalibration().fit(scores, yes.astype(float), w)
    # sklearn stops at a slope of 1e-6.
    np.testing.assert_allclose([fit.slope, fit.intercept], [-theirs.a_, -theirs.b_], rtol=1e-4)


@pytest.mark.newest
def test_float32() -> None:
    z, labels, w = some_rows(dtype=np.float32)

    def numbers() -> np.ndarray:
        vector = fit_vector_scaling(z, labels, weights=w, l2=0.0)
        platt = fit_platt(z[:, 0], labels == 0, weights=w)
        return np.concatenate([*vector[:2], np.stack(platt[:2])])

    got = numbers()
    z, w = z.astype(float), w.astype(float)
    with jax.enable_x64(True):
        want = numbers()
    # 1e-4 of a standard error, which is 0.1 and more.
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.newest
def test_float32_of_many_rows() -> None:
    z, labels, w = some_rows(50_000, np.float32)
    fit = fit_temperature(z, labels, weights=w)
    assert fit.converged
    exact = temperature(z.astype(float), labels, w.astype(float))
    np.testing.assert_allclose(fit.temperature, exact, rtol=1e-5)
    vector = fit_vector_scaling(z, labels, weights=w)
    assert vector.converged
    # The labels' temperature is 2, and standard errors are 1 / sqrt(50_000) and some.
    np.testing.assert_allclose(vector.scale, 0.5, atol=0.03)
    np.testing.assert_allclose(vector.bias, 0.0, atol=0.1)


# Where there is no minimum.


@pytest.mark.newest
def test_perfect_rows_have_no_temperature() -> None:
    z, _, w = some_rows(dtype=np.float32)
    labels = z.argmax(axis=1).astype(np.int32)
    fit = fit_temperature(z, labels, weights=w)
    assert not fit.converged
    assert 0 < fit.temperature < 1
    assert np.mean(jl.softmax_cross_entropy_with_integer_labels(z / fit.temperature, labels)) < 1e-5
    gradient = jax.jit(jax.grad(lambda z: jl.fit_temperature(z, labels).temperature))(z)
    np.testing.assert_array_equal(gradient, 0)
    vector = fit_vector_scaling(z, labels, weights=w)
    assert not vector.converged
    assert np.isfinite(vector.scale).all()


def test_logits_that_say_nothing_have_an_infinite_temperature() -> None:
    z, _, w = some_rows(dtype=np.float32)
    for z_, labels in ((z, z.argmin(axis=1).astype(np.int32)), (0 * z, np.zeros(N, np.int32))):
        fit = fit_temperature(z_, labels, weights=w)
        assert fit.temperature == np.inf
        assert not fit.converged
        np.testing.assert_allclose(jl.softmax(z_ / fit.temperature), 1 / K)


def test_vector_scaling_of_a_class_without_labels() -> None:
    z, labels, w = some_rows(dtype=np.float32)
    labels = np.minimum(labels, K - 2)
    fit = fit_vector_scaling(z, labels, weights=w, l2=0.0)
    assert not fit.converged
    assert np.isfinite(fit.scale).all()
    assert fit_vector_scaling(z, labels, weights=w, l2=0.1).converged


def test_platt_needs_no_mistakes() -> None:
    scores = np.linspace(-1, 1, N).astype(np.float32)
    fit = fit_platt(scores, scores > 0)
    assert fit.converged
    assert 0 < fit.slope < 100
    np.testing.assert_allclose(fit.intercept, 0, atol=1e-4)  # by symmetry
    one_class = fit_platt(scores, scores > -2)
    assert one_class.converged
    np.testing.assert_allclose(one_class.slope, 0, atol=1e-5)
    # The intercept's error is 1e-4 of its standard error, about 1.
    np.testing.assert_allclose(one_class.intercept, np.log(N + 1), atol=1e-4)


# What is masked, bad or absent.


def test_masked_rows_and_those_of_weight_0_count_nothing() -> None:
    z, labels, w = some_rows(dtype=np.float32)
    where = np.arange(N) % 3 > 0
    bad_z, bad_labels, bad_w = z.copy(), labels.copy(), w.copy()
    bad_z[~where], bad_labels[~where], bad_w[~where] = np.nan, 99, np.nan
    for fit, x, y in (
        (fit_temperature, bad_z, bad_labels),
        (fit_vector_scaling, bad_z, bad_labels),
    ):
        masked = fit(x, y, where=where, weights=bad_w)
        assert masked.converged
        left_out = fit(np.where(where[:, None], z, 0), labels, weights=w * where)
        np.testing.assert_allclose(masked[0], left_out[0], rtol=1e-6)
        unread = fit(x, y, weights=np.where(where, w, 0))
        np.testing.assert_allclose(unread[0], left_out[0], rtol=1e-6)
    yes = np.where(where, labels == 0, -1.0).astype(np.float32)
    masked = fit_platt(bad_z[:, 0], yes, where=where, weights=bad_w)
    left_out = fit_platt(np.where(where, z[:, 0], 0), labels == 0, weights=w * where)
    np.testing.assert_allclose(masked[:2], left_out[:2], rtol=1e-5)
    unread = fit_platt(bad_z[:, 0], yes, weights=np.where(where, w, 0))
    np.testing.assert_allclose(unread[:2], left_out[:2], rtol=1e-5)

    def of(z: Any, w: Any) -> jax.Array:
        return jl.fit_temperature(z, bad_labels, where=where, weights=w).temperature

    for slopes in jax.jit(jax.grad(of, (0, 1)))(bad_z, bad_w):
        assert np.isfinite(slopes).all()
        assert (slopes[~where] == 0).all()


def test_bad_values_and_no_rows_are_nan() -> None:
    z, labels, w = (jnp.asarray(array) for array in some_rows(dtype=np.float32))
    impossible = z.at[3, labels[3]].set(-jnp.inf)
    bad = [
        (z, labels.at[3].set(K), w),
        (z.at[3, 0].set(jnp.nan), labels, w),
        (z.at[3, 0].set(jnp.inf), labels, w),
        (impossible, labels, w),
        (z, labels, w.at[3].set(-1)),
        (z, labels, 0 * w),
    ]
    for z_, labels_, w_ in bad:
        for fit in (fit_temperature, fit_vector_scaling):
            result = fit(z_, labels_, weights=w_)
            assert np.isnan(result[0]).all()
            assert not result.converged
    for s, y, w_ in (
        (z[:, 0].at[3].set(jnp.nan), labels == 0, w),
        (z[:, 0], labels == 0, w.at[3].set(-1)),
        (0 * z[:, 0] + 7, labels == 0, w),
    ):
        platt = fit_platt(s, y, weights=w_)
        assert np.isnan(platt.slope)
        assert np.isnan(platt.intercept)
        assert not platt.converged
    assert np.isnan(fit_platt(z[:, 0], labels, weights=w).slope)  # there is a 2
    assert np.isnan(fit_temperature(z[:0], labels[:0]).temperature)
    # The pull alone is left.
    none = fit_vector_scaling(z, labels, weights=0 * w, l2=0.1)
    np.testing.assert_allclose(jnp.stack(none[:2]), [[1] * K, [0] * K], atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_impossible_classes_stay_out() -> None:
    z, labels, w = some_rows()
    without = (labels + 1) % K
    possible = np.arange(K) != without[:, None]
    blocked = np.where(possible, z, -np.inf)
    fit = fit_temperature(blocked, labels, weights=w)
    pairs = z[possible].reshape(N, 2)
    place = (possible.cumsum(axis=1) - 1)[np.arange(N), labels]
    np.testing.assert_allclose(fit.temperature, temperature(pairs, place, w), rtol=1e-11)
    assert fit_vector_scaling(blocked, labels, weights=w).converged


@pytest.mark.parametrize("mask", [-1e6, -1e8, -1e9, float(np.finfo(np.float32).min)])
def test_masks_that_are_numbers(mask: float) -> None:
    """In one row, and in all of them."""
    z, labels, w = some_rows(dtype=np.float32)
    other = (labels + 1) % K
    for rows in (np.arange(3, 4), np.arange(N)):
        blocked, masked = z.copy(), z.copy()
        blocked[rows, other[rows]], masked[rows, other[rows]] = -np.inf, mask
        for fit in (fit_temperature, fit_vector_scaling):
            got, want = fit(masked, labels, weights=w), fit(blocked, labels, weights=w)
            assert want.converged
            assert got.converged
            np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-4)


def test_the_least_number_of_float16_is_a_mask() -> None:
    z, labels, _ = some_rows(dtype=np.float16)
    other = (labels + 1) % K
    masked, blocked = z.copy(), z.copy()
    masked[np.arange(N), other] = np.finfo(np.float16).min
    blocked[np.arange(N), other] = -np.inf
    got, want = fit_temperature(masked, labels), fit_temperature(blocked, labels)
    np.testing.assert_array_equal(got.temperature, want.temperature)


def test_saturated_logits_and_scores_far_from_0() -> None:
    z, labels, w = some_rows(dtype=np.float32)
    for fit in (fit_temperature, fit_vector_scaling):
        got, want = fit(1000 * z, labels, weights=w), fit(z, labels, weights=w)
        assert got.converged
        ratio = got[0] / want[0]
        np.testing.assert_allclose(ratio, 1000 if fit is fit_temperature else 1e-3, rtol=1e-3)
    far, near = (fit_platt(z[:, 0] + shift, labels == 0) for shift in (2048.0, 0.0))
    assert far.converged
    # z + 2048 is rounded by 2^-13.
    np.testing.assert_allclose(far.slope, near.slope, rtol=1e-3)


def test_vector_scaling_of_rows_that_can_nearly_be_told_apart() -> None:
    """A slight pull has its minimum far out, where the gradient is 0 after some 200 steps."""
    rng = np.random.default_rng(193)
    z = 8 * rng.normal(size=(40, 5))
    labels = (z + 1.5 * rng.normal(size=z.shape)).argmax(axis=1).astype(np.int32)
    weight, l2 = 1e6, 0.1
    with jax.enable_x64(True):
        fit = fit_vector_scaling(z, labels, weights=np.full(40, weight), l2=l2)
    assert fit.converged
    scale, bias = map(np.asarray, fit[:2])
    wrong = weight * (softmax(z * scale + bias, axis=1) - np.eye(5)[labels])
    np.testing.assert_allclose(np.sum(wrong * z, axis=0) + l2 * (scale - 1), 0, atol=1e-5)
    np.testing.assert_allclose(np.sum(wrong, axis=0) + l2 * bias, 0, atol=1e-5)


def test_vector_scaling_exports_with_any_number_of_rows_and_classes() -> None:
    rows, classes = jax.export.symbolic_shape("n, k")
    types = (
        jax.ShapeDtypeStruct((rows, classes), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    exported = jax.export.export(jax.jit(lambda *args: jl.fit_vector_scaling(*args, l2=1.0)))(
        *types
    )
    z, labels, _ = some_rows(40, np.float32)
    for got, want in zip(
        exported.call(z, labels), jl.fit_vector_scaling(z, labels, l2=1.0), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_refused() -> None:
    z, labels = jnp.zeros([4, 3]), jnp.zeros([4], jnp.int32)
    for fit in (jl.fit_temperature, jl.fit_vector_scaling):
        with pytest.raises(TypeError, match=r"^logits must be floating point"):
            fit(labels, labels)
        with pytest.raises(ValueError, match=r"^labels must have the shape of logits without axis"):
            fit(z, labels[:3])
    with pytest.raises(ValueError, match=r"^l2 must be at least 0"):
        jl.fit_vector_scaling(z, labels, l2=-1.0)
    with pytest.raises(TypeError, match=r"^scores must be floating point"):
        jl.fit_platt(labels, labels)
    with pytest.raises(ValueError, match=r"^labels must have the shape of scores, \[4\]"):
        jl.fit_platt(z[:, 0], labels[:3])


# Transforms.


def test_transforms_of_the_temperature() -> None:
    """Against the implicit function theorem, written out."""
    both = [some_rows(N, np.float32), some_rows(N + 1, np.float32)]
    z, labels, w = (np.stack([rows[i][:N] for rows in both]) for i in range(3))

    def fit(z: Any, labels: Any, w: Any) -> jax.Array:
        return jl.fit_temperature(z, labels, weights=w).temperature

    f = tf.joined(tf.Case("fit_temperature", fit, fit, (z, labels, w)))
    want, by_z, by_w = [], [], []
    for one_z, y, one_w in zip(z.astype(float), labels, w.astype(float), strict=True):
        t = temperature(one_z, y, one_w)
        p, hit = softmax(one_z / t, axis=1), np.eye(K)[y]
        mean = (p * one_z).sum(axis=1, keepdims=True)
        curvature = one_w @ (p * np.square(one_z - mean)).sum(axis=1)
        moved = one_w[:, None] * (p - hit + p * (one_z - mean) / t)
        want.append(t)
        by_z.append(t**2 / curvature * moved)
        by_w.append(t**2 / curvature * ((p - hit) * one_z).sum(axis=1))
    gradient = np.concatenate([np.ravel(by_z), np.ravel(by_w)])

    @jax.jit
    def results(x: jax.Array) -> tuple[jax.Array, ...]:
        g = f._replace(point=x)
        direction = jnp.cos(jnp.arange(len(x), dtype=x.dtype))
        slope = jax.jvp(g.number, [x], [direction])[1]
        return g.value(x), jax.grad(jax.checkpoint(g.number))(x), slope, direction

    values, got, along, direction = results(f.point)
    np.testing.assert_allclose(values, want, rtol=1e-5)
    # Sums of 60 terms, and 1e-5 for where the minimum is.
    atol = 1e-4 * np.abs(gradient).max()
    np.testing.assert_allclose(got, gradient, rtol=0, atol=atol)
    np.testing.assert_allclose(along, gradient @ direction, rtol=0, atol=10 * atol)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("unit", [1e-300, 1e-60, 1e100, 1e300])
def test_any_unit_of_the_weights(unit: float) -> None:
    z, labels, weights = some_rows()
    for fit in (fit_temperature, fit_vector_scaling):
        usual, scaled = (fit(z, labels, weights=weights * w) for w in (1.0, unit))
        assert scaled.converged
        np.testing.assert_allclose(scaled[0], usual[0], rtol=1e-11)


def test_platt_of_scores_that_tell_millions_apart() -> None:
    """Targets of 1 - 2e-8 are 1 in float32, and yet there is a minimum."""
    scores, labels = jnp.linspace(-2.0, 2.0, 8), jnp.arange(8) >= 4
    fit = fit_platt(scores, labels.astype(jnp.int32), weights=jnp.full(8, 1e7))
    assert fit.converged
    with jax.enable_x64(True):
        wide = jl.fit_platt(np.float64(scores), labels.astype(jnp.int32), weights=np.full(8, 1e7))
    np.testing.assert_allclose(fit[:2], wide[:2], rtol=1e-5, atol=1e-4)
