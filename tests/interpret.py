"""Run what JAX has traced with numpy, equation by equation, instead of compiling it.

A transform rewrites a program, and whether the rewritten one is right can be seen by running it in
any way. XLA takes seconds to compile what numpy runs in milliseconds. What XLA itself makes of the
programs is looked at beside it, once for each function: ``transforms.of_each_order`` compiles its
value, gradient and Hessian.

A primitive that isn't here is run by JAX, on its own.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Arrays = list[Any]


def interpreted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, traced as jit traces it, and run with numpy."""

    def run(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        with np.errstate(all="ignore"):
            results = _run(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


def _run(jaxpr: Any, consts: Any, args: Any) -> Arrays:
    values = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], map(_numpy, [*consts, *args]), strict=True)
    )

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS:
            results = _call(eqn, given)
        elif name in _LOOPS:
            results = _LOOPS[name](eqn, *given)
        elif name in _RULES:
            made = _RULES[name](eqn.params, *given)
            results = made if isinstance(made, list) else [made]
        else:
            made = eqn.primitive.bind(*map(_jax, given), **eqn.params)
            results = made if eqn.primitive.multiple_results else [made]
        for var, result in zip(eqn.outvars, results, strict=True):
            values[var] = _like(result, var.aval)
    return [read(atom) for atom in jaxpr.outvars]


def _numpy(value: Any) -> Any:
    """Keys have no counterpart in numpy and stay as they are."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    return np.asarray(value)


def _jax(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else jax.numpy.asarray(value)


def _like(result: Any, aval: Any) -> Any:
    """What numpy has computed in the dtype that JAX says; a wrong shape is a mistake in here."""
    value = _numpy(result)
    if isinstance(value, np.ndarray):
        assert value.shape == aval.shape, (value.shape, aval)
        return value if value.dtype == aval.dtype else value.astype(aval.dtype)
    return value


# Programs within programs.

_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vmap_call"),
}


def _call(eqn: Any, args: Arrays) -> Arrays:
    params = eqn.params
    inner = next(params[name] for name in ("jaxpr", "call_jaxpr", "call") if name in params)
    return _closed(inner, args)


def _closed(jaxpr: Any, args: Any) -> Arrays:
    is_closed = hasattr(jaxpr, "consts")
    return _run(jaxpr.jaxpr, jaxpr.consts, args) if is_closed else _run(jaxpr, [], args)


def _scan(eqn: Any, *args: Any) -> Arrays:
    # Which arguments are consts, carry and xs is seen from their ranks: xs and ys have one more.
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    pairs = zip(eqn.outvars, body.out_avals, strict=True)
    num_carry = sum(var.aval.ndim == inner.ndim for var, inner in pairs)
    pairs = zip(eqn.invars, body.in_avals, strict=True)
    num_fixed = sum(var.aval.ndim == inner.ndim for var, inner in pairs)
    consts, carry = args[: num_fixed - num_carry], list(args[num_fixed - num_carry : num_fixed])
    each: list[Any] = [None] * length
    for i in reversed(range(length)) if eqn.params["reverse"] else range(length):
        made = _closed(body, [*consts, *carry, *(x[i] for x in args[num_fixed:])])
        carry, each[i] = made[:num_carry], made[num_carry:]
    empty = [np.zeros((0, *t.shape), t.dtype) for t in body.out_avals[num_carry:]]
    return carry + ([np.stack(ys) for ys in zip(*each, strict=True)] if length else empty)


def _while(eqn: Any, *args: Any) -> Arrays:
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    for_cond, for_body = args[:of_cond], args[of_cond : of_cond + of_body]
    carry = list(args[of_cond + of_body :])
    while True:
        # Under vmap there is one answer for each example, and those that are done stay as they are.
        going = _closed(eqn.params["cond_jaxpr"], [*for_cond, *carry])[0]
        if not np.any(going):
            return carry
        new = _closed(eqn.params["body_jaxpr"], [*for_body, *carry])
        pairs = zip(new, carry, strict=True)
        carry = [
            np.where(going.reshape(going.shape + (1,) * (a.ndim - going.ndim)), a, b)
            for a, b in pairs
        ]


def _cond(eqn: Any, index: Any, *args: Any) -> Arrays:
    branches = eqn.params["branches"]
    return _closed(branches[int(np.clip(index, 0, len(branches) - 1))], args)


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}


# The primitives.


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *args: fn(*args)


def _reduce(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, x: fn(x, axis=tuple(params["axes"]))


def _broadcast_in_dim(params: Any, x: Any) -> Any:
    shape, dims = params["shape"], params["broadcast_dimensions"]
    sizes = [1] * len(shape)
    for size, d in zip(x.shape, dims, strict=True):
        sizes[d] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _integer_pow(params: Any, x: Any) -> Any:
    y = params["y"]
    return x**y if y >= 0 else 1 / x**-y


def _iota(params: Any) -> Any:
    shape, dim = params["shape"], params["dimension"]
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    return np.broadcast_to(np.arange(shape[dim]).astype(params["dtype"]).reshape(sizes), shape)


def _slice(params: Any, x: Any) -> Any:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, starts, limits, strides))]


def _starts(x: Any, sizes: Any, starts: Any) -> Any:
    """Where a slice of these sizes lies that starts there, or as near as it fits in."""
    first = [int(np.clip(i, 0, n - m)) for i, n, m in zip(starts, x.shape, sizes, strict=True)]
    return tuple(slice(i, i + m) for i, m in zip(first, sizes, strict=True))


def _dynamic_slice(params: Any, x: Any, *starts: Any) -> Any:
    return x[_starts(x, params["slice_sizes"], starts)]


def _dynamic_update_slice(_: Any, x: Any, update: Any, *starts: Any) -> Any:
    updated = x.copy()
    updated[_starts(x, update.shape, starts)] = update
    return updated


def _split(params: Any, x: Any) -> Any:
    return np.split(x, np.cumsum(params["sizes"])[:-1], params["axis"])


def _select_n(_: Any, which: Any, *cases: Any) -> Any:
    return np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)


def _dot_general(params: Any, a: Any, b: Any) -> Any:
    (over_a, over_b), (batch_a, batch_b) = params["dimension_numbers"]
    wide = np.dtype(params["preferred_element_type"] or a.dtype)
    wide = wide if wide.itemsize >= 4 else np.dtype(np.float32)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names_a = [next(letters) for _ in range(a.ndim)]
    names_b = [next(letters) for _ in range(b.ndim)]
    for i, j in (*zip(batch_a, batch_b, strict=True), *zip(over_a, over_b, strict=True)):
        names_b[j] = names_a[i]
    batch = [names_a[i] for i in batch_a]
    free_a = [n for i, n in enumerate(names_a) if i not in (*batch_a, *over_a)]
    free_b = [n for j, n in enumerate(names_b) if j not in (*batch_b, *over_b)]
    spec = f"{''.join(names_a)},{''.join(names_b)}->{''.join(batch + free_a + free_b)}"
    return np.einsum(spec, a.astype(wide), b.astype(wide))


def _reduce_precision(params: Any, x: Any) -> Any:
    # A half-precision dtype's rounding, in numbers that it can hold, is numpy's.
    dtype = {7: jax.numpy.bfloat16, 10: np.float16}.get(params["mantissa_bits"])
    if dtype is None:
        return jax.lax.reduce_precision(x, **params)
    return x.astype(dtype).astype(x.dtype)


_RULES: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(getattr(np, name))
        for name in ("exp", "exp2", "log", "log1p", "expm1", "tanh", "sqrt", "square", "abs")
    },
    **{name: _plain(getattr(np, name)) for name in ("sign", "floor", "logical_not", "copysign")},
    **{name: _plain(getattr(operator, name)) for name in ("add", "sub", "mul", "neg")},
    **{name: _plain(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "add_any": _plain(operator.add),
    "div": lambda _, x, y: x // y if np.issubdtype(x.dtype, np.integer) else x / y,
    "max": _plain(np.maximum),
    "min": _plain(np.minimum),
    "pow": _plain(np.power),
    "integer_pow": _integer_pow,
    "rsqrt": lambda _, x: 1 / np.sqrt(x),
    "logistic": lambda _, x: 1 / (1 + np.exp(-x)),
    "and": _plain(operator.and_),
    "or": _plain(operator.or_),
    "xor": _plain(operator.xor),
    "not": _plain(np.invert),
    "is_finite": _plain(np.isfinite),
    "shift_left": _plain(operator.lshift),
    "shift_right_arithmetic": _plain(operator.rshift),
    "clamp": lambda _, low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": _select_n,
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "bitcast_convert_type": lambda params, x: np.ascontiguousarray(x).view(params["new_dtype"]),
    "reduce_precision": _reduce_precision,
    "optimization_barrier": lambda _, *xs: list(xs),
    "copy": _plain(np.copy),
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(x, params["dimensions"]),
    "transpose": lambda params, x: np.transpose(x, params["permutation"]),
    "rev": lambda params, x: np.flip(x, params["dimensions"]),
    "concatenate": lambda params, *xs: np.concatenate(xs, params["dimension"]),
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "split": _split,
    "iota": _iota,
    "reduce_sum": _reduce(np.sum),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_and": _reduce(np.all),
    "reduce_or": _reduce(np.any),
    "dot_general": _dot_general,
    "stop_gradient": _plain(np.copy),
}
