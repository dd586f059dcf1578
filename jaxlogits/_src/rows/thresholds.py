"""Where to cut a row so that the classes above carry a given count or mass, without a sort.

A condition that holds from minus infinity up to some number is searched for the largest number at
which it still holds, by bisection over the floating-point numbers in their order: as many passes
over the row as the numbers have bits, each a plain sum, where a sort takes some twenty times as
long. The result is one of the row's own numbers, not one close to it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.mesh.reductions import from_ordered_bits, ordered_bits, row_max, row_sum


def kth_largest(scores: Array, k: Array, axis_name: AxisName) -> Array:
    """The k-th largest number of each row as ``[..., 1]``, -inf for a k beyond the row's length."""
    return _last_that(
        lambda t: row_sum((scores >= t).astype(jnp.int32), axis_name) >= k, scores, axis_name
    )


def mass_threshold(scores: Array, weights: Array, share: Array, axis_name: AxisName) -> Array:
    """The largest number t for which the weights of scores below t add up to at most ``share``.

    Both sums are of the small weights that are cut off, so that a share close to 0 is as exact as
    one close to 1. Never above the largest score, whatever its weight.
    """
    room = share * row_sum(weights, axis_name)

    def fits(t: Array) -> Array:
        # A product, since a select keeps XLA:CPU from fusing the comparison into the sum.
        below = row_sum(weights * (scores < t).astype(weights.dtype), axis_name)
        return below <= room

    return _last_that(fits, scores, axis_name)


def _last_that(holds: Callable[[Array], Array], scores: Array, axis_name: AxisName) -> Array:
    """The largest number up to the row's maximum at which ``holds`` is true, else -inf."""
    largest = row_max(scores, axis_name)
    high = ordered_bits(largest)
    low = ordered_bits(jnp.full_like(largest, -jnp.inf))

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        held = holds(from_ordered_bits(middle, scores.dtype))
        return jnp.where(held, middle, low), jnp.where(held, high, middle - 1)

    low, _ = lax.fori_loop(0, jnp.iinfo(low.dtype).bits, halve, (low, high))
    return from_ordered_bits(low, scores.dtype)
