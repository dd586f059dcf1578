"""Blockwise functions outside jit: traced at each call, compiled once, nothing of them kept."""

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, monitoring
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl
from jaxlogits._src.blockwise.kept import _program

Array = jax.Array

KERNEL = jax.random.normal(jax.random.key(0), [3, 5])
HIDDEN = jax.random.normal(jax.random.key(1), [11, 3])
LABELS = jnp.arange(11) % 5
ARGS = KERNEL, HIDDEN, LABELS
COMPILED = "/jax/core/compile/backend_compile_duration"
KINDS = pytest.mark.parametrize("kind", ["map", "sum", "mean"])


def loss(kernel: Array, hidden: Array, labels: Array) -> Array:
    return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


def plain(kernel: Array, hidden: Array, labels: Array) -> Array:
    logits = hidden @ kernel
    is_label = lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels[:, None]
    picked = jnp.sum(jnp.where(is_label, logits, jnp.zeros_like(logits)), axis=1)
    return jax.nn.logsumexp(logits, axis=1) - picked


def with_a_rule(kernel: Array, hidden: Array, labels: Array) -> Array:
    return plain(kernel, jax.nn.relu(hidden), labels)  # relu has a rule outside any jit


def blockwise(kind: str, fn: Callable[..., Any], **options: Any) -> Callable[..., Array]:
    call = getattr(jl, f"blockwise_{kind}")(fn, block_size=4, **options)
    return lambda *args: jnp.sum(call(*args))


def anew(fn: Callable[..., Array]) -> Callable[..., Array]:
    """A function that nobody has seen before."""

    def same(*args: Array) -> Array:
        return fn(*args)

    return same


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """A list that gets an entry for each program that XLA compiles."""
    found: list[str] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        del duration
        if event == COMPILED:
            found.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    yield found
    monitoring.unregister_event_duration_listener(listen)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "value": lambda fn: fn,
    "grad": jax.value_and_grad,
    "jvp": lambda fn: lambda *args: jax.jvp(lambda x: fn(x, *args[1:]), args[:1], args[:1]),
    "vmap": lambda fn: lambda *args: jax.vmap(fn, (0, None, None))(args[0][None], *args[1:]),
    "second": lambda fn: (
        lambda *args: jax.jvp(lambda x: jax.grad(fn)(x, *args[1:]), args[:1], args[:1])
    ),
}
CASES = [(name, loss) for name in TRANSFORMS]
CASES += [("value", plain), ("grad", plain), ("value", with_a_rule)]


# jax 0.9 inlines the library's programs that fn calls, and their rules stand outside any jit then.
@pytest.mark.newest
@KINDS
@pytest.mark.parametrize(("name", "fn"), CASES)
def test_a_new_function_of_the_same_operations_compiles_nothing(
    kind: str, name: str, fn: Callable[..., Array], compiled: list[str]
) -> None:
    def call() -> Any:
        new = blockwise(kind, anew(fn))
        return TRANSFORMS[name](new)(*ARGS)

    first = call()
    call()  # what jax keeps of its own
    before = len(compiled)
    again = call()
    assert len(compiled) == before
    jax.tree.map(np.testing.assert_array_equal, again, first)


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_a_gradient_through_a_rule_of_the_function_compiles_once(
    kind: str, compiled: list[str]
) -> None:
    for _ in range(3):
        before = len(compiled)
        got = jax.grad(blockwise(kind, anew(with_a_rule)))(*ARGS)
    assert len(compiled) == before
    scale = 11 if kind == "mean" else 1
    want = jax.grad(lambda *args: with_a_rule(*args).sum() / scale)(*ARGS)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


class Head:
    """Methods are equal by their object, whatever it holds."""

    def __init__(self, kernel: Array) -> None:
        self.kernel = kernel

    def loss(self, scale: Array, hidden: Array, labels: Array) -> Array:
        return loss(self.kernel * scale, hidden, labels)


@KINDS
def test_a_method_sees_what_its_object_holds_now(kind: str, compiled: list[str]) -> None:
    head = Head(KERNEL)
    call = blockwise(kind, head.loss)
    one = jnp.float32(1)

    def wanted(kernel: Array) -> Any:
        return blockwise(kind, loss)(kernel, HIDDEN, LABELS)

    np.testing.assert_allclose(call(one, HIDDEN, LABELS), wanted(KERNEL), rtol=1e-6)
    for factor in (2, 3):
        head.kernel = factor * KERNEL
        want = wanted(head.kernel)
        before = len(compiled)
        np.testing.assert_allclose(call(one, HIDDEN, LABELS), want, rtol=1e-6)
        assert len(compiled) == before

    def traced(kernel: Array) -> Array:
        head.kernel = kernel
        return call(one, HIDDEN, LABELS)

    value, gradient = jax.jit(jax.value_and_grad(traced))(4 * KERNEL)
    np.testing.assert_allclose(value, wanted(4 * KERNEL), rtol=1e-6)
    assert jnp.any(gradient != 0)
    head.kernel = 5 * KERNEL  # not the tracer that the program above has left there
    np.testing.assert_allclose(call(one, HIDDEN, LABELS), wanted(5 * KERNEL), rtol=1e-6)


SCALE = 1.0


@jax.custom_vjp
def reversed_gradient(x: Array) -> Array:
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return x, None


def _backward(_: None, g: Array) -> tuple[Array]:
    return (-SCALE * g,)


reversed_gradient.defvjp(_forward, _backward)


@KINDS
def test_a_rule_sees_what_it_reads_now(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        return plain(reversed_gradient(kernel), hidden, labels)

    want = jax.grad(blockwise(kind, plain))(*ARGS)
    for scale in (1.0, 3.0):
        monkeypatch.setitem(globals(), "SCALE", scale)
        got = jax.grad(blockwise(kind, fn))(*ARGS)
        np.testing.assert_allclose(got, -scale * want, rtol=1e-5, atol=1e-6)


def test_numbers_and_arrays_that_the_function_closes_over() -> None:
    array = np.ones(3, np.float32)

    def total(factor: float) -> Array:
        def fn(kernel: Array, hidden: Array) -> Array:
            row = hidden * jnp.broadcast_to(jnp.asarray(array), hidden.shape)
            return jnp.sum(row @ kernel, axis=1) * factor

        return jl.blockwise_sum(fn, block_size=4)(KERNEL, HIDDEN)

    one = total(1.0)
    for factor in (0.0, -0.0, 1.0, 2.0):
        assert total(factor) == factor * one
    array[:] = 2  # in place: the array is the same object
    np.testing.assert_allclose(total(1.0), 2 * one, rtol=1e-6)


def test_a_thousand_calls_keep_one_program_and_no_array() -> None:
    _program.cache_clear()
    gone = []
    for i in range(1000):
        shift = jnp.full([5], i, jnp.float32)
        gone.append(weakref.ref(shift))

        def fn(kernel: Array, hidden: Array, labels: Array, shift: Array = shift) -> Array:
            return plain(kernel, hidden, labels) + jnp.max(shift)

        value = jl.blockwise_sum(fn, block_size=4)(*ARGS)
    assert value > 11 * 998
    assert _program.cache_info().currsize == 1
    del shift, fn
    gc.collect()
    assert not any(ref() is not None for ref in gone)


def test_a_limited_number_of_programs_is_kept() -> None:
    _program.cache_clear()
    programs = []
    for i in range(80):
        jl.blockwise_sum(lambda scale, x, i=i: x * scale + i, block_size=4)(1.0, jnp.ones([2]))
        programs.append(i)
    info = _program.cache_info()
    assert info.currsize <= info.maxsize < 80


@pytest.mark.parametrize(
    ("kind", "transform"), [("map", "grad"), ("sum", "second"), ("mean", "grad"), ("mean", "value")]
)
def test_no_tracer_is_left_behind(kind: str, transform: str) -> None:
    def total(params: Any, hidden: Array, labels: Array) -> Array:
        def fn(params: Any, hidden: Array, labels: Array) -> Array:
            return loss(params["kernel"] + scale * params["kernel"], hidden, labels)

        scale = jnp.sum(params["kernel"])  # closed over
        return blockwise(kind, fn)(params, hidden, labels)

    def of(kernel: Array, hidden: Array, labels: Array) -> Array:
        return total({"kernel": kernel}, hidden, labels)

    want = jax.jit(TRANSFORMS[transform](of))(*ARGS)
    with jax.check_tracer_leaks():
        for fn in (TRANSFORMS[transform](of), jax.jit(TRANSFORMS[transform](of))):
            got = fn(*ARGS)
            jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4), got, want)


KEPT = LABELS != 2


def total_of_kept(kind: str, kernel: Array, hidden: Array) -> Array:
    call = getattr(jl, f"blockwise_{kind}")(loss, block_size=4)
    return jnp.sum(call(kernel, hidden, LABELS, where=KEPT))


@functools.cache
def without_tools(kind: str) -> Any:
    hidden = jnp.where(KEPT[:, None], HIDDEN, jnp.nan)
    of = functools.partial(total_of_kept, kind)
    return jax.jit(jax.value_and_grad(of, (0, 1)))(KERNEL, hidden)


# On the oldest jax an eager gradient pads the rows outside a program, NaN of the caller's included.
@KINDS
@pytest.mark.parametrize(
    "mode",
    [
        "jax_check_tracer_leaks",
        pytest.param("jax_debug_nans", marks=pytest.mark.newest),
        "jax_enable_checks",
        "jax_disable_jit",
    ],
)
def test_tools_for_debugging(kind: str, mode: str) -> None:
    hidden = jnp.where(KEPT[:, None], HIDDEN, jnp.nan)
    total = functools.partial(total_of_kept, kind)
    want = without_tools(kind)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(want))
    before = getattr(jax.config, mode)
    jax.config.update(mode, True)
    try:
        value = total(KERNEL, hidden)
        got = jax.value_and_grad(total, (0, 1))(KERNEL, hidden)
    finally:
        jax.config.update(mode, before)
    np.testing.assert_allclose(value, want[0], rtol=1e-6)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-7), got, want)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_rows_over_a_mesh_compile_nothing_again(kind: Any, compiled: list[str]) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    rows = jnp.concatenate([HIDDEN, HIDDEN[:1]]), jnp.arange(12) % 5
    options = {} if kind == AxisType.Explicit else {"row_axis_name": "data"}
    want = loss(KERNEL, *rows).mean()
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in rows]
        kernel = jax.device_put(KERNEL, NamedSharding(mesh, P()))
        for _ in range(3):
            before = len(compiled)
            got = jl.blockwise_mean(anew(loss), block_size=4, **options)(kernel, *placed)
        assert len(compiled) == before
    np.testing.assert_allclose(got, want, rtol=1e-6)


# Once for its block; once more for a number of rows that tells which arrays grow with them, if the
# block's size is to be chosen or noise be looked at, but not for each of these.
@KINDS
@pytest.mark.parametrize(
    ("rows", "options", "draws", "times"),
    [
        (11, {}, False, 1),  # too few for more than one block
        (300, {"block_size": 100}, False, 1),
        (300, {}, False, 2),
        (300, {"block_size": 100}, True, 2),
        (300, {}, True, 2),
    ],
)
def test_how_often_the_function_is_traced(
    kind: str, rows: int, options: dict[str, int], draws: bool, times: int
) -> None:
    calls = 0

    def fn(kernel: Array, hidden: Array, keys: Array) -> Array:
        nonlocal calls
        calls += 1
        noise = jax.vmap(lambda key: jax.random.normal(key, [5]))(keys) if draws else jnp.ones([1])
        return jnp.sum(hidden @ kernel * jnp.broadcast_to(noise, (len(hidden), 5)), axis=1)

    hidden, keys = jnp.ones([rows, 3]), jax.random.split(jax.random.key(0), rows)
    transform = getattr(jl, f"blockwise_{kind}")(fn, **options)
    traced = jax.make_jaxpr(jax.grad(lambda kernel: jnp.sum(transform(kernel, hidden, keys))))
    traced(KERNEL)
    assert calls == times


@pytest.mark.parametrize(("kind", "times"), [("map", 1), ("sum", 2)])
def test_how_often_the_function_is_traced_on_a_mesh(kind: str, times: int) -> None:
    """A sum learns from the first trace over which axes the losses vary, and so must the params."""
    calls = 0

    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        nonlocal calls
        calls += 1
        return plain(kernel, hidden, labels)

    transform = blockwise(kind, fn, row_axis_name="data")
    with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))):
        jax.make_jaxpr(transform)(KERNEL, HIDDEN[:10], LABELS[:10])
    assert calls == times
