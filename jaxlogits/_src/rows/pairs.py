"""Two rows of logits side by side: how their softmaxes differ, and by how much.

``a`` and ``b`` are rows ``[..., K]`` as ``rows`` makes them, ``p`` and ``q`` their softmaxes. What
is made of ``Numbers`` takes them in half precision too, and each of its loops widens them.
Nearly equal rows are where the formulas in terms of log p and log q lose everything: a divergence
of 1e-11 is the sum of terms of size 1e-6. Here it is a sum of terms that are small and not
negative, taken of log(q / p), which is computed from the difference of the logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, widen
from jaxlogits._src.base.elementary import exp, expm1, log, log1p
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.mesh.reductions import of_all_devices, row_any, row_max, row_sum
from jaxlogits._src.rows.softmax import centred, softmax_rows, softmax_tangent, without_inf
from jaxlogits._src.rows.stats import probs_of, sum_below

Pair = tuple[Array, Array]


class Numbers(NamedTuple):
    """What is known of a pair of rows; ``[..., 1]`` each. With it a loop makes the rest again."""

    largest: Pair  # of a and of b
    total: Pair  # the sums of exp(z - largest)
    mean: Array  # of b - a under p, where both are taken below their maxima
    kl: Array  # KL(p || q); NaN where one of the rows has no softmax


class Classes(NamedTuple):
    """What is known of the classes of a pair of rows; ``[..., K]`` each."""

    p: Array
    q: Array
    shared: Array  # the classes that are -inf in neither
    log_ratio: Array  # log(q / p) where it is shared, else 0


# What the exponentials of both rows say about each other.


def compare(a: Array, b: Array, axis_name: AxisName) -> Numbers:
    """KL(p || q), from the differences c = b - a less their mean under p.

    With that mean taken off, the mean of exp(c) is exp(KL), and sum_k p_k phi(c_k) = exp(KL) - 1
    for phi(c) = exp(c) - 1 - c. An error of the mean counts only squared, as phi is flat at 0.
    """
    largest = widen(row_max(a, axis_name)), widen(row_max(b, axis_name))
    totals = xla.by_itself(sum_below, a, largest[0]), xla.by_itself(sum_below, b, largest[1])
    totals = of_all_devices(totals, axis_name)
    total: Pair = xla.apart(jax.tree.map(_or_nan, totals, largest))
    weighed = sum_over(_weighed, a, b, largest, total[0], axis_name=axis_name)
    half = float(jnp.finfo(weighed.dtype).max) / 2.0
    mean = jnp.clip(weighed, -half, half)
    excess = sum_over(_excess, a, b, largest, total[0], mean, axis_name=axis_name)
    # The textbook's sum, right where the result is not small.
    direct = log(total[1]) - log(total[0]) - weighed
    kl = jnp.where((excess > -0.5) & (direct < 9.0), log1p(excess), direct)
    return Numbers(
        largest, total, mean, jnp.where((excess == jnp.inf) & ~jnp.isnan(kl), jnp.inf, kl)
    )


def _weighed(a: Array, b: Array, largest: Pair, total: Array) -> Array:
    """p_k times the difference of the logits."""
    return (_EIGHT * probs_of(a, largest[0], total)) * _differences(a, b, largest)[1]


def _excess(a: Array, b: Array, largest: Pair, total: Array, mean: Array) -> Array:
    """p_k phi(c_k), and inf at a class that q doesn't have, but p."""
    p, (shared, c) = probs_of(a, largest[0], total), _centred(a, b, largest, mean)
    # q, in proportion to p exp(c); not needed where the sum is large.
    q = probs_of(b, largest[1], total) * exp(jnp.minimum(-mean, 40.0))
    terms = jnp.where(shared & (jnp.abs(c) <= 2.0), p * (c * c * exp_bend(c)), q - p * (1.0 + c))
    missed = (_eighths(a, largest[0]) > -jnp.inf) & (_eighths(b, largest[1]) == -jnp.inf)
    return jnp.where(missed, jnp.inf, terms)


def classes_of(a: Array, b: Array, numbers: Numbers) -> Classes:
    """p, q and log(q / p), class by class."""
    largest, total, mean, kl = numbers
    shared, c = _centred(a, b, largest, mean)
    far = whole(_differences(a, b, largest)[1])
    # Where c is large it is a difference of large numbers, which log(q / p) need not be; and the
    # mean says nothing of classes that q doesn't have, which may be all that p has.
    near = (jnp.abs(c) <= 2.0) & (kl <= 1.0)
    ratio = jnp.where(near, c - kl, far - (log(total[1]) - log(total[0])))
    p, q = probs_of(a, largest[0], total[0]), probs_of(b, largest[1], total[1])
    return Classes(p, q, shared, jnp.where(shared, ratio, 0.0))


def weighed_rows(a: Array, b: Array, numbers: Numbers) -> Pair:
    """p, and eighths of p (b - a), less a constant times p."""
    largest, total, mean, _ = numbers
    p = probs_of(a, largest[0], total[0])
    return p, p * _differences(a, b, largest, mean)[1]


def prob_difference(a: Array, b: Array, numbers: Numbers) -> Array:
    """q - p, class by class, with all digits where the two are nearly equal."""
    p, q, shared, log_ratio = classes_of(a, b, numbers)
    close = (numbers.kl <= 1.0) | (numbers.kl == jnp.inf)
    near = shared & close & (jnp.abs(log_ratio) <= 1.0)
    difference = jnp.where(near, p * expm1(log_ratio), q - p)
    return jnp.where(jnp.isnan(numbers.kl), jnp.nan, difference)


def sum_over(fn: Callable[..., Array], *args: Any, axis_name: AxisName) -> Array:
    """The sum over a row's classes of what ``fn`` makes of them, in a loop of its own.

    On a CPU it is written once, because a sum's own loop is slow where there are selects.
    """
    return row_sum(xla.one_array(xla.by_itself(fn, *args)), axis_name)


def _or_nan(total: Array, largest: Array) -> Array:
    """NaN for a row that has no softmax: it is -inf alone, or has two +inf."""
    none = (largest == -jnp.inf) | ((largest == jnp.inf) & (total > 1.0))
    return jnp.where(none, jnp.nan, total)


def _eighths(z: Array, largest: Array) -> Array:
    """Eighths of logits: beside +inf, which is 0, all others are impossible."""
    z = widen(z)
    sole = jnp.where(z == largest, 0.0, -jnp.inf)
    return jnp.where(largest == jnp.inf, sole, z / _EIGHT)


def _centred(a: Array, b: Array, largest: Pair, mean: Array) -> Pair:
    """The classes that are -inf in neither, and b - a there, less its mean."""
    shared, eighths = _differences(a, b, largest, mean)
    return shared, whole(eighths) - jnp.where(_is_large(mean), 0.0, mean)


def _differences(a: Array, b: Array, largest: Pair, mean: Array | None = None) -> Pair:
    """The classes that are -inf in neither, and eighths of b - a there, both below their maxima.

    Less a mean if it is large. What b - a loses to rounding, which counts if there is a shift, is
    added after that is gone.
    """
    x, y = _eighths(a, largest[0]), _eighths(b, largest[1])
    top_x, top_y = (jnp.where(jnp.isinf(top), 0.0, top / _EIGHT) for top in largest)
    shared = (x != -jnp.inf) & (y != -jnp.inf)
    high, low = _exact_sum(jnp.where(shared, y, 0.0), -jnp.where(shared, x, 0.0))
    shift, lost = _exact_sum(top_y, -top_x)
    if mean is not None:
        shift, more = _exact_sum(shift, jnp.where(_is_large(mean), mean / _EIGHT, 0.0))
        lost = lost + more
    return shared, jnp.where(shared, (high - shift) + (low - lost), 0.0)


def _is_large(mean: Array) -> Array:
    """Whether a mean is taken off with the shift, where an eighth of it isn't 0 by rounding."""
    return jnp.abs(mean) >= 1.0


def _exact_sum(x: Array, y: Array) -> Pair:
    """x + y as a sum of two numbers, the second of which is what the first loses to rounding."""
    total = x + y
    of_y = total - x
    return total, (x - (total - of_y)) + (y - of_y)


def is_empty(a: Array, b: Array, axis_name: AxisName) -> Array:
    """Which rows are -inf alone, in either."""
    largest = jnp.minimum(row_max(a, axis_name), row_max(b, axis_name))
    return largest == -jnp.inf


_EIGHT = 8.0


def whole(eighths: Array) -> Array:
    """Eight times a number, or the largest one."""
    limit = float(jnp.finfo(eighths.dtype).max) / _EIGHT
    return _EIGHT * jnp.clip(eighths, -limit, limit)


def below_max(z: Array, axis_name: AxisName) -> Array:
    """Eighths of z - max(z): of log probabilities up to a constant for each row."""
    return z / _EIGHT - lax.stop_gradient(row_max(z, axis_name)) / _EIGHT


# Derivatives: inner products with gradients that sum to 0.


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
    return prob_difference(a, b, compare(a, b, axis_name))


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


def _centred_by_logits(da: Array, value: Array, a: Array, c: Array, axis_name: AxisName) -> Array:
    p = softmax_rows(a, axis_name)
    grown = value * centred(p, da, axis_name)
    tangent = grown - p * row_sum(grown, axis_name)
    return jnp.where(unbounded(a, c, axis_name), 0.0, tangent)


def _centred_by_values(dc: Array, _: Array, a: Array, c: Array, axis_name: AxisName) -> Array:
    p = softmax_rows(a, axis_name)
    return jnp.where(unbounded(a, c, axis_name), 0.0, p * centred(p, dc, axis_name))


derivatives(centred_rows, _centred_by_logits, _centred_by_values)


def unbounded(a: Array, c: Array, axis_name: AxisName) -> Array:
    """Which rows have an infinite c at a class that isn't impossible, and no NaN."""
    a = without_inf(a, axis_name)
    infinite = row_any((a > -jnp.inf) & jnp.isinf(c), axis_name)
    unknown = jnp.isnan(a) | ((a > -jnp.inf) & jnp.isnan(c))
    return infinite & ~row_any(unknown, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_ratio_rows(a: Array, b: Array, axis_name: AxisName) -> Array:
    """Eighths of log(q / p) up to a constant: of b - a, which is 0 for two rows apart by a shift.

    Where one of them is -inf the result is infinite, where both are it is 0.
    """
    largest = row_max(a, axis_name), row_max(b, axis_name)
    shared, ratio = _differences(a, b, largest)
    alone = jnp.where(_eighths(b, largest[1]) == -jnp.inf, -jnp.inf, jnp.inf)
    both = (_eighths(a, largest[0]) == -jnp.inf) & (_eighths(b, largest[1]) == -jnp.inf)
    ratio = jnp.where(shared | both, ratio, alone)
    return jnp.where(largest[1] == -jnp.inf, jnp.nan, ratio)


# The constant's tangent is left out: whoever uses this takes the mean off.
derivatives(log_ratio_rows, lambda da, *_: -da / _EIGHT, lambda db, *_: db / _EIGHT)
