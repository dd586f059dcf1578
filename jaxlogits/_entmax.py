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

from jaxlogits._rows import Pair, log_softmax_tangent
from jaxlogits._typing import Array

Triple = tuple[Array, Array, Array]
Quad = tuple[Array, Array, Array, Array]


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def entmax_rows(z: Array, a: Array, blank: Array, power: int) -> Array:
    """Entmax over the last axis, with a as ``[..., 1]`` or a scalar; ``blank`` for rows of -inf."""
    x, empty = _above_threshold(z, a, power)
    p = _exp_a(x, a, power)
    return jnp.where(empty, blank, p / jnp.sum(p, axis=-1, keepdims=True))


@functools.partial(entmax_rows.defjvp, symbolic_zeros=True)
def _entmax_jvp(power: int, primals: Triple, tangents: tuple[Any, Any, Any]) -> Pair:
    z, a, blank = primals
    dz, da, _ = tangents
    p = entmax_rows(z, a, blank, power)
    slope = _slope(p, a, power)
    total = jnp.sum(slope, axis=-1, keepdims=True)
    share = slope / jnp.where(total == 0, 1.0, total)
    tangent = jnp.zeros_like(p)
    if not isinstance(dz, SymbolicZero):
        tangent += slope * log_softmax_tangent(z, share, dz)
    if not isinstance(da, SymbolicZero):
        bend = _exp_a_bend(p, a)
        tangent += (bend - share * jnp.sum(bend, axis=-1, keepdims=True)) * da
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def entmax_loss_rows(z: Array, y: Array, a: Array, blank: Array, power: int) -> Array:
    """omega(y) - omega(p) - (y - p) (z - t) of each row, omega(p) = (p**(1 + a) - p) / (a (1 + a)).

    Up to a constant z - t is at most omega's slope at p, so that no class adds less than 0.
    """
    x, empty = _above_threshold(z, a, power)
    p = entmax_rows(z, a, blank, power)
    missed = -_residual(p, y)
    height = jnp.maximum(x, _lowest(x))
    plain = y * (_log_a(y, a) - height) - (1.0 + a * height) * missed
    plain = jnp.where(y == 0, p * _power(p, a), jnp.where(x == -jnp.inf, jnp.inf, plain))
    near = (y > 0) & (jnp.abs(missed) <= 0.25 * p)
    relative = jnp.where(near, missed / jnp.where(near, p, 1.0), 0.0)
    curved = (1.0 + a) * p * _power(p, a) * _power_minus_line(relative, a)
    terms = jnp.where(near, curved, plain)
    terms = jnp.where(jnp.isnan(terms), terms, jnp.maximum(terms, 0.0))
    loss = jnp.sum(terms, axis=-1, keepdims=True) / (1.0 + a)
    return jnp.where(empty, blank, loss)[..., 0]


@functools.partial(entmax_loss_rows.defjvp, symbolic_zeros=True)
def _entmax_loss_jvp(power: int, primals: Quad, tangents: tuple[Any, Any, Any, Any]) -> Pair:
    z, y, a, blank = primals
    dz, dy, da, _ = tangents
    loss = entmax_loss_rows(z, y, a, blank, power)
    tangent = jnp.zeros_like(loss)
    if not isinstance(dz, SymbolicZero):
        tangent += jnp.sum(_residual_rows(z, y, a, blank, power) * dz, axis=-1)
    if not isinstance(dy, SymbolicZero):
        tangent += jnp.sum(_surprise_rows(z, y, a, power) * dy, axis=-1)
    if not isinstance(da, SymbolicZero):
        p = entmax_rows(z, a, blank, power)
        tangent += jnp.sum((_omega_bend(y, a) - _omega_bend(p, a)) * da, axis=-1)
    return loss, tangent


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _residual_rows(z: Array, y: Array, a: Array, blank: Array, power: int) -> Array:
    """p - y."""
    p = entmax_rows(z, a, blank, power)
    return jnp.where(jnp.max(z, axis=-1, keepdims=True) == -jnp.inf, blank, _residual(p, y))


@_residual_rows.defjvp
def _residual_jvp(power: int, primals: Quad, tangents: Quad) -> Pair:
    z, y, a, blank = primals
    dz, dy, da, _ = tangents
    entmax = functools.partial(entmax_rows, blank=blank, power=power)
    _, dp = jax.jvp(entmax, (z, a), (dz, da))
    return _residual_rows(z, y, a, blank, power), dp - dy


def _residual(p: Array, y: Array) -> Array:
    """p - y, where a p close to 1 is 1 less the others' sum."""
    likely = p > 0.5
    others = jnp.sum(jnp.where(likely, 0.0, p), axis=-1, keepdims=True)
    return jnp.where(likely, (1.0 - y) - others, p - y)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _surprise_rows(z: Array, y: Array, a: Array, power: int) -> Array:
    """The loss's derivative in y, log_a(y) - (z - t); 0 where y is 0 and z is -inf."""
    x, _ = _above_threshold(z, a, power)
    return jnp.where((y == 0) & (x == -jnp.inf), 0.0, _log_a(y, a) - x)


@_surprise_rows.defjvp
def _surprise_jvp(power: int, primals: Triple, tangents: Triple) -> Pair:
    z, y, a = primals
    dz, dy, da = tangents
    p = entmax_rows(z, a, jnp.zeros_like(a), power)
    slope = _slope(p, a, power)
    total = jnp.sum(slope, axis=-1, keepdims=True)
    total = jnp.where(total == 0, 1.0, total)
    dt = jnp.sum(_exp_a_bend(p, a), axis=-1, keepdims=True) / total * da
    above = log_softmax_tangent(z, slope / total, dz) - dt
    density = _power(y, a) / jnp.where(y > 0, y, 1.0)  # log_a's slope
    grown = density * (dy - _exp_a_bend(y, a) * da)
    return _surprise_rows(z, y, a, power), grown - above


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


def _above_threshold(z: Array, a: Array, power: int) -> tuple[Array, Array]:
    """z - t with exp_a(z - t) summing to 1, and which rows are -inf alone."""
    is_inf = z == jnp.inf
    count = jnp.sum(is_inf.astype(z.dtype), axis=-1, keepdims=True)
    sole = jnp.where(is_inf, 0.0, jnp.where(jnp.isnan(z), jnp.nan, -jnp.inf))
    z = jnp.where(count == 0, z, jnp.where(count == 1, sole, jnp.nan))
    largest = jnp.max(z, axis=-1, keepdims=True)
    empty = largest == -jnp.inf
    below = jnp.where(empty, 0.0, z - largest)
    return below - _threshold(below, a, power), empty


def _threshold(z: Array, a: Array, power: int) -> Array:
    """t for rows whose maximum is 0, by Newton's method on (S**a - 1) / a, S = sum exp_a(z - t).

    For a <= 1, S**a is a norm of a positive part that is linear in t: it is convex, so that Newton
    climbs from t = 0 without overshooting, and gets there in one step if all classes tie. For
    a > 1 steps that leave the bracket, and every other one, are bisections.
    """
    eps = 2.0 * float(jnp.finfo(z.dtype).eps)
    a = jnp.broadcast_to(a, (*z.shape[:-1], 1))
    low = jnp.zeros_like(z[..., :1])
    high = math.log(z.shape[-1]) * _relative_expm1(-a * math.log(z.shape[-1]))

    def unsettled(state: tuple[Array, Quad]) -> Array:
        step, (_, _, _, moving) = state
        return (step < 100) & jnp.any(moving)

    def improve(state: tuple[Array, Quad]) -> tuple[Array, Quad]:
        step, (t, low, high, moving) = state
        total, slope = _mass(z, t, a, power)
        low, high = jnp.where(total >= 1.0, t, low), jnp.where(total < 1.0, t, high)
        log_total = jnp.log(total)
        new = t + total * log_total * _relative_expm1(-a * log_total) / slope
        bisected = (a > 1.0) & ((step % 2 == 1) | ~((new > low) & (new < high)))
        new = jnp.where(bisected & (total != 1.0), 0.5 * (low + high), new)
        # The slope is infinite at the support's edge for a > 1: a small step says nothing there.
        error = jnp.where(a > 1.0, high - low, jnp.abs(new - t))
        arrived = (error <= eps * (1.0 + t)) | (total == 1.0)
        return step + 1, (jnp.where(moving, new, t), low, high, moving & ~arrived)

    valid = ~jnp.isnan(z[..., :1] + a) & (a >= 0.0) & ~jnp.isnan(jnp.sum(z, -1, keepdims=True))
    start = (jnp.int32(0), (low, low, high, valid))
    _, (t, _, _, _) = lax.while_loop(unsettled, improve, start)
    return jnp.where(valid, t, jnp.nan)


def _mass(z: Array, t: Array, a: Array, power: int) -> tuple[Array, Array]:
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
    return jnp.sum(p, axis=-1, keepdims=True), jnp.sum(slope, axis=-1, keepdims=True)


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
