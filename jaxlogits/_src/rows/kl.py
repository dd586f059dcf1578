"""KL(p || q) of two rows of logits, and its gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxlogits._src.base import xla
from jaxlogits._src.base.dtypes import Array, AxisName, widen
from jaxlogits._src.base.rules import checkpointed, derivatives
from jaxlogits._src.mesh.reductions import row_sum
from jaxlogits._src.rows.pairs import (
    Numbers,
    centred_rows,
    compare,
    log_ratio_rows,
    prob_difference,
    sum_over,
    weighed_rows,
    whole,
)
from jaxlogits._src.rows.softmax import softmax_tangent
from jaxlogits._src.rows.stats import probs_of


def kl_rows(a: Array, b: Array, axis_name: AxisName) -> Array:
    """KL(p || q) of each row, in any floating-point dtype; NaN where one is -inf alone."""
    return _kl_and_numbers(a, b, axis_name)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl_and_numbers(a: Array, b: Array, axis_name: AxisName) -> tuple[Array, Numbers]:
    """The divergence, and what its derivative takes from the rows, which counts as constants."""
    numbers = compare(a, b, axis_name)
    return numbers.kl[..., 0], numbers


@checkpointed
def _kl_by_a(da: Array, numbers: Numbers, a: Array, b: Array, axis_name: AxisName) -> Array:
    return row_sum(_gradient_by_a(a, b, numbers, axis_name) * widen(da), axis_name)[..., 0]


@checkpointed
def _kl_by_b(db: Array, numbers: Numbers, a: Array, b: Array, axis_name: AxisName) -> Array:
    return row_sum(_gradient_by_b(a, b, numbers, axis_name) * widen(db), axis_name)[..., 0]


derivatives(_kl_and_numbers, _kl_by_a, _kl_by_b)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _gradient_by_a(a: Array, b: Array, numbers: Numbers, axis_name: AxisName) -> Array:
    """-p_k (c_k - sum_j p_j c_j) for c = log(q / p); 0 in a row where KL is infinite."""
    mean = sum_over(_weighed, a, b, numbers, axis_name=axis_name)

    def gradient(a: Array, b: Array, numbers: Numbers, mean: Array) -> Array:
        p, weighed = weighed_rows(a, b, numbers)
        without = jnp.where(jnp.isnan(numbers.kl), jnp.nan, 0.0)
        return jnp.where(jnp.isfinite(numbers.kl), whole(p * mean - weighed), without)

    return _balanced(gradient, a, b, numbers, mean, axis_name=axis_name)


def _weighed(a: Array, b: Array, numbers: Numbers) -> Array:
    return weighed_rows(a, b, numbers)[1]


def _by_a(a: Array, b: Array, axis_name: AxisName) -> Array:
    """The same gradient, in terms that have derivatives."""
    a, b = widen(a), widen(b)
    return -whole(centred_rows(a, log_ratio_rows(a, b, axis_name), axis_name))


derivatives(
    _gradient_by_a,
    lambda da, _, a, b, __, axis_name: jax.jvp(lambda a: _by_a(a, b, axis_name), (a,), (da,))[1],
    lambda db, _, a, b, __, axis_name: jax.jvp(lambda b: _by_a(a, b, axis_name), (b,), (db,))[1],
    None,
)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _gradient_by_b(a: Array, b: Array, numbers: Numbers, axis_name: AxisName) -> Array:
    """q - p."""
    return _balanced(prob_difference, a, b, numbers, axis_name=axis_name)


derivatives(
    _gradient_by_b,
    lambda da, _, a, __, ___, axis_name: -softmax_tangent(a, da, axis_name),
    lambda db, _, __, b, ___, axis_name: softmax_tangent(b, db, axis_name),
    None,
)


def _balanced(
    fn: Callable[..., Array],
    a: Array,
    b: Array,
    numbers: Numbers,
    *others: Array,
    axis_name: AxisName,
) -> Array:
    """A gradient that sums to 0, where a class with p close to 1 has the others', negated."""

    def of_unlikely(a: Array, b: Array, numbers: Numbers, *others: Array) -> Array:
        return jnp.where(_is_likely(a, numbers), 0.0, fn(a, b, numbers, *others))

    total = sum_over(of_unlikely, a, b, numbers, *others, axis_name=axis_name)
    # Computed again where it is written, not kept for that.
    numbers = xla.apart(numbers)
    return jnp.where(_is_likely(a, numbers), -total, fn(a, b, numbers, *others))


def _is_likely(a: Array, numbers: Numbers) -> Array:
    return probs_of(a, numbers.largest[0], numbers.total[0]) > 0.5
