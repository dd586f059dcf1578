"""Binary losses: one logit for each label.

Elementwise: the result has the shape of the logits; the caller writes ``.mean()``. Labels may be
anything in [0, 1], as probabilities or as integers or booleans.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, wide_dtype, widen
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.base.rules import checkpointed, derivatives, product, spread, times, weigh
from jaxlogits._src.log_odds import sigmoid, softplus


@program(label_smoothing=Option(Range(0, below=1), off=(0,)))
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
        label_smoothing: eps in [0, 1), broadcasts to ``logits``: y becomes (1 - eps) y + eps / 2.

    Returns:
        One loss per logit, in float32 or wider.

    Accuracy: float32 2.5 ulp, derivative 4. The latter at labels 0 and 1: soft ones cancel terms.
    Transforms: all, to any order, in logits, labels, pos_weight and label_smoothing.

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
    return _binary_nll(x, y, weight, smoothing)


@program(alpha=Option(Range(0, 1)), gamma=Option(Range(0)))
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
    loss = _binary_focal(x, y, checks.as_option("gamma", gamma, x.dtype))
    if alpha is None:
        return loss
    return _balanced(loss, y, checks.as_option("alpha", alpha, x.dtype))


@program()
def sigmoid_entropy(logits: ArrayLike) -> Array:
    """Entropy in nats of a Bernoulli variable with these log-odds, -p log p - (1 - p) log(1 - p).

    That of softmax([x, 0]): softplus(-|x|) + |x| sigmoid(-|x|), two terms of one sign.

    Args:
        logits: floating-point array of log-odds x. Infinite ones have entropy 0.

    Returns:
        One entropy per logit, in float32 or wider; at least 0 and at most log(2).

    Accuracy: that of ``entropy`` for two classes.
    Transforms: all, to any order; the derivative is -x sigmoid(x) sigmoid(-x).

    Example:
        >>> jl.sigmoid_entropy(jnp.array([0.0, -3.0])).round(4)
        Array([0.6931, 0.1909], dtype=float32)
    """
    x = widen(checks.as_floating("logits", logits))
    checks.check_no_nan("logits", x)
    return _binary_entropy(x)


@program()
def sigmoid_kl_divergence(logits_p: ArrayLike, logits_q: ArrayLike) -> Array:
    """Kullback–Leibler divergence of two Bernoulli distributions, from their log-odds.

    p log(p / q) + (1 - p) log((1 - p) / (1 - q)) = softplus(b) - softplus(a) - sigmoid(a) (b - a)
    with the log-odds a of p and b of q; computed without the cancellation that both forms have
    where the two are close.

    Args:
        logits_p: floating-point array a. An infinite one is a sure answer.
        logits_q: b, in the shape of ``logits_p``.

    Returns:
        One divergence per pair, in float32 or wider; never negative. +inf where q rules out what p
        doesn't.

    Accuracy: float32 1e-6 relative, also for nearly equal log-odds; tested to sizes of 40.
    Transforms: all, to any order, in both.

    Example:
        >>> jl.sigmoid_kl_divergence(jnp.array([0.0, 3.0]), jnp.array([0.001, 3.0]))
        Array([1.25e-07, 0.00e+00], dtype=float32)
    """
    a, b = checks.as_floating("logits_p", logits_p), checks.as_floating("logits_q", logits_q)
    checks.require_shape("logits_q", b, a.shape, "the shape of logits_p,")
    checks.check_no_nan("logits_p", a)
    checks.check_no_nan("logits_q", b)
    dtype = wide_dtype(a, b)
    return _binary_kl(widen(a, dtype), widen(b, dtype))


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


# Entropy and divergence.


@jax.custom_jvp
def _binary_entropy(x: Array) -> Array:
    """softplus(-|x|) + |x| sigmoid(-|x|)."""
    size = jnp.abs(x)
    return softplus(-size) + product(size, sigmoid(-size))


derivatives(_binary_entropy, lambda dx, _, x: -product(x, sigmoid(x), sigmoid(-x)) * dx)


@jax.custom_jvp
def _binary_kl(a: Array, b: Array) -> Array:
    """softplus(b) - softplus(a) - sigmoid(a) (b - a).

    With the deviations c of d = b - a from its mean under p it is log(1 + mean of phi(c)),
    phi(c) = exp(c) - 1 - c, which has no term below 0; for distant ones the logarithms themselves.
    """
    p, rest, d = sigmoid(a), sigmoid(-a), jnp.where(a == b, 0.0, b - a)
    is_close = jnp.abs(d) < 1.0
    near = jnp.where(is_close, d, 0.0)
    close = jnp.log1p(p * _phi(rest * near) + rest * _phi(-p * near))
    # log p - log q of both answers: they differ by d, and the one of two sizes keeps its digits.
    yes, no = softplus(-b) - softplus(-a), softplus(b) - softplus(a)
    of_yes, of_no = (jnp.isfinite(d) & is_larger for is_larger in (p > rest, p <= rest))
    yes, no = jnp.where(of_no, no - d, yes), jnp.where(of_yes, yes + d, no)
    yes, no = jnp.where(p == 0, 0.0, yes), jnp.where(rest == 0, 0.0, no)
    return jnp.where(is_close, close, jnp.maximum(product(p, yes) + product(rest, no), 0.0))


def _phi(c: Array) -> Array:
    """exp(c) - 1 - c for |c| < 1."""
    return c * c * exp_bend(c)


@jax.custom_jvp
def _difference(a: Array, b: Array) -> Array:
    """sigmoid(b) - sigmoid(a), which doesn't cancel."""
    d = jnp.where(a == b, 0.0, b - a)
    shared = jnp.where(d > 0, sigmoid(b) * sigmoid(-a), sigmoid(a) * sigmoid(-b))
    return shared * jnp.copysign(jnp.expm1(-jnp.abs(d)), d)


def _slope(x: Array) -> Array:
    return sigmoid(x) * sigmoid(-x)


derivatives(
    _binary_kl,
    lambda da, _, a, b: product(jnp.where(a == b, 0.0, a - b), _slope(a)) * da,
    lambda db, _, a, b: _difference(a, b) * db,
)
derivatives(_difference, lambda da, _, a, __: -_slope(a) * da, lambda db, _, __, b: _slope(b) * db)


# Cross entropy.


@jax.custom_jvp
def _cost(x: Array, weight: Array) -> Array:
    """softplus(x), what a label of the other side costs; 0 where that is inf and weighs 0."""
    cost = softplus(x)
    return jnp.where((weight == 0) & jnp.isinf(cost), 0.0, cost)


derivatives(_cost, lambda dx, _, x, __: sigmoid(x) * dx, None)


@jax.custom_jvp
def _binary_nll(x: Array, y: Array, weight: Array | None, smoothing: Array | None) -> Array:
    """weight t softplus(-x) + (1 - t) softplus(x), t the smoothed label."""
    t = _smoothed(y, smoothing)
    positive = t if weight is None else weight * t
    return positive * _cost(-x, positive) + (1.0 - t) * _cost(x, 1.0 - t)


def _smoothed(y: Array, smoothing: Array | None) -> Array:
    return y if smoothing is None else y + smoothing * (0.5 - y)


def _nll_by_logit(
    dx: Array, _: Array, x: Array, y: Array, weight: Array | None, smoothing: Array | None
) -> Array:
    t = _smoothed(y, smoothing)
    positive = t if weight is None else weight * t
    return ((1.0 - t) * sigmoid(x) - positive * sigmoid(-x)) * dx


def _nll_by_label(x: Array, y: Array, weight: Array | None, smoothing: Array | None) -> Array:
    """The loss's derivative in the smoothed label."""
    t = _smoothed(y, smoothing)
    if weight is None:
        return _cost(-x, t) - _cost(x, 1.0 - t)
    return weigh(weight, _cost(-x, weight * t)) - _cost(x, 1.0 - t)


def _nll_by_weight(
    dweight: Array, _: Array, x: Array, y: Array, weight: Array, smoothing: Array | None
) -> Array:
    t = _smoothed(y, smoothing)
    return times(weigh(t, _cost(-x, weight * t)), dweight)


derivatives(
    _binary_nll,
    _nll_by_logit,
    lambda dy, _, *args: times(
        _nll_by_label(*args) if args[3] is None else weigh(1.0 - args[3], _nll_by_label(*args)), dy
    ),
    _nll_by_weight,
    lambda dsmoothing, _, *args: times(weigh(0.5 - args[1], _nll_by_label(*args)), dsmoothing),
)


# Focal loss: first what weighs it.


@jax.custom_jvp
def _balanced(loss: Array, y: Array, alpha: Array) -> Array:
    """The loss times alpha y + (1 - alpha) (1 - y); what weighs 0 may be infinite."""
    return product(_balance(y, alpha), loss)


def _balance(y: Array, alpha: Array) -> Array:
    return alpha * y + (1.0 - alpha) * (1.0 - y)


derivatives(
    _balanced,
    lambda dloss, _, __, y, alpha: times(_balance(y, alpha), dloss),
    lambda dy, _, loss, __, alpha: times(weigh(2.0 * alpha - 1.0, loss), dy),
    lambda dalpha, _, loss, y, __: times(weigh(2.0 * y - 1.0, loss), dalpha),
)


# Let N be the cross entropy, N' and N'' its derivatives in x, and u = 1 - p_t the probability that
# isn't given to the label. The loss and all of its derivatives are sums of terms
# N**i N'**j N''**k log(u)**l u**e. Where u is small, so are N, N' and N'', and their ratios to u
# are known: no order divides by a number that may have underflowed.


class _Powers(NamedTuple):
    """How often a factor is in a term."""

    nll: int = 0  # of N, N' and N''
    slope: int = 0
    curve: int = 0
    log: int = 0  # of u
    all: int = 0  # of u beyond gamma, N, N' and N'' together

    @property
    def of_u(self) -> int:
        return self.all - self.nll - self.slope - self.curve


@checkpointed
def _binary_focal(x: Array, y: Array, gamma: Array) -> Array:
    """Cross entropy times u**gamma."""
    return _term(x, y, gamma, _Powers(nll=1, all=1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _term(x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    """N**n.nll N'**n.slope N''**n.curve log(u)**n.log u**(gamma + n.of_u)."""
    p, q = sigmoid(x), sigmoid(-x)
    u = y * q + (1.0 - y) * p
    log_u = _log_missed(x, y, u)
    total = gamma + min(n.all, 0)
    # Where u underflows, its logarithm doesn't.
    small = jnp.where(total == 0, 1.0, jnp.exp(total * log_u))
    power = jnp.where(u == 0, small, jnp.power(u, total))
    nll, slope, curve = _binary_nll(x, y, None, None), (1.0 - y) * p - y * q, p * q
    soft, safe = (y > 0) & (y < 1), jnp.where(u == 0, 1.0, u)
    relative = (
        jnp.where(u == 0, 1.0, nll / safe),
        jnp.where(soft, slope / safe, 1.0 - 2.0 * y),
        jnp.where(soft, curve / safe, (1.0 - y) * q + y * p),
    )
    factors = [
        number if position < n.all else ratio
        for position, (number, ratio) in enumerate(
            [(nll, relative[0])] * n.nll
            + [(slope, relative[1])] * n.slope
            + [(curve, relative[2])] * n.curve
        )
    ]
    return product(power, *factors, *[log_u] * n.log)


def _log_missed(x: Array, y: Array, u: Array) -> Array:
    """log(u), to its last digits where u is close to 0 or to 1."""
    hard = -softplus(jnp.where(y == 1, x, -x))
    given = y * sigmoid(x) + (1.0 - y) * sigmoid(-x)
    soft = jnp.where(u < 0.5, jnp.log(u), jnp.log1p(-given))
    return jnp.where((y == 0) | (y == 1), hard, soft)


def _term_by_logit(dx: Array, value: Array, x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    more = n._replace(curve=n.curve + 1)
    sign = 1.0 - 2.0 * y  # u' is sign * N''
    slopes = [weigh(sign, weigh(gamma + n.of_u, _term(x, y, gamma, more)))]
    if n.log:
        slopes.append(weigh(n.log * sign, _term(x, y, gamma, more._replace(log=n.log - 1))))
    if n.nll:
        slopes.append(_term(x, y, gamma, n._replace(nll=0, slope=1)))
    if n.slope:
        slopes.append(_term(x, y, gamma, more._replace(slope=0)))
    if n.curve:
        slopes.append(weigh(n.curve * (sigmoid(-x) - sigmoid(x)), value))
    return spread(dx, *slopes)


def _term_by_label(dy: Array, _: Array, x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    less = n._replace(all=n.all - 1)
    rise = sigmoid(-x) - sigmoid(x)  # of u
    slopes = [weigh(rise, weigh(gamma + n.of_u, _term(x, y, gamma, less)))]
    if n.log:
        slopes.append(weigh(n.log * rise, _term(x, y, gamma, less._replace(log=n.log - 1))))
    if n.nll:
        slopes.append(
            weigh(_term(x, y, gamma, less._replace(nll=0)), _nll_by_label(x, y, None, None))
        )
    if n.slope:
        slopes.append(-_term(x, y, gamma, less._replace(slope=0)))
    return spread(dy, *slopes)


def _term_by_gamma(dgamma: Array, _: Array, x: Array, y: Array, gamma: Array, n: _Powers) -> Array:
    return times(_term(x, y, gamma, n._replace(log=n.log + 1)), dgamma)


derivatives(_term, _term_by_logit, _term_by_label, _term_by_gamma)
