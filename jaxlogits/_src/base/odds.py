"""The functions between a probability and its log-odds, in float32 or float64, with their rules.

Each function has a rule with the closed form of its derivative, and the closed forms are functions
with rules of their own:

    sigmoid' = slope            slope' = -slope tanh(x/2)     tanh(x/2)' = 2 slope
    softplus' = sigmoid         logit' = |1/p + 1/(1-p)| = r  r' = (2p - 1) r^2
    log1mexp' = 1/expm1 = g     g' = -g (1 + g)               logitexp' = 1 + g(-x)

so every order is as accurate as the first.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlogits._src.base import exp_log as el
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.products import times
from jaxlogits._src.base.rules import derivatives

# log(2) less itself rounded to the dtype, from mpmath: mp.log(2) - mp.mpf(float(dtype(np.log(2)))).
_LOG2_LESS_ROUNDED = {"float32": -1.904654299957e-09, "float64": 2.3190468138462996e-17}


@jax.custom_jvp
def logit(p: Array) -> Array:
    low_half = p < 0.5
    complement = 1 - p
    small = jnp.where(low_half, p, complement)
    large = jnp.where(low_half, complement, p)
    # What the rounding of 1 - p leaves out; nothing where p is the larger one.
    left_out = jnp.where(low_half, (1 - large) - p, 0)
    n, _, f = el.log_parts(small / large)
    size = -el.log_sum(n, f, -left_out * (1 + small) * (1 + f))
    at_edge = jnp.where(small >= 0, jnp.inf, jnp.nan)
    size = jnp.where(el.counts_as_zero(small), at_edge, size)
    middle = el.twice_atanh(2 * p - 1)
    return jnp.where(small >= 0.25, middle, jnp.where(low_half, -size, size))


@jax.custom_jvp
def logit_slope(p: Array) -> Array:
    # 1 / p + 1 / (1 - p), and 4 / (1 - s^2) with an exact s = 2p - 1 where its terms are alike.
    s = 2 * p - 1
    middle = jnp.abs(s) <= 0.5
    larger = jnp.where(middle, 0, 1 / p)
    slope = jnp.abs(larger + 1 / jnp.where(middle, 0.25 - 0.25 * (s * s), 1 - p))
    return jnp.where((p >= 0) & (p <= 1), slope, jnp.nan)


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    exp = el.exp_parts(-jnp.abs(x))
    t = exp.scale * (1 + exp.p)
    return _divided(jnp.where(x < 0, t, 1), exp)


@jax.custom_jvp
def sigmoid_slope(x: Array) -> Array:
    small = _small_sigmoid(x)
    return small - small * small


@jax.custom_jvp
def tanh_half(x: Array) -> Array:
    exp = el.exp_parts(-jnp.abs(x))
    numerator, _ = el.complement(exp)
    return jnp.copysign(numerator / (1 + exp.scale * (1 + exp.p)), x)


def _small_sigmoid(x: Array) -> Array:
    """sigmoid(-|x|)."""
    exp = el.exp_parts(-jnp.abs(x))
    return _divided(exp.scale * (1 + exp.p), exp)


def _divided(numerator: Array, exp: el.Exp) -> Array:
    """numerator / (1 + t) for t = exp(-|x|), with a Newton step."""
    t = exp.scale * (1 + exp.p)
    y = numerator * (1 / ((1 + exp.scale) + exp.scale * exp.p))
    # The step's factor is 1 / (1 + t) to within 13 %, and exact for small t. Using the reciprocal
    # again would cost the fusion: XLA takes a division for too expensive to have two readers, and
    # breaks the loop in two there.
    return y + ((numerator - y) - y * t) * (1 - 0.5 * t)


@jax.custom_jvp
def softplus(x: Array) -> Array:
    t, low = el.exp_rounded(el.exp_parts(-jnp.abs(x)))
    big = t > 0.5
    f = jnp.where(big, (t - 1) * 0.5, t)
    tail = el.log1p_tail(f, jnp.where(big, low * 0.5, low))
    positive = jnp.maximum(x, 0)
    base, left_out = el.add_log2(positive)
    return jnp.where(big, base, positive) + (f + (tail + jnp.where(big, left_out, 0)))


@jax.custom_jvp
def log1mexp(x: Array) -> Array:
    exp = el.exp_parts(-x)
    u, u_low = el.complement(exp)
    n, unscale, f = el.log_parts(u)
    # Without an exponent to take out, 1 + f is 1 - exp(-x), and f needs no subtraction.
    t, t_low = el.exp_rounded(exp)
    f = jnp.where(n == 0, -t, f)
    low = jnp.where(n == 0, -t_low, u_low * unscale)
    value = el.log_sum(n, f, low)
    value = jnp.where(el.counts_as_zero(u), -jnp.inf, value)
    return jnp.where(x >= 0, value, jnp.nan)


@jax.custom_jvp
def logitexp(x: Array) -> Array:
    # x + log(2) has all digits near -log(2), but for what the rounding of log(2) leaves out.
    is_middle = (x > -1.0) & (x < -0.375)
    high = float(np.asarray(np.log(2.0), x.dtype))
    low = _LOG2_LESS_ROUNDED[x.dtype.name]
    s = el.exp_parts(jnp.where(is_middle, x, -high) + high).p  # so small that its exponent is 0
    middle = el.twice_atanh(s + (1 + s) * low)
    finite = jnp.where(x == -jnp.inf, 0.0, log1mexp(-x))
    return jnp.where(is_middle, middle, x - finite)


@jax.custom_jvp
def log1mexp_slope(x: Array) -> Array:
    exp = el.exp_parts(-x)
    u, _ = el.complement(exp)
    return jnp.where(x >= 0, exp.scale * (1 + exp.p) / u, jnp.nan)


def _define(
    function: jax.custom_jvp[Array],
    slope: Callable[[Array], Array],
    by: Callable[[Array, Array], Array] = jnp.multiply,
) -> None:
    """Give the function its derivative in closed form; multiplied ``by=times`` if it has poles."""
    derivatives(function, lambda dx, _, x: by(slope(x), dx))


_define(logit, logit_slope, by=times)
_define(logit_slope, lambda p: (2 * p - 1) * logit_slope(p) ** 2, by=times)
_define(sigmoid, sigmoid_slope)
_define(sigmoid_slope, lambda x: -sigmoid_slope(x) * tanh_half(x))
_define(tanh_half, lambda x: 2 * sigmoid_slope(x))
_define(softplus, sigmoid)
_define(log1mexp, log1mexp_slope, by=times)
_define(logitexp, lambda x: 1 + log1mexp_slope(-x), by=times)
_define(log1mexp_slope, lambda x: -log1mexp_slope(x) * (1 + log1mexp_slope(x)), by=times)
