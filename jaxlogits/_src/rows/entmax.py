"""The alpha-entmax of rows, and its threshold without a sort.

With a = alpha - 1, every class gets exp_a(z - t) (see ``tsallis``), and the threshold t makes the
row sum to 1. At a = 0 this is softmax with t its logsumexp, at a = 1 sparsemax. It is written in t,
not in the literature's tau = a t - 1, since t stays finite and smooth as a tends to 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.elementary import log
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import num_classes, row_max, row_sum
from jaxlogits._src.rows.softmax import centred, without_inf
from jaxlogits._src.rows.tsallis import exp_a, exp_a_bend, lowest, relative_expm1, slope_a

Triple = tuple[Array, Array, Array]
Quad = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def entmax_rows(z: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """Entmax over the last axis, with a as ``[..., 1]`` or a scalar; NaN for rows of -inf."""
    x, _, empty = above_threshold(z, a, power, axis_name)
    p = exp_a(x, a, power)
    return p / jnp.where(empty, jnp.nan, row_sum(p, axis_name))


@checkpointed
def _entmax_by_z(dz: Array, p: Array, _: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    slope = slope_a(p, a, power)
    return slope * centred(share(slope, axis_name), dz, axis_name)


@checkpointed
def _entmax_by_a(da: Array, p: Array, _: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    slopes, bend = share(slope_a(p, a, power), axis_name), exp_a_bend(p, a)
    return (bend - slopes * row_sum(bend, axis_name)) * da


derivatives(entmax_rows, _entmax_by_z, _entmax_by_a)


def share(slope: Array, axis_name: AxisName) -> Array:
    """The slopes as parts of their sum, or 0 where there are none."""
    total = row_sum(slope, axis_name)
    return slope / jnp.where(total == 0, 1.0, total)


# The threshold.


def above_threshold(z: Array, a: Array, power: int, axis_name: AxisName) -> Triple:
    """z - t with exp_a(z - t) summing to 1, half of z - max(z), and which rows are -inf alone."""
    z = without_inf(z, axis_name)
    largest = row_max(z, axis_name)
    empty = largest == -jnp.inf
    halves = jnp.where(empty, 0.0, 0.5 * z - 0.5 * largest)
    below = 2.0 * halves
    return below - _threshold(below, a, power, axis_name), halves, empty


def _threshold(z: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """t for rows whose maximum is 0, by Newton's method on (S**a - 1) / a, S = sum exp_a(z - t).

    For a <= 1, S**a is a norm of a positive part that is linear in t: it is convex, so that Newton
    climbs from t = 0 without overshooting, and gets there in one step if all classes tie. For
    a > 1 steps that leave the bracket, and every other one, are bisections.
    """
    eps = 2.0 * float(jnp.finfo(z.dtype).eps)
    total = row_sum(z, axis_name)
    low = jnp.zeros_like(total)
    a = a + low  # one for each row, on the same devices
    log_count = log(jnp.asarray(num_classes(z.shape, axis_name), z.dtype))
    high = log_count * relative_expm1(-a * log_count)

    def unsettled(state: tuple[Array, Quad]) -> Array:
        step, (_, _, _, moving) = state
        return (step < 100) & jnp.any(moving)

    def improve(state: tuple[Array, Quad]) -> tuple[Array, Quad]:
        step, (t, low, high, moving) = state
        total, slope = _mass(z, t, a, power, axis_name)
        low, high = jnp.where(total >= 1.0, t, low), jnp.where(total < 1.0, t, high)
        log_total = log(total)
        new = t + total * log_total * relative_expm1(-a * log_total) / slope
        bisected = (a > 1.0) & ((step % 2 == 1) | ~((new > low) & (new < high)))
        new = jnp.where(bisected & (total != 1.0), 0.5 * (low + high), new)
        # The slope is infinite at the support's edge for a > 1: a small step says nothing there.
        error = jnp.where(a > 1.0, high - low, jnp.abs(new - t))
        arrived = (error <= eps * (1.0 + t)) | (total == 1.0)
        return step + 1, (jnp.where(moving, new, t), low, high, moving & ~arrived)

    valid = (a >= 0.0) & ~jnp.isnan(total)
    start = (jnp.int32(0), (low, low, high, valid))
    _, (t, _, _, _) = lax.while_loop(unsettled, improve, start)
    return jnp.where(valid, t, jnp.nan)


def _mass(z: Array, t: Array, a: Array, power: int, axis_name: AxisName) -> tuple[Array, Array]:
    """The sums of exp_a(z - t) and of its derivative."""
    x = z - t
    p = exp_a(x, a, power)
    if power == 1:
        slope = slope_a(p, a, power)
    elif power == 2:
        slope = jnp.maximum(1.0 + 0.5 * x, 0.0)
    else:
        base = jnp.maximum(1.0 + a * jnp.maximum(x, lowest(x)), 0.0)
        slope = jnp.where(p > 0, p / jnp.where(p > 0, base, 1.0), 0.0)
    return row_sum(p, axis_name), row_sum(slope, axis_name)
