"""Numbers of rows, found in blocks of rows that stay in fast memory: on accelerators.

What decides about a row, such as a threshold, takes many passes over it. XLA keeps what they share,
the logits in float32 and their exponentials, in arrays of all rows. Those of one block fit into the
fast memory of an accelerator, so that main memory is read once and nothing is written there. On a
CPU, or where all rows make one block, there are none. The numbers of a row don't depend on them.

In jit the compiler may have split the rows over devices, which their types don't say. A block then
takes some rows of each device's part, so that none has to be sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.mesh.split_rows import on_split_rows
from jaxlogits._src.rows.rows import Rows

_BLOCK_BYTES = 2**25  # of one array in the wide dtype: a quarter of a TPU v5e's fast memory
_TILE, _TILE_OF_BYTES = 8, 32  # rows that stand together in a TPU's memory

Arrays = Any  # a pytree of them
Find = Callable[[Arrays, list[Array]], Arrays]


def row_numbers(decide: Callable[..., Arrays], rows: Rows, *options: Array) -> Any:
    """``decide(rows, *options)``: what it finds of each row, arrays ``[..., M]``, as constants.

    ``options`` are numbers, or arrays whose first dimensions are those of the rows.
    """
    no_arrays: Any = dict.fromkeys(("given", "logits", "z", "mask", "empty", "like"))
    kind = rows._replace(**no_arrays)  # what a program keeps of a function may hold no tracer

    def find(arrays: Arrays, options: list[Array]) -> Arrays:
        given, logits, z, mask, empty = arrays
        these = kind._replace(given=given, logits=logits, z=z, mask=mask, empty=empty)
        return _find(decide, these, options)

    lead = rows.z.shape[:-1]
    each = [x if x.ndim else jnp.broadcast_to(x, (*lead, 1)) for x in options]
    arrays = rows.given, rows.logits, rows.z, rows.mask, rows.empty
    # A vmap may be what axis_name names, and then has to stay one.
    run = _with_more_rows(find) if rows.axis_name is None else find
    return run(*lax.stop_gradient((arrays, each)))


def _with_more_rows(find: Find) -> Find:
    """The function, for which the rows of a batch are more rows: vmap has blocks, too."""
    result: Any = custom_vmap(find)

    @result.def_vmap  # type: ignore[untyped-decorator]
    def of_batch(size: int, is_batched: Any, *args: Any) -> tuple[Arrays, Any]:
        def batched(x: Array, is_here: bool) -> Array:
            return x if is_here else jnp.broadcast_to(x, (size, *x.shape))

        is_batched = tuple(is_batched)
        if is_batched[0][0]:
            found = result(*jax.tree.map(batched, args, is_batched))
        else:  # several options, or draws, for the same rows
            axes = jax.tree.map(lambda is_here: 0 if is_here else None, is_batched)
            found = jax.vmap(find, axes)(*args)
        return found, jax.tree.map(lambda _: True, found)

    run: Find = result
    return run


def _find(decide: Callable[..., Arrays], rows: Rows, options: list[Array]) -> Arrays:
    shape, itemsize = rows.z.shape, rows.z.dtype.itemsize
    is_known = all(isinstance(size, int) for size in shape)
    if not is_known or itemsize * math.prod(shape) <= _BLOCK_BYTES:
        return decide(rows, *options)

    def of_block(arrays: Arrays) -> Arrays:
        *of_rows, options = arrays
        return decide(rows.others(*of_rows), *options)

    def of_device(_: None, arrays: Arrays) -> Arrays:
        return _in_blocks(of_block, arrays, itemsize)

    def in_blocks(*arrays: Any) -> Arrays:
        return on_split_rows(of_device, None, len(shape) - 1, total=False)(None, arrays)

    arrays: Any = rows.given, rows.mask, rows.empty, options
    return xla.by_device(*arrays, cpu=lambda *_: decide(rows, *options), default=in_blocks)


class _Cut(NamedTuple):
    """How the rows' dimensions are cut into blocks."""

    before: tuple[int, ...]  # dimensions that blocks have as they are
    parts: int  # of the one that is cut, from each of which a block takes as many rows
    length: int  # of a part
    after: tuple[int, ...]
    size: int  # of what a block takes of a part

    @property
    def axis(self) -> int:
        """Along which the parts are cut."""
        return len(self.before) + 1

    @property
    def starts(self) -> Array:
        """Of all blocks; the last begins before the one before it ends, if they don't fit."""
        count = -(-self.length // self.size)
        return jnp.minimum(jnp.arange(count) * self.size, self.length - self.size)

    def block(self, x: Array, ndim: int, start: Array) -> Array:
        """A block of an array whose first ``ndim`` dimensions are those of the rows."""
        trail, inner = x.shape[ndim:], (self.size, *self.after)
        lead = *self.before, self.parts
        if self.length % self.size == 0:  # a mask would be copied for each slice of it
            split = x.reshape(*lead, self.length // self.size, *inner, *trail)
            found = lax.dynamic_index_in_dim(split, start // self.size, self.axis, keepdims=False)
        else:
            plain = x.astype(jnp.int8) if x.dtype == jnp.bool_ else x
            whole = plain.reshape(*lead, self.length, *self.after, *trail)
            found = lax.dynamic_slice_in_dim(whole, start, self.size, self.axis).astype(x.dtype)
        block: Array = xla.apart(found)  # an array, lest each pass over it read main memory
        return block

    def joined(self, blocks: Array, lead: tuple[int, ...]) -> Array:
        """The results of all blocks, ``[blocks, *dimensions of one, ...]``, in the rows' order."""
        ndim = len(self.before) + 2 + len(self.after)
        trail = blocks.shape[1 + ndim :]
        rest = self.length - (blocks.shape[0] - 1) * self.size
        last = lax.slice_in_dim(blocks[-1], self.size - rest, self.size, axis=self.axis)
        first = jnp.moveaxis(blocks[:-1], 0, self.axis)
        first = first.reshape(*last.shape[: self.axis], -1, *last.shape[self.axis + 1 :])
        return jnp.concatenate([first, last], self.axis).reshape(*lead, *trail)


def _in_blocks(fn: Callable[[Arrays], Arrays], arrays: Any, itemsize: int) -> Arrays:
    """``fn(arrays)``, a block of rows at a time; the first array is of logits."""
    lead, num_classes = arrays[0].shape[:-1], arrays[0].shape[-1]
    least = min(x.dtype.itemsize for x in jax.tree.leaves(arrays))  # 1 of a mask
    cut = _cut_of(lead, itemsize * num_classes, _TILE if least > 1 else _TILE_OF_BYTES)
    if cut is None:
        return fn(arrays)

    def step(_: None, start: Array) -> tuple[None, Arrays]:
        return None, fn(jax.tree.map(lambda x: cut.block(x, len(lead), start), arrays))

    _, found = lax.scan(step, None, cut.starts)
    return jax.tree.map(lambda blocks: cut.joined(blocks, lead), found)


def _cut_of(lead: tuple[int, ...], row_bytes: int, tile: int) -> _Cut | None:
    """Blocks that fit into fast memory, or the smallest that there are; None where one has all."""
    devices = _num_devices()
    if devices == 1 or not lead:
        lead = (math.prod(lead),)
    axis = lead.index(max(lead))
    parts = math.gcd(lead[axis], devices)
    length = lead[axis] // parts
    beside = math.prod(lead) // length
    most = max(_BLOCK_BYTES // (row_bytes * beside) // tile, 1)
    # Parts of other lengths would be moved to become arrays of their own.
    if length <= most * tile or (parts > 1 and length % tile):
        return None
    sizes = (tile * count for count in range(most, most // 4, -1))
    size = next((size for size in sizes if length % size == 0), most * tile)
    return _Cut(lead[:axis], parts, length, lead[axis + 1 :], size)


def _num_devices() -> int:
    """Over how many the compiler may have split an array, as far as can be told while tracing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count()
    return math.prod(mesh.shape[name] for name in mesh.auto_axes)
