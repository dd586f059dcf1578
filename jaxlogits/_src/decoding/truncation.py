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
    """Top-p (nucleus): keep the fewest likeliest classes whose total probability is at least p.

    Args:
        logits: floating-point array.
        p: in [0, 1], a number or one per row; 0 keeps the likeliest class, 1 all.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf, ties are kept.

    Accuracy: the set is that of exact sums unless it would change within 1e-6 of p.
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
    """Locally typical sampling: keep the classes whose surprise, -log p, is closest to the entropy.

    Args:
        logits: floating-point array.
        mass: in [0, 1], the least total probability to keep, a number or one per row; 1 keeps all.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf, ties are kept.

    Accuracy: the set is that of exact sums unless it would change within 1e-6 of the mass.
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
    """Min-p: keep the classes at least p times as likely as the likeliest, z_k >= max(z) + log(p).

    Args:
        logits: floating-point array.
        p: in [0, 1], a number or one per row; 0 keeps all classes, 1 the likeliest.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.

    Accuracy: right for all classes whose ratio isn't within a relative 1e-6 of p.
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
    """Top-n-sigma: keep logits within n standard deviations of the maximum, z_k >= m - n sigma.

    Args:
        logits: floating-point array; sigma leaves out masked classes and -inf.
        n: at least 0, a number or one per row; 0 keeps the likeliest class, infinity all.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.

    Accuracy: right for all classes whose gap isn't within a relative 1e-6 of n sigma.
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
    """Epsilon sampling: keep the classes with a probability of at least epsilon, and the likeliest.

    Args:
        logits: floating-point array.
        epsilon: in [0, 1], a number or one per row; 0 keeps all classes.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.

    Accuracy: right for all classes whose probability isn't within a relative 1e-6 of epsilon.
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
    """Eta sampling: keep p_k >= eta = min(epsilon, sqrt(epsilon) exp(-entropy)), and the likeliest.

    Args:
        logits: floating-point array.
        epsilon: in [0, 1], a number or one per row; 0 keeps all classes.
        axis, where, axis_name: dimensions, mask and mesh axes of the classes, as in ``softmax``.

    Returns:
        The shape and dtype of ``logits``; removed and masked classes are -inf.

    Accuracy: right for all classes whose probability isn't within a relative 1e-5 of eta.
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
