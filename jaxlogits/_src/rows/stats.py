"""The maximum of a row and its sum of exponentials, from which all that is softmax is made.

The sum is kept as 1 + rest, where rest leaves out one maximum, so that log1p(rest) and
rest / (1 + rest) stay right where the maximum has almost all of the probability.

A maximum needn't say that there is NaN in a row: that of float32 on CPUs leaves it out since JAX
0.12, and so may a minimum within a sum. NaN comes to the sums by arithmetic, and so to the rest.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, finite, widen
from jaxlogits._src.base.elementary import exp
from jaxlogits._src.mesh.reductions import (
    each_class,
    has_few_classes,
    of_all_devices,
    row_max,
    row_sum,
)


class RowStats(NamedTuple):
    """What the exponentials of a row come from: exp(z - max) and its sum, less one maximum."""

    largest: Array  # [..., 1]
    gaps: Array  # [..., K], max - z
    exps: Array  # [..., K], exp(-gaps)
    rest: Array  # [..., 1], the sum of exps without one maximum; NaN of NaN, or of two +inf
    ties: Array  # [..., 1], how many classes have the maximum; at least 2 if several do


class RowSums(NamedTuple):
    """The same without what is as long as the row; ``[..., 1]`` each."""

    largest: Array
    rest: Array  # NaN if the row has NaN; for +inf it counts the others
    ties: Array


def row_stats(z: Array, axis_name: AxisName) -> RowStats:
    """Two or three loops over the row, which write nothing; what isn't used costs nothing.

    Each of them widens half precision for itself.
    """
    sums = _sums_by_class(z, axis_name)
    gaps = gaps_of(widen(z), sums.largest)
    return RowStats(sums.largest, gaps, exp(-gaps), rest_of_softmax(sums), sums.ties)


def row_sums(z: Array, axis_name: AxisName) -> RowSums:
    """What ``row_stats`` knows of the row as a whole, sooner for logits that are in memory."""
    pieces = 1 if axis_name is not None else _num_pieces(z)
    if pieces == 1:
        return _sums_by_class(z, axis_name)
    by_class = functools.partial(_sums_by_class, axis_name=None)
    by_piece = functools.partial(_sums_by_piece, pieces=pieces)
    sums: RowSums = xla.by_device(z, cpu=by_piece, default=by_class)
    return sums


def rest_of_softmax(sums: RowSums) -> Array:
    """The rest, NaN for a row with two +inf, which has no softmax."""
    return jnp.where((sums.largest == jnp.inf) & (sums.rest > 0), jnp.nan, sums.rest)


def _sums_by_class(z: Array, axis_name: AxisName) -> RowSums:
    largest = widen(row_max(z, axis_name))
    below, ties = of_all_devices(_around(z, largest), axis_name)
    return RowSums(largest, below + (ties - 1.0), ties)


def _around(z: Array, largest: Array) -> tuple[Array, Array]:
    """The sum of exp(z - max) below the maximum, and how many classes have it, on this device."""
    if has_few_classes(z):
        classes = each_class(widen(z))
        others = [jnp.where(x == largest, 0.0, exp(x - largest)) for x in classes]
        ties = [(x == largest).astype(largest.dtype) for x in classes]
        return functools.reduce(jnp.add, others), functools.reduce(jnp.add, ties)
    below = row_sum(exp_below(z, largest) * _is_apart(z, largest), None)
    # In a loop of its own, as one that adds up both is several times slower.
    at_max = xla.by_itself(_count_max, z, largest)
    below, at_max = xla.apart((below, at_max))
    is_inf = largest == jnp.inf  # all that counts then is in the sum
    return xla.apart(
        (jnp.where(is_inf, 0.0, below), jnp.where(is_inf, counted(below, largest), at_max))
    )


def _count_max(z: Array, largest: Array) -> Array:
    return row_sum(xla.of_row(1.0, largest) - _is_apart(z, largest), None)


def _is_apart(z: Array, largest: Array) -> Array:
    """0 for a class that has the maximum, 1 for others, and for +inf."""
    return xla.is_nonzero(jnp.abs(finite(largest) - widen(z)), largest)


def _num_pieces(z: Array) -> int:
    """In how many pieces a CPU looks at a row, so that each is long."""
    width = z.shape[-1]
    counts = (32, 16, 8, 4) if isinstance(width, int) else ()  # and not a symbol of an export
    return next((n for n in counts if width % n == 0 and width >= 200 * n), 1)


def _sums_by_piece(z: Array, *, pieces: int) -> RowSums:
    """Only the piece with the maximum is looked at with care, the others only summed.

    A dimension more, and not more rows: where the compiler has split the classes, they stay split.
    """
    z = z.reshape(*z.shape[:-1], pieces, -1)
    tops = widen(xla.apart(jnp.max(z, axis=-1)))
    largest = jnp.max(tops, axis=-1, keepdims=True)
    sums = xla.apart(sum_below(z, largest[..., None])[..., 0])
    index = jnp.broadcast_to(jnp.arange(pieces), tops.shape)
    first = jnp.min(jnp.where(tops == largest, index, pieces - 1), axis=-1, keepdims=True)
    piece = jnp.take_along_axis(z, first[..., None], axis=-2, mode="clip")[..., 0, :]
    below, ties = _around(xla.apart(piece), largest)
    is_other = index != first
    rest = below + (ties - 1.0) + row_sum(jnp.where(is_other, sums, 0.0), None)
    ties += row_sum(jnp.where(is_other & (tops == largest), 1.0, 0.0).astype(ties.dtype), None)
    return RowSums(largest, *xla.apart((rest, ties)))


def sum_below(z: Array, largest: Array) -> Array:
    """The sum of exp(z - max) over the classes that this device has."""
    if has_few_classes(z):
        exps = [exp(-gaps_of(x, largest)) for x in each_class(widen(z))]
        return functools.reduce(jnp.add, exps)
    return counted(row_sum(exp_below(z, largest), None), largest)


def gaps_of(z: Array, largest: Array) -> Array:
    """max - z, 0 at an infinite maximum too."""
    return jnp.where(z == largest, 0.0, largest - z)


def probs_of(z: Array, largest: Array, total: Array) -> Array:
    """The softmax of a row, from its maximum and its sum of exp(z - max)."""
    return exp(-gaps_of(widen(z), largest)) / total


# Exponentials in whose sums NaN isn't lost, and an infinite maximum is one large number.


def exp_below(z: Array, largest: Array) -> Array:
    """exp(z - max), and of +inf a number beside which all others vanish."""
    gaps = finite(largest) - widen(z)
    exps: Array = xla.by_device(gaps, largest, cpu=_reciprocal, default=lambda x, _: exp_of(-x))
    return exps


def exp_of(differences: Array) -> Array:
    """The same of differences, at most 0 or inf. It may lose NaN."""
    return exp(jnp.minimum(differences, -math.log(_vanishing(differences.dtype))))


def counted(total: Array, largest: Array) -> Array:
    """A sum of ``exp_below``; if the maximum is +inf, how many there are."""
    return jnp.where(largest == jnp.inf, lax.round(total * _vanishing(total.dtype)), total)


def has_two_inf(total: Array) -> Array:
    """Whether there is more than one, without a rounding, which would end a loop over classes."""
    return total > 1.5 / _vanishing(total.dtype)


def _reciprocal(gaps: Array, row: Array) -> Array:
    # A minimum would lose NaN in XLA:CPU's fastest loops, and a select end them.
    one, vanishing = xla.of_row(1.0, row), xla.of_row(_vanishing(gaps.dtype), row)
    return one / (exp(gaps) + vanishing)


def _vanishing(dtype: jnp.dtype) -> float:
    return 64.0 * float(jnp.finfo(dtype).tiny)
