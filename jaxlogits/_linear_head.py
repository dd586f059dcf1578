"""Losses of ``hidden @ kernel`` that never hold all of it: the blockwise transforms, ready made.

Each function is one function of a block of rows, the logits and then the library's own loss, run by
``blockwise_mean``, ``blockwise_sum`` or ``blockwise_map``.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxlogits import _checks
from jaxlogits._blocks import describe
from jaxlogits._blockwise import blockwise_map, blockwise_mean, blockwise_sum
from jaxlogits._class_losses import softmax_cross_entropy_with_integer_labels
from jaxlogits._divergences import softmax_kl_divergence
from jaxlogits._explicit import on_explicit_mesh, split_layer
from jaxlogits._mesh import num_classes, vary_over
from jaxlogits._precision import wide_dtype
from jaxlogits._shaping import capped
from jaxlogits._typing import Array, ArrayLike, AxisName

_Pair = tuple[Array, Array]


class _Head(NamedTuple):
    """The params of a linear layer that ends in logits."""

    kernel: Array  # [D, K]
    bias: Array | None  # [K]


class _Reduction(NamedTuple):
    """How the losses of rows become a result."""

    name: str
    block_size: int | None
    row_axis_name: AxisName


@on_explicit_mesh(split_layer)
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: str = "mean",
    block_size: int | None = None,
    precision: Any = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> Array:
    """Cross entropy of integer labels and softmax(hidden @ kernel), without that array in memory.

    Args:
        hidden: floating-point array ``[..., D]``, one row for each example.
        kernel: ``[D, K]``; a tied embedding ``[K, D]`` is ``embedding.T``, which makes no copy.
        labels: integers in [0, K), ``[...]``. One outside makes its row's loss and gradient NaN.
        bias: ``[K]``.
        where: boolean mask that broadcasts to ``[...]``, True for the rows that count.
        weights: w, one for each row; broadcasts to ``[...]``.
        label_smoothing: as in ``softmax_cross_entropy_with_integer_labels``.
        class_weights: the same, ``[K]``.
        z_loss: the same.
        soft_cap: c above 0: logits are c tanh((hidden @ kernel + bias) / c). None for no bound.
        temperature: above 0, divides them; this or soft_cap gives NaN where it is traced and isn't.
        reduction: "mean", sum(w L) / sum(w), 0 where no row counts; "sum", sum(w L); "none", w L.
        block_size: rows that are computed at once; None chooses it from bytes.
        precision: of the matrix products, as in ``jax.lax.dot_general``.
        axis_name: mesh axes over which the classes of kernel and bias are split, in ``shard_map``.
        row_axis_name: those over which hidden's first dimension is split, as in ``blockwise_sum``.

    Returns:
        A scalar or, for "none", ``[...]``, in float32 or wider.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, no classes or an option out of range.

    Accuracy: that of the loss, given logits whose products are summed in float32.
    Transforms: all, to any order, in every floating-point argument and option.

    Example:
        >>> jl.linear_softmax_cross_entropy(jnp.ones([4, 2]), jnp.ones([2, 8]), jnp.arange(4))
        Array(2.0794415, dtype=float32)
    """
    rows, head = _linear_layer(hidden, kernel, bias, axis_name)
    indices = _labels(labels, rows, head, axis_name)
    logits = _logits_of(soft_cap, temperature, wide_dtype(rows, head.kernel), precision)

    def loss(head: _Head, hidden: Array, labels: Array) -> Array:
        return softmax_cross_entropy_with_integer_labels(
            logits(head, hidden),
            labels,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            z_loss=z_loss,
            axis_name=axis_name,
        )

    how = _Reduction(reduction, block_size, row_axis_name)
    return _reduce(loss, head, (rows, indices), where, weights, how)


@on_explicit_mesh(split_layer)
def linear_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    block_size: int | None = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> Array:
    """Log probability of each label under softmax(hidden @ kernel), without that array in memory.

    What policy gradients and preference losses are made of. For a gradient each block of logits is
    computed a second time.

    Args:
        hidden: floating-point array ``[..., D]``, one row for each token.
        kernel: ``[D, K]``; a tied embedding ``[K, D]`` is ``embedding.T``.
        labels: integers in [0, K), ``[...]``. One outside makes its row's result and gradient NaN.
        bias: ``[K]``.
        soft_cap: c above 0, bounds the logits: c tanh(z / c).
        temperature: above 0, divides the logits.
        block_size: rows that are computed at once, instead of the number chosen from their bytes.
        axis_name: mesh axes over which the classes of kernel and bias are split, in ``shard_map``.
        row_axis_name: mesh axes over which the first dimension of hidden is split.

    Returns:
        ``[...]``, at most 0, in float32 or wider.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, no classes, or an option out of range.

    Accuracy: that of the loss, given logits whose products are summed in float32.
    Transforms: all, to any order, in every floating-point argument and option.

    Example:
        >>> jl.linear_log_probs(jnp.ones([2, 3]), jnp.ones([3, 8]), jnp.array([0, 7])).round(4)
        Array([-2.0794, -2.0794], dtype=float32)
    """
    return -linear_softmax_cross_entropy(
        hidden,
        kernel,
        labels,
        bias=bias,
        soft_cap=soft_cap,
        temperature=temperature,
        reduction="none",
        block_size=block_size,
        axis_name=axis_name,
        row_axis_name=row_axis_name,
    )


@on_explicit_mesh(split_layer)
def linear_softmax_kl_divergence(
    hidden_p: ArrayLike,
    kernel_p: ArrayLike,
    hidden_q: ArrayLike,
    kernel_q: ArrayLike,
    *,
    bias_p: ArrayLike | None = None,
    bias_q: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    block_size: int | None = None,
    axis_name: AxisName = None,
    row_axis_name: AxisName = None,
) -> Array:
    """KL(p || q) of a teacher head p and a student head q, without the logits of either in memory.

    For distillation, with p = softmax((hidden_p @ kernel_p + bias_p) / temperature) and q alike.

    Args:
        hidden_p: floating-point array ``[..., D]`` of the teacher, one row for each example.
        kernel_p: ``[D, K]``; a tied embedding ``[K, D]`` is ``embedding.T``.
        hidden_q: ``[..., E]`` of the student, with the same rows.
        kernel_q: ``[E, K]``, with the same classes.
        bias_p: ``[K]``.
        bias_q: ``[K]``.
        temperature: above 0, divides the logits of both. Multiply the loss by its square to keep
            the size of the gradients.
        where: boolean mask that broadcasts to ``[...]``, True for the rows that count.
        weights: w, one for each row; broadcasts to ``[...]``.
        reduction: "mean", sum(w KL) / sum(w), 0 where no row counts; "sum"; "none", w KL.
        block_size: rows that are computed at once; None chooses it from bytes.
        axis_name: mesh axes over which the classes of both heads are split, in ``shard_map``.
        row_axis_name: mesh axes over which the first dimension of both hidden is split.

    Returns:
        A scalar or, for "none", ``[...]``; 0 where no row counts. float32 or wider.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape, no classes or an option out of range.

    Accuracy: that of ``softmax_kl_divergence``, given logits that are summed in float32.
    Transforms: all, to any order, in every floating-point argument and option.

    Example:
        >>> hidden, kernel = jnp.ones([2, 1]), jnp.array([[0.0, 1.0]])
        >>> jl.linear_softmax_kl_divergence(hidden, kernel, hidden, 2 * kernel).round(4)
        Array(0.0826, dtype=float32)
    """
    rows_p, head_p = _linear_layer(hidden_p, kernel_p, bias_p, axis_name, "_p")
    rows_q, head_q = _linear_layer(hidden_q, kernel_q, bias_q, axis_name, "_q")
    lead, num_classes = rows_p.shape[:-1], head_p.kernel.shape[1]
    shape = (*lead, rows_q.shape[-1])
    _checks.require_shape("hidden_q", rows_q, shape, "the leading shape of hidden_p,")
    shape = (rows_q.shape[-1], num_classes)
    _checks.require_shape("kernel_q", head_q.kernel, shape, "the classes of kernel_p,")
    dtype = wide_dtype(rows_p, head_p.kernel, rows_q, head_q.kernel)
    logits = _logits_of(None, temperature, dtype, None)

    def loss(heads: tuple[_Head, _Head], hidden_p: Array, hidden_q: Array) -> Array:
        z_p, z_q = logits(heads[0], hidden_p), logits(heads[1], hidden_q)
        return softmax_kl_divergence(z_p, z_q, axis_name=axis_name)

    how = _Reduction(reduction, block_size, row_axis_name)
    return _reduce(loss, (head_p, head_q), (rows_p, rows_q), where, weights, how)


# The layer.


def _linear_layer(
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    axis_name: AxisName,
    suffix: str = "",
) -> tuple[Array, _Head]:
    """The checked arguments; hidden and kernel in one dtype, which the products are taken in."""
    rows = _checks.as_floating(f"hidden{suffix}", hidden)
    array = _checks.as_floating(f"kernel{suffix}", kernel)
    if rows.ndim == 0:
        raise ValueError(f"hidden{suffix} must have the shape [..., D], got {describe(rows)}")
    shape = (rows.shape[-1], array.shape[-1] if array.ndim else 0)
    rule = f"the features of hidden{suffix} and the classes,"
    _checks.require_shape(f"kernel{suffix}", array, shape, rule)
    _checks.require_classes(f"kernel{suffix}", array, (1,))
    dtype = rows.dtype if rows.dtype == array.dtype else wide_dtype(rows, array)
    # So that its gradient is summed over the devices once, not in every block.
    rows = vary_over(rows, axis_name)
    if bias is None:
        return rows.astype(dtype), _Head(array.astype(dtype), None)
    offsets = _checks.as_floating(f"bias{suffix}", bias)
    _checks.require_shape(f"bias{suffix}", offsets, shape[1:], f"the classes of kernel{suffix},")
    return rows.astype(dtype), _Head(array.astype(dtype), offsets)


def _labels(labels: ArrayLike, rows: Array, head: _Head, axis_name: AxisName) -> Array:
    """Integer labels, one for each row."""
    indices = _checks.as_integer("labels", labels)
    rule = "the shape of hidden without its features,"
    _checks.require_shape("labels", indices, rows.shape[:-1], rule)
    _checks.require_index_dtype("labels", indices, num_classes(head.kernel.shape, axis_name))
    return indices


def _logits_of(
    soft_cap: ArrayLike | None, temperature: ArrayLike, dtype: jnp.dtype, precision: Any
) -> Callable[[_Head, Array], Array]:
    """The function that makes a block of logits, in ``dtype``."""
    scale = _checks.as_positive("temperature", temperature, dtype)
    cap = None if soft_cap is None else _checks.as_positive("soft_cap", soft_cap, dtype)
    unscaled = isinstance(temperature, int | float) and temperature == 1
    product = _product(dtype, precision)

    def logits(head: _Head, hidden: Array) -> Array:
        z = product(hidden, head.kernel)
        if head.bias is not None:
            z = z + jnp.broadcast_to(head.bias.astype(dtype), z.shape)
        if cap is not None:
            z = capped(z, cap)
        return z if unscaled else z / scale

    return logits


def _product(dtype: jnp.dtype, precision: Any) -> Callable[[Array, Array], Array]:
    """hidden @ kernel, summed in ``dtype``; the transposes of its tangents make the gradients."""

    def dot(
        a: Array, b: Array, over: tuple[int, int], dtype: Any = dtype, precision: Any = precision
    ) -> Array:
        return lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), precision, dtype)

    @jax.custom_jvp
    def product(hidden: Array, kernel: Array) -> Array:
        if hidden.dtype == jnp.bfloat16:
            return dot(hidden, kernel, (1, 0))
        # So XLA:CPU sees that the kernel embedding.T is the embedding; else it would copy it.
        return dot(hidden, kernel.T, (1, 1))

    @functools.partial(product.defjvp, symbolic_zeros=True)
    def product_jvp(primals: _Pair, tangents: tuple[Any, Any]) -> _Pair:
        (hidden, kernel), (dhidden, dkernel) = primals, tangents
        z = product(hidden, kernel)
        dz = jnp.zeros_like(z)
        is_bfloat16 = hidden.dtype == jnp.bfloat16
        if not isinstance(dhidden, SymbolicZero):
            # The logits' derivative is rounded to bfloat16, or the kernel would become float32.
            least = hidden.dtype if is_bfloat16 else dtype
            dz = dz + dot(dhidden, kernel, (1, 0), least).astype(dtype)
        if not isinstance(dkernel, SymbolicZero):
            # Transposed by hand, behind a barrier, because XLA:CPU multiplies faster then.
            rows = lax.optimization_barrier(hidden.T).astype(dtype)
            rounded = is_bfloat16 and precision is None
            algorithm = lax.DotAlgorithmPreset.BF16_BF16_F32 if rounded else precision
            dz = dz + dot(rows, dkernel.astype(dtype), (0, 0), precision=algorithm)
        if is_bfloat16:
            # Both products read one array of the logits' derivative; XLA:CPU would make two.
            dz = lax.platform_dependent(dz, cpu=lax.optimization_barrier, default=lambda dz: dz)
        return z, dz

    return product


def _reduce(
    loss: Callable[..., Array],
    params: Any,
    rows: tuple[Array, ...],
    where: ArrayLike | None,
    weights: ArrayLike | None,
    how: _Reduction,
) -> Array:
    """The per-row ``loss``, run block by block and reduced over the rows that count."""
    reduction = how.name
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    lead = rows[0].shape[:-1]
    keep = None if where is None else _checks.as_mask("where", where, lead)
    if weights is not None:
        scale = _checks.as_real("weights", weights).astype(wide_dtype(*rows))
        weights = _checks.broadcast_to("weights", scale, lead)
    if not lead:  # a single example
        rows = tuple(x[None] for x in rows)
    options: Any = {"row_ndim": max(len(lead), 1), "block_size": how.block_size}
    options |= {"row_axis_name": how.row_axis_name}
    if reduction == "mean":
        mean: Array = blockwise_mean(loss, **options)(params, *rows, where=keep, weights=weights)
        return mean
    if keep is not None:
        # Nothing of a masked row is looked at, not even by the derivative in its weight.
        rows = tuple(jnp.where(_like_rows(keep, x), x, jnp.zeros_like(x)) for x in rows)
        weights = jnp.where(keep, 1.0 if weights is None else weights, 0.0)
    if reduction == "sum":
        total: Array = blockwise_sum(loss, **options)(params, *rows, weights=weights)
        return total
    each: Array = blockwise_map(loss, **options)(params, *rows).reshape(lead)
    if weights is not None:
        each = each * weights.astype(each.dtype)
    return each if keep is None else jnp.where(keep, each, jnp.zeros_like(each))


def _like_rows(keep: Array, rows: Array) -> Array:
    """A mask ``[...]`` of the rows, for every entry of rows ``[..., D]`` or labels ``[...]``."""
    mask = keep.reshape(keep.shape + (1,) * (rows.ndim - max(keep.ndim, 1)))
    return jnp.broadcast_to(mask, rows.shape)
