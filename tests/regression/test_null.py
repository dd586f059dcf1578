"""The null model against statsmodels, and which designs have an intercept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import statsmodels.api as sm

import jaxlogits as jl

fit_logistic = jax.jit(jl.fit_logistic)
RNG = np.random.default_rng(0)
ROWS = 24
X = np.column_stack([np.ones(ROWS), RNG.normal(size=[ROWS, 2])])
OFFSET = np.sin(np.arange(ROWS))
WEIGHTS = np.arange(ROWS) % 3 + 0.5
TRIALS = np.arange(ROWS) % 5 + 1
COUNTS = TRIALS // 2


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("given", [{}, {"offset": OFFSET}, {"weights": WEIGHTS}])
def test_statsmodels(given: dict[str, Any]) -> None:
    counts = np.column_stack([COUNTS, TRIALS - COUNTS])
    names = {"offset": given.get("offset"), "var_weights": given.get("weights")}
    binomial = sm.families.Binomial()
    null = sm.GLM(counts, np.ones(ROWS), binomial, **names).fit(tol=1e-14)
    fit = fit_logistic(X, COUNTS, trials=TRIALS, **given)
    np.testing.assert_allclose(fit.null_log_likelihood, null.llf, rtol=1e-12)
    assert fit.num_rows == ROWS
    assert fit.total_weight == given.get("weights", np.ones(ROWS)).sum()


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_classes() -> None:
    labels, fit_multinomial = np.arange(ROWS) % 3, jax.jit(jl.fit_multinomial, static_argnums=2)
    theirs = sm.MNLogit(labels, X).fit(disp=0)
    for more in ({}, {"offset": np.ones([ROWS, 2])}):
        ours = fit_multinomial(X, labels, 3, **more)
        np.testing.assert_allclose(ours.null_log_likelihood, theirs.llnull, rtol=1e-12)
    # A class without a row has a share of 0, whose loss nobody pays.
    few = fit_multinomial(X, labels % 2, 3)
    share = np.mean(labels % 2)
    want = ROWS * (share * np.log(share) + (1 - share) * np.log(1 - share))
    np.testing.assert_allclose(few.null_log_likelihood, want, rtol=1e-12)


def test_all_yes() -> None:
    fit = fit_logistic(X.astype(np.float32), np.ones(ROWS))
    np.testing.assert_allclose(fit.null_log_likelihood, 0, atol=1e-30)


def test_rows_of_weight_0_do_not_exist() -> None:
    x, y = X.astype(np.float32), COUNTS > 0
    weights = np.concatenate([WEIGHTS, [0, 0]])
    more = np.concatenate([x, np.full([2, 3], np.nan, np.float32)])
    fit, want = (
        fit_logistic(more, np.append(y, [0, 5]), weights=weights),
        fit_logistic(x, y, weights=WEIGHTS),
    )
    assert fit.num_rows == ROWS
    assert fit.has_intercept
    np.testing.assert_allclose(fit.total_weight, want.total_weight)
    np.testing.assert_allclose(fit.null_log_likelihood, want.null_log_likelihood, rtol=1e-6)


def constants() -> dict[str, np.ndarray]:
    year = RNG.integers(1990, 2005, ROWS).astype(float)
    groups = np.eye(3)[np.arange(ROWS) % 3]
    return {
        "ones": X,
        "0.3, last": np.column_stack([year, X[:, 1], np.full(ROWS, 0.3)]),
        "all groups, in odd units": np.column_stack([groups * [0.7, 3e-6, 1e6]]),
        "a sum": np.column_stack([0.3 * X[:, 1], 0.1 - 0.1 * X[:, 1], X[:, 2]]),
    }


def others() -> dict[str, np.ndarray]:
    year = RNG.integers(1990, 2005, ROWS).astype(float)
    return {
        "nearly": np.column_stack([year, X[:, 1], X[:, 2]]),
        "two of three groups": np.column_stack([np.eye(3)[np.arange(ROWS) % 3][:, 1:], X[:, 1]]),
        "noise": RNG.normal(size=[ROWS, 3]),
    }


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_has_intercept(dtype: type) -> None:
    y = np.arange(ROWS) % 2
    for name, x in constants().items():
        assert fit_logistic(x.astype(dtype), y).has_intercept, name
    for name, x in others().items():
        assert not fit_logistic(x.astype(dtype), y).has_intercept, name
    assert not jl.fit_logistic(jnp.ones([4, 0], dtype), jnp.arange(4) % 2).has_intercept


@pytest.mark.usefixtures("x64")
def test_derivatives_of_the_null_model() -> None:
    """In labels, weights and offset, against differences."""

    def null(y: Any, w: Any, offset: Any) -> Any:
        return jl.fit_logistic(X, y, weights=w, offset=offset).null_log_likelihood

    point = (0.3 + 0.4 * (np.arange(ROWS) % 2), WEIGHTS, OFFSET)
    direction = tuple(np.cos(np.arange(ROWS) + i) / 5 for i in range(3))
    for given in (point, point[:2]):
        call = null if len(given) == 3 else lambda y, w: null(y, w, None)
        run = jax.jit(lambda *args: jax.jvp(call, args, direction[: len(args)]))  # noqa: B023
        _, got = run(*given)
        moved = [
            run(*(x + h * d for x, d in zip(given, direction, strict=False)))[0]
            for h in (1e-5, -1e-5)
        ]
        np.testing.assert_allclose(got, (moved[0] - moved[1]) / 2e-5, rtol=1e-7)
