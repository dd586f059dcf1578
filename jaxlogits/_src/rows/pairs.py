"""Two rows of logits side by side: their softmaxes' difference, divergence and derivatives.

``a`` and ``b`` are rows ``[..., K]`` as ``rows`` makes them, ``p`` and ``q`` their softmaxes.
Nearly equal rows are where the formulas in terms of log p and log q lose everything: a divergence
of 1e-11 is the sum of terms of size 1e-6. Here it is a sum of terms that are small and not
negative, taken of log(q / p), which is computed from the difference of the logits.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import row_any, row_max, row_sum
from jaxlogits._src.rows.softmax import (
    centred,
    first_max,
    row_stats,
    softmax_rows,
    softmax_tangent,
    without_inf,
)

Pair = tuple[Array, Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def kl_rows(a: Array, b: Array, axis_name: AxisName) -> Array:
    """KL(p || q) of each row; NaN where a row is -inf alone."""
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, compare(a, b, axis_name).kl)[..., 0]


@checkpointed
def _kl_by_a(da: Array, _: Array, a: Array, b: Array, axis_name: AxisName) -> Array:
    of_p = centred_rows(a, log_ratio_rows(a, b, axis_name), axis_name)
    return -contract(softmax_rows(a, axis_name), whole(of_p), da, axis_name)


@checkpointed
def _kl_by_b(db: Array, _: Array, a: Array, b: Array, axis_name: AxisName) -> Array:
    difference = prob_difference_rows(a, b, axis_name)
    return contract(softmax_rows(a, axis_name), difference, db, axis_name)


def contract(p: Array, gradient: Array, tangent: Array, axis_name: AxisName) -> Array:
    """Their inner product, for a gradient that sums to 0.

    A class with p close to 1 has the others' gradient, negated; it keeps its digits only if it is
    computed so.
    """
    likely = p > 0.5
    of_likely = row_sum(jnp.where(likely, tangent, 0.0), axis_name)
    return row_sum(gradient * jnp.where(likely, 0.0, tangent - of_likely), axis_name)[..., 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def prob_difference_rows(a: Array, b: Array, axis_name: AxisName) -> Array:
    """q - p, with all digits where the two are nearly equal."""
    rows = compare(a, b, axis_name)
    near = rows.shared & (jnp.abs(rows.log_mean) <= 1.0) & (jnp.abs(rows.log_ratio) <= 1.0)
    difference = jnp.where(near, rows.p * jnp.expm1(rows.log_ratio), rows.q - rows.p)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, difference)


derivatives(kl_rows, _kl_by_a, _kl_by_b)
derivatives(
    prob_difference_rows,
    lambda da, _, a, __, axis_name: -softmax_tangent(a, da, axis_name),
    lambda db, _, __, b, axis_name: softmax_tangent(b, db, axis_name),
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def centred_rows(a: Array, c: Array, axis_name: AxisName) -> Array:
    """p_i (c_i - sum_j p_j c_j): the derivative of sum_j p_j c_j in a.

    Whatever c is where p = 0, the result is 0 there; it is 0 in all of a row where c is infinite at
    some p > 0.
    """
    p = softmax_rows(a, axis_name)
    weighed = jnp.where(p == 0, 0.0, p * c)
    centred = weighed - p * row_sum(weighed, axis_name)
    return jnp.where(unbounded(a, c, axis_name), 0.0, centred)


@centred_rows.defjvp
def _centred_jvp(axis_name: AxisName, primals: Pair, tangents: Pair) -> Pair:
    (a, c), (da, dc) = primals, tangents
    p, value = softmax_rows(a, axis_name), centred_rows(a, c, axis_name)
    grown = value * centred(p, da, axis_name)
    moved = centred(p, dc, axis_name) - row_sum(grown, axis_name)
    return value, jnp.where(unbounded(a, c, axis_name), 0.0, grown + p * moved)


def unbounded(a: Array, c: Array, axis_name: AxisName) -> Array:
    """Which rows have an infinite c at a class that isn't impossible, and no NaN."""
    a = without_inf(a, axis_name)
    infinite = row_any((a > -jnp.inf) & jnp.isinf(c), axis_name)
    unknown = jnp.isnan(a) | ((a > -jnp.inf) & jnp.isnan(c))
    return infinite & ~row_any(unknown, axis_name)


def is_empty(a: Array, b: Array, axis_name: AxisName) -> Array:
    """Which rows are -inf alone, in either."""
    largest = jnp.minimum(row_max(a, axis_name), row_max(b, axis_name))
    return largest == -jnp.inf


# What the exponentials of both rows say about each other.


class Comparison(NamedTuple):
    """What both rows' exponentials say about each other."""

    p: Array  # [..., K]
    q: Array  # [..., K]
    shared: Array  # [..., K], the classes that are -inf in neither
    log_ratio: Array  # [..., K], log(q / p) where it is shared, else 0
    log_mean: Array  # [..., 1], KL(p || q) over the classes that are shared
    kl: Array  # [..., 1], KL(p || q)


def compare(a: Array, b: Array, axis_name: AxisName) -> Comparison:
    """KL(p || q) and log(q / p), from the differences c = b - a less their mean under p.

    With that mean taken off, the mean of exp(c) is exp(KL), and sum_k p_k phi(c_k) = exp(KL) - 1.
    An error of the mean counts only squared, as phi is flat where its argument is 0.
    """
    a, b = without_inf(a, axis_name), without_inf(b, axis_name)
    of_a, of_b = row_stats(a, axis_name), row_stats(b, axis_name)
    total_a, total_b = 1.0 + of_a.rest, 1.0 + of_b.rest
    p, q = of_a.exps / total_a, of_b.exps / total_b
    shared = (a != -jnp.inf) & (b != -jnp.inf)
    moved = jnp.where(shared, below_max(b, axis_name) - below_max(a, axis_name), 0.0)
    log_totals = jnp.log1p(of_b.rest) - jnp.log1p(of_a.rest)

    # The textbook's sum, right where the result is not small.
    eight_p = _EIGHT * p
    shift = -row_sum(eight_p * moved, axis_name)
    direct = shift + log_totals

    half = float(jnp.finfo(p.dtype).max) / 2.0
    eighths = jnp.where(shared, log_ratio_rows(a, b, axis_name), 0.0)
    mean = jnp.clip(row_sum(eight_p * eighths, axis_name), -half, half)
    c = jnp.clip(_EIGHT * eighths, -half, half) - mean
    # q's exponentials, in proportion to p exp(c).
    tilted = of_b.exps * (jnp.exp(jnp.minimum(shift, 80.0)) / total_a)
    near = shared & (jnp.abs(c) <= 2.0)
    terms = jnp.where(near, p * (c * c * exp_bend(c)), tilted - p * (1.0 + c))
    excess = row_sum(terms, axis_name)
    log_mean = jnp.where((excess > -0.5) & (direct < 9.0), jnp.log1p(excess), direct)
    infinite = row_any((a > -jnp.inf) & (b == -jnp.inf), axis_name)
    kl = jnp.where(infinite & ~jnp.isnan(log_mean), jnp.inf, log_mean)
    # Where c is large it is a difference of large numbers, which log(q / p) need not be; and the
    # mean says nothing of classes that q doesn't have, which may be all that p has.
    fine = near & (log_mean <= 1.0) & ~infinite
    ratio = jnp.where(fine, c - log_mean, whole(moved) - log_totals)
    return Comparison(p, q, shared, jnp.where(shared, ratio, 0.0), log_mean, kl)


_EIGHT = 8.0


def whole(eighths: Array) -> Array:
    """Eight times a number, or the largest one."""
    limit = float(jnp.finfo(eighths.dtype).max) / _EIGHT
    return _EIGHT * jnp.clip(eighths, -limit, limit)


def below_max(z: Array, axis_name: AxisName) -> Array:
    """Eighths of z - max(z): of log probabilities up to a constant for each row."""
    return z / _EIGHT - lax.stop_gradient(row_max(z, axis_name)) / _EIGHT


def _common_max(a: Array, b: Array, axis_name: AxisName) -> Array:
    """One-hot mask of the class that both rows like best, where p * q is largest."""
    return first_max(below_max(a, axis_name) + b / _EIGHT, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_ratio_rows(a: Array, b: Array, axis_name: AxisName) -> Array:
    """Eighths of log(q / p) up to a constant: of b - a, which is 0 for two rows apart by a shift.

    The constant of each row is the difference at a class that both rows like. What b - a loses to
    rounding, which counts if there is a shift, is added after that is taken off. Where one of them
    is -inf the result is infinite, where both are it is 0.
    """
    a, b = without_inf(a, axis_name), without_inf(b, axis_name)
    impossible_a, impossible_b = a == -jnp.inf, b == -jnp.inf
    x, y = (jnp.where(impossible_a | impossible_b, 0.0, z / _EIGHT) for z in (a, b))
    high = y - x
    back = high - y
    low = (y - (high - back)) - (x + back)
    at_common = _common_max(a, b, axis_name)
    common = row_sum(jnp.where(at_common, high, 0.0), axis_name)
    common_low = row_sum(jnp.where(at_common, low, 0.0), axis_name)
    ratio = (high - common) + (low - common_low)
    ratio = jnp.where(impossible_b, -jnp.inf, jnp.where(impossible_a, jnp.inf, ratio))
    ratio = jnp.where(impossible_a & impossible_b, 0.0, ratio)
    return jnp.where(row_max(b, axis_name) == -jnp.inf, jnp.nan, ratio)


# The constant's tangent is left out: whoever uses this takes the mean off.
derivatives(log_ratio_rows, lambda da, *_: -da / _EIGHT, lambda db, *_: db / _EIGHT)
