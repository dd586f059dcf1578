"""What a fit minimises: the negative log likelihood of a design, and a penalty.

Firth's penalty is minus half the log determinant of the information I, which is the Hessian of the
loss. It is large where the likelihood is flat, and so leads back from where data are separated. Its
gradient is -tr(I^-1 dI) / 2. Steps take I for the Hessian, as is usual, derivatives take all of it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base import checks
from jaxlogits._src.base.dtypes import Array, ArrayLike, widen
from jaxlogits._src.base.elementary import log
from jaxlogits._src.regression.design import Design, Rows
from jaxlogits._src.regression.likelihood import RowTerms, Terms, first_parabola, total_loss
from jaxlogits._src.regression.newton import Minimum, minimize, product, solve


class Problem(NamedTuple):
    """What is minimised; the penalty of a kernel B [J, P] is sum_p l2_p (B' metric B)_pp / 2.

    Firth's penalty is less ``firth`` times half the log determinant.
    """

    design: Design
    l2: Array | None  # [P]
    metric: Array  # [J, J]
    matrix: Array  # [P, P], from the coordinates of the design to those of the kernel
    firth: Array | None = None


class Lengths(NamedTuple):
    """Of steps, in standard errors."""

    goal: Array  # of the last
    coarse: Array  # above the rounding of a gradient that adds up so many rows


def step_lengths(tolerance: ArrayLike | None, rows: Rows, *, linear: bool = False) -> Lengths:
    """The lengths of steps for a tolerance, None for the square root of the spacing at 1.

    If each step leaves a share of the error, and not its square, it is that to the power of 3/4.
    A label that is rarely seen, as 50 times in ten million trials, asks for shorter steps: the
    likelihood changes by little where its log-odds are far from right.
    """
    eps, dtype = jnp.finfo(rows.weights.dtype).eps, rows.weights.dtype
    least, of_rarer = _rare_weights(rows)
    noise, rarest = eps * jnp.sqrt(jnp.sum(rows.weights)), jnp.sqrt(least)
    goal = jnp.sqrt(eps)
    if tolerance is not None:
        goal = checks.as_option("tolerance", tolerance, dtype)
    elif linear:
        goal = jnp.maximum(eps**0.75, 4 * noise)
    else:
        goal = jnp.minimum(goal, jnp.maximum(goal * rarest, 32 * eps * jnp.sqrt(of_rarer)))
    return Lengths(goal, jnp.sqrt(jnp.maximum(goal**1.5, 16 * noise * rarest)))


def _rare_weights(rows: Rows) -> tuple[Array, Array]:
    """The least weight above 0 of a label in a row, at most 1, and of all with the rarer label."""
    weights, labels = [rows.weights], rows.labels
    if jnp.issubdtype(labels.dtype, jnp.floating):
        shares = labels.T if labels.ndim == 2 else (labels, 1 - labels)
        weights = [rows.weights * share for share in shares]
    least = [jnp.min(jnp.where(w > 0, w, 1), initial=1) for w in weights]
    of_each = [jnp.sum(w) for w in weights]
    return jnp.min(jnp.stack(least)), jnp.min(jnp.stack(of_each))


def find_minimum(
    row_terms: RowTerms, problem: Problem, max_steps: Array, length: Lengths
) -> Minimum:
    """The minimum, from that of a parabola that touches the likelihood where log-odds are 0."""
    gradient, hessian = first_parabola(row_terms, problem.design, len(problem.metric))
    if problem.l2 is not None:
        hessian += _penalty(problem, jnp.zeros_like(gradient))[1]
    size = gradient.size
    found = minimize(
        functools.partial(evaluate, row_terms),
        lax.stop_gradient(-solve(hessian.reshape(size, size), gradient.reshape(size))),
        problem,
        max_steps=max_steps - 1,
        tolerance=length.goal,
        coarse=length.coarse,
        exact=None if problem.firth is None else functools.partial(evaluate_all, row_terms),
    )
    return found._replace(steps=found.steps + 1)


def evaluate(row_terms: RowTerms, problem: Problem, point: Array) -> Terms:
    """The loss, and the gradient and the Hessian of what is minimised, at the kernel [J P].

    The Hessian is without that of Firth's penalty.
    """
    kernel = point.reshape(len(problem.metric), -1)
    loss, gradient, hessian = total_loss(row_terms, problem.design, kernel)
    gradient, hessian = gradient.reshape(-1), hessian.reshape(len(point), len(point))
    if problem.firth is not None:
        gradient -= problem.firth * _firth_slope(row_terms, problem, point)
    if problem.l2 is not None:
        pull, stiffness = _penalty(problem, kernel)
        gradient, hessian = gradient + pull.reshape(-1), hessian + stiffness.reshape(hessian.shape)
    return loss, gradient, hessian


def evaluate_all(row_terms: RowTerms, problem: Problem, point: Array) -> Terms:
    """The same with all of the Hessian."""
    loss, gradient, hessian = evaluate(row_terms, problem, point)
    bend = jax.jacfwd(functools.partial(_firth_slope, row_terms, problem))(point)
    return loss, gradient, hessian - problem.firth * bend


def half_log_det(row_terms: RowTerms, problem: Problem, point: Array) -> Array:
    """Half the log determinant of the information, in the coordinates of the design."""
    information = _information(row_terms, problem, point)
    scale = jnp.sqrt(jnp.diagonal(information))
    angles = information / (scale[:, None] * scale[None, :])
    log_det: Array = jnp.linalg.slogdet(angles)[1]
    return jnp.sum(log(scale)) + log_det / 2


def _firth_slope(row_terms: RowTerms, problem: Problem, point: Array) -> Array:
    """Its gradient, tr(I^-1 dI) / 2."""
    information, pullback = jax.vjp(functools.partial(_information, row_terms, problem), point)
    inverse = solve(information, jnp.eye(len(point), dtype=point.dtype))
    (slope,) = pullback(inverse / 2)
    return jnp.asarray(slope)


def _information(row_terms: RowTerms, problem: Problem, point: Array) -> Array:
    kernel = point.reshape(len(problem.metric), -1)
    return total_loss(row_terms, problem.design, kernel)[2].reshape(len(point), len(point))


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


def inverse_hessian(problem: Problem, hessian: Array) -> tuple[Array, Array]:
    """The inverse Hessian [P, J, P, J] of the coefficients, and whether there is none."""
    num_outputs, matrix = len(problem.metric), problem.matrix
    inverse = solve(hessian, jnp.eye(len(hessian), dtype=hessian.dtype))
    singular = jnp.any(jnp.isnan(inverse)) & jnp.all(jnp.isfinite(hessian))
    by_class = inverse.reshape(num_outputs, len(matrix), num_outputs, len(matrix))
    half = jnp.tensordot(matrix, by_class, (1, 1), precision=lax.Precision.HIGHEST)
    full = jnp.tensordot(half, matrix, (3, 1), precision=lax.Precision.HIGHEST)
    return full.transpose(0, 1, 3, 2), singular
