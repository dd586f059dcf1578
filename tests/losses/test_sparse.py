"""sparsemax, entmax and their losses: bisection in float64, mpmath and the entmax package."""

import functools
import warnings
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import row_oracles as ro
import transforms as tf

import jaxlogits as jl

INF, NAN = np.inf, np.nan
EPS = 2.0**-24  # half of float32's spacing at 1
ALPHAS = [1.0, 1.001, 1.25, 1.5, 2.0]

# By the docstrings, of 1: sums of a few numbers in [0, 1]; the power for any alpha costs more.
SPARSEMAX_LOSS = functools.partial(jl.entmax_loss, alpha=2)
SPARSEMAX_LOSS_OF_LABELS = functools.partial(jl.entmax_loss_with_integer_labels, alpha=2)

BUDGETS = {"sparsemax": 3e-7, "entmax 1.5": 3e-7, "entmax": 1e-6}


def entmax(z: Any, alpha: Any) -> Any:
    """With an alpha that it doesn't know beforehand: one program for all of them."""
    return jl.entmax(z, alpha=alpha)


class Function(NamedTuple):
    """A function of logits, and perhaps of alpha."""

    name: str
    alpha: float
    fn: Any
    args: tuple[Any, ...] = ()

    @property
    def budget(self) -> float:
        return BUDGETS[self.name.split(" traced")[0]]


def of_alpha(alpha: float) -> list[Function]:
    known = Function("entmax", alpha, functools.partial(jl.entmax, alpha=alpha))
    traced = Function("entmax traced", alpha, entmax, (np.float32(alpha),))
    closed = {
        1.5: [Function("entmax 1.5", 1.5, jl.entmax)],
        2.0: [Function("sparsemax", 2.0, jl.sparsemax)],
    }
    return [known, traced, *closed.get(alpha, [])]


FUNCTIONS = [function for alpha in ALPHAS for function in of_alpha(alpha)]
each_function = pytest.mark.parametrize(
    "function", FUNCTIONS, ids=[f"{function.name} {function.alpha}" for function in FUNCTIONS]
)


# What they are, in float64: the threshold by bisection, and the textbook's loss.


def bisected(z: Any, alpha: float) -> np.ndarray:
    """Rows [N, K], by 100 halvings of the bracket of tau."""
    a, z = float(np.float32(alpha)) - 1, np.asarray(z, float)
    z = z - np.max(z, axis=-1, keepdims=True)
    if a == 0:
        return np.exp(z) / np.sum(np.exp(z), axis=-1, keepdims=True)

    def probs(tau: np.ndarray) -> np.ndarray:
        return np.maximum(a * z - tau, 0) ** (1 / a)

    low = -np.ones([*z.shape[:-1], 1])
    high = low + 1 - float(z.shape[-1]) ** -a
    for _ in range(100):
        middle = (low + high) / 2
        above = np.sum(probs(middle), axis=-1, keepdims=True) >= 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return probs(low)


def negative_entropy(p: np.ndarray, alpha: float) -> np.ndarray:
    if alpha == 1:
        return np.sum(p * np.log(np.where(p > 0, p, 1)), axis=-1)
    return np.sum(p**alpha - p, axis=-1) / (alpha * (alpha - 1))


def textbook_loss(z: Any, labels: Any, alpha: float) -> np.ndarray:
    z, p = np.asarray(z, float), bisected(z, alpha)
    regret = np.sum((p - labels) * z, axis=-1)
    alpha = float(np.float32(alpha))
    return negative_entropy(labels, alpha) + regret - negative_entropy(p, alpha)


def rows(num_classes: int, scale: float) -> np.ndarray:
    rng = np.random.default_rng([num_classes, int(10 * scale)])
    return rng.normal(scale=scale, size=[12, num_classes]).astype(np.float32)


# Values.


@pytest.mark.optimized
@each_function
@pytest.mark.parametrize("num_classes", [7, 500])
def test_values(function: Function, num_classes: int) -> None:
    alpha = function.alpha
    z = np.concatenate([rows(num_classes, scale) for scale in (0.1, 1, 5)])
    z = np.concatenate([z, z + np.float32(64), np.round(z), np.zeros_like(z[:1])])  # also with ties
    got = np.asarray(jax.jit(function.fn)(z, *function.args))
    np.testing.assert_allclose(got, bisected(z, alpha), rtol=0, atol=function.budget)
    # What p and the sum that it is divided by are off by: a few roundings each.
    np.testing.assert_allclose(np.sum(got.astype(float), axis=-1), 1, rtol=0, atol=16 * EPS)
    if alpha > 1.1:  # below, the support's edge is where p is far below 1e-30
        support = np.sum(bisected(z, alpha) > 1e-12, axis=-1)
        away = np.sum(bisected(z, alpha) > 1e-6, axis=-1) == support
        np.testing.assert_array_equal(np.sum(got > 1e-9, axis=-1)[away], support[away])


@pytest.mark.newest
def test_a_vocabulary() -> None:
    z = np.random.default_rng(3).normal(scale=3, size=[2, 128256]).astype(np.float32)
    for alpha, fn in [
        (2, jl.sparsemax),
        (1.5, jl.entmax),
        (1.25, lambda z: jl.entmax(z, alpha=1.25)),
    ]:
        np.testing.assert_allclose(jax.jit(fn)(z), bisected(z, alpha), rtol=0, atol=1e-6)


@pytest.mark.newest
def test_support_sizes() -> None:
    """The smaller alpha, the more classes."""
    z = jnp.linspace(1.0, -1.0, 5)
    alphas = (1, 1.25, 1.5, 2, 4)
    sizes = jax.jit(lambda z: [jnp.sum(jl.entmax(z, alpha=alpha) > 0) for alpha in alphas])(z)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 5
    # Sorted: 1 + k z_k > the sum of the first k holds for k = 2 (1 + 1 > 1.5), not 3 (1 > 1.5).
    assert np.sum(jax.jit(jl.sparsemax)(z) > 0) == 2


@pytest.mark.newest
def test_known_alphas_are_the_functions_of_their_name() -> None:
    z = rows(7, 1.0)
    for alpha, fn in ((2, jl.sparsemax), (1.5, jl.entmax), (1, jl.softmax)):
        entmax = jax.jit(functools.partial(jl.entmax, alpha=alpha))
        np.testing.assert_array_equal(entmax(z), jax.jit(fn)(z))


@pytest.mark.newest
@pytest.mark.parametrize("alpha", [2.5, 4.0])
def test_alpha_above_2(alpha: float) -> None:
    """A root near 0: an error of 2 eps in its argument is one of its root of that."""
    z = rows(7, 1.0)
    got = jax.jit(jl.entmax)(z, alpha=alpha)
    atol = 2 * (4 * EPS * (alpha - 1)) ** (1 / (alpha - 1))
    np.testing.assert_allclose(got, bisected(z, alpha), rtol=0, atol=atol)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 3.0])
def test_float64(alpha: float, x64: None) -> None:  # noqa: ARG001
    z = rows(7, 1.0).astype(np.float64)
    got = jax.jit(jl.entmax)(z, alpha=jnp.float64(alpha))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, bisected(z, alpha), rtol=0, atol=1e-14 if alpha <= 2 else 1e-7)


def test_one_alpha_for_each_row() -> None:
    z = rows(7, 1.0)[:6].reshape(2, 3, 7)
    alphas = jnp.array([1.0, 1.3, 2.0])
    of_rows = jnp.tile(alphas, [2, 1])
    got = jax.jit(jl.entmax)(z, alpha=of_rows)
    for k, alpha in enumerate(alphas):
        np.testing.assert_allclose(got[:, k], bisected(z[:, k], alpha), rtol=0, atol=1e-6)
    moved = jax.jit(functools.partial(jl.entmax, axis=1))(z.swapaxes(1, 2), alpha=of_rows)
    np.testing.assert_array_equal(moved, got.swapaxes(1, 2))


@pytest.mark.newest
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_narrow_logits(dtype: str) -> None:
    z = jnp.asarray(rows(7, 1.0), dtype)
    for fn in (jl.sparsemax, jl.entmax, functools.partial(jl.entmax, alpha=1.25)):
        got = jax.jit(fn)(z)
        assert got.dtype == z.dtype
        np.testing.assert_array_equal(got, jax.jit(fn)(z.astype(jnp.float32)).astype(dtype))
    assert jax.eval_shape(jl.entmax_loss, z, z).dtype == jnp.float32


# The losses.


@jax.jit
def three_losses(z: Any, labels: Any, one_hot: Any, dense: Any, alpha: Any) -> Any:
    return (
        jl.entmax_loss_with_integer_labels(z, labels, alpha=alpha),
        jl.entmax_loss(z, one_hot, alpha=alpha),
        jl.entmax_loss(z, dense, alpha=alpha),
    )


@pytest.mark.newest
@pytest.mark.parametrize(
    ("alpha", "num_classes"), [*((alpha, 7) for alpha in ALPHAS), (1.5, 1), (1.25, 500), (2.0, 500)]
)
def test_losses(alpha: float, num_classes: int) -> None:
    z = np.concatenate([rows(num_classes, 0.1)[:6], rows(num_classes, 3.0)[:6]])
    rng = np.random.default_rng(5)
    dense = rng.dirichlet(np.full(num_classes, 0.5), size=12)
    dense = (dense * (rng.random(dense.shape) < 0.7)).astype(np.float32) + np.float32(1e-3)
    dense /= np.sum(dense, axis=-1, keepdims=True)
    labels = rng.integers(num_classes, size=12)
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    targets = (one_hot, one_hot, dense)
    cases = list(zip(three_losses(z, labels, one_hot, dense, alpha), targets, strict=True))
    if alpha == 2:
        cases.append((jax.jit(SPARSEMAX_LOSS)(z, dense), dense))
        cases.append((jax.jit(SPARSEMAX_LOSS_OF_LABELS)(z, labels), one_hot))
    for got, truth in cases:
        want = textbook_loss(z, truth.astype(float), alpha)
        # The targets sum to 1 within K roundings, which count times the largest logit.
        atol = 1e-6 * np.maximum(1, want) + EPS * num_classes**0.5 * np.max(np.abs(z))
        assert np.all(np.abs(got - want) <= atol)
        assert np.all(got >= 0)


@pytest.mark.newest
def test_cross_entropy_at_alpha_1() -> None:
    z, labels = rows(7, 3.0), np.arange(12) % 7
    loss = functools.partial(jl.entmax_loss_with_integer_labels, alpha=1.0)
    got = jax.jit(loss)(z, labels)
    want = jax.jit(jl.softmax_cross_entropy_with_integer_labels)(z, labels)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.max(want))


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_a_margin_costs_nothing(alpha: float) -> None:
    """A label that leads by 1 / (alpha - 1) has exactly no loss and no gradient; before, it has."""
    margin = 1 / (alpha - 1)
    integer = functools.partial(jl.entmax_loss_with_integer_labels, alpha=alpha)
    loss = jax.jit(jax.value_and_grad(integer))
    for lead, costs in [(margin, False), (2 * margin, False), (0.96 * margin, True)]:
        value, gradient = loss(jnp.array([lead, 0.0, -1.0]), jnp.array(0))
        assert (value > 0) == costs
        assert np.any(gradient != 0) == costs


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0])
def test_gradient_of_losses(alpha: float) -> None:
    z, labels = rows(7, 1.0), np.arange(12) % 7
    integer = functools.partial(jl.entmax_loss_with_integer_labels, alpha=alpha)
    grad = jax.jit(jax.grad(lambda z: jnp.sum(integer(z, labels))))
    np.testing.assert_allclose(grad(z), bisected(z, alpha) - np.eye(7)[labels], atol=1e-6)
    dense = np.asarray(jax.jit(jl.softmax)(z[::-1]))
    grad = jax.jit(jax.grad(lambda z: jnp.sum(jl.entmax_loss(z, dense, alpha=alpha))))
    np.testing.assert_allclose(grad(z), bisected(z, alpha) - dense, atol=1e-6)


# Derivatives.


@functools.cache
def jacobians(fn: Any) -> Any:
    """Of each row, in both modes."""

    def both(z: Any, *args: Any) -> Any:
        return jax.jacrev(fn)(z, *args), jax.jacfwd(fn)(z, *args)

    return jax.jit(lambda z, *args: jax.vmap(lambda z: both(z, *args))(z))


@pytest.mark.optimized
@each_function
def test_jacobian(function: Function) -> None:
    """diag(s) - s s' / sum(s) with s = p**(2 - alpha) on the support."""
    z, alpha = rows(5, 1.0), function.alpha
    p = bisected(z, alpha)
    assert not np.any((p > 0) & (p < 1e-6))  # no row is at an edge, where p's rounding shows
    s = np.where(p > 0, np.maximum(p, 1e-300) ** (2 - alpha), 0)
    want = s[:, :, None] * np.eye(5) - s[:, :, None] * s[:, None] / np.sum(s, -1)[:, None, None]
    for got in jacobians(function.fn)(z, *function.args):
        np.testing.assert_allclose(got, want, rtol=0, atol=4 * function.budget)


@jax.jit
def jacobians_in_alpha(z: Any, alpha: Any) -> Any:
    def of_alpha(alpha: Any) -> Any:
        return jl.entmax(z, alpha=alpha)

    return jax.jacrev(of_alpha)(alpha), jax.jacfwd(of_alpha)(alpha)


@pytest.mark.newest
@pytest.mark.parametrize("alpha", [1.0, 1.001, 1.25, 1.5, 1.75, 2.0, 2.5])
def test_derivative_in_alpha(alpha: float) -> None:
    """Differences of the bisection, forwards at 1; their error is h**2 and 1e-15 / h."""
    z, h = rows(5, 1.0), 1e-5
    alpha = float(np.float32(alpha))
    wide = functools.partial(bisected_wide, z)
    if alpha < 1 + h:
        want = (4 * wide(alpha + h) - wide(alpha + 2 * h) - 3 * wide(alpha)) / (2 * h)
    else:
        want = (wide(alpha + h) - wide(alpha - h)) / (2 * h)
    for got in jacobians_in_alpha(z, jnp.float32(alpha)):
        # As alpha grows, s = p**(2 - alpha) multiplies what p is off by.
        np.testing.assert_allclose(got, want, rtol=0, atol=5e-6 if alpha <= 2 else 2e-4)


def bisected_wide(z: np.ndarray, alpha: float) -> np.ndarray:
    """bisected, for an alpha that isn't a float32."""
    a, z = alpha - 1, z.astype(float) - np.max(z.astype(float), axis=-1, keepdims=True)
    if a == 0:
        return bisected(z, 1.0)
    low, high = np.zeros([len(z), 1]), np.full([len(z), 1], np.log(z.shape[-1]))

    def probs(t: np.ndarray) -> np.ndarray:
        inside = 1 + a * (z - t) > 0
        return np.where(inside, np.exp(np.log1p(np.where(inside, a * (z - t), 0)) / a), 0)

    for _ in range(100):
        middle = (low + high) / 2
        above = np.sum(probs(middle), axis=-1, keepdims=True) >= 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return probs(low)


@pytest.mark.newest
def test_edge_of_the_support() -> None:
    """A class exactly at the threshold is outside: it neither moves nor pulls."""
    for fn, gap in [(jl.sparsemax, 1.0), (jl.entmax, 2.0)]:
        z = jnp.array([gap, 0.0])
        np.testing.assert_array_equal(fn(z), [1.0, 0.0])
        jacobian = jax.jit(jax.jacrev(fn))
        np.testing.assert_array_equal(jacobian(z), np.zeros([2, 2]))
        assert jacobian(z - jnp.array([0.01, 0.0]))[1, 1] > 0


def test_ties_share() -> None:
    for fn in (jl.sparsemax, jl.entmax, functools.partial(jl.entmax, alpha=jnp.float32(1.3))):
        z = jnp.array([2.0, 2.0, 2.0, -5.0])
        value, jacobian = jax.jit(lambda z, fn=fn: (fn(z), jax.jacrev(fn)(z)))(z)
        np.testing.assert_allclose(value, [1 / 3, 1 / 3, 1 / 3, 0], atol=2 * EPS)
        np.testing.assert_allclose(jacobian, np.swapaxes(jacobian, 0, 1), atol=2 * EPS)
        np.testing.assert_allclose(jacobian[0, 1], jacobian[1, 2], atol=2 * EPS)


def test_second_derivatives_of_sparsemax_are_0() -> None:
    second = jax.jit(jax.hessian(jl.sparsemax))(jnp.array([1.0, 0.5, -2.0]))
    np.testing.assert_array_equal(second, np.zeros([3, 3, 3]))


# Edges, as the rows of one array: a bad row leaves the others alone.

EDGES = {
    "-inf": ([1, 0.75, -INF], [True] * 3),
    "+inf": ([0, INF, 0], [True] * 3),
    "two +inf": ([0, INF, INF], [True] * 3),
    "NaN": ([0, NAN, 1], [True] * 3),
    "NaN and +inf": ([0, NAN, INF], [True] * 3),
    "all -inf": ([-INF] * 3, [True] * 3),
    "masked NaN": ([1, NAN, 0.75], [True, False, True]),
    "masked +inf": ([1, INF, 0.75], [True, False, True]),
    "all masked": ([NAN, INF, 0], [False] * 3),
    "one left": ([5, 9, 9], [True, False, False]),
    "lowest number": ([1, 0.75, np.finfo(np.float32).min], [True] * 3),
    "a huge gap": ([1e30, 0, -1e30], [True] * 3),
}
EDGE_ROWS = np.float32([z for z, _ in EDGES.values()])
EDGE_WHERE = np.array([where for _, where in EDGES.values()])
BAD = ["two +inf", "NaN", "NaN and +inf", "all -inf"]


@pytest.mark.parametrize("run", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
@pytest.mark.parametrize(
    ("alpha", "fn"),
    [
        (2, jl.sparsemax),
        (1.5, jl.entmax),
        (1.25, lambda z, **kw: jl.entmax(z, alpha=jnp.float32(1.25), **kw)),
    ],
    ids=["sparsemax", "entmax 1.5", "entmax"],
)
def test_edges(alpha: float, fn: Any, run: Any) -> None:
    weights = np.float32([1, 2, 4])[:, None]

    def summed(z: Any) -> Any:
        p = fn(z, where=EDGE_WHERE)
        return jnp.sum(p @ weights), p

    slopes, got = run(jax.grad(summed, has_aux=True))(EDGE_ROWS)
    two = bisected(np.array([[1, 0.75]]), alpha)[0]
    want = {
        "-inf": [two[0], two[1], 0],
        "+inf": [0, 1, 0],
        "masked NaN": [two[0], 0, two[1]],
        "masked +inf": [two[0], 0, two[1]],
        "all masked": [0, 0, 0],
        "one left": [1, 0, 0],
        "lowest number": [two[0], two[1], 0],
        "a huge gap": [1, 0, 0],
    } | dict.fromkeys(BAD, [NAN] * 3)
    for k, edge in enumerate(EDGES):
        np.testing.assert_allclose(got[k], want[edge], atol=1e-6, err_msg=edge)
        assert np.all(np.isnan(slopes[k]) if edge in BAD else np.isfinite(slopes[k])), edge
        np.testing.assert_array_equal(slopes[k][~EDGE_WHERE[k]], 0.0, err_msg=edge)


@pytest.mark.parametrize(
    ("alpha", "run"),
    [(1.0, jax.jit), (1.25, jax.jit), (1.5, jax.jit), (2.0, jax.jit), (2.0, lambda fn: fn)],
    ids=["1", "1.25", "1.5", "2", "2 eager"],
)
def test_loss_edges(alpha: float, run: Any) -> None:
    labels = np.zeros(len(EDGES), np.int32)
    one_hot = np.eye(3, dtype=np.float32)[labels]

    def both(z: Any) -> Any:
        sparse = jl.entmax_loss_with_integer_labels(z, labels, where=EDGE_WHERE, alpha=alpha)
        dense = jl.entmax_loss(z, one_hot, where=EDGE_WHERE, alpha=alpha)
        return jnp.sum(sparse) + jnp.sum(dense), (sparse, dense)

    slopes, losses = run(jax.grad(both, has_aux=True))(EDGE_ROWS)
    two = textbook_loss(np.array([[1, 0.75]]), np.array([[1.0, 0.0]]), alpha)[0]
    want = dict.fromkeys(EDGES, two) | {
        "+inf": INF,
        "all masked": 0,
        "one left": 0,
        "a huge gap": 0,
    }
    want |= dict.fromkeys(BAD, NAN)
    for k, edge in enumerate(EDGES):
        for loss in losses:
            np.testing.assert_allclose(loss[k], want[edge], rtol=1e-5, atol=1e-6, err_msg=edge)
        assert np.all(np.isnan(slopes[k]) if edge in BAD else np.isfinite(slopes[k])), edge
        np.testing.assert_array_equal(slopes[k][~EDGE_WHERE[k]], 0.0, err_msg=edge)


def test_labels_that_cost_everything() -> None:
    z = jnp.array([[1.0, 0.0, -jnp.inf], [1.0, 0.0, 2.0]])
    where = jnp.array([[True, True, True], [True, True, False]])
    labels = jnp.array([2, 2])
    loss, slope = jax.jit(
        jax.value_and_grad(lambda z: jnp.sum(SPARSEMAX_LOSS_OF_LABELS(z, labels, where=where)))
    )(z)
    assert loss == jnp.inf
    np.testing.assert_array_equal(slope, [[1, 0, -1], [1, 0, 0]])
    dense = jax.jit(jl.entmax_loss)(z, jnp.array([[0.5, 0, 0.5], [0, 1, 0]]), where=where)
    np.testing.assert_array_equal(np.isinf(dense), [True, False])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class(label: int) -> None:
    for fn in (SPARSEMAX_LOSS_OF_LABELS, jl.entmax_loss_with_integer_labels):
        value, slope = jax.jit(jax.value_and_grad(fn))(jnp.zeros([3]), jnp.array(label))
        assert np.isnan(value)
        assert np.isnan(slope).all()
        rule = r"^entmax_loss_with_integer_labels: labels must be in \[0, 3\)"
        with pytest.raises(ValueError, match=rule):
            jl.checked(jax.jit(fn))(jnp.zeros([3]), jnp.array(label))
    negative = jax.jit(jax.value_and_grad(SPARSEMAX_LOSS))(jnp.zeros([2]), jnp.array([1.5, -0.5]))
    assert np.isnan(negative[0])
    assert np.isnan(negative[1]).all()


def test_a_sole_class() -> None:
    for fn in (jl.sparsemax, jl.entmax, functools.partial(jl.entmax, alpha=jnp.float32(1.25))):
        value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda z, fn=fn: fn(z)[0])))(
            jnp.ones([2, 1])
        )
        np.testing.assert_array_equal(value, [1.0, 1.0])
        np.testing.assert_array_equal(slope, np.zeros([2, 1]))


def test_no_rows() -> None:
    empty = jnp.zeros([0, 3])
    assert jax.jit(jl.entmax)(empty).shape == (0, 3)
    assert jax.jit(SPARSEMAX_LOSS)(empty, empty).shape == (0,)


@pytest.mark.optimized
@pytest.mark.parametrize("axis", [0, (2, 0)])
def test_axes(axis: Any) -> None:
    z = np.random.default_rng(1).normal(size=[3, 4, 5]).astype(np.float32)
    axes = axis if isinstance(axis, tuple) else (axis,)
    flat = np.moveaxis(z, axes, range(-len(axes), 0))
    moved = flat.shape
    flat = flat.reshape(*flat.shape[: 3 - len(axes)], -1)
    want = np.moveaxis(np.reshape(bisected(flat, 1.5), moved), range(-len(axes), 0), axes)
    got = jax.jit(functools.partial(jl.entmax, axis=axis))(z)
    np.testing.assert_allclose(got, want, rtol=0, atol=BUDGETS["entmax 1.5"])
    loss = functools.partial(SPARSEMAX_LOSS_OF_LABELS, axis=axis)
    labels = np.zeros(flat.shape[:-1], np.int32)
    want = textbook_loss(flat, np.eye(flat.shape[-1])[labels], 2.0)
    np.testing.assert_allclose(jax.jit(loss)(z, labels), want, rtol=0, atol=1e-5)


# What must hold for any row.

LOGITS = hnp.arrays(np.float32, 6, elements=st.floats(-30, 30, width=32, allow_subnormal=False))


@jax.jit
def family(z: Any, alpha: Any) -> Any:
    loss = jl.entmax_loss_with_integer_labels(z, jnp.int32(2), alpha=alpha)
    return (
        jl.entmax(z, alpha=alpha),
        jl.entmax(z + 4.0, alpha=alpha),
        jl.entmax(z[::-1], alpha=alpha),
        loss,
    )


@pytest.mark.newest
@hypothesis.given(LOGITS, st.floats(1, 2, width=32))
def test_properties(z: np.ndarray, alpha: float) -> None:
    p, shifted, backwards, loss = map(np.asarray, family(z, np.float32(alpha)))
    assert np.all(p >= 0)
    np.testing.assert_allclose(np.sum(p), 1, rtol=0, atol=16 * EPS)
    order = np.argsort(z)
    assert np.all(np.diff(p[order]) >= 0)  # the likelier, the larger
    np.testing.assert_allclose(p, backwards[::-1], atol=1e-6)
    np.testing.assert_allclose(p, shifted, atol=4e-6)  # z + 4 is rounded
    assert loss >= 0


# Transforms.


def solved(z: Any, alpha: Any) -> Any:
    """Entmax of a row [K] of mpf: 40 halvings and Newton's method to the precision mpmath is at."""
    a, low, high = alpha - 1, -ro.mp.one, ro.mp.zero
    z = z - max(z)

    def probs(tau: Any) -> Any:
        return np.array([max(a * x - tau, ro.mp.zero) ** (1 / a) for x in z], dtype=object)

    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.sum(probs(middle)) >= 1 else (low, middle)
    for _ in range(6):  # 12 digits, and twice as many with every step
        p = probs(low)
        low += a * (np.sum(p) - 1) / np.sum([x ** (1 - a) for x in p if x > 0])
    return probs(low)


def in_mask(fn: Any) -> Any:
    """The oracle of the classes that count, with 0 for the others."""

    def masked(z: Any, where: Any, *rest: Any) -> Any:
        result = np.full(z.shape, ro.mp.zero, dtype=object)
        result[where] = fn(z[where], *rest)
        return result

    return masked


def loss_of(z: Any, y: Any, where: Any, alpha: Any) -> Any:
    z, y = z[where], y[where]
    p = solved(z, alpha)

    def omega(p: Any) -> Any:
        return np.sum([x**alpha - x for x in p]) / (alpha * (alpha - 1))

    return omega(y) + np.sum((p - y) * z) - omega(p)


Z = np.array([[1.0, -0.5, 0.25], [0.5, 1.75, -0.25]], np.float32)
WHERE = np.array([[True, True, True], [True, False, True]])
Y = np.array([[0.5, 0.25, 0.25], [0.25, 0.0, 0.75]], np.float32)
LABELS = np.array([1, 2], np.int32)
ALPHA = np.array([1.25, 1.625], np.float32)
CASES = [
    tf.Case(
        "sparsemax",
        lambda z, w: jl.sparsemax(z, where=w),
        in_mask(lambda z: solved(z, ro.mp.mpf(2))),
        (Z, WHERE),
    ),
    tf.Case(
        "entmax 1.5",
        lambda z, w: jl.entmax(z, where=w),
        in_mask(lambda z: solved(z, ro.mp.mpf(1.5))),
        (Z, WHERE),
    ),
    tf.Case(
        "entmax", lambda z, w, a: jl.entmax(z, alpha=a, where=w), in_mask(solved), (Z, WHERE, ALPHA)
    ),
    tf.Case(
        "sparsemax loss",
        lambda z, w: SPARSEMAX_LOSS(z, jnp.array([0.5, 0, 0.5]), where=w),
        lambda z, w: loss_of(z, ro.exact(np.float32([0.5, 0, 0.5])), w, ro.mp.mpf(2)),
        (Z, WHERE),
    ),
    tf.Case(
        "entmax_loss_with_integer_labels",
        lambda z, y, w, a: jl.entmax_loss_with_integer_labels(z, y, where=w, alpha=a),
        lambda z, y, w, a: loss_of(z, ro.one_hot(y, 3), w, a),
        (Z, LABELS, WHERE, ALPHA),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_transforms(case: tf.Case) -> None:
    f, exact = tf.joined(case), tf.exact(case)
    # The rules are shared: what goes through every transform with one goes so with all.
    everything = case.name == "entmax"
    groups = [(tf.values, exact.value), (tf.gradients, exact.gradient), (second, exact.hessian)]
    for group, want in groups if everything else groups[2:]:
        (results,) = tf.of_each_order(f, group)
        # 1e-6 of 1 in p, times weights up to 1.5 and at most 4 where p is raised to 1 - 2 a.
        atol = 6e-6 * max(1.0, np.max(np.abs(want)))
        for transform, got in results.items():
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)
    if everything:
        for name, got in tf.exported(case).items():
            np.testing.assert_allclose(got, exact.value, rtol=0, atol=1e-6, err_msg=name)


def second(f: tf.Joined) -> tf.Results:
    return {
        "forward over reverse": jax.hessian(f.number)(f.point),
        "reverse over reverse": jax.jacrev(jax.jacrev(f.number))(f.point),
    }


@pytest.mark.newest
def test_loss_in_everything() -> None:
    """The gradient in dense targets and alpha, to second order, against differences in float64."""
    with jax.enable_x64(True):
        z, y, alpha = (np.asarray(x, np.float64) for x in (Z[0], Y[0], 1.375))

        def loss(x: Any) -> Any:
            return jl.entmax_loss(x[:3], x[3:6], alpha=x[6])

        point, h = np.concatenate([z, y, [alpha]]), 1e-5
        # Every direction that keeps the targets' sum.
        basis = np.delete(np.eye(7), 5, axis=0)
        basis[3:5, 5] = -1
        value, grad = jax.jit(loss), jax.jit(jax.grad(loss))
        gradient, hessian = grad(point), jax.jit(jax.hessian(loss))(point)
        for e in basis:
            difference = (value(point + h * e) - value(point - h * e)) / (2 * h)
            np.testing.assert_allclose(gradient @ e, difference, atol=1e-8)
            difference = (grad(point + h * e) - grad(point - h * e)) / (2 * h)
            np.testing.assert_allclose(basis @ hessian @ e, basis @ difference, atol=1e-7)


# What is refused.


def test_refused() -> None:
    x = jnp.zeros([2, 3])
    for fn in (jl.sparsemax, jl.entmax, functools.partial(jl.entmax, alpha=1.5)):
        with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[2,3\]$"):
            fn(x.astype(jnp.int32))
        with pytest.raises(ValueError, match=r"^logits must have at least one class"):
            fn(x[:, :0])
    with pytest.raises(ValueError, match=r"^alpha must be at least 1"):
        jl.entmax(x, alpha=0.5)
    with pytest.raises(
        ValueError, match=r"^alpha must broadcast to \[2\], got float32\[3\]: a scalar"
    ):
        jl.entmax(x, alpha=jnp.ones([3]))
    assert np.isnan(jax.jit(jl.entmax)(x, alpha=0.5)).all()
    assert np.isnan(jl.entmax(x, alpha=jnp.array([0.5, 1.5]))[0]).all()
    with pytest.raises(ValueError, match=r"^entmax: alpha must be at least 1, got 0.5 in row 0$"):
        jl.checked(jl.entmax)(x, alpha=jnp.array([0.5, 1.5]))
    with pytest.raises(TypeError, match=r"^labels must be integers, got float32\[2\]$"):
        SPARSEMAX_LOSS_OF_LABELS(x, jnp.zeros([2]))
    with pytest.raises(ValueError, match=r"^labels must have the shape of logits, \[2,3\]"):
        SPARSEMAX_LOSS(x, jnp.zeros([2]))
    with pytest.raises(ValueError, match=r"^alpha must be at least 1"):
        jl.entmax_loss(x, x, alpha=0.0)


# The package of the authors, where it is installed.


@pytest.mark.newest
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_entmax_package(scale: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        peer = pytest.importorskip("entmax")
    z, labels = rows(50, scale), np.arange(12) * 4
    x, y = torch.tensor(z.tolist()).double(), torch.tensor(labels.tolist())
    pairs = [
        (jl.sparsemax(z), peer.sparsemax(x)),
        (jl.entmax(z), peer.entmax15(x)),
        *((jl.entmax(z, alpha=a), peer.entmax_bisect(x, a, n_iter=100)) for a in (1.25, 1.5, 1.9)),
        (SPARSEMAX_LOSS_OF_LABELS(z, labels), peer.sparsemax_loss(x, y)),
        (jl.entmax_loss_with_integer_labels(z, labels), peer.entmax15_loss(x, y)),
        (
            jl.entmax_loss_with_integer_labels(z, labels, alpha=1.25),
            peer.entmax_bisect_loss(x, y, 1.25, 100),
        ),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, np.array(theirs.tolist()), rtol=1e-6, atol=1e-6)

    alpha = torch.tensor(1.375, dtype=torch.float64, requires_grad=True)
    weights = np.linspace(0, 1, 50, dtype=np.float32)
    weighted = peer.entmax_bisect(x, alpha, n_iter=100) @ torch.tensor(weights.tolist()).double()
    weighted.sum().backward()
    ours = jax.grad(lambda a: jnp.sum(jl.entmax(z, alpha=a) * weights[None]))(jnp.float32(1.375))
    np.testing.assert_allclose(ours, float(alpha.grad), rtol=1e-4, atol=1e-5)
