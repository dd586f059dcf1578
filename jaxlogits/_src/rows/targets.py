"""The truth beside rows of logits: integer labels and dense targets, checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax.numpy as jnp

from jaxlogits._src.base import checked, checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.mesh.reductions import num_classes, row_any
from jaxlogits._src.rows.rows import Rows, to_rows
from jaxlogits._src.rows.softmax import label_mask


def label_rows(rows: Rows, labels: ArrayLike, dense: str = "") -> Array:
    """Integer labels, one for each row; ``dense`` is the function for targets of each class."""
    labels = checks.as_array("labels", labels)
    is_dense = dense and labels.shape == rows.like.shape
    with _hint(f"; {dense} takes a target for each class" if is_dense else ""):
        count = num_classes(rows.z.shape, rows.axis_name)
        array, valid = integer_labels(labels, _shape_of_rows(rows), count)
    if rows.mask is None or rows.empty is None:
        return checks.check_values(f"labels must be in [0, {count})", array, valid)
    array = jnp.where(rows.empty[..., 0], jnp.zeros([], array.dtype), array)
    valid |= rows.empty[..., 0]
    array = checks.check_values(f"labels must be in [0, {count})", array, valid)
    if checked.is_on():
        hit = label_mask(rows.z.shape, array, rows.axis_name)
        kept = row_any(hit & rows.mask, rows.axis_name)[..., 0]
        rule = "labels must be classes that where keeps"
        array = checks.check_values(rule, array, kept | ~valid | rows.empty[..., 0])
    return array


def integer_labels(labels: ArrayLike, shape: tuple[int, ...], count: int) -> tuple[Array, Array]:
    """Integer labels of rows in that shape, and which of them are one of so many classes."""
    array = checks.as_integer("labels", labels)
    checks.require_shape("labels", array, shape, "the shape of logits without axis,")
    checks.require_index_dtype("labels", array, count)
    return array, (array >= 0) & (array <= count - 1)  # the count itself may not fit the dtype


def one_hot_rows(rows: Rows, labels: ArrayLike, dense: str = "") -> Array:
    """Integer labels as dense targets, NaN where they are no class index."""
    hit = label_mask(rows.z.shape, label_rows(rows, labels, dense), rows.axis_name)
    known = row_any(hit, rows.axis_name)
    return jnp.where(known, hit.astype(rows.z.dtype), jnp.nan)


def target_rows(rows: Rows, labels: ArrayLike, sparse: str = "") -> Array:
    """Dense targets as rows, 0 for masked classes; ``sparse`` is the function for class indices."""
    is_sparse = sparse and jnp.shape(labels) == _shape_of_rows(rows)
    with _hint(f"; {sparse} takes class indices" if is_sparse else ""):
        array = checks.as_real("labels", labels)
        checks.require_shape("labels", array, rows.like.shape, "the shape of logits,")
    targets = to_rows(widen(array, rows.z.dtype), rows.axes)
    if rows.mask is not None:
        targets = jnp.where(rows.mask, targets, 0.0)
    rule = "labels must be at least 0"
    return checks.check_values(rule, targets, targets >= 0, of_rows=1)


def _shape_of_rows(rows: Rows) -> tuple[int, ...]:
    return tuple(n for axis, n in enumerate(rows.like.shape) if axis not in rows.axes)


@contextmanager
def _hint(hint: str) -> Iterator[None]:
    """Say at the end of a refusal what would do instead."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{error}{hint}") from None
