"""Sandwich estimators against statsmodels and mpmath."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import statsmodels.api as sm
import transforms as tf
from statsmodels.stats.sandwich_covariance import cov_white_simple

import jaxlogits as jl

Array = jax.Array
x64 = pytest.mark.usefixtures("x64")


fit_logistic = jax.jit(jl.fit_logistic)
robust_covariance = jax.jit(jl.robust_covariance, static_argnames="correction")


def errors_of(fit: jl.LogisticFit, covariance: Array) -> np.ndarray:
    return np.asarray(jl.standard_errors(fit._replace(covariance=covariance)))


@pytest.mark.newest
@x64
def test_statsmodels_logit() -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    groups = np.arange(32) ** 2 % 11 * 1000 - 5000  # any integers will do
    fit = fit_logistic(x, y)
    model = sm.Logit(y, x)
    plain = model.fit(disp=0, tol=1e-14)
    clustered = model.fit(disp=0, tol=1e-14, cov_type="cluster", cov_kwds={"groups": groups})
    for options, want in (
        ({"correction": False}, cov_white_simple(plain, use_correction=False)),
        ({}, cov_white_simple(plain, use_correction=True)),
        ({"clusters": groups}, clustered.cov_params()),
    ):
        got = errors_of(fit, robust_covariance(fit, x, y, **options))
        np.testing.assert_allclose(got, np.sqrt(np.diag(want)), rtol=1e-8)


@pytest.mark.newest
@x64
def test_statsmodels_mnlogit() -> None:
    data = sm.datasets.anes96.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), np.minimum(data.endog, 2).to_numpy(int)
    theirs = sm.MNLogit(y, x).fit(disp=0, tol=1e-14, cov_type="HC0")
    fit = jax.jit(jl.fit_multinomial, static_argnums=2)(x, y, 3)
    got = errors_of(fit, robust_covariance(fit, x, y, correction=False))
    np.testing.assert_allclose(got, theirs.bse, rtol=1e-8)


@x64
def test_weights_offset_and_trials_are_those_of_the_rows() -> None:
    # A row of weight 2 is a cluster of two; counts of trials are clusters of yes and no.
    rng = np.random.default_rng(0)
    x, offset = rng.normal(size=[6, 2]), rng.normal(size=6)
    trials, counts = np.full(6, 4), np.array([1, 3, 0, 2, 4, 1])
    rows = np.repeat(np.arange(6), 4)
    each = np.concatenate([np.arange(4) < k for k in counts])
    fit = fit_logistic(x, counts, trials=trials, offset=offset)
    want = robust_covariance(
        fit, x[rows], each, offset=offset[rows], clusters=rows, correction=False
    )
    for given in (
        {"labels": counts, "trials": trials},
        {"labels": counts / 4, "weights": trials},
    ):
        got = robust_covariance(fit, x, **given, offset=offset, correction=False)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def covariance_of(b: Array, root: Array, x: Array, y: Array, w: Array) -> Array:
    zero, no = jnp.zeros([]), jnp.zeros([], bool)
    fit = jl.LogisticFit(b, root @ root.T, zero, zero, no, jnp.zeros([], jnp.int32), no)
    return jl.robust_covariance(fit, x, y, weights=w, clusters=jnp.array([7, -1, 7]))


def exact_covariance(b: Any, root: Any, x: Any, y: Any, w: Any) -> Any:
    scores = (w * (ro.sigmoid(x @ b) - y))[:, None] * x
    sums = np.stack([scores[0] + scores[2], scores[1]])
    inner = sums.T @ sums
    bread = root @ root.T
    return bread @ inner @ bread * 4  # G / (G - 1) (N - 1) / (N - P) = 2 * 2


CASE = tf.Case(
    "robust_covariance",
    covariance_of,
    exact_covariance,
    (
        np.array([[0.5, -1.5]], np.float32),
        np.array([[[0.5, 0.0], [0.25, 0.75]]], np.float32),
        np.array([[[1.0, 0.5], [-1.0, 2.0], [0.5, 1.0]]], np.float32),
        np.array([[0.75, 0.25, 0.5]], np.float32),
        np.array([[1.0, 0.5, 2.0]], np.float32),
    ),
)


def test_transforms() -> None:
    for results, want in zip(tf.few_of_each(tf.joined(CASE)), tf.exact(CASE), strict=True):
        # Some 20 products are added up, one by one.
        atol = 20 * 2**-23 * np.abs(want).max()
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


def test_refuses() -> None:
    x, y = jnp.ones([3, 1]), jnp.array([0, 1, 1])
    fit = jax.eval_shape(functools.partial(jl.fit_multinomial, num_classes=2), x, y)
    fit = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), fit)
    with pytest.raises(ValueError, match="trials must be None for a fit of classes"):
        jl.robust_covariance(fit, x, y, trials=jnp.ones(3))
    with pytest.raises(TypeError, match="clusters must be integers"):
        jl.robust_covariance(fit, x, y, clusters=jnp.ones(3))
    with pytest.raises(ValueError, match="clusters must have one entry for each row"):
        jl.robust_covariance(fit, x, y, clusters=jnp.ones(2, int))
    with pytest.raises(TypeError, match="fit must be a LogisticFit"):
        jl.robust_covariance(fit.coefficients, x, y)
