"""logit, sigmoid, log_sigmoid, softplus, log1mexp: edges, symmetries, dtypes, compiled form.

How accurate they are is in test_accuracy.py, how they compose in test_transforms.py.
"""

import re
from collections.abc import Callable
from typing import Any

import accuracy
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jaxlogits as jl

pytestmark = pytest.mark.optimized

INF, NAN = np.inf, np.nan
each_function = pytest.mark.parametrize("name", oracles.FUNCTIONS)
each_dtype = pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
pytestmark = pytest.mark.usefixtures("x64")

# Argument, value, first and second derivative.
EDGES = {
    "logit": [
        (0.0, -INF, INF, -INF),
        (-0.0, -INF, INF, -INF),
        (0.5, 0.0, 4.0, 0.0),
        (1.0, INF, INF, INF),
        (-0.25, NAN, NAN, NAN),
        (1.25, NAN, NAN, NAN),
        (INF, NAN, NAN, NAN),
        (-INF, NAN, NAN, NAN),
        (NAN, NAN, NAN, NAN),
    ],
    "sigmoid": [
        (0.0, 0.5, 0.25, 0.0),
        (-0.0, 0.5, 0.25, 0.0),
        (INF, 1.0, 0.0, 0.0),
        (-INF, 0.0, 0.0, 0.0),
        (30000.0, 1.0, 0.0, 0.0),
        (-30000.0, 0.0, 0.0, 0.0),
        (NAN, NAN, NAN, NAN),
    ],
    "log_sigmoid": [
        (INF, 0.0, 0.0, 0.0),
        (-INF, -INF, 1.0, 0.0),
        (30000.0, 0.0, 0.0, 0.0),
        (-32768.0, -32768.0, 1.0, 0.0),
        (NAN, NAN, NAN, NAN),
    ],
    "softplus": [
        (INF, INF, 1.0, 0.0),
        (-INF, 0.0, 0.0, 0.0),
        (32768.0, 32768.0, 1.0, 0.0),
        (-30000.0, 0.0, 0.0, 0.0),
        (NAN, NAN, NAN, NAN),
    ],
    "log1mexp": [
        (0.0, -INF, INF, -INF),
        (-0.0, -INF, INF, -INF),
        (INF, 0.0, 0.0, 0.0),
        (30000.0, 0.0, 0.0, 0.0),
        (-0.5, NAN, NAN, NAN),
        (-30000.0, NAN, NAN, NAN),
        (-INF, NAN, NAN, NAN),
        (NAN, NAN, NAN, NAN),
    ],
}


def assert_edges(name: str, dtype: str, run: Callable[[Any], Any]) -> None:
    x, *want = np.array(EDGES[name]).T
    for order, function in enumerate(oracles.derivatives(getattr(jl, name), 2)):
        result = run(function)(jnp.asarray(x, dtype))
        np.testing.assert_array_equal(result.astype(jnp.float64), want[order])


@each_function
@each_dtype
def test_edges(name: str, dtype: str) -> None:
    assert_edges(name, dtype, jax.jit)


@each_function
def test_edges_without_compilation(name: str) -> None:
    assert_edges(name, "float32", lambda f: f)


@pytest.mark.parametrize(
    ("name", "pole"), [("logit", 0), ("logit", 1), ("log1mexp", 0), ("logitexp", 0)]
)
def test_zero_tangents_at_a_pole_give_zero(name: str, pole: float) -> None:
    """Of either mode and of both orders, as arrays that JAX doesn't know to be zero."""
    x, zero = np.float32([pole]), np.float32([0])
    functions = oracles.derivatives(getattr(jl, name), 1)
    tangents = [jax.jvp(fn, (x,), (zero,))[1] for fn in functions]
    cotangents = [jax.vjp(fn, x)[1](zero)[0] for fn in functions]
    np.testing.assert_array_equal(tangents + cotangents, np.zeros([4, 1]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_arguments_count_as_zero(dtype: str) -> None:
    x = jnp.asarray(np.finfo(dtype).tiny / 2, dtype)
    assert jax.jit(jl.logit)(x) == jax.jit(jl.log1mexp)(x) == -INF


@each_function
@each_dtype
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (2, 3)])
def test_shape_and_dtype_are_kept(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    x = jnp.full(shape, 0.25, dtype)
    function = getattr(jl, name)
    for result in jax.eval_shape(
        lambda x: (function(x), jax.grad(lambda x: function(x).sum())(x)), x
    ):
        assert (result.shape, result.dtype) == (shape, x.dtype)


@each_function
@pytest.mark.parametrize("x64", [False, True])
def test_python_numbers(name: str, x64: bool) -> None:
    function = getattr(jl, name)
    with jax.enable_x64(x64):
        wide = jnp.float64 if x64 else jnp.float32
        for result in (function(0.25), jax.grad(function)(0.25), jax.jit(function)(0.25)):
            assert result.dtype == wide
            assert result.weak_type
        assert function(0.25) == function(jnp.asarray(0.25, wide))


@each_function
@pytest.mark.parametrize("x", [1, np.array([0, 1]), np.array([True])])
def test_integers_are_refused(name: str, x: Any) -> None:
    argument = {"logit": "probs", "sigmoid": "logits", "log_sigmoid": "logits"}.get(name, "x")
    with pytest.raises(TypeError, match=f"{argument} must be floating point, got (int|bool)"):
        getattr(jl, name)(x)


@pytest.mark.parametrize("p", [-0.25, 1.25, NAN])
def test_logit_checks_its_probabilities(p: float) -> None:
    loss = jax.jit(jax.grad(lambda p: jl.logit(p).sum()))
    with pytest.raises(
        ValueError, match=re.escape(f"logit: probs must be in [0, 1], got {p} in row 1")
    ):
        jl.checked(loss)(jnp.array([0.5, p]))
    assert np.isnan(loss(jnp.array([0.5, p]))[1])
    checked = jl.checked(jax.jit(jl.logit))
    np.testing.assert_array_equal(checked(jnp.array([0.0, 1.0])), [-INF, INF])


# What everyone knows.


def reals(dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, 8, 1000), dtype)


def test_numbers_that_everyone_knows() -> None:
    x = jnp.array([-0.2, 0.2], jnp.float32)
    np.testing.assert_array_equal(jl.sigmoid(x).round(2), np.float32([0.45, 0.55]))
    assert jl.logit(jnp.float32(0.5)) == 0
    assert jl.softplus(jnp.float32(0)) == jl.log1mexp(jnp.float32(np.log(2))) * -1


@pytest.mark.newest
def test_logit_of_the_complement_is_its_negative() -> None:
    p = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, 1000), jnp.float32)
    np.testing.assert_array_equal(jl.logit(1 - p), -jl.logit(p))  # 1 - p is exact


@pytest.mark.newest
def test_logit_and_sigmoid_undo_each_other() -> None:
    x = -jnp.abs(reals("float64"))
    # Each is right to 2 ulp, and the error of the inner one is multiplied by x p logit'(p), which
    # is below 1 + |x|; the other way round by p logit'(p) sigmoid'(x) / p = 1 and |x|.
    bound = 4 * np.finfo(np.float64).eps * (1 + np.abs(x))
    np.testing.assert_array_less(np.abs(jl.logit(jl.sigmoid(x)) - x), bound + 1e-300)
    p = jl.sigmoid(x)
    np.testing.assert_array_less(np.abs(jl.sigmoid(jl.logit(p)) - p), bound * p)


def test_the_two_answers_share_one() -> None:
    x = reals()
    # Three roundings, each half an epsilon of a number up to 1, and 1.5 ulp in each sigmoid.
    np.testing.assert_allclose(jl.sigmoid(x) + jl.sigmoid(-x), 1.0, rtol=0, atol=2 * 2**-23)
    np.testing.assert_array_equal(jl.log_sigmoid(x), -jl.softplus(-x))
    # log(1 - sigmoid) is log_sigmoid(-x): log1mexp undoes the logarithm of the complement.
    positive = jnp.abs(x)
    got = jl.log1mexp(-jl.log_sigmoid(-positive))
    # The inner error of 1.1 ulp is multiplied by y log1mexp'(y) = y / expm1(y) <= 1 in absolute
    # terms, where y > log 2, so relative to the result by at most exp(positive) * y.
    small = positive < 1
    want = jl.log_sigmoid(positive)
    np.testing.assert_allclose(got[small], want[small], rtol=16 * 2**-23)


@pytest.mark.newest
@pytest.mark.parametrize("x", [17.0, 20.0, 50.0, 87.0])
def test_derivative_of_sigmoid_is_as_right_far_out_as_near(x: float) -> None:
    """s (1 - s) is 0 here. All derivatives are exp(-x) but for its square, below 2^-24 of it."""
    functions = oracles.derivatives(jl.sigmoid, 4)
    for order in range(1, 5):
        both = jax.jit(functions[order])(jnp.array([x, -x], jnp.float32))
        for side, got in zip((1, -1), both, strict=True):
            # sigmoid is 1 - exp(-x) on the right and exp(x) on the left.
            want = np.exp(-x) * (-1) ** ((order + 1) if side == 1 else 0)
            np.testing.assert_allclose(got, want, rtol=4 * 2**-23 + 16 * np.exp(-x))


# Compiled form.


@each_function
def test_no_effect_is_in_the_program(name: str) -> None:
    assert not jax.make_jaxpr(getattr(jl, name))(jnp.float32([0.5])).effects


@each_function
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA:CPU fuses")
def test_compiles_to_one_loop(name: str, order: int) -> None:
    """A second loop would write an intermediate array to memory: it took 1.3 to 2 times as long."""
    function = oracles.derivatives(getattr(jl, name), order)[order]
    argument = jax.ShapeDtypeStruct((2**20,), jnp.float32)
    program = jax.jit(function).lower(argument).compile().as_text()
    entry = program[program.index("\nENTRY") :]
    assert entry.count(" fusion(") == 1


def test_logitexp() -> None:
    """Near log(1/2) the difference of logarithms would be rounding error; mpmath has the digits."""
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(1e-6), np.log(80), 300))
    near = np.log(0.5) * (1 + rng.normal(size=100) * 10.0 ** rng.uniform(-16, -1, 100))
    mp = oracles.mp
    exact = (
        lambda x: x - mp.log(1 - mp.exp(x)),
        lambda x: 1 / (1 - mp.exp(x)),
        lambda x: mp.exp(x) / (1 - mp.exp(x)) ** 2,
    )
    for dtype in (np.float32, np.float64):
        x = np.concatenate([-sizes, near]).astype(dtype)
        for order, fn in enumerate(oracles.derivatives(jl.logitexp, 2)):
            results = np.asarray(jax.jit(fn)(x))
            worst = max(
                oracles.ulps_from_exact(y, exact[order](mp.mpf(float(at))))
                for y, at in zip(results, x, strict=True)
            )
            assert worst <= accuracy.allowed("logitexp", "float32", order), (dtype, order)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_logitexp_of_every_number_of_16_bits(dtype: Any) -> None:
    x = oracles.every(dtype)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        at = x.astype(np.float64)
    wide = np.asarray(jax.jit(jl.logitexp)(at))
    is_zero = (np.abs(at) < float(jnp.finfo(dtype).tiny)) & oracles.flushes(dtype)
    want = np.where(is_zero, INF, np.where(at > 0, NAN, wide))
    errors = oracles.ulps(jax.jit(jl.logitexp)(x), want)
    assert np.nanmax(errors) <= 0.501


def test_logitexp_is_the_inverse_of_log_sigmoid() -> None:
    x = np.float32([-INF, -90, -1, -1e-6, 0, 1e-6, 1, 15])
    # An ulp of the logarithm is 1 + exp(x) of them in the result, relative to its size.
    back = jl.logitexp(jl.log_sigmoid(x))
    np.testing.assert_allclose(back[:-1], x[:-1], rtol=2**-21, atol=2**-23)
    edges = jnp.float32([-INF, 0, -0.0, 0.5, NAN])
    np.testing.assert_array_equal(jl.logitexp(edges), [-INF, INF, INF, NAN, NAN])
    slopes = jax.vmap(jax.grad(jl.logitexp))(edges)
    np.testing.assert_array_equal(slopes, [1, INF, INF, NAN, NAN])
