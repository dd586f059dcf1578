"""exp, log, log1p and expm1 of float arrays, as accurate as the device can compute them.

A TPU's own are short: JAX's documentation counts errors of 116 ulp for exp and 1772 for expm1 on a
v5e, and 2 with what is asked for here. On a CPU the compiled program is the same.
"""

from __future__ import annotations

from jax import lax

from jaxlogits._src.base.dtypes import Array

_BEST = lax.AccuracyMode.HIGHEST


def exp(x: Array) -> Array:
    return lax.exp(x, accuracy=_BEST)


def expm1(x: Array) -> Array:
    return lax.expm1(x, accuracy=_BEST)


def log(x: Array) -> Array:
    return lax.log(x, accuracy=_BEST)


def log1p(x: Array) -> Array:
    return lax.log1p(x, accuracy=_BEST)
