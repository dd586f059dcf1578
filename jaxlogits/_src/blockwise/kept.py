"""Compiled programs that are kept between calls, for functions that only their trace knows.

A caller's function is never the key of a program: a method is equal to itself after its object has
changed, and what a function reads from outside isn't seen. It is traced at each call. A program is
taken again where the trace is the same one, operation by operation, and what the function closes
over are arguments of the program, so that none of them is in it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal, jaxpr_as_fun

from jaxlogits._src.base.dtypes import Array

_MOST_PROGRAMS = 64


class _Same(NamedTuple):
    """A part of a key that is equal only to itself."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


class _Parts(NamedTuple):
    """The key of a jaxpr, and what is in it."""

    key: Any
    has_rules: bool
    is_known: bool
    names: frozenset[str]  # of its operations


class Trace:
    """What a function computes, without the arrays that it closes over: equal if it is the same.

    ``has_rules`` tells that the function has derivative rules of its own, which are code that the
    trace doesn't show: such a program must not be differentiated after this call.
    """

    def __init__(self, closed: Any) -> None:
        """``closed`` is what ``jax.make_jaxpr`` gives."""
        self._closed = closed.replace(consts=[None] * len(closed.consts))
        self._key, self.has_rules, is_known, self.names = _parts(closed.jaxpr)
        types = [x.aval for x in (*closed.jaxpr.constvars, *closed.jaxpr.invars)]
        self.is_known = is_known and not any(map(_is_symbolic, types))
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self._key == other._key

    def run(self, consts: list[Array], args: list[Array]) -> list[Array]:
        """The function, with ``consts`` in the place of what it closes over."""
        return list(jaxpr_as_fun(self._closed.replace(consts=consts))(*args))


def call_kept(
    run: Callable[..., Any], job: Any, trace: Trace, *args: Any, is_kept: bool = True
) -> Any:
    """``run(job, *args)`` as a program; ``job`` is hashable and has the ``trace`` in it."""
    are_here = all(map(_is_here, jax.tree.leaves(args)))
    if is_kept and trace.is_known and (are_here or not trace.has_rules):
        return _program(run, job)(*args)
    make = _program.__wrapped__ if are_here else functools.partial
    return make(run, job)(*args)


@functools.lru_cache(_MOST_PROGRAMS)
def _program(run: Callable[..., Any], job: Any) -> Callable[..., Any]:
    return jax.jit(functools.partial(run, job))


def kept(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` of arrays, as a program where all of them are there: else the caller's traces it."""

    def call(*args: Any) -> Any:
        leaves = jax.tree.leaves(args)
        if not leaves or not all(map(_is_here, leaves)):
            return fn(*args)
        make: Any = jax.make_jaxpr(fn, return_shape=True)
        closed, shapes = make(*args)
        if any(isinstance(x, jax.core.Tracer) for x in closed.consts):
            return fn(*args)
        trace = Trace(closed)
        results = call_kept(_run_trace, trace, trace, list(closed.consts), leaves)
        structure: Any = jax.tree.structure(shapes)
        return structure.unflatten(results)

    return call


def _run_trace(trace: Trace, consts: list[Array], args: list[Array]) -> list[Array]:
    return trace.run(consts, args)


def _is_here(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


# Keys.


def _parts(jaxpr: Any) -> _Parts:
    """What tells a jaxpr from others: its operations, their parameters and types, its numbers."""
    reader = _Reader()
    given = tuple((reader.atom(x), x.aval) for x in (*jaxpr.constvars, *jaxpr.invars))
    body = tuple(map(reader.equation, jaxpr.eqns))
    key = given, body, tuple(map(reader.atom, jaxpr.outvars))
    return _Parts(key, reader.has_rules, reader.is_known, frozenset(reader.names))


class _Reader:
    """The keys of one jaxpr's operations, whose variables are numbered in their order."""

    def __init__(self) -> None:
        self.variables: dict[Any, int] = {}
        self.has_rules, self.is_known = False, True
        self.names: set[str] = set()

    def atom(self, x: Any) -> Any:
        if isinstance(x, Literal):
            return _number(x.val), x.aval
        return self.variables.setdefault(x, len(self.variables))

    def equation(self, eqn: Any) -> Any:
        name, params = eqn.primitive.name, dict(eqn.params)
        self.names.add(name)
        inner = ()
        if name in ("jit", "pjit"):
            inner = self.jitted(params.pop("jaxpr"))
        elif name.startswith("custom_"):
            self.has_rules = True
            params = {k: v for k, v in params.items() if hasattr(v, "eqns")}
        ins, outs = tuple(map(self.atom, eqn.invars)), tuple(map(self.atom, eqn.outvars))
        types = tuple(x.aval for x in eqn.outvars)
        rest = tuple((k, self.param(params[k])) for k in sorted(params))
        return eqn.primitive, ins, outs, types, eqn.ctx, rest, inner

    def jitted(self, closed: Any) -> Any:
        """What jit traced once and has kept is the same object, with the rules that are in it."""
        inner = _of_jitted(closed)
        self._count(inner._replace(has_rules=False))
        return inner.key

    def param(self, value: Any) -> Any:
        if isinstance(value, tuple | list):
            return tuple(map(self.param, value))
        if isinstance(value, dict):
            return tuple((k, self.param(v)) for k, v in value.items())
        if not hasattr(value, "eqns"):
            return _value(value)
        inner = _parts(getattr(value, "jaxpr", value))
        consts = tuple(map(_const, getattr(value, "consts", ())))
        self._count(inner._replace(is_known=inner.is_known and None not in consts))
        return inner.key, consts

    def _count(self, inner: _Parts) -> None:
        self.has_rules |= inner.has_rules
        self.is_known &= inner.is_known
        self.names |= inner.names


_jitted: weakref.WeakKeyDictionary[Any, _Parts] = weakref.WeakKeyDictionary()


def _of_jitted(closed: Any) -> _Parts:
    """As ``_parts``, of what jit has traced; where there is more to it than is seen, itself."""
    consts = getattr(closed, "consts", ())
    if closed not in _jitted:
        found = _parts(getattr(closed, "jaxpr", closed))
        is_known = found.is_known and all(_const(x) is not None for x in consts)
        _jitted[closed] = found._replace(is_known=is_known)
    found = _jitted[closed]
    return found._replace(key=_Same(closed)) if found.has_rules or consts else found


def _number(value: Any) -> Any:
    array = np.asarray(value)
    return array.dtype, array.shape, array.tobytes()


def _const(value: Any) -> Any:
    """An array in a jaxpr, or None for one that may change where it is."""
    if np.ndim(value) == 0 and isinstance(value, np.generic | np.ndarray):
        return _number(value)
    return _Same(value) if _is_here(value) else None


def _value(value: Any) -> Any:
    """Any other parameter: of functions and what can't be hashed, only the same is equal."""
    if isinstance(value, float | np.number):
        return type(value), _number(value)  # -0 is another number than 0, and NaN the same
    is_function = callable(value) or hasattr(value, "call_wrapped")
    if is_function and not isinstance(value, type):
        return _Same(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


def _is_symbolic(aval: Any) -> bool:
    return not all(isinstance(d, int) for d in getattr(aval, "shape", ()))
