"""Sums and products with twice the digits, against mpmath."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

from jaxlogits._src.base.dtypes import Array
from jaxlogits._src.regression.two_floats import TwoFloats, add, dot, log_ratio, multiply

RNG = np.random.default_rng(0)


def exact(number: TwoFloats) -> np.ndarray:
    return ro.exact(number.high) + ro.exact(number.low)


def spread(*shape: int) -> np.ndarray:
    """Numbers of both signs and of sizes from 1e-6 to 1e6."""
    return RNG.normal(size=shape) * 10 ** RNG.uniform(-6, 6, size=shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_and_products_are_exact(dtype: type) -> None:
    a, b, c = spread(3, 100).astype(dtype)
    assert (exact(jax.jit(add)(a, b)) == ro.exact(a) + ro.exact(b)).all()
    assert (exact(jax.jit(multiply)(a, b)) == ro.exact(a) * ro.exact(b)).all()

    # Whatever reads the product, such as a sum, may be fused with it.
    def of_a_sum(a: Array, b: Array, c: Array) -> tuple[TwoFloats, TwoFloats]:
        product = multiply(a, b)
        return product, add(product.high, c)

    product, total = jax.jit(of_a_sum)(a, b, c)
    assert (exact(total) + ro.exact(product.low) == ro.exact(a) * ro.exact(b) + ro.exact(c)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 2, 5, 64])
def test_a_dot_product_of_what_cancels(size: int, dtype: type) -> None:
    a, high = spread(2, 20, size).astype(dtype)
    low = (high * np.finfo(dtype).eps * RNG.uniform(-0.5, 0.5, size=high.shape)).astype(dtype)
    got = exact(jax.jit(dot)(a, TwoFloats(jnp.asarray(high), jnp.asarray(low))))
    terms = ro.exact(a) * (ro.exact(high) + ro.exact(low))
    error = np.abs(got - terms.sum(axis=-1))
    assert (
        error <= float(np.finfo(dtype).eps) ** 2 * (size + 2) * np.abs(terms).sum(axis=-1)
    ).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_ratio(dtype: type) -> None:
    a, b = 10 ** RNG.uniform(-9, 9, size=[2, 300])
    a[:100] = b[:100] * RNG.uniform(0.5, 2, size=100)
    # Counts of any size, whose squares and products may be infinite.
    a[200:], b[200:] = a[200:] * 1e25, b[200:] * 1e25
    a, b = a.astype(dtype), b.astype(dtype)
    low = (b * np.finfo(dtype).eps * RNG.uniform(-0.5, 0.5, size=300)).astype(dtype)
    got = exact(jax.jit(log_ratio)(a, TwoFloats(jnp.asarray(b), jnp.asarray(low))))
    want = ro.log(ro.exact(a)) - ro.log(ro.exact(b) + ro.exact(low))
    # What is computed in one float is at most 0.04 of the result.
    assert (np.abs(got - want) <= 0.04 * float(np.finfo(dtype).eps)).all()
