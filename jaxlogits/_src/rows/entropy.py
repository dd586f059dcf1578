"""Entropy and cross entropy of rows, the latter with a temperature of the second row.

``a`` and ``b`` are rows ``[..., K]`` of logits, ``p`` and ``q`` their softmaxes.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.elementary import log1p
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.pairs import (
    below_max,
    centred_rows,
    contract,
    is_empty,
    prob_difference_rows,
    unbounded,
    whole,
)
from jaxlogits._src.rows.quotients import cooled
from jaxlogits._src.rows.rows import spoiled
from jaxlogits._src.rows.softmax import softmax_rows, without_inf
from jaxlogits._src.rows.stats import row_stats


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def entropy_rows(z: Array, axis_name: AxisName) -> Array:
    """-sum_k p_k log p_k of each row."""
    stats = row_stats(z, axis_name)
    p = stats.exps / (1.0 + stats.rest)
    gaps = jnp.where(p == 0, 0.0, p * stats.gaps)
    total = row_sum(gaps, axis_name) + log1p(stats.rest)
    return jnp.where(stats.largest == -jnp.inf, jnp.nan, total)[..., 0]


@checkpointed
def _entropy_by_z(dz: Array, _: Array, z: Array, axis_name: AxisName) -> Array:
    eighths = below_max(without_inf(z, axis_name), axis_name)
    gradient = whole(centred_rows(z, eighths, axis_name))
    return -contract(softmax_rows(z, axis_name), gradient, dz, axis_name)


derivatives(entropy_rows, _entropy_by_z)


def tempered_rows(z: Array, scale: Array, axis_name: AxisName) -> Array:
    """(z - max(z)) / T, where no class becomes impossible that isn't."""
    known = without_inf(z, axis_name)
    below = spoiled(cooled(z, scale, axis_name), jnp.isnan(known))
    lowest = float(jnp.finfo(z.dtype).min)
    return jnp.where((below == -jnp.inf) & (known > -jnp.inf) & (scale > 0), lowest, below)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def cross_entropy_rows(a: Array, b: Array, scale: Array, axis_name: AxisName) -> Array:
    """An eighth of -scale sum_k p_k log q_k, with 0 log 0 = 0, for q = softmax(b / scale).

    As sum_k p_k (max(b) - b_k) + scale log1p(rest): over a small scale the logits may overflow.
    """
    p = softmax_rows(a, axis_name)
    known = without_inf(b, axis_name)
    gaps = -row_sum(jnp.where(p == 0, 0.0, p * below_max(known, axis_name)), axis_name)
    rest = row_stats(tempered_rows(b, scale, axis_name), axis_name).rest
    total = gaps + scale * (log1p(rest) / 8.0)
    total = jnp.where(unbounded(a, known, axis_name), jnp.inf, total)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, total)[..., 0]


@checkpointed
def _cross_entropy_by_a(
    da: Array, _: Array, a: Array, b: Array, __: Array, axis_name: AxisName
) -> Array:
    eighths = below_max(without_inf(b, axis_name), axis_name)
    gradient = centred_rows(a, eighths, axis_name)
    return -contract(softmax_rows(a, axis_name), gradient, da, axis_name)


@checkpointed
def _cross_entropy_by_b(
    db: Array, _: Array, a: Array, b: Array, scale: Array, axis_name: AxisName
) -> Array:
    difference = prob_difference_rows(a, tempered_rows(b, scale, axis_name), axis_name)
    return contract(softmax_rows(a, axis_name), difference / 8.0, db, axis_name)


derivatives(
    cross_entropy_rows,
    _cross_entropy_by_a,
    _cross_entropy_by_b,
    lambda dscale, _, __, b, scale, axis_name: (
        entropy_rows(tempered_rows(b, scale, axis_name), axis_name) / 8.0 * dscale
    ),
)
