"""Random calls with arrays of several shapes, against float64: what ``fuzz.py`` has no rows for.

A target draws a ``Call`` from two generators, one that is the same for all cases of a setting, so
that few programs are compiled, and one of the case alone.
"""

import functools
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
SETTINGS = (
    ("jit", "float32"),
    ("grad", "float32"),
    ("eager", "bfloat16"),
    ("jvp", "float32"),
    ("vmap", "float64"),
    ("grad", "bfloat16"),
    ("jit", "float16"),
    ("grad", "float64"),
    ("eager", "float32"),
    ("jvp", "float64"),
)


class Call(NamedTuple):
    """A function of arrays by their names, and what it must give."""

    fn: Callable[..., Any]  # the same object for all calls that one program is for
    args: dict[str, Any]  # floating-point, each with a derivative
    others: dict[str, Any]  # integers and masks
    oracle: Callable[..., Any]  # of all in float64
    size: Array  # [N], of numbers whose rounding moves the result
    slope: Array  # [N], how fast they move along a direction of ones
    # Where the result is to be within a few roundings of itself, not of 1.
    is_relative: bool = False
    # [N], where a finite difference is the derivative.
    is_smooth: Any = True
    # Whether a row that is NaN spoils no gradient but its own, as in heads: functions of rows spoil
    # those of what all rows share, too.
    is_head: bool = False
    has_infinite_slopes: bool = False  # where its value is infinite, whatever that counts
    judge: Callable[[Any], str | None] | None = None  # of results that aren't numbers


Draw = Callable[[np.random.Generator, np.random.Generator, str], Call]


# Running one.


@functools.cache
def program(fn: Callable[..., Any], mode: str) -> Any:
    """Of arguments, a direction or weights of the results, and what isn't differentiated."""

    def numbers(args: Any, others: Any) -> Any:
        return _first(fn(**args, **others))

    def values(args: Any, _: Any, others: Any) -> Any:
        return fn(**args, **others)

    def batched(args: Any, _: Any, others: Any) -> Any:
        name = next(iter(args))
        result = jax.vmap(lambda x: fn(**{**args, name: x}, **others))(args[name][None])
        return jax.tree.map(lambda x: x[0], result)

    def along(args: Any, direction: Any, others: Any) -> Any:
        return jax.jvp(lambda args: numbers(args, others), [args], [direction])[1]

    def gradient(args: Any, weights: Any, others: Any) -> Any:
        return jax.vjp(lambda args: numbers(args, others), args)[1](weights)[0]

    if mode == "eager":
        return values
    return jax.jit({"jit": values, "vmap": batched, "jvp": along, "grad": gradient}[mode])


def _first(result: Any) -> Any:
    """The numbers of a result, which come first if there is more."""
    return result[0] if isinstance(result, tuple) else result


def problem(call: Call, mode: str, dtype: str, seed: int) -> str | None:
    """What is wrong with a call, or None."""
    exact = {name: np.asarray(x).astype(float) for name, x in call.args.items()}
    want = np.asarray(call.oracle(**exact, **call.others), float)
    if mode not in ("jvp", "grad"):
        result = program(call.fn, mode)(call.args, None, call.others)
        found = _bad_value(call, _first(result), want, dtype)
        return found or (call.judge(result) if call.judge else None)
    rng = np.random.default_rng(seed)
    signs = {k: rng.choice([-1.0, 0.5, 1.0], size=np.shape(x)) for k, x in exact.items()}
    slopes = _difference(call, exact, signs)
    smooth = np.isfinite(want) & np.isfinite(slopes)
    if want.ndim:
        smooth &= _of_rows(np.broadcast_to(call.is_smooth, want.shape[:1]), want.ndim)
    compare = _bad_tangents if mode == "jvp" else _bad_gradients
    return compare(call, dtype, rng, signs, _Exact(want, slopes, smooth))


class _Exact(NamedTuple):
    """What float64 says of a call, and where its difference is a derivative."""

    value: Array
    slopes: Array
    smooth: Array


def _bad_tangents(
    call: Call, dtype: str, _: np.random.Generator, signs: dict[str, Array], exact: _Exact
) -> str | None:
    low = {k: x.astype(np.asarray(call.args[k]).dtype) for k, x in signs.items()}
    got = np.asarray(program(call.fn, "jvp")(call.args, low, call.others)).astype(float)
    bad = np.isfinite(exact.value) & ~np.isfinite(got)
    if bad.any():
        return f"a derivative {got[bad][0]} of a finite value {exact.value[bad][0]}"
    allowed = _slack(call, dtype, got.ndim) + _rounding(dtype) * abs(exact.slopes)
    wrong = exact.smooth & ~(abs(got - exact.slopes) <= allowed)
    return _first_wrong(got, exact.slopes, wrong)


def _bad_gradients(
    call: Call, dtype: str, rng: np.random.Generator, signs: dict[str, Array], exact: _Exact
) -> str | None:
    """Of the sum of some results, in whose gradients the others leave no NaN."""
    use = exact.smooth if rng.random() < 0.7 else np.isfinite(exact.value)
    weights = np.where(use, rng.choice([-1.0, 0.5, 1.0], size=use.shape), 0.0)
    result = jax.eval_shape(lambda: _first(call.fn(**call.args, **call.others)))
    cotangents = jnp.asarray(weights, result.dtype)
    grads = program(call.fn, "grad")(call.args, cotangents, call.others)
    grads = {k: np.asarray(g).astype(float) for k, g in grads.items()}
    bad = ~np.isfinite(exact.value) if call.has_infinite_slopes else np.isnan(exact.value)
    own = bad.reshape(len(bad), -1).any(axis=1) if bad.ndim else np.atleast_1d(bad)
    for name in grads:
        is_of_rows = grads[name].ndim > 0 and grads[name].shape[0] == len(own) > 1
        if is_of_rows and (name == "weights" or not call.is_head):
            grads[name] = np.where(_of_rows(own, grads[name].ndim), 0.0, grads[name])
        elif own.any() and not call.is_head:
            continue
        g = grads[name]
        if np.isfinite(exact.value).any() and not np.isfinite(g).all():
            return f"a gradient in {name} that isn't finite, {g[~np.isfinite(g)][0]}"
    if np.any(use & ~exact.smooth) or not all(np.isfinite(g).all() for g in grads.values()):
        return None
    parts = np.where(use, weights * np.where(use, exact.slopes, 0.0), 0.0)
    terms = [np.sum(g * signs[k]) for k, g in grads.items()]
    sizes = [np.sum(abs(g * signs[k])) for k, g in grads.items()]
    allowed = np.broadcast_to(_slack(call, dtype, use.ndim), use.shape)[use].sum()
    allowed += _rounding(dtype) * (1 + np.sum(abs(parts)) + sum(sizes))
    if abs(sum(terms) - parts.sum()) <= allowed:
        return None
    return f"gradients along a direction {sum(terms)!r}, not {parts.sum()!r}"


def _of_rows(x: Array, ndim: int) -> Array:
    """[N] as [N, 1, ...]."""
    return x.reshape(-1, *[1] * (ndim - 1))


def _rounding(dtype: str) -> float:
    """Of gradients that come back in the dtype of the arguments."""
    return {"bfloat16": 2.0**-6, "float16": 2.0**-9}.get(dtype, 0.0)


def _slack(call: Call, dtype: str, ndim: int) -> Any:
    wide = 2.0**-40 if dtype == "float64" else 2.0**-17
    each = (2e-6 + wide + _rounding(dtype)) * (1 + call.slope * (1 + 2.0**-4 * call.size))
    return _of_rows(each, ndim) if ndim else each.sum()


def _difference(call: Call, at: dict[str, Array], along: dict[str, Array]) -> Array:
    """The derivative along a direction, by central differences of fourth order."""

    def moved(h: float) -> Array:
        args = {k: x + h * along[k] for k, x in at.items()}
        return np.asarray(call.oracle(**args, **call.others), float)

    h = 2e-5
    far, near = moved(2 * h) - moved(-2 * h), moved(h) - moved(-h)
    return (8 * near - far) / (12 * h)


def _bad_value(call: Call, result: Any, want: Array, dtype: str) -> str | None:
    got = np.asarray(result).astype(float)
    if got.shape != want.shape:
        return f"shape {got.shape}, not {want.shape}"
    wide = EPS["float64" if dtype == "float64" else "float32"]
    narrow = EPS[str(result.dtype)] if result.dtype.itemsize < 4 else 0.0
    size = _of_rows(call.size, want.ndim) if want.ndim else call.size.max()
    least = 0.0 if call.is_relative else 1.0
    allowed = 1e-37 + 64 * wide * (least + abs(want)) + narrow * abs(want) + 16 * wide * size
    wrong = ~((abs(got - want) <= allowed) | (got == want) | (np.isnan(got) & np.isnan(want)))
    return _first_wrong(got, want, wrong)


def _first_wrong(got: Array, want: Array, wrong: Array) -> str | None:
    if not wrong.any():
        return None
    at = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(wrong)))
    return f"{np.atleast_1d(got)[at]!r}, not {np.atleast_1d(want)[at]!r} at {at}"


def check(targets: dict[str, Draw], name: str, seed: int) -> list[str]:
    """What is wrong with one case, in a line that runs it again."""
    index = seed % len(SETTINGS)
    mode, dtype = SETTINGS[index]
    code = zlib.crc32(name.encode())
    generators = (np.random.default_rng([code, x]) for x in (index, seed))
    with jax.enable_x64(dtype == "float64"), np.errstate(all="ignore"):
        try:
            found = problem(targets[name](*generators, dtype), mode, dtype, seed)
        except Exception as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
    line = f"--only {name} --case {seed}  # {mode} {dtype}"
    return [] if found is None else [f"{line}: {found}"]
