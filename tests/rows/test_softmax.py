"""Softmax of rows and its relatives, as far as they are no public function's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

from jaxlogits._src.rows import softmax as kernels


@pytest.mark.parametrize(
    ("row", "first"),
    [([1, 3, 2], 1), ([3, 3, 2], 0), ([1, 2, 2], 1), ([np.inf, 0, np.inf], 0), ([-np.inf] * 3, 0)],
)
def test_first_max_is_one_class(row: list[float], first: int) -> None:
    assert kernels.first_max(jnp.array(row), None).tolist() == [k == first for k in range(3)]


def complement(z: Any) -> jax.Array:
    return kernels.softmax_complement_rows(z, None)


def exact_complement(z: Any) -> Any:
    """1 - p_i as the sum of the others."""
    return 1 - ro.softmax(z)


def test_complement_of_softmax_where_it_is_close_to_0_and_to_1() -> None:
    got = jax.jit(complement)(ro.GAP_ROWS)
    assert ro.ulps(got, ro.of_rows(exact_complement, ro.GAP_ROWS)) <= 5


def test_derivatives_of_the_complement_are_minus_those_of_the_softmax() -> None:
    z = ro.random_rows(4, 5, spread=2.0)
    for transform in (jax.jacrev, jax.hessian):
        got = jax.jit(jax.vmap(transform(complement)))(z)
        want = jax.jit(jax.vmap(transform(lambda z: kernels.softmax_rows(z, None))))(z)
        np.testing.assert_array_equal(got, -want)


def test_tangent_of_a_shift_is_exactly_0() -> None:
    z, shift = ro.GAP_ROWS, np.float32(3e8)
    p = kernels.softmax_rows(z, None)
    tangent = kernels.centred(p, jnp.full_like(z, shift), None)
    np.testing.assert_array_equal(tangent, np.zeros_like(z))
