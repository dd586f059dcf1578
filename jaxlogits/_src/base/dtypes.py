"""The words of signatures, and which dtype a computation runs in, decided once.

Everything runs in float32, or in float64 where the input has it. Elementwise maps round once, back
to the dtype they were given; reductions over classes or rows come back in the wide dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike as ArrayLike

from jaxlogits._src.base import xla
from jaxlogits._src.base.rules import derivatives

Array = jax.Array
Axis = int | tuple[int, ...]
AxisName = str | tuple[str, ...] | None


def wide_dtype(*arrays: Array) -> jnp.dtype:
    """float64 if any of the arrays has it, else float32."""
    has_float64 = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if has_float64 else jnp.float32)


def widen(array: Array, dtype: jnp.dtype | None = None) -> Array:
    """The array in the dtype that computations run in, with one rounding to what it was given in.

    If one reader of a half-precision array saw the rounded number and another didn't, a sum and its
    terms would no longer belong together.
    """
    wide = wide_dtype(array) if dtype is None else dtype
    if array.dtype.itemsize > 2 or not jnp.issubdtype(array.dtype, jnp.floating):
        return array.astype(wide)
    return _rounded(array, wide)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(x: Array, dtype: jnp.dtype) -> Array:
    """A half-precision x in a wider dtype; its gradient is rounded once, where it gets narrow."""
    return xla.rounded(x, dtype)


derivatives(_rounded, lambda dx, _, __, dtype: dx.astype(dtype))


def finite(x: Array) -> Array:
    """The finite numbers that are closest to x."""
    greatest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -greatest, greatest)


def narrow(array: Array, like: Array) -> Array:
    """The array in the dtype of ``like``, and as weakly typed: a number gives a number."""
    if not jax.typeof(like).weak_type:
        return array.astype(like.dtype)
    # No function that is public makes a weak type of a strong one.
    convert: Callable[..., Array] = lax.convert_element_type_p.bind
    return convert(array, new_dtype=like.dtype, weak_type=True, sharding=None)
