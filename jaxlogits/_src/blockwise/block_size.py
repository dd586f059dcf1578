"""The number of rows in a block: few enough for memory, enough for the matrix unit of the device.

A block costs memory in proportion to its rows, and time once: the params are read, their gradients
read and written. docs/blockwise.md derives the rules below and has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

_SMALL_BLOCK_BYTES = 2**25  # a block of less isn't worth cutting
FEWEST_ROWS = 256  # below, matrix products slow down on any device
_MOST_ROWS = 2048  # above, they gain nothing on a CPU
_FEWEST_ROWS_ON_ACCELERATORS = 1024
_FEWEST_ROWS_OF_KIND = {"TPU v6": 4096}  # where products outrun memory by more than elsewhere
_FEWEST_BLOCKS = 4  # where that asks for more than 1024 rows
_PROBES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049)


def default_block_size(params: Any, num_rows: Any, probe: Callable[[], tuple[Any, int]]) -> int:
    """Rows in a block, from the bytes of the params and of the largest array per row in ``fn``.

    ``probe()`` is its trace for a number of rows that divides no dimension; ``num_rows`` may be
    symbolic.
    """
    is_known = isinstance(num_rows, int)
    if is_known and num_rows <= FEWEST_ROWS:
        return FEWEST_ROWS  # never fewer, whatever they hold
    closed, count = probe()
    per_row = [_bytes(t) / count for t in _result_types(closed) if _grows(t, count)]
    row_bytes = max([1, *per_row])
    shared = [*jax.tree.leaves(params), *closed.consts]
    # A block's largest array takes half as many bytes as the params: neither outweighs the other.
    balanced = sum(map(_bytes, shared)) / (2 * row_bytes)
    size = min(max(balanced, FEWEST_ROWS), _MOST_ROWS)
    wanted = _fewest_rows(device_kind(shared), num_rows if is_known else _MOST_ROWS)
    # On an accelerator it takes as many as the params, their gradients and these' float32 sums.
    held = sum(8 * _bytes(x) / x.dtype.itemsize for x in shared)
    size = max(size, min(wanted, held / row_bytes), _SMALL_BLOCK_BYTES / row_bytes)
    return int(size) if is_known else min(int(size), max(_MOST_ROWS, wanted))


def _fewest_rows(kind: str, num_rows: int) -> int:
    """Rows in a block whose products hide the traffic of the kernel's gradient."""
    if kind == "cpu":
        return FEWEST_ROWS
    more = [rows for name, rows in _FEWEST_ROWS_OF_KIND.items() if kind.startswith(name)]
    return max([_FEWEST_ROWS_ON_ACCELERATORS, *(min(x, num_rows // _FEWEST_BLOCKS) for x in more)])


def device_kind(arrays: list[Any]) -> str:
    """The kind of device that the caller's program is for, as far as can be told while tracing.

    That of the mesh, of one that the arrays are split over, or else of the default device.
    """
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in arrays)]
    known = [mesh.abstract_device for mesh in meshes if mesh.abstract_device is not None]
    if known:
        return str(known[0].device_kind)
    default = jax.config.jax_default_device
    if isinstance(default, str):
        return str(jax.devices(default)[0].device_kind)
    return str((default or jax.devices()[0]).device_kind)


def rows_that_fit(params: Any, one_row: Any) -> int:
    """Rows in a block of which each has an array like ``one_row``, and which may be few."""
    balanced = sum(map(_bytes, jax.tree.leaves(params))) // 2
    return max(1, max(balanced, _SMALL_BLOCK_BYTES) // max(1, _bytes(one_row)))


def probe_rows(arrays: list[Any]) -> int:
    """A number of rows that divides no dimension, so that it tells which arrays grow with them."""
    known = {d for array in arrays for d in array.shape if isinstance(d, int)}
    return next((p for p in _PROBES if all(d % p for d in known)), 1)


def _result_types(jaxpr: Any) -> Iterator[Any]:
    """The types of everything that a jaxpr computes, inner jaxprs included."""
    for eqn in jaxpr.eqns:
        yield from (var.aval for var in eqn.outvars if hasattr(var.aval, "shape"))
        for param in eqn.params.values():
            for inner in param if isinstance(param, tuple | list) else [param]:
                if hasattr(inner, "eqns"):
                    yield from _result_types(inner)


def _grows(array_type: Any, num_rows: int) -> bool:
    return any(d % num_rows == 0 for d in array_type.shape)


def _bytes(array: Any) -> int:
    known = (d for d in array.shape if isinstance(d, int))
    return math.prod(known) * int(array.dtype.itemsize)
