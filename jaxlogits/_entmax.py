"""The alpha-entmax of rows, its threshold without a sort, and its Fenchel–Young loss.

With a = alpha - 1, every class gets exp_a(z - t), where exp_a(x) = (1 + a x)**(1 / a) is 0 for
x <= -1 / a, and the threshold t makes the row sum to 1. At a = 0 this is softmax with t its
logsumexp, at a = 1 sparsemax. It is written in t, not in the literature's tau = a t - 1, since t
stays finite and smooth as a tends to 0.

``power`` is 1 / a where that is known to be 1 or 2, and 0 where a is an array.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxlogits._mesh import num_classes, row_max, row_sum
from jaxlogits._rows import Pair, log_softmax_tangent
from jaxlogits._typing import Array, AxisName

Triple = tuple[Array, Array, Array]
Quad = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def entmax_rows(z: Array, a: Array, blank: Array, power: int, axis_name: AxisName) -> Array:
    """Entmax over the last axis, with a as ``[..., 1]`` or a scalar; ``blank`` for rows of -inf."""
    x, empty = _above_threshold(z, a, power, axis_name)
    p = _exp_a(x, a, power)
    return jnp.where(empty, blank, p / row_sum(p, axis_name))


@functools.partial(entmax_rows.defjvp, symbolic_zeros=True)
def _entmax_jvp(
    power: int, axis_name: AxisName, primals: Triple, tangents: tuple[Any, Any, Any]
) -> Pair:
    z, a, blank = primals
    dz, da, _ = tangents
    p = entmax_rows(z, a, blank, power, axis_name)
    slope = _slope(p, a, power)
    total = row_sum(slope, axis_name)
    share = slope / jnp.where(total == 0, 1.0, total)
    tangent = jnp.zeros_like(p)
    if not isinstance(dz, SymbolicZero):
        tangent += slope * log_softmax_tangent(z, share, dz, axis_name)
    if not isinstance(da, SymbolicZero):
        bend = _exp_a_bend(p, a)
        tangent += (bend - share * row_sum(bend, axis_name)) * da
    return p, tangent


def _slope(p: Array, a: Array, power: int) -> Array:
    """exp_a's derivative, p**(1 - a) in the support and 0 outside."""
    if power == 1:
        return jnp.sign(p)  # which, unlike a select, XLA:CPU fuses into a row's sum
    inside = p > 0
    safe = jnp.where(inside, p, 1.0)
    return jnp.where(inside, jnp.sqrt(safe) if power == 2 else jnp.power(safe, 1.0 - a), p)


def _exp_a_bend(p: Array, a: Array) -> Array:
    """exp_a(x)'s derivative in a, -(p log(p)**2) phi(w) / w**2 with w = -a log p.

    phi(w) = exp(w) - 1 - w, so that it is -p log(p)**2 / 2 at a = 0.
    """
    inside = p > 0
    safe = jnp.where(inside, p, 1.0)
    log_p = jnp.log(safe)
    w = -a * log_p
    near = w <= 2.0
    terms = 23 if p.dtype == jnp.float64 else 14  # the next one is under half an ulp at 2
    series = jnp.full_like(p, 1.0 / math.factorial(terms + 1))
    for n in range(terms, 1, -1):
        series = series * jnp.where(near, w, 0.0) + 1.0 / math.factorial(n)
    outer = jnp.where(near, 1.0, a)
    far = (safe * (1.0 + w) - jnp.power(safe, 1.0 - a)) / (outer * outer)
    return jnp.where(inside, jnp.where(near, -safe * jnp.square(log_p) * series, far), 0.0 * p)


# The Fenchel–Young loss: what it costs that entmax is p where the targets are y.


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def entmax_loss_rows(
    z: Array, y: Array, a: Array, blank: Array, power: int, axis_name: AxisName
) -> Array:
    """omega(y) - omega(p) - (y - p) (z - t) of each row, omega(p) = (p**(1 + a) - p) / (a (1 + a)).

    Up to a constant z - t is at most omega's slope at p, so that no class adds less than 0.
    """
    x, empty = _above_threshold(z, a, power, axis_name)
    p = entmax_rows(z, a, blank, power, axis_name)
    missed = -_residual(p, y, axis_name)
    height = jnp.maximum(x, _lowest(x))
    plain = y * (_log_a(y, a) - height) - (1.0 + a * height) * missed
    plain = jnp.where(y == 0, p * _power(p, a), jnp.where(x == -jnp.inf, jnp.inf, plain))
    near = (y > 0) & (jnp.abs(missed) <= 0.25 * p)
    relative = jnp.where(near, missed / jnp.where(near, p, 1.0), 0.0)
    curved = (1.0 + a) * p * _power(p, a) * _power_minus_line(relative, a)
    terms = jnp.where(near, curved, plain)
    terms = jnp.where(jnp.isnan(terms), terms, jnp.maximum(terms, 0.0))
    loss = row_sum(terms, axis_name) / (1.0 + a)
    return jnp.where(empty, blank, loss)[..., 0]


@functools.partial(entmax_loss_rows.defjvp, symbolic_zeros=True)
def _entmax_loss_jvp(
    power: int, axis_name: AxisName, primals: Quad, tangents: tuple[Any, Any, Any, Any]
) -> Pair:
    z, y, a, blank = primals
    dz, dy, da, _ = tangents
    loss = entmax_loss_rows(z, y, a, blank, power, axis_name)
    tangent = jnp.zeros_like(loss)
    if not isinstance(dz, SymbolicZero):
        tangent += row_sum(_residual_rows(z, y, a, blank, power, axis_name) * dz, axis_name)[..., 0]
    if not isinstance(dy, SymbolicZero):
        tangent += row_sum(_surprise_rows(z, y, a, power, axis_name) * dy, axis_name)[..., 0]
    if not isinstance(da, SymbolicZero):
        p = entmax_rows(z, a, blank, power, axis_name)
        tangent += row_sum((_omega_bend(y, a) - _omega_bend(p, a)) * da, axis_name)[..., 0]
    return loss, tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _residual_rows(
    z: Array, y: Array, a: Array, blank: Array, power: int, axis_name: AxisName
) -> Array:
    """p - y."""
    p = entmax_rows(z, a, blank, power, axis_name)
    return jnp.where(row_max(z, axis_name) == -jnp.inf, blank, _residual(p, y, axis_name))


@_residual_rows.defjvp
def _residual_jvp(power: int, axis_name: AxisName, primals: Quad, tangents: Quad) -> Pair:
    z, y, a, blank = primals
    dz, dy, da, _ = tangents
    entmax = functools.partial(entmax_rows, blank=blank, power=power, axis_name=axis_name)
    _, dp = jax.jvp(entmax, (z, a), (dz, da))
    return _residual_rows(z, y, a, blank, power, axis_name), dp - dy


def _residual(p: Array, y: Array, axis_name: AxisName) -> Array:
    """p - y, where a p close to 1 is 1 less the others' sum."""
    likely = p > 0.5
    others = row_sum(jnp.where(likely, 0.0, p), axis_name)
    return jnp.where(likely, (1.0 - y) - others, p - y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _surprise_rows(z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """The loss's derivative in y, log_a(y) - (z - t); 0 where y is 0 and z is -inf."""
    x, _ = _above_threshold(z, a, power, axis_name)
    return jnp.where((y == 0) & (x == -jnp.inf), 0.0, _log_a(y, a) - x)


@_surprise_rows.defjvp
def _surprise_jvp(power: int, axis_name: AxisName, primals: Triple, tangents: Triple) -> Pair:
    z, y, a = primals
    dz, dy, da = tangents
    p = entmax_rows(z, a, jnp.zeros_like(a), power, axis_name)
    slope = _slope(p, a, power)
    total = row_sum(slope, axis_name)
    total = jnp.where(total == 0, 1.0, total)
    dt = row_sum(_exp_a_bend(p, a), axis_name) / total * da
    above = log_softmax_tangent(z, slope / total, dz, axis_name) - dt
    density = _power(y, a) / jnp.where(y > 0, y, 1.0)  # log_a's slope
    grown = density * (dy - _exp_a_bend(y, a) * da)
    return _surprise_rows(z, y, a, power, axis_name), grown - above


def _omega_bend(p: Array, a: Array) -> Array:
    """omega's derivative in a."""
    bend = -_exp_a_bend(p, a) * _power(p, a)
    entropy = jnp.where(p > 0, p * _log_a(jnp.where(p > 0, p, 1.0), a), 0.0 * p)
    return (bend - entropy / (1.0 + a)) / (1.0 + a)


def _power(p: Array, a: Array) -> Array:
    """p**a for p > 0, else 0."""
    return jnp.where(p > 0, jnp.power(jnp.where(p > 0, p, 1.0), a), 0.0 * p)


def _log_a(p: Array, a: Array) -> Array:
    """exp_a's inverse, (p**a - 1) / a, and log(p) at a = 0."""
    log_p = jnp.log(p)
    safe = jnp.where(p > 0, log_p, 0.0)
    at_zero = -1.0 / jnp.broadcast_to(a, p.shape)
    return jnp.where(p == 0, at_zero, jnp.where(p > 0, safe, log_p) * _relative_expm1(a * safe))


def _power_minus_line(t: Array, a: Array) -> Array:
    """((1 + t)**(1 + a) - 1 - (1 + a) t) / (a (1 + a)) for |t| <= 1/4, by its power series."""
    term = 0.5 * t * t
    total = term
    for n in range(2, 28 if t.dtype == jnp.float64 else 14):  # terms shrink by 4 or more
        term = term * t * ((a - (n - 1.0)) / (n + 1.0))
        total = total + term
    return total


# The threshold.


def _above_threshold(z: Array, a: Array, power: int, axis_name: AxisName) -> tuple[Array, Array]:
    """z - t with exp_a(z - t) summing to 1, and which rows are -inf alone."""
    is_inf = z == jnp.inf
    count = row_sum(is_inf.astype(z.dtype), axis_name)
    sole = jnp.where(is_inf, 0.0, jnp.where(jnp.isnan(z), jnp.nan, -jnp.inf))
    z = jnp.where(count == 0, z, jnp.where(count == 1, sole, jnp.nan))
    largest = row_max(z, axis_name)
    empty = largest == -jnp.inf
    below = jnp.where(empty, 0.0, z - largest)
    return below - _threshold(below, a, power, axis_name), empty


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
    log_count = math.log(num_classes(z.shape, axis_name))
    high = log_count * _relative_expm1(-a * log_count)

    def unsettled(state: tuple[Array, Quad]) -> Array:
        step, (_, _, _, moving) = state
        return (step < 100) & jnp.any(moving)

    def improve(state: tuple[Array, Quad]) -> tuple[Array, Quad]:
        step, (t, low, high, moving) = state
        total, slope = _mass(z, t, a, power, axis_name)
        low, high = jnp.where(total >= 1.0, t, low), jnp.where(total < 1.0, t, high)
        log_total = jnp.log(total)
        new = t + total * log_total * _relative_expm1(-a * log_total) / slope
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
    p = _exp_a(x, a, power)
    if power == 1:
        slope = _slope(p, a, power)
    elif power == 2:
        slope = jnp.maximum(1.0 + 0.5 * x, 0.0)
    else:
        base = jnp.maximum(1.0 + a * jnp.maximum(x, _lowest(x)), 0.0)
        slope = jnp.where(p > 0, p / jnp.where(p > 0, base, 1.0), 0.0)
    return row_sum(p, axis_name), row_sum(slope, axis_name)


def _exp_a(x: Array, a: Array, power: int) -> Array:
    """(1 + a x)**(1 / a), and exp(x) at a = 0."""
    if power == 1:
        return jnp.maximum(1.0 + x, 0.0)
    if power == 2:
        return jnp.square(jnp.maximum(1.0 + 0.5 * x, 0.0))
    x = jnp.maximum(x, _lowest(x))  # 0 * inf
    t = jnp.maximum(a * x, -1.0)
    small = jnp.abs(t) < 1e-4
    safe = jnp.where(small, 1.0, t)
    series = 1.0 - t * (0.5 - t * (1.0 / 3.0 - t * 0.25))
    return jnp.exp(x * jnp.where(small, series, jnp.log1p(safe) / safe))


def _lowest(x: Array) -> float:
    return -float(jnp.finfo(x.dtype).max) / 4.0


def _relative_expm1(x: Array) -> Array:
    """expm1(x) / x, 1 at 0."""
    safe = jnp.where(x == 0, 1.0, x)
    return jnp.where(x == 0, 1.0, jnp.expm1(safe) / safe)
