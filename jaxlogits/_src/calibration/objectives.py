"""What the fits minimise: losses of labelled rows, with their gradients and Hessians."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, Axis
from jaxlogits._src.base.elementary import exp
from jaxlogits._src.calibration.labelled import labelled_rows
from jaxlogits._src.regression.classes import shares
from jaxlogits._src.regression.coordinates import unit_of
from jaxlogits._src.regression.newton import Evaluate, Minimum, minimize
from jaxlogits._src.rows.softmax import label_mask, logsumexp_rows


def fittable_rows(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[Array, Array, Array, Array]:
    """Rows, labels, weights in a unit that is about the largest of them, and that unit.

    A row whose loss is infinite or NaN has weight NaN.
    """
    z, indices, weight = labelled_rows(logits, labels, axis, where, weights)
    # A mask that was written as a number is meant to be -inf.
    mask = max(-5e8, float(jnp.finfo(jnp.asarray(logits).dtype).min) / 2)
    masked = (z <= mask) & (z <= -1e3 * jnp.abs(jnp.max(z, axis=-1, keepdims=True)))
    z = jnp.where(masked, -jnp.inf, z)
    impossible = jnp.any(label_mask(z.shape, indices, None) & (z == -jnp.inf), axis=-1)
    bad = impossible | ~jnp.all(z < jnp.inf, axis=-1)
    worst = jnp.where(impossible, -jnp.inf, jnp.max(z, axis=-1))
    rule = "logits must be above -inf for the label and below inf"
    checks.check_values(rule, worst, ~bad | (weight == 0))
    z = jnp.where(bad[:, None], 0.0, z)  # whatever the weights: fits that share rows share these
    unit = unit_of(weight)
    return z, indices, jnp.where(bad & (weight != 0), jnp.nan, weight / unit), unit


def spread(gaps: Array, hit: Array, weight: Array) -> Array:
    """How far the likeliest of the other classes is from the label's, on average; above 0.

    A class that is far out counts as little here as it does in the loss.
    """
    other = jnp.max(jnp.where(hit, -jnp.inf, gaps), axis=-1)
    distance = jnp.where(jnp.isfinite(other), jnp.abs(other), 0.0)
    spread = lax.stop_gradient(jnp.sum(weight * distance) / jnp.sum(weight))
    return jnp.where(spread > 0, spread, 1.0)


def minimize_loss(
    evaluate: Evaluate, start: Array, args: Any, max_steps: int | Array = 100
) -> Minimum:
    """The minimum of one of these losses."""
    # The last step leaves the square of the tolerance, in standard errors: 6e-6 in float32. Where
    # there is a minimum, that takes about 5 steps. Where there is none, each step divides the loss
    # by e until it's below that square, which 100 steps suffice for.
    tolerance = float(jnp.finfo(start.dtype).eps) ** 0.375
    return minimize(evaluate, start, args, max_steps=max_steps, tolerance=tolerance)


def by_inverse_temperature(args: tuple[Array, Array], point: Array) -> tuple[Array, Array, Array]:
    """The loss as a function of 1 / T, from the gaps [K, N] of the logits to the label's."""
    gaps, weights = args
    known = jnp.where(gaps == -jnp.inf, 0.0, gaps)
    z = jnp.where(gaps == -jnp.inf, gaps, point[None] * known)
    odds = exp(z - lax.stop_gradient(jnp.max(z, axis=0))[None])
    inverse = 1 / jnp.sum(odds, axis=0)
    mean = jnp.sum(odds * known, axis=0) * inverse
    variance = jnp.sum(odds * jnp.square(known - mean[None]), axis=0) * inverse
    losses = logsumexp_rows(z.T, None)  # as the label's gap is 0
    value, gradient, hessian = (jnp.sum(weights * each) for each in (losses, mean, variance))
    return value, gradient[None], hessian[None, None]


def by_scale_and_bias(
    args: tuple[Array, Array, Array, Array], point: Array
) -> tuple[Array, Array, Array]:
    """The loss of logits [K, N] with a line for each class."""
    z, labels, weights, l2 = args
    num_classes = z.shape[0]  # which may be symbolic, as len(z) may not
    scale, bias = jnp.split(point, 2)
    features = jnp.stack([jnp.where(z == -jnp.inf, 0.0, z), jnp.ones_like(z)])
    of_all = shares(scaled(z, scale, bias))
    hit = labels[None] == jnp.arange(num_classes, dtype=labels.dtype)[:, None]
    pull = jnp.concatenate([scale - 1, bias])
    # Adding a number to all biases changes nothing; this term makes it 0.
    gauge = jnp.sum(weights) / jnp.asarray(num_classes, z.dtype) ** 2
    value = jnp.sum(weights * jnp.sum(jnp.where(hit, of_all.losses, 0.0), axis=0))
    value += 0.5 * (l2 * jnp.sum(jnp.square(pull)) + gauge * jnp.square(jnp.sum(bias)))
    residual = weights[None] * jnp.where(hit, -of_all.rest, of_all.probs)
    gradient = jnp.sum(residual[None] * features, axis=2)
    gradient = gradient.at[1].add(gauge * jnp.sum(bias)).reshape(-1) + l2 * pull
    mean = features * of_all.probs[None]
    weighted = mean * weights[None, None]
    squares = jnp.einsum("akn,bkn->abk", weighted, features, precision="highest")
    products = jnp.einsum("akn,bln->akbl", weighted, mean, precision="highest")
    eye = jnp.eye(num_classes, dtype=z.dtype)
    hessian = jnp.einsum("abk,kl->akbl", squares, eye) - products
    hessian = hessian.at[1, :, 1, :].add(gauge).reshape(2 * num_classes, 2 * num_classes)
    return value, gradient, hessian + l2 * jnp.eye(2 * num_classes, dtype=z.dtype)


def scaled(z: Array, scale: Array, bias: Array) -> Array:
    """scale * z + bias of [K, N], with -inf as it was."""
    impossible = z == -jnp.inf
    finite = scale[:, None] * jnp.where(impossible, 0.0, z) + bias[:, None]
    return jnp.where(impossible, z, finite)
