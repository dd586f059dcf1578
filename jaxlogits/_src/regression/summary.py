"""The summary of a fitted regression: standard errors, tests, likelihoods."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range, describe
from jaxlogits._src.base.dtypes import Array, ArrayLike
from jaxlogits._src.base.elementary import exp, log
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.regression.counts import with_derivative_of
from jaxlogits._src.regression.fit import LogisticFit
from jaxlogits._src.regression.tails import log_chi_squared, log_two_sided


class LikelihoodRatioTest(NamedTuple):
    """A likelihood-ratio test of a fit against a restricted one.

    Attributes:
        statistic: twice the difference of the log likelihoods, at least 0.
        degrees_of_freedom: how many coefficients more the fit has.
        p_value: chi-squared probability of a statistic this large if all of these are 0.
        log_p_value: its logarithm, which doesn't underflow.
    """

    statistic: Array
    degrees_of_freedom: Array
    p_value: Array
    log_p_value: Array


class LogisticSummary(NamedTuple):
    """The summary table of a fit. The first seven fields have the shape of the coefficients.

    Attributes:
        coefficients: b, as they were fitted.
        standard_errors: the square roots of the covariance's diagonal.
        z_values: coefficients divided by their standard errors.
        p_values: of Wald's two-sided test, erfc(|z| / sqrt(2)).
        log_p_values: their logarithms. In float32 p is 0 from z = 14 on, and its logarithm -101.
        confidence_intervals: Wald's, b -+ z standard errors; low and high end along one more axis.
        odds_ratios: exp(b), the factor by which one more unit of a feature multiplies the odds.
        log_likelihood, null_log_likelihood, num_rows, total_weight: as in ``LogisticFit``.
        mcfadden_r2: McFadden's pseudo R², 1 - log likelihood / null log likelihood.
        likelihood_ratio: ``LikelihoodRatioTest`` against the null model; NaN without an intercept.
        aic: Akaike's information criterion, 2 k - 2 log likelihood for k coefficients.
        bic: Schwarz's (Bayesian), k log(N) - 2 log likelihood, with the total weight as N.
    """

    coefficients: Array
    standard_errors: Array
    z_values: Array
    p_values: Array
    log_p_values: Array
    confidence_intervals: Array
    odds_ratios: Array
    log_likelihood: Array
    null_log_likelihood: Array
    mcfadden_r2: Array
    likelihood_ratio: LikelihoodRatioTest
    aic: Array
    bic: Array
    num_rows: Array
    total_weight: Array


@program(level=Option(Range(0, below=1)))
def summarize(fit: LogisticFit, *, level: ArrayLike = 0.95) -> LogisticSummary:
    """The summary table that statistics packages print for a fit, as arrays.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``, with its own or a robust covariance, as in
            ``fit._replace(covariance=jl.robust_covariance(...))``.
        level: coverage of the confidence intervals, in [0, 1).

    Returns:
        A ``LogisticSummary``. What follows from the covariance is NaN for separated data. Its
        likelihoods mean nothing with sampling weights or a penalty ``l2``.
    Accuracy: that of the fit; p-values a relative error of |z| times that of z.

    Example:
        >>> fit = jl.fit_logistic(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> summary = jl.summarize(fit)
        >>> print(summary.standard_errors.round(2), summary.odds_ratios.round(2))
        [1.15] [3.]
    """
    b, dtype = fit_coefficients(fit), fit.coefficients.dtype
    errors = jnp.sqrt(jnp.diagonal(covariance_matrix(fit))).reshape(b.shape)
    log_p = log_two_sided(b / errors)
    reach = -ndtri((1 - checks.as_option("level", level, dtype)) / 2) * errors
    null = fit.null_log_likelihood
    against_null = _ratio_test(
        fit.log_likelihood, null, b.size - b[:1].size, fit.has_intercept & _is_maximal(fit)
    )
    aic = 2 * b.size - 2 * fit.log_likelihood
    return LogisticSummary(
        coefficients=b,
        standard_errors=errors,
        z_values=b / errors,
        p_values=exp(log_p),
        log_p_values=log_p,
        confidence_intervals=jnp.stack([b - reach, b + reach], axis=-1),
        odds_ratios=exp(b),
        log_likelihood=fit.log_likelihood,
        null_log_likelihood=null,
        mcfadden_r2=1 - fit.log_likelihood / jnp.where(null < 0, null, jnp.nan),
        likelihood_ratio=against_null,
        aic=aic,
        bic=aic + b.size * (log(fit.total_weight) - 2),
        num_rows=fit.num_rows,
        total_weight=fit.total_weight,
    )


@program()
def likelihood_ratio_test(fit: LogisticFit, restricted: LogisticFit) -> LikelihoodRatioTest:
    """Likelihood-ratio test (Wilks') of the features that a restricted fit lacks.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``, without a penalty.
        restricted: a nested model: the same rows, weights and offset, but fewer features.

    Returns:
        A ``LikelihoodRatioTest``. NaN if a fit ended early or has Firth's penalty, or if the
        restricted one has other rows, another weight or a larger likelihood.
    Accuracy: float32 1e-6 of the log likelihoods; that is also the relative error of the p-value.
    Reference: Wilks, The Large-Sample Distribution of the Likelihood Ratio (1938).

    Example:
        >>> x = jnp.array([[1, -2], [1, -1], [1, 0], [1, 1], [1, 2.0]])
        >>> fits = [jl.fit_logistic(x[:, :p], jnp.array([0, 0, 1, 0, 1])) for p in (2, 1)]
        >>> print(f"{jl.likelihood_ratio_test(*fits).p_value:.3f}")
        0.170
    """
    degrees = fit_coefficients(fit).size - fit_coefficients(restricted).size
    if degrees <= 0:
        sizes = f"{restricted.coefficients.size} and {fit.coefficients.size}"
        raise ValueError(f"restricted must have fewer coefficients than fit, got {sizes}")
    maximal = _is_maximal(fit) & _is_maximal(restricted) & ~fit.firth & ~restricted.firth
    change = jnp.abs(fit.total_weight - restricted.total_weight)
    same = (fit.num_rows == restricted.num_rows) & (change <= 1e-4 * fit.total_weight)
    return _ratio_test(fit.log_likelihood, restricted.log_likelihood, degrees, maximal & same)


def _ratio_test(
    log_likelihood: Array, restricted: Array, degrees: int, valid: Array
) -> LikelihoodRatioTest:
    more = 2 * (log_likelihood - restricted)
    rounding = 2.0**8 * float(jnp.finfo(more.dtype).eps) * jnp.maximum(jnp.abs(restricted), 1)
    # Where rounding has made it 0, it changes as what it means.
    statistic = with_derivative_of(jnp.maximum(more, 0), more)
    statistic = jnp.where(valid & (more >= -rounding), statistic, jnp.nan)
    log_p = log_chi_squared(statistic, degrees)
    return LikelihoodRatioTest(statistic, jnp.int32(degrees), exp(log_p), log_p)


def _is_maximal(fit: LogisticFit) -> Array:
    """Whether the likelihood is the largest there is, to the tolerance."""
    return fit.converged | fit.separated


def fit_coefficients(fit: LogisticFit) -> Array:
    """The coefficients; a bare array in place of the fit is refused."""
    require_fit(fit)
    return fit.coefficients


def covariance_matrix(fit: LogisticFit) -> Array:
    """The covariance with a single axis for all coefficients, [P J, P J]."""
    require_fit(fit)
    size = fit.coefficients.size
    return fit.covariance.reshape(size, size)


def require_fit(fit: object) -> None:
    """Refuse a bare array, and several fits at a time."""
    if not isinstance(fit, LogisticFit):
        got = describe(fit) if isinstance(fit, jax.Array) else type(fit).__name__
        raise TypeError(f"fit must be a LogisticFit, got {got}")
    shape = fit.coefficients.shape
    if jnp.ndim(fit.log_likelihood) > 0 or fit.covariance.shape != 2 * shape:
        covariance, hint = describe(fit.covariance), "for several fits, use jax.vmap"
        raise ValueError(
            f"fit must be a single one, got coefficients {describe(fit.coefficients)} and "
            f"covariance {covariance}: {hint}"
        )
