"""Calibration by fitting: the few numbers that make logits mean what they say on held-out rows.

Each fit is a small convex problem, solved by Newton's method and differentiated by the implicit
function theorem. The calibrated logits are plain arithmetic with the fields of the result.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.calibration.labelled import counting_rows
from jaxlogits._src.calibration.objectives import (
    by_inverse_temperature,
    by_scale_and_bias,
    fittable_rows,
    minimize_loss,
    scaled,
    spread,
)
from jaxlogits._src.mesh.explicit import with_whole_arrays
from jaxlogits._src.regression.fit import fit_logistic
from jaxlogits._src.regression.newton import solve
from jaxlogits._src.rows.softmax import label_mask


class TemperatureFit(NamedTuple):
    """A fitted temperature: ``logits / fit.temperature`` are calibrated.

    Attributes:
        temperature: above 0, a scalar.
        converged: whether it is the minimum.
    """

    temperature: Array
    converged: Array


class VectorScalingFit(NamedTuple):
    """A scale and a bias for each class: ``logits * fit.scale + fit.bias`` are calibrated.

    Attributes:
        scale: [K].
        bias: [K], with the sum 0.
        converged: whether they are the minimum.
    """

    scale: Array
    bias: Array
    converged: Array


class PlattFit(NamedTuple):
    """A slope and an intercept: ``fit.slope * scores + fit.intercept`` are calibrated log-odds.

    Attributes:
        slope: a scalar, above 0 if larger scores are more often positive.
        intercept: a scalar.
        converged: whether they are the minimum.
    """

    slope: Array
    intercept: Array
    converged: Array


@program("axis")
@with_whole_arrays
def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> TemperatureFit:
    """Temperature scaling: the T that minimises the cross entropy of softmax(logits / T).

    Args:
        logits: unnormalised log probabilities of held-out rows, floating point. -5e8 or less counts
            as -inf, an impossible class; NaN if that is the label, or with +inf in its row.
        labels, axis, where, weights: as in ``reliability_curve``.

    Returns:
        A ``TemperatureFit`` in float32 or wider. ``converged`` is False where there is no minimum.
        If all rows are right, T is where every loss is below 1e-5 (float64: 1e-11); if the labels'
        logits are on average no larger than the others, inf. NaN without rows, or with bad ones.
    Accuracy: float32 1e-5 relative, float64 1e-11, for data like those of real classifiers.
    Transforms: where there is no minimum, T counts as a constant.
    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.

    Example:
        >>> fit = jl.fit_temperature(jnp.array([[0.0, 4.0]] * 4), jnp.array([1, 1, 1, 0]))
        >>> print(jl.softmax(jnp.array([0.0, 4.0]) / fit.temperature).round(4))
        [0.25 0.75]
    """
    z, indices, weight, _ = fittable_rows(logits, labels, axis, where, weights)
    hit = label_mask(z.shape, indices, None)
    gaps = z - jnp.sum(jnp.where(hit, z, 0.0), axis=-1, keepdims=True)
    possible = gaps > -jnp.inf
    finite = jnp.where(possible, gaps, 0.0)
    # The slopes of the loss in 1 / T at 0 and at infinity say whether there is a minimum between.
    means = jnp.sum(finite, axis=-1) / jnp.sum(possible, axis=-1, dtype=gaps.dtype)
    useless = (jnp.sum(weight * means) >= 0) & (jnp.sum(weight) > 0)
    perfect = jnp.sum(weight * jnp.max(gaps, axis=-1)) <= 0
    minimum = minimize_loss(
        by_inverse_temperature, (1 / spread(gaps, hit, weight))[None], (gaps.T, weight)
    )
    inverse = jnp.where(useless | perfect, lax.stop_gradient(minimum.point), minimum.point)[0]
    temperature = jnp.where(useless, jnp.inf, 1 / jnp.where(useless, 1.0, inverse))
    return TemperatureFit(temperature, minimum.converged & ~useless & ~perfect)


@program("axis", l2=Option(Range(0)))
@with_whole_arrays
def fit_vector_scaling(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
) -> VectorScalingFit:
    """Vector scaling: the scale s and bias b of each class that calibrate softmax(s z + b).

    Minimises sum_i w_i nll_i + l2 / 2 (|s - 1|**2 + |b|**2), with biases that sum to 0.

    Args:
        logits, labels, axis, where, weights: as in ``fit_temperature``.
        l2: penalty, at least 0, which pulls towards s = 1 and b = 0.

    Returns:
        A ``VectorScalingFit`` in float32 or wider. If l2 is 0, ``converged`` is False where there
        is no minimum, as for a class without labels or errors, or NaN where it isn't unique.
    Accuracy: float32 1e-4 of a standard error, float64 1e-10.
    Transforms: differentiable where there is a minimum.
    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.

    Example:
        >>> fit = jl.fit_vector_scaling(jnp.eye(3), jnp.arange(3), l2=1.0)
        >>> print(f"{fit.scale[0]:.3f}")
        1.343
    """
    z, indices, weight, unit = fittable_rows(logits, labels, axis, where, weights)
    hit = label_mask(z.shape, indices, None)
    gaps = z - jnp.sum(jnp.where(hit, z, 0.0), axis=-1, keepdims=True)
    # Logits of thousands as they are leave nothing of the curvature.
    start = jnp.minimum(1 / spread(gaps, hit, weight), 1.0)
    ones = jnp.ones_like(z, shape=z.shape[1:])
    z = z.T
    args = (z, indices, weight, checks.as_option("l2", l2, z.dtype) / unit)
    # A slight pull on rows that can nearly be told apart has its minimum far out: 400 steps.
    most = jnp.where(args[-1] > 0, 1000, 100)
    start = jnp.concatenate([start * ones, 0.0 * ones])
    minimum = minimize_loss(by_scale_and_bias, start, args, most)
    # Where there is no minimum, every step moves some logits by about 1, however little it gains.
    point = lax.stop_gradient(minimum.point)
    _, gradient, hessian = by_scale_and_bias(args, point)
    moved = jnp.abs(scaled(z, *jnp.split(solve(hessian, gradient), 2)))
    still = 0.1 + 1e-3 * jnp.abs(scaled(z, *jnp.split(point, 2)))
    settled = jnp.all((moved < still) | (z == -jnp.inf))
    scale, bias = jnp.split(minimum.point, 2)
    return VectorScalingFit(scale, bias, minimum.converged & settled)


@program()
@with_whole_arrays
def fit_platt(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> PlattFit:
    """Platt scaling: the slope and intercept that turn binary scores into log-odds.

    A logistic regression on targets of (n1 + 1) / (n1 + 2) for positive and 1 / (n0 + 2) for
    negative labels, of weight n1 and n0; it has a minimum even for separated scores.

    Args:
        scores: floating-point array; any numbers that tend to be larger for positive labels.
        labels, where, weights: as in ``binary_reliability_curve``.

    Returns:
        A ``PlattFit`` in float32 or wider; NaN, and not converged, if scores are NaN, infinite or
        all equal, if a label or weight is out of range, or if no row counts.
    Accuracy: float32 1e-4 of a standard error, float64 1e-10.
    Reference: Platt, Probabilistic Outputs for Support Vector Machines (1999), section 2.2.

    Example:
        >>> fit = jl.fit_platt(jnp.array([-2.0, -1.0, 1.0, 2.0]), jnp.array([0, 0, 1, 1]))
        >>> print(f"{jl.sigmoid(fit.slope * 2 + fit.intercept):.4f}")
        0.7938
    """
    s = widen(checks.as_floating("scores", scores))
    y = widen(checks.as_real("labels", labels), s.dtype)
    checks.require_shape("labels", y, s.shape, "the shape of scores,")
    is_finite, is_probability = jnp.isfinite(s), (y >= 0) & (y <= 1)
    sound = is_finite & is_probability
    keep, weight = counting_rows(where, weights, s.shape, s.dtype, sound)
    checks.check_values("scores must be finite", s, is_finite | ~keep)
    checks.check_values("labels must be in [0, 1]", y, is_probability | ~keep)
    s = jnp.where(keep, s, 0.0)
    y = jnp.where(keep & ~is_probability, jnp.nan, jnp.where(keep, y, 0.0))
    positive, negative = jnp.sum(weight * y), jnp.sum(weight * (1 - y))
    # Each row with either label, as the targets themselves may round to 1.
    ones = y * (positive + 1) / (positive + 2) + (1 - y) / (negative + 2)
    zeros = y / (positive + 2) + (1 - y) * (negative + 1) / (negative + 2)
    features = jnp.stack([s, jnp.ones_like(s)], axis=-1).reshape(-1, 2)
    labels = jnp.repeat(jnp.arange(2, dtype=s.dtype), s.size)
    weights = jnp.concatenate([(weight * zeros).reshape(-1), (weight * ones).reshape(-1)])
    fit = fit_logistic(jnp.tile(features, (2, 1)), labels, weights=weights)
    slope, intercept = fit.coefficients
    return PlattFit(slope, intercept, fit.converged)
