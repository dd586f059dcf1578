"""The exp and log cores: their low parts survive compilation, and their constants have a source."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxlogits._src.base import exp_log as el

pytestmark = pytest.mark.optimized

MINIMAX = Path(__file__).parents[2] / "benchmarks" / "minimax.py"
each_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
compiled_or_not = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["eager", "jit"])
pytestmark = pytest.mark.usefixtures("x64")

mp = mpmath.MPContext()
mp.dps = 50
Number = Any
Run = Callable[[Callable[..., Any]], Callable[..., Any]]


def exactly(function: Callable[..., Number], *arrays: Any) -> np.ndarray:
    """An mpmath function of arrays, number by number."""
    wide = (np.frompyfunc(lambda v: mp.mpf(float(v)), 1, 1)(np.asarray(a)) for a in arrays)
    return np.frompyfunc(function, len(arrays), 1)(*wide)


def units(error: np.ndarray, dtype: str) -> float:
    """The largest of the numbers, in units of the dtype's epsilon."""
    return float(np.max(np.abs(error)) / np.finfo(dtype).eps)


def not_positive(dtype: str) -> jax.Array:
    """Arguments of exp: 0, small, and spread up to where exp(x) is subnormal."""
    least = {"float32": -87.3, "float64": -708.3}[dtype]
    rng = np.random.default_rng(0)
    sizes = np.concatenate([-np.exp(rng.uniform(-20, 0, 100)), rng.uniform(least, 0, 200)])
    return jnp.asarray([0.0, -0.0, -0.34657359, -0.34657360, -0.69314718, *sizes], dtype)


@each_dtype
@compiled_or_not
def test_exp_in_parts(dtype: str, run: Run) -> None:
    x = not_positive(dtype)
    scale, p, low = run(el.exp_parts)(x)
    want = exactly(lambda x, scale: mp.expm1(x) if scale == 1 else mp.exp(x) / scale - 1, x, scale)
    assert np.all(np.frexp(np.asarray(scale))[0] == 0.5)
    assert -0.3 <= np.min(p) <= np.max(p) <= 0.42
    # Two or three roundings, half an epsilon each, of a tail that is a fifth of p at most; and that
    # of n log 2, of which the part that is rounded is below 2^-12.
    allowed = np.finfo(dtype).eps * (0.3 * np.abs(want) + 2**-12 * (np.asarray(scale) != 1))
    assert np.all(np.abs(exactly(lambda p, low: p + low, p, low) - want) <= allowed)
    assert np.count_nonzero(low) > 200


@each_dtype
@compiled_or_not
def test_exp_rounded_has_the_rest_in_its_low_part(dtype: str, run: Run) -> None:
    x = not_positive(dtype)
    x = x[x > {"float32": -60, "float64": -600}[dtype]]  # below, the low part may be subnormal
    t, low = run(lambda x: el.exp_rounded(el.exp_parts(x)))(x)
    want = exactly(mp.exp, x)
    # What is left is the error of p, 0.3 epsilon of it: of -0.3 beside 1 - 0.3 at most.
    assert units((exactly(lambda t, low: t + low, t, low) - want) / want, dtype) <= 0.13
    assert np.count_nonzero(low) > 150  # and not 0, as p - ((1 + p) - 1) is after folding


@each_dtype
@compiled_or_not
def test_complement_of_exp_has_the_rest_in_its_low_part(dtype: str, run: Run) -> None:
    x = not_positive(dtype)[2:]
    x = x[x > np.log(np.finfo(dtype).eps)]  # below, 1 - scale isn't exact, nor is it needed
    exp = el.exp_parts(x)
    u, low = run(el.complement)(exp)
    want = exactly(lambda scale, p, low: 1 - scale * (1 + p + low), *exp)
    assert units((exactly(lambda u, low: u + low, u, low) - want) / want, dtype) <= 2**-20
    assert np.count_nonzero(low) > 30


@each_dtype
def test_exp_of_what_is_too_small(dtype: str) -> None:
    x = jnp.asarray([-710.0, -1e30, -jnp.inf, jnp.nan], dtype)
    t, low = el.exp_rounded(el.exp_parts(x))
    np.testing.assert_array_equal(t, [0, 0, 0, np.nan])
    np.testing.assert_array_equal(low, [0, 0, 0, np.nan])


def fractions(dtype: str) -> jax.Array:
    rng = np.random.default_rng(0)
    root = np.sqrt(0.5)
    edges = [1.0, 0.5, root, np.nextafter(root, 0), 1 - 2.0**-24, np.finfo(dtype).tiny]
    return jnp.asarray([*edges, *rng.uniform(0, 1, 100), *np.exp(-rng.uniform(0, 80, 100))], dtype)


@each_dtype
@compiled_or_not
def test_log_parts_are_exact(dtype: str, run: Run) -> None:
    u = fractions(dtype)
    n, inverse, f = run(el.log_parts)(u)
    np.testing.assert_array_equal(np.ldexp(1 + np.asarray(f), np.asarray(n, int)), u)
    np.testing.assert_array_equal(inverse, np.ldexp(1.0, -np.asarray(n, int)))
    assert -0.3 <= np.min(f) <= np.max(f) <= 0.42


@each_dtype
@compiled_or_not
def test_logarithm_takes_the_low_part_in(dtype: str, run: Run) -> None:
    n, _, f = el.log_parts(fractions(dtype))
    low = f * jnp.asarray(np.finfo(dtype).eps / 3, dtype)
    got = run(el.log_sum)(n, f, low)
    want = exactly(lambda n, f, low: n * mp.log(2) + mp.log1p(f + low), n, f, low)
    size = np.where(want == 0, 1, want)
    # The last sum, half an epsilon, the one before it, of terms that may be as large as the result,
    # and the tail's own roundings, which are a fifth of it.
    assert units((exactly(lambda x: x, got) - want) / size, dtype) <= 1.2


@each_dtype
@compiled_or_not
def test_twice_atanh(dtype: str, run: Run) -> None:
    s = jnp.linspace(-0.5, 0.5, 201, dtype=dtype)
    want = exactly(lambda s: 2 * mp.atanh(s), s)
    error = exactly(lambda x: x, run(el.twice_atanh)(s)) - want
    # The last sum and the roundings of the tail, a tenth of it.
    assert units(error / np.where(want == 0, 1, want), dtype) <= 0.75


@each_dtype
@compiled_or_not
def test_log2_added_has_the_rest_in_its_low_part(dtype: str, run: Run) -> None:
    a = jnp.linspace(0, 0.6931, 101, dtype=dtype)
    total, low = run(el.add_log2)(a)
    want = exactly(lambda a: a + mp.log(2), a)
    assert units(exactly(lambda t, low: t + low, total, low) - want, dtype) <= 2**-4


def minimax() -> Any:
    spec = importlib.util.spec_from_file_location("minimax", MINIMAX)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each_dtype
def test_constants_are_those_of_the_script(dtype: str) -> None:
    script, constants = minimax(), el._CONSTANTS[jnp.dtype(dtype)]
    scalar = np.dtype(dtype).type
    for name, fit in script.FITS.items():
        derived = script.coefficients(fit, scalar)
        np.testing.assert_array_equal(np.array(getattr(constants, name.lower()), dtype), derived)
    log2 = (constants.log2_high, constants.log2_low)
    np.testing.assert_array_equal(np.array(log2, dtype), script.split_log2(scalar))


@each_dtype
def test_polynomials_are_close_enough(dtype: str) -> None:
    """Their error in the result is below a tenth of its last digit: r^2 Q in p, z A in log1p."""
    script = minimax()
    for name, fit in script.FITS.items():
        factor = fit.high if name == "EXP_TAIL" else fit.high / (1 + fit.high / 3)
        error = script.largest_error(fit, script.coefficients(fit, np.dtype(dtype).type))
        assert error * factor <= np.finfo(dtype).eps / 10
