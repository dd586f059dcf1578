"""Derivatives of losses where one factor is 0 and another infinite: nothing counts nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret import interpreted

import jaxlogits as jl
from jaxlogits._src.base.products import times

INF = np.inf
cross_entropy = jl.softmax_cross_entropy_with_integer_labels
focal = jl.softmax_focal_loss_with_integer_labels

ROWS = np.float32(
    [
        [1, 2, 0.5],
        [0, 88, 0],
        [100, 0, -100],
        [INF, 0, 1],
        [-INF, 0, 1],
        [0, -INF, -INF],
        [3e38, -3e38, 0],
    ]
)
TARGETS = np.float32([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
LOGITS = np.float32([0, 17, 88, 100, 3e38, INF, -17, -88, -100, -3e38, -INF])

# Each loss as a function of logits, and of what else it can be differentiated by.
OF_ROWS: dict[str, tuple[Callable[..., Any], Any]] = {
    "dense": (jl.softmax_cross_entropy, TARGETS),
    "poly": (jl.poly_loss_cross_entropy, TARGETS),
    "sparsemax": (lambda z, t: jl.entmax_loss(z, t, alpha=2), TARGETS),
    "entmax, 1": (lambda z, t: jl.entmax_loss(z, t, alpha=1), TARGETS),
    "entmax, 1.5": (jl.entmax_loss, TARGETS),
    "entmax, traced 1": (lambda z, t: jl.entmax_loss(z, t, alpha=jnp.sum(t)), TARGETS),
    "entmax, alpha": (
        lambda z, a: jl.entmax_loss_with_integer_labels(z, 0, alpha=a),
        np.float32([1, 1.25, 2]),
    ),
    "class_weights": (
        lambda z, w: cross_entropy(z, 0, class_weights=w),
        np.float32([[1, 2, 0], [0, 1, 1]]),
    ),
    "label_smoothing": (
        lambda z, e: cross_entropy(z, 0, label_smoothing=e),
        np.float32([0, 0.25]),
    ),
    "z_loss": (lambda z, w: cross_entropy(z, 0, z_loss=w), np.float32([0, 0.25])),
    "gamma": (lambda z, g: focal(z, 0, gamma=g), np.float32([0, 0.5, 1, 2])),
}
BINARY: dict[str, tuple[Callable[..., Any], Any]] = {
    "pos_weight": (
        lambda x, y, w: jl.sigmoid_binary_cross_entropy(x, y, pos_weight=w),
        np.float32([0, 1, 3]),
    ),
    "label_smoothing": (
        lambda x, y, e: jl.sigmoid_binary_cross_entropy(x, y, label_smoothing=e),
        np.float32([0, 0.25]),
    ),
    "gamma": (
        lambda x, y, g: jl.sigmoid_focal_loss(x, y, gamma=g),
        np.float32([0, 0.5, 1, 2]),
    ),
    "alpha": (lambda x, y, a: jl.sigmoid_focal_loss(x, y, alpha=a), np.float32([0, 0.25, 1])),
}


def every_combination(*axes: Any) -> list[np.ndarray]:
    """Each row of each array with each of the others."""
    grid = np.meshgrid(*(np.arange(len(axis)) for axis in axes), indexing="ij")
    return [axis[index.ravel()] for axis, index in zip(axes, grid, strict=True)]


def cases() -> dict[str, tuple[Callable[..., Any], list[np.ndarray]]]:
    rows = {name: (fn, every_combination(ROWS, other)) for name, (fn, other) in OF_ROWS.items()}
    labels = np.float32([0, 0.5, 1])
    return rows | {
        f"binary, {name}": (fn, every_combination(LOGITS, labels, option))
        for name, (fn, option) in BINARY.items()
    }


@pytest.mark.parametrize(("fn", "args"), cases().values(), ids=cases())
def test_tangents_and_cotangents_of_zeros(fn: Callable[..., Any], args: list[np.ndarray]) -> None:
    """Zeros that come as arrays give zeros, in both orders of both modes, at every edge."""

    def still(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: jax.jvp(f, args, jax.tree.map(jnp.zeros_like, args))[1]

    def everything(*args: Any) -> Any:
        pulled = jax.vjp(fn, *args)[1](jnp.float32(0))
        return fn(*args), still(fn)(*args), still(still(fn))(*args), pulled

    value, *zeros = jax.jit(jax.vmap(everything))(*args)
    assert not np.isnan(value).any()
    for zero in jax.tree.leaves(zeros):
        np.testing.assert_array_equal(zero, 0.0)


@pytest.mark.parametrize("name", BINARY)
def test_binary_mixed_derivatives_at_infinite_logits(name: str) -> None:
    """By logit and label, -1 or so on both orders, though one of the factors is infinite."""
    fn, option = BINARY[name]
    args = every_combination(np.float32([INF, -INF, 3e38, -3e38]), np.float32([0, 1]), option)
    one_way = jax.jit(jax.vmap(jax.jacfwd(jax.grad(fn, 0), 1)))(*args)
    other_way = jax.jit(jax.vmap(jax.jacfwd(jax.grad(fn, 1), 0)))(*args)
    np.testing.assert_array_equal(one_way, other_way)
    assert np.isfinite(one_way).all()


def test_targets_in_the_carry_of_a_scan() -> None:
    """Forward mode passes arrays of zeros for what doesn't depend on the argument."""
    for loss in (
        jl.softmax_cross_entropy,
        jl.poly_loss_cross_entropy,
        lambda z, t: jl.entmax_loss(z, t, alpha=1),
        lambda z, t: jl.sigmoid_binary_cross_entropy(z, t).sum(),
    ):

        def total(z: jax.Array, loss: Any = loss) -> jax.Array:
            def step(carry: Any, _: Any) -> Any:
                z, t = carry
                return (z, t), loss(z, t)

            return jax.lax.scan(step, (z, jnp.array([1.0, 0.0, 0.0])), length=2)[1].sum()

        z = jnp.array([INF, 0.0, -1.0])
        np.testing.assert_array_equal(jax.jit(jax.jacfwd(total))(z), jax.jit(jax.grad(total))(z))


@jax.jit
def slopes_by_options() -> dict[str, Any]:
    bce, binary_focal = jl.sigmoid_binary_cross_entropy, jl.sigmoid_focal_loss
    sure, wrong = jnp.array([INF, 0.0]), jnp.array([0.0, INF])
    one_hot = jnp.array([1.0, 0.0])
    return {
        "pos_weight": jax.grad(lambda w: bce(-INF, 0.0, pos_weight=w))(2.0),
        "class_weights, right": jax.grad(lambda w: cross_entropy(sure, 0, class_weights=w))(
            jnp.ones(2)
        ),
        "class_weights, wrong": jax.grad(lambda w: cross_entropy(wrong, 0, class_weights=w))(
            jnp.ones(2)
        ),
        "targets": jax.grad(jl.softmax_cross_entropy, 1)(sure, one_hot),
        "gamma": jax.grad(lambda g: focal(wrong, 0, gamma=g))(2.0),
        "binary gamma": jax.grad(lambda g: binary_focal(-INF, 1.0, gamma=g))(2.0),
        "label, right": jax.grad(bce, 1)(INF, 1.0),
        "label, wrong": jax.grad(bce, 1)(INF, 0.0),
        "label of focal": jax.grad(binary_focal, 1)(100.0, 1.0, gamma=0.0),
        "smoothing": jax.grad(lambda e: bce(INF, 0.0, label_smoothing=e))(0.0),
        "z_loss": jax.grad(lambda w: cross_entropy(wrong, 0, z_loss=w))(0.0),
        "z, z_loss of 0": jax.grad(lambda z, w: cross_entropy(z, 0, z_loss=w))(
            jnp.array([3e38, 0.0]), 0.0
        ),
        "Hessian of focal": jax.hessian(lambda z: focal(z, 0, gamma=0.5))(jnp.array([88.0, 0.0])),
    }


def test_derivatives_by_options_where_the_loss_is_infinite() -> None:
    got = slopes_by_options()
    want = {
        "pos_weight": 0,
        "class_weights, right": [0, 0],
        "class_weights, wrong": [INF, 0],
        "targets": [0, 0],
        "gamma": 0,
        "binary gamma": 0,
        "label, right": 0,
        "label, wrong": -INF,
        "label of focal": -100,
        "smoothing": -INF,
        "z_loss": INF,
        "z, z_loss of 0": [0, 0],
        "Hessian of focal": np.zeros([2, 2]),
    }
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("constant", [False, True])
def test_times(constant: bool) -> None:
    """Nothing changes nothing, also where the slope is infinite or NaN."""
    slope = jnp.array([INF, -INF, 2.0, np.nan, 3e38])
    tangents = jnp.array([0.0, 1.0, -2e-38, 2.0**-126])

    def along(slope: jax.Array, tangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        of = lambda t: times(slope, t)  # noqa: E731
        tangent = jnp.full_like(slope, tangent)
        return of(tangent), jax.vjp(of, tangent)[1](tangent)[0]

    if constant:
        results = jax.jit(jax.vmap(lambda t: along(slope, t)))(tangents)
    else:
        results = jax.jit(jax.vmap(along, (None, 0)))(slope, tangents)
    for got in results:
        np.testing.assert_array_equal(got[0], 0.0)
        np.testing.assert_array_equal(got[1], slope)
        np.testing.assert_array_equal(got[2, :2], [-INF, INF])
        np.testing.assert_array_equal(got[3, :2], [INF, -INF])


INFINITE = np.float32([[0, -INF, 1], [-INF, -INF, 1], [INF, 0, 1], [0, INF, 1], [-INF, 0, 1]])
FINITE = np.float32([[0.3, 0.1, -0.2]] * 5)
FIRST = np.zeros(5, np.int32)
SECOND_DERIVATIVES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "logsumexp": jl.logsumexp,
    "softmax": jl.softmax,
    "log_softmax": jl.log_softmax,
    "class_log_odds": jl.class_log_odds,
    "entropy": jl.entropy,
    "cross entropy": lambda z: cross_entropy(z, FIRST, z_loss=0.1),
    "focal": lambda z: focal(z, FIRST),
    "poly": lambda z: jl.poly_loss_cross_entropy(z, TARGETS[[0, 0, 0, 0, 0]]),
    "kl of p": lambda z: jl.softmax_kl_divergence(z, FINITE),
    "kl of q": lambda z: jl.softmax_kl_divergence(FINITE, z),
    "jensen shannon": lambda z: jl.jensen_shannon_divergence(z, FINITE),
    "sparsemax": jl.sparsemax,
    "entmax": jl.entmax,
    "entmax loss": lambda z: jl.entmax_loss_with_integer_labels(z, FIRST),
    "temperature": lambda z: jl.apply_temperature(z, 2.0),
    "top p": lambda z: jl.keep_top_p(z, 0.9),
    "scores": jl.aps_scores,
    "sigmoid": jl.sigmoid,
    "softplus": jl.softplus,
    "binary": lambda z: jl.sigmoid_binary_cross_entropy(z, TARGETS[[0, 0, 0, 0, 0]]),
    "binary focal": lambda z: jl.sigmoid_focal_loss(z, TARGETS[[0, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("name", SECOND_DERIVATIVES)
def test_reverse_over_reverse_at_infinite_logits(name: str) -> None:
    """It is forward over reverse, of all results that are finite; the others' cotangents are 0."""
    fn = SECOND_DERIVATIVES[name]
    value = np.asarray(interpreted(fn)(INFINITE))
    weights = np.where(np.isfinite(value), 1 + 0.1 * np.arange(value.size).reshape(value.shape), 0)
    along = np.cos(np.arange(15, dtype=np.float32)).reshape(5, 3)

    def both(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        def gradient(z: jax.Array) -> jax.Array:
            return jax.vjp(fn, z)[1](jnp.asarray(weights, value.dtype))[0]

        return jax.vjp(gradient, z)[1](along)[0], jax.jvp(gradient, [z], [along])[1]

    reverse, forward = interpreted(both)(INFINITE)
    assert np.isfinite(forward).all()
    np.testing.assert_allclose(reverse, forward, atol=1e-6)  # of numbers of at most 1, 8 ulp
