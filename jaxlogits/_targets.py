"""The truth beside rows of logits: integer labels and dense targets, checked."""

import jax.numpy as jnp

from jaxlogits import _checks
from jaxlogits._rows import Rows, to_rows
from jaxlogits._typing import Array, ArrayLike


def label_rows(rows: Rows, labels: ArrayLike) -> Array:
    """Integer labels, one for each row."""
    array = _checks.as_integer("labels", labels)
    shape = tuple(n for axis, n in enumerate(rows.like.shape) if axis not in rows.axes)
    _checks.require_shape("labels", array, shape, "the shape of logits without axis,")
    num_classes = rows.z.shape[-1]
    _checks.require_index_dtype("labels", array, num_classes)
    valid = (array >= 0) & (array <= num_classes - 1)  # num_classes may not fit the dtype
    if rows.mask is not None:
        valid |= ~jnp.any(rows.mask, axis=-1)
    _checks.check_values(f"labels must be in [0, {num_classes})", array, valid)
    return array


def target_rows(rows: Rows, labels: ArrayLike) -> Array:
    """Dense targets as rows; a negative one is NaN. Behind the mask only positive ones count."""
    array = _checks.as_real("labels", labels)
    _checks.require_shape("labels", array, rows.like.shape, "the shape of logits,")
    targets = to_rows(array.astype(rows.z.dtype), rows.axes)
    if rows.mask is not None:
        targets = jnp.where(rows.mask | (targets > 0), targets, 0.0)
        targets = jnp.where(jnp.any(rows.mask, axis=-1, keepdims=True), targets, 0.0)
    _checks.check_values("labels must be at least 0", targets, targets >= 0)
    return jnp.where(targets >= 0, targets, jnp.nan)
