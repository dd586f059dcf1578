"""Run what JAX has traced with numpy, equation by equation, instead of compiling it.

A transform rewrites a program, and whether the rewritten one is right can be seen by running it in
any way. XLA takes seconds to compile what numpy runs in milliseconds. What XLA itself makes of the
programs is looked at beside it, once for each function: ``transforms.of_each_order`` compiles its
value, gradient and Hessian.

A primitive that isn't here is run by JAX, on its own.
"""

import math
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
        results = evaluate(closed, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return run


class Steps:
    """How many equations of up to 4096 numbers numpy may still compute."""

    def __init__(self, left: float) -> None:
        self.left = left


class TooManySteps(Exception):
    """Numpy has computed as many equations as it was given."""


_running: list[Steps] = []


def is_running() -> bool:
    """Whether JAX is called from here, for what numpy lacks."""
    return bool(_running)


def evaluate(closed: Any, args: Any, steps: Steps | None = None) -> Arrays:
    """What a traced program returns for these arguments."""
    _running.append(steps or Steps(math.inf))
    try:
        with np.errstate(all="ignore"):
            results = _closed(closed, args)
            return [_jax_keys(x, aval) for x, aval in zip(results, closed.out_avals, strict=True)]
    finally:
        _running.pop()


def _run(jaxpr: Any, consts: Any, args: Any) -> Arrays:
    values = {
        var: _like(value, var.aval)
        for var, value in zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)
    }

    def read(atom: Any) -> Any:
        return np.asarray(atom.val, atom.aval.dtype) if hasattr(atom, "val") else values[atom]

    for eqn in jaxpr.eqns:
        given = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in CALLS:
            results = _call(eqn, given)
        elif name in LOOPS:
            results = LOOPS[name](eqn, *given)
        elif name in RULES:
            made = RULES[name](eqn.params, *given)
            results = made if isinstance(made, list) else [made]
        else:
            arrays = [_jax(x, atom.aval) for x, atom in zip(given, eqn.invars, strict=True)]
            made = eqn.primitive.bind(*arrays, **eqn.params)
            results = made if eqn.primitive.multiple_results else [made]
        for var, result in zip(eqn.outvars, results, strict=True):
            values[var] = _like(result, var.aval)
            _running[-1].left -= 1 + math.prod(var.aval.shape) / 4096
        if _running[-1].left < 0:
            raise TooManySteps
    return [read(atom) for atom in jaxpr.outvars]


def _numpy(value: Any) -> Any:
    """A key is a number of 64 bits, so that arrays of keys are moved as others are."""
    if isinstance(value, jax.Array) and has_keys(value):
        return _key(*np.moveaxis(np.asarray(jax.random.key_data(value)), -1, 0))
    return np.asarray(value)


def _jax(value: Any, aval: Any) -> jax.Array:
    return jax.numpy.asarray(_jax_keys(value, aval))


def _jax_keys(value: Any, aval: Any) -> Any:
    if not has_keys(aval):
        return value
    return jax.random.wrap_key_data(np.stack(_halves(value), -1), impl="threefry2x32")


def has_keys(array: Any) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def _like(result: Any, aval: Any) -> Any:
    """What numpy has computed in the dtype that JAX says; a wrong shape is a mistake in here."""
    value = _numpy(result)
    assert value.shape == aval.shape, (value.shape, aval)
    return value if has_keys(aval) or value.dtype == aval.dtype else value.astype(aval.dtype)


# Programs within programs.

CALLS = {
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


LOOPS = {"scan": _scan, "while": _while, "cond": _cond}


# The primitives.


def _flushed(rule: Callable[..., Any]) -> Callable[..., Any]:
    """XLA:CPU computes without subnormal numbers."""

    def run(params: Any, *args: Any) -> Any:
        result = np.asarray(rule(params, *args))
        tiny = _TINY.get(result.dtype)
        if tiny is None:
            return result
        lost = (abs(result) < tiny) & (result != 0)
        return np.where(lost, np.copysign(0, result), result) if lost.any() else result

    return run


_TINY = {
    np.dtype(dtype): np.array(np.finfo(wide).tiny, dtype)
    for dtype, wide in ((jax.numpy.bfloat16, np.float32), (np.float32,) * 2, (np.float64,) * 2)
}


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *args: fn(*args)


def _reduce(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, x: fn(x, axis=tuple(params["axes"]))


def _extreme(fn: Callable[..., Any], sign: int) -> Callable[..., Any]:
    """A maximum or minimum: of no numbers it is the farthest one."""

    def run(params: Any, x: Any) -> Any:
        axes, kind = tuple(params["axes"]), x.dtype.kind
        if kind in "iu":
            info = np.iinfo(x.dtype)
            return fn(x, axis=axes, initial=info.min if sign > 0 else info.max)
        return fn(x, axis=axes, initial=sign < 0 if kind == "b" else x.dtype.type(-sign * np.inf))

    return run


def _accumulate(fn: Any) -> Callable[..., Any]:
    def run(params: Any, x: Any) -> Any:
        axis = params["axis"]
        if params["reverse"]:
            return np.flip(fn.accumulate(np.flip(x, axis), axis=axis), axis)
        return fn.accumulate(x, axis=axis)

    return run


def _div(_: Any, x: Any, y: Any) -> Any:
    if not np.issubdtype(x.dtype, np.integer):
        return x / y
    down = x // y  # and XLA's is towards 0
    return down + ((down * y != x) & ((x < 0) != (y < 0)))


def _pad(params: Any, x: Any, value: Any) -> Any:
    config = params["padding_config"]
    grown = [max(low, 0) + max(high, 0) for low, high, _ in config]
    spread = [n + max(n - 1, 0) * step for n, (*_, step) in zip(x.shape, config, strict=True)]
    padded = np.full([n + more for n, more in zip(spread, grown, strict=True)], value, x.dtype)
    places = (
        slice(max(low, 0), max(low, 0) + n, step + 1)
        for n, (low, _, step) in zip(spread, config, strict=True)
    )
    padded[tuple(places)] = x
    kept = (
        slice(max(-low, 0), n - max(-high, 0))
        for n, (low, high, _) in zip(padded.shape, config, strict=True)
    )
    return padded[tuple(kept)]


def _round(params: Any, x: Any) -> Any:
    to_even = int(params["rounding_method"]) == 1
    return np.round(x) if to_even else np.copysign(np.floor(abs(x) + 0.5), x)


def _shift_right_logical(_: Any, x: Any, by: Any) -> Any:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return (x.astype(unsigned) >> by.astype(unsigned)).astype(x.dtype)


def _extremum_index(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, x: fn(x, axis=params["axes"][0])


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


def _wide(x: Any) -> Any:
    """Numbers in which XLA:CPU adds: those of half precision are widened."""
    return x.astype(np.float32) if x.dtype.itemsize < 4 and x.dtype.kind in "fV" else x


def _reduce_sum(params: Any, x: Any) -> Any:
    return np.sum(_wide(x), axis=tuple(params["axes"]), dtype=_wide(x).dtype)


def _dot_general(params: Any, a: Any, b: Any) -> Any:
    (over_a, over_b), (batch_a, batch_b) = params["dimension_numbers"]
    free_a = [i for i in range(a.ndim) if i not in (*over_a, *batch_a)]
    free_b = [j for j in range(b.ndim) if j not in (*over_b, *batch_b)]
    shape = [a.shape[i] for i in (*batch_a, *free_a)] + [b.shape[j] for j in free_b]
    batch, length = [a.shape[i] for i in batch_a], math.prod(a.shape[i] for i in over_a)
    rows, columns = (math.prod(x.shape[i] for i in f) for x, f in ((a, free_a), (b, free_b)))
    left = a.transpose(*batch_a, *free_a, *over_a).reshape(*batch, rows, length)
    right = b.transpose(*batch_b, *over_b, *free_b).reshape(*batch, length, columns)
    wide = _wide(np.empty(0, params["preferred_element_type"] or a.dtype)).dtype
    return np.matmul(left.astype(wide), right.astype(wide)).reshape(shape)


def _reduce_precision(params: Any, x: Any) -> Any:
    # A half-precision dtype's rounding, in numbers that it can hold, is numpy's.
    dtype = {7: jax.numpy.bfloat16, 10: np.float16}.get(params["mantissa_bits"])
    if dtype is None:
        return jax.lax.reduce_precision(x, **params)
    return x.astype(dtype).astype(x.dtype)


# Keys and random bits, those of threefry, which JAX takes if it isn't told otherwise.


def _key(high: Any, low: Any) -> Any:
    return high.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)


def _halves(numbers: Any) -> tuple[Any, Any]:
    return (numbers >> np.uint64(32)).astype(np.uint32), numbers.astype(np.uint32)


def _threefry(key_1: Any, key_2: Any, x: Any, y: Any) -> list[Any]:
    keys = (key_1, key_2, key_1 ^ key_2 ^ np.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = x + y
            y = (y << np.uint32(turn) | y >> np.uint32(32 - turn)) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return [x, y]


def _counts(shape: Any) -> tuple[Any, Any]:
    return _halves(np.arange(math.prod(shape), dtype=np.uint64).reshape(shape))


def _hashed(keys: Any, shape: Any) -> list[Any]:
    """Two numbers of 32 bits for each key and each place in this shape."""
    return _threefry(*_halves(keys.reshape(keys.shape + (1,) * len(shape))), *_counts(shape))


def _random_bits(params: Any, keys: Any) -> Any:
    high, low = _hashed(keys, params["shape"])
    width = params["bit_width"]
    return _key(high, low) if width == 64 else (high ^ low).astype(f"u{width // 8}")


def _random_seed(_: Any, seeds: Any) -> Any:
    return seeds.astype(np.uint64) if seeds.itemsize == 8 else seeds.astype(np.uint32).astype("u8")


def _fold_in(_: Any, keys: Any, data: Any) -> Any:
    data = data.astype(np.uint32)
    return _key(*_threefry(*_halves(keys), np.zeros_like(data), data))


RULES: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(getattr(np, name))
        for name in ("exp", "exp2", "log", "log1p", "expm1", "tanh", "sqrt", "square", "abs")
    },
    **{
        name: _plain(getattr(np, name))
        for name in ("sign", "floor", "ceil", "sin", "cos", "logical_not", "nextafter")
    },
    **{name: _plain(getattr(operator, name)) for name in ("add", "sub", "mul", "neg")},
    **{name: _plain(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "add_any": _plain(operator.add),
    "div": _div,
    "rem": lambda _, x, y: np.where(y == 0, np.nan if x.dtype.kind == "f" else x, np.fmod(x, y)),
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
    "shift_right_logical": _shift_right_logical,
    "shift_right_arithmetic": _plain(operator.rshift),
    "round": _round,
    "clamp": lambda _, low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": _select_n,
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "bitcast_convert_type": lambda params, x: x.copy(order="C").view(params["new_dtype"]),
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
    "pad": _pad,
    "stack": lambda params, *xs: np.stack(xs, params["axis"]),
    "unstack": lambda params, x: list(np.moveaxis(x, params["axis"], 0)),
    "iota": _iota,
    "reduce_sum": _reduce_sum,
    "reduce_max": _extreme(np.max, 1),
    "reduce_min": _extreme(np.min, -1),
    "reduce_prod": _reduce(np.prod),
    "argmax": _extremum_index(np.argmax),
    "argmin": _extremum_index(np.argmin),
    "cumsum": _accumulate(np.add),
    "cummax": _accumulate(np.maximum),
    "cumlogsumexp": _accumulate(np.logaddexp),
    "reduce_and": _reduce(np.all),
    "reduce_or": _reduce(np.any),
    "dot_general": _dot_general,
    "stop_gradient": _plain(np.copy),
    "threefry2x32": _plain(_threefry),
    "iota_2x32_shape": lambda params: list(_counts(params["shape"])),
    "random_wrap": lambda _, x: _key(*np.moveaxis(x, -1, 0)),
    "random_unwrap": lambda _, x: np.stack(_halves(x), -1),
    "random_seed": _random_seed,
    "random_bits": _random_bits,
    "random_split": lambda params, x: _key(*_hashed(x, params["shape"])),
    "random_fold_in": _fold_in,
}

for _name in (
    *("exp", "exp2", "log", "log1p", "expm1", "tanh", "sqrt", "square", "add", "sub", "mul", "div"),
    *("add_any", "pow", "integer_pow", "rsqrt", "logistic", "reduce_sum", "dot_general"),
    *("convert_element_type", "reduce_precision"),
):
    RULES[_name] = _flushed(RULES[_name])
