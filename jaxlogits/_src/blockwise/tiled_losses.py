"""The losses of a linear head in vocabulary tiles: arithmetic on the sums of each row."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, wide_dtype, widen
from jaxlogits._src.base.elementary import log1p
from jaxlogits._src.base.products import weigh
from jaxlogits._src.base.varying import axis_names, vary, varying_axes
from jaxlogits._src.blockwise.block_size import FEWEST_ROWS
from jaxlogits._src.blockwise.jobs import Options, on_devices
from jaxlogits._src.blockwise.linear_layer import (
    Head,
    PerRow,
    Reduction,
    are_bad,
    logits_of,
    row_mask,
    spoiled_where_used,
    with_rows,
)
from jaxlogits._src.blockwise.maps import rows_that_count
from jaxlogits._src.blockwise.plan import flatten_rows, leading_shape
from jaxlogits._src.blockwise.tiles import (
    Classes,
    Rows,
    Sums,
    gap_from,
    nll_of,
    rest_of,
    row_sums,
)
from jaxlogits._src.mesh.reductions import num_classes, of_all_devices, row_take

Memory = Literal["rows", "tiles"]
_MOST_BYTES = 2**30  # of a block's logits, where the caller doesn't say


class _Shared(NamedTuple):
    """What all rows share."""

    head: Head
    exists: Array | None  # [K]
    class_weights: Array | None  # [K]
    logits: dict[str, ArrayLike]  # options of the logits
    losses: dict[str, Array]  # and of the losses


class _Each(NamedTuple):
    """What each row has."""

    hidden: Array
    labels: Array
    temperatures: PerRow
    smoothing: PerRow


def is_tiled(memory: Memory | None, how: Reduction, rows: Array, head: Head) -> bool:
    """Whether the logits are made in tiles of classes; None chooses by bytes."""
    if memory not in (None, *get_args(Memory)):
        raise ValueError(f'memory must be "rows", "tiles" or None, got {memory!r}')
    of_blocks = {"block_size": how.block_size, "accumulate_dtype": how.accumulate_dtype}
    given = {name: value for name, value in of_blocks.items() if value is not None}
    if memory is None:
        return not given and how.weights is None and _is_huge(rows, head)
    if memory == "tiles" and given:
        name, value = given.popitem()
        rule = 'None with memory="tiles", which has no blocks of rows'
        raise ValueError(f"{name} must be {rule}, got {value!r}")
    return memory == "tiles"


def _is_huge(rows: Array, head: Head) -> bool:
    """Whether the logits of the fewest rows that a block has are too many."""
    num_rows: Any = math.prod(rows.shape[:-1])
    classes = head.kernel.shape[1]
    if not all(isinstance(x, int) for x in (num_rows, classes)):  # symbols of jax.export
        return False
    size = wide_dtype(rows, head.kernel).itemsize
    return bool(min(num_rows, FEWEST_ROWS) * classes * size > _MOST_BYTES)


def tiled_losses(
    rows: Array,
    head: Head,
    labels: Array,
    temperatures: PerRow,
    how: Reduction,
    *,
    exists: Array | None,
    soft_cap: ArrayLike | None,
    temperature: ArrayLike,
    precision: Any,
    label_smoothing: ArrayLike = 0.0,
    smoothing: PerRow = (),
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
) -> Array:
    """The cross entropy of each row, 0 where it doesn't count."""
    dtype, lead = wide_dtype(rows, head.kernel), rows.shape[:-1]
    of_logits: dict[str, ArrayLike] = {} if soft_cap is None else {"soft_cap": soft_cap}
    is_one = isinstance(temperature, int | float) and temperature == 1
    if not (temperatures or is_one):
        of_logits["temperature"] = temperature
    of_losses = (
        {} if checks.is_zero(z_loss) else {"z_loss": checks.as_option("z_loss", z_loss, dtype)}
    )
    if not (smoothing or checks.is_zero(label_smoothing)):
        of_losses["smoothing"] = checks.as_option("label_smoothing", label_smoothing, dtype)
    weights = _class_weights(class_weights, head, dtype)
    mask = None if exists is None else exists[0]
    shared = _Shared(head, mask, weights, jax.tree.map(jnp.asarray, of_logits), of_losses)
    each = _Each(rows, labels, temperatures, tuple(x.astype(dtype) for x in smoothing))
    each, keep = with_rows((each, row_mask(how, lead)), lead)
    options = Options("linear head", max(len(lead), 1), None, how.row_axis_name)
    local = functools.partial(_local, how, options.row_ndim, precision)
    tree: Any
    leaves, tree = jax.tree.flatten(shared)
    losses: Array = on_devices(
        lambda leaves, split: local(tree.unflatten(leaves), split),
        leaves,
        each,
        keep,
        None,
        options,
        total=False,
    )
    return losses.reshape(lead)


def _class_weights(given: ArrayLike | None, head: Head, dtype: jnp.dtype) -> Array | None:
    if given is None:
        return None
    weights = widen(checks.as_real("class_weights", given), dtype)
    checks.require_shape("class_weights", weights, head.kernel.shape[1:], "one weight per class,")
    rule = "class_weights must be at least 0"
    return checks.check_values(rule, weights, weights >= 0, "for class")


def _local(how: Reduction, row_ndim: int, precision: Any, shared: _Shared, split: Any) -> Array:
    """The losses of the rows that a device has."""
    each, keep, _ = split
    lead = leading_shape(each, row_ndim)
    each, keep = flatten_rows((each, keep), row_ndim)
    if keep is not None:
        tree: Any
        leaves, tree = jax.tree.flatten(each)
        each = tree.unflatten(rows_that_count(leaves, keep))
    # Gradients of what is shared are summed over the devices once.
    of_rows = varying_axes(*jax.tree.leaves(each)) - frozenset(axis_names(how.axis_name))
    shared = vary(shared, of_rows)
    losses = _losses(how, precision, shared, each)
    if keep is not None:
        losses = jnp.where(keep, losses, jnp.zeros_like(losses))
    return losses.reshape(lead)


def _losses(how: Reduction, precision: Any, shared: _Shared, each: _Each) -> Array:
    """Those of rows [N, D], of which one with a label that is no class spoils itself alone."""
    dtype = wide_dtype(each.hidden, shared.head.kernel)
    bad = are_bad(each.labels, shared.head, how.axis_name)
    labels = jnp.where(bad, 0, each.labels).astype(jnp.int32)
    is_smoothed = bool(each.smoothing) or "smoothing" in shared.losses
    spread = _spread(shared, dtype) if is_smoothed else None

    def logits(kernel: Array, bias: Array | None, rows: Rows, options: Any) -> Array:
        cap, temperature = options.get("soft_cap"), options.get("temperature", 1.0)
        make = logits_of(cap, temperature, dtype, precision)
        return make(Head(kernel, bias), rows.hidden, rows.temperatures)

    classes = Classes(*shared.head, shared.exists, spread)
    rows = Rows(each.hidden, labels, each.temperatures)
    sums = row_sums(logits, classes, rows, shared.logits, how.axis_name)
    epsilon = each.smoothing[0] if each.smoothing else shared.losses.get("smoothing")
    losses = _loss(how, shared, sums, labels, epsilon)
    return spoiled_where_used(losses, bad)


def _spread(shared: _Shared, dtype: jnp.dtype) -> Array:
    """What smoothing is worth at each class that exists."""
    weights = shared.class_weights
    if weights is None:
        weights = jnp.ones(shared.head.kernel.shape[1:], dtype)
    return weights if shared.exists is None else jnp.where(shared.exists, weights, 0.0)


def _loss(
    how: Reduction, shared: _Shared, sums: Sums, labels: Array, epsilon: Array | None
) -> Array:
    """sum(w t (-log p)) + z_loss logsumexp**2, from a row's sums."""
    axis_name, weights = how.axis_name, shared.class_weights
    count = None
    if shared.exists is not None:
        count = of_all_devices(jnp.sum(shared.exists.astype(sums.others.dtype)), axis_name)
    loss = nll_of(sums)
    if weights is not None:
        own = row_take(weights[None, :], labels[None, :], axis_name)[0]
        loss = weigh(own, loss)
    normaliser = log1p(rest_of(sums))  # logsumexp - largest
    if epsilon is not None and sums.total is not None and sums.gaps is not None:
        of_all = num_classes(shared.head.kernel.shape, axis_name) if count is None else count
        total = weigh(sums.total, normaliser) + gap_from(sums, sums.gaps)
        even = total / jnp.maximum(of_all, 1.0)
        loss = weigh(1.0 - epsilon, loss) + weigh(epsilon, even)
    if "z_loss" in shared.losses:
        lse = sums.largest + normaliser
        loss = loss + weigh(shared.losses["z_loss"], lse * lse)
    return loss if count is None else jnp.where(count == 0, 0.0, loss)
