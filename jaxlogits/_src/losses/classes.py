"""Losses of one class among many: cross entropy, focal and poly.

Every loss is one value per example; the caller writes ``.mean()``. Integer labels and dense targets
are two functions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, widen
from jaxlogits._src.base.products import times, weigh
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.base.rules import derivatives
from jaxlogits._src.losses.focal import focal
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.nll import nll
from jaxlogits._src.rows.rows import Rows, reduced, rows_of
from jaxlogits._src.rows.softmax import log_softmax_rows, softmax_complement_rows
from jaxlogits._src.rows.targets import label_rows, one_hot_rows, target_rows
from jaxlogits._src.rows.weighted_nll import weighted_nll, weighted_square_logsumexp

FORMS = {"logits": "rows classes", "where": "rows classes | rows", "result": "rows"}


@program(
    "axis",
    "axis_name",
    label_smoothing=Option(Range(0, below=1), off=(0,)),
    z_loss=Option(Range(0), off=(0,)),
)
@on_explicit_mesh(**FORMS, labels="rows classes", label_smoothing="rows", class_weights="classes")
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
) -> Array:
    """Cross entropy of dense targets (one-hot or soft) and softmax(logits), -sum_k t_k log p_k.

    With options: -sum_k w_k t'_k log p_k + z_loss * logsumexp(z)**2, t' = (1 - eps) t + eps / K.

    Args:
        logits: unnormalised log probabilities, floating point.
        labels: targets t, in the shape of ``logits``; they need not sum to 1.
        axis, axis_name: dimensions and mesh axes of the classes, as in ``softmax``.
        where: boolean mask of classes, which broadcasts to ``logits``, or of rows, whose loss is 0.
        label_smoothing, class_weights, z_loss: as in ``softmax_cross_entropy_with_integer_labels``.

    Returns:
        One loss per row: the shape of ``logits`` without ``axis``, in float32 or wider.
    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. For one-hot labels
        without options; otherwise terms of the derivative may cancel.

    Example:
        >>> jl.softmax_cross_entropy(jnp.array([20.0, 0.0]), jnp.array([1.0, 0.0]))
        Array(2.0611537e-09, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    targets = target_rows(rows, labels, "softmax_cross_entropy_with_integer_labels")
    return _cross_entropy(rows, targets, label_smoothing, class_weights, z_loss)


@program(
    "axis",
    "axis_name",
    label_smoothing=Option(Range(0, below=1), off=(0,)),
    z_loss=Option(Range(0), off=(0,)),
)
@on_explicit_mesh(**FORMS, labels="rows", label_smoothing="rows", class_weights="classes")
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
) -> Array:
    """Cross entropy of integer labels and softmax(logits), -log p_y.

    With options: -sum_k w_k t_k log p_k + z_loss * logsumexp(z)**2, where t is 1 - eps at the label
    plus eps / K everywhere. To ignore an index (ignore_index), use ``where=labels != -100``.

    Args:
        logits: unnormalised log probabilities, floating point.
        labels: integers in [0, K), in the shape of ``logits`` without ``axis``.
        axis, axis_name: dimensions (flattened in order) and mesh axes, as in ``softmax``.
        where: boolean mask of classes, which broadcasts to ``logits``, or of rows, whose loss is 0.
        label_smoothing: eps in [0, 1), a number or one per row, spread over the unmasked classes.
        class_weights: w, ``[K]``, at least 0.
        z_loss: weight of the squared logsumexp, which keeps it close to 0.

    Returns:
        The shape of ``labels``, in float32 or wider; +inf if the label's class is masked.
    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. Without options;
        otherwise terms of the derivative may cancel.

    Example:
        >>> jl.softmax_cross_entropy_with_integer_labels(jnp.array([20.0, 0.0]), jnp.array(0))
        Array(2.0611537e-09, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    dense = "softmax_cross_entropy"
    if checks.is_zero(label_smoothing) and class_weights is None:
        indices, penalty = label_rows(rows, labels, dense), _penalty(rows, z_loss)
        # The penalty reads the wide logits, and one array's gradient is rounded once.
        return reduced(
            lambda z: nll(z, indices, axis_name) + penalty(z), rows, wide=not checks.is_zero(z_loss)
        )
    targets = one_hot_rows(rows, labels, dense)
    return _cross_entropy(rows, targets, label_smoothing, class_weights, z_loss)


@program(
    "axis",
    "axis_name",
    label_smoothing=Option(Range(0, below=1), off=(0,)),
    gamma=Option(Range(0)),
)
@on_explicit_mesh(**FORMS, labels="rows", label_smoothing="rows", class_weights="classes")
def softmax_focal_loss_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    """Multiclass focal loss, -(1 - p_y)**gamma log p_y: easy examples count less.

    With options: -sum_k w_k t_k (1 - p_k)**gamma log p_k, t as in the cross entropy.

    Args:
        logits, labels, axis, where, axis_name, label_smoothing, class_weights: as in
            ``softmax_cross_entropy_with_integer_labels``.
        gamma: focusing parameter, at least 0; 0 is the cross entropy.

    Returns:
        One loss per row: the shape of ``labels``, in float32 or wider.
    Accuracy: float32 8 ulp of the result where the gaps are exact, derivative 8. For gamma up to 2.
    Transforms: derivatives to the order that L**gamma has in the cross entropy L.
    Reference: Lin et al., Focal Loss for Dense Object Detection (2017), equation 4.

    Example:
        >>> jl.softmax_focal_loss_with_integer_labels(jnp.array([0.0, 0.0]), jnp.array(0)).round(4)
        Array(0.1733, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    gamma = checks.as_option("gamma", gamma, rows.z.dtype)
    if checks.is_zero(label_smoothing) and class_weights is None:
        indices = label_rows(rows, labels)
        return reduced(lambda z: focal(nll(z, indices, axis_name), gamma), rows, wide=False)
    targets = _weighted(rows, one_hot_rows(rows, labels), label_smoothing, class_weights)

    def loss(z: Array) -> Array:
        # A class that is masked costs nothing where it has no share, and infinity where it has.
        losses = focal(-log_softmax_rows(z, axis_name), gamma)
        if rows.mask is not None:
            losses = jnp.where(rows.mask | (targets != 0), losses, 0.0)
        return row_sum(weigh(targets, losses), axis_name)[..., 0]

    return reduced(loss, rows)


@program("axis", "axis_name", epsilon=Option(Range(-1)))
@on_explicit_mesh(**FORMS, labels="rows classes")
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    epsilon: ArrayLike = 2.0,
) -> Array:
    """Poly-1 loss, cross entropy + epsilon * sum_k t_k (1 - p_k).

    Args:
        logits, labels, axis, where, axis_name: as in ``softmax_cross_entropy``.
        epsilon: weight of the first term of cross entropy's expansion in 1 - p, at least -1.

    Returns:
        One loss per row: the shape of ``logits`` without ``axis``, in float32 or wider.
    Accuracy: float32 5 ulp of the result where the gaps are exact, derivative 5. For one-hot labels
        and epsilon of at least 0.
    Reference: Leng et al., PolyLoss (2022), equation 6.

    Example:
        >>> jl.poly_loss_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])).round(4)
        Array(1.6931, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    targets = target_rows(rows, labels)
    epsilon = checks.as_option("epsilon", epsilon, rows.z.dtype)

    def loss(z: Array) -> Array:
        missed = row_sum(targets * softmax_complement_rows(z, axis_name), axis_name)[..., 0]
        return weighted_nll(z, targets, axis_name) + epsilon * missed

    return reduced(loss, rows)


def _cross_entropy(
    rows: Rows,
    targets: Array,
    label_smoothing: ArrayLike,
    class_weights: ArrayLike | None,
    z_loss: ArrayLike,
) -> Array:
    """The cross entropy of dense targets with its options."""
    targets = _weighted(rows, targets, label_smoothing, class_weights)
    penalty = _penalty(rows, z_loss)
    return reduced(lambda z: weighted_nll(z, targets, rows.axis_name) + penalty(z), rows)


def _weighted(
    rows: Rows, targets: Array, label_smoothing: ArrayLike, class_weights: ArrayLike | None
) -> Array:
    """Targets that are smoothed, and weighted by class."""
    dtype = rows.z.dtype
    if not checks.is_zero(label_smoothing):
        epsilon = rows.option("label_smoothing", label_smoothing)
        kept = jnp.ones_like(targets) if rows.mask is None else rows.mask.astype(dtype)
        count = jnp.maximum(row_sum(kept, rows.axis_name), 1.0)
        targets = _smoothed(targets, kept / count, epsilon)
    if class_weights is not None:
        weights = widen(checks.as_real("class_weights", class_weights), dtype)
        checks.require_shape("class_weights", weights, targets.shape[-1:], "one weight per class,")
        rule = "class_weights must be at least 0"
        weights = checks.check_values(rule, weights, weights >= 0, "for class")
        targets = weigh(targets, jnp.broadcast_to(weights, targets.shape))
    return targets


@jax.custom_jvp
def _smoothed(targets: Array, even: Array, epsilon: Array) -> Array:
    """(1 - epsilon) targets + epsilon even; what a target's share costs may be infinite."""
    return (1.0 - epsilon) * targets + epsilon * even


derivatives(
    _smoothed,
    lambda dtargets, _, __, ___, epsilon: (1.0 - epsilon) * dtargets,
    None,
    lambda depsilon, _, targets, even, __: times(even - targets, depsilon),
)


def _penalty(rows: Rows, z_loss: ArrayLike) -> Callable[[Array], Array]:
    """z_loss * logsumexp**2 of the logits, or 0."""
    weight = checks.as_option("z_loss", z_loss, rows.z.dtype)
    if checks.is_zero(z_loss):
        return lambda _: weight
    return lambda z: weighted_square_logsumexp(z, weight, rows.axis_name)
