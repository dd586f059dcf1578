"""Products in which 0 wins over infinity, with every derivative of a product.

``times`` multiplies a slope by a tangent: nothing changes nothing, also where the slope is infinite
or NaN, and whether JAX knows that the tangent is zero or it comes as an array of zeros. It is a
primitive, as no composition of JAX's own operations would do: one that asks a tangent whether it is
0 can't be transposed, and one that asks the slope loses what changes with a slope of exactly 0.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.base.varying import vary, varying_axes


def times(slope: Array, tangent: Array) -> Array:
    """slope * tangent, and 0 where either is 0, be the other infinite or NaN.

    It is bilinear: what it gives is differentiated and transposed like a product, in any order.
    """
    slope, tangent = jnp.broadcast_arrays(slope, tangent)
    result: Array = _times.bind(*vary((slope, tangent), varying_axes(slope, tangent)))
    return result


def _times_of_arrays(a: Array, b: Array) -> Array:
    return jnp.where(b == 0, jnp.zeros_like(a), a) * jnp.where(a == 0, jnp.zeros_like(b), b)


def _batched_times(args: tuple[Array, Array], axes: tuple[Any, Any]) -> tuple[Array, int]:
    a, b = (
        jnp.asarray(x)[None] if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(args, axes, strict=True)
    )
    return times(a, b), 0


_times = Primitive("times")
_times.def_impl(jax.jit(_times_of_arrays))
_times.def_abstract_eval(lambda a, b: lax.mul_p.abstract_eval(a, b)[0])
mlir.register_lowering(_times, mlir.lower_fun(_times_of_arrays, multiple_results=False))
batching.primitive_batchers[_times] = _batched_times
ad.defbilinear(
    _times,
    lambda cotangent, _, tangent: times(cotangent, tangent),
    lambda cotangent, slope, _: times(slope, cotangent),
)


@jax.custom_jvp
def weigh(weight: Array, value: Array) -> Array:
    """weight * value, where 0 wins over infinity, but not over NaN."""
    return product(weight, value)


derivatives(
    weigh,
    lambda dweight, _, __, value: times(value, dweight),
    lambda dvalue, _, weight, __: times(weight, dvalue),
)


def product(*factors: Array) -> Array:
    """The product of numbers of which any that is 0 wins over infinity. It has no derivative."""
    nothing = functools.reduce(jnp.logical_or, [factor == 0 for factor in factors])
    finite = [jnp.where(nothing & jnp.isinf(factor), 1.0, factor) for factor in factors]
    return functools.reduce(jnp.multiply, finite)


def spread(tangent: Array, *slopes: Array) -> Array:
    """What several slopes make of one tangent: of inf and -inf nothing, where it is 0."""
    return functools.reduce(jnp.add, [times(slope, tangent) for slope in slopes])
