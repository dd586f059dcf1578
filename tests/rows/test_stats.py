"""The maximum and the sum of exponentials, of short rows, of rows in one loop and in pieces."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlogits._src.rows.stats import row_stats, row_sums, sum_below

INF = np.inf


def rows(num_classes: int) -> np.ndarray:
    z = np.random.default_rng(0).normal(scale=3.0, size=(9, num_classes)).astype(np.float32)
    last, greatest = num_classes - 1, np.finfo(np.float32).max
    z[1, 5] = 60.0  # a rest that 1 + rest loses
    z[2, [5, last]] = z[3, [5, 6]] = 60.0  # ties, in one piece or two
    z[4, [7, 2]] = INF, greatest
    z[5, [7, last]] = z[6, [7, 8]] = INF
    z[7], z[8, 3] = -INF, -INF
    return z


def exact(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rest and the ties of each row, in float64."""
    wide = z.astype(np.float64)
    largest = wide.max(axis=1, keepdims=True)
    is_max = wide == largest
    with np.errstate(invalid="ignore"):
        below = np.where(is_max, 0.0, np.exp(np.where(is_max, 0.0, wide - largest))).sum(axis=1)
    ties = is_max.sum(axis=1)
    return below + (ties - 1), ties


@pytest.mark.optimized
@pytest.mark.parametrize("num_classes", [12, 100, 401, 800, 3200])
def test_against_float64(num_classes: int) -> None:
    z = rows(num_classes)
    rest, ties = exact(z)
    some = np.arange(9) != 7  # without classes a row has no sums
    sums = jax.jit(lambda z: row_sums(z, None))(z)
    np.testing.assert_array_equal(sums.largest[:, 0], z.max(axis=1))
    np.testing.assert_allclose(sums.rest[some, 0], rest[some], rtol=2e-6)
    np.testing.assert_array_equal(sums.ties[some, 0] == 1, ties[some] == 1)
    assert not np.isnan(sums.rest).any()
    got = jax.jit(lambda z: row_stats(z, None).rest)(z)
    np.testing.assert_array_equal(np.isnan(got[:, 0]), (z == INF).sum(axis=1) > 1)
    total = jax.jit(sum_below)(z, z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(total[some, 0], 1 + rest[some], rtol=2e-6)


@pytest.mark.parametrize("num_classes", [12, 100, 800])
def test_transforms(num_classes: int) -> None:
    z = jnp.asarray(rows(num_classes))

    def sums(z: Any) -> Any:
        return row_sums(z, None)

    for got, want in zip(jax.vmap(sums)(z), jax.jit(sums)(z), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("num_classes", [12, 100, 401, 800])
def test_nan_is_in_the_rest(num_classes: int) -> None:
    """Of which the maximum may not say so, in as many rows as XLA:CPU's fastest loops take."""
    z = np.tile(rows(num_classes), (512, 1))
    z[:9, -1] = np.nan
    for dtype in (jnp.float32, jnp.bfloat16):
        rest = jax.jit(lambda z: row_sums(z, None).rest)(jnp.asarray(z, dtype))
        np.testing.assert_array_equal(np.isnan(rest[:, 0]), np.arange(len(z)) < 9)
