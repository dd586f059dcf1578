"""Log probabilities where only some classes of each row remain, given by their indices.

A sampler that keeps the likeliest classes, by top-k or top-p, draws from a softmax over these
alone. Who recorded them gets the log probability with which the class was drawn, and its gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis, AxisName
from jaxlogits._src.base.program import program
from jaxlogits._src.losses.classes import softmax_cross_entropy_with_integer_labels
from jaxlogits._src.mesh.explicit import on_explicit_mesh
from jaxlogits._src.mesh.reductions import (
    class_indices,
    first_class,
    num_classes,
    row_any,
    row_sum,
)
from jaxlogits._src.rows.rows import rows_of, spoiled
from jaxlogits._src.rows.softmax import label_mask
from jaxlogits._src.rows.targets import label_rows


@program("axis", "axis_name")
@on_explicit_mesh(
    logits="rows classes",
    labels="rows",
    kept="rows ids",
    where="rows classes | rows",
    result="rows",
)
def kept_log_probs(
    logits: ArrayLike,
    labels: ArrayLike,
    kept: ArrayLike,
    axis: Axis = -1,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName = None,
) -> Array:
    """Log probability of each label among the ``kept`` classes only, z_y - log(sum exp z_k).

    For policies that sample with top-k or top-p and record the classes that remain.

    Args:
        logits: unnormalised log probabilities, floating point, divided by the sampling temperature.
        labels: integers in [0, K), in the shape of ``logits`` without ``axis``.
        kept: class indices ``[..., n]`` for each row; -1 is padding, duplicates count once.
        axis, where, axis_name: as in ``softmax_cross_entropy``.

    Returns:
        The shape of ``labels``, in float32 or wider; -inf, with gradient 0, for labels not kept.
    Accuracy: that of ``softmax_cross_entropy_with_integer_labels`` of the logits that are kept.

    Example:
        >>> kept = jnp.array([2, 0, -1])
        >>> jl.kept_log_probs(jnp.array([1.0, 9.0, 1.0]), jnp.array(2), kept).round(4)
        Array(-0.6931, dtype=float32)
    """
    rows = rows_of(logits, axis, where, axis_name, one_per_row=True, no_class=True)
    z, indices = rows.z, label_rows(rows, labels)
    count = num_classes(z.shape, axis_name)
    ids = kept_indices(kept, z.shape[:-1], count, "the shape of logits without axis,")
    is_bad = are_no_indices(ids, count) | (indices < 0) | (indices > count - 1)
    keep = _as_mask(ids, z.shape, axis_name)
    keep = keep if rows.mask is None else keep & rows.mask
    hit = label_mask(z.shape, indices, axis_name)
    is_bad = is_bad if rows.empty is None else is_bad & ~rows.empty[..., 0]
    among = log_probs_among(z, keep, hit, is_bad, axis_name)
    return rows.reduced(spoiled(among, is_bad))


def kept_indices(kept: ArrayLike, lead: tuple[int, ...], count: int, rule: str) -> Array:
    """The checked indices of classes, int32 or wider; ``rule`` says where ``lead`` is from."""
    ids = checks.as_integer("kept", kept)
    if ids.ndim != len(lead) + 1 or ids.shape[:-1] != lead:
        shape = ",".join([*map(str, lead), "n"])
        raise ValueError(f"kept must have {rule} and n, [{shape}], got {checks.describe(ids)}")
    ids = ids if ids.dtype.itemsize > 4 else ids.astype(jnp.int32)
    bad = _are_no_indices(ids, count)
    checks.check_values(f"kept must be in [-1, {count})", ids, ~bad, of_rows=1)
    return ids


def are_no_indices(ids: Array, count: int) -> Array:
    """Rows ``[...]`` with a number that is neither a class nor padding."""
    return jnp.any(_are_no_indices(ids, count), axis=-1)


def _are_no_indices(ids: Array, count: int) -> Array:
    return (ids < -1) | (ids > count - 1)


def log_probs_among(z: Array, keep: Array, hit: Array, is_bad: Array, axis_name: AxisName) -> Array:
    """log p of the class that is ``hit``, where only those that ``keep`` says exist.

    -inf, with gradient 0, where there is none. Rows that are bad have some derivative, which the
    caller spoils.
    """
    hit, is_bad = hit & keep, is_bad[..., None]
    is_known = row_any(hit | (keep & jnp.isnan(z)), axis_name) | is_bad
    index = class_indices(z.shape, jnp.dtype(jnp.int32), axis_name)
    label = row_sum(jnp.where(hit, index, 0), axis_name)[..., 0]
    losses = softmax_cross_entropy_with_integer_labels(
        jnp.where((is_known & keep) | is_bad, z, 0.0),
        jnp.where(is_bad[..., 0], 0, label),
        where=keep | ~is_known | is_bad,
        axis_name=axis_name,
    )
    return jnp.where(is_known[..., 0], 0.0 - losses, -jnp.inf)


def _as_mask(ids: Array, shape: tuple[int, ...], axis_name: AxisName) -> Array:
    """Which of a row's classes are among its ids."""
    own = ids - first_class(shape, ids.dtype, axis_name)
    is_here = (ids >= 0) & (own >= 0) & (own < shape[-1])
    places = jnp.where(is_here, own, shape[-1])

    def of_row(places: Array) -> Array:
        return jnp.zeros(shape[-1:], bool).at[places].set(True, mode="drop")

    for _ in shape[:-1]:
        of_row = jax.vmap(of_row)
    return of_row(places)
