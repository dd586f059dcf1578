"""Predictions against statsmodels and mpmath."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import statsmodels.api as sm
import transforms as tf
from cases import fit_of

import jaxlogits as jl

Array = jax.Array


def predictions(b: Array, x: Array) -> Array:
    fit = fit_of(b, jnp.eye(2, dtype=b.dtype))
    return jnp.concatenate([jl.predict_log_odds(fit, x), jl.predict_probs(fit, x)])


def exact_predictions(b: Any, x: Any) -> Any:
    return np.concatenate([x @ b, ro.sigmoid(x @ b)])


CASE = tf.Case(
    "predict_probs",
    predictions,
    exact_predictions,
    (
        np.array([[0.5, -1.5]], np.float32),
        np.array([[[1.0, 0.5], [-1.0, 2.0]]], np.float32),
    ),
)


def test_transforms() -> None:
    for results, want in zip(tf.few_of_each(tf.joined(CASE)), tf.exact(CASE), strict=True):
        # A number is a sum of a handful of products.
        atol = 16 * 2**-23 * np.abs(want).max()
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_statsmodels() -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    theirs = sm.Logit(y, x).fit(disp=0, tol=1e-14)
    fit, log_odds = fit_of(theirs.params, theirs.cov_params()), theirs.fittedvalues
    np.testing.assert_allclose(jl.predict_log_odds(fit, x), log_odds, rtol=1e-12)
    np.testing.assert_allclose(jl.predict_log_odds(fit, x, offset=y), log_odds + y, rtol=1e-12)
    np.testing.assert_allclose(jl.predict_probs(fit, x), theirs.predict(x), rtol=1e-12)


def test_classes() -> None:
    kernel = np.array([[0.5, -1.0, 0.0], [0.25, 2.0, 1.0]], np.float32)
    fit = fit_of(kernel, np.eye(6, dtype=np.float32).reshape(2, 3, 2, 3))
    x = np.array([[[1.0, 2.0]], [[0.0, -1.0]]], np.float32)
    np.testing.assert_allclose(jl.predict_log_odds(fit, x), x @ kernel, rtol=2**-22)
    logits = np.concatenate([np.zeros([2, 1, 1], np.float32), x @ kernel], axis=-1)
    np.testing.assert_allclose(jl.predict_probs(fit, x), jax.nn.softmax(logits), rtol=2**-21)


def test_refuses() -> None:
    fit = fit_of(np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="features must have as many columns as the fit has"):
        jl.predict_log_odds(fit, jnp.ones([3, 3]))
    with pytest.raises(ValueError, match="offset must have the shape of the log-odds"):
        jl.predict_probs(fit, jnp.ones([3, 2]), offset=jnp.ones([3, 1]))
