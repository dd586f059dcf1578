"""Log probabilities of a head where each row has kept some classes: only their columns are read.

The columns of a block's rows are an array, and their gradients another one, far larger than the
logits. A product with one vector is as fast for few rows as for many, so a block may have few.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName, finite, wide_dtype
from jaxlogits._src.blockwise.block_size import rows_that_fit
from jaxlogits._src.blockwise.linear_layer import (
    Head,
    PerRow,
    Reduction,
    map_rows,
    spoiled_where_used,
)
from jaxlogits._src.losses.supports import are_no_indices, kept_indices, log_probs_among
from jaxlogits._src.mesh.reductions import first_class, num_classes, row_any

Logits = Callable[[Head, Array, PerRow], Array]


def log_probs_of_kept(
    logits: Logits,
    head: Head,
    rows: tuple[Array, Array, PerRow],
    kept: ArrayLike,
    class_where: ArrayLike | None,
    how: Reduction,
) -> Array:
    """Of rows of hidden states, labels and temperatures, among the classes that each has kept."""
    hidden, labels, temperatures = rows
    count = num_classes(head.kernel.shape, how.axis_name)
    ids = kept_indices(kept, hidden.shape[:-1], count, "the rows of hidden")
    if ids.shape[-1] == 0:
        ids = jnp.full((*ids.shape[:-1], 1), -1, ids.dtype)
    if how.block_size is None:
        columns = (head.kernel.shape[0], ids.shape[-1])
        one_row = jax.ShapeDtypeStruct(columns, wide_dtype(hidden, head.kernel))
        how = how._replace(block_size=rows_that_fit(head, one_row))
    # A column is read from memory where it lies in one piece: from a tied embedding as it is, from
    # a copy of another kernel, which XLA makes if there are several blocks.
    turned = Head(head.kernel.T, head.bias)
    fn = _of_block(logits, class_where, how.axis_name)
    log_probs: Array = map_rows(fn, turned, (hidden, labels, temperatures, ids), how)
    return log_probs


def _of_block(
    logits: Logits, class_where: ArrayLike | None, axis_name: AxisName
) -> Callable[..., Array]:
    """The function of a block of rows; its head's kernel is [K, D]."""

    def of_row(turned: Head, hidden: Array, temperatures: PerRow, own: Array) -> Array:
        bias = None if turned.bias is None else turned.bias[own]
        head = Head(jnp.take(turned.kernel, own, axis=0).T, bias)
        return logits(head, hidden[None], jax.tree.map(lambda x: x[None], temperatures))[0]

    def log_probs(
        turned: Head, hidden: Array, labels: Array, temperatures: PerRow, ids: Array
    ) -> Array:
        shape = turned.kernel.shape[:1]
        count = num_classes(shape, axis_name)
        bad = (labels < 0) | (labels > count - 1) | are_no_indices(ids, count)
        ids = jnp.sort(ids, axis=-1)
        is_first = jnp.concatenate([ids[:, :1] >= 0, ids[:, 1:] != ids[:, :-1]], axis=-1)
        own = ids - first_class(shape, ids.dtype, axis_name)
        keep = is_first & (ids >= 0) & (own >= 0) & (own < shape[0])
        # In the place of what isn't kept, a column that is, as far as this device has one.
        own = jnp.clip(jnp.where(keep, own, own[:, -1:]), 0, shape[0] - 1)
        if class_where is not None:
            keep &= jnp.asarray(class_where)[own]
        z = jax.vmap(of_row, (None, 0, 0, 0))(turned, hidden, temperatures, own)
        hit = ids == labels[:, None].astype(ids.dtype)
        # A row without a softmax is NaN, and leaves none in the params where it counts for nothing.
        is_possible = row_any(keep & (z != -jnp.inf), axis_name)
        none = row_any(hit & keep, axis_name) & ~is_possible
        z, bad = jnp.where(none, finite(z), z), bad | none[:, 0]
        return 0.0 + spoiled_where_used(log_probs_among(z, keep, hit, bad, axis_name), bad)

    return log_probs
