"""Gumbel noise, and the rows of logits that it is added to.

The noise has twice the bits that jax.random takes by default: with those alone a class of
probability 1e-7 is drawn far too rarely and one of 1e-8 never, as the noise can't exceed 16.6.
It is added to logits below their maximum, as what is added to 1e7 would be rounded away.
To make it is what takes time: a draw from a long row takes noise for 2 sqrt(K) numbers, not for K.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName
from jaxlogits._src.base.elementary import exp, log
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.mesh.reductions import (
    first_class,
    of_all_devices,
    row_argmax,
    row_has_nan,
    row_max,
    row_sum,
)
from jaxlogits._src.rows.blocks import row_numbers
from jaxlogits._src.rows.quotients import cooled
from jaxlogits._src.rows.rows import Rows, spoiled
from jaxlogits._src.rows.softmax import first_max

_LONG_ROW = 512  # classes, from which on two rounds of draws are faster than one
_LANES = 128  # of a vector unit's register on a TPU; a block is a multiple


def unclear_rows(rows: Rows) -> Array:
    """Which rows have NaN or more than one +inf."""
    z = rows.z
    infinite = row_sum((z == jnp.inf).astype(jnp.int32), rows.axis_name)
    return (infinite > 1) | row_has_nan(z, rows.axis_name)


@jax.custom_jvp
def cleaned(z: Array, unclear: Array) -> Array:
    """Zeros where rows are ``unclear``, whose results get their NaN later, as their slopes do."""
    return jnp.where(unclear, 0.0, z)


derivatives(cleaned, lambda dz, *_: dz, None)


def usable(rows: Rows) -> Array:
    """The logits, all NaN in a row with NaN or more than one +inf."""
    z = rows.z if rows.empty is None else jnp.where(rows.empty, -jnp.inf, rows.z)
    return spoiled(z, unclear_rows(rows))


def row_temperature(rows: Rows, temperature: ArrayLike) -> Array:
    """The temperature of each row or of all."""
    return rows.option("temperature", temperature)


def cooled_rows(rows: Rows, scale: Array) -> Array:
    """Logits below their maximum, over temperature; at 0 the first maximum alone is left."""
    z = usable(rows)
    greedy = scale == 0
    warm = cooled(z, scale + greedy.astype(z.dtype), rows.axis_name)
    others = greedy & ~first_max(z, rows.axis_name) & ~jnp.isnan(z)
    return jnp.where(others, -jnp.inf, warm)


def half_below_max(z: Array, axis_name: AxisName) -> Array:
    """(z - max(z)) / 2, of which the maximum counts as a constant; 0 at an infinite one."""
    largest = lax.stop_gradient(row_max(z, axis_name))
    return 0.5 * z - 0.5 * jnp.where(jnp.isinf(largest), 0.0, largest)


def draw_of_rows(key: ArrayLike, rows: Rows, scale: Array, shape: tuple[int, ...] = ()) -> Array:
    """int32 indices of draws from the softmax of rows over temperature; -1 if there is none."""
    return draw_with_numbers(key, rows, scale, shape, lambda *_: None)[0]


def draw_with_numbers(
    key: ArrayLike,
    rows: Rows,
    scale: Array,
    shape: tuple[int, ...],
    numbers: Callable[[Array, Array], Any],
) -> tuple[Array, Any]:
    """The draws, and ``numbers(z, classes)`` of them, which are as many, as constants.

    They are of rows over temperature and of classes ``[*draws, *rows]``.
    """
    axis_name = rows.axis_name
    noise = _noise(key, rows.z, (math.prod(shape),), axis_name)

    def find(rows: Rows, scale: Array, *noise: Array) -> Any:
        z = cooled_rows(rows, scale)
        classes = _largest(z, tuple(jnp.moveaxis(x, -2, 0) for x in noise), axis_name)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), (classes, numbers(z, classes)))

    def of_draws(found: Array) -> Array:
        moved = jnp.moveaxis(found, -1, 0)
        return moved.reshape(*shape, *moved.shape[1:])

    of_rows = (jnp.moveaxis(x, 0, -2) for x in noise)
    found = row_numbers(find, rows, scale, *of_rows)
    draws: tuple[Array, Any] = jax.tree.map(of_draws, found)
    return draws


def draw(key: ArrayLike, z: Array, axis_name: AxisName) -> Array:
    """The int32 index of a draw from the softmax of each row; -1 if there is none."""
    z = lax.stop_gradient(z)
    return _largest(z, _noise(key, z, (), axis_name), axis_name)


def _noise(
    key: ArrayLike, z: Array, draws: tuple[int, ...], axis_name: AxisName
) -> tuple[Array, ...]:
    """Noise for the classes of each row and draw, or for its blocks and for the classes of one."""
    lead = (*draws, *z.shape[:-1])
    if not _is_long(z):
        return (gumbel(key, (*lead, z.shape[-1]), z.dtype, axis_name),)
    keys = jax.random.split(as_key(key))
    sizes = zip(keys, _count_and_width(z), strict=True)
    return tuple(gumbel(key, (*lead, size), z.dtype, axis_name) for key, size in sizes)


def _largest(z: Array, noise: tuple[Array, ...], axis_name: AxisName) -> Array:
    """The index of a row's largest with noise ``[*draws, *rows, M]``; -1 if there is none."""
    if _is_long(z):
        return _largest_in_two_rounds(z, noise, axis_name)
    perturbed = jnp.broadcast_to(z, noise[0].shape) + noise[0]
    classes = row_argmax(perturbed, axis_name)
    return jnp.where(row_max(perturbed, axis_name) > -jnp.inf, classes, -1)[..., 0]


def _largest_in_two_rounds(z: Array, noise: tuple[Array, ...], axis_name: AxisName) -> Array:
    """A block of classes by the logarithm of its sum, and then one of its classes."""
    of_blocks, of_classes = noise
    blocks = _blocks_of(z)
    largest = jnp.max(blocks, axis=-1)
    level = jnp.where(largest == -jnp.inf, 0.0, largest)
    sums = level + log(jnp.sum(exp(blocks - level[..., None]), axis=-1))
    perturbed = jnp.broadcast_to(sums, of_blocks.shape) + of_blocks
    block = row_argmax(perturbed, axis_name)[..., 0]
    own = block - first_class(sums.shape, block.dtype, axis_name)
    is_here = (own >= 0) & (own < sums.shape[-1])

    def take(blocks: Array, own: Array) -> Array:
        return jnp.take(blocks, own, axis=0, mode="clip")

    draws = own.ndim - (sums.ndim - 1)
    for _ in sums.shape[:-1]:
        take = jax.vmap(take, (0, draws), draws)
    taken = take(blocks, own)
    classes = own * taken.shape[-1] + row_argmax(taken + of_classes, None)[..., 0]
    classes += first_class(z.shape, classes.dtype, axis_name)
    classes = of_all_devices(jnp.where(is_here, classes, 0), axis_name)
    return jnp.where(row_max(perturbed, axis_name)[..., 0] > -jnp.inf, classes, -1)


def _is_long(z: Array) -> bool:
    return z.shape[-1] >= _LONG_ROW


def _blocks_of(z: Array) -> Array:
    """About sqrt(K) blocks ``[..., K / C, C]`` of consecutive classes, the last of them filled."""
    count, width = _count_and_width(z)
    padding = [(0, 0)] * (z.ndim - 1) + [(0, count * width - z.shape[-1])]
    return jnp.pad(z, padding, constant_values=-jnp.inf).reshape(*z.shape[:-1], count, width)


def _count_and_width(z: Array) -> tuple[int, int]:
    """How many blocks a row has, and how many classes a block."""
    size = z.shape[-1]
    width = _LANES * max(1, round(size**0.5 / _LANES))
    return -(-size // width), width


def gumbel(key: ArrayLike, shape: tuple[int, ...], dtype: jnp.dtype, axis_name: AxisName) -> Array:
    """Gumbel noise for the classes that this device has."""
    own = as_key(key)
    if axis_name is not None:
        own = jax.random.fold_in(own, lax.axis_index(axis_name))
    return jax.random.gumbel(own, shape, dtype, mode="high")


def as_key(key: ArrayLike) -> Array:
    """One key of ``jax.random``, of the new kind or of the old."""
    array = checks.as_array("key", key)
    is_new = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if not (is_new or array.dtype == jnp.uint32):
        raise TypeError(f"key must be from jax.random, got {array.dtype}{list(array.shape)}")
    if array.ndim != (0 if is_new else 1):
        got = f"{array.dtype}{list(array.shape)}"
        raise ValueError(f"key must be a single key, got {got}: use jax.vmap for a key per row")
    return array
