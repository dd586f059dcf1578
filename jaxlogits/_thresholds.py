"""Where to cut a row so that the classes above carry a given count or mass, without a sort.

A condition that holds from minus infinity up to some number is searched for the largest number at
which it still holds, by bisection over the floating-point numbers in their order: as many passes
over the row as the numbers have bits, each a plain sum, where a sort takes some twenty times as
long. The result is one of the row's own numbers, not one close to it.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxlogits._typing import Array


def kth_largest(scores: Array, k: Array) -> Array:
    """The k-th largest number of each row as ``[..., 1]``, -inf for a k beyond the row's length."""
    return _last_that(
        lambda t: jnp.sum((scores >= t).astype(jnp.int32), axis=-1, keepdims=True) >= k, scores
    )


def mass_threshold(scores: Array, weights: Array, share: Array) -> Array:
    """The largest number t for which the weights of scores below t add up to at most ``share``.

    Both sums are of the small weights that are cut off, so that a share close to 0 is as exact as
    one close to 1. Never above the largest score, whatever its weight.
    """
    room = share * jnp.sum(weights, axis=-1, keepdims=True)

    def fits(t: Array) -> Array:
        # A product, since a select keeps XLA:CPU from fusing the comparison into the sum.
        below = jnp.sum(weights * (scores < t).astype(weights.dtype), axis=-1, keepdims=True)
        return below <= room

    return _last_that(fits, scores)


def _last_that(holds: Callable[[Array], Array], scores: Array) -> Array:
    """The largest number up to the row's maximum at which ``holds`` is true, else -inf."""
    largest = jnp.max(scores, axis=-1, keepdims=True)
    dtype = jnp.int64 if scores.dtype == jnp.float64 else jnp.int32

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        held = holds(lax.bitcast_convert_type(_flipped(middle), scores.dtype))
        return jnp.where(held, middle, low), jnp.where(held, high, middle - 1)

    bracket = tuple(
        _flipped(lax.bitcast_convert_type(end, dtype))
        for end in (jnp.full_like(largest, -jnp.inf), largest)
    )
    low, _ = lax.fori_loop(0, jnp.iinfo(dtype).bits, halve, bracket)
    return lax.bitcast_convert_type(_flipped(low), scores.dtype)


def _flipped(bits: Array) -> Array:
    """From the bits of a number to an integer of the same order, and back."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
