"""Tsallis' exponential and logarithm, of which alpha-entmax is made, and their derivatives.

exp_a(x) = (1 + a x)**(1 / a), 0 for x <= -1 / a, and its inverse log_a(p) = (p**a - 1) / a; at
a = 0 they are exp and log. (Tsallis' own index is q = 1 - a for the exponential.) The entropy that
belongs to them is -omega(p), omega(p) = (p**(1 + a) - p) / (a (1 + a)).

``power`` is 1 / a where that is known to be 1 or 2, and 0 where a is an array.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import exp, expm1, log, log1p
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.products import times, weigh
from jaxlogits._src.base.rules import derivatives


def exp_a(x: Array, a: Array, power: int) -> Array:
    """(1 + a x)**(1 / a), and exp(x) at a = 0."""
    if power == 1:
        return jnp.maximum(1.0 + x, 0.0)
    if power == 2:
        return jnp.square(jnp.maximum(1.0 + 0.5 * x, 0.0))
    x = jnp.maximum(x, lowest(x))  # 0 * inf
    t = jnp.maximum(a * x, -1.0)
    small = jnp.abs(t) < 1e-4
    safe = jnp.where(small, 1.0, t)
    series = 1.0 - t * (0.5 - t * (1.0 / 3.0 - t * 0.25))
    return exp(x * jnp.where(small, series, log1p(safe) / safe))


def slope_a(p: Array, a: Array, power: int) -> Array:
    """exp_a's derivative, p**(1 - a) in the support and 0 outside."""
    if power == 1:
        return xla.is_positive(p)
    inside = p > 0
    safe = jnp.where(inside, p, 1.0)
    return jnp.where(inside, jnp.sqrt(safe) if power == 2 else jnp.power(safe, 1.0 - a), p)


def exp_a_bend(p: Array, a: Array) -> Array:
    """exp_a(x)'s derivative in a, -(p log(p)**2) phi(w) / w**2 with w = -a log p.

    phi(w) = exp(w) - 1 - w, so that it is -p log(p)**2 / 2 at a = 0.
    """
    inside = p > 0
    safe = jnp.where(inside, p, 1.0)
    log_p = log(safe)
    w = -a * log_p
    near = w <= 2.0
    inner = -safe * jnp.square(log_p) * exp_bend(w)
    outer = jnp.where(near, 1.0, a)
    far = (safe * (1.0 + w) - jnp.power(safe, 1.0 - a)) / (outer * outer)
    return jnp.where(inside, jnp.where(near, inner, far), 0.0 * p)


def lowest(x: Array) -> float:
    """A number that no power takes to infinity: for -inf."""
    return -float(jnp.finfo(x.dtype).max) / 4.0


def log_a(p: Array, a: Array) -> Array:
    """exp_a's inverse, (p**a - 1) / a, and log(p) at a = 0."""
    log_p = log(p)
    safe = jnp.where(p > 0, log_p, 0.0)
    at_zero = -1.0 / jnp.broadcast_to(a, p.shape)
    return jnp.where(p == 0, at_zero, jnp.where(p > 0, safe, log_p) * relative_expm1(a * safe))


def power_a(p: Array, a: Array) -> Array:
    """p**a for p > 0, else 0."""
    return jnp.where(p > 0, jnp.power(jnp.where(p > 0, p, 1.0), a), 0.0 * p)


@jax.custom_jvp
def raised(base: Array, exponent: Array) -> Array:
    """base**exponent, whose derivatives are such powers again, with 0 times infinity as 0."""
    return jnp.power(base, exponent)


derivatives(
    raised,
    lambda dbase, _, base, exponent: times(weigh(exponent, raised(base, exponent - 1.0)), dbase),
    lambda dexponent, value, base, _: times(weigh(value, log(base)), dexponent),
)


def omega_bend(p: Array, a: Array) -> Array:
    """omega's derivative in a."""
    bend = -exp_a_bend(p, a) * power_a(p, a)
    log_p = log(jnp.where(p > 0, p, 1.0))
    entropy = jnp.where(p > 0, p * log_p * relative_expm1(a * log_p), 0.0 * p)
    return (bend - entropy / (1.0 + a)) / (1.0 + a)


def power_minus_line(t: Array, a: Array) -> Array:
    """((1 + t)**(1 + a) - 1 - (1 + a) t) / (a (1 + a)) for |t| <= 1/4, by its power series."""
    term = 0.5 * t * t
    total = term
    for n in range(2, 28 if t.dtype == jnp.float64 else 14):  # terms shrink by 4 or more
        term = term * t * ((a - (n - 1.0)) / (n + 1.0))
        total = total + term
    return total


def relative_expm1(x: Array) -> Array:
    """expm1(x) / x, 1 at 0."""
    return _moment(x, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moment(x: Array, n: int) -> Array:
    """The integral of s**n exp(x s) over s from 0 to 1: the nth derivative of expm1(x) / x."""
    safe = jnp.where(x == 0, 1.0, x)
    moment = jnp.where(x == 0, 1.0, expm1(safe) / safe)
    if n == 0:
        return moment
    near = jnp.abs(x) <= n + 1.0  # where the recurrence cancels
    small, safe = jnp.where(near, x, 0.0), jnp.where(near, 1.0, x)
    series = jnp.zeros_like(x)
    for k in range(20 + 4 * n if x.dtype == jnp.float32 else 36 + 6 * n, -1, -1):
        series = series * small + 1.0 / (math.factorial(k) * (n + k + 1))
    moment = expm1(safe) / safe
    for m in range(1, n + 1):
        moment = (exp(safe) - m * moment) / safe
    return jnp.where(near, series, moment)


derivatives(_moment, lambda dx, _, x, n: _moment(x, n + 1) * dx)
