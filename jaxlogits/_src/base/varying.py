"""Which mesh axes an array varies over, inside shard_map, and what their names may be."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName


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


def _vary(array: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - varying_axes(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


def zeros(shape: tuple[int, ...], dtype: Any, *like: Any) -> Array:
    """Zeros that vary over the axes that any of ``like`` varies over."""
    return _vary(jnp.zeros(shape, dtype), varying_axes(*like))
