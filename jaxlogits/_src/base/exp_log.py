"""exp and log with what their rounding leaves out: the cores on which the ulp figures rest.

XLA's own exp, log and log1p are off by up to 6 ulp, differ from release to release and from backend
to backend, and keep no low part. These use nothing but +, -, *, / and the bits of the exponent, so
they give the same figures everywhere. They take float32 and float64 arrays.

Older XLA folds (x + c) + d for constants c, d into x + (c + d), which turns 1 + p - 1 into p. Where
the lost digits of a sum with a constant are needed, a maximum that never applies stands between.
Nothing here needs a fused multiply-add or suffers from one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array


class _Constants(NamedTuple):
    """What depends on the dtype; the numbers are those that benchmarks/minimax.py prints."""

    exp_tail: tuple[float, ...]  # exp(r) = 1 + r + r^2 exp_tail(r), |r| <= log(2) / 2
    log_tail: tuple[float, ...]  # atanh(s) = s + s^3 log_tail(s^2), |s| <= 1/5
    logit_tail: tuple[float, ...]  # the same for |s| <= 1/2
    log2_high: float  # times any exponent it is exact
    log2_low: float
    exp_zero: float  # exp of it and of anything below is 0
    smallest_normal: float


_FLOAT32 = _Constants(
    exp_tail=(0.5, 0.16666667, 0.041666467, 0.0083333105, 0.0013933643, 0.00019890982),
    log_tail=(0.33333334, 0.20000155, 0.14266372, 0.11873672),
    logit_tail=(0.3333333, 0.20000473, 0.1426398, 0.11469875, 0.064934894, 0.1575178),
    log2_high=0.69314575,
    log2_low=1.4286068e-06,
    exp_zero=-88.0,
    smallest_normal=2.0**-126,
)
_FLOAT64 = _Constants(
    exp_tail=(
        0.5,
        0.1666666666666667,
        0.04166666666666667,
        0.00833333333332614,
        0.0013888888888883752,
        0.00019841269874803564,
        2.4801587325535556e-05,
        2.7557255421849834e-06,
        2.755727365856604e-07,
        2.5105207996013822e-08,
        2.0914680534906106e-09,
    ),
    log_tail=(
        0.3333333333333333,
        0.200000000000039,
        0.14285714283669596,
        0.11111111518903621,
        0.09090869227361513,
        0.07694417338900958,
        0.0660518024256631,
        0.06802007853562039,
    ),
    logit_tail=(
        0.3333333333333333,
        0.20000000000000864,
        0.14285714285490106,
        0.11111111133938968,
        0.09090907881509189,
        0.07692345940270638,
        0.06665886352701884,
        0.05893099692590042,
        0.05160769881147162,
        0.05441915418234587,
        0.012292448728540531,
        0.13557903913692299,
        -0.14450491183414468,
        0.21098097885975797,
    ),
    log2_high=0.693147180559663,
    log2_low=2.8235290563031577e-13,
    exp_zero=-709.0,
    smallest_normal=2.0**-1022,
)


_CONSTANTS = {jnp.dtype(jnp.float32): _FLOAT32, jnp.dtype(jnp.float64): _FLOAT64}
_LOG2_E = 1.4426950408889634


class _Layout(NamedTuple):
    """Where the exponent of a float is, and a few floats as integers."""

    integer: jnp.dtype
    mantissa_bits: int
    bias: int
    bits_of_one: int
    bits_of_sqrt_half: int


_LAYOUTS = {
    jnp.dtype(jnp.float32): _Layout(jnp.dtype(jnp.int32), 23, 127, 0x3F800000, 0x3F3504F3),
    jnp.dtype(jnp.float64): _Layout(
        jnp.dtype(jnp.int64), 52, 1023, 0x3FF0000000000000, 0x3FE6A09E667F3BCD
    ),
}


class Exp(NamedTuple):
    """exp(x) = scale * (1 + p + low): scale is a power of two or 0, p is in [-0.3, 0.42].

    p + low is right to a third of p's last digit, so that 1 - exp(x) is as right; where scale isn't
    1, to 2^-12 of the last digit of 1, which is enough there.
    """

    scale: Array
    p: Array
    low: Array


def exp_parts(x: Array) -> Exp:
    """exp(x) for x <= 0, unrounded."""
    constants, layout = _CONSTANTS[x.dtype], _LAYOUTS[x.dtype]
    x = jnp.where(x < constants.exp_zero, constants.exp_zero, x)
    # The last digit of this sum is a unit, so that it is rounded, and its last bits are n + bias.
    aligned = 1.5 * 2**layout.mantissa_bits + layout.bias
    rounded = x * _LOG2_E + aligned
    scale = _as_float(_as_integer(rounded) << layout.mantissa_bits, x.dtype)
    n = jnp.where(rounded < 1, 1, rounded) - aligned
    # The reduced argument in two parts: the first is exact, the second isn't needed in the square.
    high = x - n * constants.log2_high
    rest = n * constants.log2_low
    r = high - rest
    square = r * r
    tail = square * _polynomial(constants.exp_tail, r, square) - rest
    p = high + tail
    return Exp(scale, p, (high - p) + tail)


def exp_rounded(exp: Exp) -> tuple[Array, Array]:
    """exp(x), rounded, and what the rounding left out."""
    rounded = jnp.maximum(1 + exp.p, 0.5)
    low = (exp.p + (1 - rounded)) + exp.low
    # Scaled afterwards: scale * p itself may be subnormal and flushed where scale * (1 + p) is not.
    return exp.scale * rounded, exp.scale * low


def complement(exp: Exp) -> tuple[Array, Array]:
    """1 - exp(x), rounded, and what the rounding left out unless exp(x) is below its last digit."""
    scaled = exp.scale * exp.p
    rounded = (1 - exp.scale) - scaled
    return rounded, (((1 - exp.scale) - rounded) - scaled) - exp.scale * exp.low


def log1p_tail(f: Array, low: Array) -> Array:
    """log1p(f + low) - f for f in [-0.3, 0.5] and low below the last digit of 1."""
    s = f * (1 / (2 + f))
    z = s * s
    # 1 / (1 + f) is 1 - 2 s + 2 s^2 to within 2 %, which is enough for the low part.
    from_low = low - 2 * low * (s - z)
    return from_low - s * (f - 2 * z * _polynomial(_CONSTANTS[f.dtype].log_tail, z, z * z))


def log_parts(u: Array) -> tuple[Array, Array, Array]:
    """n, 2^-n and f with u = 2^n (1 + f), f in [-0.3, 0.42], exactly, for normal positive u.

    2^-n may be subnormal for u > 1.
    """
    layout = _LAYOUTS[u.dtype]
    bits = _as_integer(u)
    n = (bits - layout.bits_of_sqrt_half) >> layout.mantissa_bits
    shift = n << layout.mantissa_bits
    mantissa = _as_float(bits - shift, u.dtype)
    return n.astype(u.dtype), _as_float(layout.bits_of_one - shift, u.dtype), mantissa - 1


def log_sum(n: Array, f: Array, low: Array) -> Array:
    """log(2^n (1 + f + low)), the small terms first."""
    first, second = times_log2(n)
    return first + (f + (log1p_tail(f, low) + second))


def times_log2(n: Array) -> tuple[Array, Array]:
    """n log(2) for an exponent n, exactly, and what that leaves out."""
    constants = _CONSTANTS[n.dtype]
    return n * constants.log2_high, n * constants.log2_low


def atanh_rest(s: Array) -> Array:
    """atanh(s) - s for |s| <= 1/5."""
    z = s * s
    return s * z * _polynomial(_CONSTANTS[s.dtype].log_tail, z, z * z)


def twice_atanh(s: Array) -> Array:
    """log((1 + s) / (1 - s)) = 2 atanh(s) for |s| <= 1/2."""
    z = s * s
    half = s + s * z * _polynomial(_CONSTANTS[s.dtype].logit_tail, z, z * z)
    return half + half


def add_log2(a: Array) -> tuple[Array, Array]:
    """a + log(2), rounded, and what the rounding left out, for 0 <= a <= log(2)."""
    constants = _CONSTANTS[a.dtype]
    total = a + constants.log2_high
    return total, (a + (constants.log2_high - total)) + constants.log2_low


def exp_bend(x: Array) -> Array:
    """(exp(x) - 1 - x) / x**2 for |x| <= 2, by its power series: 1/2 at 0."""
    x = jnp.clip(x, -2.0, 2.0)
    terms = 23 if x.dtype == jnp.float64 else 14  # the next one is under half an ulp at 2
    series = jnp.full_like(x, 1.0 / math.factorial(terms + 1))
    for n in range(terms, 1, -1):
        series = series * x + 1.0 / math.factorial(n)
    return series


def counts_as_zero(x: Array) -> Array:
    """Where x is subnormal, 0 or less: XLA:CPU takes it for 0, and so do we, on every device."""
    return x < _CONSTANTS[x.dtype].smallest_normal


def _polynomial(coefficients: tuple[float, ...], x: Array, square: Array) -> Array:
    """The polynomial whose constant term comes first, at x with its square.

    Pairs of terms, summed by Horner's rule in the square: half as long a chain of operations.
    """
    even, odd = coefficients[::2], coefficients[1::2]
    terms = [a + b * x for a, b in zip(even, odd, strict=False)]
    value = terms.pop() if len(even) == len(odd) else jnp.full_like(x, even[-1])
    for term in reversed(terms):
        value = value * square + term
    return value


def _as_integer(x: Array) -> Array:
    """The bits of a float."""
    return jax.lax.bitcast_convert_type(x, _LAYOUTS[x.dtype].integer)


def _as_float(bits: Array, dtype: jnp.dtype) -> Array:
    """The float with these bits."""
    return jax.lax.bitcast_convert_type(bits, dtype)
