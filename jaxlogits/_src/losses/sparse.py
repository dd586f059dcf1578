"""Softmax's sparse relatives, which give exactly 0 to most classes, and their losses.

The alpha-entmax family leads from softmax (alpha = 1) to sparsemax (alpha = 2). Its loss does what
cross entropy does for softmax: its gradient is p - y.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import row_any
from jaxlogits._src.rows.entmax import entmax_rows
from jaxlogits._src.rows.entmax_loss import entmax_loss_rows
from jaxlogits._src.rows.rows import Rows, reduced, rows_of
from jaxlogits._src.rows.softmax import softmax_rows
from jaxlogits._src.rows.targets import one_hot_rows, target_rows


@program("axis", "axis_name")
@on_explicit_mesh(logits="rows classes", where="rows classes", result="rows classes")
def sparsemax(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Sparse softmax, the Euclidean projection onto the simplex: max(z_i - tau, 0), with sum 1.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; masked classes are 0.
    Accuracy: float32 3e-7 absolute.
    Transforms: at the edge of the support, where z = tau, the derivative is 0.
    Reference: Martins and Astudillo, From Softmax to Sparsemax (2016), equation 2.

    Example:
        >>> jl.sparsemax(jnp.array([1.0, 0.5, -1.0]))
        Array([0.75, 0.25, 0.  ], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    one = jnp.ones([], rows.z.dtype)
    return rows.restore(entmax_rows(rows.z, one, 1, axis_name), 0.0)


@program("axis", "axis_name", alpha=Option(Range(1), off=(1, 1.5, 2)))
@on_explicit_mesh(logits="rows classes", where="rows classes", alpha="rows", result="rows classes")
def entmax(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    alpha: ArrayLike = 1.5,
) -> Array:
    """alpha-entmax, p_i = max((alpha - 1) z_i - tau, 0)**(1 / (alpha - 1)), where the p_i sum to 1.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.
        alpha: at least 1, a number or one per row; may be learned. 1 is softmax, 2 is sparsemax.

    Returns:
        The shape and dtype of ``logits``; masked classes are 0.
    Accuracy: float32 1e-6 for alpha up to 2, above it 1e-7**(1 / (alpha - 1)) at the support edge.
    Transforms: derivatives up to the order that the power has; 0 at the edge of the support.
    Reference: Correia et al., Adaptively Sparse Transformers (2019), equation 10 and section 3.2.

    Example:
        >>> jl.entmax(jnp.array([2.0, 0.0, -1.0]), alpha=1.25).round(4)
        Array([0.94159997, 0.0554    , 0.0031    ], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    a, power = _order(rows, alpha)
    if power is None:
        return rows.restore(softmax_rows(rows.z, axis_name), 0.0)
    return rows.restore(entmax_rows(rows.z, a, power, axis_name), 0.0)


@program("axis", "axis_name", alpha=Option(Range(1), off=(1, 1.5, 2)))
@on_explicit_mesh(
    logits="rows classes",
    labels="rows classes",
    where="rows classes | rows",
    alpha="rows",
    result="rows",
)
def entmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    alpha: ArrayLike = 1.5,
) -> Array:
    """Entmax's Fenchel–Young loss for dense targets, whose gradient is entmax(logits) - labels.

    O(y) + sum_k (p_k - y_k) z_k - O(p) with p = entmax(z, alpha) and Tsallis's negative entropy
    O(p) = sum_k (p_k**alpha - p_k) / (alpha (alpha - 1)). At alpha = 1 it is KL(labels || softmax).

    Args:
        logits, axis, where, axis_name: as in ``softmax_cross_entropy``.
        labels: target probabilities, which sum to 1, in the shape of ``logits``.
        alpha: at least 1, as in ``entmax``.

    Returns:
        One loss per row: the shape of ``logits`` without ``axis``, in float32 or wider; at least 0.
    Accuracy: float32 1e-6 of max(1, loss) for alpha up to 2; gradient 1e-6 absolute.
    Transforms: as for ``entmax``; in the labels, along directions that keep their sum.
    Reference: Blondel et al., Learning with Fenchel–Young Losses (2020), table 1.

    Example:
        >>> jl.entmax_loss(jnp.array([2.0, 0.0, -1.0]), jnp.array([0.75, 0.25, 0.0])).round(4)
        Array(0.1994, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    return _loss(rows, target_rows(rows, labels, "entmax_loss_with_integer_labels"), alpha)


@program("axis", "axis_name", alpha=Option(Range(1), off=(1, 1.5, 2)))
@on_explicit_mesh(
    logits="rows classes", labels="rows", where="rows classes | rows", alpha="rows", result="rows"
)
def entmax_loss_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    alpha: ArrayLike = 1.5,
) -> Array:
    """Entmax's loss for class indices, whose gradient is entmax(logits) - one_hot(labels).

    ``entmax_loss`` of one-hot targets; at alpha = 1 the cross entropy. For alpha above 1 it is
    exactly 0, with gradient 0, where the label's logit leads all others by 1 / (alpha - 1).

    Args:
        logits, labels, axis, where, axis_name: as in ``softmax_cross_entropy_with_integer_labels``.
        alpha: at least 1, as in ``entmax``.

    Returns:
        One loss per row: the shape of ``labels``, in float32 or wider; at least 0.
    Accuracy: float32 1e-6 of max(1, loss) for alpha up to 2; gradient 1e-6 absolute.
    Transforms: as for ``entmax``.
    Reference: Peters et al., Sparse Sequence-to-Sequence Models (2019), equation 13.

    Example:
        >>> jl.entmax_loss_with_integer_labels(jnp.array([1.0, 0.0, -1.0]), jnp.array(0)).round(4)
        Array(0.0617, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    return _loss(rows, one_hot_rows(rows, labels, "entmax_loss"), alpha)


def _order(rows: Rows, alpha: ArrayLike) -> tuple[Array, int | None]:
    """alpha - 1 for each row; the power it stands for if that is known, and None for softmax."""
    known = {1: None, 1.5: 2, 2: 1}
    power = known.get(alpha, 0) if isinstance(alpha, int | float) else 0
    return rows.option("alpha", alpha) - 1.0, power


def _loss(rows: Rows, targets: Array, alpha: ArrayLike) -> Array:
    """The loss of each row; NaN in one target is NaN in all of the row's gradient."""
    a, power = _order(rows, alpha)
    unknown = row_any(~(targets >= 0), rows.axis_name)
    targets = jnp.where(unknown, jnp.nan, targets)
    return reduced(lambda z: entmax_loss_rows(z, targets, a, power or 0, rows.axis_name), rows)
