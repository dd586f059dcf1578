"""Draw classes from the softmax of logits, by adding Gumbel noise and taking the largest."""

from __future__ import annotations

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName, widen
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.decoding.gumbel import (
    cleaned,
    cooled_rows,
    draw_of_rows,
    draw_with_numbers,
    gumbel,
    half_below_max,
    row_temperature,
    unclear_rows,
    usable,
)
from jaxlogits._src.mesh.explicit import with_whole_classes
from jaxlogits._src.mesh.reductions import num_classes, row_top_k
from jaxlogits._src.rows.nll import LabelSums, label_sums, nll_of
from jaxlogits._src.rows.quotients import cooled
from jaxlogits._src.rows.rows import reduced, rows_of, spoiled
from jaxlogits._src.rows.softmax import first_max, softmax_rows


@program("axis", "axis_name", "shape", temperature=Option(Range(0)))
@with_whole_classes(logits="rows classes", where="rows classes", temperature="rows")
def sample(
    key: ArrayLike,
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    shape: tuple[int, ...] = (),
    temperature: ArrayLike = 1.0,
) -> Array:
    """Draw classes from the categorical distribution softmax(logits / temperature) of each row.

    Args:
        key: from ``jax.random``.
        logits: floating-point array. -inf is never drawn, a single +inf always.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.
        shape: for several draws from each row, a tuple of ints.
        temperature: T, at least 0, a number or one per row. At 0 the first of the largest logits is
            taken (greedy); at infinity all possible classes are equally likely.

    Returns:
        int32 class indices: ``shape`` followed by the shape of ``logits`` without ``axis``. -1, for
        which losses are NaN, where nothing can be drawn: no class, NaN, several +inf, T < 0.
    Accuracy: each class at its probability to a relative 1e-5 plus an absolute 1e-14.
    Reference: Maddison et al., A* Sampling (2014), section 2.

    Example:
        >>> classes = jl.sample(jax.random.key(0), jnp.array([0.0, 1.0, -jnp.inf]), shape=(1000,))
        >>> jnp.bincount(classes, length=3)  # softmax is 0.27, 0.73, 0
        Array([259, 741,   0], dtype=int32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    return draw_of_rows(key, rows, row_temperature(rows, temperature), _as_shape(shape))


@program("axis", "axis_name", "shape", temperature=Option(Range(0)))
@with_whole_classes(logits="rows classes", where="rows classes", temperature="rows")
def sample_with_log_prob(
    key: ArrayLike,
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    shape: tuple[int, ...] = (),
    temperature: ArrayLike = 1.0,
) -> tuple[Array, Array]:
    """Draw classes as ``sample`` does, with the log probability of each draw, for policy gradients.

    Args:
        key, logits, axis, where, axis_name, shape: as in ``sample``.
        temperature: T, at least 0, as in ``sample``. At 0 the log probability is 0.

    Returns:
        int32 class indices, and their log probabilities in float32 or wider, both ``shape``
        followed by the shape of ``logits`` without ``axis``. -1 and NaN where nothing can be drawn.
    Accuracy: log probabilities float32 5 ulp where the gaps are exact; classes as in ``sample``.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([0.0, 20.0])
        >>> jl.sample_with_log_prob(key, logits)
        (Array(1, dtype=int32), Array(-2.0611537e-09, dtype=float32))
    """
    rows = rows_of(logits, axis, where, axis_name)
    shape, scale = _as_shape(shape), row_temperature(rows, temperature)

    def sums(z: Array, classes: Array) -> LabelSums:
        each = label_sums(jnp.broadcast_to(z, (*classes.shape, z.shape[-1])), classes, axis_name)
        return LabelSums(*(x[..., 0] for x in each))

    classes, known = draw_with_numbers(key, rows, scale, shape, sums)
    known = LabelSums(*(x[..., None] for x in known))

    @jax.checkpoint
    def log_probs(z: Array) -> Array:
        z = cooled_rows(rows._replace(z=widen(z)), scale)
        return -nll_of(known, jnp.broadcast_to(z, (*shape, *z.shape)), classes, axis_name)

    return classes, reduced(log_probs, rows, wide=False, empty=jnp.nan)


@program("axis", "axis_name", "k", k=Option(Range(), integer=True))
@with_whole_classes(logits="rows classes", where="rows classes")
def sample_without_replacement(
    key: ArrayLike,
    logits: ArrayLike,
    k: int,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Gumbel top-k: draw k different classes, each from the softmax of those that are left.

    Args:
        key, logits, axis, where, axis_name: as in ``sample``; a single +inf comes first.
        k: how many, from 1 to the number of classes, known while tracing.

    Returns:
        int32 class indices in the order of the draws: the shape of ``logits`` without ``axis``,
        followed by k. -1 when no class is left; a row with NaN or several +inf is all -1.
    Accuracy: each order at its probability to a relative 1e-5 plus an absolute 1e-14.
    Reference: Kool et al., Stochastic Beams and Where to Find Them (2019), section 2.3.

    Example:
        >>> jl.sample_without_replacement(jax.random.key(0), jnp.array([0.0, 50.0, 100.0]), 3)
        Array([2, 1, 0], dtype=int32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    k = as_count(k, num_classes(rows.logits.shape, axis_name))
    z = usable(rows)
    noise = gumbel(key, z.shape, z.dtype, axis_name)
    # The sum and what its rounding loses, as those that are left may be far below the first.
    high = z + noise
    added = high - z
    low = (z - (high - added)) + (noise - added)
    low = jnp.where(jnp.isfinite(high), low, 0.0)
    largest, classes = row_top_k((high, low), k, axis_name)
    return jnp.where(largest > -jnp.inf, classes, -1)


@program("axis", "axis_name", "hard", temperature=Option(Range(above=0)))
@with_whole_classes(logits="rows classes", where="rows classes", temperature="rows")
def gumbel_softmax(
    key: ArrayLike,
    logits: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
    temperature: ArrayLike = 1.0,
    hard: bool = False,
) -> Array:
    """A differentiable sample, softmax((z + g) / temperature) with Gumbel noise g.

    Args:
        key, logits, axis, where, axis_name: as in ``sample``.
        temperature: above 0, a number or one per row; lower is closer to one-hot.
        hard: True for a one-hot value with the derivatives of the soft one (straight-through).

    Returns:
        The shape and dtype of ``logits``, 0 where masked; NaN in a row without a class to draw.
    Accuracy: float32 5 ulp of 1, for the noise that was drawn.
    Reference: Jang et al., Categorical Reparameterization with Gumbel-Softmax (2017), equation 2.

    Example:
        >>> key, logits = jax.random.key(0), jnp.array([0.0, 1.0, 2.0])
        >>> jl.gumbel_softmax(key, logits, temperature=0.5, hard=True).sum()
        Array(1., dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name)
    dtype, shape = rows.z.dtype, rows.logits.shape
    scale = rows.option("temperature", temperature)
    if not isinstance(hard, bool | np.bool_):
        raise TypeError(f"hard must be True or False, got {hard!r}")
    # Of halves, which don't overflow: the temperature may be as large as the logits.
    unclear = unclear_rows(rows)
    z = cleaned(rows.z, unclear)
    half = 0.5 * gumbel(key, shape, dtype, axis_name) + half_below_max(z, axis_name)
    soft = softmax_rows(2.0 * cooled(half, scale, axis_name), axis_name)
    soft = spoiled(soft, unclear)
    if hard:
        # A difference that is exactly 0 and has the derivatives of its first term.
        drawn = jnp.where(jnp.isnan(soft), soft, first_max(half, axis_name).astype(soft.dtype))
        soft = lax.stop_gradient(drawn) + (soft - lax.stop_gradient(soft))
    return rows.restore(soft, 0.0)


def _as_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Dimensions as Python's integers."""
    if not isinstance(shape, tuple) or not all(map(_is_index, shape)) or any(n < 0 for n in shape):
        raise TypeError(f"shape must be a tuple of ints that are at least 0, got {shape!r}")
    return tuple(map(operator.index, shape))


def as_count(k: int, most: int) -> int:
    """How many classes to draw of those that there are."""
    if not _is_index(k):
        raise TypeError(f"k must be an int that is known while tracing, got {k!r}")
    if not 1 <= k <= most:
        raise ValueError(f"k must be at least 1 and at most {most}, got {k}")
    return operator.index(k)


def _is_index(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
