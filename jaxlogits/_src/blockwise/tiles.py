"""Vocabulary tiles: losses of ``hidden @ kernel`` of which only a few classes exist at a time.

What a loss takes from a row are a few sums over its classes. Those of one tile of classes merge
with those of the next by the rule that merges devices, and the loss is plain arithmetic on them.
Given the maximum, the sums add up over tiles, and so do their derivatives: the backward pass makes
each tile again, and with it the tile's part of the kernel's gradient, which is written once. That
is four products with the kernel, for a mean as for one result a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName, wide_dtype
from jaxlogits._src.base.elementary import exp, expm1, log1p
from jaxlogits._src.base.products import weigh
from jaxlogits._src.base.rules import derivatives, is_symbolic_zero
from jaxlogits._src.base.varying import vary, varying_axes, zeros
from jaxlogits._src.blockwise.block_size import device_kind
from jaxlogits._src.mesh.reductions import first_class, of_all_devices, row_max

_TILE_BYTES = 2**24  # of the logits, or of the kernel's columns if those are more
_FEWEST_CLASSES = 1024  # below, the sums of a row and of hidden's gradient cost more than products
_FEWEST_CLASSES_ON_ACCELERATORS = 4096
_LANES = 128  # of a vector register on a TPU


class Classes(NamedTuple):
    """What each class has; the last dimension counts them, and is cut into tiles."""

    kernel: Array  # [D, K]
    bias: Array | None
    exists: Array | None
    weights: Array | None  # None if no loss reads all logits


class Rows(NamedTuple):
    """What each row has."""

    hidden: Array  # [N, D]
    labels: Array  # valid ones
    temperatures: tuple[Array, ...]


class Sums(NamedTuple):
    """What a row's losses are made of; ``[N]`` each."""

    largest: Array  # the maximum logit as a finite number, which counts as a constant
    others: Array  # the sum of exp(z - largest) over the classes but the label
    label: Array  # the label's logit
    gaps: Array | None  # the sum of w (largest - z)
    total: Array | None  # the sum of w


# Makes a tile's logits of (kernel, bias, hidden, temperatures, options).
Logits = Callable[[Array, Array | None, Rows, Any], Array]


def row_sums(
    logits: Logits, classes: Classes, rows: Rows, options: Any, axis_name: AxisName
) -> Sums:
    """The sums of each row over all classes; ``options`` are those of ``logits``."""
    args = classes, rows, options
    # What is the same on some devices has its gradient summed over them once, not in each tile.
    start = first_class(classes.kernel.shape, jnp.dtype(jnp.int32), axis_name)
    tree: Any
    leaves, tree = jax.tree.flatten((*args, start))
    leaves = vary(leaves, varying_axes(*leaves))

    def tiles_of(leaves: Any) -> _Tiles:
        *args, start = tree.unflatten(leaves)
        return _Tiles(logits, start, *args)

    own = _differentiable(tiles_of)(*leaves)
    if axis_name is None:
        return own
    largest = row_max(lax.stop_gradient(own.largest)[:, None], axis_name)[:, 0]
    others = of_all_devices(_brought(own, largest)[1:], axis_name)
    return Sums(largest, *others)


def _differentiable(tiles_of: Callable[[Any], _Tiles]) -> Callable[..., Sums]:
    """The sums, whose tangents are those of sums below the maximum that is then known."""

    @jax.custom_jvp
    def sums(*leaves: Array) -> Sums:
        return tiles_of(leaves).sums()

    # Not by ``derivatives``: one pass over the tiles serves all arguments.
    @functools.partial(sums.defjvp, symbolic_zeros=True)
    def sums_jvp(primals: Any, tangents: Any) -> tuple[Sums, Sums]:
        value = sums(*primals)
        moving = [i for i, t in enumerate(tangents) if not is_symbolic_zero(t)]

        def below(values: list[Array]) -> Sums:
            leaves = dict(enumerate(primals)) | dict(zip(moving, values, strict=True))
            return tiles_of(list(leaves.values())).sums_below(value.largest)

        def wide(arrays: Any) -> list[Array]:
            # Gradients are added up over tiles in the wide dtype. The kernel's, the first, is not:
            # each tile's is written once.
            return [
                x.astype(wide_dtype(x)) if i else x for i, x in ((i, arrays[i]) for i in moving)
            ]

        return value, jax.jvp(below, (wide(primals),), (wide(tangents),))[1]

    return sums


class _Tiles(NamedTuple):
    """The logits of all rows, tile by tile. The last tile ends with the classes, and overlaps."""

    logits: Logits
    start: Array  # the index of the first class
    classes: Classes
    rows: Rows
    options: Any

    def sums(self) -> Sums:
        """The sums, below a maximum that grows from tile to tile."""

        def step(carry: Sums, k: Array) -> tuple[Sums, None]:
            z, is_label, weights = self._tile(k)
            carry = _brought(carry, jnp.maximum(carry.largest, jnp.max(z, axis=-1)))
            return _added(carry, _terms(z, is_label, weights, carry.largest)), None

        sums: Sums = self._scan(step, -_greatest(self._dtype) / 2)
        return sums

    def sums_below(self, largest: Array) -> Sums:
        """The sums below the maximum: they add up, and so do their gradients. No tile is kept."""

        def step(carry: Sums, k: Array) -> tuple[Sums, None]:
            return _added(carry, _terms(*self._tile(k), largest)), None

        sums: Sums = self._scan(jax.checkpoint(step, prevent_cse=False), 0.0)
        return sums._replace(largest=largest)

    def _scan(self, step: Any, lowest: float) -> Any:
        leaves = jax.tree.leaves((self.classes, self.rows, self.options))
        none = zeros(self.rows.labels.shape, self._dtype, *leaves)
        of_weights = None if self.classes.weights is None else none
        init = Sums(none + lowest, none, none, of_weights, of_weights)
        count = -(-self.classes.kernel.shape[1] // self._size)
        return lax.scan(step, init, jnp.arange(count, dtype=jnp.int32))[0]

    @property
    def _dtype(self) -> jnp.dtype:
        return wide_dtype(self.rows.hidden, self.classes.kernel)

    @property
    def _size(self) -> int:
        return tile_size(self.rows.hidden, self.classes.kernel)

    def _tile(self, k: Array) -> tuple[Array, Array, Array | None]:
        """The logits of tile k, finite or -inf, which of them are the labels', and the weights."""
        kernel, bias, exists, weights = self.classes
        first = k * self._size
        at = jnp.minimum(first, kernel.shape[1] - self._size)
        index = at + jnp.arange(self._size, dtype=at.dtype)
        counts = index >= first

        def cut(x: Array) -> Array:
            return lax.dynamic_slice_in_dim(x, at, self._size)

        rows = self.rows._replace(hidden=self.rows.hidden.astype(kernel.dtype))
        z = self.logits(
            _columns(kernel, at, self._size), jax.tree.map(cut, bias), rows, self.options
        )
        if exists is not None:
            z = jnp.where(cut(exists)[None, :], z, -jnp.inf)
        z = jnp.where(counts[None, :], z, -jnp.inf)
        z = _below_infinity(z)
        is_label = (index + self.start)[None, :] == self.rows.labels[:, None]
        if weights is not None:
            weights = jnp.where(counts, cut(weights), 0.0)
        return z, is_label & counts[None, :], weights


def tile_size(hidden: Array, kernel: Array) -> int:
    """Classes in a tile: few enough for memory, enough for the matrix unit; evened out.

    Whole lanes, as a TPU would write the gradient's tiles in another layout and copy it at the end.
    """
    num_rows, (features, classes) = hidden.shape[0], kernel.shape
    fewest = _FEWEST_CLASSES
    if device_kind([kernel]) != "cpu":
        fewest = _FEWEST_CLASSES_ON_ACCELERATORS
    most = max(_TILE_BYTES // (4 * max(num_rows, features, 1)), fewest)
    even = -(-classes // -(-classes // most))
    return min(_LANES * -(-even // _LANES), classes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _columns(kernel: Array, at: Array, size: int) -> Array:
    """Columns of the kernel, read as rows of its transpose, so that ``embedding.T`` isn't made."""
    return lax.dynamic_slice_in_dim(kernel.T, at, size).T


# The gradient is written in place in the kernel's own layout.
derivatives(
    _columns, lambda dkernel, _, __, at, size: lax.dynamic_slice_in_dim(dkernel, at, size, 1), None
)


def _terms(z: Array, is_label: Array, weights: Array | None, largest: Array) -> Sums:
    """A tile's part of the sums below a maximum."""
    others = jnp.where(is_label, 0.0, exp(z - largest[:, None])).sum(axis=-1)
    label = jnp.where(is_label, z, 0.0).sum(axis=-1)
    if weights is None:
        return Sums(largest, others, label, None, None)
    of_classes = jnp.broadcast_to(weights[None, :], z.shape)
    gaps = weigh(of_classes, largest[:, None] - z).sum(axis=-1)
    return Sums(largest, others, label, gaps, jnp.broadcast_to(weights.sum(), gaps.shape))


def _brought(sums: Sums, largest: Array) -> Sums:
    """The sums below another maximum: what tiles and devices are merged by."""
    step = largest - sums.largest
    sums = sums._replace(largest=largest, others=sums.others * exp(-step))
    if sums.gaps is None or sums.total is None:
        return sums
    return sums._replace(gaps=sums.gaps + weigh(sums.total, step))


def _added(sums: Sums, terms: Sums) -> Sums:
    """Sums below the same maximum, added up."""
    total: Sums = jax.tree.map(jnp.add, sums, terms)
    return total._replace(largest=sums.largest)


def _greatest(dtype: jnp.dtype) -> float:
    return float(jnp.finfo(dtype).max)


@jax.custom_jvp
def _below_infinity(z: Array) -> Array:
    """The greatest finite number for infinity, which changes as infinity does."""
    return jnp.where(z == jnp.inf, _greatest(z.dtype), z)


derivatives(_below_infinity, lambda dz, _, __: dz)


# What the sums say of a row.


def gap_from(sums: Sums, gap: Array) -> Array:
    """What logits are below the maximum: infinitely much, if anything, where that is infinite."""
    return gap + jnp.where(_is_infinite(sums) & (gap > 0), jnp.inf, 0.0)


def _is_infinite(sums: Sums) -> Array:
    return sums.largest == _greatest(sums.largest.dtype)


def nll_of(sums: Sums) -> Array:
    """-log p of the label, NaN in a row without a softmax."""
    gap = gap_from(sums, sums.largest - sums.label)
    return _clear(sums, _nll(sums.others, gap))


def rest_of(sums: Sums) -> Array:
    """The sum of exp(z - largest), less 1."""
    return _clear(sums, sums.others + expm1(sums.label - sums.largest))


def _clear(sums: Sums, value: Array) -> Array:
    """NaN where all logits are -inf, or several are inf."""
    greatest = _greatest(value.dtype)
    is_none = sums.largest <= -greatest / 2
    total = sums.others + exp(sums.label - sums.largest)
    is_unclear = _is_infinite(sums) & (total > 1.0)
    return jnp.where(is_none | is_unclear, jnp.nan, value)


@jax.custom_jvp
def _nll(others: Array, gap: Array) -> Array:
    """log(exp(gap) others + 1), of which the digits stay where the label has the maximum."""
    return gap + log1p(others + expm1(-gap))


# 1 - p is never formed where p is close to 1.
derivatives(
    _nll,
    lambda dothers, _, others, gap: dothers / (1.0 + (others + expm1(-gap))),
    lambda dgap, _, others, gap: others / (1.0 + (others + expm1(-gap))) * dgap,
)
