"""Fits against statsmodels, scikit-learn and mpmath; edges; transforms."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import statsmodels.api as sm
import transforms as tf
from jax import export
from sklearn.linear_model import LogisticRegression

import jaxlogits as jl
from jaxlogits._src.regression.design import binary_design, class_design

Array = jax.Array
x64 = pytest.mark.usefixtures("x64")
fit_logistic = jax.jit(jl.fit_logistic)
fit_multinomial = jax.jit(jl.fit_multinomial, static_argnums=2)


# statsmodels on the data it brings, iterated until nothing changes.


class Fitted(NamedTuple):
    ours: jl.LogisticFit
    theirs: Any


def spector() -> Fitted:
    """Whether a new way of teaching helped 32 students."""
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    return Fitted(fit_logistic(x, y), sm.Logit(y, x).fit(disp=0, tol=1e-14))


def fair() -> Fitted:
    """Whether 6366 women had an affair."""
    data = sm.datasets.fair.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy() > 0
    return Fitted(fit_logistic(x, y), sm.Logit(y.astype(float), x).fit(disp=0, tol=1e-14))


def star98() -> Fitted:
    """How many pupils were above the median in mathematics, in 303 counties, from 20 features."""
    data = sm.datasets.star98.load_pandas()
    counts, x = data.endog.to_numpy(), sm.add_constant(data.exog.to_numpy())
    theirs = sm.GLM(counts, x, family=sm.families.Binomial()).fit(tol=1e-14)
    return Fitted(fit_logistic(x, counts[:, 0], trials=counts.sum(axis=1)), theirs)


def anes96() -> Fitted:
    """Which of seven parties 944 voters were for."""
    data = sm.datasets.anes96.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy().astype(int)
    return Fitted(fit_multinomial(x, y, 7), sm.MNLogit(y, x).fit(disp=0, tol=1e-14))


@pytest.mark.newest
@x64
@pytest.mark.parametrize("fitted", [spector, fair, star98, anes96])
def test_statsmodels(fitted: Callable[[], Fitted]) -> None:
    ours, theirs = fitted()
    assert ours.converged
    assert not ours.separated
    close = functools.partial(np.testing.assert_allclose, rtol=1e-8)
    close(ours.coefficients, theirs.params)
    close(jl.summarize(ours).standard_errors, theirs.bse)
    close(ours.log_likelihood, theirs.llf)
    by_class = (theirs.params.size, theirs.params.size)
    order = (1, 0, 3, 2) if ours.coefficients.ndim == 2 else (0, 1)
    # 1e-8 of the diagonal: what is off it may cancel.
    errors = theirs.bse.reshape(-1, order="F")
    got = ours.covariance.transpose(order).reshape(by_class) / np.outer(errors, errors)
    close(got, theirs.cov_params() / np.outer(errors, errors), rtol=0, atol=1e-8)
    if fitted is star98:
        close(ours.deviance, theirs.deviance)


@pytest.mark.newest
@x64
def test_sklearn_with_a_penalty() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=[40, 3]), rng.integers(3, size=40)
    weights = rng.uniform(size=40)
    theirs = LogisticRegression(C=1 / 2, solver="newton-cg", tol=1e-12, max_iter=1000)
    for kind in (y == 1, y):
        theirs.fit(x, kind, weights)
        # The intercept, without a penalty here as there, is a column of ones.
        ours = fit_large(x, kind, weights=weights, l2=np.array([0.0, 2.0, 2.0, 2.0]))
        want = np.concatenate([theirs.intercept_[None], theirs.coef_.T])
        want = want[:, 0] if kind.dtype == bool else (want - want[:, :1])[:, 1:]
        np.testing.assert_allclose(ours.coefficients, want, rtol=0, atol=1e-8)


@pytest.mark.newest
@x64
def test_an_offset_is_a_known_part() -> None:
    x, y = np.random.default_rng(1).normal(size=[40, 3]), np.arange(40) % 3
    shift = np.array([0.5, -1.0, 0.25])
    for kind, known in ((y == 1, x @ shift), (y, x @ np.outer(shift, [1, -2]))):
        plain, moved = fit_large(x, kind), fit_large(x, kind, offset=known)
        change = (plain.coefficients - moved.coefficients)[1:]
        np.testing.assert_allclose(x @ change, known, atol=1e-12)
        np.testing.assert_allclose(moved.log_likelihood, plain.log_likelihood, rtol=1e-14)


def fit_large(x: Any, y: Any, **given: Any) -> jl.LogisticFit:
    """A fit of 40 rows with an intercept, of booleans or of three classes, each compiled once."""
    x = np.concatenate([np.ones([40, 1]), x], axis=1)
    is_binary = y.dtype == bool
    options = {"weights": np.ones(40), "l2": np.zeros(4)}
    options["offset"] = np.zeros([40] if is_binary else [40, 2])
    options |= given
    return fit_logistic(x, y, **options) if is_binary else fit_multinomial(x, y, 3, **options)


ROWS = 14


def fit_small(x: Any, y: Any, **given: Any) -> jl.LogisticFit:
    """A fit of a few rows, filled up with rows that don't count, so that all are compiled once."""
    return fit_logistic(**arguments(x, y, **given))


def arguments(x: Any, y: Any, **given: Any) -> dict[str, Any]:
    x = np.asarray(x)
    missing = ROWS - len(x)
    rows = {"weights": np.ones(len(x)), "offset": np.zeros(len(x)), "trials": np.ones(len(x))}
    rows = {"labels": y} | rows | {name: given[name] for name in rows if name in given}
    filled = {name: np.pad(row, [(0, missing)]).astype(x.dtype) for name, row in rows.items()}
    features = np.pad(x, [(0, missing), (0, 0)], constant_values=9)
    return filled | {"features": features, "l2": np.asarray(given.get("l2", 0), x.dtype)}


@x64
def test_labels_that_say_the_same() -> None:
    # Counts of trials, shares with weights, and repeated rows are the same likelihood.
    x = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 3.0]])
    counts, trials = np.array([1, 3, 4]), np.array([4, 5, 5])
    rows = np.repeat(np.arange(3), trials)
    each = np.concatenate([np.arange(n) < k for k, n in zip(counts, trials, strict=True)])
    classes = fit_multinomial(x[rows], each.astype(int), 2)
    by_counts = fit_small(x, counts, trials=trials)
    by_weights = fit_small(x, counts / trials, weights=trials)
    by_rows = fit_small(x[rows], each)
    for fit in (by_counts, by_weights, by_rows):
        np.testing.assert_allclose(fit.coefficients, classes.coefficients[:, 0], atol=1e-14)
        np.testing.assert_allclose(fit.covariance, classes.covariance[:, 0, :, 0], rtol=1e-12)
    # Up to the number of ways in which the counts come about, and of one trial there is one.
    for fit, ways in ((by_rows, 1), (by_counts, 4 * 10 * 5)):
        want = classes.log_likelihood + np.log(ways)
        np.testing.assert_allclose(fit.log_likelihood, want, rtol=1e-13)
    np.testing.assert_allclose(by_counts.deviance, by_weights.deviance, rtol=1e-12)
    np.testing.assert_allclose(by_rows.deviance, -2 * by_rows.log_likelihood, rtol=1e-15)


# Data without a maximum; a penalty of 0 that is traced is none.

STEPS = np.arange(8.0)
UP = np.stack([np.ones(8), STEPS], axis=1)
TWO_GROUPS = np.stack([np.ones(8), np.arange(8) % 2], axis=1)
MIXED = np.array([0, 1, 0, 1, 1, 0, 1, 1])
SEPARATED = {
    "one threshold": (UP, STEPS >= 4),
    "all yes": (UP, np.ones(8)),
    "one group all yes": (TWO_GROUPS, np.where(np.arange(8) % 2 == 1, 1, STEPS >= 4)),
    "a tie at the threshold": (UP, np.array([0, 0, 0, 0, 0.5, 1, 1, 1])),
}
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@x64
@each_dtype
@pytest.mark.parametrize("name", SEPARATED)
def test_separation_is_reported(name: str, dtype: type) -> None:
    x, y = SEPARATED[name]
    fit = fit_small(x.astype(dtype), y)
    assert fit.separated
    assert not fit.converged
    assert jnp.isfinite(fit.coefficients).all()
    assert jnp.isnan(fit.covariance).all()
    # As likely as it gets, to the tolerance.
    undecided = 4 if name == "one group all yes" else 0
    assert fit.deviance == pytest.approx(2 * undecided * np.log(2), abs=1e-5)
    # A little penalty leads to a maximum.
    fit = fit_small(x.astype(dtype), y, l2=0.01)
    assert fit.converged
    assert not fit.separated


@x64
def test_nearly_separated_data_have_a_maximum() -> None:
    # One row a thousandth on the wrong side.
    x = np.stack([np.ones(8), [0, 1, 2, 3.501, 3.5, 4, 5, 6]], axis=1)
    fit = fit_small(x, STEPS >= 4)
    assert fit.converged
    assert not fit.separated
    theirs = sm.Logit((STEPS >= 4) * 1.0, x).fit(disp=0, tol=1e-10, maxiter=100)
    np.testing.assert_allclose(fit.log_likelihood, theirs.llf, rtol=1e-10)


@x64
def test_classes_without_a_row_and_labels_of_no_class() -> None:
    fit = fit_multinomial(UP, MIXED, 3)
    assert fit.separated
    np.testing.assert_allclose(fit.coefficients[:, 0], fit_small(UP, MIXED).coefficients, atol=1e-7)
    labels = np.where(STEPS == 5, 3, MIXED)
    assert jnp.isnan(fit_multinomial(UP, labels, 3).coefficients).all()
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        jl.checked(class_design)(UP, labels, 3, None, None)


@x64
@each_dtype
def test_collinear_columns(dtype: type) -> None:
    x = np.stack([STEPS, 0.7 * STEPS], axis=1).astype(dtype)
    fit = fit_small(x, MIXED, weights=MIXED + 0.3)
    for number in (fit.coefficients, fit.covariance, fit.log_likelihood, fit.deviance):
        assert jnp.isnan(number).all()
    assert not fit.converged
    assert not fit.separated
    assert fit_small(x, MIXED, l2=1.0).converged


def test_fewer_rows_than_columns_with_a_penalty() -> None:
    x = np.random.default_rng(2).normal(size=[5, 12]).astype(np.float32)
    y = np.arange(5) % 2
    fit = fit_logistic(x, y, l2=jnp.ones([]))
    assert fit.converged
    # The minimum: there the penalty's gradient is minus that of the loss.
    residuals = np.asarray(jl.predict_probs(fit, x)) - y
    np.testing.assert_allclose(fit.coefficients, -residuals @ x, rtol=0, atol=20 * 2**-23)


def test_sure_rows_do_not_overflow() -> None:
    # Log-odds of -2000 for a label 1: a loss of 2000, where p and log p have no digits.
    x = np.ones([3, 1], np.float32)
    fit = fit_logistic(x, np.array([1, 1, 0]), offset=np.array([-2e3, 2e3, 0.0]))
    assert fit.log_likelihood == pytest.approx(-2000.0, rel=0.01)
    assert jnp.isfinite(fit.coefficients).all()


# The same data in other units, far from 0, or with weights that are small: the same fit.

N = 60


def uncentred() -> dict[str, np.ndarray]:
    """Columns of which a constant is a combination, and some that are far from 0."""
    rng = np.random.default_rng(0)
    year, noise = rng.integers(1990, 2005, N).astype(float), rng.normal(size=N)
    groups = np.eye(3)[np.arange(N) % 3]
    one = np.ones(N)
    return {
        "an intercept": np.column_stack([one, year, noise, noise[::-1]]),
        "an intercept of 0.3, last": np.column_stack([year, 1e5 + noise, noise[::-1], 0.3 * one]),
        "all groups": np.column_stack([groups, year]),
        "no constant": np.column_stack([year, noise, noise[::-1], groups[:, 0]]),
    }


def some_labels() -> np.ndarray:
    return (np.random.default_rng(1).uniform(size=N) < 0.4).astype(float)


def in_float64(fit: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """The result as NumPy's arrays."""
    with jax.enable_x64(True):
        args, options = jax.tree.map(lambda x: np.asarray(x, float), (args, options))
        return jax.tree.map(np.asarray, fit(*args, **options))


@pytest.mark.parametrize("name", uncentred())
def test_columns_far_from_0_in_float32(name: str) -> None:
    x, y = uncentred()[name].astype(np.float32), some_labels()
    options = {"weights": np.arange(N) % 4, "offset": np.sin(np.arange(N)), "l2": np.zeros(4)}
    options["l2"][1] = 0.5
    fit = fit_logistic(x, y, **options)
    want = in_float64(fit_logistic, x, y, **options)
    assert fit.converged
    assert not fit.separated
    errors = np.sqrt(np.diagonal(want.covariance))
    got = np.sqrt(np.diagonal(np.asarray(fit.covariance)))
    # Centred features have a condition number of some 10, and its square times 2^-23 is 1e-5.
    np.testing.assert_allclose(got, errors, rtol=1e-5)
    distance = (np.asarray(fit.coefficients, float) - want.coefficients) / errors
    np.testing.assert_allclose(distance, 0, atol=1e-4)
    np.testing.assert_allclose(fit.log_likelihood, want.log_likelihood, rtol=1e-6)


def test_six_years_are_not_separated() -> None:
    years = np.array([2004, 1995, 1998, 1995, 2000, 1999])
    x, y = np.column_stack([np.ones(6), years]), np.array([1, 0, 0, 0, 0, 1])
    fit, want = fit_small(x.astype(np.float32), y), in_float64(jl.fit_logistic, x, y)
    assert fit.converged
    assert not fit.separated
    np.testing.assert_allclose(fit.coefficients, want.coefficients, rtol=1e-5)
    np.testing.assert_allclose(fit.covariance, want.covariance, rtol=1e-5)


def test_derivatives_where_columns_are_far_from_0() -> None:
    """The intercept is a column like any other, from which others are made in between."""
    x, y = uncentred()["an intercept"][:14, :2], np.arange(14.0) % 2

    def slope(x: Any) -> Array:
        return jl.fit_logistic(x, y).coefficients[1]

    direction = np.cos(np.arange(28.0)).reshape(14, 2) * np.array([1e-4, 1.0])
    h = 1e-4
    with jax.enable_x64(True):
        run = jax.jit(lambda x: jax.jvp(slope, [x], [direction]))
        _, got = run(x)
        difference = (run(x + h * direction)[0] - run(x - h * direction)[0]) / (2 * h)
        np.testing.assert_allclose(got, difference, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9])
def test_weights_of_another_size(scale: float) -> None:
    x, y = uncentred()["an intercept"][:14, ::2].astype(np.float32), MIXED[np.arange(14) % 8]
    want = fit_small(x, y)
    fit = fit_small(x, y, weights=np.full(14, scale))
    assert fit.converged
    assert fit.steps == want.steps
    np.testing.assert_allclose(fit.coefficients, want.coefficients, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance * scale, want.covariance, rtol=1e-5)
    separated = fit_small(UP.astype(np.float32), STEPS >= 4, weights=np.full(8, scale))
    assert separated.separated


@pytest.mark.parametrize("offset", [60.0, -600.0])
def test_an_offset_far_from_0(offset: float) -> None:
    x, y = uncentred()["an intercept"][:14, ::2].astype(np.float32), MIXED[np.arange(14) % 8]
    want, fit = fit_small(x, y), fit_small(x, y, offset=np.full(14, offset))
    assert fit.converged
    assert fit.steps <= 8
    # The intercept's own spacing at 600.
    change = np.array([offset, 0.0])
    np.testing.assert_allclose(fit.coefficients + change, want.coefficients, atol=2e-4)


def test_offsets_that_differ_by_as_much() -> None:
    x, y = uncentred()["an intercept"].astype(np.float32), some_labels()
    offset = 30 * np.cos(np.arange(N))
    options = {"weights": np.ones(N), "offset": offset, "l2": np.zeros(4)}
    fit, want = fit_logistic(x, y, **options), in_float64(fit_logistic, x, y, **options)
    assert fit.converged
    np.testing.assert_allclose(fit.log_likelihood, want.log_likelihood, rtol=1e-6)


def test_rows_of_weight_0_do_not_exist() -> None:
    x, y = uncentred()["an intercept"][:8, :2].astype(np.float32), MIXED
    bad = np.concatenate([x, [[np.nan, 1], [1, np.inf], [0, 0]]]).astype(np.float32)
    labels = np.concatenate([y, [0, np.nan, 7]])
    given = {"weights": np.repeat([1, 0], [8, 3]), "offset": np.repeat([0, np.nan], [8, 3])}
    fit, want = fit_small(bad, labels, **given), fit_small(x, y)
    np.testing.assert_allclose(fit.coefficients, want.coefficients, rtol=1e-6)
    np.testing.assert_allclose(fit.covariance, want.covariance, rtol=1e-6)
    assert jnp.isnan(fit_small(bad[:9], labels[:9]).coefficients).all()


def test_separation_of_many_fits_at_once() -> None:
    """Groups of which some are all yes or no, in any units; they are found by hand."""
    rng = np.random.default_rng(1)
    groups = rng.integers(4, size=[40, 20])
    y = (rng.uniform(size=[40, 20]) < rng.uniform(size=[40, 4])[np.arange(40)[:, None], groups]) * 1
    groups[:, :4] = np.arange(4)
    members = np.eye(4)[groups]
    yes = np.einsum("bng,bn->bg", members, y)
    want = ((yes == 0) | (yes == members.sum(axis=1))).any(axis=1)
    assert 10 < want.sum() < 40
    members[:, :, 0] = 1  # an intercept, instead of the first group
    fits = jax.jit(jax.vmap(jl.fit_logistic))
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            for units in (np.ones(4), np.array([1e-6, 1e6, 1.0, 1e3])):
                fit = fits((members * units).astype(dtype), y)
                np.testing.assert_array_equal(fit.separated, want)
                np.testing.assert_array_equal(fit.converged, ~want)
                np.testing.assert_array_equal(jnp.isnan(fit.covariance).any(axis=(1, 2)), want)


@pytest.mark.parametrize("size", [10.0, 1e4, 1e7, 1e9])
def test_counts_of_many_trials(size: float) -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(14), rng.normal(size=14)]).astype(np.float32)
    trials = np.ceil(rng.uniform(0.5, 1, size=14) * size).astype(np.float32)
    p = 1 / (1 + np.exp(-x.astype(float) @ [-1.0, 0.5]))
    yes = rng.binomial(trials.astype(np.int64), p).astype(np.float32)
    yes[3], yes[4] = 0, trials[4] - 3
    if size > 10:  # rows that the model doesn't fit say too much here
        yes[3:5] = np.round(trials[3:5] * p[3:5])
    fit = fit_small(x, yes, trials=trials)
    want = sm.GLM(
        np.column_stack([yes, trials.astype(float) - yes]), x, family=sm.families.Binomial()
    ).fit(tol=1e-14)
    assert fit.deviance >= 0
    # The rounding of log-odds of 1, times residuals of sqrt(trials), would be 4e-3 a row.
    np.testing.assert_allclose(fit.log_likelihood, want.llf, rtol=1e-6)
    np.testing.assert_allclose(fit.deviance, want.deviance, rtol=1e-5)


@pytest.mark.parametrize("name", uncentred())
def test_counts_of_a_billion_trials(name: str) -> None:
    """In float32 as in float64, offsets and columns far from 0 included."""
    x, rng = uncentred()[name].astype(np.float32), np.random.default_rng(0)
    level, offset = rng.normal(size=len(x)), rng.normal(size=len(x)).astype(np.float32)
    trials = np.ceil(rng.uniform(0.5, 1, size=len(x)) * 1e9).astype(np.float32)
    p = 1 / (1 + np.exp(-level))
    yes = rng.binomial(trials.astype(np.int64), p).astype(np.float32)
    offset = (level + 1e-4 * offset).astype(np.float32)
    fit = jl.fit_logistic(x, yes, trials=trials, offset=offset)
    with jax.enable_x64(True):
        wide = (array.astype(float) for array in (x, yes, trials, offset))
        x, yes, trials, offset = wide
        want = jl.fit_logistic(x, yes, trials=trials, offset=offset)
    np.testing.assert_allclose(fit.log_likelihood, want.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(fit.deviance, want.deviance, rtol=1e-5)
    np.testing.assert_allclose(fit.null_log_likelihood, want.null_log_likelihood, rtol=1e-6)


def test_the_deviance_of_a_perfect_fit_is_not_negative() -> None:
    x = np.column_stack([np.ones(8), STEPS]).astype(np.float32)
    shares = np.asarray(jax.jit(jl.sigmoid)(0.7 * x[:, 1] - 2))
    for weights in (np.ones(8), np.full(8, 1e6)):
        fit = fit_small(x, shares, weights=weights)
        # A rounding of each log-odds, squared, or none.
        assert 0 <= fit.deviance <= 8 * weights[0] * (4 * 2**-23) ** 2


def test_slopes_in_labels_of_0_and_1() -> None:
    x = np.column_stack([np.ones(5), [0.2, 1.4, 3.1, -0.5, 2.0]]).astype(np.float32)
    labels = jnp.array([0.0, 1.0, 1.0, 1.0, 0.0])
    trials = jnp.array([3.0, 1.0, 4.0, 2.0, 2.0])

    def results(y: Array, n: Array) -> tuple[Array, Array, Array]:
        fit = jl.fit_logistic(x, y * n, trials=n)
        return fit.coefficients, fit.log_likelihood, fit.deviance

    def coefficients(y: Array, n: Array) -> Array:
        return results(y, n)[0]

    together, alone, forward, second = jax.jit(
        lambda y, n: (
            jax.jacrev(results, (0, 1))(y, n),
            jax.jacrev(coefficients, (0, 1))(y, n),
            jax.jacfwd(results, (0, 1))(y, n),
            jax.jacfwd(jax.jacrev(lambda y, n: results(y, n)[:2]))(y, n),
        )
    )(labels, trials)
    for got, want in zip(together[0], alone, strict=True):
        np.testing.assert_array_equal(got, want)
        assert jnp.isfinite(want).all()
    # That of the deviance in a label of 0 is -inf, for which a very large number stands.
    assert not any(jnp.isnan(a).any() for a in jax.tree.leaves((together, forward, second)))
    assert (together[2][0] * (1 - 2 * labels) < -1e20).all()
    for a, b in zip(jax.tree.leaves(together[:2]), jax.tree.leaves(forward[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_features_and_no_rows() -> None:
    x, y = jnp.ones([5, 2]), jnp.array([0, 1, 1, 1, 0])
    fit = jl.fit_logistic(x[:, :0], y, offset=jnp.ones(5))
    assert fit.coefficients.shape == (0,)
    assert fit.converged
    log_odds = np.array([-1, 1, 1, 1, -1])
    np.testing.assert_allclose(fit.log_likelihood, -np.log1p(np.exp(-log_odds)).sum(), rtol=1e-6)
    none = jl.fit_logistic(x[:0], y[:0])
    assert jnp.isnan(none.coefficients).all()
    assert not none.converged
    assert not none.separated
    np.testing.assert_array_equal(jl.fit_logistic(x[:0], y[:0], l2=1.0).coefficients, 0)


# What is refused.

BAD = {
    r"labels must be in \[0, trials\]": {"y": np.array([0, 1, 2])},
    "weights must be at least 0": {"weights": np.array([1.0, -1.0, 1.0])},
    "l2 must be at least 0": {"l2": np.array([0.0, -1.0])},
    "features must be finite": {"x": np.array([[1, np.nan], [1, 1], [1, 2]], np.float32)},
    "no column a combination of others": {"x": np.ones([3, 2], np.float32)},
}


checked_fit = jl.checked(fit_logistic)  # once, since each makes its own program


@pytest.mark.parametrize("message", BAD)
def test_bad_values_are_nan_and_checked(message: str) -> None:
    good = {"x": np.array([[1, 0], [1, 1], [1, 2]], np.float32), "y": np.array([0, 0.5, 0])}
    bad = arguments(**good | {"l2": np.zeros(2)} | BAD[message])  # of one shape
    assert jnp.isnan(fit_logistic(**bad).coefficients).all()
    with pytest.raises(ValueError, match=message):
        checked_fit(**bad)


def test_shares_outside_the_range_are_nan_and_checked() -> None:
    x, labels = np.ones([3, 1], np.float32), np.array([0.0, 1.0, 1.5])
    assert jnp.isnan(binary_design(x, labels, None, None, None)[0].rows.weights[2])
    with pytest.raises(ValueError, match=r"labels must be in \[0, 1\]"):
        jl.checked(binary_design)(x, labels, None, None, None)


def fitted_with_2_and_2_0(x: Any, y: Any) -> Any:
    jl.fit_multinomial(x, y, 2)  # whose program isn't that of 2.0
    return jl.fit_multinomial(x, y, 2.0)  # type: ignore[arg-type]


def objects() -> np.ndarray:
    """What pandas makes of numbers and dummies."""
    return np.array([[1.5, True], [0.5, False], [2.5, True]], object)


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "features must be floating", lambda _, y: jl.fit_logistic(y[:, None], y)),
        (ValueError, r"features must be rows \[N,P\]", lambda x, y: jl.fit_logistic(x[:, 0], y)),
        (ValueError, "labels must have one", lambda x, y: jl.fit_logistic(x, y[:2])),
        (ValueError, "weights must have one", lambda x, y: jl.fit_logistic(x, y, weights=x)),
        (ValueError, "l2 must broadcast", lambda x, y: jl.fit_logistic(x, y, l2=jnp.ones(2))),
        (ValueError, "tolerance must be", lambda x, y: jl.fit_logistic(x, y, tolerance=-1.0)),
        (TypeError, "labels must be integers", lambda x, _: jl.fit_multinomial(x, x[:, 0], 2)),
        (ValueError, "num_classes must be", lambda x, y: jl.fit_multinomial(x, y, 1)),
        (ValueError, "num_classes must be a positive int, got 2.0", fitted_with_2_and_2_0),
        (
            ValueError,
            "max_steps must be at least 1",
            lambda x, y: jl.fit_logistic(x, y, max_steps=0),
        ),
        (TypeError, "max_steps must be int", lambda x, y: jl.fit_logistic(x, y, max_steps=2.5)),
        (
            TypeError,
            "weights must be real",
            lambda x, y: jl.fit_logistic(x, y, weights=np.full(3, 1j)),
        ),
        (ValueError, "l2 must be at least 0", lambda x, y: jl.fit_logistic(x, y, l2=np.nan)),
        (ValueError, "labels must have one", lambda x, y: jl.fit_logistic(x, y[:, None])),
        (TypeError, "features must be an array", lambda _, y: jl.fit_logistic(objects(), y)),
        (ValueError, "offset must have", lambda x, y: jl.fit_multinomial(x, y, 3, offset=x)),
    ],
)
def test_refuses(error: type[Exception], message: str, call: Callable[..., Any]) -> None:
    with pytest.raises(error, match=message):
        call(jnp.ones([3, 1]), jnp.array([0, 1, 1]))


@x64
def test_computes_in_float32_or_in_the_dtype_of_the_features() -> None:
    for given, computed in ((jnp.bfloat16, np.float32), (np.float32, np.float32)):
        fit = jax.eval_shape(jl.fit_logistic, jnp.ones([3, 1], given), jnp.ones(3, np.float64))
        assert jax.eval_shape(numbers, fit).dtype == computed


def test_memory_is_that_of_a_block() -> None:
    x = jax.ShapeDtypeStruct([200_000, 20], jnp.float32)
    y = jax.ShapeDtypeStruct([200_000], jnp.int32)
    analysis = fit_multinomial.lower(x, y, 5).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < x.size * 4 / 3


# Transforms.

FEATURES = np.array([[[1.0, 0.5], [1.0, -1.0], [1.0, 2.0]]], np.float32)
SHARES = np.array([[0.75, 0.25, 0.5]], np.float32)
WEIGHTS = np.array([[1.0, 2.0, 0.5]], np.float32)
L2 = np.array([0.5], np.float32)


def numbers(fit: jl.LogisticFit) -> Array:
    floats = (fit.coefficients, fit.covariance, fit.log_likelihood, fit.deviance)
    return jnp.concatenate([x.ravel() for x in floats])


def of_shares(x: Any, y: Any, w: Any, l2: Any) -> Array:
    return numbers(jl.fit_logistic(x, y, weights=w, l2=l2))


def exact_numbers(x: Any, y: Any, w: Any, l2: Any) -> Any:
    """The same by Newton's method, from the formulas, for two features."""
    point = 0 * x[0]
    for _ in range(9):  # the last three steps double 20 digits to the 150 there are
        p = ro.sigmoid(x @ point)
        (a, b), (_, c) = (x * (w * p * (1 - p))[:, None]).T @ x + l2 * np.eye(2, dtype=int)
        covariance = np.array([[c, -b], [-b, a]]) / (a * c - b * b)
        point = point - covariance @ ((w * (p - y)) @ x + l2 * point)
    log_likelihood = np.sum(w * (y * ro.log(p) + (1 - y) * ro.log(1 - p)))
    best = np.sum(w * (y * ro.log(y) + (1 - y) * ro.log(1 - y)))
    return np.array([*point, *covariance.ravel(), log_likelihood, 2 * (best - log_likelihood)])


CASE = tf.Case("fit_logistic", of_shares, exact_numbers, (FEATURES, SHARES, WEIGHTS, L2))


def test_transforms() -> None:
    for results, want in zip(tf.few_of_each(tf.joined(CASE)), tf.exact(CASE), strict=True):
        # The Hessian of the likelihood has a condition number of about 4, and each derivative
        # solves with it twice more; a number is a sum of some 20 products.
        atol = 4 * 20 * 2**-23 * np.abs(want).max()
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


of_one = jax.jit(of_shares)


def test_vmap() -> None:
    x, y, w, l2 = CASE.args
    xs, ws = np.concatenate([x, -x, 2 * x]), np.concatenate([w, 2 * w, 1 + w])
    datasets = [xs, np.repeat(y, 3, axis=0), ws, np.repeat(l2, 3)]
    together = jax.jit(jax.vmap(of_shares))(*datasets)
    # XLA may add up in another order; the condition number is about 4, and 20 numbers are added.
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=80 * 2**-23)
    close(together, jnp.stack([of_one(*args) for args in zip(*datasets, strict=True)]))
    resampled = jax.jit(jax.vmap(lambda w: of_shares(x[0], y[0], w, l2[0])))(ws)
    close(resampled, jnp.stack([of_one(x[0], y[0], w, l2[0]) for w in ws]))


@pytest.mark.compiled
def test_export() -> None:
    args = [jnp.asarray(arg[0]) for arg in CASE.args]
    exported = export.export(of_one)(*args).serialize()
    np.testing.assert_array_equal(export.deserialize(exported).call(*args), of_one(*args))


# What is rarely seen, far out, or left out.


@pytest.mark.parametrize("trials", [5e5, 1e7, 1e9])
@pytest.mark.parametrize("form", ["trials", "weights", "classes"])
def test_rare_labels_are_not_separated(trials: float, form: str) -> None:
    """50 and 120 of many trials: each group has its share, with the spread of a Poisson number."""
    successes = np.array([50.0, 120.0])
    counts = np.float32(np.stack([successes, trials - successes], axis=1).ravel())
    rows, yes = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]), jnp.array([1, 0, 1, 0])
    if form == "trials":
        fit = fit_logistic(rows[::2], successes.astype(np.float32), trials=jnp.full(2, trials))
    elif form == "weights":
        fit = fit_logistic(rows, yes, weights=counts)
    else:
        fit = fit_multinomial(rows, yes, 2, weights=counts)
    log_odds = np.log(successes / (trials - successes))
    errors = np.sqrt(np.array([1 / 50, 1 / 50 + 1 / 120]))
    assert fit.converged
    assert not fit.separated
    exact = np.array([log_odds[0], log_odds[1] - log_odds[0]])
    # As promised, of a standard error; log-odds of 17 are rounded to 1e-6 of themselves.
    assert np.all(abs(np.ravel(fit.coefficients) - exact) < 1e-4 * errors)
    variances = np.diag(np.reshape(fit.covariance, (2, 2)))
    np.testing.assert_allclose(np.sqrt(variances), errors, rtol=2e-4)  # p is up to 2.4e-4


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_a_row_far_out_changes_nothing_beside_it(far: float) -> None:
    """In float32 as in float64: of one fit, and of fits that leave the row out, under vmap."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=40)
    y = (rng.uniform(size=40) < 1 / (1 + np.exp(-x))).astype(float)
    x[-1] = far
    features = np.stack([np.ones(40), x], axis=1)
    weights = np.stack([np.ones(40), np.arange(40) < 39]).astype(np.float32)

    def errors(fit: jl.LogisticFit) -> Array:
        return jnp.sqrt(jnp.diagonal(fit.covariance))

    def fitted(weights: Array) -> Array:
        fit = jl.fit_logistic(
            jnp.asarray(features, jnp.float32), y.astype(np.float32), weights=weights
        )
        return jnp.concatenate([fit.coefficients, errors(fit)])

    together, alone = jax.vmap(fitted)(weights), [fitted(w) for w in weights]
    with jax.enable_x64(True):
        wide = [jl.fit_logistic(features, y, weights=np.float64(w)) for w in weights]
        exact = [np.concatenate([fit.coefficients, errors(fit)]) for fit in wide]
    np.testing.assert_allclose(together, exact, rtol=1e-4)
    np.testing.assert_allclose(alone, exact, rtol=1e-4)


def test_few_of_many_rows_are_as_good_as_those_alone() -> None:
    """60 of 100,000 rows, by weights, in float32 with years beside an intercept."""
    rng = np.random.default_rng(1)
    year = rng.integers(1990, 2005, 100_000)
    y = (rng.uniform(size=100_000) < 1 / (1 + np.exp(-0.3 * (year - 1997)))).astype(np.int32)
    x = np.stack([np.ones(100_000), year], axis=1).astype(np.float32)
    for _ in range(5):
        chosen = rng.choice(100_000, 60, replace=False)
        weights = np.zeros(100_000, np.float32)
        weights[chosen] = 1
        of_all, of_few = fit_logistic(x, y, weights=weights), fit_logistic(x[chosen], y[chosen])
        errors = [np.sqrt(np.diagonal(fit.covariance)) for fit in (of_all, of_few)]
        np.testing.assert_allclose(*errors, rtol=1e-4)


def test_a_row_without_trials_does_not_count() -> None:
    trials, successes = jnp.array([3.0, 0.0, 4.0, 5.0]), jnp.array([1.0, 0.0, 2.0, 1.0])
    x = jnp.stack([jnp.ones(4), jnp.array([0.0, 9.0, 1.0, 2.0])], axis=1)
    found = []
    for keep in (jnp.arange(4), jnp.array([0, 2, 3])):
        fit = fit_logistic(x[keep], successes[keep], trials=trials[keep])
        robust = jl.robust_covariance(fit, x[keep], successes[keep], trials=trials[keep])
        summary = jl.summarize(fit)
        found.append([fit.num_rows, fit.total_weight, summary.bic, *jnp.ravel(robust)])
    np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize("unit", [1e-300, 1e-60, 1e100, 1e300])
@x64
def test_any_unit_of_the_weights(unit: float) -> None:
    x, y = np.stack([np.ones(40), np.cos(np.arange(40))], axis=1), np.arange(40) % 3 == 0
    fit, scaled = (fit_logistic(x, y, weights=w * np.ones(40)) for w in (1.0, unit))
    assert scaled.converged
    np.testing.assert_allclose(scaled.coefficients, fit.coefficients, rtol=1e-12)
    np.testing.assert_allclose(scaled.covariance * unit, fit.covariance, rtol=1e-12)
