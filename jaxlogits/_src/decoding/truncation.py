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
from jaxlogits._src.base.program import Option, program
from jaxlogits._src.decoding.removal import kept, kept_above, row_share
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.rows import rows_of
from jaxlogits._src.rows.softmax import log_softmax_rows, row_stats, softmax_rows
from jaxlogits._src.rows.thresholds import kth_largest, shares_of_range, within_mass

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
    """Keep the k likeliest classes and those that tie with the last of them.

    The threshold is found by bisection over the floating-point numbers, without a sort.

    Args:
        logits: floating-point array. -inf stays -inf; NaN makes its row NaN.
        k: at least 1, a number or one for each row, in the shape of ``logits`` without ``axis``.
            The number of classes, or more, keeps all. A traced one below 1 makes its row NaN.
        axis, axis_name: as in ``softmax``.
        where: boolean mask that broadcasts to ``logits``; a masked class is removed.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed.

    Accuracy: exact.
    Transforms: all, to any order, in the logits.

    Example:
        >>> jl.keep_top_k(jnp.array([1.0, 3.0, 2.0, 2.0]), 2)
        Array([-inf,   3.,   2.,   2.], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    z = lax.stop_gradient(rows.z)
    count = checks.as_row_count("k", k, z.shape[:-1])
    each = count[..., 0] if count.ndim else count
    checks.check_values("k must be at least 1", each, each >= 1)
    return kept(rows, z >= kth_largest(z, count, axis_name, rows.logits.dtype), count >= 1)


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
    """Keep the fewest likeliest classes whose probability is at least p: nucleus sampling.

    The classes that are cut off add up to at most 1 - p. Their sum is compared, not that of the
    kept ones, so that it is exact for p close to 1. The cut is found by bisection, without a sort.

    Args:
        logits: floating-point array. -inf stays -inf, a single +inf is all that is kept; two of
            them, or NaN, make their row NaN.
        p: in [0, 1], a number or one for each row, as k of ``keep_top_k``; 0 keeps the likeliest,
            1 all.
        axis, where, axis_name: as in ``keep_top_k``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed. Classes that tie with the
        last are kept.

    Accuracy: the set is that of exact sums for a p not within 1e-6 of where it changes.
    Transforms: all, to any order, in the logits.
    Reference: Holtzman et al., The Curious Case of Neural Text Degeneration (2020), section 3.1.

    Example:
        >>> jl.keep_top_p(jnp.array([2.0, 1.0, 0.0]), 0.8)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)
    p = row_share(rows, "p", p)
    z = lax.stop_gradient(rows.z)
    stats = row_stats(z, axis_name)
    inside = within_mass(z, stats.exps, p, axis_name, rows.logits.dtype)
    return kept(rows, inside, ~jnp.isnan(p + stats.rest))


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
    """Keep the classes whose surprise is closest to the entropy, up to a probability of ``mass``.

    The fewest classes of the smallest | -log p_k - entropy | whose probabilities add up to at least
    ``mass``. That leaves out rare classes and, where the row is undecided, one that stands out.

    Args:
        logits: as in ``keep_top_p``.
        mass: in [0, 1], a number or one for each row, as k of ``keep_top_k``; 0 keeps the most
            typical class, 1 all.
        axis, where, axis_name: as in ``keep_top_k``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed. The likeliest class may
        be, but never all; equally typical ones are kept together.

    Accuracy: the set is that of exact sums for a mass not within 1e-6 of where it changes.
    Transforms: all, to any order, in the logits.
    Reference: Meister et al., Locally Typical Sampling (2023), section 4.

    Example:
        >>> jl.keep_typical(jnp.array([1.0, 0.0, 0.0, 0.0, 0.0]), 0.5)
        Array([-inf,   0.,   0.,   0.,   0.], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)
    mass = row_share(rows, "mass", mass)
    z = lax.stop_gradient(rows.z)
    probs, gaps = softmax_rows(z, axis_name), row_stats(z, axis_name).gaps
    # -log p less the entropy is a gap less the mean gap, which nearly equal logits don't cancel in.
    mean = row_sum(jnp.where(probs == 0, 0.0, probs * gaps), axis_name)
    typical = jnp.where(probs > 0, -jnp.abs(gaps - mean), -jnp.inf)
    inside = within_mass(typical, probs, mass, axis_name, z.dtype)
    return kept(rows, inside, ~jnp.isnan(mass + mean))


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
    """Keep the classes that are at least p times as likely as the likeliest.

    z_k >= max(z) + log(p): a bar that rises with how sure the row is.

    Args:
        logits: as in ``keep_top_k``; +inf is all that is kept.
        p: in [0, 1], a number or one for each row, as k of ``keep_top_k``; 0 keeps all, 1 the
            likeliest.
        axis, where, axis_name: as in ``keep_top_k``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed.

    Accuracy: a class is kept rightly unless its ratio is within 1e-6 of p, relatively.
    Transforms: all, to any order, in the logits.
    Reference: Nguyen et al., Turning Up the Heat: Min-p Sampling (2024), section 4.

    Example:
        >>> jl.keep_min_p(jnp.array([2.0, 1.0, 0.0]), 0.25)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    p = row_share(rows, "p", p)
    gaps = row_stats(lax.stop_gradient(rows.z), axis_name).gaps
    return kept(rows, gaps <= -jnp.log(p), ~jnp.isnan(p))


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
    """Keep the classes whose logit is at most n standard deviations below the largest.

    z_k >= max(z) - n sigma, with sigma over the classes that are there: not masked, not -inf. A
    temperature divides both sides, so that it doesn't change what is kept.

    Args:
        logits: floating-point array. -inf stays -inf and isn't part of sigma; +inf is all that is
            kept; NaN makes its row NaN.
        n: at least 0, a number or one for each row, as k of ``keep_top_k``; 0 keeps the likeliest,
            infinity all.
        axis, where, axis_name: as in ``keep_top_k``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed.

    Accuracy: a class is kept rightly unless its gap is within 1e-6 of the bar, relatively.
    Transforms: all, to any order, in the logits.
    Reference: Tang et al., Top-n-sigma: Not All Logits Are You Need (2024), section 3.

    Example:
        >>> jl.keep_top_n_sigma(jnp.array([2.0, 1.0, 0.0, -3.0]), 1.0)  # sigma is 1.87
        Array([  2.,   1., -inf, -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, several_inf=True, no_class=True)
    z = lax.stop_gradient(rows.z)
    n = lax.stop_gradient(checks.as_row_option("n", n, z.dtype, z.shape[:-1]))
    shares, sigma = shares_of_range(z, axis_name)
    # Infinity times a sigma of 0 would be no number.
    inside = (shares <= n * sigma) | (n == jnp.inf)
    return kept(rows, inside, ~jnp.isnan(n))


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
    """Keep the classes whose probability is at least epsilon, and the likeliest whatever it has.

    Args:
        logits: as in ``keep_top_p``.
        epsilon: in [0, 1], a number or one for each row, as k of ``keep_top_k``; 0 keeps all.
        axis, where, axis_name: as in ``keep_top_k``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed.

    Accuracy: a class is kept rightly unless its probability is within 1e-6 of epsilon, relatively.
    Transforms: all, to any order, in the logits.
    Reference: Hewitt et al., Truncation Sampling as Language Model Desmoothing (2022), section 4.3.

    Example:
        >>> jl.keep_epsilon(jnp.array([2.0, 1.0, 0.0]), 0.1)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)
    epsilon = row_share(rows, "epsilon", epsilon)
    log_probs = log_softmax_rows(lax.stop_gradient(rows.z), axis_name)
    return kept_above(rows, log_probs, jnp.log(epsilon))


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
    """Keep the classes of at least eta = min(epsilon, sqrt(epsilon) exp(-entropy)).

    As ``keep_epsilon``, with a bar that falls where the row is undecided.

    Args:
        logits: as in ``keep_top_p``.
        epsilon: in [0, 1], a number or one for each row, as k of ``keep_top_k``; 0 keeps all.
        axis, where, axis_name: as in ``keep_top_k``.

    Returns:
        The shape and dtype of ``logits``, -inf where a class is removed; the likeliest one stays.

    Accuracy: a class is kept rightly unless its probability is within 1e-5 of eta, relatively.
    Transforms: all, to any order, in the logits.
    Reference: Hewitt et al., Truncation Sampling as Language Model Desmoothing (2022), section 4.3.

    Example:
        >>> jl.keep_eta(jnp.array([2.0, 1.0, 0.0]), 0.1)  # softmax is 0.67, 0.24, 0.09
        Array([  2.,   1., -inf], dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, no_class=True)
    epsilon = row_share(rows, "epsilon", epsilon)
    z = lax.stop_gradient(rows.z)
    probs, log_probs = (fn(z, axis_name) for fn in (softmax_rows, log_softmax_rows))
    negentropy = row_sum(jnp.where(probs == 0, 0.0, probs * log_probs), axis_name)
    log_epsilon = jnp.log(epsilon)
    return kept_above(rows, log_probs, jnp.minimum(log_epsilon, 0.5 * log_epsilon + negentropy))
