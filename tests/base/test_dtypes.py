"""The dtype of every result and gradient, by the one rule of precision.py."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jaxlogits as jl
from jaxlogits._src.base import dtypes

DTYPES = ["float16", "bfloat16", "float32", "float64"]
LABELS = jnp.array([0, 2], jnp.int32)

# Results in the dtype of the argument.
KEEP = {
    name: getattr(jl, name)
    for name in (
        "logit",
        "sigmoid",
        "log_sigmoid",
        "softplus",
        "log1mexp",
        "softmax",
        "log_softmax",
        "class_log_odds",
    )
}
# Results in float32 or float64; labels and options of any dtype don't change it.
WIDE: dict[str, Callable[..., Any]] = {
    "logsumexp": jl.logsumexp,
    "sigmoid_binary_cross_entropy": lambda x: jl.sigmoid_binary_cross_entropy(
        x, jnp.ones(x.shape, bool), pos_weight=jnp.bfloat16(2), label_smoothing=jnp.float16(0.25)
    ),
    "sigmoid_focal_loss": lambda x: jl.sigmoid_focal_loss(
        x, jnp.ones(x.shape, jnp.float16), gamma=jnp.int32(2), alpha=jnp.bfloat16(0.25)
    ),
    "softmax_cross_entropy": lambda z: jl.softmax_cross_entropy(
        z, jnp.ones(z.shape, jnp.int8), class_weights=jnp.ones([3], jnp.float32)
    ),
    "softmax_cross_entropy_with_integer_labels": lambda z: (
        jl.softmax_cross_entropy_with_integer_labels(
            z, LABELS, class_weights=jnp.ones([3], jnp.float16), z_loss=jnp.bfloat16(0.5)
        )
    ),
    "softmax_focal_loss_with_integer_labels": lambda z: jl.softmax_focal_loss_with_integer_labels(
        z, LABELS, gamma=jnp.float16(2)
    ),
    "poly_loss_cross_entropy": lambda z: jl.poly_loss_cross_entropy(
        z, jnp.ones(z.shape, jnp.bfloat16), epsilon=1
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*KEEP, *WIDE])
def test_dtypes(name: str, dtype: str, x64: None) -> None:  # noqa: ARG001
    """Traced only: dtypes are known without values."""
    fn = (KEEP | WIDE)[name]
    x = jax.ShapeDtypeStruct((2, 3), dtype)
    want = dtype if name in KEEP or dtype == "float64" else "float32"
    assert jax.eval_shape(fn, x).dtype == want

    def number(x: Any) -> Any:
        return jnp.sum(fn(x).astype(jnp.float32))

    assert jax.eval_shape(jax.grad(number), x).dtype == dtype
    assert jax.eval_shape(jax.hessian(number), x).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_by_labels_and_options_have_their_dtypes(dtype: str, x64: None) -> None:  # noqa: ARG001
    z, t, w = jnp.zeros([2, 3], dtype), jnp.ones([2, 3], jnp.float32), jnp.ones([3], jnp.bfloat16)

    def number(t: Any, w: Any, epsilon: Any) -> Any:
        loss = jl.softmax_cross_entropy(z, t, class_weights=w, label_smoothing=epsilon)
        return jnp.sum(loss.astype(jnp.float32))

    gradients = jax.eval_shape(jax.grad(number, (0, 1, 2)), t, w, jnp.float16(0.25))
    assert [g.dtype for g in gradients] == [jnp.float32, jnp.bfloat16, jnp.float16]


def test_nothing_is_float64_without_x64() -> None:
    for fn in (KEEP | WIDE).values():
        jaxpr = jax.make_jaxpr(fn)(jnp.full([2, 3], 0.5))
        assert "f64" not in str(jaxpr)


def test_wide_dtype(x64: None) -> None:  # noqa: ARG001
    one = {name: jnp.ones([], name) for name in DTYPES}
    assert [dtypes.widen(x).dtype.name for x in one.values()] == ["float32"] * 3 + ["float64"]
    assert dtypes.wide_dtype(one["float16"], one["bfloat16"]) == jnp.float32
    assert dtypes.wide_dtype(one["float16"], one["float64"]) == jnp.float64


def test_a_number_gives_a_number() -> None:
    """Weakly typed, so that it takes the dtype of what it meets."""
    assert jax.typeof(jl.sigmoid(0.5)).weak_type
    assert not jax.typeof(jl.sigmoid(jnp.float32(0.5))).weak_type
