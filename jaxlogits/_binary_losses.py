"""Losses of a yes or no: one logit for each label.

Elementwise: the result has the shape of the logits; the caller writes ``.mean()``. Labels may be
anything in [0, 1], as probabilities or as integers or booleans.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxlogits import _checks
from jaxlogits._log_odds import sigmoid, softplus
from jaxlogits._precision import widen
from jaxlogits._typing import Array, ArrayLike

Pair = tuple[Array, Array]
Triple = tuple[Array, Array, Array]


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> Array:
    """Cross entropy between yes/no labels and sigmoid(logits), -w y log p - (1 - y) log(1 - p).

    Computed as w y softplus(-x) + (1 - y) softplus(x), with 0 * inf = 0. Its gradient is
    (1 - y) sigmoid(x) - w y sigmoid(-x), which stays right where 1 - p would round to 0.

    Args:
        logits: floating-point array of log-odds.
        labels: y in [0, 1], in the shape of ``logits``. One outside makes its loss NaN.
        pos_weight: w, the weight of the positive labels; broadcasts to ``logits``.
        label_smoothing: eps in [0, 1): y becomes (1 - eps) y + eps / 2.

    Returns:
        One loss per logit, in float32 or wider.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or an option out of range.

    Accuracy: float32 2.5 ulp, derivative 4. The latter at labels 0 and 1: soft ones cancel terms.
    Transforms: all, to any order, in logits, labels, pos_weight and label_smoothing.

    Example:
        >>> jl.sigmoid_binary_cross_entropy(jnp.array([0.0, 100.0]), jnp.array([1.0, 0.0]))
        Array([  0.6931472, 100.       ], dtype=float32)
    """
    x, y = _logits_and_labels(logits, labels)
    if not _checks.is_zero(label_smoothing):
        epsilon = _checks.as_option("label_smoothing", label_smoothing, x.dtype, below=1.0)
        y = (1.0 - epsilon) * y + 0.5 * epsilon
    positive = y
    if pos_weight is not None:
        weight = _checks.as_floating("pos_weight", pos_weight).astype(x.dtype)
        positive = y * _checks.broadcast_to("pos_weight", weight, x.shape)
    return _binary_nll(x, positive, 1.0 - y)


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    """Focal loss, binary cross entropy times (1 - p_t)**gamma: easy examples count less.

    p_t is the probability of the label, y p + (1 - y) (1 - p); 1 - p_t is formed from sigmoids of
    both signs, so that it doesn't cancel.

    Args:
        logits: floating-point array of log-odds.
        labels: y in [0, 1], in the shape of ``logits``. One outside makes its loss NaN.
        alpha: weight of the positive labels, in [0, 1]; the negative ones get 1 - alpha.
        gamma: focusing parameter, at least 0; 0 is the cross entropy.

    Returns:
        One loss per logit, in float32 or wider.

    Raises:
        TypeError: for a wrong dtype.
        ValueError: for a wrong shape or an option out of range.

    Accuracy: float32 4 ulp, derivative 5. At labels 0 and 1, as soft ones cancel terms, and gamma
        up to 2.
    Transforms: all, in logits, labels and options, to the order to which u**gamma can be
        differentiated at u = 0.
    Reference: Lin et al., Focal Loss for Dense Object Detection (2017), equation 5.

    Example:
        >>> jl.sigmoid_focal_loss(jnp.array([0.0]), jnp.array([1.0])).round(4)
        Array([0.1733], dtype=float32)
    """
    x, y = _logits_and_labels(logits, labels)
    loss = _binary_focal(x, y, _checks.as_option("gamma", gamma, x.dtype))
    if alpha is None:
        return loss
    alpha = _checks.as_option("alpha", alpha, x.dtype, high=1.0)
    return (alpha * y + (1.0 - alpha) * (1.0 - y)) * loss


def _logits_and_labels(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Both in the wide dtype of the logits; a label outside [0, 1] is NaN."""
    x = widen(_checks.as_floating("logits", logits))
    y = _checks.as_real("labels", labels)
    _checks.require_shape("labels", y, x.shape, "the shape of logits,")
    y = y.astype(x.dtype)
    valid = (y >= 0) & (y <= 1)
    _checks.check_values("labels must be in [0, 1]", y, valid)
    return x, jnp.where(valid, y, jnp.nan)


def _weigh(weight: Array, value: Array) -> Array:
    """weight * value, where a weight of 0 counts nothing, not even inf."""
    return weight * jnp.where((weight == 0) & jnp.isinf(value), 0.0, value)


@jax.custom_jvp
def _binary_nll(x: Array, positive: Array, negative: Array) -> Array:
    """positive * softplus(-x) + negative * softplus(x)."""
    return _weigh(positive, softplus(-x)) + _weigh(negative, softplus(x))


@functools.partial(_binary_nll.defjvp, symbolic_zeros=True)
def _binary_nll_jvp(primals: Triple, tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    x, positive, negative = primals
    dx, dpositive, dnegative = tangents
    nll = _binary_nll(x, positive, negative)
    tangent = jnp.zeros_like(nll)
    if not isinstance(dx, SymbolicZero):
        tangent += (negative * sigmoid(x) - positive * sigmoid(-x)) * dx
    if not isinstance(dpositive, SymbolicZero):
        tangent += softplus(-x) * dpositive
    if not isinstance(dnegative, SymbolicZero):
        tangent += softplus(x) * dnegative
    return nll, tangent


@jax.custom_jvp
def _binary_focal(x: Array, y: Array, gamma: Array) -> Array:
    """Cross entropy times u**gamma with u = 1 - p_t."""
    return _binary_nll(x, y, 1.0 - y) * _factor(x, y, gamma)


@functools.partial(_binary_focal.defjvp, symbolic_zeros=True)
def _binary_focal_jvp(primals: Triple, tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    x, y, gamma = primals
    dx, dy, dgamma = tangents
    focal, factor, nll = (
        _binary_focal(x, y, gamma),
        _factor(x, y, gamma),
        _binary_nll(x, y, 1.0 - y),
    )
    tangent = jnp.zeros_like(focal)
    if not isinstance(dx, SymbolicZero):
        slope = (1.0 - y) * sigmoid(x) - y * sigmoid(-x)
        tangent += (factor * slope + _weigh(gamma * factor * _log_slope(x, y), nll)) * dx
    if not isinstance(dy, SymbolicZero):
        # u**(gamma - 1) tends to inf where the cross entropy tends to 0.
        through_u = gamma * jnp.power(_missed(x, y), gamma - 1.0) * nll
        tangent += (_weigh(sigmoid(-x) - sigmoid(x), through_u) - factor * x) * dy
    if not isinstance(dgamma, SymbolicZero):
        tangent += jnp.where(focal == 0, 0.0, focal * jnp.log(_missed(x, y))) * dgamma
    return focal, tangent


def _missed(x: Array, y: Array) -> Array:
    """u = 1 - p_t: the probability that isn't given to the label."""
    return y * sigmoid(-x) + (1.0 - y) * sigmoid(x)


@jax.custom_jvp
def _factor(x: Array, y: Array, gamma: Array) -> Array:
    """u**gamma; its derivatives in x divide by no power of u, which may underflow."""
    return jnp.power(_missed(x, y), gamma)


@functools.partial(_factor.defjvp, symbolic_zeros=True)
def _factor_jvp(primals: Triple, tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    x, y, gamma = primals
    dx, dy, dgamma = tangents
    factor, u = _factor(x, y, gamma), _missed(x, y)
    tangent = jnp.zeros_like(factor)
    if not isinstance(dx, SymbolicZero):
        tangent += gamma * factor * _log_slope(x, y) * dx
    if not isinstance(dy, SymbolicZero):
        tangent += gamma * jnp.power(u, gamma - 1.0) * (sigmoid(-x) - sigmoid(x)) * dy
    if not isinstance(dgamma, SymbolicZero):
        tangent += jnp.where(factor == 0, 0.0, factor * jnp.log(u)) * dgamma
    return factor, tangent


@jax.custom_jvp
def _log_slope(x: Array, y: Array) -> Array:
    """The derivative of log(u) by x, where p is sigmoid(x) and q is 1 - p."""
    p, q = sigmoid(x), sigmoid(-x)
    soft = (y > 0) & (y < 1)
    of_soft = (1.0 - 2.0 * y) * p * q / jnp.where(soft, _missed(x, y), 1.0)
    return jnp.where(soft, of_soft, (1.0 - y) * q - y * p)


@functools.partial(_log_slope.defjvp, symbolic_zeros=True)
def _log_slope_jvp(primals: Pair, tangents: tuple[Any, Any]) -> Pair:
    x, y = primals
    dx, dy = tangents
    slope, p, q = _log_slope(x, y), sigmoid(x), sigmoid(-x)
    tangent = jnp.zeros_like(slope)
    if not isinstance(dx, SymbolicZero):
        tangent += slope * (q - p - slope) * dx
    if not isinstance(dy, SymbolicZero):
        u = _missed(x, y)
        tangent -= (p / u) * (q / u) * dy
    return slope, tangent
