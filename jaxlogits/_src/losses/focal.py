"""The focal loss as a function of the cross entropy alone, since p = exp(-loss).

It and all of its derivatives are sums of products of four kinds of factors: the loss L, the
probability exp(-L), a power of m = 1 - exp(-L) and powers of log(m). ``_term`` is such a product,
and its derivatives are others. So no order divides by a number that may have underflowed.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import exp, expm1, log, log1p
from jaxlogits._src.base.products import product, spread, times, weigh
from jaxlogits._src.base.rules import derivatives


class _Powers(NamedTuple):
    """How often a factor is in a term."""

    loss: int = 0  # 0 or 1
    p: int = 0
    log: int = 0  # of m
    both: int = 0  # of m beyond gamma and of the loss, which is about m where it is small


def focal(loss: Array, gamma: Array) -> Array:
    """loss * (1 - p)**gamma with p = exp(-loss)."""
    return _term(loss, gamma, _Powers(loss=1, both=1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _term(loss: Array, gamma: Array, n: _Powers) -> Array:
    """loss**n.loss p**n.p log(m)**n.log m**(gamma + n.both - n.loss)."""
    p, m = exp(-loss), -expm1(-loss)
    factors = [jnp.power(m, gamma if n.both > 0 else gamma + n.both)]
    if n.loss:
        relative = jnp.where(m == 0, 1.0, loss / jnp.where(m == 0, 1.0, m))
        factors.append(loss if n.both > 0 else relative)
    # Of a loss that underflowed m is about the smallest number, not 0.
    least = float(jnp.finfo(m.dtype).tiny)
    log_m = jnp.where(m < 0.5, log(jnp.maximum(m, least)), log1p(-p))
    return product(*factors, *[p] * n.p, *[log_m] * n.log)


def _by_loss(dloss: Array, value: Array, loss: Array, gamma: Array, n: _Powers) -> Array:
    lower = n._replace(both=n.both - 1)
    with_p = lower._replace(p=n.p + 1)
    slopes = [weigh(gamma + (n.both - n.loss), _term(loss, gamma, with_p))]
    if n.loss:
        slopes.append(_term(loss, gamma, lower._replace(loss=0)))
    if n.p:
        slopes.append(-n.p * value)
    if n.log:
        slopes.append(n.log * _term(loss, gamma, with_p._replace(log=n.log - 1)))
    return spread(dloss, *slopes)


def _by_gamma(dgamma: Array, _: Array, loss: Array, gamma: Array, n: _Powers) -> Array:
    return times(_term(loss, gamma, n._replace(log=n.log + 1)), dgamma)


derivatives(_term, _by_loss, _by_gamma)
