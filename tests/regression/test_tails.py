"""Logarithms of tail probabilities against mpmath."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

from jaxlogits._src.regression.tails import log_chi_squared, log_two_sided

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def exact_log_chi_squared(x: float, degrees: int) -> float:
    half = ro.mp.mpf(degrees) / 2
    return float(ro.mp.log(ro.mp.gammainc(half, ro.mp.mpf(float(x)) / 2, regularized=True)))


@pytest.mark.usefixtures("x64")
@each_dtype
def test_two_sided(dtype: type) -> None:
    z = np.array([0.0, 1e-20, 1e-3, 0.5, 0.999, 1.0, 5.0, 9.9, 10.1, 38.0, 1e4], dtype)
    got = jax.jit(log_two_sided)(np.concatenate([z, -z]))
    want = [float(ro.mp.log(ro.mp.erfc(ro.mp.mpf(float(x)) / ro.mp.sqrt(2)))) for x in z]
    # erf and erfc are right to some 20 ulp; their logarithms are 1 or more beyond z = 1.
    rtol = 32 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(got, np.tile(want, 2), rtol=rtol, atol=0)
    assert jnp.isnan(log_two_sided(dtype(np.nan)))


@pytest.mark.usefixtures("x64")
@each_dtype
@pytest.mark.parametrize("degrees", [1, 2, 3, 8, 101])
def test_chi_squared(degrees: int, dtype: type) -> None:
    x = np.array([0.0, 1e-3, 0.5, 3.0, 40.0, 300.0, 1e5], dtype)
    got = jax.jit(jax.vmap(lambda x: log_chi_squared(x, degrees)))(x)
    want = np.array([exact_log_chi_squared(number, degrees) for number in x])
    # The logarithm of each term is a sum of numbers as large as the result, or k log(k).
    size = np.maximum(abs(want), 1 + degrees * np.log1p(degrees) / 2)
    got = np.asarray(got, float)
    assert np.all(abs(got - want) <= 8 * np.finfo(dtype).eps * size)
    assert np.all(got <= 0)


def test_derivatives() -> None:
    """The tail's is minus the density, also where it underflows."""
    for x in (3.0, 400.0):
        for degrees in (1, 4, 5):
            half = ro.mp.mpf(degrees) / 2
            density = ro.mp.exp(-x / 2) * (ro.mp.mpf(x) / 2) ** (half - 1) / ro.mp.gamma(half) / 2
            want = -density / ro.mp.gammainc(half, x / 2, regularized=True)
            got = jax.grad(lambda x: log_chi_squared(x, degrees))(jnp.float32(x))  # noqa: B023
            # exp of the difference of two logarithms of 200.
            np.testing.assert_allclose(got, float(want), rtol=400 * 2**-23)
    assert np.isfinite(jax.grad(lambda x: log_chi_squared(x, 3))(jnp.float32(0.0)))


def test_without_degrees_of_freedom_nothing_is_tested() -> None:
    assert log_chi_squared(jnp.float32(0.0), 0) == 0
