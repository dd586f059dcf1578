"""Rows of logits with a label and a weight each: what calibration looks at."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, wide_dtype, widen
from jaxlogits._src.rows.rows import rows_of
from jaxlogits._src.rows.softmax import first_max, label_mask, softmax_complement_rows, softmax_rows
from jaxlogits._src.rows.targets import integer_labels


class Labelled(NamedTuple):
    """N rows in the wide dtype. What is wrong with a row's label or weight makes the weight NaN."""

    z: Array  # [N, K], 0 in a masked row
    labels: Array  # [N], in [0, K)
    weights: Array  # [N], 0 for a masked row


def labelled_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> Labelled:
    """Check the arguments; ``where`` masks rows, of which nothing leaks."""
    array = checks.as_floating("logits", logits)
    axes = checks.normalize_axes(array, axis)
    lead = tuple(n for i, n in enumerate(array.shape) if i not in axes)
    count = math.prod(array.shape[d] for d in axes)
    index, valid = integer_labels(labels, lead, count)
    largest = jnp.max(array, axes, initial=-jnp.inf)  # which may leave NaN out
    sound = valid & jnp.all(array < jnp.inf, axes) & (largest > -jnp.inf)
    keep, weight = counting_rows(where, weights, lead, wide_dtype(array), sound)
    # Not masked as classes: where every row counts, XLA would look for rows without any while it
    # compiles, which takes 4 s for a million.
    array = jnp.where(jnp.expand_dims(keep, axes), array, jnp.zeros([], array.dtype))
    z = rows_of(array, axis, None, None).z.reshape(-1, count)
    index = jnp.where(keep, index, 0)
    checks.check_values(f"labels must be in [0, {count})", index, valid | ~keep)
    weight = jnp.where(keep & ~valid, jnp.nan, weight)
    return Labelled(z, jnp.clip(index, 0, count - 1).reshape(-1), weight.reshape(-1))


def counting_rows(
    where: ArrayLike | None,
    weights: ArrayLike | None,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    sound: Array,
) -> tuple[Array, Array]:
    """Which rows are looked at, and the weights of all; 0 for a row that isn't.

    A row of weight 0 is only looked at if it is ``sound``: it then has a derivative in its weight.
    """
    keep = checks.as_mask("where", True if where is None else where, shape)
    weight = _row_weights(weights, keep, dtype)
    keep &= (weight != 0) | sound
    return keep, jnp.where(keep, weight, 0.0)


def _row_weights(weights: ArrayLike | None, keep: Array, dtype: jnp.dtype) -> Array:
    """The weights of all rows: 1 by default, 0 where ``keep`` is False, NaN for no weight."""
    if weights is None:
        return keep.astype(dtype)
    array = widen(checks.as_real("weights", weights), dtype)
    array = jnp.where(keep, checks.broadcast_to("weights", array, keep.shape), 0.0)
    checks.check_weights("weights", array)
    return jnp.where((array >= 0) & (array < jnp.inf), array, jnp.nan)


class Graded(NamedTuple):
    """Every row's confidence, whether it is right, and the difference; ``[N]`` each."""

    confidence: Array
    missed: Array  # 1 - confidence, to all its digits
    right: Array  # 1 or 0
    gap: Array  # right - confidence
    weights: Array


def graded_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> Graded:
    """Check the arguments, and say of each row how sure it is and whether it is right."""
    z, indices, weight = labelled_rows(logits, labels, axis, where, weights)
    p = softmax_rows(z, None)
    confidence = jnp.max(p, axis=-1)
    missed = jnp.min(softmax_complement_rows(z, None), axis=-1)
    right = jnp.any(first_max(z, None) & label_mask(z.shape, indices, None), axis=-1)
    gap = jnp.where(right, missed, -confidence)
    # Whatever is wrong with a row is in its weight, and so in every sum.
    weight = jnp.where(jnp.isnan(jnp.sum(p, axis=-1)), jnp.nan, weight)
    return Graded(confidence, missed, right.astype(z.dtype), gap, weight)
