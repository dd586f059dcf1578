"""What follows from a fit, against statsmodels and mpmath."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import statsmodels.api as sm
import transforms as tf

import jaxlogits as jl

Array = jax.Array


def fit_of(coefficients: Any, covariance: Any) -> jl.LogisticFit:
    """A fit that was not computed."""
    zero, no = jnp.zeros([]), jnp.zeros([], bool)
    fields = (zero, zero, no, jnp.zeros([], jnp.int32), no)
    return jl.LogisticFit(jnp.asarray(coefficients), jnp.asarray(covariance), *fields)


def everything(b: Array, root: Array, x: Array, level: Array) -> Array:
    fit = fit_of(b, root @ root.T)
    results = [
        jl.standard_errors(fit),
        jl.z_values(fit),
        jl.p_values(fit),
        jl.confidence_intervals(fit, level=level),
        jl.odds_ratios(fit),
        jl.predict_log_odds(fit, x),
        jl.predict_probs(fit, x),
    ]
    return jnp.concatenate([jnp.ravel(result) for result in results])


def exact_everything(b: Any, root: Any, x: Any, level: Any) -> Any:
    errors = (np.sum(root * root, axis=1)) ** ro.mp.mpf(0.5)
    z = b / errors
    p = [ro.mp.erfc(abs(zi) / ro.mp.sqrt(2)) for zi in z]
    reach = ro.mp.sqrt(2) * ro.mp.erfinv(level) * errors
    intervals = np.stack([b - reach, b + reach], axis=1)
    results = [errors, z, p, intervals, ro.exp(b), x @ b, ro.sigmoid(x @ b)]
    return np.concatenate([np.ravel(result) for result in results])


CASE = tf.Case(
    "standard_errors",
    everything,
    exact_everything,
    (
        np.array([[0.5, -1.5]], np.float32),
        np.array([[[0.5, 0.0], [0.25, 0.75]]], np.float32),
        np.array([[[1.0, 0.5], [-1.0, 2.0]]], np.float32),
        np.array([0.875], np.float32),
    ),
)


def test_transforms() -> None:
    for results, want in zip(tf.few_of_each(tf.joined(CASE)), tf.exact(CASE), strict=True):
        # A number is a sum of a handful of products; ndtri and erfc are right to some 20 ulp.
        atol = 32 * 2**-23 * np.abs(want).max()
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_statsmodels() -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    theirs = sm.Logit(y, x).fit(disp=0, tol=1e-14)
    fit = fit_of(theirs.params, theirs.cov_params())
    got = jax.jit(everything)(theirs.params, np.linalg.cholesky(theirs.cov_params()), x, 0.5)
    log_odds, half = theirs.fittedvalues, theirs.conf_int(alpha=0.5)
    errors = [theirs.bse, theirs.tvalues, theirs.pvalues, half.ravel(), np.exp(theirs.params)]
    want = np.concatenate([*errors, log_odds, 1 / (1 + np.exp(-log_odds))])
    np.testing.assert_allclose(got, want, rtol=1e-10)
    np.testing.assert_allclose(jl.confidence_intervals(fit), theirs.conf_int(), rtol=1e-12)
    moved = jl.predict_log_odds(fit, x, offset=y)
    np.testing.assert_allclose(moved, log_odds + y, rtol=1e-12)


def test_classes() -> None:
    kernel = np.array([[0.5, -1.0, 0.0], [0.25, 2.0, 1.0]], np.float32)
    errors = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    fit = fit_of(kernel, np.diag(errors.ravel() ** 2).reshape(2, 3, 2, 3))
    np.testing.assert_array_equal(jl.standard_errors(fit), errors)
    np.testing.assert_array_equal(jl.z_values(fit), kernel / errors)
    assert jax.eval_shape(jl.confidence_intervals, fit).shape == (2, 3, 2)
    x = np.array([[[1.0, 2.0]], [[0.0, -1.0]]], np.float32)
    np.testing.assert_allclose(jl.predict_log_odds(fit, x), x @ kernel, rtol=2**-22)
    logits = np.concatenate([np.zeros([2, 1, 1], np.float32), x @ kernel], axis=-1)
    np.testing.assert_allclose(jl.predict_probs(fit, x), jax.nn.softmax(logits), rtol=2**-21)


def test_far_tails_keep_their_digits() -> None:
    fit = fit_of(np.array([12.0], np.float32), np.ones([1, 1], np.float32))
    # 2 mpmath.ncdf(-12)
    np.testing.assert_allclose(jl.p_values(fit), [3.552964224155360e-33], rtol=1e-5)


def test_refuses() -> None:
    fit = fit_of(np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(TypeError, match=r"fit must be a LogisticFit, got float32\[2\]"):
        jl.odds_ratios(jnp.ones(2))
    with pytest.raises(ValueError, match="level must be at least 0 and below 1, got 1"):
        jl.confidence_intervals(fit, level=1.0)
    with pytest.raises(ValueError, match="features must have as many columns as the fit has"):
        jl.predict_log_odds(fit, jnp.ones([3, 3]))
    with pytest.raises(ValueError, match="offset must have the shape of the log-odds"):
        jl.predict_probs(fit, jnp.ones([3, 2]), offset=jnp.ones([3, 1]))
