"""Derivative rules, written in one way: what each argument adds to the tangent of the result.

Nothing changes nothing: a tangent of zeros gives zeros, whether JAX knows that they are zeros or
they come as an array, and also where the slope is infinite. So says ``times``, with which a rule
multiplies whatever isn't known to be finite. It holds for cotangents too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array

F = TypeVar("F", bound=Callable[..., Any])


def derivatives(fn: Any, *partials: Any) -> None:
    """Give a ``custom_jvp`` function its rule, from one function for each of its arguments.

    ``partial(tangent, value, *arguments)`` is what an argument's tangent adds to the result's, the
    arguments as ``fn`` takes them: arrays first, or None, then static ones. It is None itself for
    an argument on which the result doesn't depend. What doesn't change costs nothing.

    If ``fn`` returns a pair, its second part is what the rule wants to know of the arguments beside
    them, and counts as constant; ``partial`` gets it for ``value``.
    """

    @functools.partial(fn.defjvp, symbolic_zeros=True)
    def rule(*args: Any) -> tuple[Any, Any]:
        *static, primals, tangents = args
        result = fn(*primals, *static)
        value, known = result if isinstance(result, tuple) else (result, result)
        terms = [
            partial(tangent, known, *primals, *static)
            for partial, tangent in zip(partials, tangents, strict=True)
            if not (partial is None or tangent is None or is_symbolic_zero(tangent))
        ]
        total = functools.reduce(jnp.add, terms) if terms else jnp.zeros_like(value)
        if not isinstance(result, tuple):
            return value, total
        return result, (total, jax.tree.map(jnp.zeros_like, known))


def is_symbolic_zero(tangent: Any) -> bool:
    """Whether a rule with symbolic zeros is told that an argument doesn't change."""
    return isinstance(tangent, SymbolicZero)


def checkpointed(fn: F) -> F:
    """A decorator: the backward pass keeps the arguments alone, and makes the rest again.

    For functions of arrays and, under these names, static arguments: maps of tangents, and what is
    quickly computed. The masks in between would take more than the arguments do.
    """
    names = inspect.signature(fn).parameters
    static = tuple(i for i, name in enumerate(names) if name in ("power", "greatest", "axis_name"))
    run: Any = functools.wraps(fn)(jax.checkpoint(fn, static_argnums=static))
    return run  # type: ignore[no-any-return]


def times(slope: Array, tangent: Array) -> Array:
    """slope * tangent, 0 where the tangent is 0 though the slope be infinite.

    A select that asks the tangent couldn't be transposed, so infinity is a product of two finite
    factors, which brings any number that isn't 0 beyond the greatest.
    """
    greatest = xla.opaque(jnp.finfo(slope.dtype).max)  # nor multiplied by a constant slope first
    beyond = tangent * jnp.sign(slope) * greatest * greatest
    return tangent * within_range(slope) + jnp.where(jnp.isinf(slope), beyond, 0.0)


@jax.custom_jvp
def within_range(x: Array) -> Array:
    """x, at most the greatest number; it changes as x does."""
    greatest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -greatest, greatest)


derivatives(within_range, lambda dx, _, __: dx)


@jax.custom_jvp
def weigh(weight: Array, value: Array) -> Array:
    """weight * value, where 0 counts nothing, be the other infinite or its tangent."""
    return product(weight, value)


derivatives(
    weigh,
    lambda dweight, _, __, value: jnp.where(value == 0, 0.0, times(value, dweight)),
    lambda dvalue, _, weight, __: jnp.where(weight == 0, 0.0, times(weight, dvalue)),
)


@jax.custom_jvp
def scale_by(factor: Array, value: Array) -> Array:
    """factor * value of a finite factor, where 0 counts nothing though the value be infinite.

    Unlike ``weigh`` it has the mixed second derivative where one of them is 0.
    """
    return product(factor, value)


derivatives(
    scale_by,
    lambda dfactor, _, __, value: times(value, dfactor),
    lambda dvalue, _, factor, __: factor * dvalue,
)


def product(*factors: Array) -> Array:
    """The product of numbers of which any that is 0 wins over infinity. It has no derivative."""
    nothing = functools.reduce(jnp.logical_or, [factor == 0 for factor in factors])
    finite = [jnp.where(nothing & jnp.isinf(factor), 1.0, factor) for factor in factors]
    return functools.reduce(jnp.multiply, finite)


def spread(tangent: Array, *slopes: Array) -> Array:
    """What several slopes make of one tangent: of inf and -inf nothing, where it is 0."""
    return functools.reduce(jnp.add, [times(slope, tangent) for slope in slopes])
