"""Leave only some classes to draw from: the others' logits become -inf.

What every function here keeps, it keeps unchanged, with derivative 1; the derivative by what it
removes, and by the parameter, is 0. The likeliest class always stays, and classes that tie are kept
or removed together.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.checks import Range
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName
from jaxlogits._src.base.elementary import log, log1p
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.decoding.removal import kept, row_share
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import row_max, row_sum
from jaxlogits._src.rows import thresholds
from jaxlogits._src.rows.rows import Rows, rows_of
from jaxlogits._src.rows.softmax import softmax_rows
from jaxlogits._src.rows.stats import gaps_of, probs_of, row_stats

MAP = {"logits": "rows classes", "where": "rows classes", "result": "rows classes"}


@program("axis", "axis_name", k=Option(Range(1), integer=True))
@on_explicit_mesh(**MAP, k="rows")
def keep_top_k(
    logits: ArrayLike,
    k: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Top-k: keep the k likeliest classes, and those that tie with the last of them.

    Args:
        logits: floating-point array; what is kept doesn't change.
        k: at least 1, an integer or one per row; K or more keeps all classes.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.
    Accuracy: exact.

    Example:
        >>> jl.keep_top_k(jnp.array([1.0, 3.0, 2.0, 2.0]), 2)
        Array([-inf,   3.,   2.,   2.], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    count = rows.beside(checks.as_row_count("k", k, rows.z.shape[:-1]))
    each = count[..., 0] if count.ndim else count
    checks.check_values("k must be at least 1", each, each >= 1)

    def bar(rows: Rows, count: Array) -> tuple[Array]:
        least = thresholds.kth_largest(rows.z, count, axis_name, rows.logits.dtype)
        return (jnp.where(count >= 1, least, jnp.nan),)

    return kept(rows, bar, lambda z, _, least: z >= least, count)


@program("axis", "axis_name", p=Option(Range(0, 1)))
@on_explicit_mesh(**MAP, p="rows")
def keep_top_p(
    logits: ArrayLike,
    p: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Top-p (nucleus): keep the smallest set of likeliest classes with a total probability of p.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.
        p: in [0, 1], a number or one per row; 0 keeps the likeliest class, 1 all.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf, ties are kept.
    Accuracy: the exact set, unless that changes within 1e-6 of p.
    Reference: Holtzman et al., The Curious Case of Neural Text Degeneration (2020), section 3.1.

    Example:
        >>> jl.keep_top_p(jnp.array([2.0, 1.0, 0.0]), 0.8)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)

    def bar(rows: Rows, p: Array) -> tuple[Array, Array]:
        stats = row_stats(rows.z, axis_name)
        least = thresholds.mass_threshold(rows.z, stats.exps, 1.0 - p, axis_name, rows.logits.dtype)
        return least, stats.rest

    def stays(z: Array, p: Array, least: Array, _: Array) -> Array:
        return (z >= least) | (p == 1.0)

    return kept(rows, bar, stays, row_share(rows, "p", p))


@program("axis", "axis_name", mass=Option(Range(0, 1)))
@on_explicit_mesh(**MAP, mass="rows")
def keep_typical(
    logits: ArrayLike,
    mass: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Locally typical sampling: keep the classes with -log p (surprise) closest to the entropy.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.
        mass: in [0, 1], the least total probability to keep, a number or one per row; 1 keeps all.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf, ties are kept.
    Accuracy: the exact set, unless that changes within 1e-6 of the mass.
    Reference: Meister et al., Locally Typical Sampling (2023), section 4.

    Example:
        >>> jl.keep_typical(jnp.array([1.0, 0.0, 0.0, 0.0, 0.0]), 0.5)
        Array([-inf,   0.,   0.,   0.,   0.], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)

    def scores(z: Array, largest: Array, total: Array, mean: Array) -> Array:
        """-log p less the entropy: a gap less the mean gap, in which near logits don't cancel."""
        distance = jnp.abs(gaps_of(z, largest) - mean)
        return jnp.where(probs_of(z, largest, total) > 0, -distance, -jnp.inf)

    def bar(rows: Rows, mass: Array) -> tuple[Array, ...]:
        z, stats = rows.z, row_stats(rows.z, axis_name)
        total = 1.0 + stats.rest
        probs = probs_of(z, stats.largest, total)
        mean = row_sum(jnp.where(probs == 0, 0.0, probs * stats.gaps), axis_name)
        typical = scores(z, stats.largest, total, mean)
        least = thresholds.mass_threshold(typical, probs, 1.0 - mass, axis_name, z.dtype)
        return least, stats.largest, total, mean

    def stays(z: Array, mass: Array, least: Array, *of_row: Array) -> Array:
        return (scores(z, *of_row) >= least) | (mass == 1.0)

    return kept(rows, bar, stays, row_share(rows, "mass", mass))


@program("axis", "axis_name", p=Option(Range(0, 1)))
@on_explicit_mesh(**MAP, p="rows")
def keep_min_p(
    logits: ArrayLike,
    p: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Min-p: keep the classes at least p times as likely as the likeliest, z_k >= max(z) + log(p).

    Args:
        logits, axis, where, axis_name: as in ``softmax``.
        p: in [0, 1], a number or one per row; 0 keeps all classes, 1 the likeliest.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.
    Accuracy: exact for classes whose ratio isn't within a relative 1e-6 of p.
    Reference: Nguyen et al., Turning Up the Heat: Min-p Sampling (2024), section 4.

    Example:
        >>> jl.keep_min_p(jnp.array([2.0, 1.0, 0.0]), 0.25)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)

    def largest(rows: Rows, _: Array) -> tuple[Array]:
        return (row_max(rows.z, axis_name),)

    def stays(z: Array, p: Array, largest: Array) -> Array:
        return gaps_of(z, largest) <= -log(p)

    return kept(rows, largest, stays, row_share(rows, "p", p))


@program("axis", "axis_name", n=Option(Range(0)))
@on_explicit_mesh(**MAP, n="rows")
def keep_top_n_sigma(
    logits: ArrayLike,
    n: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Top-n-sigma: keep logits within n standard deviations of the maximum, z_k >= m - n sigma.

    Args:
        logits, axis, where, axis_name: as in ``softmax``; sigma leaves out masked classes and -inf.
        n: at least 0, a number or one per row; 0 keeps the likeliest class, infinity all.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.
    Accuracy: exact for classes whose gap isn't within a relative 1e-6 of n sigma.
    Reference: Tang et al., Top-n-sigma: Not All Logits Are You Need (2024), section 3.

    Example:
        >>> jl.keep_top_n_sigma(jnp.array([2.0, 1.0, 0.0, -3.0]), 1.0)  # sigma is 1.87
        Array([  2.,   1., -inf, -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    n = rows.option("n", n)

    def spread(rows: Rows, _: Array) -> tuple[Array, ...]:
        return thresholds.range_and_deviation(rows.z, axis_name)

    def stays(z: Array, n: Array, largest: Array, farthest: Array, sigma: Array) -> Array:
        # Infinity times a sigma of 0 would be no number.
        return (thresholds.shares_of_range(z, largest, farthest) <= n * sigma) | (n == jnp.inf)

    return kept(rows, spread, stays, lax.stop_gradient(n))


@program("axis", "axis_name", epsilon=Option(Range(0, 1)))
@on_explicit_mesh(**MAP, epsilon="rows")
def keep_epsilon(
    logits: ArrayLike,
    epsilon: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Epsilon sampling: keep the classes with a probability of at least epsilon, and the likeliest.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.
        epsilon: in [0, 1], a number or one per row; 0 keeps all classes.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.
    Accuracy: exact for classes whose probability isn't within a relative 1e-6 of epsilon.
    Reference: Hewitt et al., Truncation Sampling as Language Model Desmoothing (2022), section 4.3.

    Example:
        >>> jl.keep_epsilon(jnp.array([2.0, 1.0, 0.0]), 0.1)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)

    def bar(rows: Rows, epsilon: Array) -> tuple[Array, ...]:
        stats = row_stats(rows.z, axis_name)
        return stats.largest, log1p(stats.rest), log(epsilon)

    return kept(rows, bar, _is_likely, row_share(rows, "epsilon", epsilon))


@program("axis", "axis_name", epsilon=Option(Range(0, 1)))
@on_explicit_mesh(**MAP, epsilon="rows")
def keep_eta(
    logits: ArrayLike,
    epsilon: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Eta sampling: keep p_k >= eta = min(epsilon, sqrt(epsilon) exp(-entropy)), and the likeliest.

    Args:
        logits, axis, where, axis_name: as in ``softmax``.
        epsilon: in [0, 1], a number or one per row; 0 keeps all classes.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.
    Accuracy: exact for classes whose probability isn't within a relative 1e-5 of eta.
    Reference: Hewitt et al., Truncation Sampling as Language Model Desmoothing (2022), section 4.3.

    Example:
        >>> jl.keep_eta(jnp.array([2.0, 1.0, 0.0]), 0.1)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)

    def bar(rows: Rows, epsilon: Array) -> tuple[Array, ...]:
        stats = row_stats(rows.z, axis_name)
        surplus = log1p(stats.rest)
        probs = softmax_rows(rows.z, axis_name)
        log_probs = -stats.gaps - surplus
        negentropy = row_sum(jnp.where(probs == 0, 0.0, probs * log_probs), axis_name)
        log_epsilon = log(epsilon)
        least = jnp.minimum(log_epsilon, 0.5 * log_epsilon + negentropy)
        return stats.largest, surplus, least

    return kept(rows, bar, _is_likely, row_share(rows, "epsilon", epsilon))


def _is_likely(z: Array, _: Array, largest: Array, surplus: Array, least: Array) -> Array:
    """Whether a class's log probability, -gap - surplus, is at least ``least``, or the largest."""
    return (-gaps_of(z, largest) - surplus >= least) | (z == largest)
