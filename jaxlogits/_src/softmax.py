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
    """Logarithm of the sum of exponentials, log(sum_j exp(z_j)); its gradient is the softmax.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape of ``logits`` without ``axis``, in float32 or wider; -inf if all are masked.
    Accuracy: float32 3 ulp of max(1, |result|). Its gradient has the accuracy of softmax.

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
        logits: unnormalised log probabilities, floating point. A single +inf has probability 1.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``, True for the classes that count.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        The shape and dtype of ``logits``; masked classes are 0, even if that is the whole row.
    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. The gaps are the
        differences between logits; rounding one of them adds up to 1 ulp per unit of it.

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

    Args:
        logits, axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; masked classes are -inf.
    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. Otherwise 5 ulp of
        the largest gap.

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

    It is ``logit(softmax(logits))``, computed as z_i minus the logsumexp of the others, because p
    may round to 1; with two classes, the difference of their logits. ``sigmoid`` gives p back.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; -inf for masked classes, +inf for a class without others.
    Accuracy: float32 5 ulp of max(0.5, |result|) where the gaps are exact, derivative 5.

    Example:
        >>> jl.class_log_odds(jnp.array([3.0, 1.0]))
        Array([ 2., -2.], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    return rows.restore(log_odds_rows(rows.z, axis_name), masked=-jnp.inf)
