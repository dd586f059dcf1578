"""JAX's own tools for finding errors, over every public function.

``jax_debug_nans`` and ``jax_debug_infs`` on valid input are in ``test_eager.py``, whose programs
they look at.
"""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case, on_device, value_and_gradients

import jaxlogits as jl

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def trace(case: Case, args: dict[str, Any]) -> None:
    """Trace value and gradients, as inside jit, with options that aren't known."""
    number = {k: x for k, x in args.items() if isinstance(x, float)}
    inputs = {**case.differentiable(args), **{k: jnp.float32(x) for k, x in number.items()}}
    jax.eval_shape(lambda inputs: value_and_gradients(case, {**args, **inputs}), inputs)


STAGED = [case for case in CASES if case.name != "checked"]  # which looks at values


# Nothing is cached while leaks are looked for, so that nested rules take seconds to differentiate.
DIFFERENTIATED = (
    *("softmax", "softmax_cross_entropy_with_integer_labels", "softmax_kl_divergence", "entmax"),
    *("keep_top_p", "fit_temperature", "linear_softmax_cross_entropy", "blockwise_sum"),
)


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("case", STAGED, ids=lambda case: case.name)
def test_no_tracer_leaks(case: Case) -> None:
    args = on_device(case.calls["full" if "full" in case.calls else "plain"])
    at = case.differentiable(args)
    with jax.checking_leaks():
        if case.name in DIFFERENTIATED:
            trace(case, args)
        else:
            jax.eval_shape(lambda at: case(**{**args, **at}), at)


@pytest.mark.usefixtures("little_garbage")
@pytest.mark.parametrize("name", ["blockwise_map", "linear_log_probs"])
def test_no_tracer_leaks_eagerly(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    with jax.checking_leaks():
        value_and_gradients(case, on_device(case.calls["plain"]))


@pytest.mark.parametrize("case", STAGED, ids=lambda case: case.name)
def test_enable_checks_finds_nothing(case: Case) -> None:
    with jax.enable_checks(True):
        trace(case, on_device(case.calls["full" if "full" in case.calls else "plain"]))


@each_case
def test_disable_jit(case: Case) -> None:
    """Operation by operation, options as plain Python numbers: what the oracles say."""
    for name, args in case.calls.items():
        if name == "infinite":
            continue
        with jax.disable_jit():
            result = case(**on_device(args))
        if case.oracle is not None:
            assert_close(result, case.exact(name), case.rtol)


def assert_close(result: Any, exact: Any, rtol: float) -> None:
    exact = exact if isinstance(exact, tuple) else (exact,)
    for got, oracle in zip(jax.tree.leaves(result), exact, strict=True):
        if oracle is not None:
            want = np.asarray(oracle, float)
            size = np.max(abs(want), where=np.isfinite(want), initial=1.0)
            np.testing.assert_allclose(np.asarray(got, float), want, rtol=0, atol=rtol * size)


# A NaN of the caller's is found where the caller made it.

LOGITS, LABELS = jnp.asarray(cases.LOGITS), jnp.asarray(cases.LABELS)
LOSSES: dict[str, Callable[[Any], Any]] = {
    "softmax": lambda z: jl.softmax(z)[:, 0],
    "cross entropy": lambda z: jl.softmax_cross_entropy_with_integer_labels(z, LABELS),
    "focal": lambda z: jl.softmax_focal_loss_with_integer_labels(z, LABELS),
    "binary": lambda z: jl.sigmoid_binary_cross_entropy(z, jnp.ones_like(z)),
    "divergence": lambda z: jl.softmax_kl_divergence(z, z[::-1]),
    "entmax": lambda z: jl.entmax(z)[:, 0],
    "truncation": lambda z: jl.softmax(jl.keep_top_p(z, 0.5))[:, 0],
    "masked": lambda z: jl.softmax(z, where=jnp.asarray(cases.WHERE))[:, 0],
    "head": lambda z: jl.linear_softmax_cross_entropy(z, jnp.eye(cases.K), LABELS),
    "calibration": lambda z: jl.expected_calibration_error(z, LABELS),
    "temperature": lambda z: jl.fit_temperature(z, LABELS).temperature,
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def bad_log(x: Any) -> Any:
    """NaN, in a line of its own."""
    return jnp.log(-1.0 - jnp.square(x))


def assert_blames_the_caller(run: Callable[[], Any]) -> None:
    """The innermost line outside JAX is that of ``bad_log``."""
    with jax.debug_nans(True), pytest.raises(FloatingPointError) as caught:
        run()
    library = Path(jl.__file__).parent
    files = [Path(frame.filename) for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not [file for file in files if library in file.parents]
    functions = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert "bad_log" in functions


@each_loss
def test_nan_after_a_loss(name: str) -> None:
    loss = LOSSES[name]
    assert_blames_the_caller(lambda: jax.jit(lambda z: bad_log(jnp.sum(loss(z))))(LOGITS))


@each_loss
def test_nan_before_a_loss(name: str) -> None:
    loss = LOSSES[name]
    assert_blames_the_caller(lambda: jax.jit(lambda z: jnp.sum(loss(bad_log(z))))(LOGITS))


@pytest.mark.parametrize("name", ["cross entropy", "head"])
def test_nan_in_a_training_step(name: str) -> None:
    loss = LOSSES[name]

    @jax.jit
    def step(z: Any) -> Any:
        value, gradient = jax.value_and_grad(lambda z: jnp.sum(loss(z)))(z)
        return z - bad_log(value) * gradient

    assert_blames_the_caller(lambda: step(LOGITS))
