"""Tail probabilities by their logarithms, which don't underflow where the tests are surest."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.scipy.special import erf, erfc, gammaln, logsumexp

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import log, log1p


def log_two_sided(z: Array) -> Array:
    """The log of the probability that a normal variate is farther from 0 than z, at most 0."""
    distance = jnp.abs(z)
    start = 10 if z.dtype == jnp.float32 else 20  # of the series, whose last term is then rounding
    near, far = distance < 1, distance >= start
    inside = log1p(-erf(jnp.where(near, distance, 0) * 0.5**0.5))
    between = log(erfc(jnp.where(near | far, 1, distance) * 0.5**0.5))
    # exp(-z^2 / 2) / z sqrt(2 / pi) (1 - 1 / z^2 + 3 / z^4 - 15 / z^6 ...)
    x = jnp.where(far, distance, start)
    series = jnp.zeros_like(x)
    for n in range(8, 0, -1):
        series = -(2 * n - 1) / (x * x) * (1 + series)
    beyond = log1p(series) - x * x / 2 - log(x) + math.log(2 / math.pi) / 2
    return jnp.where(near, inside, jnp.where(far, beyond, between))


def log_chi_squared(x: Array, degrees: int) -> Array:
    """The log of the probability that a chi-squared variate is larger than x >= 0.

    By the finite sums of exp(-h) h^k / Gamma(k + 1), h = x / 2, over k = 0, 1, ... < d / 2 for even
    d; for odd d over k = 1/2, 3/2, ..., and the two-sided tail of sqrt(x). All terms are positive.
    """
    if degrees == 0:
        return 0 * x
    odd = degrees % 2
    k = jnp.arange(degrees // 2, dtype=x.dtype) + odd / 2
    positive = x > 0
    h = jnp.where(positive, x, 1) / 2
    terms = k * log(h) - h - gammaln(k + 1)
    if odd:
        terms = jnp.append(terms, log_two_sided(jnp.sqrt(2 * h)))
    at_none = jnp.where(jnp.isnan(x), x, -x / 2 if degrees == 2 else 0)  # with its slope
    return jnp.where(positive, jnp.minimum(logsumexp(terms), 0), at_none)
