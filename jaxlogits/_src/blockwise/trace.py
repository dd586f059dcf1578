"""A caller's function as the blocks run it: traced, without closures, refused where it can't be.

A block sees some of the rows, and it sees them once. What a function writes, and what it draws for
all rows together, would be lost or repeated there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlogits._src.base.checks import describe
from jaxlogits._src.blockwise.block_size import probe_rows
from jaxlogits._src.blockwise.draws import DRAWS, draws_without_rows
from jaxlogits._src.blockwise.kept import Trace
from jaxlogits._src.blockwise.operands import Leaves
from jaxlogits._src.blockwise.plan import block_types

_CURE = "call eval() on a module, give each row its own key, or keep the state outside"


def bind(fn: Callable[..., Any], params: Any) -> tuple[Callable[..., Any], Leaves]:
    """``fn`` as a function of those leaves of ``params`` that are arrays, and the arrays.

    The others, such as flags and activations, are part of the function.
    """
    tree: Any
    paths, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path) or "params" for path, _ in paths]
    leaves = [_read(name, leaf) for name, (_, leaf) in zip(names, paths, strict=True)]
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)]

    def call(arrays: Leaves, *rows: Any) -> Any:
        given = list(leaves)
        for i, array in zip(places, arrays, strict=True):
            given[i] = array
        whole = tree.unflatten(given)
        results = fn(whole, *rows)
        left = jax.tree.leaves(whole)
        for name, before, after in zip(names, given, left, strict=False):
            if before is not after:
                raise ValueError(f"fn must not write to params, got a write to {name}: {_CURE}")
        if len(left) != len(given):
            raise ValueError(f"fn must not write to params, got a new leaf: {_CURE}")
        return results

    return call, [leaves[i] for i in places]


def _read(name: str, leaf: Any) -> Any:
    """A leaf of params: what is an array as an array, and of a reference what is there now."""
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf if leaf.dtype.kind in "OSU" else jnp.asarray(leaf)
    has_type = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    if not (has_type or isinstance(leaf, jax.core.Tracer)):
        return jnp.asarray(leaf) if hasattr(leaf, "__jax_array__") else leaf
    try:
        value = leaf[...]
    except Exception:
        value = None
    if not isinstance(value, jax.Array):
        got = f"got {type(leaf).__name__} at {name}"
        raise TypeError(f"params must hold arrays, {got}: pass its value, x[...]")
    return value


class Block(NamedTuple):
    """The caller's function of one block; all arrays that it reads are arguments."""

    trace: Trace
    num_params: int
    dtypes: tuple[Any, ...]  # of what is shared: the arrays of params, then what fn closes over
    types: tuple[Any, ...]  # of the results
    tree: Any  # of the results

    def call(self, shared: Leaves, rows: Leaves) -> Leaves:
        """The results of one block."""
        pairs = zip(shared, self.dtypes, strict=True)  # the scan may have widened them
        exact = [x if x.dtype == dtype else x.astype(dtype) for x, dtype in pairs]
        return self.trace.run(exact[self.num_params :], [*exact[: self.num_params], *rows])


def trace_block(
    fn: Callable[..., Any], params: Leaves, rows: Any, num_rows: int, row_ndim: int
) -> tuple[Block, Leaves]:
    """Trace ``fn`` for ``num_rows``; values it closes over are differentiated and batched too."""
    make: Any = jax.make_jaxpr(fn, return_shape=True)
    closed, shapes = make(params, *block_types(rows, num_rows, row_ndim))
    for var in closed.jaxpr.constvars:
        if not isinstance(var.aval, jax.core.ShapedArray):
            got = f"got {type(var.aval).__name__}"
            raise TypeError(f"fn must close over arrays, {got}: pass it in params")
    shared = [*params, *map(jnp.asarray, closed.consts)]
    types = tuple(closed.out_avals)
    for t in types:
        if t.ndim == 0 or t.shape[0] != num_rows:
            rule = f"an entry for each of the {num_rows} rows in the block"
            raise ValueError(f"fn must return {rule}, got {describe(t)}")
    dtypes = tuple(x.dtype for x in shared)
    return Block(Trace(closed), len(params), dtypes, types, jax.tree.structure(shapes)), shared


def trace_probe(
    fn: Callable[..., Any], params: Leaves, rows: Any, row_ndim: int
) -> tuple[Any, int]:
    """``fn`` for a number of rows that tells which arrays grow with them, and that number."""
    count = probe_rows([*params, *jax.tree.leaves(rows)])
    return jax.make_jaxpr(fn)(params, *block_types(rows, count, row_ndim)), count


def require_own_keys(block: Block, probe: Callable[[], tuple[Any, int]]) -> None:
    """Refuse noise for each row that is the same in every block."""
    if block.trace.names.isdisjoint(DRAWS):
        return
    closed, count = probe()
    if count > 1 and draws_without_rows(closed.jaxpr, block.num_params, count):
        rule = "draw with keys that are rows, such as jax.random.split(key, num_rows)"
        raise ValueError(f"fn must {rule}, got a key that all rows share: {_CURE}")
