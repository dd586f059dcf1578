"""How uncertain a softmax is, and how far it is from another one.

``p`` and ``q`` are the softmaxes of two rows of logits. Every function keeps its digits for nearly
equal rows: a distilled model that is almost trained, or a policy after one step.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, wide_dtype, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.base.rules import derivatives, times
from jaxlogits._src.base.varying import vary, varying_axes
from jaxlogits._src.mesh.explicit import on_explicit_mesh, split_logits
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.pairs import (
    below_max,
    centred_rows,
    compare,
    contract,
    is_empty,
    kl_rows,
    prob_difference_rows,
    unbounded,
    whole,
    without_inf,
)
from jaxlogits._src.rows.quotients import cooled
from jaxlogits._src.rows.rows import Rows, rows_of, spoiled
from jaxlogits._src.rows.softmax import centred, row_stats, softmax_or_zeros, softmax_rows

Pair = tuple[Array, Array]
Triple = tuple[Array, Array, Array]


@program("axis", "axis_name")
@on_explicit_mesh(split_logits)
def entropy(
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Entropy of softmax(logits) in nats, -sum_k p_k log p_k.

    Computed as log1p(rest) + sum_k p_k (m - z_k) with the maximum m and the sum of exp(z_k - m)
    over all classes but one maximum: no term is negative, so that 1e-20 comes out as such.

    Args:
        logits: floating-point array of unnormalised log probabilities. -inf adds nothing; a single
            +inf has entropy 0; two of them, or NaN, make their row NaN.
        axis: dimension or dimensions that hold the classes.
        where: boolean, True for the classes that count; broadcasts to the logits. With the rank of
            the result it masks rows.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        One entropy per row: the shape of ``logits`` without ``axis``, in float32 or wider; never
        negative. A row of -inf alone is NaN, one that is masked as a whole 0.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for an axis out of range or a row without classes.

    Accuracy: float32 5 ulp for gaps of at most 1, growing by 1 ulp for each unit of the gap.
    Transforms: all, to any order. The gradient is -p_k (log p_k + entropy), 0 where p_k is 0.

    Example:
        >>> jl.entropy(jnp.array([[0.0, 0.0], [50.0, 0.0]]))
        Array([6.931472e-01, 9.836625e-21], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True)
    return rows.reduced(_entropy_rows(rows.z, axis_name))


@program("axis", "axis_name")
@on_explicit_mesh(split_logits)
def softmax_kl_divergence(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Kullback–Leibler divergence of two softmaxes, KL(p || q) = sum_k p_k log(p_k / q_k).

    Computed as log1p(sum_k p_k phi(d_k)), phi(d) = exp(d) - 1 - d, with the differences
    d = logits_q - logits_p less their mean under p: no term is negative and none cancels another.

    Args:
        logits_p: floating-point array, unnormalised log probabilities of p. A single +inf takes all
            of the probability; two of them, or NaN, make their row NaN.
        logits_q: the same for q, in the shape of ``logits_p``.
        axis: dimension or dimensions that hold the classes.
        where: boolean, True for the classes that count; broadcasts to the logits. With the rank of
            the result it masks rows.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        One divergence per row: the shape of the logits without ``axis``, in float32 or wider; never
        negative. A class with p = 0 adds nothing. One with q = 0 < p makes it +inf, with gradient
        q - p in ``logits_q`` and 0 in ``logits_p``. A row of -inf alone in either is NaN, and 0
        where all of it is masked.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for two shapes, an axis out of range or rows without classes.

    Accuracy: float32 5e-7 relative for nearly equal rows, however small the result; else growing
        by 1 ulp for each unit of the gaps. The gradients are as accurate.
    Transforms: all, to any order, in both.

    Example:
        >>> jl.softmax_kl_divergence(jnp.array([0.0, 1.0]), jnp.array([0.0, 1.00001]))
        Array(9.857301e-12, dtype=float32)
    """
    p, q = _two_rows("logits_p", logits_p, "logits_q", logits_q, axis, where, axis_name)
    return p.reduced(kl_rows(p.z, q.z, axis_name))


@program("axis", "axis_name", weight=Option(Range(0, 1)))
@on_explicit_mesh(split_logits)
def jensen_shannon_divergence(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    weight: ArrayLike = 0.5,
) -> Array:
    """Jensen–Shannon divergence, w KL(p || m) + (1 - w) KL(q || m) with m = w p + (1 - w) q.

    Computed as a sum over classes of terms that are not negative, from q - p, which keeps its
    digits where the two are nearly equal.

    Args:
        logits_p: floating-point array, unnormalised log probabilities of p. A single +inf takes all
            of the probability; two of them, or NaN, make their row NaN.
        logits_q: the same for q, in the shape of ``logits_p``.
        axis: dimension or dimensions that hold the classes.
        where: boolean, True for the classes that count; broadcasts to the logits. With the rank of
            the result it masks rows.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.
        weight: w in [0, 1], the share of p in the mixture; at both ends the divergence is 0.

    Returns:
        One divergence per row: the shape of the logits without ``axis``, in float32 or wider; at
        least 0 and, at weight 0.5, at most log(2), which it is for softmaxes that share no class.
        A row of -inf alone in either is NaN, and 0 where all of it is masked.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for two shapes, an axis out of range, rows without classes or a weight outside.

    Accuracy: float32 1e-6 relative for nearly equal rows, else growing by 1 ulp for each unit of
        the gaps. The gradients are as accurate.
    Transforms: all, to any order, in both logits and weight.
    Reference: Lin, Divergence Measures Based on the Shannon Entropy (1991), equation 4.1.

    Example:
        >>> jl.jensen_shannon_divergence(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0])).round(4)
        Array(0.1109, dtype=float32)
    """
    p, q = _two_rows("logits_p", logits_p, "logits_q", logits_q, axis, where, axis_name)
    w = checks.as_option("weight", weight, p.z.dtype)
    return p.reduced(_js_rows(p.z, q.z, w, axis_name))


@program("axis", "axis_name")
@on_explicit_mesh(split_logits)
def total_variation(
    logits_p: ArrayLike,
    logits_q: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Total variation distance of two softmaxes, sum_k |p_k - q_k| / 2.

    The most by which the two can differ in the probability of any set of classes; 1 minus the rate
    at which a draft from q is accepted as one from p.

    Args:
        logits_p: floating-point array, unnormalised log probabilities of p. A single +inf takes all
            of the probability; two of them, or NaN, make their row NaN.
        logits_q: the same for q, in the shape of ``logits_p``.
        axis: dimension or dimensions that hold the classes.
        where: boolean, True for the classes that count; broadcasts to the logits. With the rank of
            the result it masks rows.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        One distance in [0, 1] per row: the shape of the logits without ``axis``, in float32 or
        wider. A row of -inf alone in either is NaN, and 0 where all of it is masked.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for two shapes, an axis out of range or rows without classes.

    Accuracy: float32 5e-7 relative for nearly equal rows, else growing by 1 ulp for each unit of
        the gaps.
    Transforms: all, to any order, in both; a class with p = q counts with slope 0.

    Example:
        >>> jl.total_variation(jnp.array([0.0, 1.0]), jnp.array([0.0, -1.0])).round(4)
        Array(0.4621, dtype=float32)
    """
    p, q = _two_rows("logits_p", logits_p, "logits_q", logits_q, axis, where, axis_name)
    sizes = _size(prob_difference_rows(p.z, q.z, axis_name))
    distance = 0.5 * row_sum(sizes, axis_name)[..., 0]
    # Beyond 1 is the sum's rounding.
    return p.reduced(distance - lax.stop_gradient(jnp.maximum(distance - 1.0, 0.0)))


@program("axis", "axis_name", temperature=Option(Range(above=0)))
@on_explicit_mesh(split_logits)
def softmax_cross_entropy_with_teacher_logits(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    temperature: ArrayLike = 1.0,
) -> Array:
    """Distillation's cross entropy, -T**2 sum_k t_k log p_k with t = softmax(teacher_logits / T).

    p is softmax(logits / T). The factor T**2 keeps the gradients of one size for every T, as they
    shrink with 1 / T**2. Computed as T (sum_k t_k (max(z) - z_k) + T log sum_k exp(..)), where
    nothing overflows at a small T. The gradient T (p - t) is right where the student is almost the
    teacher.

    Args:
        logits: floating-point array of unnormalised log probabilities, the student's. A single +inf
            takes all of the probability; two of them, or NaN, make their row NaN.
        teacher_logits: the same of the teacher, in the shape of ``logits``.
        axis: dimension or dimensions that hold the classes.
        where: boolean, True for the classes that count; broadcasts to the logits. With the rank of
            the result it masks rows.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.
        temperature: T, above 0; one that is traced and isn't gives NaN.

    Returns:
        One loss per example: the shape of ``logits`` without ``axis``, in float32 or wider. A class
        with t = 0 adds nothing. One with p = 0 < t makes it +inf, with a gradient of 0 in
        ``teacher_logits``. A row of -inf alone in either is NaN, and 0 where all of it is masked.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for two shapes, an axis out of range, no classes or a temperature out of range.

    Accuracy: float32 5 ulp for gaps of at most 1, growing by 1 ulp for each unit of the gap.
    Transforms: all, to any order, in both logits and temperature.
    Reference: Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2.

    Example:
        >>> student, teacher = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.0])
        >>> jl.softmax_cross_entropy_with_teacher_logits(student, teacher, temperature=2.0).round(4)
        Array(2.2612, dtype=float32)
    """
    student, teacher = _two_rows(
        "logits", logits, "teacher_logits", teacher_logits, axis, where, axis_name
    )
    scale = checks.as_option("temperature", temperature, student.z.dtype)
    t = _tempered(teacher.z, scale, axis_name)
    # In eighths, as the sum over classes may be beyond the greatest number where T times it isn't.
    eighth = _cross_entropy_rows(t, student.z, scale, axis_name)
    return student.reduced(8.0 * (scale * eighth))


def _two_rows(
    name_a: str,
    a: ArrayLike,
    name_b: str,
    b: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    axis_name: AxisName,
) -> tuple[Rows, Rows]:
    """Both logits as rows of one dtype."""
    first, second = checks.as_floating(name_a, a), checks.as_floating(name_b, b)
    checks.require_shape(name_b, second, first.shape, f"the shape of {name_a},")
    checks.require_classes(name_a, first, checks.normalize_axes(first, axis, name_a))
    dtype = wide_dtype(first, second)
    first, second = widen(first, dtype), widen(second, dtype)
    # One of them may be the same on all devices, as a uniform teacher is.
    first, second = vary((first, second), varying_axes(first, second))
    options = axis, where, axis_name
    return (
        rows_of(first, *options, name=name_a, one_per_row=True),
        rows_of(second, *options, name=name_b, one_per_row=True),
    )


@jax.custom_jvp
def _size(x: Array) -> Array:
    """|x| with slope 0 at 0, where autodiff takes 1."""
    return jnp.abs(x)


@_size.defjvp
def _size_jvp(primals: tuple[Array], tangents: tuple[Array]) -> Pair:
    (x,) = primals
    return _size(x), jnp.sign(x) * tangents[0]


# Entropy and cross entropy.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _entropy_rows(z: Array, axis_name: AxisName) -> Array:
    """-sum_k p_k log p_k of each row."""
    stats = row_stats(z, axis_name)
    p = stats.exps / (1.0 + stats.rest)
    gaps = jnp.where(p == 0, 0.0, p * stats.gaps)
    total = row_sum(gaps, axis_name) + jnp.log1p(stats.rest)
    return jnp.where(stats.largest == -jnp.inf, jnp.nan, total)[..., 0]


def _entropy_by_z(dz: Array, _: Array, z: Array, axis_name: AxisName) -> Array:
    eighths = below_max(without_inf(z, axis_name), axis_name)
    gradient = whole(centred_rows(z, eighths, axis_name))
    return -contract(softmax_rows(z, axis_name), gradient, dz, axis_name)


derivatives(_entropy_rows, _entropy_by_z)


def _tempered(z: Array, scale: Array, axis_name: AxisName) -> Array:
    """(z - max(z)) / T, where no class becomes impossible that isn't."""
    known = without_inf(z, axis_name)
    below = spoiled(cooled(z, scale, axis_name), jnp.isnan(known))
    lowest = float(jnp.finfo(z.dtype).min)
    return jnp.where((below == -jnp.inf) & (known > -jnp.inf) & (scale > 0), lowest, below)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _cross_entropy_rows(a: Array, b: Array, scale: Array, axis_name: AxisName) -> Array:
    """An eighth of -scale sum_k p_k log q_k, with 0 log 0 = 0, for q = softmax(b / scale).

    As sum_k p_k (max(b) - b_k) + scale log1p(rest): over a small scale the logits may overflow.
    """
    p = softmax_rows(a, axis_name)
    known = without_inf(b, axis_name)
    gaps = -row_sum(jnp.where(p == 0, 0.0, p * below_max(known, axis_name)), axis_name)
    rest = row_stats(_tempered(b, scale, axis_name), axis_name).rest
    total = gaps + scale * (jnp.log1p(rest) / 8.0)
    total = jnp.where(unbounded(a, known, axis_name), jnp.inf, total)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, total)[..., 0]


def _cross_entropy_by_a(
    da: Array, _: Array, a: Array, b: Array, __: Array, axis_name: AxisName
) -> Array:
    eighths = below_max(without_inf(b, axis_name), axis_name)
    gradient = centred_rows(a, eighths, axis_name)
    return -contract(softmax_rows(a, axis_name), gradient, da, axis_name)


def _cross_entropy_by_b(
    db: Array, _: Array, a: Array, b: Array, scale: Array, axis_name: AxisName
) -> Array:
    difference = prob_difference_rows(a, _tempered(b, scale, axis_name), axis_name)
    return contract(softmax_rows(a, axis_name), difference / 8.0, db, axis_name)


derivatives(
    _cross_entropy_rows,
    _cross_entropy_by_a,
    _cross_entropy_by_b,
    lambda dscale, _, __, b, scale, axis_name: (
        _entropy_rows(_tempered(b, scale, axis_name), axis_name) / 8.0 * dscale
    ),
)


# Jensen and Shannon's: each distribution against the mixture m = w p + (1 - w) q.


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _js_rows(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """w KL(p || m) + (1 - w) KL(q || m) of each row."""
    of_p = _kl_to_mixture(a, b, w, axis_name)
    of_q = _kl_to_mixture(b, a, 1.0 - w, axis_name)
    # Where one of them is all of the mixture, the other's divergence from it may be infinite.
    return jnp.where(w == 0, of_q, jnp.where(w == 1, of_p, w * of_p + (1.0 - w) * of_q))


def _js_by_first(da: Array, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """By the logits that have the weight w; the mixture's own tangent cancels."""
    gradient = centred_rows(a, _log_to_mixture(a, b, w, axis_name), axis_name)
    return w * contract(softmax_rows(a, axis_name), gradient, da, axis_name)


def _js_by_weight(dw: Array, _: Array, a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    of_p, of_q = _kl_to_mixture(a, b, w, axis_name), _kl_to_mixture(b, a, 1.0 - w, axis_name)
    return times(of_p - of_q, dw)


derivatives(
    _js_rows,
    lambda da, _, a, b, w, axis_name: _js_by_first(da, a, b, w, axis_name),
    lambda db, _, a, b, w, axis_name: _js_by_first(db, b, a, 1.0 - w, axis_name),
    _js_by_weight,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _kl_to_mixture(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """KL(p || m) of each row, as sum_k m_k psi(x_k) with x = p / m - 1 = (1 - w) (p - q) / m."""
    difference = prob_difference_rows(a, b, axis_name)
    m = w * softmax_rows(a, axis_name) + (1.0 - w) * softmax_rows(b, axis_name)
    alone = w == 0  # then m is q
    x = jnp.where(alone | (m == 0), 0.0, (w - 1.0) * difference / jnp.where(m == 0, 1.0, m))
    divergence = row_sum(m * _log_minus_line(x), axis_name)
    divergence = jnp.where(alone, compare(a, b, axis_name).kl, divergence)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, divergence)[..., 0]


@_kl_to_mixture.defjvp
def _kl_to_mixture_jvp(axis_name: AxisName, primals: Triple, tangents: Triple) -> Pair:
    a = primals[0]
    p = softmax_rows(a, axis_name)
    log_to_mixture = functools.partial(_log_to_mixture, axis_name=axis_name)
    log_ratio, dlog_ratio = jax.jvp(log_to_mixture, primals, tangents)
    tangent = contract(p, centred_rows(a, log_ratio, axis_name), tangents[0], axis_name)
    tangent += row_sum(p * dlog_ratio, axis_name)[..., 0]
    return _kl_to_mixture(*primals, axis_name), tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_to_mixture(a: Array, b: Array, w: Array, axis_name: AxisName) -> Array:
    """log(p / m), from r = log(q / p) as -log(w + (1 - w) exp(r))."""
    rows = compare(a, b, axis_name)
    r = rows.log_ratio
    near = -jnp.log1p((1.0 - w) * jnp.expm1(jnp.minimum(r, 1.0)))
    tiny = float(jnp.finfo(r.dtype).tiny)
    far = -r - jnp.log(jnp.maximum((1.0 - w) + w * jnp.exp(-jnp.maximum(r, 0.0)), tiny))
    alone = jnp.where(rows.p > 0, -jnp.log(w), jnp.where(rows.q > 0, -jnp.inf, 0.0))
    log_ratio = jnp.where(rows.shared, jnp.where(r <= 1.0, near, far), alone)
    return jnp.where(is_empty(a, b, axis_name), jnp.nan, log_ratio)


@_log_to_mixture.defjvp
def _log_to_mixture_jvp(axis_name: AxisName, primals: Triple, tangents: Triple) -> Pair:
    (a, b, w), (da, db, dw) = primals, tangents
    of_p, of_q = _log_to_mixture(a, b, w, axis_name), _log_to_mixture(b, a, 1.0 - w, axis_name)
    dlog_p, dlog_q = (
        centred(softmax_or_zeros(z, axis_name), dz, axis_name) for z, dz in ((a, da), (b, db))
    )
    share_q = (1.0 - w) * jnp.exp(of_q)
    return of_p, share_q * (dlog_p - dlog_q) + (jnp.exp(of_q) - jnp.exp(of_p)) * dw


def _log_minus_line(x: Array) -> Array:
    """psi(x) = (1 + x) log(1 + x) - x for x >= -1, which is x**2 / 2 near 0."""
    near = (x >= -2.0 / 3.0) & (x <= 2.0)
    inner = jnp.where(near, x, 0.0)
    s = inner / (2.0 + inner)  # log(1 + x) = 2 atanh(s), 1 + x = (1 + s) / (1 - s)
    terms = 26 if x.dtype == jnp.float64 else 12  # the next one is under half an ulp at 1/2
    series = jnp.full_like(x, 1.0 / (2 * terms + 1))
    for n in range(2 * terms - 1, 1, -2):
        series = series * (s * s) + 1.0 / n
    bent = 2.0 * s * s * (1.0 + (1.0 + s) * s * series) / (1.0 - s)
    outer = jnp.where(near, 1.0, jnp.maximum(x, -1.0))
    plain = jnp.where(outer == -1.0, 1.0, (1.0 + outer) * jnp.log1p(outer) - outer)
    return jnp.where(near, bent, plain)
