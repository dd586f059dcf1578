"""Newton's method: where it ends, how it is differentiated, and its linear systems."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlogits._src.regression.newton import Minimum, minimize, solve

Array = jax.Array


def exp_less_line(slopes: Array, x: Array) -> tuple[Array, Array, Array]:
    """sum(exp(x) - slope x), lowest at log(slope)."""
    return jnp.sum(jnp.exp(x) - slopes * x), jnp.exp(x) - slopes, jnp.diag(jnp.exp(x))


def hyperbola(_: Any, x: Array) -> tuple[Array, Array, Array]:
    """sqrt(1 + x^2), on which an undamped Newton step leads from x to -x^3."""
    root = jnp.sqrt(1 + x @ x)
    return root, x / root, (1 / root**3)[None, None]


def log_of(slopes: Array, **options: Any) -> Minimum:
    options = {"max_steps": 50, "tolerance": 1e-8} | options
    return minimize(exp_less_line, jnp.zeros_like(slopes), slopes, **options)


@pytest.mark.usefixtures("x64")
def test_finds_the_minimum_and_its_derivatives() -> None:
    slopes = jnp.array([0.25, 1.0, 8.0])
    minimum, forward, reverse, second = jax.jit(
        lambda s: (
            log_of(s),
            jax.jacfwd(lambda s: log_of(s).point)(s),
            jax.jacrev(lambda s: log_of(s).point)(s),
            jax.hessian(lambda s: log_of(s).point.sum())(s),
        )
    )(slopes)
    assert minimum.converged
    # Each step squares the error, and the last one begins with less than the tolerance 1e-8.
    np.testing.assert_allclose(minimum.point, jnp.log(slopes), rtol=4e-16, atol=4e-16)
    for first in (forward, reverse):
        np.testing.assert_allclose(first, jnp.diag(1 / slopes), rtol=1e-14)
    np.testing.assert_allclose(second, jnp.diag(-1 / slopes**2), rtol=1e-14, atol=1e-14)


def test_vmap_stops_each_problem_where_it_converged() -> None:
    slopes = jnp.array([[1.0], [2.0], [100.0]])
    together = jax.jit(jax.vmap(log_of))(slopes)
    alone = jax.jit(log_of)
    for i, one in enumerate(map(alone, slopes)):
        assert together.steps[i] == one.steps
        np.testing.assert_allclose(together.point[i], one.point, rtol=2**-22)
    assert together.steps[0] == 1  # the start is the minimum


def test_halves_steps_that_go_too_far() -> None:
    minimum = minimize(hyperbola, jnp.array([3.0]), None, max_steps=50, tolerance=1e-4)
    assert minimum.converged
    np.testing.assert_allclose(minimum.point, [0.0], atol=1e-8)  # at most the tolerance squared


def test_says_when_the_steps_did_not_suffice() -> None:
    minimum = log_of(jnp.array([100.0]), max_steps=2)
    assert not minimum.converged
    assert minimum.steps == 2
    assert jnp.isfinite(minimum.point).all()


def test_a_start_without_a_step_is_nan() -> None:
    def flat(_: Any, x: Array) -> tuple[Array, Array, Array]:
        return jnp.sum(x), jnp.ones_like(x), jnp.zeros([1, 1])

    minimum = minimize(flat, jnp.zeros([1]), None, max_steps=50, tolerance=1e-4)
    assert jnp.isnan(minimum.point).all()
    assert not minimum.converged
    assert minimum.steps == 1


@pytest.mark.parametrize("size", [1, 4, 12])
def test_solve(size: int) -> None:
    # Units that differ by 1e20 don't matter: the diagonal is scaled to 1.
    rng = np.random.default_rng(size)
    columns = rng.normal(size=[3 * size, size])
    units = 10.0 ** np.linspace(-10, 10, size)
    gram = (columns.T @ columns) * units[:, None] * units[None, :]
    right = rng.normal(size=[size, 2])
    want = np.linalg.solve(columns.T @ columns, right / units[:, None]) / units[:, None]
    got = jax.jit(solve)(jnp.asarray(gram, jnp.float32), jnp.asarray(right, jnp.float32))
    # Where the diagonal is 1, the error is that of rounding times the condition number.
    lengths = np.linalg.norm(columns, axis=0)
    condition = np.linalg.cond(columns / lengths) ** 2
    in_units = (units * lengths)[:, None]
    bound = condition * 2**-23 * np.linalg.norm(in_units * want, axis=0)
    assert (np.abs(in_units * (got - want)) < bound).all()
    one = jax.jit(solve)(jnp.asarray(gram, jnp.float32), jnp.asarray(right[:, 0], jnp.float32))
    assert (np.abs(in_units[:, 0] * (one - want[:, 0])) < bound[0]).all()


@pytest.mark.parametrize("size", [4, 12])
def test_solve_of_a_singular_system_is_nan(size: int) -> None:
    columns = np.random.default_rng(size).normal(size=[3 * size, size])
    columns[:, -1] = columns[:, 0] - 2 * columns[:, 1]
    gram = jnp.asarray(columns.T @ columns, jnp.float32)
    assert jnp.isnan(jax.jit(solve)(gram, gram[0])).all()
