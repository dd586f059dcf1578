"""Derivative rules, written in one way: what each argument adds to the tangent of the result.

A rule multiplies whatever isn't known to be finite with ``times`` of ``base/products.py``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

F = TypeVar("F", bound=Callable[..., Any])

# JAX before 0.12 forgets the derivative rules of what a scan calls when it takes the scan apart, so
# that second derivatives are wrong: unless what is differentiated isn't the scan's own value, but
# that of a function with a rule around it.
SCANS_FORGET_RULES = jax.__version_info__ < (0, 12)


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


def keeping_rules(fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(*args)``, a scan, with the derivative rules of what it calls and what it closes over."""
    if not SCANS_FORGET_RULES:
        return fn(*args)
    whole, consts = jax.closure_convert(fn, *args)

    def rule(primals: Any, tangents: Any) -> Any:
        value, tangent = jax.jvp(whole, primals, tangents)
        return differentiated_by(rule, value, *primals), tangent

    held: Any = jax.custom_jvp(whole)
    held.defjvp(rule)
    return held(*args, *consts)


def differentiated_by(
    rule: Callable[..., Any], value: Any, *args: Any, symbolic_zeros: bool = False
) -> Any:
    """The value of a scan of ``args``, differentiated by ``rule`` where JAX would forget others."""
    if not SCANS_FORGET_RULES:
        return value
    given: Any = jax.custom_jvp(lambda value, *_: value)

    @functools.partial(given.defjvp, symbolic_zeros=symbolic_zeros)
    def given_jvp(primals: Any, tangents: Any) -> Any:
        return given(*primals), rule(tuple(primals[1:]), tuple(tangents[1:]))[1]

    return given(value, *args)
