"""Draw classes from the softmax of logits, by adding Gumbel noise and taking the largest.

The noise has twice the bits that jax.random takes by default: with those alone a class of
probability 1e-7 is drawn far too rarely and one of 1e-8 never, as the noise can't exceed 16.6.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits import _checks
from jaxlogits._mesh import num_classes, row_argmax, row_max, row_sum, row_top_k
from jaxlogits._nll import nll
from jaxlogits._rows import Rows, divided, first_max, rows_of, softmax_rows
from jaxlogits._typing import Array, ArrayLike, Axis, AxisName


def sample(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    shape: tuple[int, ...] = (),
    temperature: ArrayLike = 1.0,
) -> Array:
    """Draw classes from softmax(logits / temperature), independently for each row.

    The largest of z_k / T + g_k with Gumbel noise g, which reaches far enough for probabilities
    down to 1e-12 to be drawn at their rate.

    Args:
        key: from ``jax.random``.
        logits: floating-point array. -inf is never drawn, a single +inf always.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``; a masked class is never drawn.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.
        shape: of several draws from each row.
        temperature: T, at least 0, a number or one for each row, in a shape that broadcasts to that
            of ``logits`` without ``axis``. 0 takes the first of the largest logits.

    Returns:
        int32 class indices: ``shape`` followed by the shape of ``logits`` without ``axis``. -1, for
        which losses are NaN, if a row has no class to draw, NaN, or more than one +inf, or if a
        traced temperature is below 0.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for an axis out of range, a row without classes or a temperature below 0.

    Accuracy: each class at its probability within 1e-5, relatively, and 1e-14.
    Transforms: all; a class has no derivative.
    Reference: Maddison et al., A* Sampling (2014), section 2.

    Example:
        >>> classes = jl.sample(jax.random.key(0), jnp.array([0.0, 1.0, -jnp.inf]), shape=(1000,))
        >>> jnp.bincount(classes, length=3)  # softmax is 0.27, 0.73, 0
        Array([259, 741,   0], dtype=int32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    return _draw(key, _cooled(rows, temperature), shape, axis_name)


def sample_with_log_prob(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    shape: tuple[int, ...] = (),
    temperature: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """Draw classes as ``sample`` does, and say how likely each was.

    For policy gradients: the log probability is that of softmax(logits / temperature), and
    differentiable.

    Args:
        key: from ``jax.random``.
        logits: floating-point array. -inf is never drawn, a single +inf always.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``; a masked class is never drawn.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.
        shape: of several draws from each row.
        temperature: T, at least 0, as in ``sample``. At 0 the log probability is 0.

    Returns:
        int32 class indices, and their log probabilities in float32 or wider: both ``shape``
        followed by the shape of ``logits`` without ``axis``. -1 and NaN where nothing can be drawn.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for an axis out of range, a row without classes or a temperature below 0.

    Accuracy: log probabilities float32 5 ulp where the gaps between logits are exact; the classes
        as in ``sample``.
    Transforms: all, to any order, of the log probability, in logits and temperature.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([0.0, 20.0])
        >>> jl.sample_with_log_prob(key, logits)
        (Array(1, dtype=int32), Array(-2.0611537e-09, dtype=float32))
    """
    rows = rows_of(logits, axis, where, axis_name)
    z = _cooled(rows, temperature)
    classes = _draw(key, z, shape, axis_name)
    log_probs = -nll(jnp.broadcast_to(z, (*shape, *z.shape)), classes, rows.blank, axis_name)
    return classes, jnp.where(classes >= 0, log_probs, jnp.nan)


def sample_without_replacement(
    key: ArrayLike,
    logits: ArrayLike,
    k: int,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Draw k different classes, one after the other from the softmax of those that are left.

    The k largest of z_k + g_k with Gumbel noise g, in that order.

    Args:
        key: from ``jax.random``.
        logits: floating-point array. -inf is never drawn, a single +inf always first.
        k: how many, from 1 to the number of classes.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``; a masked class is never drawn.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.

    Returns:
        int32 class indices in the order of the draws: the shape of ``logits`` without ``axis``,
        followed by k. -1 when no class is left; a row with NaN or more than one +inf is all -1.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for an axis out of range, a row without classes or a k out of range.

    Accuracy: each order at its probability within 1e-5, relatively, and 1e-14.
    Transforms: all; a class has no derivative.
    Reference: Kool et al., Stochastic Beams and Where to Find Them (2019), section 2.3.

    Example:
        >>> jl.sample_without_replacement(jax.random.key(0), jnp.array([0.0, 50.0, 100.0]), 3)
        Array([2, 1, 0], dtype=int32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    most = num_classes(rows.logits.shape, axis_name)
    if not 1 <= k <= most:
        raise ValueError(f"k must be at least 1 and at most {most}, got {k}")
    perturbed = _perturbed(key, _usable(rows), (), axis_name)
    largest, classes = row_top_k(perturbed, k, axis_name)
    return jnp.where(largest > -jnp.inf, classes, -1)


def gumbel_softmax(
    key: ArrayLike,
    logits: ArrayLike,
    *,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    temperature: ArrayLike = 1.0,
    hard: bool = False,
) -> Array:
    """A differentiable draw, softmax((z + g) / temperature) with Gumbel noise g.

    As the temperature falls it tends to a one-hot draw from softmax(z), and its gradient's variance
    grows. With ``hard`` the value is the one-hot draw itself while every derivative is that of the
    soft one: the straight-through estimator.

    Args:
        key: from ``jax.random``.
        logits: floating-point array. -inf has probability 0, a single +inf takes it all.
        axis: dimension or dimensions that hold the classes.
        where: boolean mask that broadcasts to ``logits``, True for the classes that count.
        axis_name: mesh axes over which the classes are split, inside ``shard_map``.
        temperature: above 0. One that is traced and isn't gives NaN.
        hard: whether the value is one-hot.

    Returns:
        The shape and dtype of ``logits``: probabilities of the classes, 0 where they are masked.
        NaN for a row without a class to draw, with NaN, or with more than one +inf.

    Raises:
        TypeError: if the logits aren't floating point or ``where`` isn't boolean.
        ValueError: for an axis out of range, a row without classes or a temperature that isn't a
            scalar or not above 0.

    Accuracy: float32 5 ulp of 1, for the noise that was drawn.
    Transforms: all, to any order, in logits and temperature.
    Reference: Jang et al., Categorical Reparameterization with Gumbel-Softmax (2017), equation 2.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([0.0, 1.0, 2.0])
        >>> jl.gumbel_softmax(key, logits, temperature=0.5, hard=True).sum()
        Array(1., dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    scale = _checks.as_positive("temperature", temperature, rows.blank.dtype)
    z = divided(_perturbed(key, _usable(rows), (), axis_name), scale)
    soft = softmax_rows(z, rows.blank, axis_name)
    if hard:
        # A difference that is exactly 0 and has the derivatives of its first term.
        drawn = jnp.where(jnp.isnan(soft), soft, first_max(z, axis_name).astype(soft.dtype))
        soft = lax.stop_gradient(drawn) + (soft - lax.stop_gradient(soft))
    return rows.restore(soft, 0.0)


def _usable(rows: Rows) -> Array:
    """The logits, all NaN in a row with NaN or more than one +inf."""
    z = rows.z
    infinite = row_sum((z == jnp.inf).astype(jnp.int32), rows.axis_name)
    unclear = (infinite > 1) | jnp.isnan(row_max(z, rows.axis_name))
    return jnp.where(unclear, jnp.nan, z)


def _cooled(rows: Rows, temperature: ArrayLike) -> Array:
    """Logits over temperature; at 0 the first maximum alone is left."""
    z = _usable(rows)
    scale = _checks.as_row_option("temperature", temperature, z.dtype, z.shape[:-1])
    greedy = jnp.where(first_max(z, rows.axis_name) & (z > -jnp.inf), 0.0, -jnp.inf)
    greedy = jnp.where(jnp.isnan(z), z, greedy)
    return jnp.where(scale == 0, greedy, divided(z, jnp.where(scale == 0, 1.0, scale)))


def _draw(key: ArrayLike, z: Array, shape: tuple[int, ...], axis_name: AxisName) -> Array:
    """int32 indices of the largest perturbed logits; -1 if there is none."""
    perturbed = _perturbed(key, lax.stop_gradient(z), shape, axis_name)
    classes = row_argmax(perturbed, axis_name)
    return jnp.where(row_max(perturbed, axis_name) > -jnp.inf, classes, -1)[..., 0]


def _perturbed(key: ArrayLike, z: Array, shape: tuple[int, ...], axis_name: AxisName) -> Array:
    """Logits with Gumbel noise, ``[*shape, ..., K]``."""
    key = jnp.asarray(key)
    if axis_name is not None:
        key = jax.random.fold_in(key, lax.axis_index(axis_name))
    noise = jax.random.gumbel(key, (*shape, *z.shape), z.dtype, mode="high")
    return jnp.broadcast_to(z, noise.shape) + noise
