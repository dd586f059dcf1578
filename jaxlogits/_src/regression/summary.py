"""What a fitted regression says: predictions, standard errors and what follows from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import erfc, ndtri

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range, describe
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.log_odds import sigmoid
from jaxlogits._src.regression.fit import LogisticFit
from jaxlogits._src.regression.newton import product
from jaxlogits._src.softmax import softmax


@program()
def predict_log_odds(
    fit: LogisticFit, features: ArrayLike, *, offset: ArrayLike | None = None
) -> Array:
    """Log-odds that a fit gives to rows, x @ b: the one-unit logits layer of a classifier.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.
        features: floating-point [..., P], with the columns that the fit had.
        offset: [...] or [..., K - 1], a part of the log-odds that is known.

    Returns:
        Log-odds of yes [...], or those of the classes 1 to K - 1 against class 0, [..., K - 1], in
        the dtype of the fit.

    Raises:
        TypeError: for features that aren't floating point.
        ValueError: for a wrong shape.

    Accuracy: that of a matrix product in float32, or in float64 where the fit is; in full
        precision on accelerators too.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.predict_log_odds(fit, jnp.ones([1, 1])).round(4)
        Array([1.0986], dtype=float32)
    """
    x = widen(checks.as_floating("features", features), fit.coefficients.dtype)
    checks.check_no_nan("features", x, "in row", of_rows=1)
    rule = "as many columns as the fit has features,"
    checks.require_shape("features", x, (*x.shape[:-1], len(fit.coefficients)), rule)
    log_odds = product(x, fit.coefficients)
    if offset is None:
        return log_odds
    known = widen(checks.as_real("offset", offset), x.dtype)
    checks.require_shape("offset", known, log_odds.shape, "the shape of the log-odds,")
    return log_odds + known


@program()
def predict_probs(
    fit: LogisticFit, features: ArrayLike, *, offset: ArrayLike | None = None
) -> Array:
    """Probabilities that a fit gives to rows.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.
        features: floating-point [..., P], with the columns that the fit had.
        offset: [...] or [..., K - 1], a part of the log-odds that is known.

    Returns:
        Probabilities of yes [...], or of all K classes [..., K], in the dtype of the fit.

    Raises:
        TypeError: for features that aren't floating point.
        ValueError: for a wrong shape.

    Accuracy: that of the log-odds, then of ``sigmoid`` or ``softmax``.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.predict_probs(fit, jnp.ones([1, 1])).round(4)
        Array([0.75], dtype=float32)
    """
    log_odds = predict_log_odds(fit, features, offset=offset)
    if fit.coefficients.ndim == 1:
        return sigmoid(log_odds)
    before = [(0, 0)] * (log_odds.ndim - 1)
    return softmax(jnp.pad(log_odds, [*before, (1, 0)]))


@program()
def standard_errors(fit: LogisticFit) -> Array:
    """Standard errors of the coefficients, the square roots of the covariance's diagonal.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``; with another covariance, such as
            ``fit._replace(covariance=jl.robust_covariance(...))``, the errors that it gives.

    Returns:
        The shape of the coefficients. NaN for separated data.

    Raises:
        TypeError: for anything but a fit.

    Accuracy: that of the covariance.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> print(jl.standard_errors(fit).round(2))
        [1.15]
    """
    variances = jnp.diagonal(covariance_matrix(fit))
    return jnp.sqrt(variances).reshape(fit.coefficients.shape)


@program()
def z_values(fit: LogisticFit) -> Array:
    """How many standard errors each coefficient is away from 0.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.

    Returns:
        The shape of the coefficients. NaN for separated data.

    Raises:
        TypeError: for anything but a fit.

    Accuracy: that of the coefficients and their standard errors.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.z_values(fit).round(4)
        Array([0.9514], dtype=float32)
    """
    return fit.coefficients / standard_errors(fit)


@program()
def p_values(fit: LogisticFit) -> Array:
    """Probability of a coefficient at least that far from 0, were it 0: Wald's two-sided test.

    erfc(|z| / sqrt(2)), which keeps its digits where 2 (1 - Phi(|z|)) is 0.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.

    Returns:
        The shape of the coefficients. NaN for separated data.

    Raises:
        TypeError: for anything but a fit.

    Accuracy: relative error |z| times that of z.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.p_values(fit).round(4)
        Array([0.3414], dtype=float32)
    """
    return erfc(jnp.abs(z_values(fit)) * 0.5**0.5)


@program(level=Option(Range(0, below=1)))
def confidence_intervals(fit: LogisticFit, *, level: ArrayLike = 0.95) -> Array:
    """Wald's confidence intervals of the coefficients, b -+ z standard errors.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.
        level: the share of intervals that cover the truth, in [0, 1). Their exponentials are those
            of the odds ratios.

    Returns:
        Low and high end in the last axis: the shape of the coefficients and [2]. NaN for separated
        data.

    Raises:
        TypeError: for anything but a fit.
        ValueError: for a level out of range.

    Accuracy: that of the coefficients and their standard errors.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.confidence_intervals(fit).round(4)
        Array([[-1.1646,  3.3618]], dtype=float32)
    """
    errors = standard_errors(fit)
    share = checks.as_option("level", level, errors.dtype)
    reach = -ndtri((1 - share) / 2) * errors
    return jnp.stack([fit.coefficients - reach, fit.coefficients + reach], axis=-1)


@program()
def odds_ratios(fit: LogisticFit) -> Array:
    """What one more unit of each feature multiplies the odds by, exp(b).

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.

    Returns:
        The shape of the coefficients; for classes, odds against class 0.

    Raises:
        TypeError: for anything but a fit.

    Accuracy: relative error that of the coefficients, absolute.
    Transforms: all, to any order.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.odds_ratios(fit).round(4)
        Array([3.], dtype=float32)
    """
    require_fit(fit)
    return jnp.exp(fit.coefficients)


def covariance_matrix(fit: LogisticFit) -> Array:
    """The covariance with a single axis for all coefficients, [P J, P J]."""
    require_fit(fit)
    size = fit.coefficients.size
    return fit.covariance.reshape(size, size)


def require_fit(fit: object) -> None:
    """Refuse a bare array."""
    if not isinstance(fit, LogisticFit):
        got = describe(fit) if isinstance(fit, jax.Array) else type(fit).__name__
        raise TypeError(f"fit must be a LogisticFit, got {got}")
