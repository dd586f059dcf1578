"""Functions, params and masks that the blockwise transforms take, and those that they refuse."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret import interpreted

import jaxlogits as jl

Array = jax.Array

N, D, K = 11, 3, 5
KERNEL = jax.random.normal(jax.random.key(0), [D, K])
HIDDEN = jax.random.normal(jax.random.key(1), [N, D])
LABELS = jnp.arange(N) % K
KEY = jax.random.key(2)
KINDS = pytest.mark.parametrize("kind", ["map", "sum", "mean"])


def loss(kernel: Array, hidden: Array, labels: Array) -> Array:
    return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


def blockwise(kind: str, fn: Callable[..., Any], **options: Any) -> Callable[..., Array]:
    call = getattr(jl, f"blockwise_{kind}")(fn, block_size=4)
    return lambda *args: jnp.sum(call(*args, **options))


def whole(kind: str, losses: Array) -> Array:
    return losses.mean() if kind == "mean" else losses.sum()


# Random numbers.


def dropout(key: Array, x: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), 2 * x, jnp.zeros_like(x))


def each(key: Array, hidden: Array) -> Array:
    return jax.vmap(dropout)(key, hidden)


def by_index(index: Array, hidden: Array) -> Array:
    return each(jax.vmap(lambda i: jax.random.fold_in(KEY, i))(index), hidden)


def by_place(hidden: Array) -> Array:
    return by_index(jnp.arange(len(hidden)), hidden)


def in_layers(hidden: Array) -> Array:
    keys = jax.random.split(KEY, 2)
    return jax.lax.scan(lambda h, key: (dropout(key, h), None), hidden, keys)[0]


def while_it_grows(hidden: Array) -> Array:
    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        key, h = carry
        return jax.random.fold_in(key, i), h + jax.random.normal(key, h.shape)

    return jax.lax.fori_loop(0, 2, step, (KEY, hidden))[1]


def in_a_branch(hidden: Array) -> Array:
    return jax.lax.cond(hidden[0, 0] > 0, lambda h: dropout(KEY, h), lambda h: h, hidden)


def remade(hidden: Array) -> Array:
    return jax.checkpoint(jax.jit(lambda h: dropout(KEY, h)))(hidden)


SHARED: dict[str, Callable[[Any, Array], Array]] = {
    "closure": lambda _, h: dropout(KEY, h),
    "params": dropout,
    "raw": lambda _, h: dropout(jax.random.PRNGKey(0), h),
    "place in the block": lambda _, h: by_place(h),
    "layers": lambda _, h: in_layers(h),
    "loop": lambda _, h: while_it_grows(h),
    "branch": lambda _, h: in_a_branch(h),
    "checkpoint": lambda _, h: remade(h),
    "gamma": lambda key, h: h * jax.random.gamma(key, jnp.exp(h)),
    "one number a row": lambda key, h: h * jax.random.normal(key, [len(h), 1]),
}


@KINDS
@pytest.mark.parametrize("name", SHARED)
def test_a_draw_for_each_row_with_a_key_that_all_share_is_refused(kind: str, name: str) -> None:
    def fn(params: Any, hidden: Array, labels: Array) -> Array:
        return loss(params[0], SHARED[name](params[1], hidden), labels)

    message = "fn must draw with keys that are rows, such as .* got a key that all rows share: "
    with pytest.raises(ValueError, match=message):
        blockwise(kind, fn)((KERNEL, KEY), HIDDEN, LABELS)


OWN: dict[str, Callable[[Array, Array, Array], Array]] = {
    "keys": lambda keys, _, h: each(keys, h),
    "raw keys": lambda keys, _, h: each(jax.random.key_data(keys), h),
    "index": lambda _, index, h: by_index(index, h),
    "data": lambda _, _i, h: by_index(jax.lax.bitcast_convert_type(h[:, 0], jnp.int32), h),
    "one row of noise": lambda _, _i, h: h + jax.random.normal(KEY, [1, D]),
    "noisy kernel": lambda _, _i, h: h @ jax.random.normal(KEY, [D, D]),
    "unused": lambda _, _i, h: jax.jit(lambda h: (dropout(KEY, h), h))(h)[1],
}


@KINDS
@pytest.mark.parametrize("name", OWN)
def test_randomness_that_is_the_row_s_own_is_that_of_the_plain_function(
    kind: str, name: str
) -> None:
    def fn(kernel: Array, keys: Array, index: Array, hidden: Array, labels: Array) -> Array:
        with jax.numpy_rank_promotion("allow"):
            return loss(kernel, OWN[name](keys, index, hidden), labels)

    args = KERNEL, jax.random.split(KEY, N), jnp.arange(N), HIDDEN, LABELS
    # Sums of 11 numbers of a few roundings each.
    want = whole(kind, fn(*args))
    np.testing.assert_allclose(blockwise(kind, fn)(*args), want, rtol=1e-5)


# What a function writes.


class Counter:
    """A module with state, as Flax has them."""

    def __init__(self, kernel: Any, count: Any, name: str = "head") -> None:
        self.kernel, self.count, self.name = kernel, count, name

    def __call__(self, hidden: Array, counts: bool = True) -> Array:
        if counts:
            self.count = self.count + 1
        return hidden @ self.kernel


jax.tree_util.register_pytree_with_keys(
    Counter,
    lambda c: (
        [(jax.tree_util.GetAttrKey(n), getattr(c, n)) for n in ("kernel", "count")],
        c.name,
    ),
    lambda name, children: Counter(*children, name),
)


@KINDS
@pytest.mark.parametrize("count", [jnp.int32(3), 3], ids=["array", "number"])
def test_a_write_to_params_is_refused(kind: str, count: Any) -> None:
    def fn(module: Counter, hidden: Array, labels: Array, counts: bool = True) -> Array:
        logits = module(hidden, counts)
        return jl.softmax_cross_entropy_with_integer_labels(logits, labels)

    module = Counter(KERNEL, count)
    message = re.escape("fn must not write to params, got a write to .count: call eval() on a ")
    for call in (blockwise(kind, fn), jax.jit(blockwise(kind, fn))):
        with pytest.raises(ValueError, match=message):
            call(module, HIDDEN, LABELS)
    assert module.count is count
    got = blockwise(kind, lambda *args: fn(*args, counts=False))(module, HIDDEN, LABELS)
    np.testing.assert_allclose(got, whole(kind, loss(KERNEL, HIDDEN, LABELS)), rtol=1e-5)


def test_a_new_entry_in_params_is_refused() -> None:
    def fn(params: dict[str, Any], hidden: Array) -> Array:
        params["seen"] = hidden
        return hidden.sum(axis=1)

    with pytest.raises(ValueError, match="fn must not write to params, got a "):
        blockwise("sum", fn)({"kernel": KERNEL}, HIDDEN)


# Params of any kind.


class Layer(NamedTuple):
    kernel: Any
    activation: Any
    scale: float
    is_training: bool
    name: str
    nothing: None = None


@KINDS
def test_leaves_of_params_that_are_not_arrays_are_part_of_the_function(kind: str) -> None:
    def fn(layer: Layer, hidden: Array, labels: Array) -> Array:
        if layer.is_training or layer.name != "head" or layer.scale > 3:
            raise AssertionError
        return loss(layer.activation(layer.kernel) * layer.scale, hidden, labels)

    for activation in (jnp.tanh, jax.nn.relu, jnp.sin):
        layer = Layer(KERNEL, activation, 2.0, False, "head")

        def total(kernel: Array, layer: Layer = layer) -> Array:
            return blockwise(kind, fn)(layer._replace(kernel=kernel), HIDDEN, LABELS)

        def plain(kernel: Array, layer: Layer = layer) -> Array:
            return whole(kind, fn(layer._replace(kernel=kernel), HIDDEN, LABELS))

        got, want = jax.jit(jax.value_and_grad(total))(KERNEL), jax.value_and_grad(plain)(KERNEL)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6), got, want)


NARROW = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float4_e2m1fn", "int8", "int4"]


@KINDS
@pytest.mark.parametrize("dtype", NARROW)
def test_params_and_closures_of_a_byte_or_less(kind: str, dtype: str) -> None:
    kernel = KERNEL.astype(dtype)

    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        return loss(kernel.astype(jnp.float32), hidden, labels)

    want = whole(kind, fn(kernel, HIDDEN, LABELS))
    np.testing.assert_allclose(blockwise(kind, fn)(kernel, HIDDEN, LABELS), want, rtol=1e-5)

    def closed(scale: Array, hidden: Array, labels: Array) -> Array:
        return fn(kernel, hidden * scale, labels)

    got = jax.grad(blockwise(kind, closed))(jnp.float32(1), HIDDEN, LABELS)
    want = interpreted(jax.grad(lambda scale: whole(kind, closed(scale, HIDDEN, LABELS))))(
        jnp.float32(1)
    )
    np.testing.assert_allclose(got, want, rtol=1e-4)
    if kind == "sum" and dtype.startswith("float"):
        # Each row's gradient is 0, 1/2 or another number that the dtype has, and so is the sum.
        rows = jnp.array([0.5, 0.0, 0.5, 1.0])

        def product(param: Array, row: Array) -> Array:
            return param.astype(jnp.float32) * row

        one = jnp.ones([], dtype)
        gradient = jax.jit(jax.grad(blockwise("sum", product)))(one, rows)
        assert gradient.dtype == one.dtype
        assert gradient.astype(jnp.float32) == 2


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="this jax has no references")
@KINDS
def test_references_are_read_or_refused(kind: str) -> None:
    ref = jax.new_ref(KERNEL)

    def fn(kernel: Any, hidden: Array, labels: Array) -> Array:
        return loss(kernel[...], hidden, labels)

    want = whole(kind, loss(KERNEL, HIDDEN, LABELS))
    np.testing.assert_allclose(blockwise(kind, fn)(ref, HIDDEN, LABELS), want, rtol=1e-5)
    if jax.__version_info__ >= (0, 10):  # before, no jit of a reference took a derivative rule
        jitted = jax.jit(blockwise(kind, fn))
        np.testing.assert_allclose(jitted(ref, HIDDEN, LABELS), want, rtol=1e-5)
    with pytest.raises(TypeError, match="fn must close over arrays, got AbstractRef: pass it"):
        blockwise(kind, lambda _, *rows: fn(ref, *rows))(None, HIDDEN, LABELS)
    with pytest.raises(TypeError, match=r"got a reference to one: write kernel\[\.\.\.\]"):
        jl.linear_softmax_cross_entropy(HIDDEN, ref, LABELS)


# Masks and weights.


KEEP = jnp.arange(N) % 4 != 0
BAD = jnp.where(KEEP[:, None], HIDDEN, jnp.nan)
BAD_LABELS = jnp.where(KEEP, LABELS, -100)


@pytest.mark.parametrize("kind", ["map", "sum"])
def test_rows_left_out_by_where_cost_nothing_and_may_hold_nan(kind: str) -> None:
    def total(kernel: Array, hidden: Array) -> Array:
        weights = jnp.arange(1.0, N + 1) if kind == "map" else jnp.ones([N])
        call = getattr(jl, f"blockwise_{kind}")(loss, block_size=4)
        return jnp.sum(
            call(kernel, hidden, BAD_LABELS, where=KEEP) * (weights if kind == "map" else 1.0)
        )

    def plain(kernel: Array, hidden: Array) -> Array:
        weights = jnp.arange(1.0, N + 1) if kind == "map" else jnp.ones([N])
        losses = loss(kernel, hidden, LABELS)
        return jnp.sum(jnp.where(KEEP, losses * weights, jnp.zeros_like(losses)))

    def all_of(fn: Callable[..., Array]) -> Any:
        return jax.jit(
            lambda *args: (jax.value_and_grad(fn, (0, 1))(*args), jax.hessian(fn)(*args))
        )

    got, want = all_of(total)(KERNEL, BAD), all_of(plain)(KERNEL, HIDDEN)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5), got, want)


def test_a_map_of_rows_of_which_none_counts_is_0() -> None:
    def results(kernel: Array, hidden: Array, keep: Array) -> dict[str, Array]:
        def fn(kernel: Array, hidden: Array) -> dict[str, Array]:
            logits = hidden @ kernel
            return {"logits": logits, "best": logits.argmax(axis=1), "sure": logits[:, 0] > 0}

        return jl.blockwise_map(fn, block_size=4)(kernel, hidden, where=keep)

    none = jnp.zeros([N], bool)
    found = jax.jit(results)(KERNEL, jnp.full_like(HIDDEN, jnp.nan), none)
    assert not any(x.any() for x in jax.tree.leaves(found))
    gradient = jax.jit(jax.grad(lambda *args: results(*args)["logits"].sum(), (0, 1)))
    assert all((g == 0).all() for g in gradient(KERNEL, jnp.full_like(HIDDEN, jnp.nan), none))
    some = jax.jit(results)(KERNEL, BAD, KEEP)
    want = jnp.where(KEEP[:, None], HIDDEN @ KERNEL, 0.0)
    np.testing.assert_allclose(some["logits"], want, rtol=1e-5, atol=1e-6)


def test_where_of_a_map_has_the_rank_of_the_rows() -> None:
    def fn(_: None, x: Array) -> Array:
        return x

    call = jl.blockwise_map(fn, row_ndim=2, block_size=4)
    x = jnp.ones([3, 3])
    np.testing.assert_array_equal(call(None, x, where=jnp.eye(3, dtype=bool)), jnp.eye(3))
    got = call(None, x, where=jnp.array([[True], [False], [True]]))
    np.testing.assert_array_equal(got[:, 0], [1, 0, 1])
    with pytest.raises(ValueError, match=r"where must have the 2 leading .* got bool\[3\]"):
        call(None, x, where=jnp.ones([3], bool))
    with pytest.raises(TypeError, match="where must be boolean"):
        call(None, x, where=jnp.ones([3, 3]))


def test_a_mean_with_weights_that_sum_to_0_is_a_division_by_0() -> None:
    mean = jl.blockwise_mean(loss, block_size=4)
    pairs = jnp.array([1.0, -1, 0.5, -0.5, *[0] * (N - 4)])
    value, gradient = jax.jit(jax.value_and_grad(mean))(KERNEL, HIDDEN, LABELS, weights=pairs)
    assert not np.isfinite(value)
    assert not np.isfinite(gradient).all()
    # A sum of 0, too.
    same = mean(KERNEL, HIDDEN[:1], LABELS[:1], weights=jnp.zeros([1]))
    assert same == 0
    nothing = jl.blockwise_mean(lambda _, x: 0 * x)(
        None, jnp.ones([2]), weights=jnp.array([1.0, -1])
    )
    assert np.isnan(nothing)
    # No row counts: 0, as before.
    args = KERNEL, jnp.full_like(HIDDEN, jnp.nan), LABELS
    for options in ({"weights": 0 * pairs}, {"weights": pairs, "where": jnp.arange(N) >= 4}):
        value, gradient = jax.jit(jax.value_and_grad(mean))(*args, **options)
        assert value == 0
        assert (gradient == 0).all()


# Options.


def test_options_are_numbers_of_any_kind() -> None:
    want = jl.blockwise_sum(loss, block_size=4)(KERNEL, HIDDEN, LABELS)
    for size in (np.int64(4), np.uint8(4), jnp.int32(4)):
        options = {"block_size": size, "row_ndim": np.int64(1), "accumulate_dtype": "bfloat16"}
        assert jl.blockwise_sum(loss, **options)(KERNEL, HIDDEN, LABELS) == want


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block_size": 4.0}, ValueError, "block_size must be a positive int, got 4.0"),
        ({"block_size": True}, ValueError, "block_size must be a positive int, got True"),
        ({"row_ndim": "2"}, ValueError, "row_ndim must be a positive int, got '2'"),
        ({"accumulate_dtype": int}, TypeError, "accumulate_dtype must be a floating-point dtype"),
        ({"accumulate_dtype": complex}, TypeError, "accumulate_dtype must be a floating-point"),
        ({"accumulate_dtype": "nope"}, TypeError, "accumulate_dtype must be a floating-point"),
        ({"has_aux": "yes"}, TypeError, "has_aux must be a bool, got 'yes'"),
    ],
)
def test_bad_options_are_refused_before_a_call(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        jl.blockwise_mean(loss, **options)


def test_what_is_no_function_no_row_and_no_weight_is_refused() -> None:
    with pytest.raises(TypeError, match="fn must be a function, got int"):
        jl.blockwise_map(3)
    with pytest.raises(TypeError, match="rows must be an array of numbers, got str"):
        jl.blockwise_sum(loss)(KERNEL, HIDDEN, "labels")
    with pytest.raises(TypeError, match="weights must be real numbers, got complex64"):
        jl.blockwise_sum(loss)(KERNEL, HIDDEN, LABELS, weights=jnp.ones([N], complex))
