"""Cross entropy, focal and poly loss, with every option, against mpmath."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import row_oracles as ro
from accuracy import allowed

import jaxlogits as jl

cross_entropy = jl.softmax_cross_entropy_with_integer_labels
focal = jl.softmax_focal_loss_with_integer_labels
WEIGHTS = np.array([0.5, 2.0, 1.25], np.float32)
ARE = {"class_weights": WEIGHTS}

# Every row with every label.
LOGITS = np.repeat(ro.GAP_ROWS, 3, axis=0)
LABELS = np.tile(np.arange(3, dtype=np.int32), len(ro.GAP_ROWS))
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
# Soft targets that differ from row to row and don't sum to 1: eighths, whose sums are exact.
SOFT = np.random.default_rng(0).integers(0, 9, LOGITS.shape).astype(np.float32) / 8


class Loss(NamedTuple):
    """A loss with its options, and the number of which its gradient's budget is ulp if larger."""

    name: str
    fn: Callable[..., Any]
    oracle: Callable[..., Any]
    labels: np.ndarray
    options: dict[str, Any] = {}  # noqa: RUF012
    # Hard labels have gradients whose terms don't cancel. Of soft ones and of options, terms of
    # both signs are added up, and errors are those of the terms, which are about 1.
    floor: float = 1.0


def integer(name: str, **options: Any) -> Loss:
    return Loss(
        name, cross_entropy, ro.integer_cross_entropy, LABELS, options, floor=float(bool(options))
    )


def focal_loss(gamma: float) -> Loss:
    return Loss(f"focal, gamma = {gamma}", focal, ro.focal, LABELS, {"gamma": gamma}, 0.0)


def dense(name: str, labels: np.ndarray, **options: Any) -> Loss:
    return Loss(name, jl.softmax_cross_entropy, ro.cross_entropy, labels, options)


def poly(name: str, labels: np.ndarray, epsilon: float) -> Loss:
    return Loss(name, jl.poly_loss_cross_entropy, ro.poly, labels, {"epsilon": epsilon})


EVERY_OPTION = {"label_smoothing": 0.125, "class_weights": WEIGHTS, "z_loss": 0.25}
LOSSES = [
    integer("integer"),
    integer("integer, label_smoothing", label_smoothing=0.125),
    integer("integer, class_weights", class_weights=WEIGHTS),
    integer("integer, z_loss", z_loss=0.25),
    integer("integer, every option", **EVERY_OPTION),
    dense("one-hot", ONE_HOT)._replace(floor=0.0),
    dense("soft", SOFT),
    dense("soft, every option", SOFT, **EVERY_OPTION),
    focal_loss(0.0),
    focal_loss(1.0),
    focal_loss(2.0),
    focal_loss(0.5),
    poly("poly", ONE_HOT, 2.0)._replace(floor=0.0),
    poly("poly, soft", SOFT, 0.5),
]
each_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)


@pytest.mark.newest
@each_loss
def test_value_and_derivatives_at_every_gap(loss: Loss) -> None:
    def fn(z: jax.Array, label: jax.Array) -> jax.Array:
        return loss.fn(z, label, **loss.options)

    budget, slope_budget = (allowed(loss.fn.__name__, "float32", order) for order in range(2))
    everything = jax.vmap(lambda *args: (fn(*args), jax.grad(fn)(*args), jax.hessian(fn)(*args)))
    value, gradient, hessian = map(np.asarray, jax.jit(everything)(LOGITS, loss.labels))
    options = {name: ro.exact(option) for name, option in loss.options.items()}
    for n, (z, label) in enumerate(zip(LOGITS, map(ro.exact, loss.labels), strict=True)):
        of_logits = lambda z, label=label: loss.oracle(z, label, **options)  # noqa: E731
        assert ro.ulps(value[n], of_logits(ro.exact(z))) <= budget
        assert ro.ulps(gradient[n], ro.gradient(of_logits, z), loss.floor) <= slope_budget
        want = ro.hessian(of_logits, z)
        # Two orders, each within the budget, of the largest entry.
        assert ro.ulps(hessian[n], want, float(np.max(np.abs(want)))) <= 2 * slope_budget


@pytest.mark.parametrize("gap", [87.0, 86.5, 50.0, 17.0, 15.0])
def test_a_small_loss_and_its_gradient_keep_every_digit(gap: float) -> None:
    """Where other libraries return 0 from a gap of 17 on; 87 is where float32 ends."""
    z = np.float32([gap, 0, 0])
    for fn, label in ((cross_entropy, np.int32(0)), (jl.softmax_cross_entropy, z / gap)):
        loss, gradient = jax.jit(jax.value_and_grad(fn))(z, label)
        assert ro.ulps(loss, ro.integer_cross_entropy(ro.exact(z), 0)) <= 5
        assert ro.ulps(gradient, ro.gradient(lambda z: ro.integer_cross_entropy(z, 0), z)) <= 5


@pytest.mark.parametrize("num_classes", [1, 2, 10, 64, 1000])
def test_any_number_of_classes(num_classes: int) -> None:
    z = ro.random_rows(8, num_classes)
    labels = np.arange(8, dtype=np.int32) * 17 % num_classes
    one_hot = np.eye(num_classes, dtype=np.float32)[labels]
    want = ro.of_rows(ro.integer_cross_entropy, z, labels)
    assert ro.ulps(jax.jit(cross_entropy)(z, labels), want) <= 5
    assert ro.ulps(jax.jit(jl.softmax_cross_entropy)(z, one_hot), want) <= 5
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(cross_entropy(z, labels))))(z)
    assert ro.ulps(gradient, ro.of_rows(ro.softmax, z) - ro.exact(one_hot), 2**-24) <= 5


@pytest.mark.parametrize("loss", [LOSSES[4], LOSSES[7]], ids=lambda loss: loss.name)
def test_third_derivative_along_a_direction(loss: Loss) -> None:
    z, v = np.float32([1, 0, -1.5]), np.float32([1, -0.5, 2])
    label = ro.exact(loss.labels[1])

    def derivative(f: Callable[..., Any]) -> Callable[..., Any]:
        return lambda t: jax.jvp(f, [t], [jnp.ones_like(t)])[1]

    third = lambda t: loss.fn(z + t * v, loss.labels[1], **loss.options)  # noqa: E731
    for _ in range(3):
        third = derivative(third)
    options = {name: ro.exact(option) for name, option in loss.options.items()}
    want = ro.along(lambda z: loss.oracle(z, label, **options), z, v, 3)
    # Terms of up to 2**3; three orders within the budget.
    assert ro.ulps(jnp.ravel(jax.jit(third)(jnp.float32(0))), want, 8.0) <= 3 * allowed(
        loss.fn.__name__, "float32", 1
    )


def test_float64(x64: None) -> None:  # noqa: ARG001
    z = np.concatenate([LOGITS, [[200.0, 0, 0], [0, 200, 199]]])
    labels = np.append(LABELS, [0, 2]).astype(np.int32)
    loss, gradient = jax.jit(jax.vmap(jax.value_and_grad(cross_entropy)))(z, labels)
    assert loss.dtype == gradient.dtype == jnp.float64
    assert ro.ulps(loss, ro.of_rows(ro.integer_cross_entropy, z, labels)) <= 5
    want = [
        ro.gradient(lambda z, label=label: ro.integer_cross_entropy(z, label), row)
        for row, label in zip(z, labels, strict=True)
    ]
    assert ro.ulps(gradient, want) <= 5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_computed_in_float32(dtype: str) -> None:
    """The loss isn't rounded at all, its gradient once."""
    z = jnp.asarray(ro.random_rows(8, 64), dtype)
    labels = jnp.arange(8)
    for fn, label in (
        (cross_entropy, labels),
        (jl.softmax_cross_entropy, jax.nn.one_hot(labels, 64)),
    ):
        both = jax.jit(jax.vmap(jax.value_and_grad(fn)))
        loss, gradient = both(z, label)
        wide_loss, wide_gradient = both(z.astype(jnp.float32), label)
        np.testing.assert_array_equal(loss, wide_loss)
        assert gradient.dtype == z.dtype
        assert ro.ulps(gradient, ro.exact(wide_gradient)) <= 0.501


# Options that are switched off or on.


def test_options_that_change_nothing() -> None:
    plain = cross_entropy(LOGITS, LABELS)
    for options in (
        {"label_smoothing": 0, "z_loss": 0},
        {"label_smoothing": jnp.float32(0), "z_loss": jnp.float32(0)},
        {"class_weights": jnp.ones([3])},
        {"where": jnp.array(True)},
    ):
        loss = jax.jit(functools.partial(cross_entropy, **options))
        np.testing.assert_allclose(loss(LOGITS, LABELS), plain, rtol=2**-21)


def test_integer_and_dense_labels_agree() -> None:
    want = cross_entropy(LOGITS, LABELS, **EVERY_OPTION)
    got = jl.softmax_cross_entropy(LOGITS, ONE_HOT, **EVERY_OPTION)
    np.testing.assert_array_equal(got, want)
    for labels in (LABELS.astype(np.uint8), LABELS.astype(np.int16)):
        np.testing.assert_array_equal(cross_entropy(LOGITS, labels, **EVERY_OPTION), want)
    for labels in (ONE_HOT.astype(np.int32), ONE_HOT.astype(bool), jnp.bfloat16(ONE_HOT)):
        got = jl.softmax_cross_entropy(LOGITS, labels, **EVERY_OPTION)
        np.testing.assert_array_equal(got, want)


def test_where_leaves_the_loss_of_the_other_classes() -> None:
    """Smoothing spreads over the classes that are left, too."""
    z, t = ro.random_rows(20, 10), np.full([20, 10], 0.125, np.float32)
    where = np.arange(10) % 3 != 0
    for fn, labels, some_labels in (
        (cross_entropy, np.full(20, 4), np.full(20, 2)),  # class 4 is the third one left
        (jl.softmax_cross_entropy, np.where(where, t, 0), t[:, where]),
    ):
        weights = np.arange(1, 11, dtype=np.float32) / 4
        options = {"label_smoothing": 0.25, "z_loss": 0.5}
        loss = jax.jit(functools.partial(fn, **options))
        got = loss(z, labels, where=where, class_weights=weights)
        want = loss(z[:, where], some_labels, class_weights=weights[where])
        np.testing.assert_allclose(got, want, rtol=2**-20)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((12, 5), 0), ((5, 4, 3), (1, -1)), ((3, 5, 4), (0, 2)), ((4, 5, 3), (2, 0))],
)
def test_any_axes_hold_the_classes_in_their_order(shape: tuple[int, ...], axis: Any) -> None:
    z = ro.random_rows(shape[0], np.prod(shape[1:])).reshape(shape)
    axes = axis if isinstance(axis, tuple) else (axis,)
    last = tuple(range(-len(axes), 0))
    moved = np.moveaxis(z, axes, last)
    rows, labels = moved.reshape(5, 12), np.array([0, 11, 5, 3, 7])
    one_hot = np.eye(12, dtype=np.float32)[labels]
    dense = np.moveaxis(one_hot.reshape(moved.shape), last, axes)
    for fn in (cross_entropy, focal):
        along = jax.jit(functools.partial(fn, axis=axis))
        np.testing.assert_array_equal(along(z, labels), jax.jit(fn)(rows, labels))
    for fn in (jl.softmax_cross_entropy, jl.poly_loss_cross_entropy):
        along = jax.jit(functools.partial(fn, axis=axis))
        np.testing.assert_array_equal(along(z, dense), jax.jit(fn)(rows, one_hot))


@pytest.mark.newest
@hypothesis.settings(max_examples=20)
@hypothesis.given(
    z=hnp.arrays(np.float32, (4, 6), elements=st.floats(-8, 8, width=32)),
    labels=hnp.arrays(np.int32, 4, elements=st.integers(0, 5)),
)
def test_the_same_as_optax_where_both_are_right(z: np.ndarray, labels: np.ndarray) -> None:
    want = optax.softmax_cross_entropy_with_integer_labels(jnp.array(z), jnp.array(labels))
    # optax subtracts numbers of up to 16.
    np.testing.assert_allclose(cross_entropy(z, labels), want, rtol=2**-20, atol=2**-19)
