"""Rows in bins of equal width by a probability."""

from __future__ import annotations

import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.regression.coordinates import unit_of


def bin_edges(num_bins: int, dtype: jnp.dtype) -> Array:
    """The edges [num_bins + 1] of bins that cover [0, 1]."""
    return jnp.linspace(0.0, 1.0, num_bins + 1, dtype=dtype)


def equal_width(probs: Array, num_bins: int) -> Array:
    """Each row's bin: how many of the inner edges are below its probability."""
    edges = bin_edges(num_bins, probs.dtype)[1:-1]
    return jnp.sum(probs[:, None] > edges[None, :], axis=-1, dtype=jnp.int32)


def bin_sums(weights: Array, values: Array, bins: Array, num_bins: int) -> Array:
    """[num_bins] weighted sums of the rows' values; NaN in all if a row's weight is."""
    inside = bins[:, None] == jnp.arange(num_bins, dtype=bins.dtype)[None, :]
    inside |= jnp.isnan(weights)[:, None]
    # A sum over rows is a tree of sums, which scatter's is not: a float32 count would stop growing.
    return jnp.sum(jnp.where(inside, (weights * values)[:, None], 0.0), axis=0)


def mean_distance(weights: Array, gaps: Array, bins: Array, num_bins: int) -> Array:
    """sum_b |the gaps' weighted sum in bin b| / the sum of weights: a calibration error."""
    weights = weights / unit_of(weights)
    return jnp.sum(jnp.abs(bin_sums(weights, gaps, bins, num_bins))) / jnp.sum(weights)


def curve(
    weights: Array, probs: Array, outcomes: Array, num_bins: int
) -> tuple[Array, Array, Array, Array]:
    """In bins of equal width the means of probabilities and outcomes, the weight, and the edges."""
    bins, unit = equal_width(probs, num_bins), unit_of(weights)
    columns = (probs, outcomes, jnp.ones_like(outcomes))
    prob, outcome, weight = (bin_sums(weights / unit, column, bins, num_bins) for column in columns)
    return prob / weight, outcome / weight, weight * unit, bin_edges(num_bins, weight.dtype)
