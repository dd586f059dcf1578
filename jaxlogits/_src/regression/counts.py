"""The log likelihood of counts, accurate for millions of trials.

For y successes in n trials it is its maximum, at the rate y / n, less n times a divergence. Neither
is a difference of numbers much larger than itself (Loader, Fast and Accurate Computation of
Binomial Probabilities, 2000).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax
from jax.scipy.special import gammaln

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.base.elementary import expm1, log, log1p
from jaxlogits._src.base.exp_log import exp_bend
from jaxlogits._src.base.odds import softplus
from jaxlogits._src.regression.coordinates import Coordinates
from jaxlogits._src.regression.design import Counts, Model, Rows, finite_features
from jaxlogits._src.regression.likelihood import sum_rows
from jaxlogits._src.regression.newton import product
from jaxlogits._src.regression.two_floats import TwoFloats, add, dot, log_ratio, multiply


def divergence(log_odds: TwoFloats, positive: Array, negative: TwoFloats) -> Array:
    """KL(positive || sigmoid(log_odds)), for shares of labels 1 and 0 or counts; at least 0."""
    rarely = positive <= negative.high
    least = jnp.where(rarely, positive, negative.high)
    never = least <= 0
    failures = TwoFloats(jnp.where(never, 1, negative.high), jnp.where(never, 0, negative.low))
    observed = log_ratio(jnp.where(never, 1, positive), failures)
    # What is left of two numbers that are nearly equal, and what their rounding has left out.
    d = (log_odds.high - observed.high) + (log_odds.low - observed.low)
    x, d = jnp.where(rarely, log_odds.high, -log_odds.high), jnp.where(rarely, d, -d)
    s = jnp.where(never, 0.25, least / (positive + negative.high))
    # log(1 + t) - s d with t = s (exp(d) - 1), both of which are nearly s d where d is small.
    near = jnp.minimum(d, 1)
    t = s * expm1(near)
    close = s * _exp_minus_line(near) - _line_minus_log(t)
    of_zeros = softplus(x)  # the loss of labels that are all 0
    apart = jnp.where(d > 1, of_zeros + log1p(-s) - s * d, close)
    return jnp.where(never, of_zeros, jnp.maximum(apart, 0))


def _exp_minus_line(x: Array) -> Array:
    """exp(x) - 1 - x, at least 0."""
    return jnp.where(jnp.abs(x) <= 1, x * x * exp_bend(x), expm1(x) - x)


def _line_minus_log(t: Array) -> Array:
    """t - log(1 + t), at least 0, by 2 atanh(t / (2 + t)) where t is small."""
    terms = 7 if t.dtype == jnp.float32 else 16
    v = t / (2 + t)
    series = jnp.full_like(t, 1 / (2 * terms + 3))
    for n in range(2 * terms + 1, 1, -2):
        series = series * (v * v) + 1 / n
    return jnp.where(jnp.abs(t) <= 0.5, v * (t - 2 * v * v * series), t - log1p(t))


def saturated(successes: Array, trials: Array) -> Array:
    """The log probability of the successes at their own rate, successes / trials; at most 0."""
    failures = trials - successes
    y, rest = jnp.minimum(successes, failures), jnp.maximum(successes, failures)
    sure = y <= 0
    y, n = jnp.where(sure, 1, y), jnp.where(sure, 2, trials)
    rest = jnp.where(sure, 1, rest)
    ways = (_stirling_error(n) - _stirling_error(rest)) - _stirling_error(y)
    spread = log(2 * math.pi * y) + log(rest / n)
    return jnp.where(sure, 0, ways - spread / 2)


def _stirling_error(n: Array) -> Array:
    """log(n!) less Stirling's formula n log(n) - n + log(2 pi n) / 2."""
    enough = 4 if n.dtype == jnp.float32 else 16  # for the series to leave less than an ulp
    few, many = jnp.minimum(n, enough), jnp.maximum(n, enough)
    exact = gammaln(few + 1) - ((few + 0.5) * log(few) - few + math.log(2 * math.pi) / 2)
    square = 1 / (many * many)
    coefficients = (-1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)
    series = jnp.full_like(n, coefficients[-1])
    for c in coefficients[-2::-1]:
        series = series * square + c
    return jnp.where(n < enough, exact, (1 / 12 + series * square) / many)


def log_likelihood(counts: Counts, loss: Array, excess: Array) -> Array:
    """The log likelihood of counts, in any order, from the loss of their shares and its excess."""
    at_best = jnp.sum(counts.weights * saturated(counts.successes, counts.trials))
    ways = jnp.sum(counts.weights * _log_binomial(counts))
    return with_derivative_of(at_best - excess, ways - loss)


def excess_loss(model: Model, counts: Counts) -> Array:
    """How far the loss is above that of probabilities equal to the shares; without derivatives."""
    model, counts = lax.stop_gradient((model, counts))
    # Of labels that are all 0 or 1 it is the loss.
    certain = jnp.all((counts.successes <= 0) | (counts.successes >= counts.trials))
    excess: Array = lax.cond(certain, lambda model, _: model.loss, _sum_excess, model, counts)
    return excess


def _sum_excess(model: Model, counts: Counts) -> Array:
    design = model.design
    coefficients = _coefficients(design.coordinates, model.kernel[0])

    def excess(rows: Rows, _: Array) -> Array:
        successes, trials = rows.labels.T
        high, low = dot(finite_features(rows), coefficients)
        if rows.offset is not None:
            high, rounded = add(high, rows.offset[:, 0])
            low += rounded
        failures = add(trials, -successes)
        return product(rows.weights, divergence(TwoFloats(high, low), successes, failures))

    rows = design.rows._replace(labels=jnp.stack([counts.successes, counts.trials], axis=1))
    return sum_rows(excess, design._replace(rows=rows), 1)


def _coefficients(coordinates: Coordinates, kernel: Array) -> TwoFloats:
    """Those of the features [P], from the kernel [P] of the coordinates."""
    own = kernel * coordinates.scale  # by powers of two
    shift = dot(own, TwoFloats(coordinates.centre, jnp.zeros_like(own)))
    moved = multiply(coordinates.level, shift.high)
    high, low = add(own, -moved.high)
    return TwoFloats(high, low - (moved.low + coordinates.level * shift.low))


def with_derivative_of(value: Array, number: Array) -> Array:
    """The value, with the derivatives of a number that is the same but for rounding."""
    return lax.stop_gradient(value) + (number - lax.stop_gradient(number))


def _log_binomial(counts: Counts) -> Array:
    """The log of the binomial coefficients, for its derivatives."""
    y, n = counts.successes, counts.trials
    return gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)
