"""Between a probability and its log-odds, and the logarithms that go with it.

Each private function has a rule with the closed form of its derivative, and the closed forms are
functions with rules of their own:

    sigmoid' = slope            slope' = -slope tanh(x/2)     tanh(x/2)' = 2 slope
    softplus' = sigmoid         logit' = |1/p + 1/(1-p)| = r  r' = (2p - 1) r^2
    log1mexp' = 1/expm1 = g     g' = -g (1 + g)               logitexp' = 1 + g(-x)

so every order is as accurate as the first. They compute in float32 or float64; the public functions
widen the input and round the result once, and derivatives pass through the same two conversions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxlogits._src.base import exp_log as el
from jaxlogits._src.base.checks import as_floating, check_no_nan, check_values
from jaxlogits._src.base.dtypes import Array, ArrayLike, narrow, widen
from jaxlogits._src.base.program import program


@program()
def logit(probs: ArrayLike) -> Array:
    """Log-odds of a probability, log(p / (1 - p)), the inverse of ``sigmoid``.

    For p in [1/4, 3/4] it is 2 atanh(2p - 1), whose argument is exact; p / (1 - p) is all rounding
    error near 1/2. Elsewhere it is the logarithm of the quotient, with what the rounding of 1 - p
    leaves out.

    Args:
        probs: floating-point array of probabilities. 0 gives -inf, 1 gives +inf, anything outside
            [0, 1] gives NaN; the derivative is +inf at 0 and 1 and NaN outside. A subnormal
            probability counts as 0.

    Returns:
        The shape and dtype of ``probs``.

    Raises:
        TypeError: if ``probs`` isn't floating point.
        ValueError: inside ``checked``, for a probability outside [0, 1].

    Accuracy: float32 1.1 ulp, derivatives 1.3 and 5.5; float64 1.25 ulp, derivatives 1.3 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Transforms: all, to any order.

    Example:
        >>> jl.logit(jnp.array([0.0, 0.25, 0.5, 0.75])).round(4)
        Array([   -inf, -1.0986,  0.    ,  1.0986], dtype=float32)
    """
    probs = as_floating("probs", probs)
    check_values("probs must be in [0, 1]", probs, (probs >= 0) & (probs <= 1), "at")
    return narrow(_logit(widen(probs)), probs)


@program()
def sigmoid(logits: ArrayLike) -> Array:
    """Probability with these log-odds, 1 / (1 + exp(-x)), the inverse of ``logit``.

    Computed from exp(-|x|), which never overflows, with one Newton step after the division. Its
    derivative is s(-x) s(x) from the smaller side: s (1 - s) is 0 for all x >= 17.

    Args:
        logits: floating-point array of log-odds. -inf gives 0, +inf gives 1, NaN gives NaN. For the
            complement 1 - sigmoid(x) write sigmoid(-x), which doesn't cancel.

    Returns:
        The shape and dtype of ``logits``.

    Accuracy: float32 1.5 ulp, derivatives 2.5 and 5.5; float64 1.25 ulp, derivatives 2.2 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Transforms: all, to any order.

    Example:
        >>> jl.sigmoid(jnp.array([-0.2, 0.0, 0.2])).round(2)
        Array([0.45, 0.5 , 0.55], dtype=float32)
    """
    logits = as_floating("logits", logits)
    check_no_nan("logits", logits)
    return narrow(wide_sigmoid(widen(logits)), logits)


@program()
def log_sigmoid(logits: ArrayLike) -> Array:
    """Log-probability with these log-odds, log(sigmoid(x)) = -log(1 + exp(-x)).

    It is -softplus(-x), since sigmoid(x) is 0 or 1 long before its logarithm is.

    Args:
        logits: floating-point array of log-odds. -inf gives -inf, +inf gives 0, NaN gives NaN.

    Returns:
        The shape and dtype of ``logits``.

    Accuracy: float32 1.1 ulp, derivatives 1.5 and 2.5; float64 1.25 ulp, derivatives 1.25 and 2.2;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Transforms: all, to any order; the derivative is sigmoid(-x).

    Example:
        >>> jl.log_sigmoid(jnp.array([-100.0, 0.0, 2.0])).round(4)
        Array([-100.    ,   -0.6931,   -0.1269], dtype=float32)
    """
    logits = as_floating("logits", logits)
    check_no_nan("logits", logits)
    return narrow(-_softplus(-widen(logits)), logits)


@program()
def logitexp(log_probs: ArrayLike) -> Array:
    """Log-odds of a probability given by its logarithm, logit(exp(x)) = x - log(1 - exp(x)).

    The inverse of ``log_sigmoid``. Where the probability is close to 1/2 it is 2 atanh(2 p - 1),
    with 2 p - 1 = exp(x + log 2) - 1: the difference of two logarithms would be all rounding error.

    Args:
        log_probs: floating-point array, at most 0. -inf gives -inf, 0 gives +inf with derivative
            +inf, and a number above 0 gives NaN. A subnormal number counts as 0.

    Returns:
        The shape and dtype of ``log_probs``.

    Accuracy: float32 2 ulp, derivatives 2.5 and 5.5; bfloat16 and float16 0.501 ulp.
    Transforms: all, to any order; the derivative is 1 / (1 - exp(x)).

    Example:
        >>> jl.logitexp(jnp.array([-100.0, -0.5, 0.0])).round(4)
        Array([-100.    ,    0.4328,       inf], dtype=float32)
    """
    log_probs = as_floating("log_probs", log_probs)
    check_values("log_probs must be at most 0", log_probs, log_probs <= 0, "at")
    return narrow(_logitexp(widen(log_probs)), log_probs)


@program()
def softplus(x: ArrayLike) -> Array:
    """A smooth max(x, 0): log(1 + exp(x)).

    Computed as max(x, 0) + log1p(exp(-|x|)), which neither overflows nor loses the small end. It is
    the loss of a yes/no question with log-odds x to which the answer was no.

    Args:
        x: floating-point array. -inf gives 0, +inf gives +inf, NaN gives NaN.

    Returns:
        The shape and dtype of ``x``.

    Accuracy: float32 1.1 ulp, derivatives 1.5 and 2.5; float64 1.25 ulp, derivatives 1.25 and 2.2;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Transforms: all, to any order; the derivative is sigmoid(x).

    Example:
        >>> jl.softplus(jnp.array([-2.0, 0.0, 100.0])).round(4)
        Array([  0.1269,   0.6931, 100.    ], dtype=float32)
    """
    x = as_floating("x", x)
    check_no_nan("x", x)
    return narrow(_softplus(widen(x)), x)


@program()
def log1mexp(x: ArrayLike) -> Array:
    """Logarithm of the complement of a probability exp(-x): log(1 - exp(-x)).

    From 1 - exp(-x) with its rounding error where exp(-x) is large, from log1p(-exp(-x)) where it
    is small. The sign is that of ``jax.nn.log1mexp``: pass minus a log-probability.

    Args:
        x: floating-point array of numbers that aren't negative. 0 gives -inf, with derivative +inf;
            +inf gives 0; a negative number gives NaN. A subnormal number counts as 0.

    Returns:
        The shape and dtype of ``x``.

    Accuracy: float32 1.35 ulp, derivatives 2.5 and 5.5; float64 1.25 ulp, derivatives 2.2 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Transforms: all, to any order; the derivative is 1 / (exp(x) - 1).
    Reference: Mächler, Accurately Computing log(1 - exp(-|a|)), 2012, eq. 7, for the two ranges.

    Example:
        >>> jl.log1mexp(jnp.array([0.0, 0.5, 3.0])).round(4)
        Array([   -inf, -0.9328, -0.0511], dtype=float32)
    """
    x = as_floating("x", x)
    check_values("x must be at least 0", x, x >= 0, "at")
    return narrow(_log1mexp(widen(x)), x)


# log(2) less itself rounded to the dtype, from mpmath: mp.log(2) - mp.mpf(float(dtype(np.log(2)))).
_LOG2_LESS_ROUNDED = {"float32": -1.904654299957e-09, "float64": 2.3190468138462996e-17}


@jax.custom_jvp
def _logit(p: Array) -> Array:
    low_half = p < 0.5
    complement = 1 - p
    small = jnp.where(low_half, p, complement)
    large = jnp.where(low_half, complement, p)
    # What the rounding of 1 - p leaves out; nothing where p is the larger one.
    left_out = jnp.where(low_half, (1 - large) - p, 0)
    n, _, f = el.log_parts(small / large)
    size = -el.log_sum(n, f, -left_out * (1 + small) * (1 + f))
    at_edge = jnp.where(small >= 0, jnp.inf, jnp.nan)
    size = jnp.where(el.counts_as_zero(small), at_edge, size)
    middle = el.twice_atanh(2 * p - 1)
    return jnp.where(small >= 0.25, middle, jnp.where(low_half, -size, size))


@jax.custom_jvp
def _logit_slope(p: Array) -> Array:
    # 1 / p + 1 / (1 - p), and 4 / (1 - s^2) with an exact s = 2p - 1 where its terms are alike.
    s = 2 * p - 1
    middle = jnp.abs(s) <= 0.5
    larger = jnp.where(middle, 0, 1 / p)
    slope = jnp.abs(larger + 1 / jnp.where(middle, 0.25 - 0.25 * (s * s), 1 - p))
    return jnp.where((p >= 0) & (p <= 1), slope, jnp.nan)


@jax.custom_jvp
def wide_sigmoid(x: Array) -> Array:
    exp = el.exp_parts(-jnp.abs(x))
    t = exp.scale * (1 + exp.p)
    return _divided(jnp.where(x < 0, t, 1), exp)


@jax.custom_jvp
def _sigmoid_slope(x: Array) -> Array:
    small = _small_sigmoid(x)
    return small - small * small


@jax.custom_jvp
def tanh_half(x: Array) -> Array:
    exp = el.exp_parts(-jnp.abs(x))
    numerator, _ = el.complement(exp)
    return jnp.copysign(numerator / (1 + exp.scale * (1 + exp.p)), x)


def _small_sigmoid(x: Array) -> Array:
    """sigmoid(-|x|)."""
    exp = el.exp_parts(-jnp.abs(x))
    return _divided(exp.scale * (1 + exp.p), exp)


def _divided(numerator: Array, exp: el.Exp) -> Array:
    """numerator / (1 + t) for t = exp(-|x|), with a Newton step."""
    t = exp.scale * (1 + exp.p)
    y = numerator * (1 / ((1 + exp.scale) + exp.scale * exp.p))
    # The step's factor is 1 / (1 + t) to within 13 %, and exact for small t. Using the reciprocal
    # again would cost the fusion: XLA takes a division for too expensive to have two readers, and
    # breaks the loop in two there.
    return y + ((numerator - y) - y * t) * (1 - 0.5 * t)


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    t, low = el.exp_rounded(el.exp_parts(-jnp.abs(x)))
    big = t > 0.5
    f = jnp.where(big, (t - 1) * 0.5, t)
    tail = el.log1p_tail(f, jnp.where(big, low * 0.5, low))
    positive = jnp.maximum(x, 0)
    base, left_out = el.add_log2(positive)
    return jnp.where(big, base, positive) + (f + (tail + jnp.where(big, left_out, 0)))


@jax.custom_jvp
def _log1mexp(x: Array) -> Array:
    exp = el.exp_parts(-x)
    u, u_low = el.complement(exp)
    n, unscale, f = el.log_parts(u)
    # Without an exponent to take out, 1 + f is 1 - exp(-x), and f needs no subtraction.
    t, t_low = el.exp_rounded(exp)
    f = jnp.where(n == 0, -t, f)
    low = jnp.where(n == 0, -t_low, u_low * unscale)
    value = el.log_sum(n, f, low)
    value = jnp.where(el.counts_as_zero(u), -jnp.inf, value)
    return jnp.where(x >= 0, value, jnp.nan)


@jax.custom_jvp
def _logitexp(x: Array) -> Array:
    # x + log(2) has all digits near -log(2), but for what the rounding of log(2) leaves out.
    is_middle = (x > -1.0) & (x < -0.375)
    high = float(np.asarray(np.log(2.0), x.dtype))
    low = _LOG2_LESS_ROUNDED[x.dtype.name]
    s = el.exp_parts(jnp.where(is_middle, x, -high) + high).p  # so small that its exponent is 0
    middle = el.twice_atanh(s + (1 + s) * low)
    finite = jnp.where(x == -jnp.inf, 0.0, _log1mexp(-x))
    return jnp.where(is_middle, middle, x - finite)


@jax.custom_jvp
def _log1mexp_slope(x: Array) -> Array:
    exp = el.exp_parts(-x)
    u, _ = el.complement(exp)
    return jnp.where(x >= 0, exp.scale * (1 + exp.p) / u, jnp.nan)


def _define(function: jax.custom_jvp[Array], slope: Callable[[Array], Array]) -> None:
    """Give the function its derivative in closed form."""

    @function.defjvp
    def rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (x,), (dx,) = primals, tangents
        return function(x), slope(x) * dx


_define(_logit, _logit_slope)
_define(_logit_slope, lambda p: (2 * p - 1) * _logit_slope(p) ** 2)
_define(wide_sigmoid, _sigmoid_slope)
_define(_sigmoid_slope, lambda x: -_sigmoid_slope(x) * tanh_half(x))
_define(tanh_half, lambda x: 2 * _sigmoid_slope(x))
_define(_softplus, wide_sigmoid)
_define(_log1mexp, _log1mexp_slope)
_define(_logitexp, lambda x: 1 + _log1mexp_slope(-x))
_define(_log1mexp_slope, lambda x: -_log1mexp_slope(x) * (1 + _log1mexp_slope(x)))
