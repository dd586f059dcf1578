"""What the public functions give, in numpy's float64 and by the textbook: one oracle of each name.

Rows are ``[..., K]`` and ``where`` masks classes, in functions of all rows together rows. Every
edge of docs/conventions.md holds here too, so that a fuzzer may hand over whatever it likes.
Nothing here knows how the library computes anything. ``row_oracles.py`` has many of the same
formulas in 150 digits; these are for thousands of cases a second.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import oracles
import scipy.optimize
import scipy.special as sp
import scipy.stats

INF, NAN = np.inf, np.nan
Rows = Any  # an array [..., K] of anything that numpy takes


def quiet(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Without numpy's warnings: inf - inf is what an edge is."""

    @functools.wraps(fn)
    def silent(*args: Any, **options: Any) -> Any:
        with np.errstate(all="ignore"):
            return fn(*args, **options)

    return silent


# Numbers.


def elementwise(name: str) -> Callable[..., Any]:
    return quiet(lambda x: oracles.FLOAT64[name][0](np.asarray(x, float) + 0.0))


logit = elementwise("logit")
sigmoid = elementwise("sigmoid")
log_sigmoid = elementwise("log_sigmoid")
softplus = elementwise("softplus")
log1mexp = elementwise("log1mexp")


@quiet
def logitexp(log_probs: Any) -> Any:
    x = np.asarray(log_probs, float)
    return np.where(x > 0, NAN, x - np.log(-np.expm1(x)))


@quiet
def sigmoid_entropy(logits: Any) -> Any:
    x = np.asarray(logits, float)
    return times(sigmoid(x), softplus(-x)) + times(sigmoid(-x), softplus(x))


@quiet
def sigmoid_kl_divergence(logits_p: Any, logits_q: Any) -> Any:
    a, b = np.asarray(logits_p, float), np.asarray(logits_q, float)
    same = a == b
    yes, no = softplus(-b) - softplus(-a), softplus(b) - softplus(a)
    total = times(sigmoid(a), np.where(sigmoid(a) == 0, 0.0, yes))
    total = total + times(sigmoid(-a), np.where(sigmoid(-a) == 0, 0.0, no))
    # Nothing that is finite rules an answer out.
    total = np.where(np.isinf(b) & ~np.isnan(a), INF, total)
    return np.where(same, 0.0, total)


def times(a: Any, b: Any) -> Any:
    """a b, where 0 times infinity is 0; NaN stays."""
    a, b = np.asarray(a), np.asarray(b)
    zero = ((a == 0) & np.isinf(b)) | ((b == 0) & np.isinf(a))
    return np.where(zero, 0.0, a * b)


@quiet
def sigmoid_binary_cross_entropy(
    logits: Any, labels: Any, *, pos_weight: Any = None, label_smoothing: float = 0.0
) -> Any:
    x, y = np.asarray(logits, float), np.asarray(labels, float)
    y = np.where((y >= 0) & (y <= 1), (1 - label_smoothing) * y + label_smoothing / 2, NAN)
    positive = times(y, softplus(-x))
    positive = positive if pos_weight is None else np.asarray(pos_weight, float) * positive
    return positive + times(1 - y, softplus(x))


@quiet
def sigmoid_focal_loss(logits: Any, labels: Any, *, alpha: Any = None, gamma: float = 2.0) -> Any:
    x, y = np.asarray(logits, float), np.asarray(labels, float)
    missed = y * sigmoid(-x) + (1 - y) * sigmoid(x)
    weight = 1.0 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return weight * times(missed**gamma, sigmoid_binary_cross_entropy(x, y))


# Rows, which are softmax.


def masked(logits: Rows, where: Any, fill: float = -INF) -> Any:
    z = np.asarray(logits, float)
    return z if where is None else np.where(where, z, fill)


def blank(where: Any, rows: Any) -> Any:
    """[..., 1], True for a row that is masked as a whole."""
    if where is None:
        return np.zeros((*rows.shape[:-1], 1), bool)
    return ~np.any(np.broadcast_to(where, rows.shape), axis=-1, keepdims=True)


def parts(z: Rows) -> tuple[Any, Any, Any]:
    """The maximum, how far each is below it, and the sum of exponentials without one maximum."""
    largest = np.max(z, axis=-1, keepdims=True)
    gaps = np.where(z == largest, 0.0, largest - z)
    first = np.arange(z.shape[-1]) == np.argmax(z, axis=-1)[..., None]
    rest = np.sum(np.where(first, 0.0, np.exp(-gaps)), axis=-1, keepdims=True)
    bad = (largest == -INF) | ((largest == INF) & (rest > 0))
    return largest, gaps, np.where(bad, NAN, rest)


@quiet
def logsumexp(logits: Rows, *, where: Any = None) -> Any:
    z = masked(logits, where)
    largest, _, rest = parts(z)
    return np.where(np.isinf(largest), largest, largest + np.log1p(rest))[..., 0]


@quiet
def log_softmax(logits: Rows, *, where: Any = None) -> Any:
    z = masked(logits, where)
    _, gaps, rest = parts(z)
    return masked(-gaps - np.log1p(rest), where)


@quiet
def softmax(logits: Rows, *, where: Any = None) -> Any:
    return np.exp(log_softmax(logits, where=where))


@quiet
def class_log_odds(logits: Rows, *, where: Any = None) -> Any:
    z = masked(logits, where)
    itself = np.eye(z.shape[-1], dtype=bool)
    others = logsumexp(np.where(itself, -INF, z[..., None, :]))
    odds = np.where(np.isneginf(z), -INF, np.where(np.isposinf(z), INF, z - others))
    return masked(np.where(np.isnan(parts(z)[2]), NAN, odds), where)


@quiet
def entropy(logits: Rows, *, where: Any = None) -> Any:
    return softmax_cross_entropy_with_teacher_logits(logits, logits, where=where)


@quiet
def softmax_cross_entropy_with_teacher_logits(
    logits: Rows, teacher_logits: Rows, *, where: Any = None, temperature: float = 1.0
) -> Any:
    log_q = log_softmax(np.asarray(logits, float) / temperature, where=where)
    log_p = log_softmax(np.asarray(teacher_logits, float) / temperature, where=where)
    terms = np.where(_impossible(log_p, log_q), INF, -times(np.exp(log_p), log_q))
    return temperature**2 * np.sum(terms, axis=-1)


@quiet
def softmax_kl_divergence(logits_p: Rows, logits_q: Rows, *, where: Any = None) -> Any:
    log_p, log_q = log_softmax(logits_p, where=where), log_softmax(logits_q, where=where)
    p, bad = np.exp(log_p), np.isnan(log_p + log_q)
    terms = np.where(p == 0, 0.0, p * (log_p - np.where(p == 0, 0.0, log_q)))
    both_blank = np.isneginf(log_p) & np.isneginf(log_q)
    terms = np.where(_impossible(log_p, log_q), INF, terms)
    return np.sum(np.where(bad & ~both_blank, NAN, terms), axis=-1)


def _impossible(log_p: Any, log_q: Any) -> Any:
    """What has a probability in p, however small, and none in q."""
    return (log_p > -INF) & np.isneginf(log_q)


@quiet
def jensen_shannon_divergence(
    logits_p: Rows, logits_q: Rows, *, where: Any = None, weight: float = 0.5
) -> Any:
    p, q = softmax(logits_p, where=where), softmax(logits_q, where=where)
    m = weight * p + (1 - weight) * q
    terms = times(weight, sp.rel_entr(p, m)) + times(1 - weight, sp.rel_entr(q, m))
    return np.sum(np.where(np.isnan(p + q), NAN, terms), axis=-1)


@quiet
def total_variation(logits_p: Rows, logits_q: Rows, *, where: Any = None) -> Any:
    return np.sum(abs(softmax(logits_p, where=where) - softmax(logits_q, where=where)), -1) / 2


# Rows and what is true of them.


def one_hot(labels: Any, shape: tuple[int, ...]) -> Any:
    """[..., K], NaN for a label that is no class."""
    labels = np.asarray(labels)[..., None]
    bad = (labels < 0) | (labels >= shape[-1])
    return np.where(bad, NAN, (np.arange(shape[-1]) == labels).astype(float))


@quiet
def softmax_cross_entropy(
    logits: Rows,
    labels: Any,
    *,
    where: Any = None,
    label_smoothing: float = 0.0,
    class_weights: Any = 1.0,
    z_loss: float = 0.0,
) -> Any:
    z, t = np.asarray(logits, float), np.asarray(labels, float)
    kept = np.broadcast_to(True if where is None else where, z.shape)
    t = np.where(kept, t, 0.0)
    share = label_smoothing * kept / np.maximum(np.sum(kept, axis=-1, keepdims=True), 1)
    t = (1 - label_smoothing) * t + share
    terms = -times(t * np.asarray(class_weights, float), log_softmax(z, where=where))
    loss = np.sum(terms, axis=-1)
    if z_loss:
        loss = loss + z_loss * np.square(logsumexp(z, where=where))
    return np.where(blank(where, z)[..., 0], 0.0, loss)


def is_masked(labels: Any, where: Any, rows: Any) -> Any:
    """[...], whether the label's class doesn't count though others do."""
    if where is None:
        return np.zeros(np.shape(labels), bool)
    hot = one_hot(labels, np.shape(rows)) == 1
    return np.any(hot & ~np.asarray(where), axis=-1) & ~blank(where, rows)[..., 0]


def softmax_cross_entropy_with_integer_labels(
    logits: Rows, labels: Any, *, where: Any = None, **options: Any
) -> Any:
    z = np.asarray(logits, float)
    loss = softmax_cross_entropy(z, one_hot(labels, z.shape), where=where, **options)
    finite = ~np.isnan(logsumexp(z, where=where)) & ~np.isnan(log_softmax(z, where=where)).any(-1)
    return np.where(is_masked(labels, where, z) & finite, INF, loss)


@quiet
def softmax_focal_loss_with_integer_labels(
    logits: Rows,
    labels: Any,
    *,
    where: Any = None,
    gamma: float = 2.0,
    label_smoothing: Any = 0.0,
    class_weights: Any = None,
) -> Any:
    """Of its own sum over the classes where there are options."""
    if np.any(label_smoothing) or class_weights is not None:
        z = masked(logits, where)
        there = np.broadcast_to(True if where is None else where, z.shape)
        count = np.maximum(np.sum(there, axis=-1, keepdims=True), 1)
        eps = np.asarray(label_smoothing, float)[..., None]
        hit = np.asarray(labels)[..., None] == np.arange(z.shape[-1])
        targets = (1 - eps) * hit + eps * there / count
        targets = targets * (1.0 if class_weights is None else class_weights)
        losses = -log_softmax(logits, where=where)
        each = times(targets, times((-np.expm1(-losses)) ** gamma, losses))
        return np.where(np.any(there, axis=-1), np.sum(each, axis=-1), 0.0)
    loss = softmax_cross_entropy_with_integer_labels(logits, labels, where=where)
    return times((-np.expm1(-loss)) ** gamma, loss)


@quiet
def poly_loss_cross_entropy(
    logits: Rows, labels: Any, *, where: Any = None, epsilon: float = 2.0
) -> Any:
    z, t = np.asarray(logits, float), np.asarray(labels, float)
    t = t if where is None else np.where(where, t, 0.0)
    # 1 - p to its last digit: where p is largest, the sum of the others.
    missed = t * sigmoid(-class_log_odds(z, where=where))
    loss = softmax_cross_entropy(z, t, where=where) + epsilon * np.sum(missed, axis=-1)
    return np.where(blank(where, z)[..., 0], 0.0, loss)


# Rows, which are entmax.


@quiet
def entmax(logits: Rows, *, alpha: float = 1.5, where: Any = None) -> Any:
    """By 100 halvings of the bracket of the threshold."""
    z, a = masked(logits, where), alpha - 1
    if a == 0:
        return softmax(logits, where=where)
    largest, gaps, rest = parts(z)

    def probs(tau: Any) -> Any:
        return np.maximum(-a * gaps - tau, 0) ** (1 / a)

    low = np.full(largest.shape, -1.0)
    high = low + 1 - float(z.shape[-1]) ** -a
    for _ in range(100):
        middle = (low + high) / 2
        above = np.sum(probs(middle), axis=-1, keepdims=True) >= 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    p = probs(low)
    p = np.where(np.isnan(rest), NAN, p / np.sum(p, axis=-1, keepdims=True))
    return masked(p, where, 0.0)


def sparsemax(logits: Rows, **options: Any) -> Any:
    return entmax(logits, alpha=2.0, **options)


def _negative_entropy(p: Any, alpha: float) -> Any:
    if alpha == 1:
        return -np.sum(sp.entr(p), axis=-1)
    return np.sum(p**alpha - p, axis=-1) / (alpha * (alpha - 1))


@quiet
def entmax_loss(logits: Rows, labels: Any, *, alpha: float = 1.5, where: Any = None) -> Any:
    z, t = masked(logits, where), masked(labels, where, 0.0)
    p = entmax(logits, alpha=alpha, where=where)
    relative = -parts(z)[1]
    regret = np.sum(times(p, relative), axis=-1) - np.sum(times(t, relative), axis=-1)
    loss = _negative_entropy(t, alpha) + regret - _negative_entropy(p, alpha)
    return np.where(blank(where, z)[..., 0], 0.0, loss)


def entmax_loss_with_integer_labels(
    logits: Rows, labels: Any, *, where: Any = None, **options: Any
) -> Any:
    z = np.asarray(logits, float)
    loss = entmax_loss(z, one_hot(labels, z.shape), where=where, **options)
    finite = ~np.isnan(log_softmax(z, where=where)).any(axis=-1)
    return np.where(is_masked(labels, where, z) & finite, INF, loss)


# Rows made to other rows.


@quiet
def soft_cap(logits: Rows, *, cap: float) -> Any:
    z = np.asarray(logits, float)
    return np.where(np.isneginf(z), z, cap * np.tanh(z / cap))


@quiet
def apply_temperature(logits: Rows, *, temperature: float, where: Any = None) -> Any:
    z = masked(logits, where)
    if temperature > 0:
        return np.where(np.isinf(z), z, z / temperature)
    largest = np.max(z, axis=-1, keepdims=True)
    greedy = np.where((z == largest) & (z > -INF), 0.0, -INF)
    return masked(np.where(np.isnan(largest), NAN, greedy), where)


@quiet
def penalize_repetition(logits: Rows, counts: Any, *, penalty: float) -> Any:
    z = np.asarray(logits, float)
    changed = (np.asarray(counts) > 0) & ~np.isinf(z)
    return np.where(changed, np.where(z > 0, z / penalty, z * penalty), z)


@quiet
def adjust_prior(logits: Rows, source_prior: Any, target_prior: Any) -> Any:
    source, target = np.asarray(source_prior, float), np.asarray(target_prior, float)
    return np.asarray(logits, float) + np.log(target) - np.log(source)


def _two_inf(z: Any) -> Any:
    return np.sum(np.isposinf(z), axis=-1, keepdims=True) > 1


def _kept(z: Any, keep: Any, where: Any) -> Any:
    bad = np.isnan(np.max(z, axis=-1, keepdims=True))
    return masked(np.where(bad, NAN, np.where(keep, z, -INF)), where)


def _sums_of_what_follows(ranked: Any) -> Any:
    """Added up from the end, which tells a mass from 1 that is nearly 1."""
    sums = np.cumsum(ranked[..., ::-1], axis=-1)[..., ::-1]
    return np.concatenate([sums[..., 1:], np.zeros_like(sums[..., :1])], axis=-1)


def _within_mass(scores: Any, p: Any, mass: float) -> Any:
    """The first classes by score, largest first, that have ``mass``; ties stay together."""
    order = np.argsort(-scores, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    needed = np.minimum(np.sum(_sums_of_what_follows(ranked) > 1 - mass, axis=-1), p.shape[-1] - 1)
    last = np.take_along_axis(order, needed[..., None], axis=-1)
    return scores >= np.take_along_axis(scores, last, axis=-1)


@quiet
def keep_top_k(logits: Rows, *, k: int, where: Any = None) -> Any:
    z = masked(logits, where)
    last = np.sort(z, axis=-1)[..., ::-1][..., min(k, z.shape[-1]) - 1, None]
    return _kept(z, z >= last, where)


@quiet
def keep_top_p(logits: Rows, *, p: float, where: Any = None) -> Any:
    z = masked(logits, where)
    keep = _within_mass(z, softmax(logits, where=where), p)
    return masked(_kept(np.where(_two_inf(z), NAN, z), keep, where), where)


@quiet
def keep_typical(logits: Rows, *, mass: float, where: Any = None) -> Any:
    z, p = masked(logits, where), softmax(logits, where=where)
    gaps = np.where(p == 0, 0.0, np.max(z, axis=-1, keepdims=True) - z)
    gaps = np.where(np.isnan(p), NAN, np.where(np.isinf(z), 0.0, gaps))
    distance = abs(gaps - np.sum(p * gaps, axis=-1, keepdims=True))
    keep = _within_mass(np.where(p == 0, -INF, -distance), p, mass)
    return masked(_kept(np.where(_two_inf(z), NAN, z), keep, where), where)


@quiet
def keep_min_p(logits: Rows, *, p: float, where: Any = None) -> Any:
    z = masked(logits, where)
    return _kept(z, parts(z)[1] <= -np.log(p), where)


@quiet
def keep_top_n_sigma(logits: Rows, *, n: float, where: Any = None) -> Any:
    z = masked(logits, where)
    largest = np.max(z, axis=-1, keepdims=True)
    there = np.isfinite(z)
    count = np.maximum(np.sum(there, axis=-1, keepdims=True), 1)
    mean = np.sum(np.where(there, z, 0.0), axis=-1, keepdims=True) / count
    squares = np.where(there, (np.where(there, z, 0.0) - mean) ** 2, 0.0)
    sigma = np.sqrt(np.sum(squares, axis=-1, keepdims=True) / count)
    keep = (z == largest) | (z >= largest - n * sigma) | (n == INF)
    return _kept(z, keep, where)


def _above(logits: Rows, where: Any, bar: Any) -> Any:
    z, log_p = masked(logits, where), log_softmax(logits, where=where)
    keep = (log_p >= bar) | (z == np.max(z, axis=-1, keepdims=True))
    return masked(_kept(np.where(_two_inf(z), NAN, z), keep, where), where)


@quiet
def keep_epsilon(logits: Rows, *, epsilon: float, where: Any = None) -> Any:
    return _above(logits, where, np.log(epsilon))


@quiet
def keep_eta(logits: Rows, *, epsilon: float, where: Any = None) -> Any:
    bar = np.log(epsilon) / 2 - entropy(logits, where=where)[..., None]
    return _above(logits, where, np.minimum(np.log(epsilon), bar))


# The last layer. ``where`` and ``weights`` are of rows.


def _mean(losses: Any, where: Any, weights: Any) -> Any:
    weights = np.broadcast_to(1.0 if weights is None else np.asarray(weights, float), losses.shape)
    weights = weights if where is None else np.where(where, weights, 0.0)
    total = np.sum(weights)
    return np.sum(times(weights, losses)) / total if np.any(weights) else 0.0


def _logits(hidden: Any, kernel: Any, bias: Any, soft_cap_: Any, temperature: Any) -> Any:
    z = np.asarray(hidden, float) @ np.asarray(kernel, float)
    z = z if bias is None else z + np.asarray(bias, float)
    warmth = np.asarray(temperature, float)
    warmth = warmth[..., None] if warmth.ndim else warmth
    return (z if soft_cap_ is None else soft_cap(z, cap=soft_cap_)) / warmth


@quiet
def kept_log_probs(logits: Rows, labels: Any, kept: Any, *, where: Any = None) -> Any:
    z = np.asarray(logits, float)
    ids = np.asarray(kept)
    keep = np.any(ids[..., :, None] == np.arange(z.shape[-1]), axis=-2)
    some = ~blank(where, z)[..., 0]
    keep = keep if where is None else keep & where
    log_probs = log_softmax(z, where=keep)
    chosen = np.take_along_axis(log_probs, np.asarray(labels)[..., None], axis=-1)[..., 0]
    return np.where(some, chosen, 0.0)


def linear_log_probs(
    hidden: Any,
    kernel: Any,
    labels: Any,
    *,
    bias: Any = None,
    kept: Any = None,
    soft_cap: float | None = None,
    temperature: Any = 1.0,
) -> Any:
    z = _logits(hidden, kernel, bias, soft_cap, temperature)
    if kept is not None:
        return kept_log_probs(z, labels, kept)
    return -softmax_cross_entropy_with_integer_labels(z, labels)


def linear_log_probs_and_entropy(
    hidden: Any, kernel: Any, labels: Any, *, bias: Any = None, where: Any = None, **layer: Any
) -> Any:
    log_probs = linear_log_probs(hidden, kernel, labels, bias=bias, **layer)
    options = layer.get("soft_cap"), layer.get("temperature", 1.0)
    entropies = entropy(_logits(hidden, kernel, bias, *options))
    keep = True if where is None else where
    return np.where(keep, log_probs, 0.0), np.where(keep, entropies, 0.0)


def linear_top_k(
    hidden: Any,
    kernel: Any,
    k: int,
    *,
    bias: Any = None,
    where: Any = None,
    class_where: Any = None,
    soft_cap: float | None = None,
    temperature: Any = 1.0,
) -> Any:
    z = _logits(hidden, kernel, bias, soft_cap, temperature)
    log_probs = log_softmax(z, where=class_where)
    classes = np.argsort(-log_probs, axis=-1, kind="stable")[..., :k]
    largest = np.take_along_axis(log_probs, classes, axis=-1)
    keep = True if where is None else np.asarray(where)[..., None]
    return np.where(keep, largest, 0.0), np.where(keep & (largest > -INF), classes, -1)


def linear_softmax_cross_entropy(
    hidden: Any,
    kernel: Any,
    labels: Any,
    *,
    bias: Any = None,
    where: Any = None,
    weights: Any = None,
    soft_cap: float | None = None,
    temperature: Any = 1.0,
    **options: Any,
) -> Any:
    z = _logits(hidden, kernel, bias, soft_cap, temperature)
    losses = softmax_cross_entropy_with_integer_labels(z, labels, **options)
    return _mean(losses, where, weights)


def linear_softmax_kl_divergence(
    hidden_p: Any,
    kernel_p: Any,
    hidden_q: Any,
    kernel_q: Any,
    *,
    where: Any = None,
    weights: Any = None,
    temperature: Any = 1.0,
    bias_p: Any = None,
    bias_q: Any = None,
) -> Any:
    p = _logits(hidden_p, kernel_p, bias_p, None, temperature)
    q = _logits(hidden_q, kernel_q, bias_q, None, temperature)
    return _mean(softmax_kl_divergence(p, q), where, weights)


# Calibration: one number of all rows, which ``where`` and ``weights`` are of.


def _rows_that_count(logits: Any, labels: Any, where: Any, weights: Any) -> tuple[Any, Any, Any]:
    keep = np.broadcast_to(True if where is None else where, np.shape(labels))
    w = np.broadcast_to(1.0 if weights is None else weights, keep.shape)
    return np.asarray(logits, float)[keep], np.asarray(labels)[keep], np.asarray(w, float)[keep]


def _graded(z: Any, labels: Any) -> tuple[Any, Any]:
    return np.max(softmax(z), axis=-1), np.argmax(z, axis=-1) == labels


@quiet
def reliability_curve(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None, num_bins: int = 15
) -> tuple[Any, Any, Any]:
    z, labels, w = _rows_that_count(logits, labels, where, weights)
    confidence, right = _graded(z, labels)
    bins = np.ceil(confidence * num_bins).astype(int) - 1
    sums = [np.bincount(bins, w * x, num_bins) for x in (confidence, right, np.ones(len(z)))]
    return sums[0] / sums[2], sums[1] / sums[2], sums[2], np.linspace(0, 1, num_bins + 1)


@quiet
def binary_reliability_curve(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None, num_bins: int = 15
) -> tuple[Any, Any, Any, Any]:
    x, y, w = _rows_that_count(logits, labels, where, weights)
    p = sigmoid(x)
    bins = np.maximum(np.ceil(p * num_bins).astype(int) - 1, 0)
    sums = [np.bincount(bins, w * x, num_bins) for x in (p, y, np.ones(len(p)))]
    return sums[0] / sums[2], sums[1] / sums[2], sums[2], np.linspace(0, 1, num_bins + 1)


def binary_calibration_error(logits: Any, labels: Any, **options: Any) -> Any:
    probability, rate, weight, _ = binary_reliability_curve(logits, labels, **options)
    return np.nansum(weight * abs(rate - probability)) / np.sum(weight)


def binary_brier_score(logits: Any, labels: Any, *, where: Any = None, weights: Any = None) -> Any:
    x, y, w = _rows_that_count(logits, labels, where, weights)
    return w @ np.square(sigmoid(x) - y) / w.sum()


def classwise_calibration_error(logits: Any, labels: Any, **options: Any) -> Any:
    """By the binary errors of all classes."""
    p = softmax(np.asarray(logits, float))
    errors = [
        binary_calibration_error(np.log(p_k) - np.log1p(-p_k), np.asarray(labels) == k, **options)
        for k, p_k in enumerate(p.T)
    ]
    return np.mean(errors)


def expected_calibration_error(logits: Any, labels: Any, **options: Any) -> Any:
    confidence, accuracy, weight, _ = reliability_curve(logits, labels, **options)
    return np.nansum(weight * abs(accuracy - confidence)) / np.sum(weight)


def maximum_calibration_error(logits: Any, labels: Any, **options: Any) -> Any:
    confidence, accuracy, *_ = reliability_curve(logits, labels, **options)
    return np.nanmax(abs(accuracy - confidence))


def adaptive_calibration_error(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None, num_bins: int = 15
) -> Any:
    """For rows without equal confidences."""
    z, labels, w = _rows_that_count(logits, labels, where, weights)
    confidence, right = _graded(z, labels)
    order = np.argsort(confidence)
    middle = (np.cumsum(w[order]) - w[order] / 2) / w.sum()
    bins = np.minimum(np.floor(middle * num_bins).astype(int), num_bins - 1)
    return np.sum(abs(np.bincount(bins, (w * (right - confidence))[order]))) / w.sum()


def brier_score(logits: Any, labels: Any, *, where: Any = None, weights: Any = None) -> Any:
    z, labels, w = _rows_that_count(logits, labels, where, weights)
    truth = one_hot(labels, z.shape)
    return w @ np.sum(np.square(softmax(z) - truth), axis=-1) / w.sum()


@quiet
def aps_scores(logits: Rows, *, where: Any = None, penalty: float = 0.0, num_free: int = 0) -> Any:
    z, p = masked(logits, where), softmax(logits, where=where)
    order = np.argsort(-z, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    after = _sums_of_what_follows(ranked)
    places = np.argsort(order, axis=-1)
    left = np.take_along_axis(after, places, axis=-1)
    scores = 1 - left + penalty * np.maximum(places + 1 - num_free, 0) if penalty else -np.log(left)
    return masked(np.where(np.isnan(p), NAN, scores), where, INF)


def conformal_threshold(scores: Any, labels: Any, *, coverage: float, where: Any = None) -> Any:
    s, labels, _ = _rows_that_count(scores, labels, where, None)
    known = np.sort(np.take_along_axis(s, labels[:, None], axis=-1)[:, 0])
    rank = int(np.ceil(np.round((len(known) + 1) * coverage, 9)))
    return np.concatenate([[-INF], known, [INF]])[min(rank, len(known) + 1)]


def conformal_set(scores: Any, threshold: Any) -> Any:
    return ~(np.asarray(scores, float) > np.asarray(threshold, float))


# Fits: where the slope of what is minimised is 0.


def _root(slope: Callable[[Any], Any], start: Any) -> Any:
    found = scipy.optimize.root(slope, start, tol=1e-13)
    assert np.max(abs(found.fun)) < 1e-9
    return found.x


@quiet
def fit_temperature(logits: Any, labels: Any, *, where: Any = None, weights: Any = None) -> Any:
    z, labels, w = _rows_that_count(logits, labels, where, weights)
    missed = one_hot(labels, z.shape)

    def slope(inverse: Any) -> Any:
        relative = z - np.sum(times(missed, z), axis=-1, keepdims=True)
        return w @ np.sum(times(softmax(z * inverse), relative), axis=-1)

    return 1 / scipy.optimize.brentq(slope, 1e-3, 1e3, xtol=1e-15, rtol=1e-15), True


def fit_vector_scaling(
    logits: Any, labels: Any, *, where: Any = None, weights: Any = None, l2: float = 0.0
) -> Any:
    z, labels, w = _rows_that_count(logits, labels, where, weights)
    k = z.shape[-1]

    def slope(point: Any) -> Any:
        scale, bias = np.split(point, 2)
        residual = w[:, None] * (softmax(z * scale + bias) - one_hot(labels, z.shape))
        by_bias = residual.sum(0) + l2 * bias + bias.sum()  # of equal ones, those that sum to 0
        return np.concatenate([times(residual, z).sum(0) + l2 * (scale - 1), by_bias])

    scale, bias = np.split(_root(slope, np.repeat([1.0, 0.0], k)), 2)
    return scale, bias, True


def fit_platt(scores: Any, labels: Any, *, where: Any = None, weights: Any = None) -> Any:
    s, y, w = _rows_that_count(scores, labels, where, weights)
    yes, no = w @ y, w @ (1 - y)
    targets = y * (yes + 1) / (yes + 2) + (1 - y) / (no + 2)

    def slope(point: Any) -> Any:
        residual = w * (sigmoid(point[0] * s + point[1]) - targets)
        return np.array([residual @ s, residual.sum()])

    return (*_root(slope, np.zeros(2)), True)


def fit_multinomial(
    features: Any,
    labels: Any,
    *,
    num_classes: int,
    weights: Any = None,
    offset: Any = None,
    l2: float = 0.0,
) -> Any:
    """The fields of a ``LogisticFit``, with any number of steps."""
    x, j = np.asarray(features, float), num_classes - 1
    truth = one_hot(labels, (len(x), num_classes))
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    known = np.zeros([len(x), j]) if offset is None else np.asarray(offset, float)
    metric = np.eye(j) - 1 / num_classes

    def probs(point: Any) -> Any:
        z = x @ point.reshape(-1, j) + known
        return softmax(np.concatenate([np.zeros([len(x), 1]), z], axis=1))

    def slope(point: Any) -> Any:
        by_class = x.T @ (w[:, None] * (probs(point) - truth))[:, 1:]
        return (by_class + l2 * point.reshape(-1, j) @ metric).ravel()

    point = _root(slope, np.zeros(x.shape[1] * j))
    p = probs(point)
    spread = np.einsum("nj,jk->njk", p[:, 1:], np.eye(j)) - p[:, 1:, None] * p[:, None, 1:]
    hessian = np.einsum("n,np,nq,njk->pjqk", w, x, x, spread)
    hessian += l2 * np.einsum("pq,jk->pjqk", np.eye(x.shape[1]), metric)
    covariance = np.linalg.inv(hessian.reshape(point.size, -1)).reshape(hessian.shape)
    likelihood = np.sum(w[:, None] * truth * np.log(p))
    null = _null_likelihood(lambda c: _class_likelihood(c + known, truth, w), j)
    ended = len(x), w.sum(), True, False, True, None, False
    return point.reshape(-1, j), covariance, likelihood, null, -2 * likelihood, *ended


def _class_likelihood(log_odds: Any, truth: Any, weights: Any) -> Any:
    z = np.concatenate([np.zeros([len(log_odds), 1]), log_odds], axis=1)
    return weights @ np.sum(truth * (z - sp.logsumexp(z, axis=1, keepdims=True)), axis=1)


def _null_likelihood(likelihood: Callable[[Any], Any], size: int) -> Any:
    """The largest, of an intercept alone."""
    found = scipy.optimize.minimize(lambda c: -likelihood(c), np.zeros(size), tol=1e-12)
    return -found.fun


def fit_logistic(
    features: Any,
    labels: Any,
    *,
    weights: Any = None,
    offset: Any = None,
    trials: Any = None,
    l2: float = 0.0,
) -> Any:
    """As ``fit_multinomial``."""
    x, counts = np.asarray(features, float), np.asarray(labels, float)
    n = np.ones(len(x)) if trials is None else np.asarray(trials, float)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, float)
    known = np.zeros(len(x)) if offset is None else np.asarray(offset, float)

    def residual(b: Any) -> Any:
        return w * (n * sigmoid(x @ b + known) - counts)

    b = _root(lambda b: x.T @ residual(b) + l2 * b, np.zeros(x.shape[1]))
    p, share = sigmoid(x @ b + known), counts / n
    hessian = (x.T * (w * n * p * (1 - p))) @ x + l2 * np.eye(len(b))
    ways = sp.gammaln(n + 1) - sp.gammaln(counts + 1) - sp.gammaln(n - counts + 1)

    def likelihood(z: Any) -> Any:
        return w @ (ways + counts * log_sigmoid(z) + (n - counts) * log_sigmoid(-z))

    deviance = 2 * w @ (n * (sp.rel_entr(share, p) + sp.rel_entr(1 - share, 1 - p)))
    null = _null_likelihood(lambda c: likelihood(c + known), 1)
    ended = len(x), w.sum(), True, False, True, None, False
    return b, np.linalg.inv(hessian), likelihood(x @ b + known), null, deviance, *ended


# What follows from a fit, given as its coefficients [P] and their covariance.


def summarize(coefficients: Any, covariance: Any, *, level: float = 0.95) -> Any:
    """The leaves of a summary, of log likelihoods of -3 and -5, and twelve rows that weigh 15."""
    b, errors = np.asarray(coefficients, float), np.sqrt(np.diag(np.asarray(covariance, float)))
    z, reach = b / errors, scipy.stats.norm.isf((1 - level) / 2) * errors
    p, log_p = 2 * scipy.stats.norm.sf(abs(z)), np.log(2) + scipy.stats.norm.logsf(abs(z))
    ends = np.stack([b - reach, b + reach], axis=1)
    by_coefficient = (b, errors, z, p, log_p, ends, np.exp(b))
    criteria = (6 + 2 * b.size, 6 + np.log(15) * b.size)
    return *by_coefficient, -3, -5, 1 - 3 / 5, *likelihood_ratio_test(-3, -5), *criteria, 12, 15


def likelihood_ratio_test(log_likelihood: Any, restricted: Any) -> Any:
    """With one degree of freedom."""
    statistic = 2 * (float(log_likelihood) - float(restricted))
    tail = scipy.stats.chi2(1)
    return statistic, 1, tail.sf(statistic), tail.logsf(statistic)


def predict_log_odds(coefficients: Any, covariance: Any, features: Any, *, offset: Any = 0) -> Any:  # noqa: ARG001
    x, b = np.asarray(features, float), np.asarray(coefficients, float)
    return x @ b + np.asarray(offset, float)


def predict_probs(*args: Any, **options: Any) -> Any:
    return sigmoid(predict_log_odds(*args, **options))


def robust_covariance(coefficients: Any, covariance: Any, features: Any, labels: Any) -> Any:
    x, c = np.asarray(features, float), np.asarray(covariance, float)
    scores = x * (predict_probs(coefficients, c, x) - labels)[:, None] @ c
    return len(x) / (len(x) - len(c)) * scores.T @ scores


def mean_probability(coefficients: Any, covariance: Any, features: Any) -> Any:
    """With its standard error."""
    p = predict_probs(coefficients, covariance, features)
    slope = np.mean((p * (1 - p))[:, None] * np.asarray(features, float), axis=0)
    return p.mean(), np.sqrt(slope @ np.asarray(covariance, float) @ slope)
