"""Sets of classes that hold the truth as often as promised, whatever the model.

Split conformal prediction: score how strange each class is for a row, take from rows with known
labels the threshold that the scores of the truth rarely exceed, and keep what doesn't exceed it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checked import calling
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, wide_dtype, widen
from jaxlogits._src.base.elementary import expm1, log
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.mesh.explicit import with_whole_arrays, with_whole_classes
from jaxlogits._src.rows.rows import from_rows, rows_of, spoiled, to_rows
from jaxlogits._src.rows.softmax import log_softmax_rows


def _argsort(x: Array) -> Array:
    """The order of each row; unlike jnp's on an Explicit mesh over which rows are split."""
    index = jnp.zeros_like(x, jnp.int32) + lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    order: Array = lax.sort((x, index), num_keys=1)[1]
    return order


@program("axis", penalty=Option(Range(0), off=(0,)), num_free=Option(Range(0), integer=True))
@with_whole_classes(logits="rows classes", where="rows classes")
def aps_scores(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    key: ArrayLike | None = None,
    penalty: ArrayLike = 0.0,
    num_free: ArrayLike = 0,
) -> Array:
    """Nonconformity scores of adaptive prediction sets (APS), -log(1 - s_k).

    s_k, the published score, is the probability of class k and all likelier ones; with a key, less
    ``u p_k``, u uniform. The logarithm gives the same sets, and is accurate where s_k rounds to 1.

    Args:
        logits: unnormalised log probabilities, floating point; ties are ordered by index.
        axis, where: dimensions and mask of the classes, as in ``softmax``; masked ones score +inf.
        key: from ``jax.random``. Makes sets smaller, some empty, and coverage exact to 1 / (n + 1).
        penalty: lambda of RAPS, at least 0, against large sets: the score is then
            ``s_k + penalty max(rank - num_free, 0)``, with rank 1 for the likeliest class.
        num_free: k_reg of RAPS, an integer: how many classes have no penalty.

    Returns:
        Scores in the shape of ``logits``, in float32 or wider.
    Accuracy: float32 2e-6 for gaps of at most 10, relative to scores above 1.
    Transforms: derivatives of first order only.
    Reference: Romano et al. (2020), equation 8; Angelopoulos et al. (2021), the penalty of RAPS.

    Example:
        >>> 1 - jnp.exp(-jl.aps_scores(jnp.log(jnp.array([0.2, 0.5, 0.3])))).round(4)
        Array([1. , 0.5, 0.8], dtype=float32)
    """
    rows = rows_of(logits, axis, where, None)
    log_probs = log_softmax_rows(rows.z, None)
    order = _argsort(-rows.z)  # whose differences log_probs may have rounded away
    ranked = jnp.take_along_axis(log_probs, order, axis=-1)
    # Sums of classes of which none is possible are written last, so that no slope sees them.
    possible = ranked > -jnp.inf
    lowest = float(jnp.finfo(ranked.dtype).min) / 4
    ranked = jnp.where(possible, ranked, lowest)
    left = lax.cumlogsumexp(ranked, axis=ranked.ndim - 1, reverse=True)
    after = jnp.concatenate([left[..., 1:], jnp.full_like(left[..., :1], lowest)], axis=-1)
    some = jnp.concatenate([possible[..., 1:], jnp.zeros_like(possible[..., :1])], axis=-1)
    if key is not None:
        u = jax.random.uniform(key, (*ranked.shape[:-1], 1), ranked.dtype)
        after = jnp.logaddexp(after, log(u) + ranked)
        some = possible
    scores = -jnp.where(some, after, -jnp.inf)
    free = checks.as_count_option("num_free", num_free)
    checks.check_values("num_free must be at least 0", free, free >= 0)
    if not checks.is_zero(penalty):
        rate = checks.as_option("penalty", penalty, scores.dtype)
        rank = lax.broadcasted_iota(free.dtype, scores.shape, scores.ndim - 1) + 1
        beyond = jnp.maximum(rank - free, 0).astype(scores.dtype)
        scores = -expm1(-scores) + rate * beyond
    scores = jnp.take_along_axis(scores, _argsort(order), axis=-1)
    scores = jnp.where(jnp.isnan(log_probs), jnp.nan, scores)
    if rows.mask is not None:
        scores = jnp.where(rows.mask, scores, jnp.inf)
    scores = spoiled(scores, free < 0)
    return from_rows(scores, rows.axes, rows.like.shape)


def conformal_threshold(
    scores: ArrayLike,
    labels: ArrayLike,
    coverage: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
) -> Array:
    """The score that a new row's true class exceeds with a probability of at most 1 - coverage.

    It is the ceil((n + 1) coverage)-th smallest score of the true classes in n rows. The guarantee
    is for any n, on average over rows that are exchangeable with the new one.

    Args:
        scores: nonconformity scores, floating point, such as those of ``aps_scores``, or
            ``-jl.log_softmax(logits)`` for the smallest sets on average.
        labels, axis, where: as in ``reliability_curve``, of the scores.
        coverage: in [0, 1]; exact if it is known at the call.

    Returns:
        A scalar in float32 or wider; +inf, for sets of all classes, if there are fewer than
        coverage / (1 - coverage) rows. NaN if a label is bad or its score NaN.
    Accuracy: that of the scores.
    Reference: Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction (2021).

    Example:
        >>> scores = jnp.array([[0.1, 2.0], [0.3, 1.0], [0.7, 0.8]])
        >>> jl.conformal_threshold(scores, jnp.array([0, 0, 1]), 0.5)
        Array(0.3, dtype=float32)
    """
    with calling("conformal_threshold"):
        return _threshold(scores, labels, _digits(coverage), axis, where=where)


@program("axis")
@with_whole_arrays
def _threshold(
    scores: ArrayLike, labels: ArrayLike, share: Array, axis: Axis, *, where: ArrayLike | None
) -> Array:
    array = checks.as_floating("scores", scores)
    rows = widen(to_rows(array, checks.normalize_axes(array, axis, "scores")))
    indices, last = checks.as_integer("labels", labels), rows.shape[-1] - 1
    rule = "the shape of scores without axis,"
    checks.require_shape("labels", indices, rows.shape[:-1], rule)
    keep = checks.as_mask("where", True if where is None else where, indices.shape)
    is_class = (indices >= 0) & (indices <= last)
    checks.check_values(f"labels must be in [0, {last + 1})", indices, is_class | ~keep)
    of_label = jnp.take_along_axis(rows, indices[..., None], axis=-1, mode="clip")[..., 0]
    is_known = ~jnp.isnan(of_label) | ~is_class | ~keep
    checks.check_values("scores must not be NaN for a label", of_label, is_known)
    known = jnp.where(keep, jnp.where(is_class, of_label, jnp.nan), jnp.inf)
    rank = _ceil_of_share(jnp.sum(keep, dtype=jnp.uint32) + 1, share)
    ranked = jnp.pad(jnp.sort(known.reshape(-1)), 1, constant_values=(-jnp.inf, jnp.inf))
    bad = jnp.any(jnp.isnan(known)) | jnp.isnan(share[0])
    return jnp.where(bad, jnp.nan, ranked[rank])


# A share of n, rounded up, for n that float32 doesn't hold.

_COVERAGE = Range(0, 1)


def _digits(coverage: ArrayLike) -> Any:
    """Four digits [4] to the base 2**16, of the number below the one given, or NaN.

    The nearest number to 0.9 may be above it, and ten times that isn't meant to be more than 9.
    """
    known = checks.known_number(coverage)
    if known is None:
        array = checks.as_real("coverage", coverage)
        number = checks.as_option("coverage", array, wide_dtype(array))
        number = lax.stop_gradient(checks.in_range("coverage", number, _COVERAGE))
        inside = (number > 0) & (number < 1)
        rest = jnp.where(inside, jnp.nextafter(number, jnp.zeros_like(number)), number)
        return jnp.stack(_split(rest, jnp.floor))
    _COVERAGE.require("coverage", known)
    # float32's nearest number to 0.9 is written so, too.
    written = float(str(np.asarray(coverage)[()]))
    below = math.nextafter(written, 0) if 0 < written < 1 else written
    return np.asarray(_split(below, math.floor), np.float32)


def _split(number: Any, floor: Callable[[Any], Any]) -> list[Any]:
    digits = []
    for _ in range(4):
        number = number * 2.0**16
        digits.append(floor(number))
        number = number - digits[-1]
    return digits


def _ceil_of_share(count: Array, share: Array) -> Array:
    """count * share, rounded up, by multiplication as on paper."""
    low_bits = 2**16 - 1
    high, low = count >> 16, count & low_bits
    total, exact = jnp.zeros_like(count), jnp.ones_like(count, bool)
    for digit in share.astype(jnp.uint32)[::-1]:
        product = low * digit
        carry = (product & low_bits) + (total & low_bits)
        total = high * digit + (product >> 16) + (total >> 16) + (carry >> 16)
        exact &= (carry & low_bits) == 0
    return total + (~exact).astype(count.dtype)


@program()
def conformal_set(scores: ArrayLike, threshold: ArrayLike) -> Array:
    """The prediction set, the classes whose score is at most the threshold.

    Args:
        scores: floating-point array of scores like those that the threshold was computed from.
        threshold: of ``conformal_threshold``; broadcasts to ``scores``, as ``[K]``, one per class.

    Returns:
        Booleans in the shape of ``scores``, True also for NaN. A set may be empty.
    Accuracy: exact.

    Example:
        >>> jl.conformal_set(jnp.array([0.1, 2.0, 0.3]), 0.3)
        Array([ True, False,  True], dtype=bool)
    """
    array = widen(checks.as_floating("scores", scores))
    limit = widen(checks.as_real("threshold", threshold), array.dtype)
    checks.check_no_nan("scores", array)
    checks.check_no_nan("threshold", limit)
    return ~(array > checks.broadcast_to("threshold", limit, array.shape))
