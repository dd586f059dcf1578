"""The Fenchel–Young loss of alpha-entmax: what it costs that entmax is p where targets are y."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.products import times
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.entmax import above_threshold, entmax_rows, share
from jaxlogits._src.rows.softmax import centred
from jaxlogits._src.rows.tsallis import (
    exp_a_bend,
    log_a,
    omega_bend,
    power_a,
    power_minus_line,
    raised,
    slope_a,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def entmax_loss_rows(z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """omega(y) - omega(p) - (y - p) (z - t) of each row, omega(p) = (p**(1 + a) - p) / (a (1 + a)).

    Up to a constant z - t is at most omega's slope at p, so that no class adds less than 0.
    """
    x, halves, empty = above_threshold(z, a, power, axis_name)
    p = entmax_rows(z, a, power, axis_name)
    missed = -_residual(p, y, axis_name)
    # From where on nothing counts beside the gap; half of it is finite where the gap isn't.
    far = x < -1.0 / float(jnp.finfo(x.dtype).eps) ** 2
    height = jnp.where(far, 0.0, x)
    plain = y * (log_a(y, a) - height) - (1.0 + a * height) * missed
    plain = jnp.where(y == 0, p * power_a(p, a), plain)
    near = (y > 0) & (jnp.abs(missed) <= 0.25 * p)
    relative = jnp.where(near, missed / jnp.where(near, p, 1.0), 0.0)
    curved = (1.0 + a) * p * power_a(p, a) * power_minus_line(relative, a)
    terms = jnp.where(near, curved, plain)
    terms = jnp.where(far, 0.0, jnp.where(jnp.isnan(terms), terms, jnp.maximum(terms, 0.0)))
    gaps = 2.0 * row_sum(jnp.where(far & (y != 0), -y * halves, 0.0), axis_name)
    loss = row_sum(terms, axis_name) / (1.0 + a) + gaps
    return jnp.where(empty, jnp.nan, loss)[..., 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _residual_rows(z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """p - y."""
    p = entmax_rows(z, a, power, axis_name)
    return _residual(p, y, axis_name)


@checkpointed
def _loss_by_z(dz: Array, z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    return row_sum(_residual_rows(z, y, a, power, axis_name) * dz, axis_name)[..., 0]


@checkpointed
def _loss_by_a(
    da: Array,
    _: Array,
    z: Array,
    y: Array,
    a: Array,
    power: int,
    axis_name: AxisName,
) -> Array:
    p = entmax_rows(z, a, power, axis_name)
    return row_sum((omega_bend(y, a) - omega_bend(p, a)) * da, axis_name)[..., 0]


def _residual(p: Array, y: Array, axis_name: AxisName) -> Array:
    """p - y, where a p close to 1 is 1 less the others' sum."""
    likely = p > 0.5
    others = row_sum(jnp.where(likely, 0.0, p), axis_name)
    return jnp.where(likely, (1.0 - y) - others, p - y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _surprise_rows(z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """The loss's derivative in y, log_a(y) - (z - t); 0 where y is 0 and z is -inf."""
    x, _, _ = above_threshold(z, a, power, axis_name)
    return jnp.where((y == 0) & (x == -jnp.inf), 0.0, log_a(y, a) - x)


@checkpointed
def _surprise_by_z(
    dz: Array, _: Array, z: Array, __: Array, a: Array, power: int, axis_name: AxisName
) -> Array:
    p = entmax_rows(z, a, power, axis_name)
    return -centred(share(slope_a(p, a, power), axis_name), dz, axis_name)


@checkpointed
def _surprise_by_a(
    da: Array, _: Array, z: Array, y: Array, a: Array, power: int, axis_name: AxisName
) -> Array:
    p = entmax_rows(z, a, power, axis_name)
    total = row_sum(slope_a(p, a, power), axis_name)
    threshold = row_sum(exp_a_bend(p, a), axis_name) / jnp.where(total == 0, 1.0, total)
    # Of log_a(0) = -1 / a, and of the inverse of exp_a elsewhere.
    safe = jnp.where(y > 0, y, 1.0)
    bend = -raised(safe, a - 1.0) * exp_a_bend(y, a)
    bend = jnp.where(y == 0, 1.0 / jnp.square(jnp.broadcast_to(a, y.shape)), bend)
    return times(bend, da) + threshold * da


derivatives(
    entmax_loss_rows,
    lambda dz, _, *args: _loss_by_z(dz, *args),
    lambda dy, _, z, y, a, *static: row_sum(
        times(_surprise_rows(z, y, a, *static), dy), static[-1]
    )[..., 0],
    _loss_by_a,
)


derivatives(
    _residual_rows,
    lambda dz, _, z, __, *rest: jax.jvp(lambda z: entmax_rows(z, *rest), (z,), (dz,))[1],
    lambda dy, *_: -dy,
    lambda da, _, z, __, a, *rest: jax.jvp(lambda a: entmax_rows(z, a, *rest), (a,), (da,))[1],
)


derivatives(
    _surprise_rows,
    _surprise_by_z,
    lambda dy, _, __, y, a, *___: times(raised(y, a - 1.0), dy),  # log_a's slope
    _surprise_by_a,
)
