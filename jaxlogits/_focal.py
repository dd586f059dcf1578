"""The focal loss as a function of the cross entropy alone, since p = exp(-loss)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxlogits._typing import Array

Pair = tuple[Array, Array]


@jax.custom_jvp
def focal(loss: Array, gamma: Array) -> Array:
    """loss * (1 - p)**gamma with p = exp(-loss)."""
    return loss * _power(_missed(loss), gamma)


@functools.partial(focal.defjvp, symbolic_zeros=True)
def _focal_jvp(primals: Pair, tangents: tuple[Any, Any]) -> Pair:
    loss, gamma = primals
    dloss, dgamma = tangents
    value = focal(loss, gamma)
    missed = _missed(loss)
    tangent = jnp.zeros_like(value)
    if not isinstance(dloss, SymbolicZero):
        slope = _power(missed, gamma) * (1.0 + gamma * _over_expm1(loss))
        tangent += slope * dloss
    if not isinstance(dgamma, SymbolicZero):
        tangent += jnp.where(value == 0, 0.0, value * jnp.log(missed)) * dgamma
    return value, tangent


@jax.custom_jvp
def _missed(loss: Array) -> Array:
    """1 - exp(-loss). jnp.expm1 takes 1 + expm1 for its derivative, which cancels."""
    return -jnp.expm1(-loss)


@_missed.defjvp
def _missed_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Pair:
    (loss,), (dloss,) = primals, tangents
    return _missed(loss), jnp.exp(-loss) * dloss


@jax.custom_jvp
def _power(base: Array, exponent: Array) -> Array:
    """base**exponent. Its derivative by the base is 0 at 0**0, where jnp.power has 0 * inf."""
    return jnp.power(base, exponent)


@functools.partial(_power.defjvp, symbolic_zeros=True)
def _power_jvp(primals: Pair, tangents: tuple[Any, Any]) -> Pair:
    base, exponent = primals
    dbase, dexponent = tangents
    value = _power(base, exponent)
    tangent = jnp.zeros_like(value)
    if not isinstance(dbase, SymbolicZero):
        constant = (base == 0) & (exponent == 0)
        slope = exponent * _power(base, jnp.where(constant, 1.0, exponent - 1.0))
        tangent += slope * dbase
    if not isinstance(dexponent, SymbolicZero):
        tangent += jnp.where(value == 0, 0.0, value * jnp.log(base)) * dexponent
    return value, tangent


# B_2n / (2 n)! of x / expm1(x) = 1 - x / 2 + sum of B_2n / (2 n)! x^2n, with Bernoulli's numbers
# (DLMF 24.2.1). Ten terms leave off less than 1e-17 at x = 1.
_BERNOULLI = (
    1 / 12,
    -1 / 720,
    1 / 30240,
    -1 / 1209600,
    1 / 47900160,
    -691 / 1307674368000,
    1 / 74724249600,
    -3617 / 10670622842880000,
    43867 / 5109094217170944000,
    -174611 / 802857662698291200000,
)


def _over_expm1(x: Array) -> Array:
    """x / expm1(x) for x >= 0: 1 at 0 and 0 at inf.

    Its derivatives cancel near 0, where the series takes over, and overflow beyond 40, where 1 no
    longer counts beside exp(x).
    """
    near, far = x < 1.0, x > 40.0
    small, large = jnp.where(near, x, 0.0), jnp.where(far, jnp.minimum(x, 1e4), 0.0)
    square, series = small * small, jnp.zeros_like(x)
    for coefficient in reversed(_BERNOULLI):
        series = series * square + coefficient
    safe = jnp.where(near | far, 1.0, x)
    otherwise = jnp.where(far, large * jnp.exp(-large), safe / jnp.expm1(safe))
    return jnp.where(near, (1.0 - 0.5 * small) + square * series, otherwise)
