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
from cases import fit_of
from statsmodels.stats.sandwich_covariance import cov_white_simple

import jaxlogits as jl

Array = jax.Array
x64 = pytest.mark.usefixtures("x64")


fit_logistic = jax.jit(jl.fit_logistic)
robust_covariance = jax.jit(jl.robust_covariance, static_argnames=("weight_kind", "kind"))


def errors_of(fit: jl.LogisticFit, covariance: Array) -> np.ndarray:
    return np.asarray(jl.summarize(fit._replace(covariance=covariance)).standard_errors)


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
        ({"kind": "HC0"}, cov_white_simple(plain, use_correction=False)),
        ({}, cov_white_simple(plain, use_correction=True)),
        ({"clusters": groups}, clustered.cov_params()),
    ):
        got = errors_of(fit, robust_covariance(fit, x, y, **options))
        np.testing.assert_allclose(got, np.sqrt(np.diag(want)), rtol=1e-8)


@pytest.mark.newest
@x64
@pytest.mark.parametrize("weight_kind", ["frequency", "sampling"])
def test_leverages_are_those_of_statsmodels(weight_kind: str) -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    weights = np.arange(32) % 3 + 1
    theirs = sm.GLM(y, x, sm.families.Binomial(), freq_weights=weights).fit(tol=1e-14)
    # Of a row with all its repetitions.
    leverages = theirs.get_influence().hat_matrix_diag
    own = leverages / weights if weight_kind == "frequency" else leverages
    squares = (weights if weight_kind == "frequency" else weights**2) * (y - theirs.mu) ** 2
    fit = fit_logistic(x, y, weights=weights)
    for kind, power in (("HC2", 1), ("HC3", 2)):
        meat = (x.T * (squares / (1 - own) ** power)) @ x
        want = theirs.cov_params() @ meat @ theirs.cov_params()
        got = robust_covariance(fit, x, y, weights=weights, kind=kind, weight_kind=weight_kind)
        np.testing.assert_allclose(got, want, rtol=1e-8)


@x64
def test_hc3_is_nearly_the_jackknife() -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    without = jax.vmap(lambda w: jl.fit_logistic(x, y, weights=w))(1 - np.eye(32))
    fit = fit_logistic(x, y)
    jackknife = np.sqrt(
        np.sum((np.asarray(without.coefficients) - np.asarray(fit.coefficients)) ** 2, axis=0)
    )
    errors = {
        kind: errors_of(fit, robust_covariance(fit, x, y, kind=kind)) for kind in ("HC0", "HC3")
    }
    # One step of Newton's method from the fit of all rows, instead of many, which go farther.
    assert np.all(errors["HC3"] < jackknife)
    assert np.all(abs(errors["HC3"] / jackknife - 1) < abs(errors["HC0"] / jackknife - 1))


@pytest.mark.newest
@x64
def test_statsmodels_mnlogit() -> None:
    data = sm.datasets.anes96.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), np.minimum(data.endog, 2).to_numpy(int)
    theirs = sm.MNLogit(y, x).fit(disp=0, tol=1e-14, cov_type="HC0")
    fit = jax.jit(jl.fit_multinomial, static_argnums=2)(x, y, 3)
    got = errors_of(fit, robust_covariance(fit, x, y, kind="HC0"))
    np.testing.assert_allclose(got, theirs.bse, rtol=1e-8)


@x64
def test_weights_offset_and_trials_are_those_of_the_rows() -> None:
    # A sampling weight of 2 is a cluster of two; counts of trials are clusters of yes and no.
    rng = np.random.default_rng(0)
    x, offset = rng.normal(size=[6, 2]), rng.normal(size=6)
    trials, counts = np.full(6, 4), np.array([1, 3, 0, 2, 4, 1])
    rows = np.repeat(np.arange(6), 4)
    each = np.concatenate([np.arange(4) < k for k in counts])
    fit = fit_logistic(x, counts, trials=trials, offset=offset)
    want = robust_covariance(fit, x[rows], each, offset=offset[rows], clusters=rows, kind="HC0")
    for given in (
        {"labels": counts, "trials": trials},
        {"labels": counts / 4, "weights": trials, "weight_kind": "sampling"},
    ):
        got = robust_covariance(fit, x, **given, offset=offset, kind="HC0")
        np.testing.assert_allclose(got, want, rtol=1e-12)


WEIGHTS = np.array([2, 0, 1, 3, 1, 1, 2])
ROWS = np.repeat(np.arange(7), WEIGHTS)
CLUSTERS = np.array([3, 7, 3, 1, 1, 7, 7])


@pytest.fixture(scope="module")
def seven() -> tuple[jl.LogisticFit, np.ndarray, np.ndarray]:
    """A weighted fit of seven rows, of which the second says nothing that makes sense."""
    x = np.random.default_rng(0).normal(size=[7, 2]).astype(np.float32)
    x[1], y = np.nan, np.array([1, -5, 0, 1, 0, 1, 0], np.float32)
    return fit_logistic(x, y, weights=WEIGHTS), x, y


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("kind", ["HC0", "HC1", "HC2", "HC3"])
def test_a_frequency_weight_is_so_many_rows(seven: Any, kind: str, clustered: bool) -> None:
    fit, x, y = seven
    if clustered and kind > "HC1":
        return
    options = {"clusters": CLUSTERS} if clustered else {}
    got = jl.robust_covariance(fit, x, y, weights=WEIGHTS, kind=kind, **options)
    options = {name: ids[ROWS] for name, ids in options.items()}
    want = jl.robust_covariance(fit, x[ROWS], y[ROWS], kind=kind, **options)
    # Sums of ten products.
    np.testing.assert_allclose(got, want, rtol=20 * 2**-23)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("weight_kind", ["frequency", "sampling"])
def test_rows_of_weight_0_do_not_exist(seven: Any, weight_kind: str, clustered: bool) -> None:
    fit, x, y = seven
    there = WEIGHTS > 0
    options: dict[str, Any] = {"weight_kind": weight_kind}
    both = {"clusters": CLUSTERS} if clustered else {}
    got = jl.robust_covariance(fit, x, y, weights=WEIGHTS, **options, **both)
    both = {name: ids[there] for name, ids in both.items()}
    rows = (fit, x[there], y[there])
    want = jl.robust_covariance(*rows, weights=WEIGHTS[there], **options, **both)
    np.testing.assert_allclose(got, want, rtol=20 * 2**-23)


def test_as_many_rows_as_coefficients_or_a_single_cluster_are_nan(seven: Any) -> None:
    fit, x, y = seven
    assert jnp.isnan(jl.robust_covariance(fit, x[2:4], y[2:4])).all()
    assert jnp.isfinite(jl.robust_covariance(fit, x[2:4], y[2:4], kind="HC0")).all()
    one = np.full(5, 4)
    assert jnp.isnan(jl.robust_covariance(fit, x[2:], y[2:], clusters=one)).all()
    assert jnp.isfinite(jl.robust_covariance(fit, x[2:], y[2:], clusters=one, kind="HC0")).all()
    assert jnp.isnan(jl.robust_covariance(fit, x[:0], y[:0])).all()


def test_names_of_clusters_may_be_hashes(seven: Any) -> None:
    fit, x, y = seven
    hashes = np.array([2**40, 2**40 + 1, 2**40, 2**33, 2**33, 2**40 + 1, 2**40 + 1])
    got = jl.robust_covariance(fit, x, y, weights=WEIGHTS, clusters=hashes)
    want = jl.robust_covariance(fit, x, y, weights=WEIGHTS, clusters=CLUSTERS)
    np.testing.assert_allclose(got, want, rtol=20 * 2**-23)


def covariance_of(b: Array, root: Array, x: Array, y: Array, w: Array) -> Array:
    fit = fit_of(b, root @ root.T)
    return jl.robust_covariance(
        fit, x, y, weights=w, clusters=jnp.array([7, -1, 7]), weight_kind="sampling"
    )


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
    with pytest.raises(
        ValueError, match=r'^kind must be "HC0", "HC1", "HC2" or "HC3", got \'HC4\'$'
    ):
        jl.robust_covariance(fit, x, y, kind="HC4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r'kind must be "HC0" or "HC1" for classes or clusters'):
        jl.robust_covariance(fit, x, y, kind="HC3")
    with pytest.raises(ValueError, match=r'^weight_kind must be "frequency" or "sampling"'):
        jl.robust_covariance(fit, x, y, weight_kind="probability")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clusters must be integers"):
        jl.robust_covariance(fit, x, y, clusters=jnp.ones(3))
    with pytest.raises(ValueError, match="clusters must have one entry for each row"):
        jl.robust_covariance(fit, x, y, clusters=jnp.ones(2, int))
    with pytest.raises(TypeError, match="fit must be a LogisticFit"):
        jl.robust_covariance(fit.coefficients, x, y)
