"""The model without features: an intercept alone, and whether a design has one."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array, ArrayLike
from jaxlogits._src.base.elementary import log
from jaxlogits._src.regression.coordinates import Coordinates
from jaxlogits._src.regression.design import Design, Model, Rows
from jaxlogits._src.regression.likelihood import RowTerms, Terms, sum_rows, total_loss
from jaxlogits._src.regression.newton import minimize, product, solve
from jaxlogits._src.regression.problem import (
    Problem,
    evaluate,
    evaluate_all,
    find_minimum,
    half_log_det,
    step_lengths,
)

RowEvaluate = Callable[[RowTerms, Problem, Array], Terms]


def likeliest_intercept(
    row_terms: RowTerms, design: Design, num_outputs: int
) -> tuple[Design, Array]:
    """The rows with a 1 for their features, and the kernel [J, 1] with their offset and weights."""
    rows = design.rows
    level = jnp.ones_like(rows.weights)
    one = level[:, None]
    rows = rows._replace(features=one, level=level, centred=one)
    as_it_is = Coordinates(*(jnp.full([1], value, one.dtype) for value in (0, 0, 1)))
    design = Design(rows, as_it_is)
    if rows.offset is None:
        # Log-odds of -90 stand for those of a class without rows.
        shares = jnp.maximum(_label_weights(rows, num_outputs + 1), jnp.finfo(one.dtype).tiny)
        kernel = (log(shares[1:]) - log(shares[0]))[:, None]
    else:
        no_l2, square = jnp.eye(num_outputs, dtype=one.dtype), jnp.eye(1, dtype=one.dtype)
        problem = Problem(design, None, no_l2, square)
        minimum = find_minimum(row_terms, problem, jnp.int32(100), step_lengths(None, rows))
        kernel = minimum.point[:, None]
    return design, kernel


def _label_weights(rows: Rows, num_classes: int) -> Array:
    """How much weight each class has among the labels, [K]; of binary labels 0 is the first."""
    y, w = rows.labels, rows.weights
    if y.ndim == 2:
        return jnp.sum(y[:, ::-1] * w[:, None], axis=0)
    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.stack([jnp.sum((1 - y) * w), jnp.sum(y * w)])

    def of_class(k: Array) -> Array:
        return jnp.sum(jnp.where(y == k, w, 0))

    classes = jnp.arange(num_classes, dtype=y.dtype)
    return jnp.asarray(lax.map(of_class, classes))  # one after the other, without [K, N]


def constant_of(design: Design) -> tuple[Array, Array]:
    """A combination [P] of the features that is 1, and whether it is in each row that counts."""
    rows = design.rows._replace(offset=None)
    design = design._replace(rows=rows)
    num_features, dtype = rows.features.shape[1], rows.features.dtype
    if num_features == 0:
        return jnp.zeros([0], dtype), jnp.zeros([], bool)

    def squares(rows: Rows, x: Array) -> tuple[Array, Array]:
        return product(rows.weights, x), product(x.T, rows.weights[:, None] * x)

    def distance(kernel: Array) -> tuple[Array, Array]:
        """Half the gradient and the sum of the squared distances from 1."""

        def of(rows: Rows, x: Array) -> tuple[Array, Array]:
            apart = product(x, kernel) - 1
            return product(rows.weights * apart, x), product(rows.weights, apart * apart)

        return sum_rows(of, design, 1)

    ones, square = sum_rows(squares, design, 1)
    first = solve(square, ones)
    kernel = first - solve(square, distance(first)[0])  # what the rounding leaves
    _, left = distance(kernel)
    return kernel, left <= (64 * jnp.finfo(dtype).eps) ** 2 * jnp.sum(rows.weights)


def firth_null(row_terms: RowTerms, problem: Problem, constant: Array) -> Array:
    """The kernel [J P] of an intercept alone that is likeliest by the information of all features.

    This is the hypothesis that the other coefficients are 0, under the same prior.
    """
    num_outputs = len(problem.metric)

    def along(evaluate: RowEvaluate, args: tuple[Problem, Array], intercepts: Array) -> Terms:
        problem, constant = args
        losses, gradient, hessian = evaluate(row_terms, problem, kernel(constant, intercepts))
        wide = hessian.reshape(num_outputs, len(constant), num_outputs, len(constant))
        by_output = product(gradient.reshape(num_outputs, -1), constant)
        return losses, by_output, jnp.einsum("jpkq,p,q->jk", wide, constant, constant)

    def kernel(constant: Array, intercepts: Array) -> Array:
        return (intercepts[:, None] * constant[None, :]).reshape(-1)

    length = step_lengths(None, problem.design.rows, linear=True)
    found = minimize(
        functools.partial(along, evaluate),
        jnp.zeros([num_outputs], constant.dtype),
        (problem, constant),
        max_steps=100,
        tolerance=length.goal,
        exact=functools.partial(along, evaluate_all),
    )
    return kernel(constant, found.point)


def null_model(
    row_terms: RowTerms, problem: Problem, point: Array, constant: Array, unit: Array
) -> tuple[Model, tuple[ArrayLike, ArrayLike]]:
    """The null model, and Firth's prior at the point that was found and at that model."""
    num_outputs = len(problem.metric)
    if problem.firth is None:
        design, kernel = likeliest_intercept(row_terms, problem.design, num_outputs)
        return Model(design, kernel, total_loss(row_terms, design, kernel)[0]), (0.0, 0.0)
    null = firth_null(row_terms, problem, constant)
    # The determinant is that in the units of features and weights.
    of_units = len(point) * log(unit) / 2
    of_units -= num_outputs * jnp.sum(log(problem.design.coordinates.scale))
    densities = (half_log_det(row_terms, problem, b) + of_units for b in (point, null))
    at_point, at_null = densities
    loss, kernel = evaluate(row_terms, problem, null)[0], null.reshape(num_outputs, -1)
    return Model(problem.design, kernel, loss), (at_point, at_null)
