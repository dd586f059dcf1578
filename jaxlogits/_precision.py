"""Which dtype a computation runs in, decided once.

Everything runs in float32, or in float64 where the input has it. Elementwise maps round once, back
to the dtype they were given; reductions over classes or rows come back in the wide dtype.
"""

import jax.numpy as jnp

from jaxlogits._typing import Array


def wide_dtype(*arrays: Array) -> jnp.dtype:
    """float64 if any of the arrays has it, else float32."""
    has_float64 = any(array.dtype == jnp.float64 for array in arrays)
    return jnp.dtype(jnp.float64 if has_float64 else jnp.float32)


def widen(array: Array) -> Array:
    """The array in the dtype that computations run in."""
    return array.astype(wide_dtype(array))
