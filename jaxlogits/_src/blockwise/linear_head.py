"""Losses of ``hidden @ kernel`` that never hold all of it: the blockwise transforms, ready made.

Each function is one function of a block of rows, the logits and then the library's own loss, run by
``blockwise_mean``, ``blockwise_sum`` or ``blockwise_map``.
"""

from __future__ import annotations

from typing import Any

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName, wide_dtype
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.blockwise.linear_layer import (
    HEAD,
    LOGITS,
    STATIC,
    Head,
    PerRow,
    Reduction,
    ReductionName,
    are_bad,
    existing_classes,
    head_labels,
    label_losses,
    linear_layer,
    logits_of,
    per_row,
    reduce_rows,
    without_padding,
)
from jaxlogits._src.blockwise.tiled_losses import Memory, is_tiled, tiled_losses
from jaxlogits._src.losses.divergences import softmax_kl_divergence
from jaxlogits._src.mesh.explicit import on_explicit_mesh


@program(
    *STATIC,
    "reduction",
    "accumulate_dtype",
    "memory",
    label_smoothing=Option(Range(0, below=1), off=(0,)),
    z_loss=Option(Range(0), off=(0,)),
    **LOGITS,
)
@on_explicit_mesh(
    **HEAD,
    labels="rows",
    label_smoothing="rows",
    weights="rows",
    class_weights="classes",
    result="rows",
)
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: ReductionName = "mean",
    memory: Memory | None = None,
    block_size: int | None = None,
    precision: Any = None,
    accumulate_dtype: Any = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> Array:
    """Cross entropy of integer labels and softmax(hidden @ kernel), without the logits in memory.

    Args:
        hidden: floating-point array ``[..., D]``, one row per example.
        kernel, bias: ``[D, K]`` and ``[K]``; for a tied embedding ``[K, D]``, ``embedding.T``.
        labels: integers in [0, K), ``[...]``.
        where: boolean mask of rows, ``[...]``; masked rows may hold anything.
        weights: w, one per row, ``[...]``.
        class_where: boolean mask ``[K]``, False for classes that don't exist (a label costs +inf).
        label_smoothing, class_weights, z_loss: as in ``softmax_cross_entropy_with_integer_labels``.
        soft_cap: c above 0 makes the logits c tanh(z / c); None for no cap.
        temperature: above 0, divides them after that; a number or one per row.
        reduction: "mean", sum(w L) / sum(w), 0 if no row counts; "sum", sum(w L); "none", w L.
        memory: "rows" for blocks of rows, "tiles" for tiles of classes, which take less memory and
            4 products for a gradient; None chooses tiles if 256 rows of logits exceed 1 GiB.
        block_size: rows computed at once; None chooses it from the memory that they take.
        precision: of the matrix products, as in ``jax.lax.dot_general``.
        accumulate_dtype: dtype of sums of kernel gradients, as in ``blockwise_sum``.
        axis_name, row_axis_name: mesh axes over which classes and rows are split, in ``shard_map``.

    Returns:
        A scalar or, for "none", ``[...]``, in float32 or wider.
    Accuracy: that of the loss, given logits whose products are summed in float32.

    Example:
        >>> jl.linear_softmax_cross_entropy(jnp.ones([4, 2]), jnp.ones([2, 8]), jnp.arange(4))
        Array(2.0794415, dtype=float32)
    """
    how = Reduction(
        reduction, where, weights, block_size, accumulate_dtype, axis_name, row_axis_name
    )
    rows, head = linear_layer(hidden, kernel, bias, how)
    indices = head_labels(labels, rows, head, how)
    exists = existing_classes(class_where, head)
    temperatures = per_row("temperature", temperature, rows)
    smoothing = per_row("label_smoothing", label_smoothing, rows)
    of_rows = (rows, indices, temperatures, smoothing)
    is_in_tiles = is_tiled(memory, how, rows, head)
    if is_in_tiles or reduction == "none":
        valid = ~are_bad(indices, head, axis_name)
        how = without_padding(how, rows.shape[:-1], (hidden, temperatures, smoothing), valid)
    if is_in_tiles:
        each = tiled_losses(
            rows,
            head,
            indices,
            temperatures,
            how,
            exists=exists,
            soft_cap=soft_cap,
            temperature=temperature,
            precision=precision,
            label_smoothing=label_smoothing,
            smoothing=smoothing,
            class_weights=class_weights,
            z_loss=z_loss,
        )
        return reduce_rows(lambda _, losses: losses[:, 0], None, (each[..., None],), how)
    logits = logits_of(soft_cap, temperature, wide_dtype(rows, head.kernel), precision)

    def loss(
        head: Head, hidden: Array, labels: Array, temperatures: PerRow, smoothing: PerRow
    ) -> Array:
        return label_losses(
            logits(head, hidden, temperatures),
            labels,
            head,
            exists,
            axis_name,
            label_smoothing=smoothing[0] if smoothing else label_smoothing,
            class_weights=class_weights,
            z_loss=z_loss,
        )

    return reduce_rows(loss, head, of_rows, how)


@program(
    *STATIC,
    "reduction",
    "accumulate_dtype",
    **LOGITS,
)
@on_explicit_mesh(
    hidden_p="rows features",
    hidden_q="rows features",
    kernel_p="features classes",
    kernel_q="features classes",
    bias_p="classes",
    bias_q="classes",
    class_where="classes",
    where="rows",
    weights="rows",
    temperature="rows",
    result="rows",
)
def linear_softmax_kl_divergence(
    hidden_p: ArrayLike,
    kernel_p: ArrayLike,
    hidden_q: ArrayLike,
    kernel_q: ArrayLike,
    *,
    bias_p: ArrayLike | None = None,
    bias_q: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: ReductionName = "mean",
    block_size: int | None = None,
    precision: Any = None,
    accumulate_dtype: Any = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> Array:
    """Distillation loss KL(p || q) of a teacher's and a student's head, without logits in memory.

    Args:
        hidden_p, kernel_p, bias_p: the teacher's, ``[..., D]``, ``[D, K]`` and ``[K]``.
        hidden_q, kernel_q, bias_q: the student's, ``[..., E]``, ``[E, K]`` and ``[K]``.
        where, weights, class_where: as in ``linear_softmax_cross_entropy``.
        soft_cap, temperature: of both heads, likewise.
        reduction, block_size, precision, accumulate_dtype, axis_name, row_axis_name: likewise.

    Returns:
        A scalar or, for "none", ``[...]``, in float32 or wider.
    Accuracy: that of ``softmax_kl_divergence``, given logits whose products are summed in float32.

    Example:
        >>> jl.linear_softmax_kl_divergence(jnp.eye(2), jnp.eye(2), jnp.eye(2), 2 * jnp.eye(2))
        Array(0.08260775, dtype=float32)
    """
    how = Reduction(
        reduction, where, weights, block_size, accumulate_dtype, axis_name, row_axis_name
    )
    rows_p, head_p = linear_layer(hidden_p, kernel_p, bias_p, how, "_p")
    rows_q, head_q = linear_layer(hidden_q, kernel_q, bias_q, how, "_q")
    shape = (*rows_p.shape[:-1], rows_q.shape[-1])
    checks.require_shape("hidden_q", rows_q, shape, "the leading shape of hidden_p,")
    shape = (rows_q.shape[-1], head_p.kernel.shape[1])
    checks.require_shape("kernel_q", head_q.kernel, shape, "the classes of kernel_p,")
    exists = existing_classes(class_where, head_p)
    dtype = wide_dtype(rows_p, head_p.kernel, rows_q, head_q.kernel)
    logits = logits_of(soft_cap, temperature, dtype, precision)

    def loss(
        heads: tuple[Head, Head], hidden_p: Array, hidden_q: Array, temperatures: PerRow
    ) -> Array:
        z_p, z_q = (
            logits(heads[0], hidden_p, temperatures),
            logits(heads[1], hidden_q, temperatures),
        )
        return softmax_kl_divergence(z_p, z_q, where=exists, axis_name=axis_name)

    of_rows = (rows_p, rows_q, per_row("temperature", temperature, rows_p))
    if reduction == "none":
        how = without_padding(how, rows_p.shape[:-1], (hidden_p, hidden_q, of_rows[2]))
    return reduce_rows(loss, (head_p, head_q), of_rows, how)
