"""Every function within its budget: see accuracy.py for the budgets, oracles.py for the truth."""

import datetime
import inspect
import os
from collections.abc import Callable
from typing import Any

import accuracy
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from accuracy import BUDGETS, Budget

import jaxlogits as jl

pytestmark = pytest.mark.optimized

each_function = pytest.mark.parametrize("name", oracles.FUNCTIONS)
ORDERS = range(3)

# Of 2^32 float32 numbers every 257th is looked at, from another one on each day; to repeat a run,
# set ACCURACY_OFFSET to the offset that its failure names.
STRIDE = 257
OFFSET = int(os.environ.get("ACCURACY_OFFSET", datetime.date.today().toordinal())) % STRIDE

# Where benchmarks/accuracy.py or an earlier version of these functions found the largest errors,
# and where a shortcut would show: beside a change of formula, and where results vanish.
PROBS = [0.1415109, 0.24458513, 0.03123666]
PROBS += [0.1499603, 0.2496648, 0.4999999702, 0.25, 0.75, 0.5, 0.499, 1e-20, 0.99999994]
REALS = [-4.8464551, 5.5379996, 4.8339682, 1.0234901, -1.0234901]
REALS += [-5.1865749, -1.2589774, 3.8086488, 0.0, 1e-20]
REALS += [sign * x for x in (0.3, 0.6931, 0.6932, 1, 10, 17, 20, 80, 86.99) for sign in (1, -1)]
POSITIVE = [0.99599695, 0.40737873, 0.35220486]
POSITIVE += [1.000057, 0.34657, 0.6931, 0.6932, 1.2279, 1e-20, 1e-3, 0.2, 3.8, 17, 86.99]
PINNED = {"logit": PROBS, "log1mexp": POSITIVE}
OUTSIDE = [0.0, -0.0, 1.0, -0.5, 1.5, -90.0, 88.0, 104.0, 1e30, -1e30, np.inf, -np.inf, np.nan]


def compiled(name: str, orders: range = ORDERS) -> Callable[[Any], list[jax.Array]]:
    functions = oracles.derivatives(getattr(jl, name), max(orders))
    return jax.jit(lambda x: [functions[order](x) for order in orders])


def assert_within_budget(name: str, results: list[jax.Array], x: np.ndarray) -> None:
    dtype = x.dtype.name
    for order, result in enumerate(results):
        assert result.dtype == x.dtype
        errors = oracles.ulps(result, oracles.float64(name, x, order))
        worst = oracles.worst(errors, x)
        budget = accuracy.allowed(name, dtype, order)
        assert worst.ulps <= budget, (
            f"{name}, derivative {order}, {dtype}, offset {OFFSET}: {worst}"
        )


@each_function
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_number_of_16_bits(name: str, dtype: Any) -> None:
    x = oracles.every(dtype)
    assert_within_budget(name, compiled(name)(x), x)


@pytest.mark.newest
@each_function
def test_float32_at_a_stride(name: str) -> None:
    function = compiled(name)
    for x in oracles.strided(STRIDE, OFFSET):
        assert_within_budget(name, function(x), x)


@each_function
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_pinned_points_and_edges(name: str, dtype: Any) -> None:
    """One by one too, because XLA simplifies what it compiles as a whole."""
    with np.errstate(over="ignore"):
        x = np.array(PINNED.get(name, REALS) + OUTSIDE).astype(dtype)
    functions = oracles.derivatives(getattr(jl, name), max(ORDERS))
    assert_within_budget(name, [function(jnp.asarray(x)) for function in functions], x)
    assert_within_budget(name, compiled(name)(x), x)


@each_function
def test_float32_without_compilation(name: str) -> None:
    functions = oracles.derivatives(getattr(jl, name), max(ORDERS))
    x = next(oracles.strided(STRIDE * 2**6 + 1, OFFSET, chunk=2**18))
    assert_within_budget(name, [function(jnp.asarray(x)) for function in functions], x)


def golden_points(name: str) -> list[float]:
    """Pinned points and 200 others, spread over sizes; without the zeros of second derivatives."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(1e-12), np.log(80), 200))
    signs = rng.choice([-1.0, 1.0], 200)
    others = {"logit": rng.beta(0.3, 0.3, 200), "log1mexp": sizes}.get(name, sizes * signs)
    zero = 0.5 if name == "logit" else 0.0
    return [x for x in (*PINNED.get(name, REALS), *others.tolist()) if x != zero]


@each_function
@pytest.mark.usefixtures("x64")
def test_float64_against_mpmath(name: str) -> None:
    x = np.array(golden_points(name))
    for order, results in enumerate(compiled(name)(x)):
        errors = [
            oracles.ulps_from_exact(result, oracles.exact(name, point, order))
            for result, point in zip(np.asarray(results), x, strict=True)
        ]
        worst = oracles.worst(np.array(errors), x)
        assert worst.ulps <= accuracy.allowed(name, "float64", order), (order, worst)


# Away from the zeros of these derivatives: those of sigmoid are at 0, +-1.317, +-2.292.
HIGHER = {
    "logit": [1e-6, 0.01, 0.2, 0.9, 0.999],
    "log1mexp": [1e-6, 0.01, 0.5, 1.0, 4.0, 20.0, 80.0],
    "sigmoid": [-80.0, -20.0, -4.0, -0.5, 0.5, 4.0, 20.0, 80.0],
}


@pytest.mark.newest
@each_function
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_third_and_fourth_derivatives(name: str, dtype: str) -> None:
    x = np.array(HIGHER.get(name, HIGHER["sigmoid"]), dtype)
    for order, results in enumerate(compiled(name, range(3, 5))(x), start=3):
        for result, point in zip(np.asarray(results), x, strict=True):
            want = oracles.exact(name, point, order)
            error = float(abs((float(result) - want) / want))
            assert error <= accuracy.HIGHER_ORDERS * np.finfo(dtype).eps, (order, point)


@each_function
@pytest.mark.parametrize("order", ORDERS)
def test_the_float64_oracle_is_the_exact_one(name: str, order: int) -> None:
    """To 8 of its ulp, 2^-26 of a float32 ulp, so that the sweeps see the library's error alone."""
    x = np.array(golden_points(name)).astype(np.float32)
    got = oracles.float64(name, x, order)
    errors = [
        oracles.ulps_from_exact(value, oracles.exact(name, point, order))
        for value, point in zip(got, x, strict=True)
    ]
    assert max(errors) <= 8


def test_distance_in_ulp() -> None:
    one = np.float32([1.0, 1.0, 1.0, np.inf, np.nan, np.inf, 0.0, 3e38])
    eps = 2.0**-23
    want = np.array([1 + eps, 1 - eps / 2, 1.0, np.inf, np.nan, 1.0, 1e-39, np.inf])
    # Below 1 the spacing is half as wide; a subnormal result may be flushed.
    np.testing.assert_array_equal(oracles.ulps(one, want)[:5], [1, 1, 0, 0, 0])
    assert oracles.ulps(one, want)[5] > 2**23
    np.testing.assert_array_equal(oracles.ulps(one, want)[6:], [0, np.inf])
    assert oracles.ulps_from_exact(np.float32(1), oracles.mp.mpf(1 + eps)) == 1
    assert oracles.ulps_from_exact(np.float32(1), oracles.mp.mpf(1 - eps / 2)) == 1
    # A subnormal float16 has the spacing of the smallest normal ones.
    assert oracles.ulps(np.float16([3 * 2.0**-24]), np.array([2.0**-23])) == 1


@pytest.mark.parametrize("name", BUDGETS)
def test_docstring_states_its_budget(name: str) -> None:
    docstring = inspect.getdoc(getattr(jl, name))
    assert docstring is not None
    assert accuracy.stated(docstring) == BUDGETS[name]


def test_reading_an_accuracy_line() -> None:
    docstring = """Summary.

    Accuracy: float32 3 ulp of max(1, |result|), derivative 5; bfloat16 and
        float16 0.501 ulp, derivatives 0.501 and 0.6. The rest is prose, 7 ulp.
    Transforms: all.
    """
    sixteen = Budget(0.501, (0.501, 0.6))
    assert accuracy.stated(docstring) == {
        "float32": Budget(3.0, (5.0,), "max(1, |result|)"),
        "bfloat16": sixteen,
        "float16": sixteen,
    }
    assert accuracy.stated("Accuracy: float32 2 ulp.") == {"float32": Budget(2.0)}
    assert accuracy.stated("A.\n\nAccuracy: float32 2 ulp.\nTransforms: all.") == {
        "float32": Budget(2.0)
    }
    with pytest.raises(ValueError, match="not a clause"):
        accuracy.stated("Accuracy: good.")
    with pytest.raises(ValueError, match="no line"):
        accuracy.stated("Returns: 2 ulp")
