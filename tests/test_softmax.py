"""logsumexp, softmax, log_softmax and class_log_odds, against mpmath."""

import functools
from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
from accuracy import allowed

import jaxlogits as jl

pytestmark = pytest.mark.optimized

NAMES = ["logsumexp", "softmax", "log_softmax", "class_log_odds"]
each_function = pytest.mark.parametrize("name", NAMES)

# The number of which the budgets are ulp, where the result is smaller.
FLOORS = {"logsumexp": 1.0, "softmax": 0.0, "log_softmax": 0.0, "class_log_odds": 0.5}
# The accuracy of softmax, which is the derivative of the others.
BUDGET = allowed("softmax", "float32")


@each_function
@pytest.mark.parametrize("rows", ro.ROWS.values(), ids=ro.ROWS)
def test_values(name: str, rows: np.ndarray) -> None:
    got = jax.jit(getattr(jl, name))(rows)
    want = ro.of_rows(getattr(ro, name), rows)
    assert ro.ulps(got, want, FLOORS[name]) <= allowed(name, "float32")


@pytest.mark.newest
@each_function
@pytest.mark.parametrize("num_classes", [3, 64])
def test_gaps_that_are_rounded(name: str, num_classes: int) -> None:
    """What softmax loses by them is 1 ulp for each unit, and the others an ulp of the gap."""
    rows = np.random.default_rng(num_classes).normal(scale=20, size=[10, num_classes])
    rows = rows.astype(np.float32)
    got = jax.jit(getattr(jl, name))(rows)
    for row, result in zip(rows, got, strict=True):
        gap = float(np.ptp(row))
        floor, extra = (0.0, gap) if name == "softmax" else (max(gap, 1.0), 0.0)
        want = getattr(ro, name)(ro.exact(row))
        assert ro.ulps(result, want, floor) <= allowed(name, "float32") + extra


def of_each_result(oracle: Callable[..., Any], z: np.ndarray) -> list[Callable[..., Any]]:
    size = np.size(oracle(ro.exact(z)))
    return [lambda x, k=k: np.ravel(oracle(x))[k] for k in range(size)]


@pytest.mark.newest
@each_function
def test_first_and_second_derivatives_at_every_gap(name: str) -> None:
    """Entry by entry of the Jacobian, so that the derivative of a p close to 1 counts too."""
    fn, oracle = getattr(jl, name), getattr(ro, name)
    jacobians = jax.jit(jax.vmap(jax.jacrev(fn)))(ro.GAP_ROWS)
    hessians = jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(fn))))(ro.GAP_ROWS)
    for z, jacobian, hessian in zip(ro.GAP_ROWS, jacobians, hessians, strict=True):
        results = of_each_result(oracle, z)
        budget = BUDGET if name == "logsumexp" else allowed(name, "float32", 1)
        assert ro.ulps(jacobian, [ro.gradient(f, z) for f in results]) <= budget
        # Where two classes tie, terms as large as the first derivatives, which are below 1, cancel.
        tie = np.sort(z)[-1] - np.sort(z)[-2] <= 1
        want = np.stack([ro.hessian(f, z) for f in results])
        floors = np.max(np.abs(want), axis=(1, 2)).astype(float)
        for got_one, want_one, floor in zip(
            np.reshape(hessian, want.shape), want, floors, strict=True
        ):
            assert ro.ulps(jnp.asarray(got_one), want_one, 1.0 if tie else floor) <= 2 * BUDGET


@each_function
def test_third_derivative_along_a_direction(name: str) -> None:
    fn, oracle = getattr(jl, name), getattr(ro, name)
    z, v = np.float32([20, 0, -1.5, 3]), np.float32([1, -0.5, 2, 0.25])

    def derivative(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda t: jax.jvp(f, [t], [jnp.ones_like(t)])[1]

    third = derivative(derivative(derivative(lambda t: fn(z + t * v))))
    got, want = jax.jit(third)(jnp.float32(0)), ro.along(oracle, z, v, 3)
    # The largest term is 2**3 times a number below 1; 3 orders of at most BUDGET each.
    assert ro.ulps(jnp.ravel(got), want, float(np.max(np.abs(want)))) <= 3 * BUDGET


@each_function
def test_float64(name: str, x64: None) -> None:  # noqa: ARG001
    rows = np.concatenate([ro.GAP_ROWS, [[200.0, 0, 0], [0, 200, 199]]]).astype(np.float64)
    fn = getattr(jl, name)
    got = jax.jit(fn)(rows)
    assert got.dtype == jnp.float64
    assert ro.ulps(got, ro.of_rows(getattr(ro, name), rows), FLOORS[name]) <= BUDGET


@each_function
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_computed_in_float32_and_rounded_once(name: str, dtype: str) -> None:
    rows = jnp.asarray(ro.random_rows(8, 64), dtype)
    got = jax.jit(getattr(jl, name))(rows)
    wide = jax.jit(getattr(jl, name))(rows.astype(jnp.float32))
    assert got.dtype == (jnp.float32 if name == "logsumexp" else rows.dtype)
    np.testing.assert_array_equal(got, wide.astype(got.dtype))


def test_two_classes_have_the_difference_of_their_logits() -> None:
    z = ro.random_rows(20, 2)
    difference = z[:, 1] - z[:, 0]  # exact, as the logits are multiples of 1/64
    np.testing.assert_array_equal(jl.class_log_odds(z), np.stack([-difference, difference], -1))


@pytest.mark.newest
def test_log_odds_are_the_logit_of_the_softmax() -> None:
    z = ro.random_rows(8, 10, spread=2.0)
    with jax.enable_x64(True):
        want = jl.logit(jl.softmax(z.astype(np.float64)))
    # float64's error in 1 - p is below float32's in the result.
    assert ro.ulps(jl.class_log_odds(z), ro.exact(want), FLOORS["class_log_odds"]) <= BUDGET


# Any shape, any axis, any mask.

LAYOUTS = st.sampled_from(
    [
        ((3,), -1),
        ((4, 3), -1),
        ((4, 3), 0),
        ((4, 3), (0, 1)),
        ((2, 1, 3), 1),
        ((2, 4, 3), (2, 0)),
        ((2, 4, 3), (-3, -2)),
        ((2, 2, 2, 3), -2),
        ((2, 2, 2, 3), (3, 1)),
    ]
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[jax.Array, Any, np.ndarray | None]:
    """Logits in a dtype, an axis and a mask."""
    shape, axis = draw(LAYOUTS)
    dtype = draw(st.sampled_from(["float32", "bfloat16", "float16"]))
    numbers = st.floats(-60, 60, width=16)
    logits = draw(hnp.arrays(np.float32, shape, elements=numbers))
    where = draw(st.none() | hnp.arrays(np.bool_, shape))
    return jnp.asarray(logits, dtype), axis, where


def along_axis(oracle: Callable[..., Any], z: Any, axis: Any, where: Any) -> Any:
    """A row oracle over any axes; a row that is masked as a whole stays NaN."""
    axes = axis if isinstance(axis, tuple) else (axis,)
    last = tuple(range(-len(axes), 0))

    def rows(array: Any) -> Any:
        moved = np.moveaxis(array, axes, last)
        return moved.reshape(*moved.shape[: moved.ndim - len(axes)], -1), moved.shape

    where = np.ones(z.shape, bool) if where is None else where
    (z_rows, moved_shape), (where_rows, _) = rows(ro.exact(z)), rows(where)
    flat = (array.reshape(-1, z_rows.shape[-1]) for array in (z_rows, where_rows))
    results = [
        oracle(z, w) if w.any() else np.full(np.shape(oracle(z)), ro.mp.nan)
        for z, w in zip(*flat, strict=True)
    ]
    if np.ndim(results[0]) == 0:
        return np.reshape(np.array(results, dtype=object), z_rows.shape[:-1])
    return np.moveaxis(np.reshape(results, moved_shape), last, axes)


@pytest.mark.newest
@each_function
@hypothesis.settings(max_examples=20)
@hypothesis.given(problem=problems())
def test_any_layout(name: str, problem: tuple[jax.Array, Any, np.ndarray | None]) -> None:
    z, axis, where = problem
    got = jax.jit(functools.partial(getattr(jl, name), axis=axis))(z, where=where)
    want = along_axis(getattr(ro, name), z, axis, where)
    kept = np.broadcast_to(
        True if where is None else np.any(where, axis, keepdims=name != "logsumexp"), got.shape
    )
    # The gaps are exact in float32. Results in 16 bits are rounded once, by half an ulp or less.
    budget = BUDGET if got.dtype == jnp.float32 else 0.501
    floor = max(FLOORS[name], float(jnp.finfo(got.dtype).tiny))
    assert ro.ulps(got[kept], want[kept], floor) <= budget
    masked = {"logsumexp": -np.inf, "softmax": 0.0}.get(name, -np.inf)
    assert np.all(np.asarray(got, np.float32)[~kept] == masked)


ROW = hnp.arrays(np.float32, (4, 6), elements=st.floats(-80, 80, width=32))


@pytest.mark.newest
@hypothesis.settings(max_examples=30)
@hypothesis.given(z=ROW)
def test_softmax_sums_to_one_and_so_do_its_relatives(z: np.ndarray) -> None:
    p = jl.softmax(z)
    # Each of 6 terms is off by BUDGET + gap ulp of itself, and they sum to 1.
    tolerance = (BUDGET + 160) * 2**-24
    np.testing.assert_allclose(np.sum(np.asarray(p, np.float64), axis=-1), 1, rtol=tolerance)
    for other in (jnp.exp(jl.log_softmax(z)), jl.sigmoid(jl.class_log_odds(z))):
        np.testing.assert_allclose(other, p, rtol=4 * tolerance, atol=2**-126)


@pytest.mark.newest
@hypothesis.settings(max_examples=30)
@hypothesis.given(z=ROW.map(np.round), shift=st.integers(-1000, 1000))
def test_a_shift_changes_only_logsumexp(z: np.ndarray, shift: int) -> None:
    """Integers shift exactly, so that the results are equal, not only close."""
    shifted = z + np.float32(shift)
    for name in ("softmax", "log_softmax", "class_log_odds"):
        np.testing.assert_array_equal(getattr(jl, name)(shifted), getattr(jl, name)(z))
    np.testing.assert_allclose(jl.logsumexp(shifted), jl.logsumexp(z) + shift, rtol=1e-6, atol=1e-5)
