"""Numbers kept as the sum of two floats, of which the second is what the first one rounds off.

A billion trials tell log-odds apart that differ by less than the rounding of either. The sums and
products are Knuth's and Dekker's (Dekker, A Floating-Point Technique for Extending the Available
Precision, 1971), the dot product is Ogita, Rump and Oishi's (Accurate Sum and Dot Product, 2005).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import exp_log as el
from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array


class TwoFloats(NamedTuple):
    high: Array
    low: Array


def add(a: Array, b: Array) -> TwoFloats:
    """a + b, exactly."""
    high = a + b
    of_b = high - a
    return TwoFloats(high, (a - (high - of_b)) + (b - of_b))


def multiply(a: Array, b: Array) -> TwoFloats:
    """a * b, exactly, but for numbers so small or large that half of their digits are lost."""
    # Fused into a sum, a product isn't rounded.
    high = xla.apart(a * b)
    (a0, a1), (b0, b1) = _halves(a), _halves(b)
    return TwoFloats(high, (((a0 * b0 - high) + a0 * b1) + a1 * b0) + a1 * b1)


def _halves(x: Array) -> tuple[Array, Array]:
    """Two numbers of half as many digits, whose products are exact."""
    info = jnp.finfo(x.dtype)
    first = lax.reduce_precision(x, info.nexp, (info.nmant - 1) // 2)
    return first, x - first


def dot(a: Array, b: TwoFloats) -> TwoFloats:
    """a @ b for rows a [.., P] and b [P], as if it were computed with twice the digits."""
    of_high, of_low = (jnp.broadcast_to(x, a.shape) for x in b)
    high, low = multiply(a, of_high)
    low += a * of_low
    while (count := high.shape[-1]) > 1:
        even = [(0, 0)] * (high.ndim - 1) + [(0, count % 2)]
        (left, right), lows = (jnp.split(jnp.pad(x, even), 2, axis=-1) for x in (high, low))
        high, rounded = add(left, right)
        low = rounded + (lows[0] + lows[1])
    return add(jnp.sum(high, axis=-1), jnp.sum(low, axis=-1))  # of one term, or of none


def log_ratio(a: Array, b: TwoFloats) -> TwoFloats:
    """log(a / b) of normal positive numbers, with an error of 1e-9 in float32."""
    ratio = a / b.high
    back = multiply(ratio, b.high)
    left = (a - back.high) - back.low - ratio * b.low
    high, low = _log(ratio)
    return add(high, low + left / a)


def _log(x: Array) -> TwoFloats:
    """n log(2) + 2 atanh(t) for x = 2^n (1 + f), t = f / (2 + f)."""
    n, _, f = el.log_parts(x)
    sum_of = add(f, jnp.full_like(f, 2))
    t = f / sum_of.high
    back = multiply(t, sum_of.high)
    rest = ((f - back.high) - back.low - t * sum_of.low) / sum_of.high
    first, second = el.times_log2(n)
    high, low = add(first, 2 * t)
    return TwoFloats(high, low + 2 * (rest + el.atanh_rest(t)) + second)
