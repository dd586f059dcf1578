"""Two softmaxes against their mixture m = w p + (1 - w) q: Jensen and Shannon's divergence.

``a`` and ``b`` are rows ``[..., K]`` of logits, ``p`` and ``q`` their softmaxes.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.elementary import exp, expm1, log, log1p
from jaxlogits._src.base.products import times
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.pairs import (
    centred_rows,
    classes_of,
    compare,
    contract,
    is_empty,
    prob_difference_rows,
)
from jaxlogits._src.rows.softmax import centred, softmax_or_zeros, softmax_rows


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def js_rows(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """w KL(p || m) + (1 - w) KL(q || m) of each row."""
    of_p = _kl_to_mixture(a, b, w, axis_name)
    of_q = _kl_to_mixture(b, a, 1.0 - w, axis_name)
    # Where one of them is all of the mixture, the other's divergence from it may be infinite.
    return jnp.where(w == 0, of_q, jnp.where(w == 1, of_p, w * of_p + (1.0 - w) * of_q))


@checkpointed
def _js_by_first(da: Array, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """By the logits that have the weight w; the mixture's own tangent cancels."""
    gradient = centred_rows(a, _log_to_mixture(a, b, w, axis_name), axis_name)
    return w * contract(softmax_rows(a, axis_name), gradient, da, axis_name)


@checkpointed
def _js_by_weight(dw: Array, _: Array, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    of_p, of_q = _kl_to_mixture(a, b, w, axis_name), _kl_to_mixture(b, a, 1.0 - w, axis_name)
    return times(of_p - of_q, dw)


derivatives(
    js_rows,
    lambda da, _, a, b, w, axis_name: _js_by_first(da, a, b, w, axis_name),
    lambda db, _, a, b, w, axis_name: _js_by_first(db, b, a, 1.0 - w, axis_name),
    _js_by_weight,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _kl_to_mixture(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """KL(p || m) of each row, as sum_k m_k psi(x_k) with x = p / m - 1 = (1 - w) (p - q) / m."""
    difference = prob_difference_rows(a, b, axis_name)
    m = w * softmax_rows(a, axis_name) + (1.0 - w) * softmax_rows(b, axis_name)
    alone = w == 0  # then m is q
    x = jnp.where(alone | (m == 0), 0.0, (w - 1.0) * difference / jnp.where(m == 0, 1.0, m))
    divergence = row_sum(m * _log_minus_line(x), axis_name)
    divergence = jnp.where(alone, compare(a, b, axis_name).kl, divergence)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, divergence)[..., 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_to_mixture(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """log(p / m), from r = log(q / p) as -log(w + (1 - w) exp(r))."""
    rows = classes_of(a, b, compare(a, b, axis_name))
    r = rows.log_ratio
    near = -log1p((1.0 - w) * expm1(jnp.minimum(r, 1.0)))
    tiny = float(jnp.finfo(r.dtype).tiny)
    far = -r - log(jnp.maximum((1.0 - w) + w * exp(-jnp.maximum(r, 0.0)), tiny))
    alone = jnp.where(rows.p > 0, -log(w), jnp.where(rows.q > 0, -jnp.inf, 0.0))
    log_ratio = jnp.where(rows.shared, jnp.where(r <= 1.0, near, far), alone)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, log_ratio)


def _log_by_first(da: Array, _: Any, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    dlog_p = centred(softmax_or_zeros(a, axis_name), da, axis_name)
    return _share_of_second(a, b, w, axis_name) * dlog_p


def _log_by_second(db: Array, _: Any, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    dlog_q = centred(softmax_or_zeros(b, axis_name), db, axis_name)
    return -_share_of_second(a, b, w, axis_name) * dlog_q


def _log_by_weight(dw: Array, _: Any, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    of_p, of_q = _log_to_mixture(a, b, w, axis_name), _log_to_mixture(b, a, 1.0 - w, axis_name)
    return (exp(of_q) - exp(of_p)) * dw


def _share_of_second(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """The part of the mixture's probability that q has, (1 - w) q / m."""
    return (1.0 - w) * exp(_log_to_mixture(b, a, 1.0 - w, axis_name))


derivatives(_log_to_mixture, _log_by_first, _log_by_second, _log_by_weight)


def _kl_by_first(da: Array, _: Any, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    p = softmax_rows(a, axis_name)
    log_ratio = _log_to_mixture(a, b, w, axis_name)
    of_p = contract(p, centred_rows(a, log_ratio, axis_name), da, axis_name)
    return of_p + _mean(a, _log_by_first(da, None, a, b, w, axis_name), axis_name)


def _mean(a: Array, x: Array, axis_name: AxisName) -> Array:
    """The mean of x under p."""
    return row_sum(softmax_rows(a, axis_name) * x, axis_name)[..., 0]


derivatives(
    _kl_to_mixture,
    _kl_by_first,
    lambda db, _, a, *args: _mean(a, _log_by_second(db, None, a, *args), args[-1]),
    lambda dw, _, a, *args: _mean(a, _log_by_weight(dw, None, a, *args), args[-1]),
)


def _log_minus_line(x: Array) -> Array:
    """psi(x) = (1 + x) log(1 + x) - x for x >= -1, which is x**2 / 2 near 0."""
    near = (x >= -2.0 / 3.0) & (x <= 2.0)
    inner = jnp.where(near, x, 0.0)
    s = inner / (2.0 + inner)  # log(1 + x) = 2 atanh(s), 1 + x = (1 + s) / (1 - s)
    terms = 26 if x.dtype == jnp.float64 else 12  # the next one is under half an ulp at 1/2
    series = jnp.full_like(x, 1.0 / (2 * terms + 1))
    for n in range(2 * terms - 1, 1, -2):
        series = series * (s * s) + 1.0 / n
    bent = 2.0 * s * s * (1.0 + (1.0 + s) * s * series) / (1.0 - s)
    outer = jnp.where(near, 1.0, jnp.maximum(x, -1.0))
    plain = jnp.where(outer == -1.0, 1.0, (1.0 + outer) * log1p(outer) - outer)
    return jnp.where(near, bent, plain)
