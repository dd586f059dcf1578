"""From logits to other logits, class by class: bound, sharpen, penalise, correct for a prior."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checks, odds
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, narrow, wide_dtype, widen
from jaxlogits._src.base.elementary import log
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import row_has_nan, row_max
from jaxlogits._src.rows.quotients import quotient, tempered
from jaxlogits._src.rows.rows import rows_of, spoiled


@program(cap=Option(Range(above=0)))
def soft_cap(logits: ArrayLike, cap: ArrayLike) -> Array:
    """Bound the logits smoothly (logit softcapping), cap tanh(z / cap); small ones hardly change.

    Args:
        logits: floating-point array ``[..., K]``; -inf (a removed class) stays, +inf gives cap.
        cap: bound, above 0, a number or one per row ``[...]``; infinity for no bound.

    Returns:
        The shape and dtype of ``logits``, in [-cap, cap] or -inf.
    Accuracy: float32 4 ulp; bfloat16 and float16 0.501 ulp. The derivative 4 + 3 |z| / cap ulp.
    Reference: Gemma Team, Gemma 2 (2024), section 2.

    Example:
        >>> jl.soft_cap(jnp.array([-jnp.inf, 0.0, 30.0, 3000.0]), 30.0)
        Array([     -inf,  0.      , 22.847824, 30.      ], dtype=float32)
    """
    array = checks.as_floating("logits", logits)
    checks.check_no_nan("logits", array)
    bound = checks.as_row_option("cap", cap, wide_dtype(array), array.shape[:-1])
    return narrow(_soft_capped(array, bound), array)


@checkpointed
def _soft_capped(array: Array, bound: Array) -> Array:
    return capped(widen(array), bound)


def capped(z: Array, bound: Array) -> Array:
    """bound tanh(z / bound); -inf stays."""
    removed = (z == -jnp.inf) & ~jnp.isnan(bound)
    info = jnp.finfo(z.dtype)
    # A quotient that would be flushed to 0, as over an infinite bound.
    free = (bound > float(info.max) ** 0.5) & (jnp.abs(z) <= float(info.tiny / info.eps) * bound)
    bound = jnp.where(free, 1.0, bound)
    finite = _scaled_tanh(jnp.where(removed | free, 0.0, z), bound)
    return jnp.where(removed, -jnp.inf, jnp.where(free, z, finite))


@jax.custom_jvp
def _scaled_tanh(z: Array, bound: Array) -> Array:
    return bound * odds.tanh_half(2.0 * quotient(z, bound))


def _tanh_and_slope(u: Array) -> tuple[Array, Array]:
    return jax.jvp(lambda u: odds.tanh_half(2.0 * u), (u,), (jnp.ones_like(u),))


def _tanh_by_z(dz: Array, _: Array, z: Array, bound: Array) -> Array:
    return _tanh_and_slope(quotient(z, bound))[1] * dz


def _tanh_by_bound(dbound: Array, _: Array, z: Array, bound: Array) -> Array:
    return _tanh_less_line(quotient(z, bound)) * dbound


derivatives(_scaled_tanh, _tanh_by_z, _tanh_by_bound)


def _tanh_series(count: int) -> list[float]:
    """tanh(u) = sum_n c_n u^(2n + 1), by tanh' = 1 - tanh^2."""
    series = [1.0]
    for n in range(1, count):
        square = sum(a * b for a, b in zip(series, reversed(series), strict=True))
        series.append(-square / (2 * n + 1))
    return series


_TERMS = 18  # at 1/2, each is a tenth of the one before
_TANH = _tanh_series(_TERMS)


@jax.custom_jvp
def _tanh_less_line(u: Array) -> Array:
    """tanh(u) - u tanh'(u), by its power series where that is little of either."""
    tanh, slope = _tanh_and_slope(u)
    small = jnp.abs(u) < 0.5
    x = jnp.where(small, u, 0.0)
    series, square = jnp.zeros_like(x), x * x
    for n in range(_TERMS - 1, 0, -1):
        series = series * square - 2 * n * _TANH[n]
    return jnp.where(small, x * square * series, tanh - jnp.where(slope == 0, 0.0, u * slope))


def _slope_of_less_line(du: Array, _: Array, u: Array) -> Array:
    tanh, slope = _tanh_and_slope(u)
    return jnp.where(slope == 0, 0.0, 2.0 * u * tanh * slope) * du


derivatives(_tanh_less_line, _slope_of_less_line)


@program("axis", "axis_name", temperature=Option(Range(0)))
@on_explicit_mesh(
    logits="rows classes", temperature="rows", where="rows classes", result="rows classes"
)
def apply_temperature(
    logits: ArrayLike,
    temperature: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Divide logits by a temperature, z / T; at T = 0 only the maximum is left (greedy).

    Args:
        logits: floating-point array. -inf stays -inf; NaN makes its row NaN where T is 0.
        temperature: T, at least 0, a number or one per row. At 0 the largest logits become 0 and
            all others -inf; where z / T overflows, the result is (z - max(z)) / T.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; masked classes are -inf.
    Accuracy: float32 1.5 ulp, derivative 1.5; bfloat16 and float16 0.501 ulp.
    Transforms: derivatives are 0 where T is 0.

    Example:
        >>> logits = jnp.array([[1.0, 2.0], [1.0, 2.0]])
        >>> jl.apply_temperature(logits, jnp.array([0.5, 0.0]))
        Array([[  2.,   4.],
               [-inf,   0.]], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    checks.require_infinity("logits", rows.like)
    scale = rows.option("temperature", temperature)
    greatest = float(jnp.finfo(rows.like.dtype).max)
    return rows.restore(_at_temperature(rows.logits, scale, greatest, axis_name), -jnp.inf)


@checkpointed
def _at_temperature(logits: Array, scale: Array, greatest: float, axis_name: AxisName) -> Array:
    z, greedy = widen(logits), scale == 0
    warm = tempered(z, scale + greedy.astype(z.dtype), greatest, axis_name)
    largest = row_max(z, axis_name)
    at_limit = greedy & (largest > -jnp.inf)
    shaped = jnp.where(at_limit, jnp.where(z == largest, 0.0, -jnp.inf), warm)
    return spoiled(shaped, greedy & row_has_nan(z, axis_name))


@program(penalty=Option(Range(above=0)))
def penalize_repetition(logits: ArrayLike, counts: ArrayLike, penalty: ArrayLike) -> Array:
    """Repetition penalty on classes drawn before: z / penalty if z > 0, else z * penalty.

    Args:
        logits: ``[..., K]``, the model's own, before any temperature: their signs matter.
        counts: integers or booleans that broadcast to ``logits``, nonzero for classes drawn before.
            For token ids, padded with -1, they are ``jax.nn.one_hot(ids, K, dtype=int).sum(-2)``.
        penalty: above 0, a number or one per row ``[...]``; 1 changes nothing.

    Returns:
        The shape and dtype of ``logits``.
    Accuracy: float32 1.5 ulp, derivative 1.5; bfloat16 and float16 0.501 ulp.
    Reference: Keskar et al., CTRL (2019), section 4.1.

    Example:
        >>> jl.penalize_repetition(jnp.array([2.0, -1.0, 1.0]), jnp.array([1, 3, 0]), 2.0)
        Array([ 1., -2.,  1.], dtype=float32)
    """
    array = checks.as_floating("logits", logits)
    checks.check_no_nan("logits", array)
    z = widen(array)
    factor = checks.as_row_option("penalty", penalty, z.dtype, z.shape[:-1])
    drawn = jnp.asarray(counts)
    if drawn.dtype != jnp.bool_:
        drawn = checks.as_integer("counts", drawn)
    drawn = checks.broadcast_to("counts", drawn, z.shape).astype(jnp.bool_)
    unknown = jnp.isnan(factor)
    factor = jnp.where(factor == jnp.inf, jnp.finfo(z.dtype).max, factor)  # 0 times it is 0
    changed = drawn & ~jnp.isinf(z)
    finite = jnp.where(changed, z, 0.0)
    penalized = jnp.where(z > 0, quotient(finite, factor), finite * factor)
    penalized = jnp.where(changed, _within(penalized, array), z)
    return narrow(spoiled(penalized, unknown | jnp.isnan(z)), array)


@program()
def adjust_prior(logits: ArrayLike, source_prior: ArrayLike, target_prior: ArrayLike) -> Array:
    """Logits for other class frequencies, z + log(target_prior) - log(source_prior).

    Bayes' rule for label shift. For long-tailed data it is post-hoc logit adjustment (to a uniform
    prior) or, inside the loss, the logit-adjusted loss (from a uniform prior to that of the data).

    Args:
        logits: floating-point array.
        source_prior, target_prior: class frequencies or counts; they broadcast to ``logits``.

    Returns:
        The shape and dtype of ``logits``; -inf where the target is 0, NaN where only the source is.
    Accuracy: float32 2 ulp of the largest of the three terms; bfloat16 and float16 0.501 ulp.
    Reference: Menon et al., Long-Tail Learning via Logit Adjustment (2021), section 4.

    Example:
        >>> adjusted = jl.adjust_prior(jnp.zeros(2), jnp.array([0.75, 0.25]), jnp.array([1, 1]))
        >>> jnp.allclose(jl.softmax(adjusted), jnp.array([0.25, 0.75]))
        Array(True, dtype=bool)
    """
    array = checks.as_floating("logits", logits)
    checks.check_no_nan("logits", array)
    dtype = wide_dtype(array)
    source, target = (
        checks.broadcast_to(name, widen(checks.as_real(name, prior), dtype), array.shape)
        for name, prior in (("source_prior", source_prior), ("target_prior", target_prior))
    )
    for name, prior in (("source_prior", source), ("target_prior", target)):
        checks.check_values(f"{name} must be at least 0", prior, prior >= 0, "at")
    removed = (array == -jnp.inf) | ((target == 0) & (source >= 0))
    rule = "source_prior must be above 0 where target_prior is"
    checks.check_values(rule, source, removed | (source != 0), "at")
    return narrow(_prior_adjusted(array, source, target), array)


@checkpointed
def _prior_adjusted(array: Array, source: Array, target: Array) -> Array:
    z = widen(array)
    removed = (z == -jnp.inf) | ((target == 0) & (source >= 0))
    known = removed | ((source > 0) & (target > 0) & ~jnp.isnan(z))

    def log_of(prior: Array) -> Array:
        return log(jnp.where(removed, 1.0, prior))

    adjusted = jnp.where(removed, 0.0, z) + (log_of(target) - log_of(source))
    adjusted = jnp.where(known & jnp.isfinite(z), _within(adjusted, array), adjusted)
    return spoiled(jnp.where(removed, -jnp.inf, adjusted), ~known)


def _within(x: Array, like: Array) -> Array:
    """Finite numbers that stay finite in the dtype of ``like``: at most its largest."""
    greatest = float(jnp.finfo(like.dtype).max)
    return jnp.where(x > greatest, greatest, jnp.where(x < -greatest, -greatest, x))
