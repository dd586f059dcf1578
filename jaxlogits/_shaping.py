"""From logits to other logits, class by class: bound, sharpen, penalise, correct for a prior."""

import jax.numpy as jnp

from jaxlogits import _checks
from jaxlogits._explicit import on_explicit_mesh, split_logits
from jaxlogits._log_odds import tanh_half
from jaxlogits._mesh import row_max
from jaxlogits._precision import widen
from jaxlogits._rows import divided, rows_of
from jaxlogits._typing import Array, ArrayLike, Axis, AxisName


def soft_cap(logits: ArrayLike, cap: ArrayLike) -> Array:
    """Bound the logits smoothly, cap tanh(z / cap).

    Small logits stay as they are. The derivative 1 - tanh(z / cap)**2 is not computed as such,
    which is 0 as soon as z is 9 times the cap.

    Args:
        logits: floating-point array. -inf, a removed class, stays -inf; +inf gives cap.
        cap: bound, above 0, a number or an array that broadcasts to the shape of ``logits``. One
            that is traced and isn't above 0 gives NaN.

    Returns:
        The shape and dtype of ``logits``, in [-cap, cap] or -inf.

    Raises:
        TypeError: if the logits aren't floating point.
        ValueError: for a cap of another shape or not above 0.

    Accuracy: float32 4 ulp; bfloat16 and float16 0.501 ulp. The float32 derivative 4 + 3 |z| / cap
        ulp, from the rounding of z / cap.
    Transforms: all, to any order, in logits and cap.
    Reference: Gemma Team, Gemma 2 (2024), section 2.

    Example:
        >>> jl.soft_cap(jnp.array([-jnp.inf, 0.0, 30.0, 3000.0]), 30.0)
        Array([     -inf,  0.      , 22.847824, 30.      ], dtype=float32)
    """
    array = _checks.as_floating("logits", logits)
    z = widen(array)
    bound = _checks.as_positive("cap", cap, z.dtype, z.shape)
    return capped(z, bound).astype(array.dtype)


def capped(z: Array, bound: Array) -> Array:
    """bound tanh(z / bound); -inf stays."""
    removed = z == -jnp.inf
    finite = bound * tanh_half(2.0 * jnp.where(removed, 0.0, z) / bound)
    return jnp.where(removed, -jnp.inf, finite)


@on_explicit_mesh(split_logits)
def apply_temperature(
    logits: ArrayLike,
    temperature: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Divide the logits by a temperature, z / T, with the limit at 0: only the maximum is left.

    For a temperature that may be 0, or differs from row to row, as in a batch of requests; where it
    is a number above 0, write the division.

    Args:
        logits: floating-point array. -inf stays -inf; NaN makes its row NaN where T is 0.
        temperature: T, at least 0, a number or one for each row, in a shape that broadcasts to that
            of ``logits`` without ``axis``. At 0 the maximum, or each that ties with it, becomes 0
            and everything else -inf. A traced one below 0 makes its row NaN.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``; a masked class is removed.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is masked.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for an axis out of range, a row without classes or a temperature below 0.

    Accuracy: float32 1.5 ulp, derivative 1.5; bfloat16 and float16 0.501 ulp.
    Transforms: all, to any order, in logits and temperature. Where T is 0 derivatives are 0.

    Example:
        >>> logits = jnp.array([[1.0, 2.0], [1.0, 2.0]])
        >>> jl.apply_temperature(logits, jnp.array([0.5, 0.0]))
        Array([[  2.,   4.],
               [-inf,   0.]], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    z = rows.z
    cold = _checks.as_row_option("temperature", temperature, z.dtype, z.shape[:-1])
    greedy = cold == 0
    largest = row_max(z, axis_name)  # NaN if one is
    below = jnp.where(jnp.isnan(largest), jnp.nan, -jnp.inf)
    coldest = jnp.where((z == largest) & (z > -jnp.inf), 0.0, below)
    warm = divided(z, jnp.where(greedy, 1.0, cold))
    return rows.restore(jnp.where(greedy, coldest, warm), -jnp.inf)


def penalize_repetition(logits: ArrayLike, counts: ArrayLike, penalty: ArrayLike) -> Array:
    """Make classes less likely that were drawn before: z / penalty if z > 0, else z * penalty.

    The rule of CTRL. It depends on where the logits' zero is, which softmax doesn't see: give it
    the model's own logits, before a temperature or anything else.

    Args:
        logits: floating-point array ``[..., K]``. Infinite ones stay.
        counts: how often each class was drawn, integers or booleans in a shape that broadcasts to
            that of ``logits``; only whether it is 0 matters. Token ids ``[..., T]`` become
            counts by ``jax.nn.one_hot(ids, K, dtype=int).sum(-2)``, which passes over ids outside
            [0, K), such as a -1 where the buffer isn't filled yet.
        penalty: above 0, a number or an array that broadcasts to the shape of ``logits``, such as
            [N, 1]; 1 changes nothing. One that is traced and isn't above 0 gives NaN.

    Returns:
        The shape and dtype of ``logits``.

    Raises:
        TypeError: if the logits aren't floating point or the counts are.
        ValueError: for counts or a penalty of another shape, or a penalty not above 0.

    Accuracy: float32 1.5 ulp, derivative 1.5; bfloat16 and float16 0.501 ulp.
    Transforms: all, to any order, in logits and penalty.
    Reference: Keskar et al., CTRL (2019), section 4.1.

    Example:
        >>> jl.penalize_repetition(jnp.array([2.0, -1.0, 1.0]), jnp.array([1, 3, 0]), 2.0)
        Array([ 1., -2.,  1.], dtype=float32)
    """
    array = _checks.as_floating("logits", logits)
    z = widen(array)
    factor = _checks.as_positive("penalty", penalty, z.dtype, z.shape)
    drawn = jnp.asarray(counts)
    if drawn.dtype != jnp.bool_:
        drawn = _checks.as_integer("counts", drawn)
    drawn = _checks.broadcast_to("counts", drawn, z.shape).astype(jnp.bool_)
    infinite = jnp.isinf(z)
    finite = jnp.where(infinite, 0.0, z)
    penalized = jnp.where(z > 0, finite / factor, finite * factor)
    return jnp.where(drawn & ~infinite, penalized, z).astype(array.dtype)


def adjust_prior(logits: ArrayLike, source_prior: ArrayLike, target_prior: ArrayLike) -> Array:
    """Logits under other class frequencies, z + log(target_prior) - log(source_prior).

    By Bayes' rule: a classifier that has learnt from data where classes have ``source_prior`` gives
    the right probabilities where they have ``target_prior``. From a long tail to a uniform prior it
    is post-hoc logit adjustment; from a uniform to the training prior, inside the loss, the logit
    adjusted loss.

    Args:
        logits: floating-point array. -inf stays -inf.
        source_prior: frequencies of the classes, at least 0, in a shape that broadcasts to that of
            ``logits``; a constant factor doesn't matter to softmax, so that counts will do.
        target_prior: likewise. 0 removes the class.

    Returns:
        The shape and dtype of ``logits``. NaN for a negative frequency, and where a class is 0 in
        the source alone: nothing is known of it.

    Raises:
        TypeError: if the logits aren't floating point or a prior isn't real numbers.
        ValueError: for a prior of another shape.

    Accuracy: float32 2 ulp of the largest of the three terms; bfloat16 and float16 0.501 ulp.
    Transforms: all, to any order, in all three.
    Reference: Menon et al., Long-Tail Learning via Logit Adjustment (2021), section 4.

    Example:
        >>> adjusted = jl.adjust_prior(jnp.zeros(2), jnp.array([0.75, 0.25]), jnp.array([1, 1]))
        >>> jnp.allclose(jl.softmax(adjusted), jnp.array([0.25, 0.75]))
        Array(True, dtype=bool)
    """
    array = _checks.as_floating("logits", logits)
    z = widen(array)
    source, target = (
        _checks.broadcast_to(name, _checks.as_real(name, prior).astype(z.dtype), z.shape)
        for name, prior in (("source_prior", source_prior), ("target_prior", target_prior))
    )
    for name, prior in (("source_prior", source), ("target_prior", target)):
        _checks.check_values(f"{name} must be at least 0", prior, prior >= 0)
    removed = (z == -jnp.inf) | ((target == 0) & (source >= 0))
    known = removed | ((source > 0) & (target > 0))

    def log_of(prior: Array) -> Array:
        return jnp.log(jnp.where(known & ~removed, prior, 1.0))

    adjusted = jnp.where(removed, 0.0, z) + (log_of(target) - log_of(source))
    return jnp.where(removed, -jnp.inf, jnp.where(known, adjusted, jnp.nan)).astype(array.dtype)
