"""Sums over blocks, and the rules that differentiate them.

A rule computes the gradients in the forward pass, block by block, next to the losses: 3 matrix
products instead of 4, and no block is kept. It is linear in the tangents, so that both modes and
every order work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, wide_dtype
from jaxlogits._src.base.rules import derivatives, differentiated_by, is_symbolic_zero
from jaxlogits._src.base.varying import varying_axes, zeros
from jaxlogits._src.blockwise.kept import kept
from jaxlogits._src.blockwise.operands import Leaves, Operands, combine, partition
from jaxlogits._src.blockwise.plan import Plan, scan_blocks
from jaxlogits._src.blockwise.trace import Block


def sum_blocks(block: Block, plan: Plan, accumulate_dtype: Any) -> Callable[..., Leaves]:
    """The sums over all blocks, with a rule that computes their gradients beside them."""
    dtypes = accumulators(block, accumulate_dtype)

    @jax.custom_jvp
    def run(*args: Any) -> Leaves:
        sums: Leaves = _here(block, functools.partial(_sums, block, plan, True, None))(*args)
        return sums

    # Not by ``derivatives``: one pass over the blocks serves all arguments.
    @functools.partial(run.defjvp, symbolic_zeros=True)
    def run_jvp(primals: Any, tangents: Any) -> tuple[Leaves, Leaves]:
        operands, changes = Operands(*primals), Operands(*tangents)
        active = jax.tree.map(_has_tangent, changes)
        early, late = _by_time(block, operands, active)
        gradients = functools.partial(_gradients, block, plan, dtypes, early)
        sums, grads = differentiable(block, gradients, dtypes)(*operands)
        tangent = jnp.zeros_like(sums[0])
        for g, t in zip(*map(jax.tree.leaves, (grads, partition(changes, early)[0])), strict=True):
            tangent = tangent + _inner(g, t, like=tangent)
        if any(jax.tree.leaves(late)):
            given, rest = partition(operands, late)
            nothing = jax.tree.map(lambda _: False, late)

            def of(given: Operands) -> Array:
                whole = combine(given, rest)
                return _sums(block, plan, not active.weights, nothing, *whole)[0]

            tangent = tangent + jax.jvp(of, (given,), (partition(changes, late)[0],))[1]
        return sums, [tangent, *map(jnp.zeros_like, sums[1:])]

    return run


def _by_time(block: Block, operands: Operands, active: Operands) -> tuple[Operands, Operands]:
    """Masks of the arrays whose gradients can be computed in the forward pass, and of the others.

    Inside shard_map, the gradient of what is the same everywhere is summed over the mesh, but the
    loss of one device needs its own part. The caller has made all arguments vary as the loss does;
    what ``fn`` closes over is out of reach and goes through the plain scan.
    """
    axes = varying_axes(*_no_sums(block, operands)[:1])
    ready = jax.tree.map(lambda x: axes <= varying_axes(x), operands)
    early = jax.tree.map(lambda is_active, now: is_active and now, active, ready)
    late = jax.tree.map(lambda is_active, now: is_active and not now, active, ready)
    return early, late


def _sums(
    block: Block, plan: Plan, zero_is_masked: bool, streamed: Operands | None, *args: Any
) -> Leaves:
    """The sums alone."""
    operands = Operands(*args)

    def step(carry: Leaves, now: Operands) -> tuple[Leaves, Leaves]:
        return _add(carry, _block_sums(block, now, zero_is_masked)), []

    sums: Leaves
    sums, _ = scan_blocks(step, _no_sums(block, operands), [], operands, plan, streamed)
    return sums


def _gradients(
    block: Block,
    plan: Plan,
    dtypes: list[Any],
    active: Operands,
    streamed: Operands | None,
    *args: Any,
) -> tuple[Leaves, Operands]:
    """The sums, and the gradients of the first of them with respect to the ``active`` arrays."""
    operands = Operands(*args)
    zero_is_masked = not (active.weights or (streamed is not None and streamed.weights))

    def step(carry: tuple[Leaves, Leaves], now: Operands) -> tuple[tuple[Leaves, Leaves], Operands]:
        given, rest = partition(now, active)

        def loss(given: Operands) -> tuple[Array, Leaves]:
            sums = _block_sums(block, combine(given, rest), zero_is_masked)
            return sums[0], sums[1:]

        (first, others), grads = jax.value_and_grad(loss, has_aux=True)(given)
        carry = _add(carry[0], [first, *others]), _add(carry[1], grads.shared)
        return carry, grads.per_row

    given, _ = partition(operands, active)
    init = _in_dtypes(jax.tree.map(jnp.zeros_like, given.shared), dtypes)
    empty = jax.tree.map(lambda x: jnp.zeros_like(plan.cut(x)), given.per_row)
    carry = (_no_sums(block, operands), init)
    (sums, shared), grads = scan_blocks(step, carry, empty, operands, plan, streamed)
    counted = counting(operands, zero_is_masked)
    if operands.fill and counted is not None:
        # Where no row counts the fill doesn't either, and fn may be singular there.
        shared = jax.tree.map(lambda g: jnp.where(jnp.any(counted), g, jnp.zeros_like(g)), shared)
    return sums, grads._replace(shared=shared)


def _no_sums(block: Block, operands: Operands) -> Leaves:
    """The sums of no rows; like the sums, they vary over the axes of the weights and masks."""
    weights = operands.weights
    per_row = [x for x in (weights, operands.keep) if x is not None]
    return [zeros(t.shape[1:], _sum_dtype(t, weights), t, *per_row) for t in block.types]


def _block_sums(block: Block, now: Operands, zero_is_masked: bool) -> Leaves:
    """The weighted sums over one block's rows of the loss, then of the auxiliary values."""
    keep, rows, weights = counting(now, zero_is_masked), now.rows, now.weights
    if keep is not None and now.fill:
        rows = [select_rows(keep, row, fill) for row, fill in zip(rows, now.fill, strict=True)]
    if keep is not None and weights is not None:
        weights = select_rows(keep, weights, jnp.zeros_like(weights))
    losses, *aux = block.call(now.shared, rows)
    sums = []
    for values in [losses, *map(lax.stop_gradient, aux)]:
        wide = values.astype(_sum_dtype(values, weights))
        weighted = wide if weights is None else wide * _like_rows(weights, wide).astype(wide.dtype)
        counted = (
            weighted if keep is None else select_rows(keep, weighted, jnp.zeros_like(weighted))
        )
        sums.append(counted.sum(axis=0))
    return sums


def _here(block: Block, fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` as a kept program, where the block's own rules keep it from being part of one."""
    return kept(fn) if block.trace.has_rules else fn


def differentiable(block: Block, fn: Callable[..., Any], dtypes: list[Any]) -> Callable[..., Any]:
    """A scan ``fn(streamed, *operands)`` behind a rule that differentiates it as a whole.

    Inlined into another rule, a checkpointed scan would be taken apart and every block kept. The
    shared arrays are widened to ``dtypes`` outside the scan, because reverse mode sums their
    gradients in the dtype that they have there.
    """
    held = jax.custom_jvp(_here(block, functools.partial(fn, None)))

    # Not by ``derivatives``: one pass over the blocks serves all arguments.
    @functools.partial(held.defjvp, symbolic_zeros=True)
    def held_jvp(primals: Any, tangents: Any) -> Any:
        operands, changes = Operands(*primals), Operands(*tangents)
        active = jax.tree.map(_has_tangent, changes)
        given, rest = partition(operands, active)

        def wide(given: Operands) -> Operands:
            return given._replace(shared=_in_dtypes(given.shared, dtypes))

        def of(given: Operands) -> Any:
            return fn(active, *combine(given, rest))

        value, tangent = jax.jvp(of, (wide(given),), (wide(partition(changes, active)[0]),))
        return differentiated_by(held_jvp, value, *primals, symbolic_zeros=True), tangent

    return held


def accumulators(block: Block, dtype: Any) -> list[Any]:
    """The dtypes that the gradients of the shared arrays are summed in."""
    least = jnp.dtype(jnp.float32 if dtype is None else dtype)
    return [_wider(x, least) if jnp.issubdtype(x, jnp.inexact) else None for x in block.dtypes]


def _wider(*dtypes: Any) -> Any:
    """The dtype that holds them all, also where the caller has made promotion strict."""
    if len(set(dtypes)) == 1:
        return dtypes[0]
    # The floats of one byte or less don't promote, but float32 and all others of two hold them.
    wide = [x for x in dtypes if x.itemsize > 1] or [jnp.dtype(jnp.float32)]
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, wide)


def counting(operands: Operands, zero_is_masked: bool) -> Array | None:
    """Which rows count; None where all do.

    A weight of zero masks its row as ``where`` does, NaN included, unless a derivative with respect
    to the weights is taken: that one is the row's own loss.
    """
    if operands.weights is None or not zero_is_masked:
        return operands.keep
    heavy = operands.weights != 0
    return heavy if operands.keep is None else operands.keep & heavy


def _sum_dtype(array: Any, weights: Array | None) -> Any:
    """The dtype that losses or auxiliary values are summed in."""
    return wide_dtype(array) if weights is None else wide_dtype(array, weights)


def select_rows(keep: Array, rows: Array, other: Array) -> Array:
    """``rows`` where ``keep``, else ``other``; a select lets no NaN through, nor its gradient."""
    return jnp.where(_like_rows(keep, rows), rows, jnp.broadcast_to(other, rows.shape))


@jax.custom_jvp
def where_any(some: Array, x: Array) -> Array:
    """``x``, whose derivative counts only where ``some`` row does: else fn is singular there."""
    del some
    return x


derivatives(where_any, None, lambda dx, _, some, __: jnp.where(some, dx, jnp.zeros_like(dx)))


def _like_rows(array: Array, rows: Array) -> Array:
    """[C] as [C, 1, ...] with the rank of the rows."""
    return array.reshape(array.shape + (1,) * (rows.ndim - 1))


def _add(totals: Any, values: Any) -> Any:
    return jax.tree.map(lambda a, x: a + x.astype(a.dtype), totals, values)


def _in_dtypes(shared: Leaves, dtypes: list[Any]) -> Leaves:
    """What there is of the shared arrays, in those dtypes."""
    return [x if x is None else x.astype(to) for x, to in zip(shared, dtypes, strict=True)]


def _inner(gradient: Array, tangent: Array, like: Array) -> Array:
    """The real inner product, without a reshape that would gather a sharded array.

    Inside shard_map it is summed over the axes that only the argument is split over.
    """
    wide = _wider(gradient.dtype, like.dtype)
    inner = jnp.real(jnp.sum(gradient.astype(wide) * tangent.astype(wide))).astype(like.dtype)
    axes = varying_axes(inner) - varying_axes(like)
    return lax.psum(inner, tuple(sorted(axes))) if axes else inner


def _has_tangent(tangent: Any) -> bool:
    return not (tangent is None or is_symbolic_zero(tangent) or tangent.dtype == jax.dtypes.float0)
