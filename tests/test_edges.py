"""What every edge case returns: value and gradient, eager and under jit, in every dtype.

The cases of one function go through it together, as the rows of one array, so that each of them
also shows that a bad row leaves the others alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlogits as jl

INF, NAN, LOG2 = np.inf, np.nan, np.log(2.0)
NANS = [NAN, NAN, NAN]
ALL, NONE = [True, True, True], [False, False, False]
DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.fixture(params=[*DTYPES, "float32 eager"])
def mode(request: pytest.FixtureRequest) -> Any:
    """A dtype and how to run a function; float64 has x64 on."""
    name, *eager = request.param.split()
    with jax.enable_x64(name == "float64"):
        yield jnp.dtype(name), (lambda fn: fn) if eager else jax.jit


def value_and_gradients(mode: Any, fn: Callable[..., Any], x: Any) -> tuple[Any, Any]:
    """fn(x) and, for each number of a row's result, its gradient, as float64."""
    dtype, run = mode
    x = jnp.asarray(np.asarray(x), dtype)

    def both(x: Any) -> tuple[Any, Any]:
        value, pullback = jax.vjp(fn, x)
        basis = np.eye(3) if value.ndim == x.ndim == 2 else np.ones([1, 1])
        rows = [
            np.broadcast_to(e, value.shape) if value.ndim == 2 else np.ones(value.shape)
            for e in basis
        ]
        return value, jnp.stack([pullback(jnp.asarray(row, value.dtype))[0] for row in rows])

    value, gradients = run(both)(x)
    assert gradients.dtype == dtype
    return np.asarray(value, np.float64), np.asarray(gradients, np.float64)


def assert_same(mode: Any, got: Any, want: Any, names: list[str]) -> None:
    """Equal NaN and infinities; numbers within 4 ulp of the dtype, as far as they are below 4."""
    tolerance = 16 * float(jnp.finfo(mode[0]).eps)
    for name, one, other in zip(names, got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance, err_msg=name)


# Losses of one class among many.


class Loss(NamedTuple):
    name: str
    logits: list[float]
    where: list[bool]
    label: int
    loss: float
    gradient: list[float]


LOSSES = [
    Loss("plain", [0, 0, -INF], ALL, 0, LOG2, [-0.5, 0.5, 0]),
    Loss("+inf at the label", [INF, 0, 0], ALL, 0, 0, [0, 0, 0]),
    Loss("+inf elsewhere", [0, INF, 0], ALL, 0, INF, [-1, 1, 0]),
    Loss("+inf elsewhere, -inf at the label", [-INF, INF, 0], ALL, 0, INF, [-1, 1, 0]),
    Loss("two +inf, one at the label", [INF, INF, 0], ALL, 0, NAN, NANS),
    Loss("two +inf elsewhere", [0, INF, INF], ALL, 0, NAN, NANS),
    Loss("NaN at the label", [NAN, 0, 0], ALL, 0, NAN, NANS),
    Loss("NaN elsewhere", [0, NAN, 0], ALL, 0, NAN, NANS),
    Loss("NaN and +inf", [INF, NAN, 0], ALL, 0, NAN, NANS),
    Loss("-inf at the label", [-INF, 0, 0], ALL, 0, INF, [-1, 0.5, 0.5]),
    Loss("-inf elsewhere", [0, -INF, -INF], ALL, 0, 0, [0, 0, 0]),
    Loss("a row of -inf", [-INF, -INF, -INF], ALL, 0, NAN, NANS),
    Loss("a masked row", [1, 2, 3], NONE, 0, 0, [0, 0, 0]),
    Loss("a masked row of NaN", NANS, NONE, 0, 0, [0, 0, 0]),
    Loss("a masked row of +inf", [INF, INF, INF], NONE, 0, 0, [0, 0, 0]),
    Loss("masked NaN", [0, NAN, 0], [True, False, True], 0, LOG2, [-0.5, 0, 0.5]),
    Loss("masked +inf", [0, INF, 0], [True, False, True], 0, LOG2, [-0.5, 0, 0.5]),
    Loss("masked -inf", [0, -INF, 0], [True, False, True], 0, LOG2, [-0.5, 0, 0.5]),
    Loss("the label is masked", [9, 0, 0], [False, True, True], 0, INF, [0, 0.5, 0.5]),
    Loss("the label is masked NaN", [NAN, 0, 0], [False, True, True], 0, INF, [0, 0.5, 0.5]),
    Loss("-inf is all that is left", [0, -INF, -INF], [False, True, True], 1, NAN, [0, NAN, NAN]),
    Loss("a single class is left", [0, 5, 9], [False, True, False], 1, 0, [0, 0, 0]),
]
# A label that is left out costs everything, a dense target that is left out nothing.
LEFT_OUT = [
    case._replace(loss=0, gradient=[0, 0, 0]) if case.name.startswith("the label is mask") else case
    for case in LOSSES
]
OUT_OF_RANGE = [
    Loss("label K", [0, 0, 0], ALL, 3, NAN, NANS),
    Loss("label -1", [0, 0, 0], ALL, -1, NAN, NANS),
    Loss("label -100", [0, 0, 0], ALL, -100, NAN, NANS),
    Loss("label 2**31 - 1", [0, 0, 0], ALL, 2**31 - 1, NAN, NANS),
    Loss("label K, one masked", [0, 0, 0], [True, True, False], 3, NAN, [NAN, NAN, 0]),
    Loss("label K in a masked row", [0, 0, 0], NONE, 3, 0, [0, 0, 0]),
    Loss("label K at +inf", [INF, 0, 0], ALL, 3, NAN, NANS),
]


def fields(cases: list[Any]) -> tuple[list[str], ...]:
    return tuple(map(list, zip(*cases, strict=True)))


class Variant(NamedTuple):
    """A loss that is a function of the cross entropy L: what it is, and its slope in L."""

    call: Callable[..., Any]  # of logits, labels and where
    loss: Callable[[Any], Any]
    slope: Callable[[Any], Any]


def dense(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` with integer labels made one-hot."""
    return lambda z, labels, where, **options: fn(
        z, jax.nn.one_hot(labels, 3, dtype=z.dtype), where=where, **options
    )


def with_options(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda z, labels, where: fn(z, labels, where=where, **options)


cross_entropy = jl.softmax_cross_entropy_with_integer_labels
ONES = np.ones(3, np.float32)
ZERO = np.zeros((), np.float32)  # an array: unlike 0.0 it leaves the option in the program
CROSS_ENTROPIES = {
    "integer": with_options(cross_entropy),
    "integer, class_weights": with_options(cross_entropy, class_weights=ONES),
    "integer, label_smoothing": with_options(cross_entropy, label_smoothing=ZERO),
    "integer, z_loss": with_options(cross_entropy, z_loss=ZERO),
    "integer, gamma = 0": with_options(jl.softmax_focal_loss_with_integer_labels, gamma=0.0),
    "dense": dense(jl.softmax_cross_entropy),
    "dense, epsilon = 0": dense(with_options(jl.poly_loss_cross_entropy, epsilon=0.0)),
}
VARIANTS = {
    name: Variant(fn, lambda x: x, np.ones_like) for name, fn in CROSS_ENTROPIES.items()
} | {
    "focal": Variant(
        with_options(jl.softmax_focal_loss_with_integer_labels, gamma=1.0),
        lambda x: x * -np.expm1(-x),
        lambda x: -np.expm1(-x) + np.where(np.isinf(x), 0, x) * np.exp(-x),
    ),
    "poly": Variant(
        dense(jl.poly_loss_cross_entropy),
        lambda x: x + 2 * -np.expm1(-x),
        lambda x: 1 + 2 * np.exp(-x),
    ),
}


# What differs between the others is how the losses are put together, not what they are made of.
IN_EVERY_DTYPE = ["integer", "dense"]


@pytest.mark.parametrize("name", IN_EVERY_DTYPE)
def test_loss_in_every_dtype(mode: Any, name: str) -> None:
    assert_right_at_every_edge(mode, VARIANTS[name])


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in IN_EVERY_DTYPE])
def test_other_losses(name: str) -> None:
    assert_right_at_every_edge((jnp.dtype("float32"), jax.jit), VARIANTS[name])


def assert_right_at_every_edge(mode: Any, variant: Variant) -> None:
    is_dense = variant.call.__qualname__.startswith("dense")
    cases = LEFT_OUT if is_dense else LOSSES + OUT_OF_RANGE
    names, logits, where, labels, losses, gradients = map(list, zip(*cases, strict=True))
    value, (gradient,) = value_and_gradients(
        mode, lambda z: variant.call(z, jnp.array(labels), jnp.array(where)), logits
    )
    loss, cross_entropy_gradient = np.array(losses), np.array(gradients)
    still = cross_entropy_gradient == 0
    slope = np.where(still, 0.0, variant.slope(loss)[:, None])
    assert_same(mode, value, variant.loss(loss), names)
    assert_same(mode, gradient, np.where(still, 0.0, slope * cross_entropy_gradient), names)


def test_a_target_of_zero_makes_nothing_of_minus_infinity(mode: Any) -> None:
    """0 log 0 = 0, also with soft targets and in the derivative by the targets."""
    dtype, run = mode
    z = jnp.array([0.0, -INF, 0.0], dtype)
    t = jnp.array([0.25, 0.0, 0.75], dtype)
    value, (by_z, by_t) = run(jax.value_and_grad(jl.softmax_cross_entropy, (0, 1)))(z, t)
    assert_same(mode, [value], [LOG2], ["value"])
    assert_same(mode, by_z, [0.25, 0.0, -0.25], ["0", "1", "2"])
    assert_same(mode, by_t, [LOG2, 0.0, LOG2], ["0", "1", "2"])


def test_a_nan_target_spoils_its_row_alone(mode: Any) -> None:
    targets = jnp.array([[1.0, 0.0, 0.0], [NAN, 1.0, 0.0]])
    for fn in (jl.softmax_cross_entropy, jl.poly_loss_cross_entropy):
        call = lambda z, fn=fn: fn(z, targets.astype(z.dtype))  # noqa: E731
        value, (gradient,) = value_and_gradients(mode, call, np.zeros([2, 3]))
        assert np.isnan(value).tolist() == [False, True]
        assert np.isnan(gradient).tolist() == [[False] * 3, [True] * 3]


# label_smoothing and z_loss, where they aren't 0: each with loss and gradient.
SMOOTHED = [
    Loss("plain", [0, 0, -INF], [True, True, False], 0, LOG2, [-0.25, 0.25, 0]),
    Loss("-inf counts", [0, 0, -INF], ALL, 0, INF, [-1 / 6, 1 / 3, -1 / 6]),
    Loss("a masked row", NANS, NONE, 0, 0, [0, 0, 0]),
    Loss("masked NaN", [0, NAN, 0], [True, False, True], 0, LOG2, [-0.25, 0, 0.25]),
    Loss("label K", [0, 0, 0], ALL, 3, NAN, NANS),
]
PENALISED = [
    Loss("plain", [0, 0, -INF], ALL, 0, LOG2 + LOG2**2, [-0.5 + LOG2, 0.5 + LOG2, 0]),
    Loss("-inf at the label", [-INF, 0, 0], ALL, 0, INF, [-1, 0.5 + LOG2, 0.5 + LOG2]),
    Loss("+inf at the label", [INF, 0, 0], ALL, 0, INF, [INF, 0, 0]),
    Loss("a masked row", NANS, NONE, 0, 0, [0, 0, 0]),
    Loss("a row of -inf", [-INF, -INF, -INF], ALL, 0, NAN, NANS),
    Loss(
        "masked NaN",
        [0, NAN, 0],
        [True, False, True],
        0,
        LOG2 + LOG2**2,
        [-0.5 + LOG2, 0, 0.5 + LOG2],
    ),
    Loss("label K", [0, 0, 0], ALL, 3, NAN, NANS),
]


@pytest.mark.parametrize(
    ("cases", "options"),
    [(SMOOTHED, {"label_smoothing": 0.5}), (PENALISED, {"z_loss": 1.0})],
    ids=["label_smoothing", "z_loss"],
)
def test_options_of_the_loss(mode: Any, cases: list[Loss], options: dict[str, float]) -> None:
    names, logits, where, labels, losses, gradients = map(list, zip(*cases, strict=True))
    call = lambda z: cross_entropy(z, jnp.array(labels), where=jnp.array(where), **options)  # noqa: E731
    value, (gradient,) = value_and_gradients(mode, call, logits)
    assert_same(mode, value, losses, names)
    assert_same(mode, gradient, gradients, names)


# Functions of rows.


class Row(NamedTuple):
    name: str
    logits: list[float]
    where: list[bool]
    logsumexp: float
    softmax: list[float]
    log_softmax: list[float]
    class_log_odds: list[float]
    others: list[list[float]]  # for each class, the softmax of the other ones


NAN_ROW = [NANS, NANS, NANS]
ZEROS = [0.0, 0.0, 0.0]
ROWS = [
    Row("plain", [0, 0, 0], ALL, np.log(3), [1 / 3] * 3, [-np.log(3)] * 3, [-LOG2] * 3,
        [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]),
    Row("one +inf", [INF, 0, 0], ALL, INF, [1, 0, 0], [0, -INF, -INF], [INF, -INF, -INF],
        [[0, 0.5, 0.5], [1, 0, 0], [1, 0, 0]]),
    Row("one -inf", [0, 0, -INF], ALL, LOG2, [0.5, 0.5, 0], [-LOG2, -LOG2, -INF], [0, 0, -INF],
        [[0, 1, 0], [1, 0, 0], [0.5, 0.5, 0]]),
    Row("-inf and +inf", [INF, 0, -INF], ALL, INF, [1, 0, 0], [0, -INF, -INF], [INF, -INF, -INF],
        [[0, 1, 0], [1, 0, 0], [1, 0, 0]]),
    Row("two +inf", [INF, INF, 0], ALL, INF, NANS, NANS, NANS, NAN_ROW),
    Row("three +inf", [INF, INF, INF], ALL, INF, NANS, NANS, NANS, NAN_ROW),
    Row("NaN", [NAN, 0, 0], ALL, NAN, NANS, NANS, NANS, NAN_ROW),
    Row("NaN and +inf", [0, NAN, INF], ALL, NAN, NANS, NANS, NANS, NAN_ROW),
    Row("only -inf", [-INF, -INF, -INF], ALL, -INF, NANS, NANS, NANS, NAN_ROW),
    Row("a masked row", NANS, NONE, -INF, ZEROS, [-INF] * 3, [-INF] * 3, [ZEROS] * 3),
    Row("masked NaN", [0, NAN, 0], [True, False, True], LOG2, [0.5, 0, 0.5], [-LOG2, -INF, -LOG2],
        [0, -INF, 0], [[0, 0, 1], ZEROS, [1, 0, 0]]),
    Row("masked +inf", [0, INF, 0], [True, False, True], LOG2, [0.5, 0, 0.5], [-LOG2, -INF, -LOG2],
        [0, -INF, 0], [[0, 0, 1], ZEROS, [1, 0, 0]]),
    Row("one class is left", [0, 9, 9], [True, False, False], 0, [1, 0, 0], [0, -INF, -INF],
        [INF, -INF, -INF], [[1, 0, 0], ZEROS, ZEROS]),
]  # fmt: skip


def row_gradients(function: str, row: Row) -> Any:
    """The derivative of each result by each logit, from the table's softmaxes."""
    p, kept = np.array(row.softmax), np.array(row.where)
    if function == "logsumexp":
        return np.zeros(3) if row.name == "only -inf" else p
    if function == "softmax":
        jacobian = np.diag(p) - np.outer(p, p)
    else:
        others = np.broadcast_to(p, (3, 3)) if function == "log_softmax" else np.array(row.others)
        jacobian = np.eye(3) - others
    # A masked class is constant, and counts for no other.
    return np.where(np.outer(kept, kept), jacobian, 0.0)


@pytest.mark.parametrize("function", ["logsumexp", "softmax", "log_softmax", "class_log_odds"])
def test_rows(mode: Any, function: str) -> None:
    where = jnp.array([row.where for row in ROWS])
    call = lambda z: getattr(jl, function)(z, where=where)  # noqa: E731
    value, gradients = value_and_gradients(mode, call, [row.logits for row in ROWS])
    names = [row.name for row in ROWS]
    assert_same(mode, value, [getattr(row, function) for row in ROWS], names)
    jacobians = gradients[0] if function == "logsumexp" else np.moveaxis(gradients, 0, 1)
    assert_same(mode, jacobians, [row_gradients(function, row) for row in ROWS], names)


# One logit for each label.

BINARY = [  # logit, label, loss, gradient
    (0, 1, LOG2, -0.5),
    (INF, 1, 0, 0),
    (INF, 0, INF, 1),
    (-INF, 1, INF, -1),
    (-INF, 0, 0, 0),
    (INF, 0.5, INF, 0.5),
    (-INF, 0.5, INF, -0.5),
    (NAN, 0, NAN, NAN),
    (NAN, 1, NAN, NAN),
    (0, NAN, NAN, NAN),
    (0, -0.25, NAN, NAN),
    (0, 1.25, NAN, NAN),
    (0, 2, NAN, NAN),
]


@pytest.mark.parametrize(
    ("fn", "options"),
    [
        (jl.sigmoid_binary_cross_entropy, {}),
        (jl.sigmoid_binary_cross_entropy, {"pos_weight": ONES[0], "label_smoothing": ZERO}),
        (jl.sigmoid_focal_loss, {"gamma": 0.0}),
    ],
    ids=["cross entropy", "with options", "focal, gamma = 0"],
)
def test_binary_loss(mode: Any, fn: Callable[..., Any], options: dict[str, Any]) -> None:
    logits, labels, losses, gradients = map(list, zip(*BINARY, strict=True))
    names = [f"logit {x}, label {y}" for x, y, *_ in BINARY]
    call = lambda x: fn(x, jnp.array(labels, x.dtype), **options)  # noqa: E731
    value, (gradient,) = value_and_gradients(mode, call, logits)
    assert_same(mode, value, losses, names)
    assert_same(mode, gradient, gradients, names)


def test_binary_focal_loss(mode: Any) -> None:
    """gamma = 2: the easy end is 0 like the cross entropy, the hard end is the cross entropy."""
    cases = [case for case in BINARY if case[0] != 0 and case[1] != 0.5]
    logits, labels, losses, gradients = map(list, zip(*cases, strict=True))
    names = [f"logit {x}, label {y}" for x, y, *_ in cases]
    call = lambda x: jl.sigmoid_focal_loss(x, jnp.array(labels, x.dtype))  # noqa: E731
    value, (gradient,) = value_and_gradients(mode, call, logits)
    assert_same(mode, value, losses, names)
    assert_same(mode, gradient, gradients, names)


# Elementwise.

ELEMENTWISE = {  # argument, value, derivative
    "logit": [
        (0, -INF, INF),
        (1, INF, INF),
        (0.5, 0, 4),
        (-0.25, NAN, NAN),
        (1.25, NAN, NAN),
        (INF, NAN, NAN),
        (-INF, NAN, NAN),
        (NAN, NAN, NAN),
    ],
    "sigmoid": [(INF, 1, 0), (-INF, 0, 0), (0, 0.5, 0.25), (NAN, NAN, NAN)],
    "log_sigmoid": [(INF, 0, 0), (-INF, -INF, 1), (0, -LOG2, 0.5), (NAN, NAN, NAN)],
    "softplus": [(INF, INF, 1), (-INF, 0, 0), (0, LOG2, 0.5), (NAN, NAN, NAN)],
    "log1mexp": [
        (0, -INF, INF),
        (INF, 0, 0),
        (-1, NAN, NAN),
        (-INF, NAN, NAN),
        (NAN, NAN, NAN),
    ],
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(mode: Any, name: str) -> None:
    arguments, values, derivatives = map(list, zip(*ELEMENTWISE[name], strict=True))
    names = [f"{name}({x})" for x in arguments]
    value, (derivative,) = value_and_gradients(mode, getattr(jl, name), arguments)
    assert_same(mode, value, values, names)
    assert_same(mode, derivative, derivatives, names)


# Shapes.

ROW_FUNCTIONS = ["logsumexp", "softmax", "log_softmax", "class_log_odds"]


@pytest.mark.parametrize("run", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
def test_no_rows(run: Any) -> None:
    z, labels = jnp.zeros([0, 3]), jnp.zeros([0], jnp.int32)
    results = run(
        lambda z: (
            [getattr(jl, name)(z) for name in ROW_FUNCTIONS]
            + [cross_entropy(z, labels), jl.softmax_cross_entropy(z, z)]
            + [
                jl.softmax_focal_loss_with_integer_labels(z, labels),
                jl.poly_loss_cross_entropy(z, z),
            ]
            + [jax.grad(lambda z: jnp.sum(cross_entropy(z, labels)))(z)]
        )
    )(z)
    vector, matrix = (0,), (0, 3)
    want = [vector, *[matrix] * 3, *[vector] * 4, matrix]
    assert [result.shape for result in results] == want


@pytest.mark.parametrize("logit", [0.0, 5.0, INF])
def test_a_single_class_is_certain(logit: float) -> None:
    z, label = jnp.full([1], logit), jnp.array(0)
    for name, value in zip(ROW_FUNCTIONS, (logit, 1, 0, INF), strict=True):
        assert jax.jit(getattr(jl, name))(z) == value
    for loss in (cross_entropy, jl.softmax_focal_loss_with_integer_labels):
        assert jax.jit(jax.value_and_grad(loss))(z, label) == (0, 0)
    for loss in (jl.softmax_cross_entropy, jl.poly_loss_cross_entropy):
        assert jax.jit(jax.value_and_grad(loss))(z, jnp.ones([1])) == (0, 0)


def test_float16_rows_may_have_more_classes_than_float16_can_count() -> None:
    z = jnp.zeros([70_000], jnp.float16)
    loss, gradient = jax.jit(jax.value_and_grad(cross_entropy))(z, jnp.array(69_999))
    np.testing.assert_allclose(loss, np.log(70_000), rtol=2**-22)
    assert gradient[-1] == -1
    np.testing.assert_array_equal(jax.jit(jl.softmax)(z), jnp.full_like(z, 1 / 70_000))
    log_probs = jax.jit(jl.log_softmax)(z)
    np.testing.assert_array_equal(log_probs, jnp.full_like(z, -np.log(70_000)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_labels_may_fill_their_dtype(dtype: str) -> None:
    """The largest label that fits is a class; the number of classes itself doesn't fit."""
    last = int(jnp.iinfo(dtype).max)
    labels = jnp.array([0, last], dtype)
    for options in ({}, {"label_smoothing": 0.25}):
        loss = jax.jit(functools.partial(cross_entropy, **options))
        losses = loss(jnp.zeros([2, last + 1]), labels)
        np.testing.assert_allclose(losses, np.log(last + 1), rtol=1e-6)
