"""What is refused, in which words; and the value checks that ``checked`` switches on."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

import jaxlogits as jl
from jaxlogits import _checks

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
        "labels must have the shape of logits without axis, [4], got int32[4,3]",
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
        "where must be boolean, got float32[4,3]",
    ),
    "where of rows": (
        lambda: cross_entropy(Z, Y, where=Y > 0),
        ValueError,
        "where must broadcast to [4,3], got bool[4]",
    ),
    "where of more dimensions": (
        lambda: jl.log_softmax(Z[0], where=T > 0),
        ValueError,
        "where must broadcast to [3], got bool[4,3]",
    ),
    "class_weights of another length": (
        lambda: cross_entropy(Z, Y, class_weights=jnp.ones([4])),
        ValueError,
        "class_weights must have one weight a class, [3], got float32[4]",
    ),
    "class_weights of each row": (
        lambda: jl.softmax_cross_entropy(Z, T, class_weights=T),
        ValueError,
        "class_weights must have one weight a class, [3], got float32[4,3]",
    ),
    "integer class_weights": (
        lambda: cross_entropy(Z, Y, class_weights=jnp.ones([3], int)),
        TypeError,
        "class_weights must be floating point, got int32[3]",
    ),
    "pos_weight that doesn't fit": (
        lambda: jl.sigmoid_binary_cross_entropy(X, X, pos_weight=jnp.ones([3])),
        ValueError,
        "pos_weight must broadcast to [4], got float32[3]",
    ),
    "label_smoothing of each row": (
        of_scalar_option(cross_entropy, Y, "label_smoothing", X),
        ValueError,
        "label_smoothing must be a scalar, got float32[4]",
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


# Values.


def nothing(x: Any) -> Any:
    return x


def in_scan(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn of each row by itself, summed in a scan."""

    def summed(z: Any, labels: Any) -> Any:
        def step(total: Any, row: Any) -> Any:
            return total + jnp.sum(fn(row[0][None], row[1][None])), None

        return lax.scan(step, jnp.float32(0), (z, labels))[0]

    return summed


def in_cond(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda z, labels: lax.cond(
        jnp.all(z == z), lambda: jnp.sum(fn(z, labels)), lambda: jnp.float32(0)
    )


def in_while(fn: Callable[..., Any]) -> Callable[..., Any]:
    def looped(z: Any, labels: Any) -> Any:
        def body(carry: Any) -> Any:
            return carry[0] + 1, carry[1] + jnp.sum(fn(z, labels))

        return lax.while_loop(lambda carry: carry[0] < 2, body, (0, jnp.float32(0)))[1]

    return looped


def total(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: jnp.sum(fn(*args))


COMPOSITIONS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "plain": nothing,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "vmap of jit": lambda fn: jax.vmap(jax.jit(fn)),
    "jit of vmap": lambda fn: jax.jit(jax.vmap(fn)),
    "grad": lambda fn: jax.grad(total(fn)),
    "jit of grad": lambda fn: jax.jit(jax.grad(total(fn))),
    "jvp": lambda fn: lambda z, labels: jax.jvp(lambda z: fn(z, labels), [z], [z])[1],
    "linearize": lambda fn: lambda z, labels: jax.linearize(lambda z: fn(z, labels), z)[0],
    "hessian": lambda fn: jax.hessian(total(jax.jit(fn))),
    "checkpoint": jax.checkpoint,
    "jit of grad of checkpoint": lambda fn: jax.jit(jax.grad(jax.checkpoint(total(fn)))),
    "scan": in_scan,
    "grad of scan": lambda fn: jax.grad(in_scan(fn)),
    "jit of grad of scan": lambda fn: jax.jit(jax.grad(in_scan(jax.jit(fn)))),
    "cond": in_cond,
    "jit of cond": lambda fn: jax.jit(in_cond(fn)),
    "while": in_while,
    "vmap of grad": lambda fn: jax.vmap(jax.grad(total(jax.jit(fn)))),
}


@pytest.mark.parametrize("compose", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_checked_raises_through_every_composition(compose: Callable[..., Any]) -> None:
    """Also for a function that ran before, without checks; and it goes on working afterwards."""
    fn = compose(cross_entropy)
    without = fn(Z, Y)
    checked = jl.checked(fn)
    message = r"labels must be in \[0, 3\), got values in \[-?\d, 3\]"
    for _ in range(2):
        np.testing.assert_array_equal(checked(Z, Y), without)
        with pytest.raises(ValueError, match=f"^{message}$"):
            checked(Z, jnp.array([0, 1, 3, 2]))
    np.testing.assert_array_equal(fn(Z, Y), without)


BAD_VALUES: dict[str, tuple[Callable[..., Any], Any, Any, str]] = {
    "logit": (
        jl.logit,
        [0.0, 1.0],
        [0.5, 1.5],
        "probs must be in [0, 1], got values in [0.5, 1.5]",
    ),
    "NaN": (
        jl.logit,
        [0.0, 1.0],
        [0.5, np.nan],
        "probs must be in [0, 1], got values in [nan, nan]",
    ),
    "integer": (
        lambda y: cross_entropy(Z, y),
        [0, 2, 1, 1],
        [0, 2, -1, 1],
        "labels must be in [0, 3), got values in [-1, 2]",
    ),
    "focal": (
        lambda y: focal(Z, y),
        [0, 2, 1, 1],
        [0, 2, -100, 1],
        "labels must be in [0, 3), got values in [-100, 2]",
    ),
    "dense": (
        lambda t: jl.softmax_cross_entropy(Z[:1], t[None]),
        [0.0, 2.0, 1.0],
        [0.5, -0.25, 0.75],
        "labels must be at least 0, got values in [-0.25, 0.75]",
    ),
    "poly": (
        lambda t: jl.poly_loss_cross_entropy(Z[:1], t[None]),
        [0.0, 2.0, 1.0],
        [0.5, -0.25, 0.75],
        "labels must be at least 0, got values in [-0.25, 0.75]",
    ),
    "binary": (
        lambda y: jl.sigmoid_binary_cross_entropy(X[:2], y),
        [0.0, 1.0],
        [1.25, 1.0],
        "labels must be in [0, 1], got values in [1.0, 1.25]",
    ),
    "binary focal": (
        lambda y: jl.sigmoid_focal_loss(X[:2], y),
        [0.0, 1.0],
        [-1.0, 1.0],
        "labels must be in [0, 1], got values in [-1.0, 1.0]",
    ),
}


@pytest.mark.parametrize(("fn", "good", "bad", "message"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_checked_names_the_argument_and_its_range(
    fn: Callable[..., Any], good: list[Any], bad: list[Any], message: str
) -> None:
    fn, good, bad = jax.jit(fn), jnp.array(good), jnp.array(bad)
    jl.checked(fn)(good)
    fn(bad)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        jl.checked(fn)(bad)


def test_checked_looks_at_what_counts() -> None:
    """A masked row has no label, a masked class no target; without rows there is nothing to see."""
    where = jnp.array([[True] * 3, [True] * 3, [True] * 3, [False] * 3])
    loss = jl.checked(cross_entropy)
    assert loss(Z, jnp.array([0, 1, 2, -100]), where=where)[3] == 0
    with pytest.raises(ValueError, match="labels must be in"):
        loss(Z, jnp.array([0, 1, -100, 0]), where=where)
    targets = T.at[3].set(-1.0)
    assert jl.checked(jl.softmax_cross_entropy)(Z, targets, where=where)[3] == 0
    assert loss(jnp.zeros([0, 3]), jnp.zeros([0], int)).shape == (0,)


def test_checked_keeps_arguments_results_and_name() -> None:
    @jl.checked
    def named(z: Any, *, labels: Any) -> Any:
        """Words."""
        return {"loss": cross_entropy(z, labels)}

    assert (named.__name__, named.__doc__) == ("named", "Words.")
    assert named(Z, labels=Y)["loss"].shape == (4,)


def test_checked_passes_other_errors_on() -> None:
    checked = jl.checked(lambda z: cross_entropy(z, Y[:2]))
    with pytest.raises(ValueError, match="labels must have the shape"):
        checked(Z)
    assert jl.checked(cross_entropy)(Z, Y).shape == (4,)


def test_checked_may_be_nested() -> None:
    checked = jl.checked(lambda z, y: jl.checked(cross_entropy)(z, y) + cross_entropy(z, y))
    assert checked(Z, Y).shape == (4,)
    with pytest.raises(ValueError, match="labels must be in"):
        checked(Z, Y + 1)


@pytest.mark.parametrize("stage", [jax.jit, jax.vmap], ids=["jit", "vmap"])
def test_checked_must_see_values(stage: Callable[..., Any]) -> None:
    staged = stage(jl.checked(cross_entropy))
    if stage is jax.jit:
        with pytest.raises(
            TypeError,
            match=re.escape("checked(fn) must be called on values: write checked(jit(fn))"),
        ):
            staged(Z, Y)
    else:
        with pytest.raises(ValueError, match="labels must be in"):
            staged(Z, Y + 1)


# Without ``checked`` nothing of it is in the program.

FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "logit": (X,),
    "softmax_cross_entropy": (Z, T),
    "softmax_cross_entropy_with_integer_labels": (Z, Y),
    "softmax_focal_loss_with_integer_labels": (Z, Y),
    "poly_loss_cross_entropy": (Z, T),
    "sigmoid_binary_cross_entropy": (X, X),
    "sigmoid_focal_loss": (X, X),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_normally_no_check_is_in_the_program(name: str) -> None:
    fn, args = getattr(jl, name), FUNCTIONS[name]
    assert not jax.make_jaxpr(fn)(*args).effects


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_exports_also_after_a_checked_call(name: str) -> None:
    fn, args = jax.jit(getattr(jl, name)), FUNCTIONS[name]
    jl.checked(fn)(*args)
    exported = export.deserialize(export.export(fn)(*args).serialize())
    np.testing.assert_array_equal(exported.call(*args), fn(*args))


def test_a_check_is_in_the_program_inside_checked() -> None:
    """So that the two tests above can fail."""
    seen = []

    def fn(z: Any) -> Any:
        seen.append(jax.make_jaxpr(cross_entropy)(z, Y).effects)
        return z

    jl.checked(fn)(Z)
    assert seen[0]


def test_axes_keep_their_order() -> None:
    assert _checks.normalize_axes(jnp.zeros([2, 3, 4]), (-1, 0)) == (2, 0)
    assert _checks.normalize_axes(jnp.zeros([2, 3, 4]), -2) == (1,)
