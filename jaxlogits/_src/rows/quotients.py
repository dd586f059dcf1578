"""Logits divided by a number, a temperature or a cap, at any size of either.

A quotient overflows where only the differences within its row matter, or where it is 0 times what
comes next; and so does its derivative in the divisor, -(z / T) / T, long before it means anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.mesh.reductions import row_max


def quotient(z: Array, scale: Array) -> Array:
    """z / scale for a scale above 0, where infinite logits don't depend on it."""
    fixed = jnp.isinf(z) & ~jnp.isnan(scale)
    return _sloped(jnp.where(fixed, z, _over(jnp.where(fixed, 0.0, z), scale)), z, scale)


def tempered(z: Array, scale: Array, greatest: float, axis_name: AxisName) -> Array:
    """z / scale, less its maximum in rows where that would be beyond the ``greatest`` number."""
    largest = row_max(z, axis_name)
    high = jnp.isfinite(largest) & (jnp.abs(largest / scale) > greatest)
    plain = quotient(z, scale)
    # Beside +inf a number stays one, however large.
    beside = (largest == jnp.inf) & (z < jnp.inf) & (plain > greatest)
    return jnp.where(high, cooled(z, scale, axis_name), jnp.where(beside, greatest, plain))


def cooled(z: Array, scale: Array, axis_name: AxisName) -> Array:
    """(z - max(z)) / scale: at most 0, and right at any offset of the row, at any scale above 0.

    An infinite scale makes all possible classes equal. The maximum counts as a constant, which
    softmax doesn't see.
    """
    largest = row_max(z, axis_name)
    # Halves, as the difference of two finite numbers may overflow, and be small over the scale.
    half = jnp.where(z == largest, 0.0, 0.5 * z - 0.5 * largest)
    removed = (z == -jnp.inf) | ((largest == jnp.inf) & (z < jnp.inf))
    removed &= ~jnp.isnan(scale)
    below = jnp.where(removed, -jnp.inf, 2.0 * _over(jnp.where(removed, 0.0, half), scale))
    return _sloped(below, z, scale)


@jax.custom_jvp
def _sloped(value: Array, z: Array, scale: Array) -> Array:
    """A value that is z / scale up to a constant of its row, with the derivatives of that."""
    del z, scale
    return value


def _by_scale(dscale: Array, value: Array, *args: Array) -> Array:
    scale = args[-1]
    greatest = float(jnp.finfo(value.dtype).max) / 4.0
    # The probability of a class far below is 0, which may be what multiplies the slope.
    finite = jnp.where(jnp.isinf(value), 0.0, value)
    return -jnp.clip(_over(finite, scale), -greatest, greatest) * dscale


derivatives(_sloped, None, lambda dz, *args: _over(dz, args[-1]), _by_scale)


def _over(x: Array, scale: Array) -> Array:
    """x / scale, which XLA makes a product with 1 / scale, which must not be flushed to 0."""
    large = 2.0 ** (jnp.finfo(scale.dtype).maxexp // 2)
    factor = jnp.where(scale > large, 1.0 / large, 1.0).astype(scale.dtype)
    return (x * factor) / (scale * factor)
