"""The negative log likelihood of one class of a row, and its derivatives.

The gradient is softmax minus one-hot, written so that the difference is never formed where it
cancels: see ``_nll_gradient``. It has a derivative of its own, which is softmax's, so that every
order is right. A row of -inf has no loss: it is NaN.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, finite, wide_dtype, widen
from jaxlogits._src.base.elementary import exp, expm1, log1p
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import (
    each_class,
    first_class,
    has_few_classes,
    num_classes,
    row_max,
    row_sum,
)
from jaxlogits._src.rows.softmax import label_mask, softmax_tangent
from jaxlogits._src.rows.stats import counted, exp_below

Pair = tuple[Array, Array]


class LabelSums(NamedTuple):
    """What the loss and its gradient take from a row; ``[..., 1]`` each, in the wide dtype."""

    largest: Array  # the maximum logit
    gap: Array  # how far the label's logit is below it; 0 in a row of -inf
    others: Array  # the sum of exp(z_j - largest) over all classes but the label
    excess: Array  # the sum over all classes, less 1
    factor: Array  # 1, or NaN for a row that has no loss


def nll(logits: Array, labels: Array, axis_name: AxisName) -> Array:
    """-log p_y of rows in any floating-point dtype."""
    return _nll_and_sums(logits, labels, axis_name)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _nll_and_sums(logits: Array, labels: Array, axis_name: AxisName) -> tuple[Array, LabelSums]:
    """The loss, and what its derivative takes from the rows, which counts as constants."""
    sums = label_sums(logits, labels, axis_name)
    return xla.apart(_loss(sums)), sums  # from the caller's mean


def _loss(sums: LabelSums) -> Array:
    return ((sums.gap + log1p(sums.excess)) * sums.factor)[..., 0]


@checkpointed
def _nll_tangent(
    dlogits: Array, sums: LabelSums, logits: Array, labels: Array, axis_name: AxisName
) -> Array:
    gradient = _nll_gradient(logits, sums, labels, axis_name)
    return row_sum(gradient * widen(dlogits), axis_name)[..., 0]


derivatives(_nll_and_sums, _nll_tangent, None)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def nll_of(sums: LabelSums, logits: Array, labels: Array, axis_name: AxisName) -> Array:
    """-log p_y of rows whose sums are known, and count as constants: it reads no logits.

    Its derivative does, but makes no sums again.
    """
    del logits, labels, axis_name
    return _loss(sums)


derivatives(
    nll_of,
    None,
    lambda dlogits, _, sums, *arrays: _nll_tangent(dlogits, sums, *arrays),
    None,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _nll_gradient(logits: Array, sums: LabelSums, labels: Array, axis_name: AxisName) -> Array:
    """p - one_hot(y), which at the label is minus the sum of the others' p."""
    exps = _exp_up_to(logits, sums.largest)
    scale = sums.factor / (1.0 + sums.excess)
    return jnp.where(label_mask(logits.shape, labels, axis_name), -sums.others, exps) * scale


derivatives(
    _nll_gradient,
    lambda dlogits, _, logits, sums, __, axis_name: (
        sums.factor * softmax_tangent(widen(logits), widen(dlogits), axis_name)
    ),
    None,
    None,
)


def label_sums(logits: Array, labels: Array, axis_name: AxisName) -> LabelSums:
    """Reduce the rows. The sum leaves the label out, so that log1p sees all of a small loss."""
    label = _own_index(labels[..., None], logits, axis_name)
    largest, others = _max_and_others(logits, label.astype(_index_dtype(logits)))
    label_logit = widen(jnp.take_along_axis(logits, label, axis=-1, mode="clip"))
    if axis_name is not None:
        largest, others = _merged(largest, others, axis_name)
        is_here = (label >= 0) & (label < logits.shape[-1])
        label_logit = row_sum(jnp.where(is_here, label_logit, 0.0), axis_name)
    level = (label_logit == largest) | (largest == -jnp.inf)  # inf - inf
    gap = jnp.where(level, 0.0, largest - label_logit)
    # The label's own exponential is added as expm1(-gap) + 1, of which the 1 stays out.
    excess = others + expm1(-gap)
    two_inf = (largest == jnp.inf) & (excess > 0.0)
    # Not >=, as the number of classes itself may not fit the labels' dtype.
    last = num_classes(logits.shape, axis_name) - 1
    bad = two_inf | (largest == -jnp.inf) | ((labels < 0) | (labels > last))[..., None]
    factor = jnp.where(bad, jnp.nan, 1.0).astype(largest.dtype)
    return LabelSums(largest, gap, others, excess, factor)


def _own_index(label: Array, logits: Array, axis_name: AxisName) -> Array:
    """The label's index among the classes that this device has; out of range if it isn't one."""
    if axis_name is None:
        return label
    signed = label.astype(jnp.int64 if label.dtype.itemsize == 8 else jnp.int32)
    return signed - first_class(logits.shape, signed.dtype, axis_name)


def _merged(largest: Array, others: Array, axis_name: AxisName) -> Pair:
    """A row's maximum and sum of exponentials from those of its parts, ``[..., parts]``.

    The parts are blocks of one device's classes, or the slices that several devices have.
    """
    top = row_max(largest, axis_name)
    return top, row_sum(others * _exp_up_to(largest, top), axis_name)


def _max_and_others(logits: Array, label: Array) -> Pair:
    """The maximum and the sum of exp(z_j - max) over all classes but the label."""
    if has_few_classes(logits):
        both = _reduce_short_row(logits, label)
        return xla.apart(both) if logits.dtype.itemsize < 4 else both
    pieces = _pieces(logits)
    if pieces == 1:
        return xla.apart(_reduce_row(logits, label))
    in_pieces = functools.partial(_reduce_pieces, pieces=pieces)
    of_pieces: Pair = xla.by_device(logits, label, cpu=in_pieces, default=_reduce_row)
    return xla.apart(of_pieces)


def _reduce_short_row(logits: Array, label: Array) -> Pair:
    """A class at a time, so that a row stays in registers: half the time of a loop over 10."""
    classes = each_class(widen(logits))
    largest = functools.reduce(jnp.maximum, classes)
    exps = [jnp.where(label == k, 0.0, _exp_up_to(z, largest)) for k, z in enumerate(classes)]
    return largest, functools.reduce(jnp.add, exps)


def _reduce_row(logits: Array, label: Array) -> Pair:
    largest = widen(jnp.max(logits, axis=-1, keepdims=True))
    exps = xla.zero_at(label, exp_below(logits, largest))
    return largest, counted(jnp.sum(exps, axis=-1, keepdims=True), largest)


def _reduce_pieces(logits: Array, label: Array, *, pieces: int) -> Pair:
    """Each piece by itself; their sums are brought to the maximum of all and added.

    A dimension more, and not more rows: where the compiler has split the classes, they stay split.
    """
    *lead, count = logits.shape
    width = count // pieces
    starts = jnp.arange(0, count, width, dtype=label.dtype)
    labels = jnp.broadcast_to(label, (*lead, pieces)) - jnp.broadcast_to(starts, (*lead, pieces))
    each = _reduce_row(logits.reshape(*lead, pieces, width), labels[..., None])
    largest, others = (array[..., 0] for array in each)
    return _merged(largest, others, None)


def _exp_up_to(logits: Array, largest: Array) -> Array:
    """exp(z - largest), 1 at an infinite maximum and 0 in a row of -inf."""
    top = finite(largest)
    return exp(jnp.minimum(widen(logits), top) - top)


def _pieces(logits: Array) -> int:
    """How many pieces a row is cut into; a class of a long row takes up to 3 times as long."""
    width = logits.shape[-1]
    counts = (1, 2, 4, 8, 16, 32)
    divides = (n for n in counts if _is_at_most(width, n * 2**15) and width % n == 0)
    return next(divides, 1)


def _is_at_most(size: int, limit: int) -> bool:
    """Whether a dimension is known to be so small: that of an export may be a symbol."""
    return isinstance(size, int) and size <= limit


def _index_dtype(logits: Array) -> jnp.dtype:
    """A dtype that tells neighbouring classes apart: the wide one, as far as it counts."""
    dtype = wide_dtype(logits)
    exact = 2 ** (jnp.finfo(dtype).nmant + 1)
    return dtype if _is_at_most(logits.shape[-1], exact) else jnp.dtype(jnp.int32)
