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

    Args:
        probs: probabilities, floating point; 0 gives -inf, 1 gives +inf, outside [0, 1] NaN.

    Returns:
        The shape and dtype of ``probs``.
    Accuracy: float32 1.1 ulp, derivatives 1.3 and 5.5; float64 1.25 ulp, derivatives 1.3 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.

    Example:
        >>> jl.logit(jnp.array([0.0, 0.25, 0.5, 0.75])).round(4)
        Array([   -inf, -1.0986,  0.    ,  1.0986], dtype=float32)
    """
    probs = as_floating("probs", probs)
    check_values("probs must be in [0, 1]", probs, (probs >= 0) & (probs <= 1), "at")
    return narrow(odds.logit(widen(probs)), probs)


@program()
def sigmoid(logits: ArrayLike) -> Array:
    """Probability with these log-odds (expit), 1 / (1 + exp(-x)), the inverse of ``logit``.

    Args:
        logits: log-odds, floating point. 1 - sigmoid(x) is sigmoid(-x), which doesn't cancel.

    Returns:
        The shape and dtype of ``logits``.
    Accuracy: float32 1.5 ulp, derivatives 2.5 and 5.5; float64 1.25 ulp, derivatives 2.2 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.

    Example:
        >>> jl.sigmoid(jnp.array([-0.2, 0.0, 0.2])).round(2)
        Array([0.45, 0.5 , 0.55], dtype=float32)
    """
    logits = as_floating("logits", logits)
    check_no_nan("logits", logits)
    return narrow(odds.sigmoid(widen(logits)), logits)


@program()
def log_sigmoid(logits: ArrayLike) -> Array:
    """Logarithm of the sigmoid, log(sigmoid(x)) = -log(1 + exp(-x)), for log-odds of any size.

    Args:
        logits: log-odds, floating point; -inf gives -inf, +inf gives 0.

    Returns:
        The shape and dtype of ``logits``. The derivative is sigmoid(-x).
    Accuracy: float32 1.1 ulp, derivatives 1.5 and 2.5; float64 1.25 ulp, derivatives 1.25 and 2.2;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.

    Example:
        >>> jl.log_sigmoid(jnp.array([-100.0, 0.0, 2.0])).round(4)
        Array([-100.    ,   -0.6931,   -0.1269], dtype=float32)
    """
    logits = as_floating("logits", logits)
    check_no_nan("logits", logits)
    return narrow(-odds.softplus(-widen(logits)), logits)


@program()
def logitexp(log_probs: ArrayLike) -> Array:
    """Log-odds of a log probability, logit(exp(x)) = x - log(1 - exp(x)); inverts ``log_sigmoid``.

    Args:
        log_probs: floating point, at most 0; -inf gives -inf, 0 gives +inf, a number above 0 NaN.

    Returns:
        The shape and dtype of ``log_probs``. The derivative is 1 / (1 - exp(x)).
    Accuracy: float32 2 ulp, derivatives 2.5 and 5.5; bfloat16 and float16 0.501 ulp.

    Example:
        >>> jl.logitexp(jnp.array([-100.0, -0.5, 0.0])).round(4)
        Array([-100.    ,    0.4328,       inf], dtype=float32)
    """
    log_probs = as_floating("log_probs", log_probs)
    check_values("log_probs must be at most 0", log_probs, log_probs <= 0, "at")
    return narrow(odds.logitexp(widen(log_probs)), log_probs)


@program()
def softplus(x: ArrayLike) -> Array:
    """A smooth max(x, 0), log(1 + exp(x)); the binary cross entropy of log-odds x and label 0.

    Args:
        x: floating-point array; -inf gives 0, +inf gives +inf.

    Returns:
        The shape and dtype of ``x``. The derivative is sigmoid(x).
    Accuracy: float32 1.1 ulp, derivatives 1.5 and 2.5; float64 1.25 ulp, derivatives 1.25 and 2.2;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.

    Example:
        >>> jl.softplus(jnp.array([-2.0, 0.0, 100.0])).round(4)
        Array([  0.1269,   0.6931, 100.    ], dtype=float32)
    """
    x = as_floating("x", x)
    check_no_nan("x", x)
    return narrow(odds.softplus(widen(x)), x)


@program()
def log1mexp(x: ArrayLike) -> Array:
    """Log probability of the complement of an event with probability exp(-x), log(1 - exp(-x)).

    Args:
        x: minus a log probability, at least 0, as in ``jax.nn.log1mexp``; floating point.

    Returns:
        The shape and dtype of ``x``. The derivative is 1 / (exp(x) - 1).
    Accuracy: float32 1.35 ulp, derivatives 2.5 and 5.5; float64 1.25 ulp, derivatives 2.2 and 5;
        bfloat16 and float16 0.501 ulp, derivatives 0.501 and 0.501.
    Reference: Mächler, Accurately Computing log(1 - exp(-|a|)) (2012), equation 7.

    Example:
        >>> jl.log1mexp(jnp.array([0.0, 0.5, 3.0])).round(4)
        Array([   -inf, -0.9328, -0.0511], dtype=float32)
    """
    x = as_floating("x", x)
    check_values("x must be at least 0", x, x >= 0, "at")
    return narrow(odds.log1mexp(widen(x)), x)
