"""Calls outside jit: one program for each shape, no NaN on the way to a result, flat memory."""

import inspect
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from cases import CASES, Case, on_device, value_and_gradients
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from without_xla import programs_met

import jaxlogits as jl

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


COMPILED: list[float] = []


def _count(event: str, seconds: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILED.append(seconds)


@pytest.fixture(autouse=True, scope="module")
def _count_compilations() -> Iterator[None]:
    jax.monitoring.register_event_duration_secs_listener(_count)
    yield
    jax.monitoring.unregister_event_duration_listener(_count)


def compilations(run: Callable[[], Any]) -> int:
    """Also where numpy runs the programs instead."""

    def count() -> int:
        met = programs_met()
        return len(COMPILED) if met is None else met

    before = count()
    jax.block_until_ready(run())
    return count() - before


def test_no_public_function_is_left_out() -> None:
    functions = {name for name in jl.__all__ if not inspect.isclass(getattr(jl, name))}
    assert functions == cases.NAMES
    assert len(CASES) == len(cases.NAMES)


def all_calls(case: Case) -> dict[str, dict[str, Any]]:
    return {name: on_device(args) for name, args in case.calls.items()}


# Finite results and gradients aren't enough: each array that is kept for the backward pass counts.


@each_case
def test_debug_nans_is_quiet(case: Case) -> None:
    for args in all_calls(case).values():
        with jax.debug_nans(True):
            value_and_gradients(case, args)


@each_case
def test_debug_infs_is_quiet(case: Case) -> None:
    for args in all_calls(case).values():
        result, gradients = value_and_gradients(case, args)
        numbers = [*cases.floats(result), *gradients.values()]
        if all(np.isfinite(x).all() for x in numbers):
            with jax.debug_infs(True):
                value_and_gradients(case, args)


# One program for all values of arrays and options.


@each_case
def test_nothing_is_compiled_twice(case: Case) -> None:
    """Neither for other numbers, nor for others that are as far from what switches them off."""
    calls = all_calls(case)
    for args in calls.values():
        value_and_gradients(case, args)
    for name, args in calls.items():
        moved = (
            {k: 0.5 * x for k, x in case.differentiable(args).items()} if name == "plain" else {}
        )
        assert compilations(lambda: value_and_gradients(case, {**args, **moved})) == 0, name  # noqa: B023
    if case.options:
        other = {name: values[2] for name, values in case.options.items()}
        assert compilations(lambda: value_and_gradients(case, calls["full"] | other)) == 0


# One of each kernel.
ON_MESH = (
    *("softmax", "logsumexp", "class_log_odds", "softmax_cross_entropy_with_integer_labels"),
    *("softmax_cross_entropy", "softmax_kl_divergence", "entmax", "entmax_loss"),
    *("keep_top_k", "keep_top_p", "apply_temperature", "sample"),
)


@pytest.mark.compiled
@pytest.mark.newest
@pytest.mark.parametrize("name", ON_MESH)
def test_nothing_is_compiled_twice_on_an_explicit_mesh(name: str) -> None:
    (case,) = (case for case in CASES if case.name == name)
    mesh = jax.make_mesh((cases.N,), ("data",), axis_types=(AxisType.Explicit,))

    def split(x: Any) -> Any:
        if not isinstance(x, jax.Array):
            return x
        return jax.device_put(x, NamedSharding(mesh, P("data" if x.shape[0] == cases.N else None)))

    args = {k: split(x) for k, x in on_device(case.calls["plain"]).items()}
    with jax.set_mesh(mesh):
        case(**args)
        assert compilations(lambda: case(**args)) == 0


# Time.


@pytest.mark.compiled
@pytest.mark.newest
@pytest.mark.parametrize(
    "name", ["sigmoid", "softmax", "softmax_cross_entropy_with_integer_labels"]
)
def test_a_call_costs_about_what_a_peer_does(name: str) -> None:
    """In turns; benchmarks/eager.py has all of them. What runs operation by operation takes 10."""
    (case,) = (case for case in CASES if case.name == name)
    args = on_device(case.args)
    runs = [lambda: case.peer(*args.values()), lambda: case(**args)]  # type: ignore[misc]
    times = np.empty([300, 2])
    for row in times:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            jax.block_until_ready(run())
            row[i] = time.perf_counter() - start
    theirs, ours = np.median(times, axis=0)
    assert ours < 6 * theirs + 5e-5


# Memory.


@each_case
def test_no_array_is_kept(case: Case) -> None:
    args = on_device(case.calls["plain"])
    value_and_gradients(case, args)
    before = len(jax.live_arrays())
    for _ in range(5):
        value_and_gradients(case, args)
    assert len(jax.live_arrays()) <= before


STATUS = Path("/proc/self/statm")


@pytest.mark.compiled
@pytest.mark.skipif(not STATUS.exists(), reason="reads Linux's own account")
def test_memory_is_flat_over_a_thousand_calls() -> None:
    """A program that were kept at each call would be 0.2 to 0.9 MB, 1 GB in all."""
    few = ("softmax", "keep_top_p", "entmax", "linear_log_probs", "blockwise_sum")
    some = [(case, on_device(case.calls["plain"])) for case in CASES if case.name in few]

    def calls(count: int) -> int:
        for _ in range(count):
            for case, args in some:
                jax.block_until_ready(case(**args))
        return int(STATUS.read_text().split()[1]) * 4096

    calls(1)
    assert compilations(lambda: calls(1)) == 0
    before = calls(100)
    assert calls(1000) - before < 8e6


@pytest.mark.compiled
@pytest.mark.parametrize("kind", [float, np.float32, jnp.float32, np.float64])
def test_options_of_any_kind_are_inputs(kind: Any) -> None:
    z = jnp.asarray(cases.LOGITS)
    jl.apply_temperature(z, kind(0.5))
    assert compilations(lambda: [jl.apply_temperature(z, kind(t)) for t in (0.25, 0.0, 1.0)]) == 0


def test_numbers_that_pandas_holds() -> None:
    table = pd.DataFrame({"one": [1.0, 1.0, 1.0, 1.0], "x": [0.0, 1.0, 2.0, 4.0]})
    labels = pd.Series([0, 1, 0, 1])
    for fn, args, options in (
        (jl.softmax, (table["x"],), {}),
        (jl.softmax, (), {"logits": table, "where": table > 0}),
        (jl.softmax_cross_entropy_with_integer_labels, (table, labels), {}),
        (jl.fit_logistic, (table, labels), {"weights": table["one"]}),
    ):
        plain = {name: value.to_numpy() for name, value in options.items()}
        want = fn(*(value.to_numpy() for value in args), **plain)
        jax.tree.map(np.testing.assert_array_equal, fn(*args, **options), want)
    with pytest.raises(TypeError, match=r"^logits must be an array of numbers, got dtype"):
        jl.softmax(pd.Series(["a", "b"]))
    with pytest.raises(TypeError, match=r"^logits must be floating point, got int32\[4\]"):
        jl.softmax(labels)
