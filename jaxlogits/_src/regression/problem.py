"""What a fit minimises: the negative log likelihood of a design, and a penalty."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.regression.design import Design
from jaxlogits._src.regression.likelihood import RowTerms, Terms, first_step, likelihood
from jaxlogits._src.regression.newton import Minimum, minimize, product, solve


class Problem(NamedTuple):
    """What is minimised; the penalty of a kernel B [J, P] is sum_p l2_p (B' metric B)_pp / 2."""

    design: Design
    l2: Array | None  # [P]
    metric: Array  # [J, J]
    matrix: Array  # [P, P], from the coordinates of the design to those of the kernel


class Lengths(NamedTuple):
    """Of steps, in standard errors."""

    goal: Array  # of the last
    coarse: Array  # above the rounding of a gradient that adds up so many rows


def lengths(tolerance: ArrayLike | None, weights: Array) -> Lengths:
    """The lengths for a tolerance, None for the square root of the spacing at 1."""
    eps, dtype = jnp.finfo(weights.dtype).eps, weights.dtype
    goal = jnp.sqrt(eps) if tolerance is None else checks.as_option("tolerance", tolerance, dtype)
    return Lengths(goal, jnp.sqrt(jnp.maximum(goal**1.5, 16 * eps * jnp.sqrt(jnp.sum(weights)))))


def find_minimum(
    row_terms: RowTerms, problem: Problem, max_steps: ArrayLike, length: Lengths
) -> Minimum:
    """The minimum, from that of a parabola that touches the likelihood where log-odds are 0."""
    gradient, hessian = first_step(row_terms, problem.design, len(problem.metric))
    if problem.l2 is not None:
        hessian += _penalty(problem, jnp.zeros_like(gradient))[1]
    size, steps = gradient.size, checks.as_integer("max_steps", max_steps)
    found = minimize(
        functools.partial(evaluate, row_terms),
        lax.stop_gradient(-solve(hessian.reshape(size, size), gradient.reshape(size))),
        problem,
        max_steps=checks.as_option("max_steps", steps, jnp.dtype(jnp.int32)) - 1,
        tolerance=length.goal,
        coarse=length.coarse,
    )
    return found._replace(steps=found.steps + 1)


def evaluate(row_terms: RowTerms, problem: Problem, point: Array) -> Terms:
    """The losses, and the gradient and the Hessian of what is minimised, at the kernel [J P]."""
    size = len(point)
    kernel = point.reshape(len(problem.metric), -1)
    losses, gradient, hessian = likelihood(row_terms, problem.design, kernel)
    if problem.l2 is not None:
        pull, stiffness = _penalty(problem, kernel)
        gradient, hessian = gradient + pull, hessian + stiffness
    return losses, gradient.reshape(size), hessian.reshape(size, size)


def _penalty(problem: Problem, kernel: Array) -> tuple[Array, Array]:
    """The gradient [J, P] and the Hessian [J, P, J, P] of the penalty."""
    l2 = jnp.zeros_like(kernel[0]) if problem.l2 is None else problem.l2
    square = product(problem.matrix.T * l2[None, :], problem.matrix)
    gradient = product(problem.metric, product(kernel, square))
    return gradient, problem.metric[:, None, :, None] * square[None, :, None, :]


def as_l2(value: ArrayLike, features: Array) -> Array | None:
    """The penalty of each feature, or None where it is switched off in Python."""
    if checks.is_zero(value):
        return None
    array = widen(checks.as_real("l2", value), features.dtype)
    checks.check_values("l2 must be at least 0", array, array >= 0, "for feature")
    array = jnp.where(array >= 0, array, jnp.nan)
    return checks.broadcast_to("l2", array, features.shape[1:])
