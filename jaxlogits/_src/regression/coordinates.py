"""Coordinates in which a regression is easy to compute: features centred and of size 1.

Years from 1990 to 2004 and an intercept are nearly the same direction. In float32 their products
lose what tells them apart, but year - 1997, which is exact, does not. So a regression is fitted
to X' = X A with coefficients b', and b = A b' is what was asked for, whatever A is: it is a
constant to derivatives, and no more than a good guess, from some of the rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.regression.newton import product, solve


class Coordinates(NamedTuple):
    """A = (1 - level centre') diag(scale)."""

    level: Array  # [P], a combination of the features that is 1 in every row, or nearly
    centre: Array  # [P], 0 where the level isn't
    scale: Array  # [P], powers of two

    def matrix(self) -> Array:
        """A, [P, P]."""
        centring = jnp.eye(len(self.level), dtype=self.level.dtype)
        return (centring - self.level[:, None] * self.centre[None, :]) * self.scale[None, :]


# As many rows say where a feature is and how large.
_SAMPLE = 2048
_GROUPS = 32


@custom_vmap
def coordinates(features: Array, counts: Array) -> Coordinates:
    """Coordinates for features [N, P], by rows that count.

    Fits that share their features, as those of a bootstrap do, share their coordinates as well,
    so that the products of the features stay one array.
    """
    return _coordinates(features, counts)


@coordinates.def_vmap
def _shared(
    axis_size: int, batched: list[bool], features: Array, counts: Array
) -> tuple[Coordinates, Any]:
    del axis_size
    are_batched = Coordinates(*[batched[0]] * 3)  # type: ignore[arg-type]
    if not batched[0]:
        return coordinates(features, jnp.any(counts, axis=0)), are_batched
    axes = (0, 0 if batched[1] else None)
    each = jax.vmap(_coordinates, in_axes=axes)(features, counts)
    return each, are_batched


def unit_of(weights: Array) -> Array:
    """About the largest of them, without a derivative: in it, their sum is a number too."""
    return lax.stop_gradient(power_of_two(jnp.max(weights, initial=0), room=2))


def power_of_two(x: Array, room: int = 28) -> Array:
    """One near to each positive number, by which dividing is exact; 1 for 0 and what isn't finite.

    Its inverse is a number too: the ends of the exponent's range are left out, by ``room``.
    """
    limit = 2.0 ** (jnp.finfo(x.dtype).maxexp - room)
    usual = jnp.where((x > 0) & (x < jnp.inf), x, 1)
    exponent_bits = jnp.finfo(x.dtype).nexp
    return lax.reduce_precision(jnp.clip(usual, 1 / limit, limit), exponent_bits, 0)


def _coordinates(features: Array, counts: Array) -> Coordinates:
    x, rows = _sample(features, counts)
    rows &= ~_is_far_out(x, rows)
    x = jnp.where(rows[:, None], x, 0)
    count = jnp.maximum(jnp.sum(rows, dtype=x.dtype), 1)
    unit = power_of_two(jnp.max(jnp.abs(x), axis=0, initial=0))
    z = x / unit[None, :]
    level = _level(z, rows[:, None], count)
    one = product(z, level)
    squares = jnp.sum(one * one)
    apart = (level == 0) & (squares > 0)
    centre = jnp.where(apart, product(one, z) / jnp.where(squares > 0, squares, 1), 0)
    left = jnp.max(jnp.abs(z - one[:, None] * centre[None, :]), axis=0, initial=0)
    # What is left of a combination of others is rounding.
    own = power_of_two(jnp.where(left > 4 * jnp.finfo(z.dtype).eps, left, 1))
    return Coordinates(level / unit, centre * unit, 1 / (own * unit))


def _sample(features: Array, counts: Array) -> tuple[Array, Array]:
    """Some of the rows, those that don't count as 0, and which count."""
    num_rows = len(features)
    if num_rows > _SAMPLE:
        # Multiples of the golden ratio's fraction meet no pattern in the order of the rows.
        shares = np.sort(np.arange(_SAMPLE) * ((5**0.5 - 1) / 2) % 1).astype(np.float32)
        through = jnp.cumsum(counts, dtype=jnp.int32)
        wanted = jnp.floor(shares * through[-1].astype(jnp.float32)).astype(jnp.int32) + 1
        chosen = jnp.minimum(jnp.searchsorted(through, wanted), num_rows - 1)
        features, counts = features[chosen], counts[chosen]
    rows = counts & jnp.all(jnp.isfinite(features), axis=1)
    return jnp.where(rows[:, None], features, 0), rows


def _is_far_out(x: Array, rows: Array) -> Array:
    """Rows beside which all others would be nearly the same number, if these set the scale.

    By medians over the means of a few groups, which need no sort of all rows.
    """

    def by_group(x: Array) -> Array:
        missing = -len(x) % _GROUPS
        shape = (len(x) + missing) // _GROUPS, _GROUPS, x.shape[1]
        return jnp.sum(jnp.pad(x, ((0, missing), (0, 0))).reshape(shape), axis=0)

    def median(x: Array) -> Array:
        count = by_group(rows[:, None].astype(x.dtype))
        return jnp.nanmedian(by_group(jnp.where(rows[:, None], x, 0)) / count, axis=0)

    distance = jnp.abs(x - median(x)[None, :])
    usual = median(distance)[None, :]
    return jnp.any((distance > 64 * usual) & (usual > 0), axis=1)


def _level(z: Array, rows: Array, count: Array) -> Array:
    """The combination [P]: a constant feature, or what comes nearest among those that vary most.

    Indicators of all groups add up to 1, for example.
    """
    eps = jnp.finfo(z.dtype).eps
    mean = jnp.sum(z, axis=0) / count
    mean += jnp.sum(jnp.where(rows, z - mean[None, :], 0), axis=0) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(rows, z - mean[None, :], 0) ** 2, axis=0) / count)
    size = jnp.abs(mean)
    constant = (spread <= 4 * eps * size) & (size > 0)
    first = constant & (jnp.cumsum(constant) == 1)
    steadiness = spread / jnp.where(size > 0, size, 1)
    varied = steadiness >= jnp.minimum(jnp.max(steadiness, initial=0), 0.125)
    chosen = jnp.where(jnp.any(constant), first, varied & (size > 0))
    z = jnp.where(chosen[None, :], z, 0)
    gram, right = product(z.T, z) / count, jnp.where(chosen, mean, 0)
    diagonal = jnp.diagonal(gram)
    # A little more on the diagonal, for features that are combinations of others; what that
    # changes is put right by the second and later rounds.
    ridge = jnp.diag(jnp.where(diagonal > 0, diagonal * 2.0**-9, 1))
    level = jnp.zeros_like(mean)
    for _ in range(4):
        level += solve(gram + ridge, right - product(gram, level))
    # Usually these are plain numbers, up to rounding.
    return jnp.round(level * 2.0**10) / 2.0**10
