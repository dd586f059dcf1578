"""Softmax of rows and its relatives, as far as they are no public function's own."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

import jaxlogits as jl
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


# Few classes are added up one by one, more in loops: a row with impossible ones is the same row.

INF, BIG = np.inf, float(np.finfo(np.float32).max)
ROWS = np.array(
    [
        *([1.0, -0.5, 2.0], [0.0, 0.0, -3.0], [-1.0, -1.0, -1.0], [90.0, -90.0, 0.0]),
        *([1e-38, 0.0, -1.0], [0.25, 0.25 - 2**-26, 0.0], [-40.0, 0.0, -45.0]),
        *([BIG, -BIG, 0.0], [BIG, BIG, 0.0], [-BIG, -BIG, -BIG], [3e38, -3e38, 1e38]),
        *([INF, 0.0, 1.0], [INF, BIG, 0.0], [INF, INF, 0.0], [INF, -INF, 0.0]),
        *([-INF, 0.0, 1.0], [-INF, -INF, 0.0], [-INF, -INF, -INF]),
        *([np.nan, 0.0, 1.0], [np.nan, INF, -INF]),
    ],
    np.float32,
)
WEIGHTS = np.array([0.5, 0.0, 0.25], np.float32)
OF_ROWS = {
    "class_log_odds": jl.class_log_odds,
    "entropy": jl.entropy,
    "log_softmax": jl.log_softmax,
    "logsumexp": jl.logsumexp,
    "softmax": jl.softmax,
    "softmax_cross_entropy": lambda z: jl.softmax_cross_entropy(z, padded(WEIGHTS, z, 0.0)),
    "softmax_kl_divergence": lambda z: jl.softmax_kl_divergence(
        padded(np.zeros(3, np.float32), z, -INF), z
    ),
}


def padded(x: np.ndarray, z: Any, value: float) -> np.ndarray:
    """As many classes as z has, impossible ones in front."""
    return np.pad(x, (z.shape[-1] - x.shape[-1], 0), constant_values=value)


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_of_few_and_of_many_classes(name: str) -> None:
    def of_value_and_gradient(z: Any) -> Any:
        fn = OF_ROWS[name]
        last = (lambda x: x[..., -3:]) if fn(z).shape == z.shape else (lambda x: x)
        value, pull = jax.vjp(lambda z: last(fn(z)), z)
        return value, pull(jnp.arange(1.0, 4.0)[: value.size].reshape(value.shape))[0][..., -3:]

    run = jax.jit(jax.vmap(of_value_and_gradient))
    few, many = run(ROWS), run(np.pad(ROWS, ((0, 0), (17, 0)), constant_values=-INF))
    for x, y in zip(few, many, strict=True):
        np.testing.assert_allclose(y, x, rtol=2**-21, atol=2**-22)
