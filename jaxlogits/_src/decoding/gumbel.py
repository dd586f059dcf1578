"""Gumbel noise, and the rows of logits that it is added to.

The noise has twice the bits that jax.random takes by default: with those alone a class of
probability 1e-7 is drawn far too rarely and one of 1e-8 never, as the noise can't exceed 16.6.
It is added to logits below their maximum, as what is added to 1e7 would be rounded away.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, AxisName
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.mesh.reductions import row_argmax, row_max, row_sum
from jaxlogits._src.rows.quotients import cooled
from jaxlogits._src.rows.rows import Rows, spoiled
from jaxlogits._src.rows.softmax import first_max


def unclear_rows(rows: Rows) -> Array:
    """Which rows have NaN or more than one +inf."""
    z = rows.z
    infinite = row_sum((z == jnp.inf).astype(jnp.int32), rows.axis_name)
    return (infinite > 1) | jnp.isnan(row_max(z, rows.axis_name))


@jax.custom_jvp
def cleaned(z: Array, unclear: Array) -> Array:
    """Zeros where rows are ``unclear``, whose results get their NaN later, as their slopes do."""
    return jnp.where(unclear, 0.0, z)


derivatives(cleaned, lambda dz, *_: dz, None)


def usable(rows: Rows) -> Array:
    """The logits, all NaN in a row with NaN or more than one +inf."""
    z = rows.z if rows.empty is None else jnp.where(rows.empty, -jnp.inf, rows.z)
    return spoiled(z, unclear_rows(rows))


def cooled_rows(rows: Rows, temperature: ArrayLike) -> Array:
    """Logits below their maximum, over temperature; at 0 the first maximum alone is left."""
    z = usable(rows)
    scale = checks.as_row_option("temperature", temperature, z.dtype, z.shape[:-1])
    greedy = scale == 0
    warm = cooled(z, scale + greedy.astype(z.dtype), rows.axis_name)
    others = greedy & ~first_max(z, rows.axis_name) & ~jnp.isnan(z)
    return jnp.where(others, -jnp.inf, warm)


def half_below_max(z: Array, axis_name: AxisName) -> Array:
    """(z - max(z)) / 2, of which the maximum counts as a constant; 0 at an infinite one."""
    largest = lax.stop_gradient(row_max(z, axis_name))
    return 0.5 * z - 0.5 * jnp.where(jnp.isinf(largest), 0.0, largest)


def draw(key: ArrayLike, z: Array, shape: tuple[int, ...], axis_name: AxisName) -> Array:
    """int32 indices of the largest perturbed logits; -1 if there is none."""
    z = lax.stop_gradient(z)
    noise = gumbel(key, (*shape, *z.shape), z.dtype, axis_name)
    perturbed = jnp.broadcast_to(z, noise.shape) + noise
    classes = row_argmax(perturbed, axis_name)
    return jnp.where(row_max(perturbed, axis_name) > -jnp.inf, classes, -1)[..., 0]


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
        raise ValueError(f"key must be one key, got {got}: use jax.vmap for a key per row")
    return array
