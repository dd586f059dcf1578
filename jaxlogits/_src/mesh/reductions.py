"""Rows whose classes are split over a mesh: how what each device knows of a row is merged.

Everything about a row is a few statistics, sums and maxima over its classes. Those of one device's
classes, or of one block's, merge to those of the row by a sum or a maximum; with ``axis_name`` the
same is done over the devices along the named mesh axes, each of which holds an equal slice of the
classes. Without it these are the plain reductions.
"""

from __future__ import annotations

from typing import TypeVar

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, widen
from jaxlogits._src.base.varying import axis_names, varying_axes

T = TypeVar("T")

# Reductions over the classes, the last axis, which is kept as 1.


def row_sum(x: Array, axis_name: AxisName) -> Array:
    """The sum over a row's classes."""
    return of_all_devices(jnp.sum(x, axis=-1, keepdims=True), axis_name)


def of_all_devices(sums: T, axis_name: AxisName) -> T:
    """Sums over each device's classes, added up, several at a time."""
    total: T = sums if axis_name is None else lax.psum(sums, axis_name)
    return total


def has_few_classes(x: Array) -> bool:
    """Whether a row is better reduced class by class, so that it stays in registers."""
    return isinstance(x.shape[-1], int) and x.shape[-1] <= 16


def each_class(x: Array) -> list[Array]:
    """A row's classes, ``[..., 1]`` each."""
    return list(jnp.split(x, x.shape[-1], axis=-1))


def row_max(x: Array, axis_name: AxisName) -> Array:
    """The maximum over a row's classes, NaN if one is. Over a mesh it has no derivative."""
    largest = jnp.max(x, axis=-1, keepdims=True)
    if axis_name is None:
        return largest
    # Not all collectives return NaN for a maximum with NaN; integers in the same order do.
    wide = widen(largest)
    highest = lax.pmax(ordered_bits(jnp.where(jnp.isnan(wide), jnp.nan, wide)), axis_name)
    return from_ordered_bits(highest, wide.dtype).astype(x.dtype)


def row_any(x: Array, axis_name: AxisName) -> Array:
    """Whether a boolean is True for any of a row's classes."""
    # A TPU's compiler would copy a mask that is an argument, to reduce it as it is.
    found: Array = xla.by_device(
        x,
        cpu=lambda x: jnp.any(x, axis=-1, keepdims=True),
        default=lambda x: jnp.max(x.astype(jnp.int8), axis=-1, keepdims=True) > 0,
    )
    return found if axis_name is None else lax.pmax(found.astype(jnp.int32), axis_name) > 0


def row_has_nan(x: Array, axis_name: AxisName) -> Array:
    """Whether there is NaN in a row.

    Of classes that the compiler splits over a mesh a maximum doesn't say so: its collective may
    return another device's number.
    """
    return row_any(jnp.isnan(x), axis_name)


def row_first(x: Array, axis_name: AxisName) -> Array:
    """One-hot mask of the first class for which a boolean is True; of none if it never is."""
    # argmax makes a pass over rows several times slower.
    index = class_indices(x.shape, jnp.dtype(jnp.int32), axis_name)
    none = num_classes(x.shape, axis_name)
    first = jnp.min(jnp.where(x, index, none), axis=-1, keepdims=True)
    # With x the mask is split as x is, where the type says so.
    return x & (index == (first if axis_name is None else lax.pmin(first, axis_name)))


def row_argmax(x: Array, axis_name: AxisName) -> Array:
    """The int32 index of a row's first maximum; that of no class if there is NaN."""
    index = jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
    if axis_name is None:
        return index
    index += first_class(x.shape, index.dtype, axis_name)
    is_first = jnp.max(x, axis=-1, keepdims=True) == row_max(x, axis_name)
    none = num_classes(x.shape, axis_name)
    first: Array = lax.pmin(jnp.where(is_first, index, none), axis_name)
    return first


def row_top_k(keys: tuple[Array, ...], k: int, axis_name: AxisName) -> tuple[Array, Array]:
    """The k largest of each row, by the first key and then the next, and their int32 indices.

    All of the row if it has fewer than k.
    """
    index = class_indices(keys[0].shape, jnp.dtype(jnp.int32), axis_name)
    largest = _sorted_down((*keys, index), k)
    if axis_name is not None:
        largest = _sorted_down(tuple(_gathered(x, axis_name) for x in largest), k)
    return largest[0], largest[-1]


def _sorted_down(arrays: tuple[Array, ...], k: int) -> tuple[Array, ...]:
    """The k largest by all arrays but the last, which goes with them."""
    *keys, index = arrays
    if len(keys) == 1:
        (key,) = keys
        largest, places = lax.top_k(key, min(k, key.shape[-1]))
        return largest, jnp.take_along_axis(index, places, axis=-1)
    index = index + jnp.zeros_like(keys[0], index.dtype)  # split over an Explicit mesh as they are
    *keys, index = lax.sort((*(-key for key in keys), index), num_keys=len(keys))
    return (*(-key[..., :k] for key in keys), index[..., :k])


def _gathered(x: Array, axis_name: AxisName) -> Array:
    """[..., k] of each device side by side; a sum, after which all devices are known to agree."""
    whole = jnp.zeros((*x.shape[:-1], num_classes(x.shape, axis_name)), x.dtype)
    start = first_class(x.shape, jnp.dtype(jnp.int32), axis_name)
    whole = lax.dynamic_update_slice_in_dim(whole, x, start, axis=-1)
    gathered: Array = lax.psum(whole, axis_name)
    return gathered


def row_take(x: Array, classes: Array, axis_name: AxisName) -> Array:
    """A row's entries at int32 indices ``[..., k]`` of classes."""
    own = classes - first_class(x.shape, classes.dtype, axis_name)
    taken = jnp.take_along_axis(x, own, axis=-1, mode="clip")
    if axis_name is None:
        return taken
    is_here = (own >= 0) & (own < x.shape[-1])
    found: Array = lax.psum(jnp.where(is_here, taken, jnp.zeros_like(taken)), axis_name)
    return found


# Which classes a device has.


def num_classes(shape: tuple[int, ...], axis_name: AxisName) -> int:
    """How many classes the rows have in all."""
    return shape[-1] if axis_name is None else shape[-1] * lax.axis_size(axis_name)


def first_class(shape: tuple[int, ...], dtype: jnp.dtype, axis_name: AxisName) -> Array:
    """The index of the first class that this device has."""
    if axis_name is None:
        return jnp.zeros([], dtype)
    return lax.axis_index(axis_name).astype(dtype) * shape[-1]


def class_indices(shape: tuple[int, ...], dtype: jnp.dtype, axis_name: AxisName) -> Array:
    """The index of each class, in rows of ``shape``."""
    index = lax.broadcasted_iota(dtype, shape, len(shape) - 1)
    return index if axis_name is None else index + first_class(shape, dtype, axis_name)


def agreed(rows: Array, axis_name: AxisName) -> Array:
    """Rows ``[..., D]`` that share the split classes, NaN where devices don't have the same row.

    A device whose row is another's next one would add up what doesn't belong together. Rows that
    were gathered vary by their type and are the same; only a look at them tells.
    """
    typed = varying_axes(rows) & frozenset(axis_names(axis_name))
    if not typed:
        return rows
    mark = jnp.sum(widen(lax.stop_gradient(rows)), axis=-1)
    high, low = lax.pmax(jnp.stack([mark, -mark]), tuple(sorted(typed)))
    return jnp.where((high == -low)[..., None], rows, jnp.nan)


# Floating-point numbers as integers of the same order.


def ordered_bits(x: Array) -> Array:
    """Integers in the order of the numbers; NaN without a sign is the largest."""
    return _flipped(lax.bitcast_convert_type(x, jnp.dtype(f"int{8 * x.dtype.itemsize}")))


def from_ordered_bits(bits: Array, dtype: jnp.dtype) -> Array:
    """Undo ``ordered_bits``."""
    return lax.bitcast_convert_type(_flipped(bits), dtype)


def _flipped(bits: Array) -> Array:
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
