"""Rows ``[..., K]``: how every function of classes sees its logits, and softmax with its relatives.

``rows_of`` brings the caller's logits into rows in the wide dtype, with masked classes at -inf. The
``*_rows`` functions carry the derivatives; softmax's public functions and the losses share them.

Two habits keep every result accurate at any gap between the logits:

- the sum of exponentials is kept as 1 + rest, where rest leaves out one maximum, so that
  log1p(rest) and rest / (1 + rest) stay right where the maximum has almost all of the probability;
- tangents are taken relative to the maximum's, which softmax doesn't notice, so that 1 - p is never
  formed for the class whose p is close to 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checked, checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, narrow, wide_dtype, widen
from jaxlogits._src.base.varying import require_split
from jaxlogits._src.mesh.reductions import class_indices, row_any, row_first, row_max, row_sum

Pair = tuple[Array, Array]

# From the caller's arrays to rows and back.


class Rows(NamedTuple):
    """The logits as rows, and what is needed to interpret them."""

    logits: Array  # [..., K], in the caller's dtype, masked classes at -inf
    z: Array  # the same in the wide dtype, once: so that its gradient is rounded once, too
    mask: Array | None  # [..., K], the classes that count, or None for all of them
    blank: Array  # what a row of -inf gives: NaN by its own logits, 0 where the mask made it so
    axes: tuple[int, ...]
    like: Array  # the caller's logits
    axis_name: AxisName  # the mesh axes over which the classes are split

    def restore(self, rows: Array, masked: float) -> Array:
        """Rows of results in the layout and dtype of the logits, constant where they are masked."""
        if self.mask is not None:
            rows = jnp.where(self.mask, rows, masked)
        return narrow(from_rows(rows, self.axes, self.like.shape), self.like)


def rows_of(
    logits: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    axis_name: AxisName,
    *,
    one_per_row: bool = False,
    name: str = "logits",
    several_inf: bool = False,
    no_class: bool = False,
) -> Rows:
    """Check the arguments that every row function has and bring them into rows.

    ``one_per_row``: the function returns one number for each row, so that a mask with the rank of
    that result masks rows. ``several_inf``, ``no_class``: a row with more than one +inf, or of -inf
    alone, is as good as any for it.
    """
    rows = _as_rows(logits, axis, where, axis_name, one_per_row)
    if checked.is_on():
        _check_rows(name, rows, several_inf, no_class)
    return rows


def _as_rows(
    logits: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    axis_name: AxisName,
    one_per_row: bool,
) -> Rows:
    array = checks.as_floating("logits", logits)
    axes = checks.normalize_axes(array, axis)
    checks.require_classes("logits", array, axes)
    require_split("logits", axis_name, array)
    rows = to_rows(array, axes)
    if where is None:
        nan = jnp.asarray(jnp.nan, wide_dtype(array))
        return Rows(rows, widen(rows), None, nan, axes, array, axis_name)
    mask = to_rows(_as_mask(where, array, axes, one_per_row), axes)
    if array.dtype.itemsize < 2:  # some of these dtypes have no -inf
        rows = widen(rows)
    blank = jnp.where(row_any(mask, axis_name), jnp.nan, 0.0)
    masked = jnp.where(mask, rows, -jnp.inf)
    blank = blank.astype(wide_dtype(array))
    return Rows(masked, widen(masked), mask, blank, axes, array, axis_name)


def _as_mask(where: ArrayLike, logits: Array, axes: tuple[int, ...], one_per_row: bool) -> Array:
    """The mask of the classes; its rank says what it masks."""
    mask = checks.as_boolean("where", where)
    row_ndim = logits.ndim - len(axes)
    if one_per_row and mask.ndim == row_ndim:
        rows = tuple(size for d, size in enumerate(logits.shape) if d not in axes)
        hint = ": write where[None, :] for classes" if mask.shape == logits.shape[-1:] else ""
        mask = jnp.expand_dims(checks.broadcast_to("where", mask, rows, hint), axes)
    elif mask.ndim not in (0, logits.ndim):
        ranks = f"{logits.ndim} or {row_ndim}" if one_per_row else f"{logits.ndim}"
        hint = ": write where[:, None] for rows or where[None, :] for classes" * (mask.ndim == 1)
        raise ValueError(
            f"where must have {ranks} dimensions for logits {checks.describe(logits)}, "
            f"got {checks.describe(mask)}{hint}"
        )
    return checks.broadcast_to("where", mask, logits.shape)


def _check_rows(name: str, rows: Rows, several_inf: bool, no_class: bool) -> None:
    """Look at the values of the logits."""
    z, axis_name = rows.z, rows.axis_name
    found = jnp.sum(jnp.where(jnp.isnan(z), z, 0.0), axis=-1)
    checked.check_values(f"{name} must not be NaN", found, ~jnp.isnan(found))
    if not several_inf:
        count = row_sum((z == jnp.inf).astype(jnp.int32), axis_name)[..., 0]
        rule = f"{name} must have at most one +inf in a row"
        checked.check_values(rule, count, count <= 1)
    if not no_class:
        largest = row_max(z, axis_name)
        some = jnp.isnan(largest) | (largest > -jnp.inf)
        if rows.mask is not None:
            some |= ~row_any(rows.mask, axis_name)
        rule = f"{name} must be above -inf for some class of a row"
        checked.check_values(rule, largest[..., 0], some[..., 0])


def to_rows(array: Array, axes: tuple[int, ...]) -> Array:
    """Move ``axes`` to the end, in their order, and flatten them into one."""
    if axes == (array.ndim - 1,):
        return array
    moved = jnp.moveaxis(array, axes, range(-len(axes), 0))
    return moved.reshape(*moved.shape[: -len(axes)], -1)


def from_rows(rows: Array, axes: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Undo ``to_rows`` for an array that had ``shape``."""
    if axes == (len(shape) - 1,):
        return rows
    unflat = rows.reshape(*rows.shape[:-1], *(shape[axis] for axis in axes))
    return jnp.moveaxis(unflat, range(-len(axes), 0), axes)


def spoiled(x: Array, bad: Array) -> Array:
    """NaN where ``bad``, in value and derivatives: a select of NaN would have derivative 0."""
    return x * jnp.where(bad, jnp.nan, 1.0).astype(x.dtype)


# The functions of rows, with their derivatives.


class RowStats(NamedTuple):
    """What the exponentials of a row come from: exp(z - max) and its sum, less one maximum."""

    largest: Array  # [..., 1]
    gaps: Array  # [..., K], max - z
    exps: Array  # [..., K], exp(-gaps)
    rest: Array  # [..., 1], the sum of exps without one maximum; NaN if the row has two +inf


def row_stats(z: Array, axis_name: AxisName) -> RowStats:
    """One pass for the maximum, one for the exponentials."""
    largest = row_max(z, axis_name)
    at_max = z == largest
    gaps = jnp.where(at_max, 0.0, largest - z)  # inf - inf at an infinite maximum
    exps = jnp.exp(-gaps)
    ties = row_sum(at_max.astype(z.dtype), axis_name)
    rest = row_sum(jnp.where(at_max, 0.0, exps), axis_name) + (ties - 1.0)
    two_inf = (largest == jnp.inf) & (rest > 0)
    return RowStats(largest, gaps, exps, jnp.where(two_inf, jnp.nan, rest))


def first_max(z: Array, axis_name: AxisName) -> Array:
    """One-hot mask of the first maximum."""
    return row_first(z == row_max(z, axis_name), axis_name)


def label_mask(shape: tuple[int, ...], labels: Array, axis_name: AxisName) -> Array:
    """One-hot mask of the labels."""
    # Compared in the labels' own dtype: a cast could wrap a large label round to a valid one.
    return class_indices(shape, labels.dtype, axis_name) == labels[..., None]


def log_softmax_tangent(z: Array, p: Array, dz: Array, axis_name: AxisName) -> Array:
    """dz_i - sum_j p_j dz_j, where both terms are first taken relative to the maximum's tangent."""
    at_max = z == row_max(z, axis_name)
    ties = row_sum(at_max.astype(z.dtype), axis_name)
    # Of equal maxima the mean will do: none of them has more than half of the probability.
    dz_max = row_sum(jnp.where(at_max, dz, 0.0), axis_name) / ties
    # The select says once more that dz - dz is 0, for reverse mode, where the two are far apart.
    relative = jnp.where(at_max & (ties == 1.0), 0.0, dz - dz_max)
    return relative - row_sum(p * relative, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_rows(z: Array, blank: Array, axis_name: AxisName) -> Array:
    """Softmax over the last axis; ``blank`` for rows of -inf."""
    stats = row_stats(z, axis_name)
    return jnp.where(stats.largest == -jnp.inf, blank, stats.exps / (1.0 + stats.rest))


@softmax_rows.defjvp
def _softmax_jvp(axis_name: AxisName, primals: Pair, tangents: Pair) -> Pair:
    z, blank = primals
    p = softmax_rows(z, blank, axis_name)
    return p, p * log_softmax_tangent(z, p, tangents[0], axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_complement_rows(z: Array, blank: Array, axis_name: AxisName) -> Array:
    """1 - softmax over the last axis, accurate where the softmax is close to 1."""
    stats = row_stats(z, axis_name)
    total = 1.0 + stats.rest
    complement = jnp.where(first_max(z, axis_name), stats.rest / total, 1.0 - stats.exps / total)
    return jnp.where(stats.largest == -jnp.inf, 1.0 - blank, complement)


@softmax_complement_rows.defjvp
def _softmax_complement_jvp(axis_name: AxisName, primals: Pair, tangents: Pair) -> Pair:
    z, blank = primals
    p = softmax_rows(z, blank, axis_name)
    return softmax_complement_rows(z, blank, axis_name), -p * log_softmax_tangent(
        z, p, tangents[0], axis_name
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_softmax_rows(z: Array, blank: Array, axis_name: AxisName) -> Array:
    """Log of softmax over the last axis; log(blank) for rows of -inf."""
    stats = row_stats(z, axis_name)
    return jnp.where(stats.largest == -jnp.inf, jnp.log(blank), -stats.gaps - jnp.log1p(stats.rest))


@log_softmax_rows.defjvp
def _log_softmax_jvp(axis_name: AxisName, primals: Pair, tangents: Pair) -> Pair:
    z, blank = primals
    p = softmax_rows(z, blank, axis_name)
    return log_softmax_rows(z, blank, axis_name), log_softmax_tangent(z, p, tangents[0], axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def logsumexp_rows(z: Array, axis_name: AxisName) -> Array:
    """Log of the sum of exponentials over the last axis, which is dropped."""
    stats = row_stats(z, axis_name)
    finite = stats.largest + jnp.log1p(stats.rest)
    return jnp.where(jnp.isinf(stats.largest), stats.largest, finite)[..., 0]


@logsumexp_rows.defjvp
def _logsumexp_jvp(axis_name: AxisName, primals: tuple[Array], tangents: tuple[Array]) -> Pair:
    (z,) = primals
    p = softmax_rows(z, jnp.asarray(0.0, z.dtype), axis_name)
    return logsumexp_rows(z, axis_name), row_sum(p * tangents[0], axis_name)[..., 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_odds_rows(z: Array, blank: Array, axis_name: AxisName) -> Array:
    """z_i minus the logsumexp of the others, with the first maximum treated apart."""
    is_max = first_max(z, axis_name)
    others = jnp.where(is_max, -jnp.inf, z)
    stats = row_stats(others, axis_name)
    # Leaving the second largest out of the others' sum, subtraction would cancel.
    others_but_one = jnp.where(
        first_max(others, axis_name), stats.rest, 1.0 + stats.rest - stats.exps
    )
    largest = row_max(z, axis_name)
    gap = largest - stats.largest
    of_max = jnp.where(stats.largest == -jnp.inf, jnp.inf, gap - jnp.log1p(stats.rest))
    of_others = (z - largest) - jnp.log1p(others_but_one * jnp.exp(-gap))
    log_odds = jnp.where(is_max, of_max, of_others)
    return jnp.where(largest == -jnp.inf, jnp.log(blank), log_odds)


@log_odds_rows.defjvp
def _log_odds_jvp(axis_name: AxisName, primals: Pair, tangents: Pair) -> Pair:
    # (dz_i - sum_j p_j dz_j) / (1 - p_i); for the maximum its limit, the softmax of the others, is
    # used, since p_j / (1 - p_i) is 0/0 at a large gap.
    z, blank = primals
    (dz, _) = tangents
    is_max = first_max(z, axis_name)
    dz_max = row_sum(jnp.where(is_max, dz, 0.0), axis_name)
    relative = jnp.where(is_max, 0.0, dz - dz_max)
    among_others = softmax_rows(jnp.where(is_max, -jnp.inf, z), jnp.zeros_like(blank), axis_name)
    of_max = -row_sum(among_others * relative, axis_name)
    p = softmax_rows(z, blank, axis_name)
    mean = row_sum(p * relative, axis_name)
    of_others = (relative - mean) / jnp.where(
        is_max, 1.0, softmax_complement_rows(z, blank, axis_name)
    )
    return log_odds_rows(z, blank, axis_name), jnp.where(is_max, of_max, of_others)
