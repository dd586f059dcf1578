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
from interpret import interpreted

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


@pytest.mark.optimized
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


@pytest.mark.optimized
@pytest.mark.parametrize("gap", [87.0, 86.5, 50.0, 17.0, 15.0])
def test_a_small_loss_and_its_gradient_keep_every_digit(gap: float) -> None:
    """Where other libraries return 0 from a gap of 17 on; 87 is where float32 ends."""
    z = np.float32([gap, 0, 0])
    for fn, label in ((cross_entropy, np.int32(0)), (jl.softmax_cross_entropy, z / gap)):
        loss, gradient = jax.jit(jax.value_and_grad(fn))(z, label)
        assert ro.ulps(loss, ro.integer_cross_entropy(ro.exact(z), 0)) <= 5
        assert ro.ulps(gradient, ro.gradient(lambda z: ro.integer_cross_entropy(z, 0), z)) <= 5


@pytest.mark.optimized
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


@pytest.mark.optimized
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


@pytest.mark.optimized
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


@pytest.mark.optimized
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
    # Two compiled programs: fusing a product into a sum changes its rounding.
    np.testing.assert_allclose(got, want, rtol=2**-22)
    for labels in (LABELS.astype(np.uint8), LABELS.astype(np.int16)):
        np.testing.assert_array_equal(cross_entropy(LOGITS, labels, **EVERY_OPTION), want)
    for labels in (ONE_HOT.astype(np.int32), ONE_HOT.astype(bool), jnp.bfloat16(ONE_HOT)):
        got = jl.softmax_cross_entropy(LOGITS, labels, **EVERY_OPTION)
        np.testing.assert_allclose(got, want, rtol=2**-22)


def test_where_leaves_the_loss_of_the_other_classes() -> None:
    """Smoothing spreads over the classes that are left, too."""
    z, t = ro.random_rows(20, 10), np.full([20, 10], 0.125, np.float32)
    where = np.arange(10) % 3 != 0
    masked = where[None, :]
    for fn, labels, some_labels in (
        (cross_entropy, np.full(20, 4), np.full(20, 2)),  # class 4 is the third one left
        (jl.softmax_cross_entropy, t, t[:, where]),  # what a target says of the others, too
    ):
        weights = np.arange(1, 11, dtype=np.float32) / 4
        options = {"label_smoothing": 0.25, "z_loss": 0.5}
        loss = jax.jit(functools.partial(fn, **options))
        got = loss(z, labels, where=masked, class_weights=weights)
        want = loss(z[:, where], some_labels, class_weights=weights[where])
        np.testing.assert_allclose(got, want, rtol=2**-20)


def test_what_a_target_says_of_a_masked_class_is_left_out() -> None:
    z, t = ro.random_rows(5, 6), np.abs(ro.random_rows(5, 6)) / 4
    where = np.arange(6) % 3 != 0
    t[:, 0] = [np.nan, -1, np.inf, 2, 0]
    for fn in (
        jl.softmax_cross_entropy,
        jl.poly_loss_cross_entropy,
        functools.partial(jl.entmax_loss, alpha=1.25),
    ):
        both = interpreted(jax.vmap(jax.value_and_grad(fn)))
        masked = functools.partial(fn, where=where)
        got = jax.jit(jax.vmap(jax.value_and_grad(masked)))(z, t)
        want = both(z[:, where], t[:, where])
        np.testing.assert_allclose(got[0], want[0], rtol=2**-20, atol=2**-20)
        np.testing.assert_allclose(got[1][:, where], want[1], rtol=2**-20, atol=2**-22)
        assert not got[1][:, ~where].any()


@pytest.mark.optimized
def test_dense_targets_and_class_weights_are_weights() -> None:
    """The loss is linear in them, below 0 too; a rounding error of -1e-9 costs what it says."""
    z = LOGITS[:6]
    a, b = np.float32([1, -1e-9, 0]), np.float32([-0.5, 0.25, 2])
    for fn, oracle in (
        (jl.softmax_cross_entropy, ro.cross_entropy),
        (jl.poly_loss_cross_entropy, lambda z, t: ro.poly(z, t, epsilon=2)),
        (
            lambda z, w: cross_entropy(z, 1, class_weights=w),
            lambda z, w: w[1] * ro.integer_cross_entropy(z, 1),
        ),
    ):
        both = jax.jit(jax.vmap(jax.value_and_grad(fn), (0, None)))
        for weights in (a, b):
            value, gradient = both(z, weights)
            exact = [oracle(ro.exact(row), ro.exact(weights)) for row in z]
            # Terms of both signs: of the largest, which has a weight of at most 2.
            assert ro.ulps(value, exact, 2.0 * float(np.max(np.abs(z)))) <= 5
            of_logits = lambda z, f=oracle, w=weights: f(z, ro.exact(w))  # noqa: E731
            slopes = [ro.gradient(of_logits, row) for row in z]
            assert ro.ulps(gradient, slopes, 4.0) <= 5
    assert jl.softmax_cross_entropy(jnp.array([0.0, -jnp.inf]), jnp.array([1.0, -1.0])) == -np.inf
    with pytest.raises(ValueError, match="labels must be at least 0"):
        jl.checked(jl.softmax_cross_entropy)(z[0], b)
    with pytest.raises(ValueError, match="class_weights must be at least 0"):
        jl.checked(cross_entropy)(z[0], 1, class_weights=b)


def test_a_gap_may_overflow_where_the_loss_does_not() -> None:
    """Two logits at the ends of float32 are 6e38 apart."""
    z = np.float32([3e38, -3e38, 0])
    half, quarter = np.float32([0.5, 0.5, 0]), np.float32([0.25, 0.25, 0.5])
    losses = {
        "dense": (jl.softmax_cross_entropy(z, half), 3e38),
        "poly": (jl.poly_loss_cross_entropy(z, half), 3e38),
        "smoothed": (cross_entropy(z, 0, label_smoothing=0.25), 0.25 / 3 * 9e38),
        "weighted": (cross_entropy(z, 1, class_weights=np.float32([1, 0.25, 1])), 1.5e38),
        "z_loss": (cross_entropy(np.float32([1e30, 0]), 0, z_loss=1e-30), 1e30),
        "entmax, 1": (jl.entmax_loss(z, quarter, alpha=1), 3e38),
        "entmax, 1.5": (jl.entmax_loss(z, half), 3e38),
        "sparsemax": (jl.entmax_loss(z, half, alpha=2), 3e38),
        "not even far": (jl.entmax_loss(np.float32([2e38, 0]), np.float32([0, 1]), alpha=2), 2e38),
    }
    for name, (got, want) in losses.items():
        np.testing.assert_allclose(got, want, rtol=2**-20, err_msg=name)
    gradient = jax.jit(jax.grad(jl.softmax_cross_entropy))(z, half)
    np.testing.assert_array_equal(gradient, [0.5, -0.5, 0])


@pytest.mark.optimized
def test_gradient_of_z_loss_at_a_large_gap() -> None:
    """p * weight alone is below the smallest number."""
    z = np.float32([86, 0])
    got = jax.jit(jax.grad(functools.partial(cross_entropy, z_loss=0.25)))(z, 0)
    want = ro.gradient(lambda z: ro.integer_cross_entropy(z, 0, z_loss=ro.mp.mpf(0.25)), z)
    assert ro.ulps(got, want) <= 5


@pytest.mark.parametrize("num_classes", [2, 16, 17, 300])
def test_half_precision_logits_are_rounded_once(num_classes: int) -> None:
    """Under jit, where XLA would fuse what makes the logits into each of their readers."""
    rng = np.random.default_rng(num_classes)
    hidden, kernel, bias = (
        jnp.asarray(scale * rng.normal(size=shape), jnp.bfloat16)
        for shape, scale in (([16, 8], 1), ([8, num_classes], 3), ([1, num_classes], 20))
    )
    logits = hidden @ kernel + bias
    labels, targets = jnp.argmin(logits, -1), jl.softmax(jnp.flip(logits, 0).astype(jnp.float32))
    losses = {
        "integer": lambda z: cross_entropy(z, labels),
        "every option": lambda z: cross_entropy(
            z, labels, label_smoothing=0.125, z_loss=0.25, class_weights=jnp.ones(num_classes)
        ),
        "dense": lambda z: jl.softmax_cross_entropy(z, targets),
        "focal": lambda z: focal(z, labels),
        "poly": lambda z: jl.poly_loss_cross_entropy(z, targets),
        "entmax": lambda z: jl.entmax_loss(z, targets),
        "binary": lambda z: jl.sigmoid_binary_cross_entropy(z, targets),
    }
    fused = jax.jit(lambda h, k, b: [loss(h @ k + b) for loss in losses.values()])
    apart = interpreted(lambda z: [loss(z) for loss in losses.values()])
    for name, got, want in zip(
        losses, fused(hidden, kernel, bias), apart(logits.astype(jnp.float32)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=2**-20, atol=2**-20, err_msg=name)
    sums = jax.jit(
        lambda h, k, b: [
            jnp.sum(jax.grad(lambda z, loss=loss: jnp.sum(loss(z)))(h @ k + b), -1, jnp.float32)
            for name, loss in losses.items()
            if name not in ("every option", "binary")
        ]
    )(hidden, kernel, bias)
    # Each entry is rounded to 8 bits; their sizes add up to 2, of poly to at most 6.
    assert np.max(np.abs(sums)) <= 6 * 2**-8


def test_the_number_of_classes_may_be_a_symbol() -> None:
    rows, classes = jax.export.symbolic_shape("n, k")
    z = jax.ShapeDtypeStruct([rows, classes], jnp.float32)
    labels = jax.ShapeDtypeStruct([rows], jnp.int32)
    options = {"label_smoothing": 0.125, "z_loss": 0.25}

    def losses(z: Any, labels: Any, targets: Any) -> Any:
        return (
            cross_entropy(z, labels),
            cross_entropy(z, labels, where=z > -1, **options),
            focal(z, labels),
            jl.softmax_cross_entropy(z, targets),
            jl.poly_loss_cross_entropy(z, targets),
            jl.entmax_loss(z, targets),
            jl.entmax_loss_with_integer_labels(z, labels, alpha=1.25),
            jl.sparsemax(z),
        )

    def with_gradient(*args: Any) -> Any:
        return losses(*args), jax.grad(lambda *args: sum(map(jnp.sum, losses(*args))))(*args)

    exported = jax.export.export(jax.jit(with_gradient))(z, labels, z)
    for num_classes in (3, 40):
        logits = ro.random_rows(4, num_classes)
        args = logits, np.arange(4, dtype=np.int32) % 3, np.asarray(jl.softmax(logits[::-1]))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=2**-18, atol=2**-18),
            exported.call(*args),
            interpreted(with_gradient)(*args),
        )


def test_labels_may_be_a_list() -> None:
    z = jnp.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]])
    fn = jl.softmax_cross_entropy_with_integer_labels
    np.testing.assert_array_equal(fn(z, [2, 0]), fn(z, jnp.array([2, 0])))  # type: ignore[arg-type]


def test_labels_of_the_other_kind_name_the_other_function() -> None:
    z, one_hot, labels = jnp.zeros([2, 3]), jnp.eye(3)[:2], jnp.array([0, 1])
    pairs = {
        "softmax_cross_entropy": "softmax_cross_entropy_with_integer_labels",
        "entmax_loss": "entmax_loss_with_integer_labels",
    }
    for dense, sparse in pairs.items():
        message = rf"got int32\[2\]; {sparse} takes class indices$"
        with pytest.raises(ValueError, match=message):
            getattr(jl, dense)(z, labels)
        for targets, error in ((one_hot, TypeError), (one_hot.astype(jnp.int32), ValueError)):
            with pytest.raises(error, match=rf"\[2,3\]; {dense} takes a target for each class$"):
                getattr(jl, sparse)(z, targets)


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


# Smoothing for each row, and the focal loss with options.


@pytest.mark.parametrize("loss", [cross_entropy, focal], ids=["cross entropy", "focal"])
def test_label_smoothing_of_each_row(loss: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=[3, 5]).astype(np.float32), np.array([0, 4, 2])
    eps, weights = np.float32([0.0, 0.125, 0.25]), np.float32([0.5, 1, 2, 1, 0])

    def total(z: Any, eps: Any) -> Any:
        return loss(z, y, label_smoothing=eps, class_weights=weights).sum()

    got = loss(z, y, label_smoothing=eps, class_weights=weights)
    slopes = jax.jit(jax.grad(total, (0, 1)))(z, eps)
    for i, value in enumerate(eps.tolist()):
        alone = loss(z[i], y[i], label_smoothing=value, class_weights=weights)
        np.testing.assert_allclose(got[i], alone, rtol=2**-21)
        want = jax.grad(
            lambda z, e, i=i: loss(z, y[i], label_smoothing=e, class_weights=weights), (0, 1)
        )(z[i], jnp.float32(value))
        for slope, one in zip(slopes, want, strict=True):
            np.testing.assert_allclose(slope[i], one, rtol=2**-19, atol=2**-20)


def test_focal_loss_with_options_is_the_sum_over_classes() -> None:
    rng = np.random.default_rng(1)
    z, y = (3 * rng.normal(size=[6, 5])).astype(np.float32), rng.integers(5, size=6)
    weights = np.float32([0.5, 1, 2, 1, 0])
    options = {"label_smoothing": 0.125, "class_weights": weights, "gamma": 1.5}

    def exact(z: Any) -> Any:
        log_p = jax.nn.log_softmax(z, axis=-1)
        targets = (0.875 * jax.nn.one_hot(y, 5) + 0.025) * weights.astype(float)[None]
        return jnp.sum(targets * (1 - jnp.exp(log_p)) ** 1.5 * -log_p, axis=-1)

    with jax.enable_x64(True):
        wide = jnp.asarray(z, jnp.float64)
        want = exact(wide), jax.grad(lambda z: exact(z).sum())(wide)
    got = focal(z, y, **options), jax.grad(lambda z: focal(z, y, **options).sum())(z)
    for one, other in zip(got, want, strict=True):
        # Sums of five terms of at most 10, in float32.
        np.testing.assert_allclose(one, other, rtol=2**-20, atol=2**-19)
    # Without a share a class that can't be costs nothing; with one, infinity.
    z[0, (y[0] + 1) % 5] = -np.inf
    assert np.isfinite(focal(z, y, class_weights=np.ones(5))[0])
    assert focal(z, y, label_smoothing=0.125)[0] == np.inf
    where = np.arange(5) != (y[0] + 1) % 5
    assert np.isfinite(focal(z, y, label_smoothing=0.125, where=where[None])[0])
    rows = np.arange(6) != 2
    assert focal(z, y, label_smoothing=0.125, where=rows)[2] == 0
    assert np.isnan(focal(z, y + 5 * (np.arange(6) == 1), **options)[1])


def test_the_hessian_changes_with_each_target() -> None:
    """The Hessian is sum(c) (diag(p) - p p^T), though the sums of the loss count as constants."""
    z, targets = np.float32([1.0, -0.5, 2.0]), np.float32([0.5, 0.25, 0.75])
    slope = jax.jit(jax.jacrev(jax.hessian(jl.softmax_cross_entropy), 1))(z, targets)
    p = np.exp(z) / np.exp(z).sum()
    want = np.broadcast_to((np.diag(p) - np.outer(p, p))[:, :, None], (3, 3, 3))
    np.testing.assert_allclose(slope, want, rtol=0, atol=4e-7)
