"""A linear layer that ends in logits: its arguments, its products, and its losses reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checked, checks
from jaxlogits._src.base.checks import Range, describe
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName, wide_dtype, widen
from jaxlogits._src.base.products import weigh
from jaxlogits._src.base.program import Option
from jaxlogits._src.base.varying import (
    axis_names,
    is_bound,
    require_apart,
    require_split,
    vary_over,
    varying_axes,
)
from jaxlogits._src.blockwise.product import product_of
from jaxlogits._src.blockwise.transforms import blockwise_map, blockwise_mean, blockwise_sum
from jaxlogits._src.decoding.shaping import capped
from jaxlogits._src.losses.classes import softmax_cross_entropy_with_integer_labels
from jaxlogits._src.mesh.reductions import agreed, num_classes
from jaxlogits._src.rows.quotients import quotient

# An option of which each row has its own, or nothing.
PerRow = tuple[Array, ...]

# What the arrays of every head are split along; what its program is made for; its logits' options.
HEAD = {
    "hidden": "rows features",
    "kernel": "features classes",
    "bias": "classes",
    "class_where": "classes",
    "where": "rows",
    "temperature": "rows",
}
STATIC = ("block_size", "precision", "axis_name", "row_axis_name")
LOGITS = {
    "soft_cap": Option(Range(above=0)),
    "temperature": Option(Range(above=0), off=(1,)),
}


class Head(NamedTuple):
    """The params of a linear layer that ends in logits."""

    kernel: Array  # [D, K]
    bias: Array | None  # [K]


ReductionName = Literal["mean", "sum", "none"]


class Reduction(NamedTuple):
    """How the losses of rows become a result."""

    name: ReductionName
    where: ArrayLike | None
    weights: ArrayLike | None
    block_size: int | None
    accumulate_dtype: Any
    axis_name: AxisName
    row_axis_name: AxisName


def linear_layer(
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    how: Reduction,
    suffix: str = "",
) -> tuple[Array, Head]:
    """The checked arguments; hidden and kernel in one dtype, which the products are taken in."""
    rows = checks.as_floating(f"hidden{suffix}", hidden)
    array = checks.as_floating(f"kernel{suffix}", kernel)
    if rows.ndim == 0:
        raise ValueError(f"hidden{suffix} must have the shape [..., D], got {describe(rows)}")
    _require_kernel(suffix, array, rows)
    _require_mesh(suffix, array, rows, how)
    dtype = rows.dtype if rows.dtype == array.dtype else wide_dtype(rows, array)
    # So that its gradient is summed over the devices once, not in every block.
    rows = vary_over(agreed(rows, how.axis_name), how.axis_name)
    rows, array = (x if x.dtype == dtype else widen(x, dtype) for x in (rows, array))
    _check_hidden(suffix, rows, how)
    if bias is None:
        return rows, Head(array, None)
    offsets = checks.as_floating(f"bias{suffix}", bias)
    rule = f"the classes of kernel{suffix},"
    checks.require_shape(f"bias{suffix}", offsets, array.shape[1:], rule)
    return rows, Head(array, offsets)


def _require_kernel(suffix: str, kernel: Array, rows: Array) -> None:
    """Refuse a kernel that isn't [D, K], such as an embedding that isn't transposed."""
    features = rows.shape[-1]
    if kernel.ndim != 2 or kernel.shape[0] != features:
        rule = f"have the features of hidden{suffix} and the classes, [{features},K]"
        message = f"kernel{suffix} must {rule}, got {describe(kernel)}"
        is_turned = kernel.ndim == 2 and kernel.shape[1] == features
        raise ValueError(message + ": a tied embedding is embedding.T" * is_turned)
    checks.require_classes(f"kernel{suffix}", kernel, (1,))


def _require_mesh(suffix: str, kernel: Array, rows: Array, how: Reduction) -> None:
    """Refuse mesh axes over which nothing is split, or both rows and classes are."""
    require_apart(how.axis_name, how.row_axis_name)
    require_split(f"kernel{suffix}", how.axis_name, kernel)
    if is_bound(how.row_axis_name):
        require_split(f"hidden{suffix}", how.row_axis_name, rows, option="row_axis_name")


def head_labels(labels: ArrayLike, rows: Array, head: Head, how: Reduction) -> Array:
    """Integer labels, one for each row."""
    indices = checks.as_integer("labels", labels)
    rule = "the shape of hidden without its features,"
    checks.require_shape("labels", indices, rows.shape[:-1], rule)
    count = num_classes(head.kernel.shape, how.axis_name)
    checks.require_index_dtype("labels", indices, count)
    if checked.is_on():
        bad = are_bad(indices, head, how.axis_name) & _counting(rows.shape[:-1], how)
        checked.check_values(f"labels must be in [0, {count})", indices, ~bad)
    return indices


def without_padding(
    how: Reduction, lead: tuple[int, ...], rows: tuple[Any, ...], valid: Array | None = None
) -> Reduction:
    """Leave out rows of weight 0 without a loss: of what isn't finite, or a label that is no class.

    Others have a loss, which is the derivative in their weight.
    """
    if how.weights is None:
        return how
    keep = row_mask(how, lead)
    sound = jnp.ones(lead, bool) if keep is None else keep
    sound = sound if valid is None else sound & valid
    for array in map(jnp.asarray, jax.tree.leaves(rows)):
        if jnp.issubdtype(array.dtype, jnp.floating):
            sound &= jnp.all(jnp.isfinite(array), axis=tuple(range(len(lead), array.ndim)))
    axes = varying_axes(sound) & frozenset(axis_names(how.axis_name))
    if axes:
        sound = lax.pmin(sound.astype(jnp.int32), tuple(sorted(axes))) > 0
    return how._replace(where=_counting(lead, how) | sound)


def _check_hidden(suffix: str, rows: Array, how: Reduction) -> None:
    """Look at the rows here, as the loss doesn't know which of all of them its block has."""
    if checked.is_on():
        bad = jnp.any(jnp.isnan(rows), axis=-1) & _counting(rows.shape[:-1], how)
        found = jnp.where(bad, jnp.nan, 0.0)
        checked.check_values(f"hidden{suffix} must not be NaN", found, ~bad)


def _counting(lead: tuple[int, ...], how: Reduction) -> Array:
    """Which rows count."""
    keep = True if how.where is None else how.where
    counting = _of_rows("where", checks.as_boolean("where", keep), lead)
    if how.weights is None:
        return counting
    return counting & (_of_rows("weights", checks.as_real("weights", how.weights), lead) != 0)


def are_bad(labels: Array, head: Head, axis_name: AxisName) -> Array:
    """Which labels are no class; the number of classes itself may not fit their dtype."""
    return (labels < 0) | (labels > num_classes(head.kernel.shape, axis_name) - 1)


def spoiled_where_used(losses: Array, bad: Array) -> Array:
    """NaN for bad rows, and a NaN derivative too unless it counts 0 times.

    A factor of NaN would reach every gradient even where the caller has taken another number in
    the row's place, and a select would let a gradient pass as if the row weren't there. These
    factors overflow and then meet a 0, in this order and in reverse, for all but 0.
    """
    huge = jnp.where(bad, jnp.finfo(losses.dtype).max, 1.0).astype(losses.dtype)
    nothing = jnp.where(bad, 0.0, 1.0).astype(losses.dtype)
    for factor in (huge, huge, nothing, huge, huge):
        losses = losses * factor
    return losses + jnp.where(bad, jnp.nan, 0.0).astype(losses.dtype)


def label_losses(
    z: Array, labels: Array, head: Head, exists: Array | None, axis_name: AxisName, **options: Any
) -> Array:
    """Cross entropy of a block's logits, where one label that is no class spoils its row alone."""
    bad = are_bad(labels, head, axis_name)
    losses = softmax_cross_entropy_with_integer_labels(
        z, jnp.where(bad, 0, labels), where=exists, axis_name=axis_name, **options
    )
    return spoiled_where_used(losses, bad)


def existing_classes(class_where: ArrayLike | None, head: Head) -> Array | None:
    """Which classes there are, as a mask of any rows' logits."""
    if class_where is None:
        return None
    mask = checks.as_boolean("class_where", class_where)
    checks.require_shape("class_where", mask, head.kernel.shape[1:], "the classes of the kernel,")
    return mask[None, :]


def per_row(name: str, option: ArrayLike, rows: Array) -> PerRow:
    """An option that each row has its own of, to be cut as the rows are; nothing for a number."""
    if jnp.ndim(option) == 0:
        return ()
    array, lead = checks.as_real(name, option), rows.shape[:-1]
    checks.require_shape(name, array, lead, "no dimensions or those of the rows,")
    return (array,)


def logits_of(
    soft_cap: ArrayLike | None, temperature: ArrayLike, dtype: jnp.dtype, precision: Any
) -> Callable[[Head, Array, PerRow], Array]:
    """The function that makes a block of logits, in ``dtype``.

    Where each row has its own temperature, those of the block come last.
    """
    of_all = temperature if jnp.ndim(temperature) == 0 else 1.0
    scale = checks.as_option("temperature", of_all, dtype)
    cap = None if soft_cap is None else checks.as_option("soft_cap", soft_cap, dtype)
    unscaled = isinstance(temperature, int | float) and temperature == 1
    product = product_of(dtype, precision)

    def logits(head: Head, hidden: Array, temperatures: PerRow) -> Array:
        z = product(hidden, head.kernel)
        if head.bias is not None:
            z = z + jnp.broadcast_to(widen(head.bias, dtype), z.shape)
        if cap is not None:
            z = capped(z, cap)
        if temperatures:
            return quotient(z, temperatures[0].astype(dtype)[:, None])
        return z if unscaled else quotient(z, scale)

    return logits


def reduce_rows(
    loss: Callable[..., Array], params: Any, rows: tuple[Any, ...], how: Reduction
) -> Array:
    """The per-row ``loss``, run block by block and reduced over the rows that count."""
    if how.name not in get_args(ReductionName):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {how.name!r}')
    lead = rows[0].shape[:-1]
    keep, weights = row_mask(how, lead), how.weights
    if weights is not None:
        weights = widen(checks.as_real("weights", weights), wide_dtype(*jax.tree.leaves(rows)))
        weights = _of_rows("weights", weights, lead)
        counted = weights if keep is None else jnp.where(keep, weights, jnp.zeros_like(weights))
        checks.check_no_nan("weights", counted, "in row")
    if how.name == "none":
        each: Array = map_rows(loss, params, rows, how)
        if weights is not None:
            each = weigh(weights.astype(each.dtype), each)
            # Nothing of a masked row is looked at, not even by the derivative in its weight.
            each = each if keep is None else jnp.where(keep, each, jnp.zeros_like(each))
        return each
    reduced = blockwise_mean if how.name == "mean" else blockwise_sum
    total = reduced(loss, accumulate_dtype=how.accumulate_dtype, **_options(how, lead))
    rows, keep, weights = with_rows((rows, keep, weights), lead)
    number: Array = total(params, *rows, where=keep, weights=weights)
    return number


def map_rows(fn: Callable[..., Any], params: Any, rows: tuple[Any, ...], how: Reduction) -> Any:
    """``fn`` of each row, run block by block: any pytree, 0 for the rows that don't count."""
    lead = rows[0].shape[:-1]
    rows, keep = with_rows((rows, row_mask(how, lead)), lead)
    each = blockwise_map(fn, **_options(how, lead))(params, *rows, where=keep)
    return jax.tree.map(lambda x: x.reshape(lead + x.shape[max(len(lead), 1) :]), each)


def _options(how: Reduction, lead: tuple[int, ...]) -> Any:
    """What all three transforms are told."""
    options = {"row_ndim": max(len(lead), 1), "block_size": how.block_size}
    return options | {"row_axis_name": how.row_axis_name}


def row_mask(how: Reduction, lead: tuple[int, ...]) -> Array | None:
    if how.where is None:
        return None
    return _of_rows("where", checks.as_boolean("where", how.where), lead)


def with_rows(arrays: Any, lead: tuple[int, ...]) -> Any:
    """Of a single example, one row."""
    return arrays if lead else jax.tree.map(lambda x: x[None], arrays)


def _of_rows(name: str, array: Array, lead: tuple[int, ...]) -> Array:
    """One entry for each row, from an array of as many dimensions or a single number."""
    if array.ndim in (0, len(lead)):
        return checks.broadcast_to(name, array, lead)
    missing = len(lead) - array.ndim
    whole, new = [":"] * array.ndim, ["None"] * missing
    places = {", ".join(new + whole): lead[missing:], ", ".join(whole + new): lead[: array.ndim]}
    fits = [f"{name}[{index}]" for index, shape in places.items() if array.shape == shape]
    hint = f": write {' or '.join(fits)}" if missing > 0 and fits else ""
    if missing < 0 and name == "where":
        hint = ": class_where masks classes"
    got = f"[{','.join(map(str, lead))}], got {describe(array)}"
    raise ValueError(f"{name} must have the dimensions of the rows, {got}{hint}")
