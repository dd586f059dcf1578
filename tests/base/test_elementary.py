"""The accuracy that is asked of the device; ruff finds what doesn't ask for it in the package."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from without_xla import equations

import jaxlogits as jl
from jaxlogits._src.base import elementary

NAMES = ["exp", "expm1", "log", "log1p"]
LOGITS = jnp.linspace(-4.0, 4.0, 12).reshape(3, 4)
LABELS = jnp.array([0, 1, 3])
KERNEL = jnp.ones([4, 5])
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "softmax": jl.softmax,
    "log_softmax": jl.log_softmax,
    "class_log_odds": jl.class_log_odds,
    "entmax": jl.entmax,
    "integer labels": lambda z: jl.softmax_cross_entropy_with_integer_labels(z, LABELS),
    "targets": lambda z: jl.softmax_cross_entropy(z, jax.nn.one_hot(LABELS, 4)),
    "focal": lambda z: jl.softmax_focal_loss_with_integer_labels(z, LABELS),
    "divergence": lambda z: jl.softmax_kl_divergence(z, -z),
    "mixture": lambda z: jl.jensen_shannon_divergence(z, -z),
    "head": lambda z: jl.linear_softmax_cross_entropy(z, KERNEL, LABELS),
    "tiles": lambda z: jl.linear_softmax_cross_entropy(z, KERNEL, LABELS, memory="tiles"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_derivatives_ask_for_the_most(name: str) -> None:
    def total(z: Any) -> Any:
        return jnp.sum(FUNCTIONS[name](z) ** 2)

    program = jax.make_jaxpr(jax.jvp, static_argnums=0)(jax.grad(total), (LOGITS,), (LOGITS,))
    asked = [eqn for eqn in equations(program.jaxpr) if eqn.primitive.name in NAMES]
    assert asked
    assert {eqn.params["accuracy"] for eqn in asked} == {lax.AccuracyMode.HIGHEST}


@pytest.mark.compiled
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_on_a_cpu_nothing_changes(name: str, dtype: str, x64: None) -> None:  # noqa: ARG001
    x = jnp.linspace(-0.5, 9.0, 1000, dtype=dtype)
    asked, plain = (jax.jit(getattr(of, name))(x) for of in (elementary, jnp))
    np.testing.assert_array_equal(asked, plain)
