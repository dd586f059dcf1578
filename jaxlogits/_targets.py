"""The truth beside rows of logits: integer labels and dense targets, checked."""

import jax.numpy as jnp

from jaxlogits import _checks
from jaxlogits._mesh import num_classes, row_any
from jaxlogits._rows import Rows, label_mask, to_rows
from jaxlogits._typing import Array, ArrayLike


def label_rows(rows: Rows, labels: ArrayLike) -> Array:
    """Integer labels, one for each row."""
    array = _checks.as_integer("labels", labels)
    shape = tuple(n for axis, n in enumerate(rows.like.shape) if axis not in rows.axes)
    _checks.require_shape("labels", array, shape, "the shape of logits without axis,")
    count = num_classes(rows.z.shape, rows.axis_name)
    _checks.require_index_dtype("labels", array, count)
    valid = (array >= 0) & (array <= count - 1)  # the count itself may not fit the dtype
    if rows.mask is not None:
        valid |= ~row_any(rows.mask, rows.axis_name)[..., 0]
    _checks.check_values(f"labels must be in [0, {count})", array, valid)
    return array


def one_hot_rows(rows: Rows, labels: ArrayLike) -> Array:
    """Integer labels as dense targets, NaN where they are no class index."""
    hit = label_mask(rows.z.shape, label_rows(rows, labels), rows.axis_name)
    known = row_any(hit, rows.axis_name)
    return _unmasked(rows, jnp.where(known, hit.astype(rows.z.dtype), jnp.nan))


def target_rows(rows: Rows, labels: ArrayLike) -> Array:
    """Dense targets as rows; a negative one is NaN. Behind the mask only positive ones count."""
    array = _checks.as_real("labels", labels)
    _checks.require_shape("labels", array, rows.like.shape, "the shape of logits,")
    targets = to_rows(array.astype(rows.z.dtype), rows.axes)
    if rows.mask is not None:
        targets = jnp.where(rows.mask | (targets > 0), targets, 0.0)
    targets = _unmasked(rows, targets)
    _checks.check_values("labels must be at least 0", targets, targets >= 0)
    return jnp.where(targets >= 0, targets, jnp.nan)


def _unmasked(rows: Rows, targets: Array) -> Array:
    """The targets, 0 in a row that is masked as a whole."""
    if rows.mask is None:
        return targets
    return jnp.where(row_any(rows.mask, rows.axis_name), targets, 0.0)
