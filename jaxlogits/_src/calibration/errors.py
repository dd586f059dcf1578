"""How far a classifier's probabilities are from the rates at which it is right.

Each metric is one number for all rows, from logits and integer labels. The confidence of a row is
the probability of its likeliest class, and the row is right if that class is its label. Where it is
right, 1 - confidence is computed as the sum of the other classes' probabilities, so that an error
of 1e-9 isn't lost.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis
from jaxlogits._src.base.program import program
from jaxlogits._src.calibration.bins import bin_sums, curve, equal_width, mean_distance
from jaxlogits._src.calibration.labelled import Graded, graded_rows, labelled_rows
from jaxlogits._src.mesh.explicit import with_whole_arrays
from jaxlogits._src.regression.coordinates import unit_of
from jaxlogits._src.rows.softmax import label_mask, softmax_complement_rows, softmax_rows


class ReliabilityCurve(NamedTuple):
    """The data of a reliability diagram: rows binned by confidence, their largest probability.

    Attributes:
        confidence: mean confidence in each bin, ``[num_bins]``; NaN for an empty bin.
        accuracy: share of rows that are right; NaN, which plots skip, for an empty bin.
        weight: sum of the weights of the bin's rows, or their number if they have no weights.
        edges: of the bins, ``[num_bins + 1]``.
    """

    confidence: Array
    accuracy: Array
    weight: Array
    edges: Array


@checks.whole("num_bins")
@program("axis", "num_bins")
@with_whole_arrays
def reliability_curve(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> ReliabilityCurve:
    """Reliability diagram: confidence and accuracy in bins of equal width.

    Bin b holds the rows whose largest probability is in (b / B, (b + 1) / B], as in scikit-learn.

    Args:
        logits: unnormalised log probabilities, floating point.
        labels: integers in [0, K), in the shape of ``logits`` without ``axis``.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``labels``, True for the rows that count.
        weights: of the rows, at least 0; broadcasts to ``labels``.
        num_bins: B, a Python int.

    Returns:
        A ``ReliabilityCurve`` in float32 or wider; all NaN for a bad row, label or weight.
    Accuracy: float32 2e-6, for a million rows too.
    Transforms: derivatives take the bins as constants.

    Example:
        >>> jl.reliability_curve(jnp.array([[0.0, 2.0]]), jnp.array([1]), num_bins=2).accuracy
        Array([nan,  1.], dtype=float32)
    """
    graded = graded_rows(logits, labels, axis, where, weights)
    return ReliabilityCurve(*curve(graded.weights, graded.confidence, graded.right, num_bins))


@checks.whole("num_bins")
@program("axis", "num_bins")
@with_whole_arrays
def expected_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> Array:
    """Expected calibration error (ECE), sum_b (n_b / n) |accuracy_b - confidence_b|.

    Args:
        logits, labels, axis, where, weights, num_bins: as in ``reliability_curve``, with its bins.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 of the mean |is_right - confidence| over the rows.
    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), equation 3.

    Example:
        >>> jl.expected_calibration_error(jnp.array([[0.0, 20.0]]), jnp.array([1]))
        Array(2.0611537e-09, dtype=float32)
    """
    graded = graded_rows(logits, labels, axis, where, weights)
    bins = equal_width(graded.confidence, num_bins)
    return mean_distance(graded.weights, graded.gap, bins, num_bins)


@checks.whole("num_bins")
@program("axis", "num_bins")
@with_whole_arrays
def adaptive_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> Array:
    """Expected calibration error with bins of equal weight (equal-mass bins), not of equal width.

    With rows ordered by confidence, bin b holds those whose share of the weight has its middle in
    [b / B, (b + 1) / B); ties share a bin. Derivatives take the bins as constants.

    Args:
        logits, labels, axis, where, weights, num_bins: as in ``reliability_curve``.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 of the mean |is_right - confidence|, unless rounding moves a row.
    Reference: Nguyen and O'Connor, Posterior calibration (2015), section 3.

    Example:
        >>> logits, labels = jnp.array([[0.0, 1.0], [0.0, 3.0]]), jnp.array([1, 0])
        >>> print(f"{jl.adaptive_calibration_error(logits, labels, num_bins=2):.4f}")
        0.6108
    """
    graded, bins = _equal_weight(graded_rows(logits, labels, axis, where, weights), num_bins)
    return mean_distance(graded.weights, graded.gap, bins, num_bins)


@checks.whole("num_bins")
@program("axis", "num_bins")
@with_whole_arrays
def maximum_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> Array:
    """Maximum calibration error (MCE), max_b |accuracy_b - confidence_b|.

    Args:
        logits, labels, axis, where, weights, num_bins: as in ``reliability_curve``, with its bins.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 of the mean |is_right - confidence| in that bin.
    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), equation 5.

    Example:
        >>> print(f"{jl.maximum_calibration_error(jnp.array([[0.0, 2.0]]), jnp.array([0])):.4f}")
        0.8808
    """
    graded = graded_rows(logits, labels, axis, where, weights)
    bins = equal_width(graded.confidence, num_bins)
    weights = graded.weights / unit_of(graded.weights)
    gaps = bin_sums(weights, graded.gap, bins, num_bins)
    weight = bin_sums(weights, jnp.ones_like(graded.gap), bins, num_bins)
    empty = weight == 0
    errors = jnp.where(empty, 0.0, jnp.abs(gaps) / jnp.where(empty, 1.0, weight))
    return jnp.where(jnp.all(empty), jnp.nan, jnp.max(errors))


@checks.whole("num_bins")
@program("axis", "num_bins")
@with_whole_arrays
def classwise_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> Array:
    """Classwise ECE, the mean over classes k of sum_b (n_kb / n) |rate_kb - probability_kb|.

    Args:
        logits, labels, axis, where, weights, num_bins: as in ``reliability_curve``.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 of the mean |label - probability|.
    Reference: Kull et al., Beyond Temperature Scaling (2019), section 2.

    Example:
        >>> logits, labels = jnp.zeros([4, 2]), jnp.array([0, 0, 0, 1])
        >>> print(f"{jl.classwise_calibration_error(logits, labels):.2f}")
        0.25
    """
    z, indices, weight = labelled_rows(logits, labels, axis, where, weights)
    p, missed = softmax_rows(z, None), softmax_complement_rows(z, None)
    gaps = jnp.where(label_mask(z.shape, indices, None), missed, -p)
    weight = jnp.where(jnp.any(jnp.isnan(p), axis=-1), jnp.nan, weight)

    def error(p: Array, gap: Array) -> Array:
        return mean_distance(weight, gap, equal_width(p, num_bins), num_bins)

    return jnp.mean(jax.vmap(error, in_axes=1)(p, gaps))


@program("axis")
@with_whole_arrays
def brier_score(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """Brier score, the mean over rows of sum_k (p_k - y_k)**2 with p = softmax(logits), y one-hot.

    Args:
        logits, labels, axis, where, weights: as in ``reliability_curve``.

    Returns:
        A scalar in [0, 2], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 relative for gaps of at most 1, plus 2 ulp per unit of the gap beyond.
    Reference: Brier, Verification of Forecasts Expressed in Terms of Probability (1950).

    Example:
        >>> print(f"{jl.brier_score(jnp.array([[0.0, 2.0]]), jnp.array([1])):.4f}")
        0.0284
    """
    z, indices, weight = labelled_rows(logits, labels, axis, where, weights)
    missed = softmax_complement_rows(z, None)
    distance = jnp.where(label_mask(z.shape, indices, None), missed, softmax_rows(z, None))
    weight = weight / unit_of(weight)
    return jnp.sum(weight * jnp.sum(jnp.square(distance), axis=-1)) / jnp.sum(weight)


def _equal_weight(graded: Graded, num_bins: int) -> tuple[Graded, Array]:
    """The rows in order, and their bins: where the middle of a confidence's share of weight is."""
    order = jnp.argsort(-graded.missed)
    ranked = Graded(*(array[order] for array in graded))
    level, weights = ranked.missed, ranked.weights / unit_of(ranked.weights)
    through = jnp.cumsum(weights)
    starts = level != jnp.pad(level, (1, 0), constant_values=-1.0)[:-1]
    ends = level != jnp.pad(level, (0, 1), constant_values=-1.0)[1:]
    below = lax.cummax(jnp.where(starts, through - weights, 0.0))
    above = lax.cummin(jnp.where(ends, through, jnp.inf), reverse=True)
    bins = jnp.floor(num_bins * (0.5 * (below + above)) / jnp.sum(weights))
    return ranked, jnp.minimum(bins, num_bins - 1).astype(jnp.int32)
