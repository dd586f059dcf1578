"""What is refused, in which words."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret import interpreted

import jaxlogits as jl
from jaxlogits._src.base import checks

cross_entropy = jl.softmax_cross_entropy_with_integer_labels
focal = jl.softmax_focal_loss_with_integer_labels
Z = jnp.zeros([4, 3])
Y = jnp.array([0, 1, 2, 0])
T = jnp.ones([4, 3])
X = jnp.zeros([4])


# Shapes, dtypes and options.


def of_scalar_option(
    fn: Callable[..., Any], labels: Any, name: str, value: Any
) -> Callable[[], Any]:
    logits = X if labels is X else Z
    return lambda: fn(logits, labels, **{name: value})


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "integer probs": (
        lambda: jl.logit(jnp.array([0, 1])),
        TypeError,
        "probs must be floating point, got int32[2]",
    ),
    "integer logits, elementwise": (
        lambda: jl.sigmoid(1),
        TypeError,
        "logits must be floating point, got int32[]",
    ),
    "boolean x": (
        lambda: jl.softplus(jnp.array(True)),
        TypeError,
        "x must be floating point, got bool[]",
    ),
    "complex logits": (
        lambda: jl.softmax(Z.astype(jnp.complex64)),
        TypeError,
        "logits must be floating point, got complex64[4,3]",
    ),
    "integer logits": (
        lambda: cross_entropy(Z.astype(int), Y),
        TypeError,
        "logits must be floating point, got int32[4,3]",
    ),
    "float labels": (
        lambda: cross_entropy(Z, Y.astype(float)),
        TypeError,
        "labels must be integers, got float32[4]",
    ),
    "boolean labels": (
        lambda: focal(Z, Y.astype(bool)),
        TypeError,
        "labels must be integers, got bool[4]",
    ),
    "labels [N, 1]": (
        lambda: cross_entropy(Z, Y[:, None]),
        ValueError,
        "labels must have the shape of logits without axis, [4], got int32[4,1]",
    ),
    "one label for all": (
        lambda: cross_entropy(Z, 0),
        ValueError,
        "labels must have the shape of logits without axis, [4], got int32[]",
    ),
    "labels of another axis": (
        lambda: focal(Z, Y, axis=0),
        ValueError,
        "labels must have the shape of logits without axis, [3], got int32[4]",
    ),
    "one-hot labels to the integer loss": (
        lambda: cross_entropy(Z, T.astype(int)),
        ValueError,
        "labels must have the shape of logits without axis, [4], got int32[4,3]; "
        "softmax_cross_entropy takes a target for each class",
    ),
    "int8 labels for 300 classes": (
        lambda: cross_entropy(jnp.zeros([2, 300]), jnp.zeros([2], jnp.int8)),
        ValueError,
        "labels must have a dtype that holds 299, got int8[2]",
    ),
    "targets of one row": (
        lambda: jl.softmax_cross_entropy(Z, T[0]),
        ValueError,
        "labels must have the shape of logits, [4,3], got float32[3]",
    ),
    "integer labels to the dense loss": (
        lambda: jl.poly_loss_cross_entropy(Z, Y),
        ValueError,
        "labels must have the shape of logits, [4,3], got int32[4]",
    ),
    "complex targets": (
        lambda: jl.softmax_cross_entropy(Z, T.astype(jnp.complex64)),
        TypeError,
        "labels must be real numbers, got complex64[4,3]",
    ),
    "binary labels [N, 1]": (
        lambda: jl.sigmoid_binary_cross_entropy(X, X[:, None]),
        ValueError,
        "labels must have the shape of logits, [4], got float32[4,1]",
    ),
    "one binary label for all": (
        lambda: jl.sigmoid_focal_loss(X, 1.0),
        ValueError,
        "labels must have the shape of logits, [4], got float32[]",
    ),
    "no classes": (
        lambda: jl.softmax(jnp.zeros([4, 0])),
        ValueError,
        "logits must have at least one class, got float32[4,0]",
    ),
    "no classes in the loss": (
        lambda: cross_entropy(jnp.zeros([4, 0]), Y),
        ValueError,
        "logits must have at least one class, got float32[4,0]",
    ),
    "a scalar row": (
        lambda: jl.logsumexp(0.0),
        ValueError,
        "axis must name dimensions of logits, got -1 for float32[]",
    ),
    "axis out of range": (
        lambda: jl.softmax(Z, axis=2),
        ValueError,
        "axis must name dimensions of logits, got 2 for float32[4,3]",
    ),
    "negative axis out of range": (
        lambda: jl.softmax(Z, axis=(0, -3)),
        ValueError,
        "axis must name dimensions of logits, got (0, -3) for float32[4,3]",
    ),
    "axis twice": (
        lambda: jl.softmax(Z, axis=(1, -1)),
        ValueError,
        "axis must name each dimension once, got (1, -1) for float32[4,3]",
    ),
    "axis None": (
        lambda: jl.logsumexp(Z, axis=None),
        TypeError,
        "axis must be an int or a non-empty tuple of ints, got None",
    ),
    "no axis": (
        lambda: jl.logsumexp(Z, axis=()),
        TypeError,
        "axis must be an int or a non-empty tuple of ints, got ()",
    ),
    "axis True": (
        lambda: jl.softmax(Z, axis=True),
        TypeError,
        "axis must be an int or a non-empty tuple of ints, got True",
    ),
    "where of 0 and 1": (
        lambda: jl.softmax(Z, where=T),
        TypeError,
        "where must be boolean, got float32[4,3]: write where != 0",
    ),
    "where of rows": (
        lambda: jl.softmax(Z, where=Y > 0),
        ValueError,
        "where must have 2 dimensions for logits float32[4,3], got bool[4]: "
        "write where[:, None] for rows or where[None, :] for classes",
    ),
    "where of classes": (
        lambda: cross_entropy(Z, Y, where=T[0] > 0),
        ValueError,
        "where must broadcast to [4], got bool[3]: write where[None, :] for classes",
    ),
    "where of more dimensions": (
        lambda: jl.log_softmax(Z[0], where=T > 0),
        ValueError,
        "where must have 1 dimensions for logits float32[3], got bool[4,3]",
    ),
    "class_weights of another length": (
        lambda: cross_entropy(Z, Y, class_weights=jnp.ones([4])),
        ValueError,
        "class_weights must have one weight per class, [3], got float32[4]",
    ),
    "class_weights of each row": (
        lambda: jl.softmax_cross_entropy(Z, T, class_weights=T),
        ValueError,
        "class_weights must have one weight per class, [3], got float32[4,3]",
    ),
    "complex class_weights": (
        lambda: cross_entropy(Z, Y, class_weights=jnp.ones([3], complex)),
        TypeError,
        "class_weights must be real numbers, got complex64[3]",
    ),
    "pos_weight that doesn't fit": (
        lambda: jl.sigmoid_binary_cross_entropy(X, X, pos_weight=jnp.ones([3])),
        ValueError,
        "pos_weight must broadcast to [4], got float32[3]",
    ),
    "label_smoothing of each row": (
        of_scalar_option(cross_entropy, Y, "label_smoothing", X[:3]),
        ValueError,
        "label_smoothing must broadcast to [4], got float32[3]: a scalar, or one for each row",
    ),
    "label_smoothing 1": (
        of_scalar_option(cross_entropy, Y, "label_smoothing", 1.0),
        ValueError,
        "label_smoothing must be at least 0 and below 1, got 1",
    ),
    "label_smoothing below 0": (
        of_scalar_option(jl.softmax_cross_entropy, T, "label_smoothing", -0.1),
        ValueError,
        "label_smoothing must be at least 0 and below 1, got -0.1",
    ),
    "label_smoothing NaN": (
        of_scalar_option(jl.sigmoid_binary_cross_entropy, X, "label_smoothing", np.nan),
        ValueError,
        "label_smoothing must be at least 0 and below 1, got nan",
    ),
    "z_loss below 0": (
        of_scalar_option(cross_entropy, Y, "z_loss", -1),
        ValueError,
        "z_loss must be at least 0, got -1",
    ),
    "complex z_loss": (
        of_scalar_option(cross_entropy, Y, "z_loss", 1j),
        TypeError,
        "z_loss must be real numbers, got complex64[]",
    ),
    "gamma below 0": (
        of_scalar_option(focal, Y, "gamma", -0.5),
        ValueError,
        "gamma must be at least 0, got -0.5",
    ),
    "epsilon below -1": (
        of_scalar_option(jl.poly_loss_cross_entropy, T, "epsilon", -1.5),
        ValueError,
        "epsilon must be at least -1, got -1.5",
    ),
    "alpha above 1": (
        of_scalar_option(jl.sigmoid_focal_loss, X, "alpha", 2.0),
        ValueError,
        "alpha must be at least 0 and at most 1, got 2",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """With one sentence, and while tracing too, which is when users meet it."""
    for run in (call, lambda: jax.eval_shape(call)):
        with pytest.raises(error) as raised:
            run()
        assert str(raised.value) == message


def test_options_may_be_traced_and_are_not_looked_at_then() -> None:
    loss = jax.jit(lambda epsilon: cross_entropy(Z, Y, label_smoothing=epsilon))
    assert np.all(np.isfinite(loss(0.25)))


def test_options_may_be_python_numbers_or_scalars_of_any_dtype() -> None:
    want = cross_entropy(Z, Y, z_loss=1.0)
    for one in (1, True, np.float64(1), jnp.bfloat16(1), jnp.int8(1)):
        np.testing.assert_array_equal(cross_entropy(Z, Y, z_loss=one), want)


def test_axes_keep_their_order() -> None:
    assert checks.normalize_axes(jnp.zeros([2, 3, 4]), (-1, 0)) == (2, 0)
    assert checks.normalize_axes(jnp.zeros([2, 3, 4]), -2) == (1,)


def test_a_range_holds_its_ends_or_not() -> None:
    closed, opened = checks.Range(0, 1), checks.Range(above=0, below=1)
    ends = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan])
    assert closed.holds(ends).tolist() == [False, True, True, True, False, False]
    assert opened.holds(ends).tolist() == [False, False, True, False, False, False]
    assert str(checks.Range(0, above=-1, below=2)) == "at least 0 and above -1 and below 2"


def test_an_option_of_rows_may_have_1_in_place_of_a_dimension() -> None:
    given = jnp.arange(3.0)[None]
    got = checks.as_row_option("cap", given, jnp.dtype(jnp.float32), (2, 3))
    np.testing.assert_array_equal(got, np.broadcast_to(given, (2, 3))[..., None])
    with pytest.raises(ValueError, match=r"^cap must broadcast") as raised:
        checks.as_row_option("cap", jnp.zeros([2, 3, 1]), jnp.dtype(jnp.float32), (2, 3))
    assert str(raised.value).endswith("a scalar, or one for each row as in cap[..., 0]")


KEY = jax.random.key(0)
OF_EACH_ROW: dict[str, tuple[Callable[..., Any], Any]] = {
    "label_smoothing": (
        lambda z, e: cross_entropy(z, jnp.zeros(z.shape[:-1], int), label_smoothing=e),
        0.25,
    ),
    "alpha": (lambda z, alpha: jl.entmax(z, alpha=alpha), 1.25),
    "cap": (jl.soft_cap, 1.0),
    "temperature": (jl.apply_temperature, 1.0),
    "penalty": (lambda z, r: jl.penalize_repetition(z, jnp.zeros([*z.shape[:-1], 1], int), r), 1.5),
    "n": (jl.keep_top_n_sigma, 1.0),
    "p": (jl.keep_top_p, 0.5),
    "of a draw": (lambda z, t: jl.sample(KEY, z, temperature=t), 1.0),
    "of a soft draw": (lambda z, t: jl.gumbel_softmax(KEY, z, temperature=t), 1.0),
}


@pytest.mark.parametrize(("fn", "value"), OF_EACH_ROW.values(), ids=OF_EACH_ROW)
def test_an_option_of_each_row_of_a_matrix_of_rows(fn: Callable[..., Any], value: Any) -> None:
    z = np.random.default_rng(0).normal(size=[2, 3, 4]).astype(np.float32)
    options = (value * np.linspace(1.0, 1.5, 6)).astype(np.float32).reshape(2, 3)
    run = interpreted(fn)
    got, want = run(z, options), run(z.reshape(6, 4), options.reshape(6))
    np.testing.assert_array_equal(np.reshape(got, want.shape), want)


# Options of each row.

OF_EACH_ROW: dict[str, tuple[Callable[[Any], Any], float]] = {
    "sample": (lambda t: jl.sample(jax.random.key(0), Z, temperature=t), -1.0),
    "keep_top_p": (lambda p: jl.keep_top_p(Z, p), 1.5),
    "soft_cap": (lambda cap: jl.soft_cap(Z, cap), -1.5),
    "penalize_repetition": (lambda x: jl.penalize_repetition(Z, Z == 0, x), -1.5),
    "apply_temperature": (lambda t: jl.apply_temperature(Z, t), -1.5),
    "keep_top_n_sigma": (lambda n: jl.keep_top_n_sigma(Z, n), -1.5),
    "gumbel_softmax": (lambda t: jl.gumbel_softmax(jax.random.key(0), Z, temperature=t), -1.0),
}


@pytest.mark.parametrize("name", OF_EACH_ROW)
def test_a_list_of_options_is_looked_at(name: str) -> None:
    """As an array would be: its bad entries spoil their rows."""
    call, bad = OF_EACH_ROW[name]
    result = np.asarray(call([bad, 0.5, 0.5, 0.5]))
    if name == "sample":
        assert result[0] == -1
        assert (result[1:] >= 0).all()
    else:
        assert np.isnan(result[0]).all()
        assert not np.isnan(result[1:]).any()


def test_counts_beyond_int32_are_large() -> None:
    """As unsigned numbers are whose bits would be negative ones."""
    z, most = jnp.arange(3.0), jnp.uint32(2**32 - 1)
    np.testing.assert_array_equal(jax.jit(jl.keep_top_k)(z, most), z)
    scores = jax.jit(lambda free: jl.aps_scores(z, num_free=free, penalty=0.5))(most)
    np.testing.assert_array_equal(scores, jl.aps_scores(z, num_free=3, penalty=0.5))
    rows, y = jnp.ones([4, 1]), jnp.array([0, 1, 1, 1])
    assert jax.jit(lambda most: jl.fit_logistic(rows, y, max_steps=most).converged)(most)


L = jnp.arange(12.0).reshape(4, 3) / 5


def of_classes(keep: Any) -> Any:
    return jnp.broadcast_to(keep[:, None], Z.shape)


OF_MASKED: dict[str, Callable[[Any, Any], Any]] = {
    "label_smoothing": lambda x, keep: cross_entropy(Z, Y, where=keep, label_smoothing=x),
    "alpha": lambda x, keep: jl.entmax_loss_with_integer_labels(Z, Y, where=keep, alpha=1.0 + x),
    "alpha of targets": lambda x, keep: jl.entmax_loss(Z, T / 3, where=keep, alpha=1.0 + x),
    "alpha of a map": lambda x, keep: jl.entmax(Z, where=of_classes(keep), alpha=1.0 + x),
    "apply_temperature": lambda x, keep: jl.softmax(
        jl.apply_temperature(L, x, where=of_classes(keep)), where=of_classes(keep)
    ),
    "gumbel_softmax": lambda x, keep: jl.gumbel_softmax(
        jax.random.key(0), L, temperature=x, where=of_classes(keep)
    )[:, 0],
    "sample_with_log_prob": lambda x, keep: jnp.where(
        keep,
        jl.sample_with_log_prob(jax.random.key(0), L, temperature=x, where=of_classes(keep))[1],
        0.0,
    ),
    "temperature": lambda x, keep: jl.linear_softmax_cross_entropy(
        Z, jnp.ones([3, 5]), Y, where=keep, temperature=x, reduction="sum"
    ),
}


@pytest.mark.parametrize("name", OF_MASKED)
def test_a_bad_option_of_a_masked_row_leaves_no_trace(name: str) -> None:
    keep, options = jnp.array([True, False, True, True]), jnp.array([0.25, -2.0, 0.5, 0.125])

    def total(x: Any) -> Any:
        return jnp.sum(OF_MASKED[name](x, keep))

    value, gradient = jax.value_and_grad(total)(options)
    wanted = jax.value_and_grad(total)(options.at[1].set(0.25))
    np.testing.assert_array_equal(value, wanted[0])
    np.testing.assert_array_equal(gradient, wanted[1])
    assert gradient[1] == 0


KEPT: dict[str, Callable[..., Any]] = {
    "keep_top_k": lambda z, x, where: jl.keep_top_k(z, (4.0 * x).astype(int), where=where),
    "keep_top_p": lambda z, x, where: jl.keep_top_p(z, x, where=where),
    "keep_top_n_sigma": lambda z, x, where: jl.keep_top_n_sigma(z, x, where=where),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_bad_option_of_a_masked_row_leaves_no_trace_in_the_logits(name: str) -> None:
    where = of_classes(jnp.array([True, False, True, True]))

    def total(z: Any) -> Any:
        kept = KEPT[name](z, jnp.array([0.25, -2.0, 0.5, 0.75]), where)
        return jnp.sum(jnp.where(kept > -jnp.inf, kept, 0.0))

    gradient = jax.grad(total)(L)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()
