"""Where to cut a row so that the classes above carry a given count or mass, without a sort.

A condition that holds from minus infinity up to some number is searched for the largest number at
which it still holds, by bisection over the floating-point numbers in their order: as many passes
over the row as the numbers have bits, each a plain sum, where a sort takes some twenty times as
long. The result is one of the row's own numbers, not one close to it. Scores that were given in
half precision have 16 bits: ``dtype`` is one that has all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.mesh.reductions import from_ordered_bits, ordered_bits, row_max, row_sum


def kth_largest(scores: Array, k: Array, axis_name: AxisName, dtype: jnp.dtype) -> Array:
    """The k-th largest number of each row as ``[..., 1]``, -inf for a k beyond the row's length."""

    def has_k(t: Array) -> Array:
        count = row_sum((scores >= t).astype(jnp.int32), axis_name)
        return count >= k.astype(count.dtype)

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

    def halved(bracket: tuple[Array, Array], times: int) -> tuple[Array, Array]:
        """So many times, in one pass: it looks at both halves of what it is to halve again."""
        if times == 0:
            return bracket
        low, high = bracket
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        above, below = (halved(half, times - 1) for half in ((middle, high), (low, middle - 1)))
        held = holds(number(middle))
        return jnp.where(held, above[0], below[0]), jnp.where(held, above[1], below[1])

    def search(times: int) -> Callable[..., Any]:
        """The last number in a bracket, in passes that halve it so many times."""
        passes = jnp.iinfo(low.dtype).bits // times

        def last(*bracket: Array) -> Any:
            return lax.fori_loop(0, passes, lambda _, bracket: halved(bracket, times), bracket)[0]

        return last

    # To compare with three numbers takes an accelerator no longer than to compare with one.
    found: Array = xla.by_device(low, high, cpu=search(1), default=search(2))
    return number(found)


def range_and_deviation(z: Array, axis_name: AxisName) -> tuple[Array, Array, Array]:
    """The largest of a row, half its distance to the smallest, and the standard deviation.

    The last as a share of that distance, whose square may be beyond the greatest number, and which
    is of halves, as the whole may be, too. All ``[..., 1]``.
    """
    largest = row_max(z, axis_name)
    is_there = jnp.isfinite(z) & jnp.isfinite(largest)
    farthest = row_max(jnp.where(is_there, _half_gaps(z, largest), 0.0), axis_name)
    farthest = jnp.where(farthest > 0, farthest, 1.0)
    shares = shares_of_range(z, largest, farthest)
    count = jnp.maximum(row_sum(is_there.astype(z.dtype), axis_name), 1.0)
    mean = row_sum(jnp.where(is_there, shares, 0.0), axis_name) / count
    squares = jnp.where(is_there, jnp.square(shares - mean), 0.0)
    return largest, farthest, jnp.sqrt(row_sum(squares, axis_name) / count)


def shares_of_range(z: Array, largest: Array, farthest: Array) -> Array:
    """How far each class is below the largest, as a share of the largest distance.

    Where the largest is +inf, all others are infinitely far.
    """
    return _half_gaps(z, largest) / farthest


def _half_gaps(z: Array, largest: Array) -> Array:
    is_there = jnp.isfinite(z) & jnp.isfinite(largest)
    gaps = jnp.where(is_there, 0.5 * largest - 0.5 * z, jnp.inf)
    return jnp.where(z == largest, 0.0, gaps)
