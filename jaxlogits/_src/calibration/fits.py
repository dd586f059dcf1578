"""Calibration by fitting: the few numbers that make logits mean what they say on held-out rows.

Each fit is a small convex problem, solved by Newton's method and differentiated by the implicit
function theorem. The calibrated logits are plain arithmetic with the fields of the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.calibration.labelled import labelled_rows, row_weights
from jaxlogits._src.regression.coordinates import power_of_two
from jaxlogits._src.regression.fit import fit_logistic
from jaxlogits._src.regression.newton import Evaluate, Minimum, minimize, solve
from jaxlogits._src.rows.nll import nll
from jaxlogits._src.rows.softmax import (
    label_mask,
    logsumexp_rows,
    softmax_complement_rows,
    softmax_rows,
)


class TemperatureFit(NamedTuple):
    """A fitted temperature: ``logits / fit.temperature`` are calibrated.

    Attributes:
        temperature: above 0, a scalar.
        converged: whether it is the minimum.
    """

    temperature: Array
    converged: Array


class VectorScalingFit(NamedTuple):
    """A fitted line for each class: ``logits * fit.scale + fit.bias`` are calibrated.

    Attributes:
        scale: [K].
        bias: [K], with the sum 0.
        converged: whether they are the minimum.
    """

    scale: Array
    bias: Array
    converged: Array


class PlattFit(NamedTuple):
    """A fitted line: ``fit.slope * scores + fit.intercept`` are log-odds.

    Attributes:
        slope: a scalar, above 0 where larger scores mean yes.
        intercept: a scalar.
        converged: whether they are the minimum.
    """

    slope: Array
    intercept: Array
    converged: Array


@program("axis")
def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> TemperatureFit:
    """The temperature T at which softmax(logits / T) makes the labels likeliest.

    Newton's method on 1 / T, in which the negative log likelihood is convex.

    Args:
        logits: floating-point array of unnormalised log probabilities. A class at -inf stays
            impossible, and so does one at -5e8 or less or the least number of its dtype, as masks
            have it; as a label, or with +inf or NaN in the row, it makes the temperature NaN.
        labels: integers in [0, K), in the shape of ``logits`` without ``axis``. One outside makes
            the temperature NaN.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``labels``, True for the rows that count.
        weights: of the rows, at least 0; broadcasts to ``labels``. A negative one gives NaN.

    Returns:
        A ``TemperatureFit`` in float32 or wider, ``logits / fit.temperature`` being calibrated.
        ``converged`` is False where there is no minimum. If every row is right, sharper is always
        better, and T is where the loss of all rows has become less than 1e-5 (float64: 1e-11). If
        the labels' logits are on average no larger than the others, T is inf: all classes alike.
        Without rows that count T is NaN.

    Accuracy: float32 1e-5 relative, float64 1e-11, for conditions like those of real classifiers.
    Transforms: all, to any order, in logits and weights; a T without a minimum is a constant.
    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.

    Example:
        >>> fit = jl.fit_temperature(jnp.array([[0.0, 4.0]] * 4), jnp.array([1, 1, 1, 0]))
        >>> print(jl.softmax(jnp.array([0.0, 4.0]) / fit.temperature).round(4))
        [0.25 0.75]
    """
    z, indices, weight, _ = _fittable_rows(logits, labels, axis, where, weights)
    hit = label_mask(z.shape, indices, None)
    gaps = z - jnp.sum(jnp.where(hit, z, 0.0), axis=-1, keepdims=True)
    possible = gaps > -jnp.inf
    finite = jnp.where(possible, gaps, 0.0)
    # The slopes of the loss in 1 / T at 0 and at infinity say whether there is a minimum between.
    means = jnp.sum(finite, axis=-1) / jnp.sum(possible, axis=-1, dtype=gaps.dtype)
    useless = (jnp.sum(weight * means) >= 0) & (jnp.sum(weight) > 0)
    perfect = jnp.sum(weight * jnp.max(gaps, axis=-1)) <= 0
    minimum = _minimize(_by_inverse, (1 / _spread(gaps, hit, weight))[None], (gaps, weight))
    inverse = jnp.where(useless | perfect, lax.stop_gradient(minimum.point), minimum.point)[0]
    temperature = jnp.where(useless, jnp.inf, 1 / jnp.where(useless, 1.0, inverse))
    return TemperatureFit(temperature, minimum.converged & ~useless & ~perfect)


@program("axis", l2=Option(Range(0)))
def fit_vector_scaling(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    l2: ArrayLike = 0.0,
) -> VectorScalingFit:
    """The scale and bias of each class that make the labels likeliest under softmax(s z + b).

    Minimises sum_i w_i nll_i + l2 / 2 (|s - 1|**2 + |b|**2), with biases that sum to 0.

    Args:
        logits: as for ``fit_temperature``; what makes the temperature NaN makes the fit NaN.
        labels: integers in [0, K), in the shape of ``logits`` without ``axis``. One outside makes
            the fit NaN.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``labels``, True for the rows that count.
        weights: of the rows, at least 0; broadcasts to ``labels``. A negative one gives NaN.
        l2: pull towards s = 1 and b = 0, at least 0.

    Returns:
        A ``VectorScalingFit`` in float32 or wider. ``converged`` is False where there is no
        minimum, as some class isn't among the labels or can be told apart without an error: the
        numbers are then so large that the loss hardly changes. Logits that don't determine them, as
        those of no rows or two classes at z and -z, give NaN. With l2 above 0 all is determined.

    Accuracy: float32 1e-4 of a standard error, float64 1e-10.
    Transforms: all, to any order, in logits, weights and l2, where there is a minimum.
    Reference: Guo et al., On Calibration of Modern Neural Networks (2017), section 4.2.

    Example:
        >>> fit = jl.fit_vector_scaling(jnp.eye(3), jnp.arange(3), l2=1.0)
        >>> print(f"{fit.scale[0]:.3f}")
        1.343
    """
    z, indices, weight, unit = _fittable_rows(logits, labels, axis, where, weights)
    hit = label_mask(z.shape, indices, None)
    gaps = z - jnp.sum(jnp.where(hit, z, 0.0), axis=-1, keepdims=True)
    # Logits of thousands as they are leave nothing of the curvature.
    start = jnp.minimum(1 / _spread(gaps, hit, weight), 1.0)
    ones = jnp.ones_like(z, shape=z.shape[-1:])
    args = (z, indices, weight, checks.as_option("l2", l2, z.dtype) / unit)
    minimum = _minimize(_by_scale_and_bias, jnp.concatenate([start * ones, 0.0 * ones]), args)
    # Where there is no minimum, every step moves some logits by about 1, however little it gains.
    point = lax.stop_gradient(minimum.point)
    _, gradient, hessian = _by_scale_and_bias(args, point)
    moved = jnp.abs(_scaled(z, *jnp.split(solve(hessian, gradient), 2)))
    still = 0.1 + 1e-3 * jnp.abs(_scaled(z, *jnp.split(point, 2)))
    settled = jnp.all((moved < still) | (z == -jnp.inf))
    scale, bias = jnp.split(minimum.point, 2)
    return VectorScalingFit(scale, bias, minimum.converged & settled)


@program()
def fit_platt(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> PlattFit:
    """Platt scaling: the line a s + b that turns binary scores into log-odds.

    A logistic regression whose targets are (n1 + 1) / (n1 + 2) for yes and 1 / (n0 + 2) for no,
    with n1 and n0 the weights of both. So there is a minimum even if the scores make no mistake.

    Args:
        scores: floating-point array of any numbers that are larger for a yes.
        labels: in the shape of ``scores``: booleans, 0 or 1, or probabilities in [0, 1]. A value
            outside gives NaN.
        where: boolean mask that broadcasts to ``scores``, True for the rows that count.
        weights: of the rows, at least 0; broadcasts to ``scores``. A negative one gives NaN.

    Returns:
        A ``PlattFit`` in float32 or wider: ``fit.slope * scores + fit.intercept`` are log-odds, of
        which ``sigmoid`` is the probability of yes. NaN, and not converged, if the scores are NaN,
        infinite or all equal, or no row counts.

    Accuracy: float32 1e-4 of a standard error, float64 1e-10.
    Transforms: all, to any order, in scores, weights and floating-point labels.
    Reference: Platt, Probabilistic Outputs for Support Vector Machines (1999), section 2.2.

    Example:
        >>> fit = jl.fit_platt(jnp.array([-2.0, -1.0, 1.0, 2.0]), jnp.array([0, 0, 1, 1]))
        >>> print(f"{jl.sigmoid(fit.slope * 2 + fit.intercept):.4f}")
        0.7938
    """
    s = widen(checks.as_floating("scores", scores))
    y = widen(checks.as_real("labels", labels), s.dtype)
    checks.require_shape("labels", y, s.shape, "the shape of scores,")
    keep = checks.as_mask("where", True if where is None else where, s.shape)
    weight = row_weights(weights, keep, s.dtype)
    s, y = jnp.where(keep, s, 0.0), jnp.where(keep, y, 0.0)
    checks.check_values("scores must be finite", s, jnp.isfinite(s))
    is_probability = (y >= 0) & (y <= 1)
    checks.check_values("labels must be in [0, 1]", y, is_probability)
    y = jnp.where(is_probability, y, jnp.nan)
    yes, no = jnp.sum(weight * y), jnp.sum(weight * (1 - y))
    targets = y * (yes + 1) / (yes + 2) + (1 - y) / (no + 2)
    features = jnp.stack([s, jnp.ones_like(s)], axis=-1).reshape(-1, 2)
    fit = fit_logistic(features, targets.reshape(-1), weights=weight.reshape(-1))
    slope, intercept = fit.coefficients
    return PlattFit(slope, intercept, fit.converged)


# The losses, with their gradients and Hessians.


def _fittable_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Rows, labels, weights in a unit that is about the largest of them, and that unit.

    A row whose loss is infinite or NaN has weight NaN.
    """
    z, indices, weight = labelled_rows(logits, labels, axis, where, weights)
    # A mask that was written as a number is meant to be -inf.
    mask = max(-5e8, float(jnp.finfo(jnp.asarray(logits).dtype).min) / 2)
    masked = (z <= mask) & (z <= -1e3 * jnp.abs(jnp.max(z, axis=-1, keepdims=True)))
    z = jnp.where(masked, -jnp.inf, z)
    impossible = jnp.any(label_mask(z.shape, indices, None) & (z == -jnp.inf), axis=-1)
    bad = impossible | ~jnp.all(z < jnp.inf, axis=-1)
    worst = jnp.where(impossible, -jnp.inf, jnp.max(z, axis=-1))
    rule = "logits must be above -inf for the label and below inf"
    checks.check_values(rule, worst, ~bad | (weight == 0))
    z = jnp.where((bad & (weight == 0))[:, None], 0.0, z)
    unit = lax.stop_gradient(power_of_two(jnp.max(weight, initial=0.0)))
    return z, indices, jnp.where(bad & (weight != 0), jnp.nan, weight / unit), unit


def _spread(gaps: Array, hit: Array, weight: Array) -> Array:
    """How far the likeliest of the other classes is from the label's, on average; above 0.

    A class that is far out counts as little here as it does in the loss.
    """
    other = jnp.max(jnp.where(hit, -jnp.inf, gaps), axis=-1)
    distance = jnp.where(jnp.isfinite(other), jnp.abs(other), 0.0)
    spread = lax.stop_gradient(jnp.sum(weight * distance) / jnp.sum(weight))
    return jnp.where(spread > 0, spread, 1.0)


def _minimize(evaluate: Evaluate, start: Array, args: Any) -> Minimum:
    # The last step leaves the square of the tolerance, in standard errors: 6e-6 in float32. Where
    # there is a minimum, that takes about 5 steps. Where there is none, each step divides the loss
    # by e until it's below that square, which 100 steps suffice for.
    tolerance = float(jnp.finfo(start.dtype).eps) ** 0.375
    return minimize(evaluate, start, args, max_steps=100, tolerance=tolerance)


def _by_inverse(args: tuple[Array, Array], point: Array) -> tuple[Array, Array, Array]:
    """The loss of logits that are times 1 / T, from their gaps to the label's."""
    gaps, weights = args
    z = _scaled(gaps, point, jnp.zeros_like(point))
    known = jnp.where(gaps == -jnp.inf, 0.0, gaps)
    p = softmax_rows(z, None)
    mean = jnp.sum(p * known, axis=-1)
    variance = jnp.sum(p * jnp.square(known - mean[:, None]), axis=-1)
    losses = logsumexp_rows(z, None)  # as the label's gap is 0
    value, gradient, hessian = (jnp.sum(weights * each) for each in (losses, mean, variance))
    return value, gradient[None], hessian[None, None]


def _by_scale_and_bias(
    args: tuple[Array, Array, Array, Array], point: Array
) -> tuple[Array, Array, Array]:
    """The loss of logits with a line for each class."""
    z, labels, weights, l2 = args
    num_classes = z.shape[-1]
    scale, bias = jnp.split(point, 2)
    features = jnp.stack([jnp.where(z == -jnp.inf, 0.0, z), jnp.ones_like(z)])
    z = _scaled(z, scale, bias)
    p, missed = softmax_rows(z, None), softmax_complement_rows(z, None)
    pull = jnp.concatenate([scale - 1, bias])
    # Adding a number to all biases changes nothing; this term makes it 0.
    gauge = jnp.sum(weights) / num_classes**2
    value = jnp.sum(weights * nll(z, labels, None))
    value += 0.5 * (l2 * jnp.sum(jnp.square(pull)) + gauge * jnp.square(jnp.sum(bias)))
    residual = weights[:, None] * jnp.where(label_mask(z.shape, labels, None), -missed, p)
    gradient = jnp.sum(residual[None] * features, axis=1)
    gradient = gradient.at[1].add(gauge * jnp.sum(bias)).reshape(-1) + l2 * pull
    mean = features * p[None]
    weighted = mean * weights[None, :, None]
    squares = jnp.einsum("ank,bnk->abk", weighted, features, precision="highest")
    products = jnp.einsum("ank,bnl->akbl", weighted, mean, precision="highest")
    eye = jnp.eye(num_classes, dtype=z.dtype)
    hessian = jnp.einsum("abk,kl->akbl", squares, eye) - products
    hessian = hessian.at[1, :, 1, :].add(gauge).reshape(len(point), len(point))
    return value, gradient, hessian + l2 * jnp.eye(len(point), dtype=z.dtype)


def _scaled(z: Array, scale: Array, bias: Array) -> Array:
    """scale * z + bias, with -inf as it was."""
    impossible = z == -jnp.inf
    finite = scale[None, :] * jnp.where(impossible, 0.0, z) + bias[None, :]
    return jnp.where(impossible, z, finite)
