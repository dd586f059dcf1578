"""Rows in bins of equal width by a probability."""

from __future__ import annotations

import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array


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
