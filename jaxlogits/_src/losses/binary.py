"""Binary losses: one logit for each label.

Elementwise: the result has the shape of the logits; the caller writes ``.mean()``. Labels may be
anything in [0, 1], as probabilities or as integers or booleans.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, wide_dtype, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.losses.bernoulli import binary_entropy, binary_kl, binary_nll
from jaxlogits._src.losses.binary_focal import balanced, binary_focal


@program(label_smoothing=Option(Range(0, below=1), off=(0,)))
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> Array:
    """Binary cross entropy of labels and sigmoid(logits), -w y log p - (1 - y) log(1 - p).

    Args:
        logits: log-odds, floating point.
        labels: y in [0, 1], in the shape of ``logits``.
        pos_weight: w, the weight of positive labels; broadcasts to ``logits``.
        label_smoothing: eps in [0, 1): y becomes (1 - eps) y + eps / 2; broadcasts to ``logits``.

    Returns:
        One loss per logit, in float32 or wider.
    Accuracy: float32 2.5 ulp, derivative 4. Terms of the derivative may cancel with soft labels.

    Example:
        >>> jl.sigmoid_binary_cross_entropy(jnp.array([0.0, 100.0]), jnp.array([1.0, 0.0]))
        Array([  0.6931472, 100.       ], dtype=float32)
    """
    x, y = _logits_and_labels(logits, labels)
    weight = smoothing = None
    if not checks.is_zero(label_smoothing):
        smoothing = checks.as_real("label_smoothing", label_smoothing).astype(x.dtype)
        smoothing = checks.broadcast_to("label_smoothing", smoothing, x.shape)
    if pos_weight is not None:
        weight = widen(checks.as_real("pos_weight", pos_weight), x.dtype)
        weight = checks.check_values("pos_weight must be at least 0", weight, weight >= 0, "at")
        weight = checks.broadcast_to("pos_weight", weight, x.shape)
    return binary_nll(x, y, weight, smoothing)


@program(alpha=Option(Range(0, 1)), gamma=Option(Range(0)))
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> Array:
    """Binary focal loss, cross entropy times (1 - p_t)**gamma for p_t = y p + (1 - y) (1 - p).

    Args:
        logits, labels: as in ``sigmoid_binary_cross_entropy``.
        alpha: in [0, 1], the weight of positive labels, 1 - alpha that of negative ones.
        gamma: focusing parameter, at least 0; 0 is the cross entropy.

    Returns:
        One loss per logit, in float32 or wider.
    Accuracy: float32 4 ulp, derivative 5. For labels 0 and 1 and gamma up to 2.
    Transforms: derivatives to the order that u**gamma has at u = 0.
    Reference: Lin et al., Focal Loss for Dense Object Detection (2017), equation 5.

    Example:
        >>> jl.sigmoid_focal_loss(jnp.array([0.0]), jnp.array([1.0])).round(4)
        Array([0.1733], dtype=float32)
    """
    x, y = _logits_and_labels(logits, labels)
    loss = binary_focal(x, y, checks.as_option("gamma", gamma, x.dtype))
    if alpha is None:
        return loss
    return balanced(loss, y, checks.as_option("alpha", alpha, x.dtype))


@program()
def sigmoid_entropy(logits: ArrayLike) -> Array:
    """Entropy in nats of a Bernoulli variable with these log-odds, -p log p - (1 - p) log(1 - p).

    Args:
        logits: log-odds, floating point; infinite ones have entropy 0.

    Returns:
        One entropy per logit, in float32 or wider.
    Accuracy: that of ``entropy`` for two classes.

    Example:
        >>> jl.sigmoid_entropy(jnp.array([0.0, -3.0])).round(4)
        Array([0.6931, 0.1909], dtype=float32)
    """
    x = widen(checks.as_floating("logits", logits))
    checks.check_no_nan("logits", x)
    return binary_entropy(x)


@program()
def sigmoid_kl_divergence(logits_p: ArrayLike, logits_q: ArrayLike) -> Array:
    """Binary Kullback–Leibler divergence, p log(p / q) + (1 - p) log((1 - p) / (1 - q)).

    Args:
        logits_p, logits_q: log-odds of p and q in the same shape, floating point, or infinite.

    Returns:
        One divergence per pair, in float32 or wider; +inf where q is 0 or 1 and p differs.
    Accuracy: float32 1e-6 relative, also for nearly equal log-odds; tested for sizes up to 40.

    Example:
        >>> jl.sigmoid_kl_divergence(jnp.array([0.0, 3.0]), jnp.array([0.001, 3.0]))
        Array([1.25e-07, 0.00e+00], dtype=float32)
    """
    a, b = checks.as_floating("logits_p", logits_p), checks.as_floating("logits_q", logits_q)
    checks.require_shape("logits_q", b, a.shape, "the shape of logits_p,")
    checks.check_no_nan("logits_p", a)
    checks.check_no_nan("logits_q", b)
    dtype = wide_dtype(a, b)
    return binary_kl(widen(a, dtype), widen(b, dtype))


def _logits_and_labels(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    """Both in the wide dtype of the logits; a label outside [0, 1] is NaN."""
    x = widen(checks.as_floating("logits", logits))
    checks.check_no_nan("logits", x)
    y = checks.as_real("labels", labels)
    checks.require_shape("labels", y, x.shape, "the shape of logits,")
    y = widen(y, x.dtype)
    valid = (y >= 0) & (y <= 1)
    checks.check_values("labels must be in [0, 1]", y, valid, "at")
    return x, jnp.where(valid, y, jnp.nan)
