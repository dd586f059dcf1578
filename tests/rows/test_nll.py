"""Negative log likelihoods: mixed derivatives, the focal factor, and rows cut in pieces."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro

import jaxlogits as jl
from jaxlogits._src.losses.focal import focal

pytestmark = pytest.mark.optimized

cross_entropy = jl.softmax_cross_entropy_with_integer_labels
Z, LABEL = np.float32([1, 2, 0.5]), np.int32(0)
ZERO = np.float32(0)

# Options at values where a rule that asks "is it 0?" would lose a derivative.
OPTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "z_loss": (
        lambda z, v: cross_entropy(z, LABEL, z_loss=v),
        lambda z, v: ro.integer_cross_entropy(z, 0, z_loss=v),
        ZERO,
    ),
    "label_smoothing": (
        lambda z, v: cross_entropy(z, LABEL, label_smoothing=v),
        lambda z, v: ro.integer_cross_entropy(z, 0, label_smoothing=v),
        ZERO,
    ),
    "class_weights": (
        lambda z, v: cross_entropy(z, LABEL, class_weights=v),
        lambda z, v: ro.integer_cross_entropy(z, 0, class_weights=v),
        np.zeros(3, np.float32),
    ),
    "targets": (
        jl.softmax_cross_entropy,
        ro.cross_entropy,
        np.float32([0, 1, 0]),
    ),
    "epsilon": (
        lambda z, v: jl.poly_loss_cross_entropy(z, np.float32([0, 1, 0]), epsilon=v),
        lambda z, v: ro.poly(z, ro.one_hot(1, 3), epsilon=v),
        ZERO,
    ),
    "gamma": (
        lambda z, v: jl.softmax_focal_loss_with_integer_labels(z, LABEL, gamma=v),
        lambda z, v: ro.focal(z, 0, gamma=v),
        ZERO,
    ),
}


@pytest.mark.parametrize(("fn", "oracle", "option"), OPTIONS.values(), ids=OPTIONS)
def test_mixed_derivatives_at_an_option_of_zero(
    fn: Callable[..., Any], oracle: Callable[..., Any], option: Any
) -> None:
    """By the logits and the option, in both orders."""
    point = np.append(Z, option)
    shape = np.shape(option)

    def joint(x: Any) -> Any:
        return oracle(x[:3], x[3:] if shape else x[3])

    want = ro.hessian(joint, point)[:3, 3:]
    one_way = jax.jit(jax.jacfwd(jax.grad(fn), 1))(Z, option).reshape(3, -1)
    other_way = jax.jit(jax.jacrev(jax.grad(fn, 1)))(Z, option).reshape(-1, 3).T
    # Sums of up to three terms of size 1 and 5 ulp each.
    assert ro.ulps(one_way, want, 1.0) <= 15
    assert ro.ulps(other_way, want, 1.0) <= 15


@pytest.mark.parametrize(
    "loss", [0.0, 1e-30, 1e-8, 9e-5, 1.1e-4, 0.5, 5.0, 39.0, 41.0, 90.0, np.inf]
)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.0])
def test_focal_factor_and_its_derivatives(loss: float, gamma: float) -> None:
    """L (1 - exp(-L))**gamma, over all sizes of L and both changes of formula."""

    def fn(x: jax.Array) -> jax.Array:
        return focal(x, jnp.float32(gamma))

    got = [f(jnp.float32(loss)) for f in (fn, jax.grad(fn), jax.grad(jax.grad(fn)))]
    if loss == np.inf:
        want: list[Any] = [np.inf, 1, 0]
        assert got == want
        return
    exact = lambda x: x * (1 - ro.exp(-x)) ** gamma  # noqa: E731
    point = ro.exact(np.float32(loss))
    for order, result in enumerate(got):
        at_zero = loss == 0 and gamma == 0 and order > 1
        want = ro.mp.zero if at_zero else ro.mp.diff(exact, point, order)
        # The second derivative adds terms of size gamma**2 that cancel near L = gamma.
        floor = float(gamma**2) * loss ** max(gamma - 1, 0) if order == 2 else 0.0
        assert ro.ulps(result, want, min(floor, 1.0)) <= 16, order


def test_rows_longer_than_a_piece_are_like_short_ones() -> None:
    """Long rows are reduced in pieces on the CPU; the classes behind -inf don't count."""
    z = ro.random_rows(2, 10)
    long = np.full([2, 40_000], -np.inf, np.float32)
    spread = np.arange(10) * 3_999 + 7
    long[:, spread] = z
    labels = np.array([3, 9])
    got = jax.jit(jax.vmap(jax.value_and_grad(cross_entropy)))(long, spread[labels])
    want = jax.jit(jax.vmap(jax.value_and_grad(cross_entropy)))(z, labels)
    np.testing.assert_allclose(got[0], want[0], rtol=2**-21)
    np.testing.assert_allclose(got[1][:, spread], want[1], rtol=2**-20)
    assert np.count_nonzero(got[1]) == 20
