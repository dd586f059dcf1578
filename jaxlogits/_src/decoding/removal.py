"""How classes are removed from rows of logits: the others stay as they are."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike
from jaxlogits._src.mesh.reductions import row_has_nan, row_max
from jaxlogits._src.rows.rows import Rows, spoiled


def row_share(rows: Rows, name: str, value: ArrayLike) -> Array:
    """A share of 1, for each row or for all; NaN where it is none."""
    shape = rows.logits.shape[:-1]
    option = checks.as_row_option(name, value, rows.z.dtype, shape)
    return lax.stop_gradient(option)


def kept_above(rows: Rows, log_probs: Array, bar: Array) -> Array:
    """The logits of the classes whose log probability is at least ``bar``, and the largest."""
    is_largest = rows.z == row_max(rows.z, rows.axis_name)
    known = ~(jnp.isnan(bar) | row_has_nan(log_probs, rows.axis_name))
    return kept(rows, (log_probs >= bar) | is_largest, known)


def kept(rows: Rows, keep: Array, known: Array) -> Array:
    """The logits that are kept; rows are NaN where a parameter or a logit is."""
    checks.require_infinity("logits", rows.like)
    z = rows.z
    is_empty = row_max(z, rows.axis_name) == -jnp.inf
    bad = row_has_nan(z, rows.axis_name) | (~known & ~is_empty)
    return rows.restore(spoiled(jnp.where(keep | bad, z, -jnp.inf), bad), -jnp.inf)
