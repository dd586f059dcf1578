"""Functions of rows without the arrays between: a transform, as vmap is."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._block_sums import accumulators, counting, differentiable, sum_blocks
from jaxlogits._blocks import (
    Block,
    Leaves,
    Operands,
    describe,
    flatten_rows,
    leading_shape,
    make_plan,
    pad,
    scan_blocks,
    trace_block,
)
from jaxlogits._checks import as_mask, broadcast_to
from jaxlogits._explicit import on_split_rows
from jaxlogits._mesh import vary, varying_axes, zeros
from jaxlogits._precision import widen
from jaxlogits._typing import Array, ArrayLike, AxisName


def blockwise_map(
    fn: Callable[..., Any],
    *,
    row_ndim: int = 1,
    block_size: int | None = None,
    row_axis_name: AxisName = None,
) -> Callable[..., Any]:
    """``fn`` of many rows, computed a block of rows at a time.

    ``blockwise_map(fn)(params, *rows)`` is ``fn(params, *rows)`` for any ``fn`` whose results for
    a row depend on that row alone, but what ``fn`` computes on the way, such as logits, exists for
    one block only. Derivatives compute each block again instead of keeping it.

    Args:
        fn: ``fn(params, *rows) -> results``, any function and any pytrees. It sees rows
            [C, ...] and returns arrays [C, ...], whatever ``row_ndim`` is. It is traced, so what it
            closes over is batched and differentiated too.
        row_ndim: how many leading dimensions of the rows count rows: 1 for [N, ...], 2 for
            [B, S, ...]. The results get them back.
        block_size: the most rows in a block; None chooses it from bytes.
        row_axis_name: mesh axes over which the rows' first dimension is split, in jit or in
            shard_map: gradients of params are summed over devices once, not in each block.

    Returns:
        A function ``mapped(params, *rows)``. Rows are pytrees of arrays of any dtype that share
        their leading dimensions; params are shared by all rows.

    Raises:
        ValueError: rows whose leading dimensions differ, results that are not one per row, or an
            option below 1.

    Accuracy: that of ``fn``; gradients of params are summed over blocks in float32 or wider.

    Transforms: all, in any order; 4 matrix products for a value and its gradient where
    ``blockwise_sum`` takes 3.

    Example:
        >>> def confidence(kernel, hidden):
        ...     return jl.softmax(hidden @ kernel).max(axis=-1)
        >>> jl.blockwise_map(confidence, row_ndim=2)(jnp.eye(3), jnp.zeros([2, 5, 3])).shape
        (2, 5)
    """
    _require_positive(row_ndim=row_ndim, block_size=block_size)

    def local(params: Any, rows: Any) -> Any:
        rows, lead = flatten_rows(rows, row_ndim)
        params = vary(params, varying_axes(*jax.tree.leaves(rows)))
        plan = make_plan(fn, params, rows, block_size)
        block = trace_block(fn, params, rows, plan)
        operands = pad(plan, Operands(block.shared, [], jax.tree.leaves(rows)), None)

        def run(streamed: frozenset[int] | None, *args: Any) -> Leaves:
            def step(_: None, now: Operands) -> tuple[None, Leaves]:
                return None, block.call(now.shared, now.rows)

            empty = [zeros((*plan.grid, *t.shape[1:]), t.dtype, t) for t in block.types]
            return scan_blocks(step, None, empty, Operands(*args), plan, streamed)[1]

        results = differentiable(run, accumulators(block, None))(*operands)
        results = [x[: plan.num_rows].reshape(lead + x.shape[1:]) for x in results]
        return block.tree.unflatten(results)

    def mapped(params: Any, *rows: Any) -> Any:
        return on_split_rows(local, row_axis_name, row_ndim, total=False)(params, rows)

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
    """The sum of a per-row loss, computed a block of rows at a time.

    ``(weights * fn(params, *rows)).sum()``, but what ``fn`` computes on the way, such as logits,
    exists for one block only. The gradients are computed in the forward pass: 3 matrix products,
    as without blocks, where recomputing the blocks would take 4.

    Args:
        fn: ``fn(params, *rows) -> losses [C]``, as for ``blockwise_map``.
        row_ndim: as for ``blockwise_map``.
        block_size: as for ``blockwise_map``.
        has_aux: whether ``fn`` returns ``(losses, aux)``, aux a pytree of arrays [C, ...]; summed
            with the same weights and not differentiated.
        accumulate_dtype: the least dtype that gradients of params are summed in, None for float32.
        row_axis_name: as for ``blockwise_map``; the sum is that over all devices.

    Returns:
        A function ``total(params, *rows, weights=None)`` of the sum, in float32 or wider, or (sum,
        sums of aux). A weight of 0 masks its row, which may hold NaN, unless the weights are
        differentiated.

    Raises:
        ValueError: as for ``blockwise_map``, or losses that are not one per row.
        TypeError: losses that are not floating point, or no pair where ``has_aux``.

    Accuracy: that of ``fn``; sums, also those of bfloat16 gradients, in float32 or wider.
    Transforms: all, in any order. A second derivative computes each block again.

    Example:
        >>> def loss(kernel, hidden, labels):
        ...     return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)
        >>> kernel, hidden, labels = jnp.zeros([3, 4]), jnp.ones([10, 3]), jnp.zeros([10], int)
        >>> total, gradient = jax.value_and_grad(jl.blockwise_sum(loss))(kernel, hidden, labels)
        >>> print(f"{total:.4f}", gradient[0])
        13.8629 [-7.5  2.5  2.5  2.5]
    """
    sums = _weighted_sums(fn, row_ndim, block_size, has_aux, accumulate_dtype, row_axis_name)

    def total(params: Any, *rows: Any, weights: ArrayLike | None = None) -> Any:
        return sums(params, rows, None, weights)[0]

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
    """The weighted mean of a per-row loss, computed a block of rows at a time.

    ``(weights * fn(params, *rows)).sum() / weights.sum()`` over the rows where ``where``: the
    ``blockwise_sum`` divided by the weight of the rows that count, and 0 if that is 0.

    Args:
        fn: ``fn(params, *rows) -> losses [C]``, as for ``blockwise_map``.
        row_ndim: as for ``blockwise_map``.
        block_size: as for ``blockwise_map``.
        has_aux: as for ``blockwise_sum``; aux comes back as means.
        accumulate_dtype: as for ``blockwise_sum``.
        row_axis_name: as for ``blockwise_map``; without it shard_map's mean is a device's own.

    Returns:
        A function ``mean(params, *rows, where=None, weights=None)`` that returns the mean, a scalar
        of float32 or wider, or (mean, means of aux). ``where`` is boolean, True for rows that
        count; those that don't may hold anything, NaN included, and get gradient 0. Both broadcast
        to the leading dimensions.

    Raises:
        ValueError: as for ``blockwise_sum``, or a mask or weights of another shape.
        TypeError: as for ``blockwise_sum``, or a mask that is not boolean.

    Accuracy: as for ``blockwise_sum``.

    Transforms: as for ``blockwise_sum``.

    Example:
        >>> def loss(kernel, hidden, labels):
        ...     return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)
        >>> labels = jnp.array([0, 1, -1])
        >>> mean = jl.blockwise_mean(loss)(jnp.zeros([3, 3]), jnp.eye(3), labels, where=labels >= 0)
        >>> print(f"{mean:.4f}")
        1.0986
    """
    sums = _weighted_sums(fn, row_ndim, block_size, has_aux, accumulate_dtype, row_axis_name)

    def mean(
        params: Any,
        *rows: Any,
        where: ArrayLike | None = None,
        weights: ArrayLike | None = None,
    ) -> Any:
        total, weight = sums(params, rows, where, weights)
        empty = weight == 0
        divisor = jnp.where(empty, jnp.ones_like(weight), weight)

        def divide(x: Array) -> Array:
            return jnp.where(empty, jnp.zeros_like(x), x / divisor.astype(x.dtype))

        if not has_aux:
            return divide(total)
        return divide(total[0]), lax.stop_gradient(jax.tree.map(divide, total[1]))

    return mean


def _weighted_sums(
    fn: Callable[..., Any],
    row_ndim: int,
    block_size: int | None,
    has_aux: bool,
    accumulate_dtype: Any,
    row_axis_name: AxisName,
) -> Callable[..., tuple[Any, Array]]:
    """The sums over the rows that count, of the loss or of (loss, aux), and their weight."""
    _require_positive(row_ndim=row_ndim, block_size=block_size)

    def local(params: Any, split: Any) -> tuple[Any, Array]:
        flat, _ = flatten_rows(split, row_ndim)
        rows, keep, weigh = flat
        plan = make_plan(fn, params, rows, block_size)
        block = trace_block(fn, params, rows, plan)
        _require_losses(block, has_aux)
        masks = [x for x in (weigh, keep) if x is not None]
        if axes := varying_axes(block.types[0], *masks):
            params, rows, weigh = vary((params, rows, weigh), axes)
            block = trace_block(fn, params, rows, plan)
        operands = Operands(block.shared, [], jax.tree.leaves(rows), weigh, keep)
        padded = pad(plan, operands, counting(operands, True))
        results = sum_blocks(block, plan, accumulate_dtype)(*padded)
        return block.tree.unflatten(results), _total_weight(operands)

    def sums(
        params: Any, rows: Any, where: ArrayLike | None, weights: ArrayLike | None
    ) -> tuple[Any, Array]:
        lead = leading_shape(rows, row_ndim)
        keep = None if where is None else as_mask("where", where, lead)
        weigh = None if weights is None else _as_weights(weights, lead)
        run = on_split_rows(local, row_axis_name, row_ndim, total=True)
        total: tuple[Any, Array] = run(params, (rows, keep, weigh))
        return total

    return sums


def _total_weight(operands: Operands) -> Array:
    """The weight of the rows that count."""
    weights, keep = operands.weights, operands.keep
    each = jnp.ones(operands.rows[0].shape[:1], jnp.float32) if weights is None else weights
    return jnp.sum(each if keep is None else jnp.where(keep, each, jnp.zeros_like(each)))


def _as_weights(value: ArrayLike, lead: tuple[int, ...]) -> Array:
    """Weights in the dtype they are summed in; integers and booleans are weights too."""
    array = jnp.asarray(value)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    wide = widen(array) if is_float else array.astype(jnp.float32)
    return broadcast_to("weights", wide, lead)


def _require_positive(**options: Any) -> None:
    for name, value in options.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be a positive int, got {value!r}")


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
