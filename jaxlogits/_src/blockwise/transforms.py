"""Functions of rows without the arrays between: a transform, as vmap is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.checks import describe
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName, widen
from jaxlogits._src.base.varying import vary, varying_axes
from jaxlogits._src.blockwise.jobs import (
    Job,
    Options,
    on_devices,
    options_of,
    prepare,
    prepare_again,
    run_job,
)
from jaxlogits._src.blockwise.maps import map_rows
from jaxlogits._src.blockwise.operands import Leaves, Operands
from jaxlogits._src.blockwise.plan import flatten_rows, pad
from jaxlogits._src.blockwise.sums import counting, sum_blocks
from jaxlogits._src.blockwise.trace import Block, bind


def blockwise_map(
    fn: Callable[..., Any],
    *,
    row_ndim: int = 1,
    block_size: int | None = None,
    row_axis_name: AxisName = None,
) -> Callable[..., Any]:
    """The results of ``fn`` for many rows, computed one block of rows at a time.

    ``blockwise_map(fn)(params, *rows)`` is ``fn(params, *rows)``, but what ``fn`` computes on the
    way, such as logits, exists for one block only. Derivatives recompute each block.

    Args:
        fn: ``fn(params, *rows) -> results``, pytrees of rows [C, ...] and of results [C, ...], each
            of which depends on its own row alone.
        row_ndim: how many leading dimensions count rows, 2 for [B, S, ...]; ``fn`` always sees one.
        block_size: the most rows in a block; None chooses it from the memory that they take.
        row_axis_name: mesh axes over which the rows' first dimension is split, in jit or in
            ``shard_map``: gradients of params are summed over devices once, not in each block.

    Returns:
        A function ``mapped(params, *rows, where=None)``. Params are any pytree, which all rows
        share. Rows masked by ``where`` give 0 and may hold NaN.
    Accuracy: that of ``fn``; gradients of params are summed over blocks in float32 or wider.

    Example:
        >>> def confidence(kernel, hidden):
        ...     return jl.softmax(hidden @ kernel).max(axis=-1)
        >>> jl.blockwise_map(confidence, row_ndim=2)(jnp.eye(3), jnp.zeros([2, 5, 3])).shape
        (2, 5)
    """
    options = options_of("blockwise_map", fn, row_ndim, block_size, row_axis_name)

    def mapped(params: Any, *rows: Any, where: ArrayLike | None = None) -> Any:
        call, arrays = bind(fn, params)

        def local(shared: Leaves, split: Any) -> Any:
            rows, keep, _ = split
            shared = vary(shared, varying_axes(*jax.tree.leaves((rows, keep))))
            job, operands = prepare(call, shared, split, options)
            return job.block.tree.unflatten(run_job(map_rows, job, operands))

        return on_devices(local, arrays, rows, where, None, options, total=False)

    return mapped


def blockwise_sum(
    fn: Callable[..., Any],
    *,
    row_ndim: int = 1,
    block_size: int | None = None,
    has_aux: bool = False,
    accumulate_dtype: Any = None,
    row_axis_name: AxisName = None,
) -> Callable[..., Any]:
    """The sum of a per-row loss, computed one block of rows at a time.

    ``(weights * fn(params, *rows)).sum()``, but what ``fn`` computes on the way, such as logits,
    exists for one block only. Gradients are computed in the forward pass, with 3 matrix products.

    Args:
        fn: ``fn(params, *rows) -> losses [C]``, as for ``blockwise_map``.
        row_ndim, block_size, row_axis_name: as for ``blockwise_map``; the sum is over all devices.
        has_aux: whether ``fn`` returns ``(losses, aux)``, aux a pytree of arrays [C, ...], which
            are summed with the same weights and not differentiated.
        accumulate_dtype: the least dtype in which gradients of params are summed; None for float32.

    Returns:
        A function ``total(params, *rows, where=None, weights=None)`` that returns the sum, in
        float32 or wider, or (sum, sums of aux). Rows of weight 0 may hold NaN.
    Accuracy: that of ``fn``; sums, also those of bfloat16 gradients, in float32 or wider.

    Example:
        >>> def loss(kernel, hidden, labels):
        ...     return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)
        >>> kernel, hidden, labels = jnp.zeros([3, 4]), jnp.ones([10, 3]), jnp.zeros([10], int)
        >>> total, gradient = jax.value_and_grad(jl.blockwise_sum(loss))(kernel, hidden, labels)
        >>> print(f"{total:.4f}", gradient[0])
        13.8629 [-7.5  2.5  2.5  2.5]
    """
    options = options_of(
        "blockwise_sum", fn, row_ndim, block_size, row_axis_name, accumulate_dtype, has_aux
    )
    sums = _weighted_sums(fn, options, has_aux)

    def total(
        params: Any,
        *rows: Any,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Any:
        return sums(params, rows, where, weights)[0]

    return total


def blockwise_mean(
    fn: Callable[..., Any],
    *,
    row_ndim: int = 1,
    block_size: int | None = None,
    has_aux: bool = False,
    accumulate_dtype: Any = None,
    row_axis_name: AxisName = None,
) -> Callable[..., Any]:
    """The weighted mean of a per-row loss, computed one block at a time; 0 if no row counts.

    Args:
        fn, row_ndim, block_size, accumulate_dtype: as for ``blockwise_sum``.
        has_aux: whether ``fn`` returns ``(losses, aux)``; aux comes back as means.
        row_axis_name: as for ``blockwise_sum``; without it, each device's own mean.

    Returns:
        A function ``mean(params, *rows, where=None, weights=None)`` that returns the mean, in
        float32 or wider, or (mean, means of aux). ``where`` and weights broadcast to the rows.
    Accuracy: as for ``blockwise_sum``.

    Example:
        >>> def loss(kernel, hidden, labels):
        ...     return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)
        >>> labels = jnp.array([0, 1, -1])
        >>> mean = jl.blockwise_mean(loss)(jnp.zeros([3, 3]), jnp.eye(3), labels, where=labels >= 0)
        >>> print(f"{mean:.4f}")
        1.0986
    """
    options = options_of(
        "blockwise_mean", fn, row_ndim, block_size, row_axis_name, accumulate_dtype, has_aux
    )
    sums = _weighted_sums(fn, options, has_aux)

    def mean(
        params: Any,
        *rows: Any,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Any:
        total, weight, count = sums(params, rows, where, weights)
        mean, *aux = _divided(total if has_aux else (total,), weight, count)
        return (mean, *lax.stop_gradient(aux)) if has_aux else mean

    return mean


@jax.jit
def _divided(totals: Any, weight: Array, count: Array) -> Any:
    """The sums by the weight of the rows that count, 0 where none does."""
    none = count == 0
    divisor = jnp.where(none, jnp.ones_like(weight), weight)

    def divide(x: Array) -> Array:
        return jnp.where(none, jnp.zeros_like(x), x / divisor.astype(x.dtype))

    return jax.tree.map(divide, totals)


def _weighted_sums(
    fn: Callable[..., Any], options: Options, has_aux: bool
) -> Callable[..., tuple[Any, Array, Array]]:
    """The sums of the loss or of (loss, aux) over the rows that count, their weight and number."""

    def sums(
        params: Any, rows: Any, where: ArrayLike | None, weights: ArrayLike | None
    ) -> tuple[Any, Array, Array]:
        call, arrays = bind(fn, params)

        def local(shared: Leaves, split: Any) -> tuple[Any, Array, Array]:
            job, operands = prepare(call, shared, split, options)
            _require_losses(job.block, has_aux)
            masks = [x for x in split[1:] if x is not None]
            axes = varying_axes(job.block.types[0], *masks)
            if any(axes - varying_axes(x) for x in jax.tree.leaves((shared, split))):
                shared, split = vary((shared, split), axes)
                job, operands = prepare_again(call, shared, split, job.plan, options)
            results, weight, count = run_job(_sum_rows, job, operands)
            return job.block.tree.unflatten(results), weight, count

        total: tuple[Any, Array, Array]
        total = on_devices(local, arrays, rows, where, weights, options, total=True)
        return total

    return sums


def _sum_rows(job: Job, given: Operands) -> tuple[Leaves, Array, Array]:
    """The weighted sums over the rows, their weight and number."""
    split = given.rows, given.weights, given.keep
    rows, weights, keep = flatten_rows(split, job.options.row_ndim)
    if weights is not None:
        is_float = jnp.issubdtype(weights.dtype, jnp.floating)
        weights = widen(weights) if is_float else weights.astype(jnp.float32)
    operands = Operands(given.shared, [], rows, weights, keep)
    padded = pad(job.plan, operands, counting(operands, True))
    results = sum_blocks(job.block, job.plan, job.options.accumulate_dtype)(*padded)
    return results, *_total_weight(operands)


def _total_weight(operands: Operands) -> tuple[Array, Array]:
    """The weight of the rows that count, and their number."""
    weights, keep = operands.weights, counting(operands, True)
    ones = jnp.ones(operands.rows[0].shape[:1], jnp.float32)
    count = jnp.sum(ones if keep is None else keep.astype(jnp.float32))
    if weights is None:
        return count, count
    kept = operands.keep
    return jnp.sum(weights if kept is None else jnp.where(kept, weights, 0)), count


def _require_losses(block: Block, has_aux: bool) -> None:
    """Refuse anything but one floating-point loss per row, or (loss, aux)."""
    result = block.tree.unflatten(block.types)
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"fn must return (loss, aux), got {type(result).__name__}")
    loss = result[0] if has_aux else result
    got = describe(loss) if hasattr(loss, "shape") else type(loss).__name__
    if not (hasattr(loss, "shape") and jnp.issubdtype(loss.dtype, jnp.floating)):
        raise TypeError(f"fn must return floating-point losses, got {got}")
    if loss.ndim != 1:
        raise ValueError(f"fn must return one loss per row, got {got}")
