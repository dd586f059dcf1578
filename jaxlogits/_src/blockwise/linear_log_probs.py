"""Log probabilities under softmax(hidden @ kernel), in blocks of rows.

Per-token numbers, for policy gradients, preference losses and distillation. For a gradient each
block of logits is computed a second time.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName, wide_dtype
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.blockwise.columns import log_probs_of_kept
from jaxlogits._src.blockwise.linear_layer import (
    HEAD,
    LOGITS,
    STATIC,
    Head,
    PerRow,
    Reduction,
    existing_classes,
    head_labels,
    label_losses,
    linear_layer,
    logits_of,
    map_rows,
    per_row,
)
from jaxlogits._src.blockwise.tiled_losses import Memory, is_tiled, tiled_losses
from jaxlogits._src.decoding.sampling import as_count
from jaxlogits._src.losses.divergences import entropy
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import num_classes, row_take, row_top_k
from jaxlogits._src.softmax import log_softmax


@program(*STATIC, "memory", **LOGITS)
@on_explicit_mesh(**HEAD, labels="rows", kept="rows ids", result="rows")
def linear_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    kept: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    memory: Memory | None = None,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> Array:
    """Log probability of each label under softmax(hidden @ kernel), without the logits in memory.

    Args:
        hidden, kernel, bias, where: as in ``linear_softmax_cross_entropy``.
        soft_cap, temperature, memory, block_size, precision, axis_name, row_axis_name: likewise.
        labels: integers in [0, K), ``[...]``. Mask padding such as -100 with ``where``.
        class_where: boolean mask ``[K]``, False for classes that don't exist (a label gives -inf).
        kept: integers ``[..., n]``, the classes that remain in each row, as in ``kept_log_probs``;
            only their columns of the kernel are multiplied.

    Returns:
        ``[...]``, at most 0, in float32 or wider; 0 for masked rows.
    Accuracy: that of the loss, given logits whose products are summed in float32.

    Example:
        >>> jl.linear_log_probs(jnp.ones([2, 3]), jnp.ones([3, 8]), jnp.array([0, 7])).round(4)
        Array([-2.0794, -2.0794], dtype=float32)
    """
    how = Reduction("none", where, None, block_size, None, axis_name, row_axis_name)
    rows, head = linear_layer(hidden, kernel, bias, how)
    indices = head_labels(labels, rows, head, how)
    exists = existing_classes(class_where, head)
    temperatures = per_row("temperature", temperature, rows)
    if memory == "tiles" and kept is not None:
        raise ValueError('memory must not be "tiles" with kept, which reads few columns')
    if is_tiled(memory, how, rows, head) and kept is None:
        losses = tiled_losses(
            rows,
            head,
            indices,
            temperatures,
            how,
            exists=exists,
            soft_cap=soft_cap,
            temperature=temperature,
            precision=precision,
        )
        return 0.0 - losses
    logits = logits_of(soft_cap, temperature, wide_dtype(rows, head.kernel), precision)
    if kept is not None:
        given = rows, indices, temperatures
        return log_probs_of_kept(logits, head, given, kept, class_where, how)

    def log_probs(head: Head, hidden: Array, labels: Array, temperatures: PerRow) -> Array:
        return 0.0 - label_losses(
            logits(head, hidden, temperatures), labels, head, exists, axis_name
        )

    each: Array = map_rows(log_probs, head, (rows, indices, temperatures), how)
    return each


@program(*STATIC, **LOGITS)
@on_explicit_mesh(**HEAD, labels="rows", result="rows")
def linear_log_probs_and_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> tuple[Array, Array]:
    """Log probability of each label and entropy of each row, from one product with the kernel.

    Args:
        hidden, kernel, labels, bias: ``[..., D]``, ``[D, K]``, ``[...]`` and ``[K]``.
        where, class_where, soft_cap, temperature: as in ``linear_log_probs``, for both results.
        block_size, precision, axis_name, row_axis_name: likewise.

    Returns:
        Log probabilities and entropies (nats), ``[...]`` each, float32 or wider; 0 for masked rows.
    Accuracy: that of ``linear_log_probs`` and of ``entropy``, given logits summed in float32.

    Example:
        >>> jl.linear_log_probs_and_entropy(jnp.ones([3]), jnp.zeros([3, 8]), jnp.array(7))
        (Array(-2.0794415, dtype=float32), Array(2.0794415, dtype=float32))
    """
    how = Reduction("none", where, None, block_size, None, axis_name, row_axis_name)
    rows, head = linear_layer(hidden, kernel, bias, how)
    indices = head_labels(labels, rows, head, how)
    exists = existing_classes(class_where, head)
    logits = logits_of(soft_cap, temperature, wide_dtype(rows, head.kernel), precision)
    temperatures = per_row("temperature", temperature, rows)

    def both(head: Head, hidden: Array, labels: Array, temperatures: PerRow) -> tuple[Array, Array]:
        z = logits(head, hidden, temperatures)
        losses = label_losses(z, labels, head, exists, axis_name)
        return 0.0 - losses, entropy(z, where=exists, axis_name=axis_name)

    results: tuple[Array, Array] = map_rows(both, head, (rows, indices, temperatures), how)
    return results


@program(*STATIC, "k", k=Option(Range(), integer=True), **LOGITS)
@on_explicit_mesh(**HEAD, result="rows ids")
def linear_top_k(
    hidden: ArrayLike,
    kernel: ArrayLike,
    k: int,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> tuple[Array, Array]:
    """The k likeliest classes of softmax(hidden @ kernel), with their log probabilities.

    Args:
        hidden, kernel, bias: ``[..., D]``, ``[D, K]`` and ``[K]``.
        k: how many, from 1 to the number of classes, known while tracing.
        where, class_where, soft_cap, temperature: as in ``linear_log_probs``.
        block_size, precision, axis_name, row_axis_name: likewise.

    Returns:
        Log probabilities ``[..., k]`` in float32 or wider, normalised over all classes, and int32
        class indices, likeliest first; -1 where they are -inf or NaN; 0 and -1 in masked rows.
    Accuracy: that of ``log_softmax``, given logits whose products are summed in float32.

    Example:
        >>> jl.linear_top_k(jnp.ones([1]), jnp.array([[0.0, 20.0, 10.0]]), 2)[1]
        Array([1, 2], dtype=int32)
    """
    how = Reduction("none", where, None, block_size, None, axis_name, row_axis_name)
    rows, head = linear_layer(hidden, kernel, bias, how)
    count = as_count(k, num_classes(head.kernel.shape, axis_name))
    exists = existing_classes(class_where, head)
    logits = logits_of(soft_cap, temperature, wide_dtype(rows, head.kernel), precision)
    temperatures = per_row("temperature", temperature, rows)

    def top(head: Head, hidden: Array, temperatures: PerRow) -> tuple[Array, Array]:
        z = logits(head, hidden, temperatures)
        log_probs = log_softmax(z, where=exists, axis_name=axis_name)
        # By the logits, of which different ones may have equal log probabilities.
        order = lax.stop_gradient(jnp.where(log_probs > -jnp.inf, z, -jnp.inf))
        _, classes = row_top_k((order,), count, axis_name)
        largest = row_take(log_probs, classes, axis_name)
        return largest, jnp.where(largest > -jnp.inf, classes + 1, 0)

    log_probs, following = map_rows(top, head, (rows, temperatures), how)
    return log_probs, following - 1
