"""Softmax of rows ``[..., K]`` and its relatives, with their derivatives.

Two habits keep every result accurate at any gap between the logits:

- the sum of exponentials is kept as 1 + rest (``stats.py``), so that log1p(rest) and
  rest / (1 + rest) stay right where the maximum has almost all of the probability;
- tangents are taken relative to that of a likely class, which cancels in the softmax, so that 1 - p
  is never formed for a class whose p is close to 1.

A row of -inf has no softmax: its results are NaN, but for logsumexp's -inf.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, widen
from jaxlogits._src.base.elementary import exp, log1p
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import (
    class_indices,
    each_class,
    has_few_classes,
    of_all_devices,
    row_first,
    row_max,
    row_sum,
)
from jaxlogits._src.rows.stats import (
    counted,
    exp_below,
    exp_of,
    gaps_of,
    has_two_inf,
    probs_of,
    rest_of_softmax,
    row_stats,
    row_sums,
)


def first_max(z: Array, axis_name: AxisName) -> Array:
    """One-hot mask of the first maximum."""
    return row_first(z == row_max(z, axis_name), axis_name)


def without_inf(z: Array, axis_name: AxisName) -> Array:
    """The logits of the same softmax without +inf; NaN for a row that has several."""
    is_inf = z == jnp.inf
    count = row_sum(is_inf.astype(z.dtype), axis_name)
    sole = jnp.where(is_inf, 0.0, jnp.where(jnp.isnan(z), jnp.nan, -jnp.inf))
    return jnp.where(count == 0, z, jnp.where(count == 1, sole, jnp.nan))


def label_mask(shape: tuple[int, ...], labels: Array, axis_name: AxisName) -> Array:
    """One-hot mask of the labels."""
    # Compared in the labels' own dtype: a cast could wrap a large label round to a valid one.
    return class_indices(shape, labels.dtype, axis_name) == labels[..., None]


@checkpointed
def centred(p: Array, dz: Array, axis_name: AxisName) -> Array:
    """dz_i - sum_j p_j dz_j, where both terms are first taken relative to a likely class's tangent.

    One with p close to 1 has the others' tangents, negated: 1 - p is never formed. Where no class
    is likely it is the mean, so that what all tangents share is taken off before the digits count.
    """
    likely = p > 0.5
    share = jnp.where(row_max(p, axis_name) > 0.5, likely.astype(p.dtype), p)
    reference = xla.apart(row_sum(share * dz, axis_name))
    # The select says once more that dz - dz is 0, for reverse mode, where the two are far apart.
    relative = jnp.where(likely, 0.0, dz - reference)
    return relative - xla.apart(row_sum(p * relative, axis_name))


class _Known(NamedTuple):
    """What a row's softmax is made of again, class by class; ``[..., 1]`` each."""

    largest: Array
    total: Array  # the sum of exp(z - max); NaN without a softmax, inf where it counts as zeros


def softmax_rows(z: Array, axis_name: AxisName) -> Array:
    """Softmax over the last axis, of rows in any floating-point dtype."""
    if z.dtype == widen(z).dtype:
        return _wide_softmax(z, axis_name)
    return _softmax_and_sums(z, axis_name)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _wide_softmax(z: Array, axis_name: AxisName) -> Array:
    return _softmax_and_sums(z, axis_name)[0]


derivatives(_wide_softmax, lambda dz, p, _, axis_name: p * centred(p, dz, axis_name))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_and_sums(z: Array, axis_name: AxisName) -> tuple[Array, _Known]:
    """The result, and what its derivative takes from the rows, which counts as constants.

    Logits of half precision are less to keep than the result.
    """
    # A row of -inf is NaN, and so is one of several +inf; beside a single one all others vanish.
    largest = widen(row_max(z, axis_name))
    if has_few_classes(z):
        # XLA:CPU takes half the time for this, and would lose NaN.
        top = jnp.minimum(largest, float(jnp.finfo(largest.dtype).max))
        exps = exp_of(widen(z) - top)
        own = functools.reduce(jnp.add, each_class(exps))
        some_nan = functools.reduce(jnp.logical_or, map(jnp.isnan, each_class(z)))
        own = jnp.where(some_nan, jnp.nan, own)
    else:
        exps = exp_below(z, largest)
        own = row_sum(exps, None)
    total = of_all_devices(own, axis_name)
    total = jnp.where(has_two_inf(total) | (total == 0.0), jnp.nan, total)
    return exps / total, _Known(largest, counted(total, largest))


@checkpointed
def _softmax_by_z(dz: Array, sums: _Known, z: Array, axis_name: AxisName) -> Array:
    p = xla.apart(_softmax_again(z, sums, axis_name))
    return p * centred(p, widen(dz), axis_name)


derivatives(_softmax_and_sums, _softmax_by_z)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_complement_rows(z: Array, axis_name: AxisName) -> Array:
    """1 - softmax over the last axis, accurate where the softmax is close to 1."""
    stats = row_stats(z, axis_name)
    total = 1.0 + stats.rest
    complement = jnp.where(first_max(z, axis_name), stats.rest / total, 1.0 - stats.exps / total)
    return jnp.where(stats.largest == -jnp.inf, jnp.nan, complement)


@checkpointed
def softmax_tangent(z: Array, dz: Array, axis_name: AxisName) -> Array:
    """The tangent of softmax_rows."""
    p = softmax_rows(z, axis_name)
    return p * centred(p, widen(dz), axis_name)


derivatives(softmax_complement_rows, lambda dz, _, z, axis_name: -softmax_tangent(z, dz, axis_name))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _softmax_again(z: Array, sums: _Known, axis_name: AxisName) -> Array:
    """Softmax over the last axis, without a sum."""
    del axis_name
    return probs_of(z, *sums)


def _softmax_again_by_z(dz: Array, _: Array, z: Array, sums: _Known, axis_name: AxisName) -> Array:
    is_zeros = jnp.isinf(sums.total)
    z, dz = (jnp.where(is_zeros, 0.0, x) for x in (z, dz))
    return softmax_tangent(z, dz, axis_name)


derivatives(_softmax_again, _softmax_again_by_z, None)


def log_softmax_rows(z: Array, axis_name: AxisName) -> Array:
    """Log of softmax over the last axis, of rows in any floating-point dtype."""
    return _log_softmax_and_sums(z, axis_name)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _log_softmax_and_sums(z: Array, axis_name: AxisName) -> tuple[Array, _Known]:
    """The result, and what its derivative takes from the rows, which counts as constants."""
    sums = row_sums(z, axis_name)
    rest = jnp.where(sums.largest == -jnp.inf, jnp.nan, rest_of_softmax(sums))
    gaps = gaps_of(widen(z), sums.largest)
    return -gaps - log1p(rest), _Known(sums.largest, 1.0 + rest)


@checkpointed
def _log_softmax_by_z(dz: Array, sums: _Known, z: Array, axis_name: AxisName) -> Array:
    return centred(_softmax_again(z, sums, axis_name), widen(dz), axis_name)


derivatives(_log_softmax_and_sums, _log_softmax_by_z)


def logsumexp_rows(z: Array, axis_name: AxisName) -> Array:
    """Log of the sum of exponentials over the last axis, of rows in any floating-point dtype."""
    return _logsumexp_and_sums(z, axis_name)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _logsumexp_and_sums(z: Array, axis_name: AxisName) -> tuple[Array, _Known]:
    """The result, and what its derivative takes from the rows, which counts as constants."""
    sums = row_sums(z, axis_name)
    largest, rest = sums.largest, sums.rest
    value = jnp.where(jnp.isinf(largest) & ~jnp.isnan(rest), largest, largest + log1p(rest))
    rest = rest_of_softmax(sums)
    total = jnp.where((largest == -jnp.inf) & ~jnp.isnan(rest), jnp.inf, 1.0 + rest)
    return value[..., 0], _Known(largest, total)


@checkpointed
def _logsumexp_by_z(dz: Array, sums: _Known, z: Array, axis_name: AxisName) -> Array:
    return row_sum(_softmax_again(z, sums, axis_name) * widen(dz), axis_name)[..., 0]


derivatives(_logsumexp_and_sums, _logsumexp_by_z)


def softmax_or_zeros(z: Array, axis_name: AxisName) -> Array:
    """Softmax over the last axis, 0 in a row of -inf, and so are its derivatives of any order."""
    empty = row_max(z, axis_name) == -jnp.inf
    return jnp.where(empty, 0.0, softmax_rows(jnp.where(empty, 0.0, z), axis_name))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_odds_rows(z: Array, axis_name: AxisName) -> Array:
    """z_i minus the logsumexp of the others, with the first maximum treated apart."""
    is_max = first_max(z, axis_name)
    others = jnp.where(is_max, -jnp.inf, z)
    stats = row_stats(others, axis_name)
    # Leaving the second largest out of the others' sum, subtraction would cancel.
    others_but_one = jnp.where(
        first_max(others, axis_name), stats.rest, 1.0 + stats.rest - stats.exps
    )
    largest = row_max(z, axis_name)
    gap = largest - stats.largest
    is_sole = (stats.largest == -jnp.inf) & ~jnp.isnan(stats.rest)
    of_max = jnp.where(is_sole, jnp.inf, gap - log1p(stats.rest))
    of_others = (z - largest) - log1p(others_but_one * exp(-gap))
    log_odds = jnp.where(is_max, of_max, of_others)
    return jnp.where(largest == -jnp.inf, jnp.nan, log_odds)


@checkpointed
def _log_odds_tangent(z: Array, dz: Array, axis_name: AxisName) -> Array:
    """(dz_i - sum_j p_j dz_j) / (1 - p_i).

    For the maximum its limit, the softmax of the others, as p_j / (1 - p_i) is 0/0 at a large gap.
    """
    is_max = first_max(z, axis_name)
    dz_max = row_sum(jnp.where(is_max, dz, 0.0), axis_name)
    relative = jnp.where(is_max, 0.0, dz - dz_max)
    among_others = softmax_or_zeros(jnp.where(is_max, -jnp.inf, z), axis_name)
    of_max = -row_sum(among_others * relative, axis_name)
    mean = row_sum(softmax_rows(z, axis_name) * relative, axis_name)
    missed = jnp.where(is_max, 1.0, softmax_complement_rows(z, axis_name))
    return jnp.where(is_max, of_max, (relative - mean) / missed)


derivatives(log_odds_rows, lambda dz, _, z, axis_name: _log_odds_tangent(z, dz, axis_name))
