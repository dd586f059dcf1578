"""The model without features: an intercept alone, and whether a design has one."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.regression.design import Design, Rows
from jaxlogits._src.regression.likelihood import RowTerms, Terms, likelihood
from jaxlogits._src.regression.newton import solve
from jaxlogits._src.regression.problem import Problem, find_minimum, lengths


def null_losses(row_terms: RowTerms, design: Design, num_outputs: int) -> Array:
    """The losses [L] of the rows at the likeliest intercept, with their offset and weights."""
    rows = design.rows
    one = jnp.ones_like(rows.weights)[:, None]
    design = design._replace(rows=rows._replace(features=one, level=None))
    if rows.offset is None:
        # Log-odds of -90 stand for those of a class without rows.
        shares = jnp.maximum(_label_weights(rows, num_outputs + 1), jnp.finfo(one.dtype).tiny)
        kernel = (jnp.log(shares[1:]) - jnp.log(shares[0]))[:, None]
    else:
        no_l2, square = jnp.eye(num_outputs, dtype=one.dtype), jnp.eye(1, dtype=one.dtype)
        problem = Problem(design, None, no_l2, square)
        minimum = find_minimum(row_terms, problem, jnp.int32(100), lengths(None, rows.weights))
        kernel = minimum.point[:, None]
    return likelihood(row_terms, design, kernel)[0]


def _label_weights(rows: Rows, num_classes: int) -> Array:
    """How much weight each class has among the labels, [K]; no is the first."""
    y, w = rows.labels, rows.weights
    if y.ndim == 2:
        return jnp.sum(y[:, ::-1] * w[:, None], axis=0)
    if jnp.issubdtype(y.dtype, jnp.floating):
        return jnp.stack([jnp.sum((1 - y) * w), jnp.sum(y * w)])
    is_class = y[None, :] == jnp.arange(num_classes, dtype=y.dtype)[:, None]
    return jnp.sum(jnp.where(is_class, w[None, :], 0), axis=1)


def has_constant(design: Design) -> Array:
    """Whether a combination of the features is 1 in each row that counts, to rounding."""
    rows = lax.stop_gradient(design.rows)._replace(offset=None)
    design = lax.stop_gradient(design)._replace(rows=rows)
    num_features, dtype = rows.features.shape[1], rows.features.dtype
    if num_features == 0:
        return jnp.zeros([], bool)
    kernel = jnp.zeros([1, num_features], dtype)
    for _ in range(2):  # the second for what the rounding of the first leaves
        _, gradient, hessian = likelihood(_distance_from_1, design, kernel)
        kernel -= solve(hessian.reshape(num_features, num_features), gradient[0])[None, :]
    (left,), _, _ = likelihood(_distance_from_1, design, kernel)
    return left <= (64 * jnp.finfo(dtype).eps) ** 2 * jnp.sum(rows.weights)


def _distance_from_1(x: Array, labels: Array) -> Terms:  # noqa: ARG001
    """Least squares in place of a likelihood."""
    return (x - 1) ** 2, x - 1, jnp.ones_like(x)[None]
