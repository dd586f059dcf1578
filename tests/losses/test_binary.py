"""sigmoid_binary_cross_entropy and sigmoid_focal_loss against mpmath, with every option."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
from accuracy import allowed

import jaxlogits as jl

# Every logit with every label; 84 leaves derivatives above the smallest normal float32.
_LOGITS = [0, 0.5, 1, 2.25, 10, 15, 17, 20, 40, 84]
_LABELS = [0, 0.125, 0.5, 0.75, 1]
LOGITS, LABELS = (
    array.ravel().astype(np.float32)
    for array in np.meshgrid([-x for x in _LOGITS[1:]] + _LOGITS, _LABELS)
)
HARD = (LABELS == 0) | (LABELS == 1)


class Loss(NamedTuple):
    """A loss with its options."""

    name: str
    fn: Callable[..., Any]
    oracle: Callable[..., Any]
    options: dict[str, float]


def cross_entropy(**options: float) -> Loss:
    name = ", ".join(["cross entropy", *options])
    return Loss(name, jl.sigmoid_binary_cross_entropy, ro.binary_cross_entropy, options)


def focal(**options: float) -> Loss:
    name = ", ".join(["focal", *(f"{key} = {value}" for key, value in options.items())])
    return Loss(name, jl.sigmoid_focal_loss, ro.binary_focal, options)


LOSSES = [
    cross_entropy(),
    cross_entropy(pos_weight=3.0),
    cross_entropy(label_smoothing=0.125),
    cross_entropy(pos_weight=0.75, label_smoothing=0.25),
    focal(gamma=0.0),
    focal(gamma=1.0),
    focal(gamma=2.0),
    focal(gamma=0.5, alpha=0.25),
]


@pytest.mark.optimized
@pytest.mark.newest
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_value_and_derivatives(loss: Loss) -> None:
    def fn(x: jax.Array, y: jax.Array) -> jax.Array:
        return loss.fn(x, y, **loss.options)

    orders = [fn, jax.grad(fn), jax.grad(jax.grad(fn))]
    results = jax.jit(jax.vmap(lambda x, y: [order(x, y) for order in orders]))(LOGITS, LABELS)
    options = {name: ro.exact(option) for name, option in loss.options.items()}
    value, slope = (allowed(loss.fn.__name__, "float32", order) for order in range(2))
    budgets = [value, slope, 2 * slope]
    for n, (x, y) in enumerate(zip(ro.exact(LOGITS), ro.exact(LABELS), strict=True)):
        # Of a soft label two terms of size 1 and of opposite signs are left of each other.
        soft = 0 < y < 1 or "label_smoothing" in options
        for order, (result, budget) in enumerate(zip(results, budgets, strict=True)):
            want = ro.mp.diff(lambda x, y=y: loss.oracle(x, y, **options), x, order)
            error = ro.ulps(result[n], want, 1.0 if soft and order else 0.0)
            assert error <= budget, (loss.name, order, float(x), float(y))


@pytest.mark.optimized
@pytest.mark.parametrize("loss", [LOSSES[3], LOSSES[6]], ids=lambda loss: loss.name)
def test_derivatives_by_the_labels(loss: Loss) -> None:
    """First, mixed and second, at soft labels."""
    soft = (LABELS > 0) & (LABELS < 1) & (np.abs(LOGITS) <= 20)
    x, y = LOGITS[soft], LABELS[soft]

    def fn(x: jax.Array, y: jax.Array) -> jax.Array:
        return loss.fn(x, y, **loss.options)

    orders = {
        (0, 1): jax.grad(fn, 1),
        (1, 1): jax.grad(jax.grad(fn, 1), 0),
        (0, 2): jax.grad(jax.grad(fn, 1), 1),
    }
    results = jax.jit(jax.vmap(lambda x, y: [order(x, y) for order in orders.values()]))(x, y)
    options = {name: ro.exact(option) for name, option in loss.options.items()}
    for order, result in zip(orders, results, strict=True):
        oracle = lambda x, y: loss.oracle(x, y, **options)  # noqa: E731
        want = [ro.mp.diff(oracle, xy, order) for xy in zip(x, y, strict=True)]
        size = float(np.max(np.abs(want)))
        assert ro.ulps(result, want, size) <= 2 * allowed(loss.fn.__name__, "float32", 1), order


@pytest.mark.optimized
@pytest.mark.newest
def test_third_derivative_on_the_confident_side() -> None:
    """Where 1 - p rounds to 0, all derivatives are of size 1 - p, and of its sign."""
    x = np.float32([-20, -40, -80])
    for fn, oracle in (
        (jl.sigmoid_binary_cross_entropy, ro.binary_cross_entropy),
        (jl.sigmoid_focal_loss, lambda x, y: ro.binary_focal(x, y, gamma=0)),
    ):
        options = {} if fn is jl.sigmoid_binary_cross_entropy else {"gamma": 0.0}
        third = jax.grad(jax.grad(jax.grad(lambda x: fn(x, jnp.zeros_like(x), **options))))  # noqa: B023
        want = [ro.mp.diff(lambda x: oracle(x, ro.mp.zero), point, 3) for point in ro.exact(x)]  # noqa: B023
        assert ro.ulps(jax.jit(jax.vmap(third))(x), want) <= 12


@pytest.mark.optimized
def test_float64(x64: None) -> None:  # noqa: ARG001
    x, y = LOGITS.astype(np.float64) * 2, LABELS.astype(np.float64)
    got = jax.jit(jl.sigmoid_binary_cross_entropy)(x, y)
    assert got.dtype == jnp.float64
    assert ro.ulps(got, ro.of_rows(ro.binary_cross_entropy, x, y)) <= 2.5


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("fn", [jl.sigmoid_binary_cross_entropy, jl.sigmoid_focal_loss])
def test_sixteen_bits_are_computed_in_float32(fn: Callable[..., Any], dtype: str) -> None:
    x, y = jnp.asarray(LOGITS, dtype), jnp.asarray(LABELS)
    both = jax.jit(jax.vmap(jax.value_and_grad(fn)))
    (loss, gradient), (wide_loss, wide_gradient) = both(x, y), both(x.astype(jnp.float32), y)
    np.testing.assert_array_equal(loss, wide_loss)
    assert gradient.dtype == x.dtype
    assert ro.ulps(gradient, ro.exact(wide_gradient)) <= 0.501


def test_labels_of_any_dtype() -> None:
    x, labels = LOGITS[HARD], LABELS[HARD]
    for fn in (jl.sigmoid_binary_cross_entropy, jl.sigmoid_focal_loss):
        want = fn(x, labels)
        for dtype in ("bool", "int32", "uint8", "bfloat16"):
            np.testing.assert_array_equal(fn(x, jnp.asarray(labels, dtype)), want)


def test_pos_weight_broadcasts_to_the_logits() -> None:
    x = LOGITS.reshape(5, -1)
    y = LABELS.reshape(5, -1)
    weight = np.arange(1, 1 + x.shape[1], dtype=np.float32)
    loss = jax.jit(jl.sigmoid_binary_cross_entropy)
    got = loss(x, y, pos_weight=weight)
    for k, w in enumerate(weight):
        want = loss(x[:, k], y[:, k], pos_weight=w)
        np.testing.assert_array_equal(got[:, k], want)


def test_alpha_weighs_the_two_labels() -> None:
    plain = jl.sigmoid_focal_loss(LOGITS, LABELS)
    got = jl.sigmoid_focal_loss(LOGITS, LABELS, alpha=0.25)
    np.testing.assert_allclose(got, (0.25 * LABELS + 0.75 * (1 - LABELS)) * plain, rtol=2**-22)


@jax.jit
@jax.vmap
def focal_to_second_order(x: jax.Array, y: jax.Array, gamma: jax.Array) -> Any:
    def fn(v: jax.Array) -> jax.Array:
        return jl.sigmoid_focal_loss(v[0], v[1], gamma=v[2])

    point = jnp.stack([x, y, gamma])
    reverse = jax.jacrev(jax.jacrev(fn))
    return jax.grad(fn)(point), jax.hessian(fn)(point), reverse(point)


@pytest.mark.newest
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_derivatives_by_everything(gamma: float) -> None:
    """By logit, label and gamma, also at labels of 0 and 1, where u**gamma may not be smooth."""
    x, y = LOGITS, LABELS
    results = focal_to_second_order(x, y, np.full_like(x, gamma))
    gradient, hessian, reverse = map(np.asarray, results)
    for n, point in enumerate(zip(x, y, strict=True)):
        at = (*map(ro.exact, point), ro.mp.mpf(gamma))
        for i in range(3):
            for j in range(-1, i + 1):
                order = [0, 0, 0]
                for k in (i, j) if j >= 0 else (i,):
                    order[k] += 1
                want = ro.mp.diff(lambda *v: ro.binary_focal(*v[:2], gamma=v[2]), at, tuple(order))
                want = ro.mp.re(want)  # a step beyond labels of 1
                got = gradient[n, i] if j < 0 else np.stack([hessian, reverse])[:, n, i, j]
                if abs(want) > np.finfo(np.float32).max:
                    assert np.isinf(got).all()
                    continue
                # Terms of both signs, of the size of the logit or its square; else 40 ulp.
                floor = max(1.0, float(point[0]) ** 2) if 0 < point[1] < 1 or i > 0 else 2.0**-126
                error = np.max(np.abs(got.astype(np.float64) - float(want)))
                budget = 40 * 2.0**-24 * max(abs(float(want)), floor)
                assert error <= max(budget, 2.0**-126), (order, point, gamma)


def test_slope_in_gamma_on_the_wrong_side() -> None:
    """log(1 - p_t) where p_t is tiny."""
    x = np.float32([-10, -20, -60])
    slope = jax.grad(lambda gamma, x: jl.sigmoid_focal_loss(x, 1.0, gamma=gamma))
    got = jax.jit(jax.vmap(slope, (None, 0)))(jnp.float32(2), x)
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(got, -np.log(p) * (1 - p) ** 2 * np.log1p(-p), rtol=1e-6)


def test_pos_weight_may_be_a_number_of_any_kind() -> None:
    want = jl.sigmoid_binary_cross_entropy(LOGITS, LABELS, pos_weight=3.0)
    for weight in (3, np.int64(3), np.float32(3), jnp.int32(3), np.full(LOGITS.shape, 3)):
        got = jl.sigmoid_binary_cross_entropy(LOGITS, LABELS, pos_weight=weight)
        np.testing.assert_array_equal(got, want)


# Entropy and divergence.

SIZES = np.float32([0, 1e-6, 0.5, 3, 17, 40])
EACH = np.unique([*SIZES, *-SIZES])


def exact_entropy(x: Any) -> Any:
    p, q = ro.sigmoid(x), ro.sigmoid(-x)
    return -p * ro.log(p) - q * ro.log(q)


def exact_kl(a: Any, b: Any) -> Any:
    return sum(
        ro.sigmoid(s * a) * (ro.log(ro.sigmoid(s * a)) - ro.log(ro.sigmoid(s * b))) for s in (1, -1)
    )


def relative_error(got: Any, want: Any) -> float:
    """The largest, in numbers of which none is subnormal."""
    return max(
        abs(float((ro.mp.mpf(float(g)) - w) / w)) if w else abs(float(g))
        for g, w in zip(np.ravel(got), np.ravel(want), strict=True)
    )


def test_sigmoid_entropy() -> None:
    x = ro.exact(EACH)
    # Two terms of one sign, each a few ulp.
    assert relative_error(jl.sigmoid_entropy(EACH), exact_entropy(x)) <= 8 * 2**-24
    slope, curve = (jax.vmap(f)(EACH) for f in derivatives(jl.sigmoid_entropy))
    sides = ro.sigmoid(x) * ro.sigmoid(-x)
    assert relative_error(slope, -x * sides) <= 8 * 2**-24
    tanh = ro.sigmoid(x) - ro.sigmoid(-x)
    np.testing.assert_allclose(
        curve, np.array(sides * (x * tanh - 1), float), rtol=0, atol=8 * 2**-24
    )
    for at in (np.inf, -np.inf):
        assert [jl.sigmoid_entropy(at), *(f(at) for f in derivatives(jl.sigmoid_entropy))] == [
            0
        ] * 3


def derivatives(fn: Callable[..., Any]) -> list[Callable[..., Any]]:
    return [jax.grad(fn), jax.jacfwd(jax.grad(fn))]


@pytest.mark.parametrize("distance", [2.0**-20, 2.0**-8, 0.75, 1.5, 20.0])
def test_sigmoid_kl_divergence(distance: float) -> None:
    """Nearly equal ones, too, and never below 0."""
    for sign in (1, -1):
        b = (EACH + np.float32(sign * distance)).astype(np.float32)
        want = exact_kl(ro.exact(EACH), ro.exact(b))
        got = jl.sigmoid_kl_divergence(EACH, b)
        assert np.all(got >= 0)
        assert relative_error(got, want) <= 1e-6
        at, to = ro.exact(EACH), ro.exact(b)
        slopes = jax.vmap(jax.grad(jl.sigmoid_kl_divergence, (0, 1)))(EACH, b)
        p, q = ro.sigmoid(at), ro.sigmoid(to)
        for slope, exact in zip(slopes, (p * ro.sigmoid(-at) * (at - to), q - p), strict=True):
            assert relative_error(slope, exact) <= 1e-6
    hessian = jax.hessian(lambda v: jl.sigmoid_kl_divergence(v[0], v[1]))(jnp.array([0.5, 1.5]))
    side = [float(ro.sigmoid(x) * ro.sigmoid(-x)) for x in (0.5, 1.5)]
    curve = side[0] * (1 + np.tanh(0.25))  # the derivative of side (a - b) in a, at a - b = -1
    want = [[curve, -side[0]], [-side[0], side[1]]]
    np.testing.assert_allclose(hessian, want, rtol=8 * 2**-23)

    # Equal ones: what the Fisher information is read from.
    at = jnp.array([-1.0, 0.0, 2.0])
    for outer, inner in itertools.product([jax.jacfwd, jax.jacrev], repeat=2):
        hessian = jax.vmap(outer(inner(jl.sigmoid_kl_divergence, (0, 1)), (0, 1)))(at, at)
        information = ro.sigmoid(ro.exact(at)) * ro.sigmoid(-ro.exact(at))
        for i, j in itertools.product(range(2), repeat=2):
            want = information if i == j else -information
            np.testing.assert_allclose(hessian[i][j], want.astype(float), rtol=8 * 2**-23)


def test_edges_of_sigmoid_kl_divergence() -> None:
    inf = np.inf
    # The last but one: what p has less of than the least number of float32.
    a = np.float32([inf, -inf, inf, 0, 0, inf, 5, np.nan, 139, np.nan])
    b = np.float32([inf, -inf, -inf, inf, 0, 0, -inf, 0, inf, inf])
    want = [0, 0, inf, inf, 0, np.log(2), inf, np.nan, inf, np.nan]
    np.testing.assert_allclose(jl.sigmoid_kl_divergence(a, b), want, rtol=2**-23)
    slopes = jax.vmap(jax.grad(jl.sigmoid_kl_divergence, (0, 1)))(a[:2], b[:2])
    assert not np.any(slopes)
    # An infinite one that counts nothing changes nothing.
    pull = jax.vjp(jl.sigmoid_kl_divergence, a[:7], b[:7])[1]
    assert not np.any(pull(jnp.zeros(7)))
    with pytest.raises(ValueError, match=r"^logits_q must have the shape of logits_p, \[10\], got"):
        jl.sigmoid_kl_divergence(a, b[:2])


def test_label_smoothing_of_each_example() -> None:
    eps = np.resize(np.float32([0.0, 0.125, 0.25]), LOGITS.shape)
    got = jl.sigmoid_binary_cross_entropy(LOGITS, LABELS, label_smoothing=eps)
    for value in (0.0, 0.125, 0.25):
        alone = jl.sigmoid_binary_cross_entropy(LOGITS, LABELS, label_smoothing=value)
        np.testing.assert_allclose(got[eps == value], alone[eps == value], rtol=2**-22)
