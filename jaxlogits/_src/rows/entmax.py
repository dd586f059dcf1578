"""The alpha-entmax of rows, its threshold without a sort, and its Fenchel–Young loss.

With a = alpha - 1, every class gets exp_a(z - t), where exp_a(x) = (1 + a x)**(1 / a) is 0 for
x <= -1 / a, and the threshold t makes the row sum to 1. At a = 0 this is softmax with t its
logsumexp, at a = 1 sparsemax. It is written in t, not in the literature's tau = a t - 1, since t
stays finite and smooth as a tends to 0.

``power`` is 1 / a where that is known to be 1 or 2, and 0 where a is an array.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, AxisName
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.rules import checkpointed, derivatives, times, weigh
from jaxlogits._src.mesh.reductions import num_classes, row_max, row_sum
from jaxlogits._src.rows.softmax import centred, without_inf

Triple = tuple[Array, Array, Array]
Quad = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def entmax_rows(z: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """Entmax over the last axis, with a as ``[..., 1]`` or a scalar; NaN for rows of -inf."""
    x, _, empty = _above_threshold(z, a, power, axis_name)
    p = _exp_a(x, a, power)
    return p / jnp.where(empty, jnp.nan, row_sum(p, axis_name))


@checkpointed
def _entmax_by_z(dz: Array, p: Array, _: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    slope = _slope(p, a, power)
    return slope * centred(_share(slope, axis_name), dz, axis_name)


@checkpointed
def _entmax_by_a(da: Array, p: Array, _: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    share, bend = _share(_slope(p, a, power), axis_name), _exp_a_bend(p, a)
    return (bend - share * row_sum(bend, axis_name)) * da


derivatives(entmax_rows, _entmax_by_z, _entmax_by_a)


def _share(slope: Array, axis_name: AxisName) -> Array:
    """The slopes as parts of their sum, or 0 where there are none."""
    total = row_sum(slope, axis_name)
    return slope / jnp.where(total == 0, 1.0, total)


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
    inner = -safe * jnp.square(log_p) * exp_bend(w)
    outer = jnp.where(near, 1.0, a)
    far = (safe * (1.0 + w) - jnp.power(safe, 1.0 - a)) / (outer * outer)
    return jnp.where(inside, jnp.where(near, inner, far), 0.0 * p)


# The Fenchel–Young loss: what it costs that entmax is p where the targets are y.


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def entmax_loss_rows(z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """omega(y) - omega(p) - (y - p) (z - t) of each row, omega(p) = (p**(1 + a) - p) / (a (1 + a)).

    Up to a constant z - t is at most omega's slope at p, so that no class adds less than 0.
    """
    x, halves, empty = _above_threshold(z, a, power, axis_name)
    p = entmax_rows(z, a, power, axis_name)
    missed = -_residual(p, y, axis_name)
    # From where on nothing counts beside the gap; half of it is finite where the gap isn't.
    far = x < -1.0 / float(jnp.finfo(x.dtype).eps) ** 2
    height = jnp.where(far, 0.0, x)
    plain = y * (_log_a(y, a) - height) - (1.0 + a * height) * missed
    plain = jnp.where(y == 0, p * _power(p, a), plain)
    near = (y > 0) & (jnp.abs(missed) <= 0.25 * p)
    relative = jnp.where(near, missed / jnp.where(near, p, 1.0), 0.0)
    curved = (1.0 + a) * p * _power(p, a) * _power_minus_line(relative, a)
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
    return row_sum((_omega_bend(y, a) - _omega_bend(p, a)) * da, axis_name)[..., 0]


def _residual(p: Array, y: Array, axis_name: AxisName) -> Array:
    """p - y, where a p close to 1 is 1 less the others' sum."""
    likely = p > 0.5
    others = row_sum(jnp.where(likely, 0.0, p), axis_name)
    return jnp.where(likely, (1.0 - y) - others, p - y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _surprise_rows(z: Array, y: Array, a: Array, power: int, axis_name: AxisName) -> Array:
    """The loss's derivative in y, log_a(y) - (z - t); 0 where y is 0 and z is -inf."""
    x, _, _ = _above_threshold(z, a, power, axis_name)
    return jnp.where((y == 0) & (x == -jnp.inf), 0.0, _log_a(y, a) - x)


@checkpointed
def _surprise_by_z(
    dz: Array, _: Array, z: Array, __: Array, a: Array, power: int, axis_name: AxisName
) -> Array:
    p = entmax_rows(z, a, power, axis_name)
    return -centred(_share(_slope(p, a, power), axis_name), dz, axis_name)


@checkpointed
def _surprise_by_a(
    da: Array, _: Array, z: Array, y: Array, a: Array, power: int, axis_name: AxisName
) -> Array:
    p = entmax_rows(z, a, power, axis_name)
    total = row_sum(_slope(p, a, power), axis_name)
    threshold = row_sum(_exp_a_bend(p, a), axis_name) / jnp.where(total == 0, 1.0, total)
    # Of log_a(0) = -1 / a, and of the inverse of exp_a elsewhere.
    safe = jnp.where(y > 0, y, 1.0)
    bend = -_raised(safe, a - 1.0) * _exp_a_bend(y, a)
    bend = jnp.where(y == 0, 1.0 / jnp.square(jnp.broadcast_to(a, y.shape)), bend)
    return times(bend, da) + threshold * da


@jax.custom_jvp
def _raised(base: Array, exponent: Array) -> Array:
    """base**exponent, whose derivatives are such powers again, with 0 times infinity as 0."""
    return jnp.power(base, exponent)


derivatives(
    _raised,
    lambda dbase, _, base, exponent: times(weigh(exponent, _raised(base, exponent - 1.0)), dbase),
    lambda dexponent, value, base, _: times(weigh(value, jnp.log(base)), dexponent),
)


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
    lambda dy, _, __, y, a, *___: times(_raised(y, a - 1.0), dy),  # log_a's slope
    _surprise_by_a,
)


def _omega_bend(p: Array, a: Array) -> Array:
    """omega's derivative in a."""
    bend = -_exp_a_bend(p, a) * _power(p, a)
    log_p = jnp.log(jnp.where(p > 0, p, 1.0))
    entropy = jnp.where(p > 0, p * log_p * _relative_expm1(a * log_p), 0.0 * p)
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


def _above_threshold(z: Array, a: Array, power: int, axis_name: AxisName) -> Triple:
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
    log_count = jnp.log(jnp.asarray(num_classes(z.shape, axis_name), z.dtype))
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
    return _moment(x, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _moment(x: Array, n: int) -> Array:
    """The integral of s**n exp(x s) over s from 0 to 1: the nth derivative of expm1(x) / x."""
    safe = jnp.where(x == 0, 1.0, x)
    moment = jnp.where(x == 0, 1.0, jnp.expm1(safe) / safe)
    if n == 0:
        return moment
    near = jnp.abs(x) <= n + 1.0  # where the recurrence cancels
    small, safe = jnp.where(near, x, 0.0), jnp.where(near, 1.0, x)
    series = jnp.zeros_like(x)
    for k in range(20 + 4 * n if x.dtype == jnp.float32 else 36 + 6 * n, -1, -1):
        series = series * small + 1.0 / (math.factorial(k) * (n + k + 1))
    moment = jnp.expm1(safe) / safe
    for m in range(1, n + 1):
        moment = (jnp.exp(safe) - m * moment) / safe
    return jnp.where(near, series, moment)


derivatives(_moment, lambda dx, _, x, n: _moment(x, n + 1) * dx)
