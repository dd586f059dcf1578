"""The cross entropy of a row's softmax and weights of its classes, and its derivatives.

The gradient is sum(c) p - c, written so that the difference is never formed where it cancels: see
``_weighted_nll_gradient``. It has derivatives of its own, so that every order is right. A row of
-inf has no loss: it is NaN.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, finite
from jaxlogits._src.base.elementary import exp, log1p
from jaxlogits._src.base.products import product, times, weigh
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import (
    each_class,
    has_few_classes,
    of_all_devices,
    row_any,
    row_sum,
)
from jaxlogits._src.rows.softmax import (
    centred,
    log_softmax_rows,
    logsumexp_rows,
    softmax_or_zeros,
    softmax_rows,
    softmax_tangent,
)
from jaxlogits._src.rows.stats import gaps_of, row_stats

Pair = tuple[Array, Array]


class WeightedSums(NamedTuple):
    """What the loss of weights and its gradient take from a row; ``[..., 1]`` each."""

    largest: Array  # the maximum logit
    rest: Array  # the sum of exp(z_j - largest), less 1
    ties: Array  # how many classes have the maximum
    total: Array  # the sum of the weights


def weighted_nll(z: Array, weights: Array, axis_name: AxisName) -> Array:
    """-sum_k c_k log p_k, with 0 log 0 = 0; no term cancels another."""
    return _weighted_nll_and_sums(z, weights, axis_name)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _weighted_nll_and_sums(
    z: Array, weights: Array, axis_name: AxisName
) -> tuple[Array, WeightedSums]:
    """The loss, and what its derivatives take from the rows, which counts as constants."""
    stats = row_stats(z, axis_name)
    gaps, total = of_all_devices(_weighted_gaps(z, stats.largest, weights), axis_name)
    impossible = jnp.where(stats.largest == jnp.inf, z < jnp.inf, z == -jnp.inf)
    for sign in (1.0, -1.0):  # without a product, as 0 * inf is 0 here
        infinite = row_any(impossible & (sign * weights > 0), axis_name)
        gaps += jnp.where(infinite, sign * jnp.inf, 0.0)
    loss = gaps + log1p(stats.rest) * total
    loss = jnp.where(stats.largest == -jnp.inf, jnp.nan, loss)[..., 0]
    return xla.apart(loss), WeightedSums(stats.largest, stats.rest, stats.ties, total)


def _weighted_gaps(z: Array, largest: Array, weights: Array) -> Pair:
    """The sum of c (max - z) where that is finite, and of c."""
    # Half of a gap is finite where the gap isn't.
    half = 0.5 * finite(largest)
    if has_few_classes(z):
        pairs = list(zip(each_class(z), each_class(weights), strict=True))
        each = [jnp.where(jnp.isinf(x), 0.0, c * (half - 0.5 * x)) for x, c in pairs]
        halves = functools.reduce(jnp.add, each)
        total = functools.reduce(jnp.add, [c for _, c in pairs])
    else:
        # Without a select, which would end the loop of the sum.
        greatest = float(jnp.finfo(z.dtype).max)
        halves = row_sum(weights * jnp.minimum(half - 0.5 * z, greatest), None)
        halves, total = xla.apart((halves, row_sum(weights, None)))
    return jnp.where(jnp.isinf(largest), 0.0, 2.0 * halves), total


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _surprises(z: Array, weights: Array, axis_name: AxisName) -> Array:
    """-log p; 0 where that is inf and weighs 0."""
    surprises = -log_softmax_rows(z, axis_name)
    return jnp.where((weights == 0) & jnp.isinf(surprises), 0.0, surprises)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _weighted_nll_gradient(
    z: Array, sums: WeightedSums, weights: Array, axis_name: AxisName
) -> Array:
    """sum(c) p - c; at a sole maximum (sum(c) - c) p - c (1 - p), as p may be close to 1."""
    scale = 1.0 / (1.0 + sums.rest)
    p = exp(-gaps_of(z, sums.largest)) * scale
    is_below = xla.is_nonzero(_finite_gaps(z, sums.largest), sums.largest)
    of_others = xla.apart(row_sum(weights * is_below, axis_name))
    at_max = of_others * p - weights * (sums.rest * scale)
    is_sole = (z == sums.largest) & (sums.ties == 1.0)
    gradient = jnp.where(is_sole, at_max, sums.total * p - weights)
    return jnp.where(sums.largest == -jnp.inf, jnp.nan, gradient)


def _finite_gaps(z: Array, largest: Array) -> Array:
    """max - z in [0, inf], 0 at the maximum alone, without a select, which would end a loop.

    Beside +inf numbers are halved, lest the greatest be as large. A row of -inf has gaps of inf.
    """
    top = finite(largest)
    scale = jnp.where(largest == jnp.inf, 0.5, 1.0).astype(largest.dtype)
    return top - jnp.minimum(z * scale, top)


@checkpointed
def _weighted_nll_by_z(
    dz: Array, sums: WeightedSums, z: Array, weights: Array, axis_name: AxisName
) -> Array:
    gradient = _weighted_nll_gradient(z, sums, weights, axis_name)
    return row_sum(gradient * dz, axis_name)[..., 0]


@checkpointed
def _weighted_nll_by_weights(
    dweights: Array, z: Array, weights: Array, axis_name: AxisName
) -> Array:
    return row_sum(times(_surprises(z, weights, axis_name), dweights), axis_name)[..., 0]


derivatives(
    _weighted_nll_and_sums,
    _weighted_nll_by_z,
    lambda dweights, _, *args: _weighted_nll_by_weights(dweights, *args),
)
derivatives(
    _surprises,
    lambda dz, _, z, __, axis_name: -centred(softmax_rows(z, axis_name), dz, axis_name),
    None,
)
derivatives(
    _weighted_nll_gradient,
    lambda dz, _, z, __, weights, axis_name: (
        # Not the sum that is known, which counts as constant in the weights too.
        row_sum(weights, axis_name) * softmax_tangent(z, dz, axis_name)
    ),
    None,
    lambda dweights, _, z, __, ___, axis_name: (
        softmax_rows(z, axis_name) * row_sum(dweights, axis_name) - dweights
    ),
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def weighted_square_logsumexp(z: Array, weight: Array, axis_name: AxisName) -> Array:
    """weight * logsumexp(z)**2, with 0 for a row without classes and for a weight of 0."""
    lse = logsumexp_rows(z, axis_name)
    return jnp.where(lse == -jnp.inf, 0.0, product(weight, lse, lse))


@checkpointed
def _square_by_z(dz: Array, _: Array, z: Array, weight: Array, axis_name: AxisName) -> Array:
    lse = logsumexp_rows(z, axis_name)[..., None]
    p = softmax_or_zeros(z, axis_name)
    # What lse may make infinite or large comes first, lest the product with p underflow.
    return row_sum(times(weigh(weigh(2.0 * weight, lse), p), dz), axis_name)[..., 0]


def _square_by_weight(dweight: Array, _: Array, z: Array, __: Array, axis_name: AxisName) -> Array:
    lse = logsumexp_rows(z, axis_name)
    return times(jnp.where(lse == -jnp.inf, 0.0, weigh(lse, lse)), dweight)


derivatives(weighted_square_logsumexp, _square_by_z, _square_by_weight)
