"""Rows that are split over a mesh, for the blockwise transforms: each device runs its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxlogits._src.base.dtypes import AxisName
from jaxlogits._src.base.varying import axis_names, is_bound, require_split
from jaxlogits._src.mesh.layouts import Names, mesh_of, names_of, placed


def on_split_rows(
    fn: Callable[[Any, Any], Any], axis_name: AxisName, row_ndim: int, *, total: bool
) -> Callable[[Any, Any], Any]:
    """``fn(shared, rows)``, run by each device on its part of the rows; ``total`` sums the results.

    The rows' first dimension is split over ``axis_name``, or their leading dimensions as their
    types say. Gradients of what is shared are summed over the devices once, at the end. Inside a
    shard_map over these axes the rows are the device's own part already; outside, this is one, in
    which all other axes stay as they are.
    """

    def run(shared: Any, rows: Any) -> Any:
        leaves = jax.tree.leaves(rows)
        outer = axis_names(axis_name) if is_bound(axis_name) else ()
        lead = _leading_names(leaves, row_ndim)
        mesh = mesh_of(leaves) if lead else None
        if axis_name is not None and not outer and not lead:
            _require_in_mesh(axis_name)
            lead = (axis_name,)
        over = tuple(name for names in lead for name in axis_names(names))

        def local(shared: Any, rows: Any) -> Any:
            result = fn(shared, rows)
            if not total or not (outer or over):
                return result
            known = leaves[0], *jax.tree.leaves(result)
            require_split("rows", axis_name, *known, option="row_axis_name")
            return jax.lax.psum(result, (*outer, *over))

        if not over:
            with _in_mesh_of(jax.tree.leaves((shared, rows))):
                return local(shared, rows)
        split = PartitionSpec(*lead)
        if mesh is not None:
            shared = jax.tree.map(lambda x: _whole(x, over), shared)
            rows = jax.tree.map(lambda x: placed(x, mesh, split), rows)
        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=PartitionSpec() if total else split,
            axis_names=set(over),
        )(shared, rows)

    return run


def _leading_names(leaves: list[Any], row_ndim: int) -> Names:
    """How the rows are split, as the first array says that is."""
    splits = (names_of(x)[:row_ndim] for x in leaves)
    return next((names for names in splits if any(names)), ())


def _in_mesh_of(arrays: list[Any]) -> AbstractContextManager[Any]:
    """The Explicit mesh that whole arrays have, where there is none in context.

    What a loop starts from is made anew, and has to be of the same mesh.
    """
    meshes = (jax.typeof(x).sharding.mesh for x in arrays if isinstance(x, jax.Array))
    mesh = next((mesh for mesh in meshes if mesh.explicit_axes), None)
    if mesh is None or not jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    return jax.sharding.use_abstract_mesh(mesh)


def _require_in_mesh(axis_name: AxisName) -> None:
    known = jax.sharding.get_abstract_mesh().axis_names
    for name in axis_names(axis_name):
        if name not in known:
            rule = "mesh axes of a surrounding shard_map or of the mesh in context"
            raise ValueError(f"row_axis_name must name {rule}, got {name!r}")


def _whole(array: Any, over: tuple[str, ...]) -> Any:
    """What all rows share, no longer split over the rows' axes, as FSDP's params are."""
    if not any(names := names_of(array)):
        return array
    if beside := {name for of_dim in names for name in axis_names(of_dim)} - set(over):
        axes = ", ".join(sorted(beside))
        raise ValueError(f"params must not be split along {axes}, except inside a shard_map")
    return placed(array, mesh_of([array]), PartitionSpec())
