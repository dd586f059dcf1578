"""hidden @ kernel with the rounding, the layout and the derivatives that a loss's logits need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.rules import is_symbolic_zero

_Pair = tuple[Array, Array]


def product_of(dtype: jnp.dtype, precision: Any) -> Callable[[Array, Array], Array]:
    """hidden @ kernel, summed in ``dtype``; the transposes of its tangents make the gradients."""

    def dot(
        a: Array, b: Array, over: tuple[int, int], dtype: Any = dtype, precision: Any = precision
    ) -> Array:
        return lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())), precision, dtype)

    @jax.custom_jvp
    def product(hidden: Array, kernel: Array) -> Array:
        if hidden.dtype == jnp.bfloat16:
            return dot(hidden, kernel, (1, 0))
        # So XLA:CPU sees that the kernel embedding.T is the embedding; else it would copy it.
        return dot(hidden, kernel.T, (1, 1))

    # Not by ``derivatives``: both terms of the tangent become one array.
    @functools.partial(product.defjvp, symbolic_zeros=True)
    def product_jvp(primals: _Pair, tangents: tuple[Any, Any]) -> _Pair:
        (hidden, kernel), (dhidden, dkernel) = primals, tangents
        z = product(hidden, kernel)
        dz = jnp.zeros_like(z)
        is_bfloat16 = hidden.dtype == jnp.bfloat16
        if not is_symbolic_zero(dhidden):
            # The logits' derivative is rounded to bfloat16, or the kernel would become float32.
            least = hidden.dtype if is_bfloat16 else dtype
            dz = dz + dot(dhidden, kernel, (1, 0), least).astype(dtype)
        if not is_symbolic_zero(dkernel):
            # Apart, as older XLA:CPU takes 1.6 times as long to transpose within the product.
            rows = xla.apart(hidden.T).astype(dtype)
            # XLA:CPU before jax 0.12 can't multiply vectors so.
            is_matrix = 1 not in (*hidden.shape, *kernel.shape)
            rounded = is_bfloat16 and precision is None and is_matrix
            algorithm = lax.DotAlgorithmPreset.BF16_BF16_F32 if rounded else precision
            dz = dz + dot(rows, dkernel.astype(dtype), (0, 0), precision=algorithm)
        if is_bfloat16:
            dz = xla.one_array(dz)  # read by both products of the backward pass
        return z, dz

    return product
