"""The results of every row of all blocks, put in place."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.varying import varying_axes, zeros
from jaxlogits._src.blockwise.jobs import Job
from jaxlogits._src.blockwise.operands import Leaves, Operands
from jaxlogits._src.blockwise.plan import flatten_rows, leading_shape, pad, scan_blocks
from jaxlogits._src.blockwise.sums import accumulators, differentiable, select_rows, where_any


def map_rows(job: Job, given: Operands) -> Leaves:
    """The results for each row."""
    lead = leading_shape(given.rows, job.options.row_ndim)
    block, plan = job.block, job.plan
    rows, keep = flatten_rows((given.rows, given.keep), job.options.row_ndim)
    is_masked = keep is not None
    if is_masked:
        rows = rows_that_count(rows, keep)
    operands = pad(plan, Operands(given.shared, [], rows, None, keep), None)

    def run(streamed: Operands | None, *args: Any) -> Leaves:
        operands = Operands(*args)
        mask = operands.keep if is_masked else None  # else all count but the padding
        some = [] if mask is None else [_any_for(x, mask) for x in operands.shared]

        def step(_: None, now: Operands) -> tuple[None, Leaves]:
            if mask is None or now.keep is None:
                return None, block.call(now.shared, now.rows)
            results = block.call(list(map(where_any, some, now.shared)), now.rows)
            return None, [select_rows(now.keep, x, jnp.zeros_like(x)) for x in results]

        per_row = [] if mask is None else [mask]
        empty = [zeros((*plan.grid, *t.shape[1:]), t.dtype, t, *per_row) for t in block.types]
        results: Leaves
        _, results = scan_blocks(step, None, empty, operands, plan, streamed)
        return results

    results = differentiable(block, run, accumulators(block, None))(*operands)
    return [x[: plan.num_rows].reshape(lead + x.shape[1:]) for x in results]


def _any_for(shared: Array, mask: Array) -> Array:
    """Whether any row counts: on this device, or on any where the array is the same on all."""
    some = jnp.any(mask)
    axes = varying_axes(some) - varying_axes(shared)
    return lax.psum(some.astype(jnp.int32), tuple(sorted(axes))) > 0 if axes else some


def rows_that_count(rows: Leaves, keep: Array) -> Leaves:
    """The rows, with one that counts for all that don't; where none does, with zeros for floats.

    Before the scan, whose gradient keeps the rows: ``jax_debug_nans`` looks at what is kept.
    """
    if keep.shape[0] == 0:
        return rows
    index = jnp.argmax(keep)[None]

    def fill(row: Array) -> Array:
        first = lax.stop_gradient(row[index])
        is_float = jnp.issubdtype(row.dtype, jnp.inexact)
        return jnp.where(jnp.any(keep), first, jnp.zeros_like(first)) if is_float else first

    return [select_rows(keep, row, fill(row)) for row in rows]
