"""Between a probability and its log-odds, and the logarithms that go with it.

The input is widened and the result rounded once; derivatives pass through the same two conversions.
"""

from __future__ import annotations

from jaxlogits._src.base import odds
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

    Accuracy: float32 1.1 ulp, derivatives 1.3 and 5.5; float64 1.25 ulp, derivatives 1.3 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Transforms: all, to any order.

    Example:
        >>> jl.logit(jnp.array([0.0, 0.25, 0.5, 0.75])).round(4)
        Array([   -inf, -1.0986,  0.    ,  1.0986], dtype=float32)
    """
    probs = as_floating("probs", probs)
    check_values("probs must be in [0, 1]", probs, (probs >= 0) & (probs <= 1), "at")
    return narrow(odds.logit(widen(probs)), probs)


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
    return narrow(odds.sigmoid(widen(logits)), logits)


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
    return narrow(-odds.softplus(-widen(logits)), logits)


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
    return narrow(odds.logitexp(widen(log_probs)), log_probs)


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
    return narrow(odds.softplus(widen(x)), x)


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
    return narrow(odds.log1mexp(widen(x)), x)
