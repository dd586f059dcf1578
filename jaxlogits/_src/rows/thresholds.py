"""Where to cut a row so that the classes above carry a given count or mass, without a sort.

A condition that holds from minus infinity up to some number is searched for the largest number at
which it still holds, by bisection over the floating-point numbers in their order: as many passes
over the row as the numbers have bits, each a plain sum, where a sort takes some twenty times as
long. The result is one of the row's own numbers, not one close to it. Scores that were given in
half precision have 16 bits: ``dtype`` is one that has all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.mesh.reductions import from_ordered_bits, ordered_bits, row_max, row_sum


def kth_largest(scores: Array, k: Array, axis_name: AxisName, dtype: jnp.dtype) -> Array:
    """The k-th largest number of each row as ``[..., 1]``, -inf for a k beyond the row's length."""

    def has_k(t: Array) -> Array:
        return row_sum((scores >= t).astype(jnp.int32), axis_name) >= k

    return _last_that(has_k, scores, axis_name, dtype)


def mass_threshold(
    scores: Array, weights: Array, share: Array, axis_name: AxisName, dtype: jnp.dtype
) -> Array:
    """The largest number t for which the weights of scores below t add up to at most ``share``.

    Both sums are of the small weights that are cut off, so that a share close to 0 is as exact as
    one close to 1. Never above the largest score, whatever its weight.
    """
    room = share * row_sum(weights, axis_name)

    def fits(t: Array) -> Array:
        return row_sum(jnp.where(scores < t, weights, 0.0), axis_name) <= room

    return _last_that(fits, scores, axis_name, dtype)


def _last_that(
    holds: Callable[[Array], Array], scores: Array, axis_name: AxisName, dtype: jnp.dtype
) -> Array:
    """The largest number up to the row's maximum at which ``holds`` is true, else -inf."""
    dtype = dtype if dtype.itemsize == 2 else scores.dtype
    largest = row_max(scores, axis_name).astype(dtype)
    high = ordered_bits(largest)
    low = ordered_bits(jnp.full_like(largest, -jnp.inf))

    def number(bits: Array) -> Array:
        return from_ordered_bits(bits, dtype).astype(scores.dtype)

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        held = holds(number(middle))
        return jnp.where(held, middle, low), jnp.where(held, high, middle - 1)

    low, _ = lax.fori_loop(0, jnp.iinfo(low.dtype).bits, halve, (low, high))
    return number(low)


def shares_of_range(z: Array, axis_name: AxisName) -> tuple[Array, Array]:
    """How far each class is below the largest, and the standard deviation ``[..., 1]`` of that.

    Both as shares of the largest distance, whose square may be beyond the greatest number; of
    halves, as may the distance. Where the largest is +inf, all others are infinitely far.
    """
    largest = row_max(z, axis_name)
    at_max, is_there = z == largest, jnp.isfinite(z) & jnp.isfinite(largest)
    gaps = jnp.where(at_max, 0.0, jnp.where(is_there, 0.5 * largest - 0.5 * z, jnp.inf))
    farthest = row_max(jnp.where(is_there, gaps, 0.0), axis_name)
    shares = gaps / jnp.where(farthest > 0, farthest, 1.0)
    count = jnp.maximum(row_sum(is_there.astype(z.dtype), axis_name), 1.0)
    mean = row_sum(jnp.where(is_there, shares, 0.0), axis_name) / count
    squares = jnp.where(is_there, jnp.square(shares - mean), 0.0)
    return shares, jnp.sqrt(row_sum(squares, axis_name) / count)


def within_mass(
    scores: Array, weights: Array, mass: Array, axis_name: AxisName, dtype: jnp.dtype
) -> Array:
    """The fewest classes of the largest scores that have ``mass``; all of them at 1."""
    threshold = mass_threshold(scores, weights, 1.0 - mass, axis_name, dtype)
    return (scores >= threshold) | (mass == 1.0)
