"""Rows ``[..., K]``: the door by which a caller's logits come in, and the exit for results.

``rows_of`` checks the logits and brings them into rows in the wide dtype, with masked classes at
-inf. A row that is masked as a whole stands as zeros, so that no kernel has to know of it: what it
gives is written at the exit, by ``restore`` or ``reduced``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlogits._src.base import checked, checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, narrow, widen
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.base.varying import require_split
from jaxlogits._src.mesh.reductions import row_any, row_max, row_sum

# From the caller's arrays to rows and back.


class Rows(NamedTuple):
    """The logits as rows, and what is needed to interpret them."""

    given: Array  # [..., K], the caller's
    logits: Array  # the same in the caller's dtype, masked classes at -inf
    z: Array  # the same in the wide dtype, once: so that its gradient is rounded once, too
    mask: Array | None  # [..., K], the classes that count, or None for all of them
    empty: Array | None  # [..., 1], the rows that are masked as a whole, or None for no mask
    axes: tuple[int, ...]
    like: Array  # the caller's logits
    axis_name: AxisName  # the mesh axes over which the classes are split

    def others(self, given: Array, mask: Array | None, empty: Array | None) -> Rows:
        """Other rows of the same kind, such as some of these; masked and widened."""
        logits = given if mask is None or empty is None else _masked(given, mask, empty)
        z = widen(logits)
        return self._replace(given=given, logits=logits, z=z, mask=mask, empty=empty)

    def option(self, name: str, value: ArrayLike) -> Array:
        """A real option, one number or one for each row as ``[..., 1]``."""
        dtype, shape = self.z.dtype, self.z.shape[:-1]
        return self.beside(checks.as_row_option(name, value, dtype, shape))

    def beside(self, option: Array) -> Array:
        """An option of each row, with 1 beside a row that is masked as a whole."""
        if self.empty is None or option.ndim == 0:
            return option
        return jnp.where(self.empty, jnp.ones_like(option), option)

    def restore(self, rows: Array, masked: float) -> Array:
        """Rows of results in the layout and dtype of the logits, constant where they are masked."""
        if self.mask is not None:
            rows = _select(self.mask, rows, masked)
        return narrow(from_rows(rows, self.axes, self.like.shape), self.like)

    def reduced(self, results: Array, empty: float = 0.0) -> Array:
        """One result for each row, constant where a row is masked as a whole."""
        if self.empty is None:
            return results
        return jnp.where(jnp.broadcast_to(self.empty[..., 0], results.shape), empty, results)


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
        return Rows(rows, rows, widen(rows), None, None, axes, array, axis_name)
    mask = to_rows(_as_mask(where, array, axes, one_per_row), axes)
    if array.dtype.itemsize < 2:  # some of these dtypes have no -inf
        rows = widen(rows)
    empty = ~row_any(mask, axis_name)
    return Rows(rows, rows, rows, mask, empty, axes, array, axis_name).others(rows, mask, empty)


def _masked(rows: Array, mask: Array, empty: Array) -> Array:
    """Masked classes at -inf, and a row that is masked as a whole as zeros."""
    return _select(~empty, _select(mask, rows, -jnp.inf), 0.0)


def reduced(
    kernel: Callable[..., Array], *rows: Rows, wide: bool = True, empty: float = 0.0
) -> Array:
    """One number a row, ``kernel(z, ...)`` of one or more of them; ``empty`` where one is masked.

    The backward pass keeps the logits that were given and the mask, and makes -inf of them again.
    ``wide``: the kernel reads logits in the dtype that computations run in, else the caller's.
    """
    mask, empty_rows = rows[0].mask, rows[0].empty
    if mask is None or empty_rows is None:
        return kernel(*(each.z if wide else each.logits for each in rows))
    policy = jax.checkpoint_policies.save_anything_except_these_names("masked logits")

    @functools.partial(jax.checkpoint, policy=policy)
    def masked(given: tuple[Array, ...], mask: Array, empty: Array) -> Array:
        arrays = (_masked(each, mask, empty) for each in given)
        read = (widen(each) if wide else each for each in arrays)
        return kernel(*(checkpoint_name(each, "masked logits") for each in read))

    results: Array = masked(tuple(each.given for each in rows), mask, empty_rows)
    return rows[0].reduced(results, empty)


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
        rule = f"{name} must be above -inf for some class of a row"
        checked.check_values(rule, largest[..., 0], some[..., 0])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _select(mask: Array, rows: Array, masked: float) -> Array:
    """jnp.where, of whose derivative the backward pass keeps the mask alone, and no zeros."""
    return jnp.where(mask, rows, masked)


@checkpointed
def _selected(drows: Array, mask: Array) -> Array:
    return jnp.where(mask, drows, jnp.zeros([], drows.dtype))


derivatives(_select, None, lambda drows, _, mask, *__: _selected(drows, mask))


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
