"""Rows in blocks: how they are cut, padded, scanned and put back.

Block ``k`` of ``K`` holds the rows ``k, k + K, k + 2K, ...``. Rows that are sharded over a mesh
then stay sharded inside every block; contiguous blocks would be gathered one by one. Inside
shard_map nothing is sharded any more, and contiguous blocks save the copy that a TPU makes of
strided ones.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlogits._src.base.checks import describe
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.varying import vary, varying_axes
from jaxlogits._src.blockwise.operands import Operands, combine, partition


class Plan(NamedTuple):
    """How the rows are cut: ``num_blocks`` blocks of ``block_size``, the last rows padding."""

    num_rows: Any  # an int, or a symbolic dimension of jax.export
    block_size: int
    num_blocks: Any
    axis: int  # of [C, K, ...] or [K, C, ...], which counts the blocks

    @property
    def padding(self) -> Any:
        return self.block_size * self.num_blocks - self.num_rows

    @property
    def is_padded(self) -> bool:
        return not isinstance(self.num_rows, int) or bool(self.padding)

    @property
    def grid(self) -> tuple[Any, Any]:
        """The first dimensions of rows that are cut."""
        size = self.block_size, self.num_blocks
        return size if self.axis else size[::-1]

    def cut(self, rows: Array) -> Array:
        """[C K, ...] -> [C, K, ...] or [K, C, ...], a view."""
        return rows.reshape((*self.grid, *rows.shape[1:]))

    def join(self, blocks: Array) -> Array:
        """Undo ``cut``."""
        return blocks.reshape((self.block_size * self.num_blocks, *blocks.shape[2:]))


def flatten_rows(rows: Any, row_ndim: int) -> Any:
    """The rows with one leading dimension."""
    if row_ndim == 1:
        return rows

    def flat(x: Array) -> Array:
        return jnp.reshape(x, (math.prod(x.shape[:row_ndim]), *x.shape[row_ndim:]))

    return jax.tree.map(flat, rows)


def leading_shape(rows: Any, row_ndim: int) -> tuple[int, ...]:
    """The leading dimensions that all rows share."""
    leaves = jax.tree.leaves(rows)
    leads = {leaf.shape[:row_ndim] for leaf in leaves}
    if len(leads) != 1 or any(leaf.ndim < row_ndim for leaf in leaves):
        got = ", ".join(map(describe, leaves)) or "no array"
        raise ValueError(f"rows must share their first {row_ndim} dimensions, got {got}")
    lead: tuple[int, ...] = leads.pop()
    return lead


def make_plan(num_rows: Any, size: int) -> Plan:
    """At most ``size`` rows in a block, evened out so that there is little padding."""
    mesh = jax.sharding.get_abstract_mesh()
    axis = 0 if mesh.manual_axes and not mesh.auto_axes else 1
    if not isinstance(num_rows, int):  # symbolic: nothing to even out
        return Plan(num_rows, size, (num_rows + size - 1) // size, axis)
    if num_rows == 0:
        return Plan(0, 1, 0, axis)
    num_blocks = -(-num_rows // size)
    return Plan(num_rows, -(-num_rows // num_blocks), num_blocks, axis)


def block_types(rows: Any, block_size: int, row_ndim: int = 1) -> Any:
    """The types of one block of ``rows``, with the mesh axes that the rows vary over."""
    mesh = jax.sharding.get_abstract_mesh()

    def block_of(rows: Array) -> Array:
        block = lax.full_like(rows, 0, shape=(block_size, *rows.shape[row_ndim:]))
        varied: Array = vary(block, varying_axes(rows))
        return varied

    def type_of(rows: Array) -> Any:
        given = jax.typeof(rows)
        if mesh.empty and given.sharding.mesh.empty:
            shape = (block_size, *given.shape[row_ndim:])
            return jax.ShapeDtypeStruct(shape, given.dtype, weak_type=given.weak_type)
        block = jax.eval_shape(block_of, rows)
        if block.sharding is None and mesh.manual_axes:  # left out if other axes are automatic
            return block.update(sharding=NamedSharding(mesh, PartitionSpec()))
        return block

    return jax.tree.map(type_of, rows)


def pad(plan: Plan, operands: Operands, counting: Array | None) -> Operands:
    """Rows that fill whole blocks; ``counting`` says which rows do, None for all."""
    if plan.num_rows == 0:
        return operands
    # The fill is a row that counts, because fn may be singular at any that is made up.
    index = jnp.zeros([], jnp.int32) if counting is None else jnp.argmax(counting)
    fill = [lax.stop_gradient(row[index[None]]) for row in operands.rows]
    if counting is not None:
        operands = operands._replace(fill=fill)
    if not plan.is_padded:
        return operands
    keep = operands.keep
    if operands.weights is None and keep is None:
        keep = jnp.ones([plan.num_rows], bool)
    return operands._replace(
        rows=[_append(plan, rows, row) for rows, row in zip(operands.rows, fill, strict=True)],
        weights=_append(plan, operands.weights, None),
        keep=_append(plan, keep, None),
    )


def _append(plan: Plan, rows: Any, row: Array | None) -> Any:
    """The rows and copies of ``row``, or zeros, as padding."""
    if rows is None:
        return None
    row = jnp.zeros([1], rows.dtype) if row is None else row
    return jnp.concatenate([rows, jnp.broadcast_to(row, (plan.padding, *rows.shape[1:]))])


def scan_blocks(
    step: Callable[[Any, Operands], tuple[Any, Any]],
    init: Any,
    results: Any,
    operands: Operands,
    plan: Plan,
    streamed: Operands | None,
) -> tuple[Any, Any]:
    """``carry, results = step(carry, block)`` over the blocks; ``results`` are cut arrays to fill.

    With ``streamed=None`` blocks are read from the rows and written to the results in place: no
    copy of the rows is made, but reverse mode would take quadratic time. For a scan that is
    differentiated, ``streamed`` is the mask of the arrays with respect to which it is.
    """
    if plan.num_blocks == 0:
        return init, jax.tree.map(plan.join, results)
    blocks = jax.tree.map(plan.cut, operands.per_row)
    mask = jax.tree.map(lambda _: False, blocks) if streamed is None else streamed.per_row
    moving, held = partition(blocks, mask)

    def read(k: Array, given: Operands) -> Operands:
        index = functools.partial(lax.dynamic_index_in_dim, axis=plan.axis, keepdims=False)
        now: Operands = combine(jax.tree.map(lambda x: index(x, k), held), given)
        return now._replace(shared=operands.shared, fill=operands.fill)

    counter = jnp.arange(plan.num_blocks)
    if streamed is not None:

        def body(carry: Any, xs: tuple[Array, Operands]) -> tuple[Any, Any]:
            return step(carry, read(*xs))

        xs = counter, jax.tree.map(lambda x: jnp.moveaxis(x, plan.axis, 0), moving)
        carry, rows = lax.scan(jax.checkpoint(body, prevent_cse=False), init, xs)
        return carry, jax.tree.map(lambda x: plan.join(jnp.moveaxis(x, 0, plan.axis)), rows)

    def body_in_place(state: tuple[Any, Any], k: Array) -> tuple[tuple[Any, Any], None]:
        carry, rows = step(state[0], read(k, moving))
        update = functools.partial(lax.dynamic_update_index_in_dim, index=k, axis=plan.axis)
        return (carry, jax.tree.map(update, state[1], rows)), None

    (carry, results), _ = lax.scan(body_in_place, (init, results), counter)
    return carry, jax.tree.map(plan.join, results)
