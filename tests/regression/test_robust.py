"""Sandwich estimators against statsmodels and mpmath."""

import functools
from typing import Any, NamedTuple

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


class Voters(NamedTuple):
    """Which of three parties 60 voters were for."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray


@pytest.fixture(scope="module")
def voters() -> Voters:
    data = sm.datasets.anes96.load_pandas()
    x = sm.add_constant(data.exog[["selfLR", "age"]]).to_numpy()[::16]
    return Voters(x, np.minimum(data.endog, 2).to_numpy(int)[::16], np.arange(len(x)) % 3)


def exact_of_classes(
    voters: Voters, b: np.ndarray, weight_kind: str, power: int
) -> tuple[np.ndarray, np.ndarray]:
    """The covariance, and all of the influences, from the definition and symmetric roots."""
    x, y, w = voters
    p = np.exp(np.pad(x @ b, ((0, 0), (1, 0))))
    p = p[:, 1:] / p.sum(axis=1, keepdims=True)
    residuals = p - (y[:, None] == [1, 2])
    jacobians = np.stack([np.kron(row, np.eye(2)) for row in x])  # [N, J, P J]
    curvature = np.stack([np.diag(q) - np.outer(q, q) for q in p])
    hessian = np.einsum("n,nja,njk,nkb->ab", w, jacobians, curvature, jacobians)
    covariance = np.linalg.inv(hessian)
    influences = []
    for jacobian, r, c, weight in zip(jacobians, residuals, curvature, w, strict=True):
        times = weight if weight_kind == "sampling" else float(weight > 0)
        values, vectors = np.linalg.eigh(c)
        root = vectors * np.sqrt(values) @ vectors.T
        hat = times * root @ jacobian @ covariance @ jacobian.T @ root
        values, vectors = np.linalg.eigh(np.eye(2) - hat)
        pulled = vectors * values ** (-power / 2) @ vectors.T
        influences.append(covariance @ jacobian.T @ root @ pulled @ np.linalg.solve(root, r))
    influences = np.stack(influences)
    each = w if weight_kind == "frequency" else w**2
    return (influences.T * each) @ influences, influences


@x64
@pytest.mark.parametrize("weight_kind", ["frequency", "sampling"])
def test_leverages_of_classes(voters: Voters, weight_kind: str) -> None:
    x, y, w = voters
    fit = jax.jit(jl.fit_multinomial, static_argnums=2)(x, y, 3, weights=w)
    b = np.asarray(fit.coefficients)
    options = {"weights": w, "weight_kind": weight_kind}
    for kind, power in (("HC0", 0), ("HC2", 1), ("HC3", 2)):
        got = robust_covariance(fit, x, y, kind=kind, **options)
        want, influences = exact_of_classes(voters, b, weight_kind, power)
        # Those of a matrix [2, 2] have no more than its condition number, 1e3.
        np.testing.assert_allclose(got.reshape(6, 6), want, rtol=1e-10, atol=1e-10 * want.max())
    if weight_kind == "sampling":
        # HC3 takes a step of Newton's method without the row.
        change = step_without(voters, b, row=1)
        np.testing.assert_allclose(w[1] * influences[1], change, rtol=1e-9)


def step_without(voters: Voters, b: np.ndarray, row: int) -> np.ndarray:
    """Where Newton's method goes in one step from the fit of all rows but one."""
    w = np.where(np.arange(len(voters.x)) == row, 0.0, voters.weights)

    def loss(b: Array) -> Array:
        z = jnp.pad(voters.x @ b.reshape(3, 2), ((0, 0), (1, 0)))
        return jnp.sum(w * jl.softmax_cross_entropy_with_integer_labels(z, voters.y))

    slope, hessian = jax.grad(loss)(b.ravel()), jax.hessian(loss)(b.ravel())
    return -np.linalg.solve(hessian, slope)


@x64
def test_whichever_class_is_the_first(voters: Voters) -> None:
    x, y, w = voters
    fit_multinomial = jax.jit(jl.fit_multinomial, static_argnums=2)
    covariances = []
    for labels in (y, (y + 1) % 3):
        fit = fit_multinomial(x, labels, 3, weights=w)
        covariances.append(robust_covariance(fit, x, labels, weights=w, kind="HC2"))
    # Class 0 became class 1, so that the log-odds of 2 against 1 are those of 1 against 0.
    contrast = np.array([-1.0, 1.0])
    got = np.einsum("ajbk,j,k->ab", covariances[1], contrast, contrast)
    want = covariances[0][:, 0, :, 0]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.max(want))


@x64
@pytest.mark.parametrize("kind", ["HC2", "HC3"])
def test_a_logistic_fit_is_one_of_two_classes(kind: str) -> None:
    x, y = np.random.default_rng(1).normal(size=[20, 2]), np.arange(20) % 3 % 2
    fit = fit_logistic(x, y)
    classes = jax.jit(jl.fit_multinomial, static_argnums=2)(x, y, 2)
    got = robust_covariance(classes, x, y, kind=kind)[:, 0, :, 0]
    np.testing.assert_allclose(got, robust_covariance(fit, x, y, kind=kind), rtol=1e-12)
    # A row that alone has a feature, which a prior keeps from being separated, has leverage 1.
    x, y = np.array([[1.0, 0], [1, 0], [1, 0], [1, 1]]), np.array([0, 1, 2, 1])
    of_classes = jl.fit_multinomial(x, y, 3, firth=True)
    assert jnp.isnan(robust_covariance(of_classes, x, y, kind=kind)).any()
    assert jnp.isnan(
        robust_covariance(jl.fit_logistic(x, y > 0, firth=True), x, y > 0, kind=kind)
    ).any()


@x64
def test_derivatives_with_leverages_of_classes(voters: Voters) -> None:
    x, y = voters.x[:12], voters.y[:12]
    x = x / np.abs(x).max(axis=0)
    fit = jl.fit_multinomial(x, y, 3, l2=0.1)

    def total(x: Array, b: Array) -> Array:
        moved = fit._replace(coefficients=b)
        return jnp.sum(jnp.sin(jl.robust_covariance(moved, x, y, kind="HC2")))

    point, along = (jnp.asarray(x), fit.coefficients), (np.cos(x), np.sin(fit.coefficients))
    run = jax.jit(total)
    got = jax.jit(lambda *args: jax.jvp(total, args, along)[1])(*point)
    slopes = jax.jit(jax.grad(total, (0, 1)))(*point)
    h = 1e-4
    ends = [run(*(a + s * h * b for a, b in zip(point, along, strict=True))) for s in (1, -1)]
    # Differences of fourth order would be needed for more.
    np.testing.assert_allclose(got, (ends[0] - ends[1]) / (2 * h), rtol=1e-5)
    both = sum(jnp.vdot(a, b) for a, b in zip(slopes, along, strict=True))
    np.testing.assert_allclose(both, got, rtol=1e-9)
    # A row of zeros has equal eigenvalues, at which a decomposition would have no derivative.
    nothing = jax.jit(jax.grad(total))(jnp.asarray(x).at[3].set(0.0), fit.coefficients)
    assert jnp.isfinite(nothing).all()


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
    with pytest.raises(ValueError, match=r'kind must be "HC0" or "HC1" for clusters, got'):
        jl.robust_covariance(fit, x, y, kind="HC3", clusters=jnp.ones(3, int))
    with pytest.raises(ValueError, match=r'^weight_kind must be "frequency" or "sampling"'):
        jl.robust_covariance(fit, x, y, weight_kind="probability")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="clusters must be integers"):
        jl.robust_covariance(fit, x, y, clusters=jnp.ones(3))
    with pytest.raises(ValueError, match="clusters must have one entry for each row"):
        jl.robust_covariance(fit, x, y, clusters=jnp.ones(2, int))
    with pytest.raises(TypeError, match="fit must be a LogisticFit"):
        jl.robust_covariance(fit.coefficients, x, y)
