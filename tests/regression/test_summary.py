"""What is published of a fit, against statsmodels and mpmath."""

from typing import Any

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


def everything(b: Array, root: Array, likelihoods: Array, level: Array) -> Array:
    log_likelihood, null = likelihoods
    covariance = jnp.matmul(root, root.T, precision="highest")
    fit = fit_of(b, covariance, log_likelihood=log_likelihood, null_log_likelihood=null)
    summary = jl.summarize(fit, level=level)
    test = jl.likelihood_ratio_test(fit, fit_of(b[:1], covariance[:1, :1], log_likelihood=null))
    counts = summary._replace(likelihood_ratio=summary.likelihood_ratio[::2], num_rows=b[:0])
    results = [*jax.tree.leaves(counts), test.statistic, test.log_p_value]
    return jnp.concatenate([jnp.ravel(result) for result in results])


def exact_everything(b: Any, root: Any, likelihoods: Any, level: Any) -> Any:
    errors = (np.sum(root * root, axis=1)) ** ro.mp.mpf(0.5)
    z = b / errors
    p = [ro.mp.erfc(abs(zi) / ro.mp.sqrt(2)) for zi in z]
    reach = ro.mp.sqrt(2) * ro.mp.erfinv(level) * errors
    intervals = np.stack([b - reach, b + reach], axis=1)
    log_likelihood, null = likelihoods
    statistic = 2 * (log_likelihood - null)
    tail = ro.mp.erfc(ro.mp.sqrt(statistic / 2))
    criteria = [4 - 2 * log_likelihood, 2 * ro.mp.log(15) - 2 * log_likelihood, ro.mp.mpf(15)]
    of_fit = [log_likelihood, null, 1 - log_likelihood / null, statistic, tail, *criteria]
    by_coefficient = [b, errors, z, p, ro.log(p), intervals, ro.exp(b)]
    results = [*by_coefficient, of_fit, [statistic, ro.mp.log(tail)]]
    return np.concatenate([np.ravel(result) for result in results])


CASE = tf.Case(
    "summarize",
    everything,
    exact_everything,
    (
        np.array([[0.5, -1.5]], np.float32),
        np.array([[[0.5, 0.0], [0.25, 0.75]]], np.float32),
        np.array([[-3.0, -4.5]], np.float32),
        np.array([0.875], np.float32),
    ),
)


def test_transforms() -> None:
    for results, want in zip(tf.few_of_each(tf.joined(CASE)), tf.exact(CASE), strict=True):
        # A number is a sum of a handful of products; ndtri and erfc are right to some 20 ulp.
        atol = 32 * 2**-23 * np.abs(want).max()
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


def assert_is_theirs(summary: jl.LogisticSummary, theirs: Any, intervals: Any) -> None:
    """All that statsmodels' discrete models print."""
    pairs = [
        (summary.coefficients, theirs.params),
        (summary.standard_errors, theirs.bse),
        (summary.z_values, theirs.tvalues),
        (summary.p_values, theirs.pvalues),
        (summary.confidence_intervals, intervals),
        (summary.odds_ratios, np.exp(theirs.params)),
        (summary.log_likelihood, theirs.llf),
        (summary.null_log_likelihood, theirs.llnull),
        (summary.mcfadden_r2, theirs.prsquared),
        (summary.likelihood_ratio.statistic, theirs.llr),
        (summary.likelihood_ratio.degrees_of_freedom, theirs.df_model),
        (summary.likelihood_ratio.p_value, theirs.llr_pvalue),
        (summary.aic, theirs.aic),
        (summary.bic, theirs.bic),
        (summary.num_rows, theirs.nobs),
    ]
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=1e-7)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_statsmodels_logit() -> None:
    data = sm.datasets.spector.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), data.endog.to_numpy()
    theirs = sm.Logit(y, x).fit(disp=0, tol=1e-14)
    fit = jl.fit_logistic(x, y)
    assert_is_theirs(jl.summarize(fit, level=0.5), theirs, theirs.conf_int(alpha=0.5))
    test = jl.likelihood_ratio_test(fit, jl.fit_logistic(x[:, :2], y))
    smaller = sm.Logit(y, x[:, :2]).fit(disp=0, tol=1e-14)
    statistic = 2 * (theirs.llf - smaller.llf)
    np.testing.assert_allclose(test.statistic, statistic, rtol=1e-10)
    assert test.degrees_of_freedom == 2
    np.testing.assert_allclose(test.p_value, scipy.stats.chi2.sf(statistic, 2), rtol=1e-10)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_statsmodels_mnlogit() -> None:
    data = sm.datasets.anes96.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy(), np.minimum(data.endog, 2).to_numpy(int)
    theirs = sm.MNLogit(y, x).fit(disp=0, tol=1e-14)
    intervals = np.moveaxis(theirs.conf_int(), 0, 1)  # by class there, by feature here
    assert_is_theirs(jl.summarize(jl.fit_multinomial(x, y, 3)), theirs, intervals)


@pytest.mark.newest
@pytest.mark.usefixtures("x64")
def test_weights_are_frequencies() -> None:
    data = sm.datasets.fair.load_pandas()
    x, y = sm.add_constant(data.exog).to_numpy()[::16], (data.endog > 0).to_numpy()[::16]
    weights = np.arange(len(x)) % 3
    model = sm.GLM(y * 1.0, x, sm.families.Binomial(), freq_weights=weights)
    theirs = model.fit(tol=1e-14)
    summary = jl.summarize(jl.fit_logistic(x, y, weights=weights))
    np.testing.assert_allclose(summary.log_likelihood, theirs.llf, rtol=1e-10)
    np.testing.assert_allclose(summary.null_log_likelihood, theirs.llnull, rtol=1e-10)
    np.testing.assert_allclose(summary.aic, theirs.aic, rtol=1e-10)
    np.testing.assert_allclose(summary.total_weight, weights.sum())
    assert int(summary.num_rows) == np.sum(weights > 0)
    repeated = jl.summarize(jl.fit_logistic(np.repeat(x, weights, 0), np.repeat(y, weights)))
    np.testing.assert_allclose(summary.bic, repeated.bic, rtol=1e-10)


def test_classes() -> None:
    kernel = np.array([[0.5, -1.0, 0.0], [0.25, 2.0, 1.0]], np.float32)
    errors = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    summary = jl.summarize(fit_of(kernel, np.diag(errors.ravel() ** 2).reshape(2, 3, 2, 3)))
    np.testing.assert_array_equal(summary.standard_errors, errors)
    np.testing.assert_array_equal(summary.z_values, kernel / errors)
    assert summary.confidence_intervals.shape == (2, 3, 2)
    assert summary.likelihood_ratio.degrees_of_freedom == 3


def test_far_tails_keep_their_digits() -> None:
    summary = jl.summarize(fit_of(np.array([12.0, 40.0], np.float32), np.eye(2, dtype=np.float32)))
    # 2 mpmath.ncdf(-12), and its logarithm at 40
    np.testing.assert_allclose(summary.p_values, [3.552964224155360e-33, 0.0], rtol=1e-5)
    want = [ro.mp.log(ro.mp.erfc(z / ro.mp.sqrt(2))) for z in (12, 40)]
    np.testing.assert_allclose(summary.log_p_values, np.array(want, float), rtol=1e-6)


# Never a plausible number.

SEPARATED = np.arange(6) >= 3
RISING = np.column_stack([np.ones(6), np.arange(6.0)]).astype(np.float32)


def test_separated_data_have_likelihoods() -> None:
    fit, null = jl.fit_logistic(RISING, SEPARATED), jl.fit_logistic(RISING[:, :1], SEPARATED)
    summary = jl.summarize(fit)
    for number in (summary.standard_errors, summary.p_values, summary.confidence_intervals):
        assert jnp.isnan(number).all()
    tests: list[jl.LikelihoodRatioTest] = [summary.likelihood_ratio]
    for test in (*tests, jl.likelihood_ratio_test(fit, null)):
        # The log likelihood comes as near to 0 as the tolerance has it.
        np.testing.assert_allclose(test.statistic, 12 * np.log(2), rtol=1e-5)


def test_what_is_no_restriction_is_nan() -> None:
    y = np.array([0, 1, 0, 1, 0, 1])
    fit = jl.fit_logistic(RISING, y)
    for restricted in (
        jl.fit_logistic(RISING[:5, :1], y[:5]),  # other rows
        jl.fit_logistic(RISING[:, :1], y, weights=np.full(6, 0.5)),  # other weights
        jl.fit_logistic(RISING[:, :1], y, offset=4.0 * y),  # another offset, which is likelier
        jl.fit_logistic(RISING[:, :1], y, offset=2.0 * y, max_steps=1),  # ended early
    ):
        assert jnp.isnan(jl.likelihood_ratio_test(fit, restricted).p_value)
    without_intercept = jl.summarize(jl.fit_logistic(RISING[:, 1:], y))
    assert jnp.isnan(without_intercept.likelihood_ratio.statistic)
    assert jnp.isfinite(without_intercept.aic)
    null = jl.fit_logistic(RISING[:, :1], y)
    early, early_null = (each._replace(converged=jnp.array(False)) for each in (fit, null))
    assert jnp.isfinite(jl.likelihood_ratio_test(fit, null).p_value)
    assert jnp.isnan(jl.likelihood_ratio_test(early, null).p_value)
    assert jnp.isnan(jl.likelihood_ratio_test(fit, early_null).p_value)
    alone = jl.summarize(null).likelihood_ratio
    assert alone.degrees_of_freedom == 0
    assert alone.p_value == 1


def test_refuses() -> None:
    fit = fit_of(np.ones(2, np.float32), np.eye(2, dtype=np.float32))
    with pytest.raises(TypeError, match=r"fit must be a LogisticFit, got float32\[2\]"):
        jl.summarize(jnp.ones(2))
    with pytest.raises(ValueError, match="level must be at least 0 and below 1, got 1"):
        jl.summarize(fit, level=1.0)
    with pytest.raises(ValueError, match="restricted must have fewer coefficients than fit, got 2"):
        jl.likelihood_ratio_test(fit, fit)


def test_several_fits_are_refused() -> None:
    x, y = jnp.stack([jnp.ones(6), jnp.arange(6.0)], axis=1), jnp.arange(18).reshape(3, 6) % 2
    fits, restricted = (jax.vmap(lambda y, x=x: jl.fit_logistic(x, y))(y) for x in (x, x[:, :1]))
    calls: Any = {
        "likelihood_ratio_test": lambda: jl.likelihood_ratio_test(fits, restricted),
        "summarize": lambda: jl.summarize(fits),
        "robust_covariance": lambda: jl.robust_covariance(fits, x, y[0]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"fit must be a single one, .* use jax\.vmap"):
            raise AssertionError(f"{name} gave {call()}")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("features", [2, 3])
def test_second_derivatives_of_a_statistic_of_0(features: int) -> None:
    """It is a minimum: the statistic beside it is half of the Hessian along the way."""
    x = jnp.array([[1.0, -1.0, 1.0], [1.0, -1.0, -1.0], [1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])
    y, step = jnp.full(4, 0.5), jnp.array([1.0, 0.3, -0.2, 0.5]) * 1e-3

    def ratio(y: Array) -> Array:
        test = jl.summarize(jl.fit_logistic(x[:, :features], y)).likelihood_ratio
        return jnp.stack([test.statistic, test.p_value])[: features - 1]  # of one, p has a cusp

    curved = jnp.einsum("kij,i,j->k", jax.hessian(ratio)(y), step, step) / 2
    apart = (ratio(y + step) + ratio(y - step)) / 2 - ratio(y)
    np.testing.assert_allclose(curved, apart, rtol=1e-5)  # the next terms are step^2 smaller
