"""Standard errors of whatever is computed from a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.checked import calling
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.program import program
from jaxlogits._src.regression.fit import LogisticFit
from jaxlogits._src.regression.newton import product
from jaxlogits._src.regression.summary import covariance_matrix, require_fit


class Estimate(NamedTuple):
    """An estimate, a number or an array, that was computed from a fit.

    Attributes:
        value: the estimate.
        standard_error: in the shape of ``value``.
    """

    value: Array
    standard_error: Array


def delta_method(fn: Callable[[LogisticFit], Array], fit: LogisticFit) -> Estimate:
    """The value of a function of a fit, and its standard error by the delta method.

    sqrt(diag(D C D')) with the function's derivative D in the coefficients and their covariance C.
    For predicted probabilities, risk ratios and average marginal effects.

    Args:
        fn: from a fit to a floating-point array, differentiable in ``fit.coefficients``.
        fit: as in ``summarize``.

    Returns:
        An ``Estimate``; value -+ 1.96 standard errors is an interval. For a probability, take that
        of the log-odds and the ``sigmoid`` of its ends. NaN for separated data.
    Accuracy: that of the function and of the covariance.
    Transforms: those of ``fn``, with one order of derivatives fewer.

    Example:
        >>> fit = jl.fit_logistic(jnp.ones([4, 1]), jnp.array([0, 1, 1, 1]))
        >>> odds = jl.delta_method(lambda fit: jnp.exp(fit.coefficients), fit)
        >>> print(odds.value.round(2), odds.standard_error.round(2))
        [3.] [3.46]
    """
    with calling("delta_method"):
        require_fit(fit)

        def of(coefficients: Array) -> tuple[Array, Array]:
            result = fn(fit._replace(coefficients=coefficients))
            array = checks.as_floating("the result of fn", result)
            return array, array

        derivative, value = jax.jacfwd(of, has_aux=True)(fit.coefficients)
        return Estimate(value, _errors(derivative, fit))


@program()
def _errors(derivative: Array, fit: LogisticFit) -> Array:
    shape = derivative.shape[: derivative.ndim - fit.coefficients.ndim]
    rows = derivative.reshape(-1, fit.coefficients.size)
    variances = jnp.sum(product(rows, covariance_matrix(fit)) * rows, axis=1)
    return jnp.sqrt(variances).reshape(shape)
