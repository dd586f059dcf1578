"""What a policy says of classes: the numbers of plain log_softmax(hidden @ kernel), in blocks."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms as tf
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl

Array = jax.Array
ROWS, FEATURES, CLASSES, TOP = 6, 4, 8, 3
RNG = np.random.default_rng(0)
HIDDEN, KERNEL = RNG.normal(size=(ROWS, FEATURES)), RNG.normal(size=(FEATURES, CLASSES))
BIAS, LABELS = RNG.normal(size=CLASSES), RNG.integers(CLASSES, size=ROWS)
EXISTS, KEEP = np.arange(CLASSES) % 4 != 1, np.arange(ROWS) % 3 != 1
LAYER = {"soft_cap": 3.0, "temperature": 0.5}
# Logits of at most 16 from a few products: each within 8 * 16 * 2^-24, and a result or a gradient
# adds up at most a dozen such errors, divided by the temperature.
CLOSE = 24 * 2**-17


def wide(*arrays: Any) -> list[Array]:
    """In the dtype that is the default now."""
    return [jnp.asarray(x, jnp.result_type(float) if x.dtype == float else None) for x in arrays]


def plain_logits(hidden: Any, kernel: Any, bias: Any) -> Array:
    """Those of LAYER, whole."""
    z = hidden @ kernel + jnp.broadcast_to(bias, (*hidden.shape[:-1], kernel.shape[1]))
    z = LAYER["soft_cap"] * jnp.tanh(z / LAYER["soft_cap"])
    return z / LAYER["temperature"]


def plain_log_probs(hidden: Any, kernel: Any, bias: Any) -> Array:
    return jax.nn.log_softmax(plain_logits(hidden, kernel, bias), axis=-1)


def one_array(results: Any) -> Array:
    """The floating-point results, one row each."""
    floats = [x for x in results if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.concatenate([x.reshape(ROWS, -1) for x in floats], axis=-1)


def policy(hidden: Array, kernel: Array, bias: Array, **options: Any) -> tuple[Array, Array]:
    options = {"bias": bias, "block_size": 4, **LAYER, **options}
    return jl.linear_log_probs_and_entropy(hidden, kernel, LABELS, **options)


def plain_policy(hidden: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    log_probs = plain_log_probs(hidden, kernel, bias)
    chosen = jnp.take_along_axis(log_probs, LABELS[:, None], axis=-1)[:, 0]
    return chosen, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def top(hidden: Array, kernel: Array, bias: Array, **options: Any) -> tuple[Array, Array]:
    options = {"bias": bias, "block_size": 4, **LAYER, **options}
    return jl.linear_top_k(hidden, kernel, TOP, **options)


def plain_top(hidden: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    return jax.lax.top_k(plain_log_probs(hidden, kernel, bias), TOP)


BOTH = {"policy": (policy, plain_policy), "top": (top, plain_top)}


def joined(fn: Callable[..., Any]) -> tf.Joined:
    point, restore = ravel_pytree(wide(HIDDEN, KERNEL, BIAS))

    def value(point: Array) -> Array:
        return one_array(fn(*restore(point)))

    def number(point: Array) -> Array:
        each = value(point)
        return jnp.sum(each * jnp.cos(jnp.arange(each.size, dtype=each.dtype)).reshape(each.shape))

    return tf.Joined(point, value, number)


@pytest.mark.parametrize("name", BOTH)
def test_value_gradient_and_hessian(name: str) -> None:
    ours, theirs = BOTH[name]
    with jax.enable_x64(True):
        g = joined(theirs)
        wants = [jax.jit(fn)(g.point) for fn in (g.value, jax.grad(g.number))]
        wants.append(jax.jit(jax.hessian(g.number))(g.point))
    # All others are those of blockwise_map, which test_transforms.py goes through.
    every_result = tf.few_of_each(joined(ours))
    for results, want in zip(every_result, wants, strict=True):
        for transform, got in results.items():
            atol = CLOSE * max(1.0, np.max(abs(np.asarray(want))))
            np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=transform)


def test_the_classes_are_the_likeliest() -> None:
    args = wide(HIDDEN, KERNEL, BIAS)
    np.testing.assert_array_equal(jax.jit(top)(*args)[1], plain_top(*args)[1])


@pytest.mark.parametrize("name", BOTH)
def test_rows_and_classes_left_out_are_as_if_not_there(name: str) -> None:
    fn, _ = BOTH[name]
    hidden, kernel, bias = wide(HIDDEN, KERNEL, BIAS)
    labels = np.flatnonzero(EXISTS)[LABELS % 6]
    bad = jnp.where(KEEP[:, None], hidden, jnp.nan)
    options = {**LAYER, "block_size": 4}

    def padded(hidden: Array, kernel: Array) -> Any:
        more = {**options, "bias": bias, "where": KEEP, "class_where": EXISTS}
        if fn is top:
            return jl.linear_top_k(hidden, kernel, TOP, **more)
        return jl.linear_log_probs_and_entropy(hidden, kernel, np.where(KEEP, labels, -100), **more)

    def fewer(hidden: Array, kernel: Array) -> Any:
        more = {**options, "bias": bias[EXISTS]}
        if fn is top:
            return jl.linear_top_k(hidden, kernel, TOP, **more)
        return jl.linear_log_probs_and_entropy(hidden, kernel, (LABELS % 6)[KEEP], **more)

    def with_gradients(fn: Any, *args: Array) -> Any:
        def number(*args: Array) -> tuple[Array, Any]:
            results = fn(*args)
            floats = [x for x in results if jnp.issubdtype(x.dtype, jnp.floating)]
            return sum(jnp.sum(jnp.sin(x)) for x in floats), results

        return jax.jit(jax.value_and_grad(number, (0, 1), has_aux=True))(*args)

    (_, got), (dhidden, dkernel) = with_gradients(padded, bad, kernel)
    (_, want), gradients = with_gradients(fewer, hidden[KEEP], kernel[:, EXISTS])
    close = functools.partial(np.testing.assert_allclose, rtol=CLOSE, atol=CLOSE)
    close(got[0][KEEP], want[0])
    if fn is top:
        np.testing.assert_array_equal(got[1][KEEP], np.flatnonzero(EXISTS)[want[1]])
        assert np.all(got[1][~KEEP] == -1)
    else:
        close(got[1][KEEP], want[1])
        assert not got[1][~KEEP].any()
    assert not got[0][~KEEP].any()
    close(dhidden[KEEP], gradients[0])
    close(dkernel[:, EXISTS], gradients[1])
    assert not dhidden[~KEEP].any()
    assert not dkernel[:, ~EXISTS].any()


# Edges.


def test_a_label_out_of_range_is_nan_and_the_entropy_stays() -> None:
    args = wide(HIDDEN, KERNEL)
    labels = LABELS.copy()
    labels[2] = CLASSES
    log_probs, entropies = jl.linear_log_probs_and_entropy(*args, labels)
    np.testing.assert_array_equal(np.isnan(log_probs), np.arange(ROWS) == 2)
    np.testing.assert_array_equal(log_probs, jl.linear_log_probs(*args, labels))
    np.testing.assert_array_equal(entropies, jl.linear_log_probs_and_entropy(*args, LABELS)[1])

    def total(hidden: Array, index: int) -> Array:
        return jl.linear_log_probs_and_entropy(hidden, args[1], labels)[index].sum()

    spoiled = np.isnan(jax.grad(total)(args[0], 0)).any(axis=1)
    np.testing.assert_array_equal(spoiled, np.arange(ROWS) == 2)
    assert np.isfinite(jax.grad(total)(args[0], 1)).all()


def test_a_class_that_is_not_there_is_minus_one() -> None:
    kernel = jnp.array([[3.0, 1.0, 2.0]])
    exists = jnp.array([True, False, True])
    log_probs, classes = jl.linear_top_k(jnp.ones([1]), kernel, 3, class_where=exists)
    np.testing.assert_array_equal(classes, [0, 2, -1])
    np.testing.assert_allclose(np.exp(log_probs).sum(), 1.0, rtol=2**-22)
    assert log_probs[2] == -jnp.inf
    bias = jnp.array([0.0, -jnp.inf, 0.0])
    np.testing.assert_array_equal(jl.linear_top_k(jnp.ones([1]), kernel, 3, bias=bias)[1], classes)


def test_a_row_of_nan_has_no_classes() -> None:
    hidden = jnp.array([[jnp.nan], [1.0]])
    log_probs, classes = jl.linear_top_k(hidden, jnp.array([[3.0, 1.0, 2.0]]), 2)
    assert np.isnan(log_probs[0]).all()
    assert np.isfinite(log_probs[1]).all()
    np.testing.assert_array_equal(classes, [[-1, -1], [0, 2]])


def test_the_first_of_equal_logits_comes_first() -> None:
    kernel = jnp.array([[1.0, 2.0, 1.0, 2.0, 1.0]])
    classes = jl.linear_top_k(jnp.ones([2, 1]), kernel, 4)[1]
    np.testing.assert_array_equal(classes, [[1, 3, 0, 2]] * 2)


def test_a_sure_row_keeps_its_small_numbers() -> None:
    hidden, kernel = jnp.ones([1]), jnp.array([[0.0, 40.0]])
    log_prob, entropy = jl.linear_log_probs_and_entropy(hidden, kernel, jnp.array(1))
    # e^-40 and 41 e^-40; the plain formulas give 0.
    np.testing.assert_allclose(log_prob, -np.exp(-40.0), rtol=2**-21)
    np.testing.assert_allclose(entropy, 41 * np.exp(-40.0), rtol=2**-21)
    assert jl.linear_top_k(hidden, kernel, 1)[0] == log_prob


def test_refusals() -> None:
    hidden, kernel = wide(HIDDEN, KERNEL)
    for k in (0, CLASSES + 1):
        with pytest.raises(ValueError, match=rf"^k must be at least 1 and at most 8, got {k}$"):
            jl.linear_top_k(hidden, kernel, k)
    with pytest.raises(
        TypeError, match=r"^k must be an int that is known while tracing, got 2\.5$"
    ):
        jl.linear_top_k(hidden, kernel, 2.5)
    with pytest.raises(ValueError, match=r"^labels must have the shape of hidden without its feat"):
        jl.linear_log_probs_and_entropy(hidden, kernel, jnp.array(0))


# Memory and meshes.


@pytest.mark.parametrize("name", BOTH)
def test_memory_does_not_grow_with_the_rows(name: str) -> None:
    def gradient(hidden: Array, kernel: Array, labels: Array) -> Any:
        def total(hidden: Array, kernel: Array) -> Array:
            if name == "top":
                return jl.linear_top_k(hidden, kernel, TOP, block_size=128)[0].sum()
            both = jl.linear_log_probs_and_entropy(hidden, kernel, labels, block_size=128)
            return (both[0] + both[1]).sum()

        return jax.grad(total, (0, 1))(hidden, kernel)

    def need(rows: int) -> int:
        types = [((rows, 8), jnp.float32), ((8, 4096), jnp.float32), ((rows,), jnp.int32)]
        args = [jax.ShapeDtypeStruct(*x) for x in types]
        return jax.jit(gradient).lower(*args).compile().memory_analysis().temp_size_in_bytes

    block = 128 * 4096 * 4
    few, many = need(512), need(2048)
    assert many < 8 * block
    # hidden and its gradient, cut into blocks, labels, and a few numbers for each row.
    assert many - few <= (2048 - 512) * 4 * (3 * 8 + 16)


def split(mesh: Any, *arrays: Array) -> list[Array]:
    specs = [P("data"), P(None, "model"), P("model")]
    return [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)
    ]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
def test_on_a_mesh(name: str, kind: AxisType) -> None:
    """Rows over two devices, classes over four, of which each has fewer than the k largest."""
    fn, _ = BOTH[name]
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))
    args = wide(HIDDEN, KERNEL, BIAS)
    exists = EXISTS | np.isin(np.arange(CLASSES), LABELS)
    fn = functools.partial(fn, class_where=exists)

    def both(fn: Callable[..., Any]) -> Any:
        def number(*args: Array) -> tuple[Array, Any]:
            results = fn(*args)
            return jnp.sum(jnp.sin(results[0])), results

        return jax.jit(jax.value_and_grad(number, (0, 1, 2), has_aux=True))

    def on_mesh(*args: Array) -> Any:
        if kind == AxisType.Explicit:
            return fn(*args)

        def local(labels: Array, exists: Array, *args: Array) -> Any:
            options = {"axis_name": "model", "row_axis_name": "data", "block_size": 2, **LAYER}
            options |= {"class_where": exists}
            hidden, kernel, bias = args
            if name == "top":
                return jl.linear_top_k(hidden, kernel, TOP, bias=bias, **options)
            return jl.linear_log_probs_and_entropy(hidden, kernel, labels, bias=bias, **options)

        specs = (P("data"), P("model"), P("data"), P(None, "model"), P("model"))
        run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"))
        return run(LABELS, exists, *args)

    got, want = both(on_mesh)(*split(mesh, *args)), both(fn)(*args)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE)
    if kind == AxisType.Explicit:
        assert jax.typeof(got[0][1][0]).sharding.spec[0] == "data"


def test_temperatures_of_rows_on_a_mesh() -> None:
    """Split as the rows are, whether their own types or those of hidden say so."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    hidden, kernel, bias = wide(HIDDEN, KERNEL, BIAS)
    warmth = jnp.linspace(0.5, 2.0, len(HIDDEN), dtype=hidden.dtype)

    @jax.jit
    def run(hidden: Array, kernel: Array, bias: Array, warmth: Array) -> Any:
        def total(warmth: Array) -> Array:
            options = {"bias": bias, "temperature": warmth}
            return jnp.sum(jnp.sin(jl.linear_log_probs(hidden, kernel, LABELS, **options)))

        return jax.value_and_grad(total)(warmth)

    want = run(hidden, kernel, bias, warmth)
    for spec in (P(), P("data")):
        placed = jax.device_put(warmth, NamedSharding(mesh, spec))
        got = run(*split(mesh, hidden, kernel, bias), placed)
        for one, other in zip(got, want, strict=True):
            np.testing.assert_allclose(one, other, rtol=CLOSE, atol=CLOSE)


def test_padding_of_kept_classes_reads_no_other_class() -> None:
    """Not even one whose column is NaN; of no classes at all nothing is likely."""
    hidden, kernel = jnp.ones([3, 2]), jnp.ones([2, 4]).at[:, 0].set(jnp.nan)
    labels, kept = jnp.array([1, 1, 2]), jnp.array([[1, 2, -1]] * 3)

    def total(hidden: jax.Array, kept: jax.Array) -> jax.Array:
        return jl.linear_log_probs(hidden, kernel, labels, kept=kept).sum()

    padded, plain = jax.grad(total)(hidden, kept), jax.grad(total)(hidden, kept[:, :2])
    np.testing.assert_array_equal(padded, plain)
    assert np.isfinite(plain).all()
    nothing = jl.linear_log_probs(hidden, kernel, labels, kept=kept[:, :0])
    np.testing.assert_array_equal(nothing, np.full(3, -np.inf))
