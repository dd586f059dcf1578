"""How classes are removed from rows of logits: the others stay as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike
from jaxlogits._src.mesh.reductions import row_has_nan, row_max
from jaxlogits._src.rows.blocks import row_numbers
from jaxlogits._src.rows.rows import Rows, spoiled


def row_share(rows: Rows, name: str, value: ArrayLike) -> Array:
    """A share of 1, for each row or for all; NaN where it is none."""
    return lax.stop_gradient(rows.option(name, value))


def kept(
    rows: Rows,
    numbers: Callable[..., tuple[Array, ...]],
    stays: Callable[..., Array],
    option: Array,
) -> Array:
    """The logits of the classes that stay, by a few numbers ``[..., 1]`` of their row.

    ``numbers(rows, option)`` are found in passes over the rows, ``stays(z, option, *numbers)`` is a
    condition of each class. Rows are NaN where one of the numbers, the option or a logit is.
    """
    checks.require_infinity("logits", rows.like)

    def decide(rows: Rows, option: Array) -> tuple[Any, Array]:
        found, z = numbers(rows, option), rows.z
        unknown = functools.reduce(jnp.logical_or, [jnp.isnan(x) for x in (option, *found)])
        is_empty = row_max(z, rows.axis_name) == -jnp.inf
        return found, row_has_nan(z, rows.axis_name) | (unknown & ~is_empty)

    found, bad = row_numbers(decide, rows, option)
    keep = stays(lax.stop_gradient(rows.z), option, *found)
    return rows.restore(spoiled(jnp.where(keep | bad, rows.z, -jnp.inf), bad), -jnp.inf)
