"""Calibration of binary scores: how far predicted probabilities are from the rate of positives.

Each metric is one number for all log-odds and their labels. The difference of label and probability
is computed as sigmoid(-x) where the label is 1, not as 1 - p, so that an error of 1e-9 isn't lost.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxlogits._src.base import checks, odds
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.base.program import program
from jaxlogits._src.calibration.bins import curve, equal_width, mean_distance
from jaxlogits._src.calibration.labelled import counting_rows
from jaxlogits._src.mesh.explicit import with_whole_arrays
from jaxlogits._src.regression.coordinates import unit_of


class BinaryReliabilityCurve(NamedTuple):
    """The data of a binary reliability diagram: rows binned by predicted probability.

    Attributes:
        probability: mean predicted probability in each bin, ``[num_bins]``; NaN for an empty bin.
        rate: share of positive labels; NaN, which plots skip, for an empty bin.
        weight, edges: as in ``ReliabilityCurve``.
    """

    probability: Array
    rate: Array
    weight: Array
    edges: Array


@checks.whole("num_bins")
@program("num_bins")
@with_whole_arrays
def binary_reliability_curve(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> BinaryReliabilityCurve:
    """Binary reliability diagram: probability and rate of positives in bins of equal width.

    Bin b holds probabilities in (b / B, (b + 1) / B], as in scikit-learn; the first also holds 0.

    Args:
        logits: log-odds, floating point, of any shape; ``jl.logit(probs)`` of probabilities.
        labels: in the shape of ``logits``: booleans, 0 or 1, or probabilities in [0, 1].
        where: boolean mask that broadcasts to ``logits``, True for the rows that count.
        weights: of the rows, at least 0; broadcasts to ``logits``.
        num_bins: B, a Python int.

    Returns:
        A ``BinaryReliabilityCurve`` in float32 or wider; all NaN for a bad logit, label or weight.
    Accuracy: float32 2e-6, for a million rows too.
    Transforms: derivatives take the bins as constants.

    Example:
        >>> logits, labels = jnp.array([-2.0, 2.0]), jnp.array([0, 1])
        >>> curve = jl.binary_reliability_curve(logits, labels, num_bins=2)
        >>> print(curve.probability.round(2), curve.rate, curve.edges)
        [0.12 0.88] [0. 1.] [0.  0.5 1. ]
    """
    rows = _rows(logits, labels, where, weights)
    return BinaryReliabilityCurve(*curve(rows.weights, rows.probability, rows.labels, num_bins))


@checks.whole("num_bins")
@program("num_bins")
@with_whole_arrays
def binary_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    num_bins: int = 15,
) -> Array:
    """Binary expected calibration error (ECE), sum_b (n_b / n) |rate_b - probability_b|.

    Args:
        logits, labels, where, weights, num_bins: as in ``binary_reliability_curve``, with its bins.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 of the mean |label - probability| over the rows.

    Example:
        >>> logits = jnp.full(10, jl.logit(jnp.float32(0.2)))
        >>> print(f"{jl.binary_calibration_error(logits, jnp.arange(10) < 1):.2f}")
        0.10
    """
    rows = _rows(logits, labels, where, weights)
    bins = equal_width(rows.probability, num_bins)
    return mean_distance(rows.weights, rows.gap, bins, num_bins)


@program()
@with_whole_arrays
def binary_brier_score(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Array:
    """Binary Brier score, the mean of (sigmoid(x) - y)**2: half the ``brier_score`` of two classes.

    Args:
        logits, labels, where, weights: as in ``binary_reliability_curve``.

    Returns:
        A scalar in [0, 1], in float32 or wider; NaN if no row counts.
    Accuracy: float32 2e-6 relative for labels of 0 and 1.
    Reference: Brier, Verification of Forecasts Expressed in Terms of Probability (1950).

    Example:
        >>> print(f"{jl.binary_brier_score(jnp.array([2.0]), jnp.array([1])):.4f}")
        0.0142
    """
    rows = _rows(logits, labels, where, weights)
    weights = rows.weights / unit_of(rows.weights)
    return jnp.sum(weights * jnp.square(rows.gap)) / jnp.sum(weights)


class _Rows(NamedTuple):
    """N rows; whatever is wrong with one is in its weight, and so in every sum."""

    probability: Array  # of a positive label
    labels: Array
    gap: Array  # label - probability
    weights: Array


def _rows(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> _Rows:
    x = widen(checks.as_floating("logits", logits))
    y = widen(checks.as_real("labels", labels), x.dtype)
    checks.require_shape("labels", y, x.shape, "the shape of logits,")
    is_probability = (y >= 0) & (y <= 1)
    sound = is_probability & ~jnp.isnan(x)
    keep, w = counting_rows(where, weights, x.shape, x.dtype, sound)
    checks.check_no_nan("logits", jnp.where(keep, x, 0.0))
    checks.check_values("labels must be in [0, 1]", y, is_probability | ~keep)
    w = jnp.where(keep & ~sound, jnp.nan, w)
    valid = keep & sound
    x, y = jnp.where(valid, x, 0.0), jnp.where(valid, y, 0.0)
    p, missed = odds.sigmoid(x), odds.sigmoid(-x)
    flat = (p, y, y * missed - (1 - y) * p, w)
    return _Rows(*(array.reshape(-1) for array in flat))
