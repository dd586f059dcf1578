"""Rows of logits with a label and a weight each: what calibration looks at."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, wide_dtype, widen
from jaxlogits._src.rows.rows import rows_of
from jaxlogits._src.rows.softmax import first_max, label_mask, softmax_complement_rows, softmax_rows
from jaxlogits._src.rows.targets import label_rows


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
    """Check the arguments; ``where`` masks rows, of which nothing leaks.

    Nor does anything of a bad row of weight 0; a good one has its derivative in the weight.
    """
    array = checks.as_floating("logits", logits)
    axes = checks.normalize_axes(array, axis)
    lead = tuple(n for i, n in enumerate(array.shape) if i not in axes)
    keep = checks.as_mask("where", True if where is None else where, lead)
    weight = row_weights(weights, keep, wide_dtype(array))
    index = checks.as_integer("labels", labels)
    valid = (index >= 0) & (index < math.prod(array.shape[d] for d in axes))
    sound = jnp.isfinite(jnp.max(array, axes, initial=-jnp.inf))
    keep &= (weight != 0) | (sound & valid if index.shape == lead else sound)
    classes = jnp.broadcast_to(jnp.expand_dims(keep, axes), array.shape)
    rows = rows_of(array, axis, classes, None)
    indices, last = label_rows(rows, labels), rows.z.shape[-1] - 1
    bad = (indices < 0) | (indices > last)
    weight = jnp.where(keep, jnp.where(bad, jnp.nan, weight), 0.0)
    flat = (jnp.clip(indices, 0, last).reshape(-1), weight.reshape(-1))
    return Labelled(rows.z.reshape(-1, last + 1), *flat)


def row_weights(weights: ArrayLike | None, keep: Array, dtype: jnp.dtype) -> Array:
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
    confidence = jnp.max(softmax_rows(z, None), axis=-1)
    missed = jnp.min(softmax_complement_rows(z, None), axis=-1)
    right = jnp.any(first_max(z, None) & label_mask(z.shape, indices, None), axis=-1)
    gap = jnp.where(right, missed, -confidence)
    # Whatever is wrong with a row is in its weight, and so in every sum.
    weight = jnp.where(jnp.isnan(confidence), jnp.nan, weight)
    return Graded(confidence, missed, right.astype(z.dtype), gap, weight)
