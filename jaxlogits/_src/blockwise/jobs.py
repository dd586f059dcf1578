"""What every blockwise transform does with a function: check, trace, and run it on each device."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlogits._src.base import checks
from jaxlogits._src.base.checked import calling, check_no_nan
from jaxlogits._src.base.checks import describe
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName
from jaxlogits._src.blockwise.block_size import default_block_size
from jaxlogits._src.blockwise.kept import call_kept, kept
from jaxlogits._src.blockwise.operands import Leaves, Operands
from jaxlogits._src.blockwise.plan import Plan, leading_shape, make_plan
from jaxlogits._src.blockwise.trace import Block, require_own_keys, trace_block, trace_probe
from jaxlogits._src.mesh.split_rows import on_split_rows


class Options(NamedTuple):
    """How the rows are given and cut, and how their gradients are summed."""

    name: str  # of the public function
    row_ndim: int
    block_size: int | None
    row_axis_name: AxisName
    accumulate_dtype: Any = None


class Job(NamedTuple):
    """All that a program is made for, beside the shapes of its arguments."""

    block: Block
    plan: Plan
    options: Options


def prepare(
    fn: Callable[..., Any], shared: Leaves, split: Any, options: Options
) -> tuple[Job, Operands]:
    """What is to be run, and on what.

    ``fn`` is traced once, and once more for another number of rows if it draws random numbers or
    the size of the blocks is to be chosen.
    """
    rows, row_ndim = split[0], options.row_ndim
    probe = functools.cache(lambda: trace_probe(fn, shared, rows, row_ndim))
    num_rows: Any = math.prod(leading_shape(rows, row_ndim))
    plan = make_plan(num_rows, options.block_size or default_block_size(shared, num_rows, probe))
    job, operands = prepare_again(fn, shared, split, plan, options)
    require_own_keys(job.block, probe)
    return job, operands


def prepare_again(
    fn: Callable[..., Any], shared: Leaves, split: Any, plan: Plan, options: Options
) -> tuple[Job, Operands]:
    """The same for arguments that only vary over more axes than those that were prepared."""
    rows, keep, weights = split
    block, shared = trace_block(fn, shared, rows, plan.block_size, options.row_ndim)
    operands = Operands(shared, [], jax.tree.leaves(rows), weights, keep)
    return Job(block, plan, options), operands


def run_job(run: Callable[..., Any], job: Job, operands: Operands) -> Any:
    """``run(job, operands)`` as a program that is kept, if its shapes are known."""
    is_kept = isinstance(job.plan.num_rows, int)
    return call_kept(run, job, job.block.trace, operands, is_kept=is_kept)


def on_devices(
    local: Callable[..., Any],
    shared: Leaves,
    rows: Any,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    options: Options,
    *,
    total: bool,
) -> Any:
    """``local(shared, (rows, keep, weights))``, on each device where the rows are split."""
    rows = jax.tree.map(lambda x: checks.as_array("rows", x), rows)
    lead = leading_shape(rows, options.row_ndim)
    keep = None if where is None else _as_mask(where, lead)
    if weights is not None:
        weights = checks.broadcast_to("weights", checks.as_real("weights", weights), lead)
        with calling(options.name):
            counted = weights if keep is None else jnp.where(keep, weights, jnp.zeros_like(weights))
            check_no_nan("weights", counted, "in row")
    run = on_split_rows(local, options.row_axis_name, options.row_ndim, total=total)
    mesh = jax.typeof(jax.tree.leaves(rows)[0]).sharding.mesh
    if options.row_axis_name is not None or mesh.explicit_axes:
        run = kept(run)
    return run(shared, (rows, keep, weights))


def _as_mask(where: ArrayLike, lead: tuple[int, ...]) -> Array:
    """A mask of rows, of the rank that counts them or of a single number."""
    if np.ndim(where) not in (0, len(lead)):
        rule = f"the {len(lead)} leading dimensions of the rows"
        raise ValueError(f"where must have {rule}, got {describe(jnp.asarray(where))}")
    return checks.as_mask("where", where, lead)


def options_of(
    name: str,
    fn: Callable[..., Any],
    row_ndim: Any,
    block_size: Any,
    row_axis_name: AxisName,
    accumulate_dtype: Any = None,
    has_aux: Any = False,
) -> Options:
    """The options of a transform, or an error that says what is wrong with them."""
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {type(fn).__name__}")
    if not isinstance(has_aux, bool | np.bool_):
        raise TypeError(f"has_aux must be a bool, got {has_aux!r}")
    row_ndim = _positive("row_ndim", row_ndim)
    block_size = None if block_size is None else _positive("block_size", block_size)
    if accumulate_dtype is not None:
        accumulate_dtype = _as_float_dtype(accumulate_dtype)
    return Options(name, row_ndim, block_size, row_axis_name, accumulate_dtype)


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return operator.index(value)


def _as_float_dtype(value: Any) -> Any:
    got = getattr(value, "__name__", repr(value))
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"accumulate_dtype must be a floating-point dtype, got {got}")
    return dtype
