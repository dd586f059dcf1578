"""Derive every constant of ``jaxlogits/_src/base/exp_log.py``.

The polynomials are Chebyshev interpolants of a smooth function on an interval, computed in 60
digits and rounded to the working dtype; they are within a few per cent of the minimax polynomial.

Run: python benchmarks/minimax.py
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import numpy as np

Number = Any  # mpmath ships no types.
mpmath.mp.dps = 60


class Fit(NamedTuple):
    """A polynomial to derive: ``function`` on [low, high], of the degree that each dtype needs."""

    function: Callable[[Number], Number]
    low: Number
    high: Number
    degrees: dict[type[np.floating], int]


def exp_tail(r: Number) -> Number:
    """Q with exp(r) = 1 + r + r^2 Q(r)."""
    return mpmath.mpf("0.5") if r == 0 else (mpmath.expm1(r) - r) / r**2


def atanh_tail(z: Number) -> Number:
    """A with atanh(s) = s + s^3 A(s^2); log1p(f) is twice that at s = f / (2 + f)."""
    if z == 0:
        return mpmath.mpf(1) / 3
    s = mpmath.sqrt(z)
    return (mpmath.atanh(s) - s) / s**3


# The reduced argument of exp is at most log(2) / 2, and rounding may push it a bit past.
HALF_LOG2 = mpmath.log(2) / 2 * (1 + mpmath.mpf(2) ** -16)
FITS = {
    "EXP_TAIL": Fit(exp_tail, -HALF_LOG2, HALF_LOG2, {np.float32: 5, np.float64: 10}),
    # log1p(f) for f in [-0.3, 0.5]: s^2 is at most 1/25.
    "LOG_TAIL": Fit(atanh_tail, 0, mpmath.mpf("0.04"), {np.float32: 3, np.float64: 7}),
    # logit(p) for p in [1/4, 3/4]: s^2 is at most 1/4.
    "LOGIT_TAIL": Fit(atanh_tail, 0, mpmath.mpf("0.25"), {np.float32: 5, np.float64: 13}),
}


def coefficients(fit: Fit, dtype: type[np.floating]) -> tuple[np.floating, ...]:
    """The rounded coefficients, the constant term first."""
    count = fit.degrees[dtype] + 1
    middle, radius = (fit.low + fit.high) / 2, (fit.high - fit.low) / 2
    nodes = [middle + radius * mpmath.cospi((k + mpmath.mpf("0.5")) / count) for k in range(count)]
    powers = mpmath.matrix([[x**k for k in range(count)] for x in nodes])
    exact = mpmath.lu_solve(powers, mpmath.matrix([fit.function(x) for x in nodes]))
    return tuple(dtype(mpmath.nstr(c, 30)) for c in exact)


def largest_error(fit: Fit, rounded: tuple[np.floating, ...]) -> Number:
    """The largest distance of the rounded polynomial from its function."""
    powers = [mpmath.mpf(float(c)) for c in rounded]
    points = mpmath.linspace(fit.low, fit.high, 1001)
    return max(abs(sum(c * x**k for k, c in enumerate(powers)) - fit.function(x)) for x in points)


def split_log2(dtype: type[np.floating]) -> tuple[np.floating, np.floating]:
    """log(2) in two parts; the first so short that its product with any exponent is exact."""
    bits = np.finfo(dtype).nmant + 1 - (np.finfo(dtype).nexp + 1)
    high = mpmath.floor(mpmath.log(2) * 2**bits) / mpmath.mpf(2) ** bits
    return dtype(float(high)), dtype(mpmath.nstr(mpmath.log(2) - high, 30))


def main() -> None:
    """Print the constants in the form in which ``exp_log.py`` has them."""
    for dtype in (np.float32, np.float64):
        for name, fit in FITS.items():
            rounded = coefficients(fit, dtype)
            error = mpmath.nstr(largest_error(fit, rounded), 2)
            print(f"{name} {dtype.__name__}, largest error {error}:", *rounded, sep="\n    ")
        print(f"LOG2 {dtype.__name__}:", *split_log2(dtype), sep="\n    ")


if __name__ == "__main__":
    main()
