"""Softmax and what belongs to it: logsumexp, log_softmax and the log-odds of each class."""

from __future__ import annotations

import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName
from jaxlogits._src.base.program import program
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.rows.rows import reduced, rows_of
from jaxlogits._src.rows.softmax import (
    log_odds_rows,
    log_softmax_rows,
    logsumexp_rows,
    softmax_rows,
)


@program("axis", "axis_name")
@on_explicit_mesh(logits="rows classes", where="rows classes", result="rows")
def logsumexp(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Logarithm of the sum of exponentials, log(sum_j exp(z_j)).

    Computed as m + log1p(rest) with the maximum m and the sum of exp(z_j - m) over all classes but
    one maximum.

    Args:
        logits: floating-point array. +inf gives +inf, -inf counts as no class, NaN gives NaN.
        axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape of ``logits`` without ``axis``, in float32 or wider. A row without a class that
        counts is -inf, with gradient 0; a row with several +inf is +inf, with gradient NaN.

    Accuracy: float32 3 ulp of max(1, |result|). Its gradient has the accuracy of softmax.
    Transforms: all, to any order; the gradient is the softmax.

    Example:
        >>> jl.logsumexp(jnp.array([0.0, 0.0])).round(4)
        Array(0.6931, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    return reduced(lambda z: logsumexp_rows(z, axis_name), rows, wide=False, empty=-jnp.inf)


@program("axis", "axis_name")
@on_explicit_mesh(logits="rows classes", where="rows classes", result="rows classes")
def softmax(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Probabilities of the classes, p_i = exp(z_i) / sum_j exp(z_j).

    Args:
        logits: floating-point array of unnormalised log probabilities. A single +inf takes all of
            the probability; two of them, or NaN, make their row NaN; -inf has probability 0.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``, True for the classes that count.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        The shape and dtype of ``logits``; masked classes are 0, and so is a row that is masked as a
        whole. A row of -inf alone is NaN.

    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. A gap that is
        rounded adds up to 1 ulp for each unit of it.
    Transforms: all, to any order. The derivative of a probability close to 1 is as accurate as that
        of a small one: it never forms 1 - p.

    Example:
        >>> jl.softmax(jnp.array([2.0, 1.0, 0.0])).round(4)
        Array([0.6652, 0.2447, 0.09  ], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    return rows.restore(softmax_rows(rows.logits, axis_name), masked=0.0)


@program("axis", "axis_name")
@on_explicit_mesh(logits="rows classes", where="rows classes", result="rows classes")
def log_softmax(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Log probabilities of the classes, log p_i = z_i - log(sum_j exp(z_j)).

    Computed as (z_i - m) - log1p(rest), which is right for the likeliest class too: log p of a
    class with p = 1 - 1e-20 is -1e-20, not 0.

    Args:
        logits: floating-point array of unnormalised log probabilities. A single +inf takes all of
            the probability; two of them, or NaN, make their row NaN.
        axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; masked classes are -inf. A row of -inf alone is NaN.

    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. Otherwise 5 ulp of
        the largest gap.
    Transforms: all, to any order.

    Example:
        >>> jl.log_softmax(jnp.array([20.0, 0.0]))
        Array([-2.0611537e-09, -2.0000000e+01], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    return rows.restore(log_softmax_rows(rows.logits, axis_name), masked=-jnp.inf)


@program("axis", "axis_name")
@on_explicit_mesh(logits="rows classes", where="rows classes", result="rows classes")
def class_log_odds(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Log-odds of each class against all others, log(p_i / (1 - p_i)) with p = softmax(logits).

    The bridge between the two meanings of logit: what one gets by applying the logit function to
    the softmax probabilities, and ``sigmoid`` brings those back. For two classes it is z_1 - z_0.
    Computed from the logits, as z_i minus the logsumexp of the others, since p rounds to 1.

    Args:
        logits: floating-point array of unnormalised log probabilities. A single +inf has log-odds
            +inf, -inf has -inf; two +inf, or NaN, make their row NaN.
        axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; masked classes are -inf. A sole class is +inf.

    Accuracy: float32 5 ulp of max(0.5, |result|) where the gaps are exact, derivative 5.
    Transforms: all, to any order.

    Example:
        >>> jl.class_log_odds(jnp.array([3.0, 1.0]))
        Array([ 2., -2.], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    return rows.restore(log_odds_rows(rows.z, axis_name), masked=-jnp.inf)
