"""Bernoulli distributions by their log-odds: entropy, divergence and negative log likelihood."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import expm1, log1p
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.products import product, times, weigh
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.log_odds import sigmoid, softplus


@jax.custom_jvp
def binary_entropy(x: Array) -> Array:
    """softplus(-|x|) + |x| sigmoid(-|x|)."""
    size = jnp.abs(x)
    return softplus(-size) + product(size, sigmoid(-size))


derivatives(binary_entropy, lambda dx, _, x: -product(x, sigmoid(x), sigmoid(-x)) * dx)


@jax.custom_jvp
def binary_kl(a: Array, b: Array) -> Array:
    """softplus(b) - softplus(a) - sigmoid(a) (b - a).

    With the deviations c of d = b - a from its mean under p it is log(1 + mean of phi(c)),
    phi(c) = exp(c) - 1 - c, which has no term below 0; for distant ones the logarithms themselves.
    """
    p, rest, d = sigmoid(a), sigmoid(-a), _difference(b, a)
    is_close = jnp.abs(d) < 1.0
    near = jnp.where(is_close, d, 0.0)
    close = log1p(p * _phi(rest * near) + rest * _phi(-p * near))
    # log p - log q of both labels. They differ by d, so that the less likely one has digits, too.
    of_one, of_zero = softplus(-b) - softplus(-a), softplus(b) - softplus(a)
    is_one, is_zero = (jnp.isfinite(d) & is_likelier for is_likelier in (p > rest, p <= rest))
    of_one, of_zero = (
        jnp.where(is_zero, of_zero - d, of_one),
        jnp.where(is_one, of_one + d, of_zero),
    )
    far = jnp.maximum(product(p, of_one) + product(rest, of_zero), 0.0)
    # What q rules out and p doesn't, even if its probability underflows.
    is_impossible = jnp.isinf(b) & (a != b) & ~jnp.isnan(a)
    return jnp.where(is_close, close, jnp.where(is_impossible, jnp.inf, far))


def _difference(a: Array, b: Array) -> Array:
    """a - b, 0 between infinities of one sign; that of equal numbers has a derivative."""
    return jnp.where(jnp.isinf(a) & (a == b), 0.0, a - b)


def _phi(c: Array) -> Array:
    """exp(c) - 1 - c for |c| < 1."""
    return c * c * exp_bend(c)


@jax.custom_jvp
def _prob_difference(a: Array, b: Array) -> Array:
    """sigmoid(b) - sigmoid(a), which doesn't cancel."""
    d = _difference(b, a)
    shared = jnp.where(d > 0, sigmoid(b) * sigmoid(-a), sigmoid(a) * sigmoid(-b))
    return shared * jnp.copysign(expm1(-jnp.abs(d)), d)


def _slope(x: Array) -> Array:
    return sigmoid(x) * sigmoid(-x)


derivatives(
    binary_kl,
    lambda da, _, a, b: times(product(_difference(a, b), _slope(a)), da),
    lambda db, _, a, b: _prob_difference(a, b) * db,
)


derivatives(
    _prob_difference,
    lambda da, _, a, __: -_slope(a) * da,
    lambda db, _, __, b: _slope(b) * db,
)


@jax.custom_jvp
def _cost(x: Array, weight: Array) -> Array:
    """softplus(x), the loss of the opposite label; 0 where that is inf and has weight 0."""
    cost = softplus(x)
    return jnp.where((weight == 0) & jnp.isinf(cost), 0.0, cost)


derivatives(_cost, lambda dx, _, x, __: sigmoid(x) * dx, None)


@jax.custom_jvp
def binary_nll(x: Array, y: Array, weight: Array | None, smoothing: Array | None) -> Array:
    """weight t softplus(-x) + (1 - t) softplus(x), t the smoothed label."""
    t = _smoothed(y, smoothing)
    positive = t if weight is None else weight * t
    return positive * _cost(-x, positive) + (1.0 - t) * _cost(x, 1.0 - t)


def _smoothed(y: Array, smoothing: Array | None) -> Array:
    return y if smoothing is None else y + smoothing * (0.5 - y)


def _nll_by_logit(
    dx: Array, _: Array, x: Array, y: Array, weight: Array | None, smoothing: Array | None
) -> Array:
    t = _smoothed(y, smoothing)
    positive = t if weight is None else weight * t
    return ((1.0 - t) * sigmoid(x) - positive * sigmoid(-x)) * dx


def nll_by_label(x: Array, y: Array, weight: Array | None, smoothing: Array | None) -> Array:
    """The loss's derivative in the smoothed label."""
    t = _smoothed(y, smoothing)
    if weight is None:
        return _cost(-x, t) - _cost(x, 1.0 - t)
    return weigh(weight, _cost(-x, weight * t)) - _cost(x, 1.0 - t)


def _nll_by_weight(
    dweight: Array, _: Array, x: Array, y: Array, weight: Array, smoothing: Array | None
) -> Array:
    t = _smoothed(y, smoothing)
    return times(weigh(t, _cost(-x, weight * t)), dweight)


derivatives(
    binary_nll,
    _nll_by_logit,
    lambda dy, _, *args: times(
        nll_by_label(*args) if args[3] is None else weigh(1.0 - args[3], nll_by_label(*args)),
        dy,
    ),
    _nll_by_weight,
    lambda dsmoothing, _, *args: times(weigh(0.5 - args[1], nll_by_label(*args)), dsmoothing),
)
