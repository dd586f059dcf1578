"""What the elementwise functions are, exactly, and how far a result is from it.

Two oracles that share no code with the library or with XLA: ``EXACT`` has the textbook formula in
100 digits, and mpmath differentiates it to any order; ``FLOAT64`` has the function and its first
two derivatives in numpy's float64, for sweeps over millions of float32 numbers.
``test_accuracy.py`` holds the second to the first.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

mp = mpmath.MPContext()
mp.dps = 100

FUNCTIONS = ("logit", "sigmoid", "log_sigmoid", "softplus", "log1mexp")
EXACT: dict[str, Callable[[Any], Any]] = {
    "logit": lambda p: mp.log(p / (1 - p)),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "log_sigmoid": lambda x: -mp.log(1 + mp.exp(-x)),
    "softplus": lambda x: mp.log(1 + mp.exp(x)),
    "log1mexp": lambda x: mp.log(1 - mp.exp(-x)),
}


def exact(name: str, x: float, order: int = 0) -> Any:
    """The function, or its derivative of this order, at the float ``x``."""
    x = mp.mpf(float(x))
    # Relative steps, because 1e-30 is a usual argument of logit and log1mexp.
    return mp.diff(EXACT[name], x, order, relative=x != 0)


# float64: each entry is the value and its first two derivatives, written so that nothing cancels.


def _sigmoid(x: np.ndarray) -> np.ndarray:
    t = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, t) / (1 + t)


def _slope(x: np.ndarray) -> np.ndarray:
    t = np.exp(-np.abs(x))
    return t / (1 + t) ** 2


def _logit(p: np.ndarray) -> np.ndarray:
    value = np.log(p) - np.log1p(-p)  # NaN outside [0, 1]
    near = (p >= 0.25) & (p <= 0.75)
    value[near] = 2 * np.arctanh(2 * p[near] - 1)
    return value


def _log1mexp(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, np.log(-np.expm1(-x)), np.log1p(-np.exp(-x)))


def _only(value: np.ndarray, where: np.ndarray) -> np.ndarray:
    return np.where(where, value, np.nan)


FLOAT64: dict[str, tuple[Callable[[np.ndarray], np.ndarray], ...]] = {
    "logit": (
        _logit,
        lambda p: _only(1 / np.abs(p * (1 - p)), (p >= 0) & (p <= 1)),
        lambda p: _only((2 * p - 1) / (p * (1 - p)) ** 2, (p >= 0) & (p <= 1)),
    ),
    "sigmoid": (_sigmoid, _slope, lambda x: -_slope(x) * np.tanh(x / 2)),
    "log_sigmoid": (
        lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
        lambda x: _sigmoid(-x),
        lambda x: -_slope(x),
    ),
    "softplus": (
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
        _sigmoid,
        _slope,
    ),
    "log1mexp": (
        _log1mexp,
        lambda x: _only(np.exp(-x) / -np.expm1(-x), x >= 0),
        lambda x: _only(-np.exp(-x) / np.expm1(-x) ** 2, x >= 0),
    ),
}


def float64(name: str, x: np.ndarray, order: int = 0) -> np.ndarray:
    """The function or its first or second derivative; subnormal arguments count as 0."""
    wide = _widened(x)
    if flushes(x.dtype):
        wide = np.where(np.abs(wide) < float(jnp.finfo(x.dtype).tiny), 0.0, wide)
    with np.errstate(all="ignore"):
        return FLOAT64[name][order](wide + 0.0)  # -0 is 0


def flushes(dtype: Any) -> bool:
    """Whether XLA:CPU takes this dtype's subnormals for 0; float16's are normal in float32."""
    return np.dtype(dtype) != np.float16


def _widened(x: np.ndarray) -> np.ndarray:
    """Numbers in float64, also signalling NaNs, which numpy warns about."""
    with np.errstate(invalid="ignore"):
        return x.astype(np.float64)


# Distances


class Worst(NamedTuple):
    """The largest error of a sweep, in ulp, and where it is."""

    ulps: float
    at: float


def ulps(got: Any, want: np.ndarray) -> np.ndarray:
    """Distance of results from float64 numbers, in units of the last place that ``want`` has.

    The unit is that of the dtype of ``got``, exactly: it doubles at each power of two. A result
    that should be NaN or infinite and isn't is infinitely far, and NaN for a number too. Overflow
    is compared as if the range went on by one power of two. float32 and bfloat16 results below the
    smallest normal number may be flushed, so nothing below it counts.
    """
    info = jnp.finfo(got.dtype)
    overflow = 2.0**info.maxexp
    value = _widened(np.asarray(got))
    capped = np.clip(want, -overflow, overflow)
    # The exponent alone: the largest power of two that isn't above |want|.
    power = (capped.view(np.uint64) & np.uint64(0x7FF << 52)).view(np.float64)
    unit = np.maximum(power, 2.0**info.minexp) * 2.0**-info.nmant
    with np.errstate(invalid="ignore"):
        error = np.abs(np.clip(value, -overflow, overflow) - capped) / unit
    error = np.where(np.isnan(error), np.inf, error)
    if flushes(got.dtype):
        tiny = 2.0**info.minexp
        error = np.where((np.abs(want) < tiny) & (np.abs(value) <= tiny), 0.0, error)
    special = ~np.isfinite(want)
    if special.any():
        same = (value == want) | (np.isnan(value) & np.isnan(want))
        error = np.where(special, np.where(same, 0.0, np.inf), error)
    return error


def ulps_from_exact(got: Any, want: Any) -> float:
    """Distance of one result from an mpmath number, in the same units."""
    info = jnp.finfo(got.dtype)
    unit = mp.ldexp(1, max(mp.mag(want) - 1, info.minexp) - info.nmant)
    return float(abs(mp.mpf(float(got)) - want) / unit)


def worst(errors: np.ndarray, x: np.ndarray) -> Worst:
    """The largest of the errors at the points ``x``."""
    i = int(np.argmax(errors))
    return Worst(float(errors[i]), float(x[i]))


# Inputs


def every(dtype: Any) -> np.ndarray:
    """All 65,536 numbers of a 16-bit dtype, infinities and NaN too."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


def strided(
    stride: int, offset: int = 0, bits: range = range(2**32), chunk: int = 2**20
) -> Iterator[np.ndarray]:
    """Every ``stride``-th float32 bit pattern of a range, in chunks of one length.

    The last chunk goes round to the beginning, so that a compiled function sees one shape.
    """
    count = len(bits[offset::stride])
    for start in range(0, count, chunk):
        index = np.arange(start, start + chunk, dtype=np.int64) % count
        yield (bits.start + offset + stride * index).astype(np.uint32).view(np.float32)


def derivatives(function: Callable[[jax.Array], jax.Array], orders: int) -> list[Any]:
    """An elementwise function and its derivatives up to ``orders``, each of an array."""
    found = [function]
    for _ in range(orders):
        found.append(jax.grad(found[-1]))
    return [found[0], *map(jax.vmap, found[1:])]
