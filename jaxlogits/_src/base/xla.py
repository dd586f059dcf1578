"""What is said to the compiler: the same numbers, in programs that take less time or memory.

Whoever reads a kernel may take each of these for the identity, or for what its name says. None is a
guess: ``benchmarks/xla.py`` measures what each saves, and ``tests/base/test_xla.py`` looks at the
compiled program with and without it, so that one that no longer does anything is noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
T = TypeVar("T")


def by_device(*arrays: Array, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """What ``cpu`` makes of the arrays if the program runs on a CPU, else what ``default`` does."""
    return lax.platform_dependent(*arrays, cpu=cpu, default=default)


def apart(arrays: T) -> T:
    """The arrays, computed before and apart from whatever reads them.

    XLA:CPU fuses a reduction with what is computed from its result, in a loop that then has a
    single thread, or no vectors.
    """
    result: T = lax.optimization_barrier(arrays)
    return result


def by_itself(fn: Callable[..., Any], *args: Any) -> Any:
    """What ``fn`` makes of arrays, on a CPU by a loop that shares nothing with the others there.

    XLA:CPU writes what two loops could share, such as the exponentials of a row, to memory.
    """
    return by_device(*args, cpu=lambda *args: fn(*apart(args)), default=fn)


def one_array(x: Array) -> Array:
    """The array, written once on a CPU for several readers, of which each would make its own."""
    array: Array = by_device(x, cpu=apart, default=lambda x: x)
    return array


def rounded(x: Array, dtype: jnp.dtype) -> Array:
    """Half-precision x in a wider dtype, with the rounding that it has in its own.

    XLA leaves out the rounding of a half-precision result that it fuses into its reader. On a CPU a
    barrier keeps it; a rounding in float32 would end the fastest loops, which take bfloat16 as it
    is, and cost a float32 copy of the logits. Elsewhere the rounding has 8 bits of exponent for
    every dtype: float16's own 5 would flush its subnormals, and make 448 of float8_e4m3fn infinite.
    """
    wide: Array = by_device(
        x,
        cpu=lambda x: apart(x).astype(dtype),
        default=lambda x: lax.reduce_precision(x.astype(dtype), 8, jnp.finfo(x.dtype).nmant),
    )
    return wide


def zero_at(position: Array, values: Array) -> Array:
    """values along the last axis, 0 at one position ``[..., 1]`` of it.

    A product with squared distances, or 1, which XLA:CPU fuses into a sum where a select ends the
    loop. The values are finite or NaN.
    """
    index = jnp.arange(values.shape[-1], dtype=position.dtype)
    distance = (jnp.broadcast_to(index, values.shape) - position).astype(values.dtype)
    return values * jnp.minimum(distance * distance, 1.0)


def is_nonzero(distance: Array, row: Array) -> Array:
    """1 where a distance in a row, which isn't negative, is positive, and 0 where it is 0.

    A minimum, with the distance brought to 1 or more where it is a normal number, which fuses into
    a sum. It has no derivative, and may lose NaN.
    """
    most = of_row(1.0 / float(jnp.finfo(distance.dtype).tiny), row)
    return lax.stop_gradient(jnp.minimum(distance * most, of_row(1.0, row)))


def of_row(number: float, row: Array) -> Array:
    """A number, as one of each row ``[..., 1]``.

    Of one that several loops have in common XLA:CPU would make an array as large as theirs.
    """
    return jnp.where(jnp.isnan(row), jnp.nan, number).astype(row.dtype)


def is_positive(x: Array) -> Array:
    """1 where a number that isn't negative is positive, 0 at 0: a sign, which fuses into a sum."""
    return jnp.sign(x)
