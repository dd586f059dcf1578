"""Rows from arrays and back, and the row functions that are no public function's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

from jaxlogits._src.rows import rows as kernels


@pytest.mark.parametrize("axes", [(3,), (0,), (1, 2), (2, 0), (3, 1, 0), (0, 1, 2, 3)])
def test_rows_and_back(axes: tuple[int, ...]) -> None:
    array = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = kernels.to_rows(array, axes)
    others = [axis for axis in range(4) if axis not in axes]
    want = np.transpose(array, (*others, *axes)).reshape(*(array.shape[a] for a in others), -1)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(kernels.from_rows(rows, axes, array.shape), array)


def test_the_last_axis_is_left_as_it_is() -> None:
    array = jnp.zeros([2, 3])
    assert kernels.to_rows(array, (1,)) is array
    assert kernels.from_rows(array, (1,), array.shape) is array


@pytest.mark.parametrize(
    ("row", "first"),
    [([1, 3, 2], 1), ([3, 3, 2], 0), ([1, 2, 2], 1), ([np.inf, 0, np.inf], 0), ([-np.inf] * 3, 0)],
)
def test_first_max_is_one_class(row: list[float], first: int) -> None:
    assert kernels.first_max(jnp.array(row), None).tolist() == [k == first for k in range(3)]


def test_masked_classes_are_minus_infinity_and_blank_rows_know_why() -> None:
    z = jnp.array([[1.0, jnp.nan], [3.0, 4.0]], jnp.float16)
    where = jnp.array([[True, False], [False, False]])
    rows = kernels.rows_of(z, -1, where, None)
    np.testing.assert_array_equal(rows.z, np.array([[1, -np.inf], [-np.inf, -np.inf]], np.float32))
    np.testing.assert_array_equal(rows.blank, np.array([[np.nan], [0]], np.float32))
    assert np.isnan(kernels.rows_of(z, -1, None, None).blank)


NAN = jnp.float32(jnp.nan)


def complement(z: Any) -> jax.Array:
    return kernels.softmax_complement_rows(z, NAN, None)


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
        want = jax.jit(jax.vmap(transform(lambda z: kernels.softmax_rows(z, NAN, None))))(z)
        np.testing.assert_array_equal(got, -want)


def test_log_softmax_tangent_of_a_shift_is_exactly_0() -> None:
    z, shift = ro.GAP_ROWS, np.float32(3e8)
    p = kernels.softmax_rows(z, NAN, None)
    tangent = kernels.log_softmax_tangent(z, p, jnp.full_like(z, shift), None)
    np.testing.assert_array_equal(tangent, np.zeros_like(z))
