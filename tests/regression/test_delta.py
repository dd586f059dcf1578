"""The delta method against statsmodels and mpmath."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import scipy.stats
import statsmodels.api as sm
import transforms as tf
from cases import fit_of

import jaxlogits as jl

Array = jax.Array


def ratio(b: Array, root: Array, x: Array) -> Array:
    """The ratio of two probabilities."""

    def of(fit: jl.LogisticFit) -> Array:
        p = jl.predict_probs(fit, x)
        return p[0] / p[1]

    covariance = jnp.matmul(root, root.T, precision="highest")
    return jnp.stack(jl.delta_method(of, fit_of(b, covariance)))


def exact_ratio(b: np.ndarray, root: np.ndarray, x: np.ndarray) -> np.ndarray:
    p = ro.sigmoid(x @ b)
    slope = (x[0] * (1 - p[0]) - x[1] * (1 - p[1])) * (p[0] / p[1])
    moved = slope @ root
    return np.array([p[0] / p[1], (moved @ moved) ** ro.mp.mpf(0.5)])


CASE = tf.Case(
    "delta_method",
    ratio,
    exact_ratio,
    (
        np.array([[0.5, -1.5]], np.float32),
        np.array([[[0.5, 0.0], [0.25, 0.75]]], np.float32),
        np.array([[[1.0, 0.5], [1.0, 1.0]]], np.float32),
    ),
)


def test_transforms() -> None:
    for results, want in zip(tf.few_of_each(tf.joined(CASE)), tf.exact(CASE), strict=True):
        # A number is a sum of some 20 products.
        atol = 32 * 2**-23 * np.abs(want).max()
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_statsmodels() -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    theirs = sm.Logit(y, x).fit(disp=0, tol=1e-14)
    fit = jl.fit_logistic(x, y)

    def average_marginal_effects(fit: jl.LogisticFit) -> Array:
        p = jl.predict_probs(fit, x)
        return jnp.mean(p * (1 - p)) * fit.coefficients[1:]

    effects, margins = jl.delta_method(average_marginal_effects, fit), theirs.get_margeff()
    np.testing.assert_allclose(effects.value, margins.margeff, rtol=1e-8)
    np.testing.assert_allclose(effects.standard_error, margins.margeff_se, rtol=1e-8)

    predicted = sm.GLM(y, x, sm.families.Binomial()).fit(tol=1e-14).get_prediction(x[:5])
    log_odds = jl.delta_method(lambda fit: jl.predict_log_odds(fit, x[:5]), fit)
    reach = scipy.stats.norm.isf(0.025) * log_odds.standard_error
    ends = jl.sigmoid(jnp.stack([log_odds.value - reach, log_odds.value + reach], axis=1))
    np.testing.assert_allclose(ends, predicted.conf_int(), rtol=1e-8)


def test_classes() -> None:
    """Of all coefficients, in the order of the covariance."""
    kernel = np.array([[0.5, -1.0, 0.0], [0.25, 2.0, 1.0]], np.float32)
    errors = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    fit = fit_of(kernel, np.diag(errors.ravel() ** 2).reshape(2, 3, 2, 3))
    got = jl.delta_method(lambda fit: 2 * fit.coefficients.T, fit)
    np.testing.assert_array_equal(got.value, 2 * kernel.T)
    np.testing.assert_array_equal(got.standard_error, 2 * errors.T)
    estimate: jl.Estimate = jl.delta_method(lambda fit: jnp.sum(fit.coefficients), fit)
    np.testing.assert_allclose(estimate.standard_error, np.sqrt(91), rtol=1e-6)


def test_refuses() -> None:
    fit = fit_of(np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(TypeError, match=r"fit must be a LogisticFit, got float32\[2\]"):
        jl.delta_method(lambda fit: fit.coefficients, jnp.ones(2))
    with pytest.raises(TypeError, match="the result of fn must be floating point, got int32"):
        jl.delta_method(lambda _: jnp.int32(1), fit)
