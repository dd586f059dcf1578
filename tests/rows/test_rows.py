"""The door and the exit: rows from arrays and back, masked classes and rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlogits._src.rows import rows as door


@pytest.mark.parametrize("axes", [(3,), (0,), (1, 2), (2, 0), (3, 1, 0), (0, 1, 2, 3)])
def test_rows_and_back(axes: tuple[int, ...]) -> None:
    array = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = door.to_rows(array, axes)
    others = [axis for axis in range(4) if axis not in axes]
    want = np.transpose(array, (*others, *axes)).reshape(*(array.shape[a] for a in others), -1)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_array_equal(door.from_rows(rows, axes, array.shape), array)


def test_the_last_axis_is_left_as_it_is() -> None:
    array = jnp.zeros([2, 3])
    assert door.to_rows(array, (1,)) is array
    assert door.from_rows(array, (1,), array.shape) is array


def test_masked_classes_are_minus_infinity_and_masked_rows_zeros() -> None:
    z = jnp.array([[1.0, jnp.nan], [3.0, jnp.nan]], jnp.float16)
    where = jnp.array([[True, False], [False, False]])
    rows = door.rows_of(z, -1, where, None)
    np.testing.assert_array_equal(rows.z, np.array([[1, -np.inf], [0, 0]], np.float32))
    np.testing.assert_array_equal(rows.empty, [[False], [True]])
    np.testing.assert_array_equal(rows.reduced(jnp.array([7.0, 7.0]), -1.0), [7, -1])
    np.testing.assert_array_equal(rows.restore(rows.z, 5.0), [[1, 5], [5, 5]])
    unmasked = door.rows_of(z, -1, None, None)
    assert unmasked.empty is None
    np.testing.assert_array_equal(unmasked.reduced(z[:, 0]), [1, 3])
