"""Rows whose classes are split over a mesh: how what each device knows of a row is merged.

Everything about a row is a few statistics, sums and maxima over its classes. Those of one device's
classes, or of one block's, merge to those of the row by a sum or a maximum; with ``axis_name`` the
same is done over the devices along the named mesh axes, each of which holds an equal slice of the
classes. Without it these are the plain reductions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._precision import widen
from jaxlogits._typing import Array, AxisName

# Reductions over the classes, the last axis, which is kept as 1.


def row_sum(x: Array, axis_name: AxisName) -> Array:
    """The sum over a row's classes."""
    total = jnp.sum(x, axis=-1, keepdims=True)
    return total if axis_name is None else lax.psum(total, axis_name)


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
    found = jnp.any(x, axis=-1, keepdims=True)
    return found if axis_name is None else lax.pmax(found.astype(jnp.int32), axis_name) > 0


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
    *keys, index = lax.sort((*(-key for key in keys), index), num_keys=len(keys))
    return (*(-key[..., :k] for key in keys), index[..., :k])


def _gathered(x: Array, axis_name: AxisName) -> Array:
    """[..., k] of each device side by side; a sum, after which all devices are known to agree."""
    whole = jnp.zeros((*x.shape[:-1], num_classes(x.shape, axis_name)), x.dtype)
    start = first_class(x.shape, jnp.dtype(jnp.int32), axis_name)
    whole = lax.dynamic_update_slice_in_dim(whole, x, start, axis=-1)
    gathered: Array = lax.psum(whole, axis_name)
    return gathered


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


# Floating-point numbers as integers of the same order.


def ordered_bits(x: Array) -> Array:
    """Integers in the order of the numbers; NaN without a sign is the largest."""
    dtype = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    return _flipped(lax.bitcast_convert_type(x, dtype))


def from_ordered_bits(bits: Array, dtype: jnp.dtype) -> Array:
    """Undo ``ordered_bits``."""
    return lax.bitcast_convert_type(_flipped(bits), dtype)


def _flipped(bits: Array) -> Array:
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


# Which mesh axes an array varies over, inside shard_map.


def varying_axes(*arrays: Any) -> frozenset[str]:
    """The manual mesh axes that any of the arrays, or types, varies over."""
    axes: set[str] = set()
    for array in arrays:
        array_type = jax.typeof(array) if isinstance(array, jax.Array) else array
        new = getattr(array_type, "mat", None)  # jax >= 0.11
        axes |= array_type.vma if new is None else new.varying
    return frozenset(axes)


def vary(tree: Any, axes: frozenset[str]) -> Any:
    """The arrays, varying over ``axes`` as well.

    Gradients of what varies are summed over the mesh once, after the blocks, not in each of them.
    """
    return jax.tree.map(lambda x: _vary(jnp.asarray(x), axes), tree) if axes else tree


def vary_over(tree: Any, axis_name: AxisName) -> Any:
    """The arrays, varying over the named axes as far as they are shard_map's."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return vary(tree, frozenset(axis_names(axis_name)) & frozenset(manual))


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """The names, of which there may be none, as a tuple."""
    return axis_name if isinstance(axis_name, tuple) else () if axis_name is None else (axis_name,)


def is_bound(axis_name: AxisName) -> bool:
    """Whether the caller runs on each device along these mesh axes."""
    try:
        lax.axis_size(axis_names(axis_name))
    except NameError:
        return False
    return True


def require_bound(option: str, axis_name: AxisName) -> None:
    """Refuse the names of mesh axes that aren't there."""
    for axis in axis_names(axis_name):
        if not is_bound(axis):
            rule = "mesh axes of a surrounding shard_map, or the axis of a vmap"
            raise ValueError(f"{option} must name {rule}, got {axis!r}")


def require_split(
    name: str, axis_name: AxisName, *arrays: Array, option: str = "axis_name"
) -> None:
    """Refuse an ``axis_name`` that isn't there, or along which the arrays are the same everywhere.

    What is the same everywhere would be counted once for each device. Its type says it, unless the
    shard_map doesn't check types; what a vmap does isn't in the types.
    """
    require_bound(option, axis_name)
    for axis in axis_names(axis_name):
        is_typed = axis in varying_axes(lax.axis_index(axis))
        if is_typed and axis not in varying_axes(*arrays):
            got = f"{arrays[0].dtype}[{','.join(map(str, arrays[0].shape))}]"
            rule = f"vary over the mesh axes in {option}"
            raise ValueError(f"{name} must {rule}, got {got}, which is the same along {axis!r}")


def require_apart(axis_name: AxisName, row_axis_name: AxisName) -> None:
    """Refuse a mesh axis that is said to split both the classes and the rows."""
    if shared := set(axis_names(axis_name)) & set(axis_names(row_axis_name)):
        axes = ", ".join(map(repr, sorted(shared)))
        rule = "other mesh axes than axis_name: gather the kernel over"
        raise ValueError(f"row_axis_name must name {rule} those that split the rows, got {axes}")


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


def _vary(array: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - varying_axes(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


def zeros(shape: tuple[int, ...], dtype: Any, *like: Any) -> Array:
    """Zeros that vary over the axes that any of ``like`` varies over."""
    return _vary(jnp.zeros(shape, dtype), varying_axes(*like))
