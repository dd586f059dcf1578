"""Predictions of a fitted regression."""

from __future__ import annotations

import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.base.program import program
from jaxlogits._src.log_odds import sigmoid
from jaxlogits._src.regression.fit import LogisticFit
from jaxlogits._src.regression.newton import product
from jaxlogits._src.softmax import softmax


@program()
def predict_log_odds(
    fit: LogisticFit, features: ArrayLike, *, offset: ArrayLike | None = None
) -> Array:
    """Log-odds that a fit predicts, x @ b.

    Args:
        fit: of ``fit_logistic`` or ``fit_multinomial``.
        features: floating-point [..., P], with the columns of the fit.
        offset: [...] or [..., K - 1], a known part of the log-odds.

    Returns:
        Log-odds [...], or [..., K - 1] for classes 1 to K - 1 against class 0, in the fit's dtype.
    Accuracy: that of a matrix product in float32, or the fit's float64, on accelerators too.

    Example:
        >>> fit = jax.jit(jl.fit_logistic)(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> jl.predict_log_odds(fit, jnp.ones([1, 1])).round(4)
        Array([1.0986], dtype=float32)
    """
    x = widen(checks.as_floating("features", features), fit.coefficients.dtype)
    checks.check_no_nan("features", x, "in row", of_rows=1)
    rule = "as many columns as the fit has features,"
    checks.require_shape("features", x, (*x.shape[:-1], len(fit.coefficients)), rule)
    checks.check_no_nan("coefficients", fit.coefficients, "of feature")
    log_odds = product(x, fit.coefficients)
    if offset is None:
        return log_odds
    known = widen(checks.as_real("offset", offset), x.dtype)
    checks.require_shape("offset", known, log_odds.shape, "the shape of the log-odds,")
    checks.check_no_nan("offset", known, "in row")
    return log_odds + known


@program()
def predict_probs(
    fit: LogisticFit, features: ArrayLike, *, offset: ArrayLike | None = None
) -> Array:
    """Probabilities that a fit predicts.

    Args:
        fit, features, offset: as in ``predict_log_odds``.

    Returns:
        Probabilities [...], or those of all K classes [..., K], in the dtype of the fit.
    Accuracy: that of the log-odds, then of ``sigmoid`` or ``softmax``.

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
