"""How far a row has pulled the fit to its own label, and its residual without that.

One step of Newton's method without row n ends C X' (I - W X C X')^-1 r away from the fit, for the
fit's covariance C, the row's Jacobian X [J, P J] of the log-odds, their curvature W and residuals
r. W X C X' is the leverage, [J, J], and a number where there is a single log-odds.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.regression.newton import product


def leverages(features: Array, curvature: Array, covariance: Array) -> Array:
    """The leverage of each row, [N, J, J], for curvatures [J, J, N] and a covariance [P J, P J]."""
    (_, num_features), num_outputs = features.shape, len(curvature)
    wide = covariance.reshape((num_features, num_outputs) * 2).transpose(1, 3, 0, 2)

    def of_pair(block: Array) -> Array:
        return jnp.sum(product(features, block) * features, axis=1)

    # One pair of log-odds after the other, without [N, P, J, J].
    spreads = lax.map(of_pair, wide.reshape(num_outputs**2, num_features, num_features))
    by_row = spreads.reshape(num_outputs, num_outputs, len(features)).transpose(2, 0, 1)
    return product(curvature.transpose(2, 0, 1), by_row)


def corrected_by_leverage(residuals: Array, leverage: Array, power: int) -> Array:
    """(I - leverage)^(-power / 2) residuals, [N, J]; NaN for a leverage of 1 or more."""
    num_outputs = residuals.shape[1]
    left = jnp.eye(num_outputs, dtype=residuals.dtype)[None] - leverage
    root = _inverse_root(left) if num_outputs > 1 else 1 / jnp.sqrt(_clearly_positive(left))
    for _ in range(power):
        residuals = product(root, residuals[:, :, None])[:, :, 0]
    return residuals


def _clearly_positive(x: Array) -> Array:
    """x, or NaN where it is 0 to rounding."""
    return jnp.where(x > 16 * jnp.finfo(x.dtype).eps, x, jnp.nan)


def _inverse_root(a: Array) -> Array:
    """a^(-1/2) of matrices [N, J, J] whose eigenvalues are in (0, 1]; NaN if they aren't.

    By the coupled iteration of Newton and Schulz, products alone. An eigenvalue grows by 9/4 in
    each step until it is nearly 1, and if it is below 0 it goes to minus infinity. Unlike a
    decomposition this has derivatives where eigenvalues are equal, and a class with a probability
    of 1e-30 costs the others no digits.
    """
    one = jnp.broadcast_to(jnp.eye(a.shape[1], dtype=a.dtype), a.shape)
    bits = int(jnp.finfo(a.dtype).nmant) - 4
    steps = int(bits / 1.17) + 5  # log2(9/4) is 1.17; the last five are quadratic

    def step(_: int, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        root, inverse = pair
        factor = 1.5 * one - product(inverse, root) / 2
        return product(root, factor), product(factor, inverse)

    root, inverse = lax.fori_loop(0, steps, step, (a, one))
    found = jnp.all(jnp.abs(product(inverse, root) - one) < 2**-6, axis=(1, 2), keepdims=True)
    return jnp.where(found, inverse, jnp.nan)
