"""The blockwise transforms against the plain function: every transform, every edge, every dtype."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transforms as tf
from interpret import interpreted
from jax import export, lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxlogits as jl

# 11 rows in blocks of 4: three blocks, the last one padded by a row.
N, D, K = 11, 3, 5
BLOCK = 4

Array = jax.Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """NaN for a label that is no class."""
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, 1)
    is_label = classes == labels[:, None]
    picked = jnp.sum(jnp.where(is_label, logits, jnp.zeros_like(logits)), axis=1)
    picked = jnp.where(jnp.any(is_label, axis=1), picked, jnp.full_like(picked, jnp.nan))
    return jax.nn.logsumexp(logits, axis=1) - picked


def head(params: Any, hidden: Array, labels: Array) -> Array:
    return cross_entropy(hidden @ params["kernel"] + params["bias"][None], labels)


def head_and_logits(params: Any, hidden: Array, labels: Array) -> tuple[Array, dict[str, Array]]:
    logits = hidden @ params["kernel"]
    aux = {"hit": logits.argmax(axis=1) == labels, "logits": logits}
    return head(params, hidden, labels), aux


def random(seed: int, *shape: int, dtype: Any = jnp.float32) -> Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


PARAMS = {"kernel": random(0, D, K), "bias": random(1, K)}
HIDDEN = random(2, N, D)
LABELS = jax.random.randint(jax.random.key(3), [N], 0, K)
WEIGHTS = jax.random.uniform(jax.random.key(4), [N], minval=0.5)
FLOATS = (PARAMS, HIDDEN, WEIGHTS)


def blockwise(params: Any, hidden: Array, weights: Array, kind: str = "sum", **options: Any) -> Any:
    options = {"block_size": BLOCK} | options
    if kind == "map":
        return jl.blockwise_map(head, **options)(params, hidden, LABELS) * weights
    fn = {"sum": jl.blockwise_sum, "mean": jl.blockwise_mean}[kind](head, **options)
    return fn(params, hidden, LABELS, weights=weights)


def plain(params: Any, hidden: Array, weights: Array, kind: str = "sum") -> Any:
    losses = head(params, hidden, LABELS) * weights
    if kind == "map":
        return losses
    return jnp.sum(losses) if kind == "sum" else jnp.sum(losses) / jnp.sum(weights)


def assert_close(got: Any, want: Any, ulps: float = 100) -> None:
    """Equal up to the roundings of a sum.

    A derivative here is a sum of at most N D K = 165 products of about five rounded factors; errors
    of half an ulp in each are far from adding up in one direction, so 100 ulps of the largest entry
    are never reached, and a lost or repeated row is 1e5 of them.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        scale = np.max(np.abs(w), initial=0) + np.finfo(np.float32).tiny
        np.testing.assert_allclose(g, w, rtol=0, atol=ulps * 2**-23 * scale)


def joined(fn: Callable[..., Any], kind: str) -> tf.Joined:
    """``fn`` of one vector of everything that is differentiable."""
    point, restore = ravel_pytree(FLOATS)

    def value(point: Array) -> Array:
        return fn(*restore(point), kind=kind)

    def number(point: Array) -> Array:
        result = value(point)
        return jnp.sum(result * jnp.asarray(tf.result_weights(result.shape)))

    return tf.Joined(point, value, number)


KINDS = pytest.mark.parametrize("kind", ["map", "sum", "mean"])


# Every transform.


@KINDS
def test_transforms(kind: str) -> None:
    f = joined(plain, kind)
    wants = interpreted(lambda x: (f.value(x), jax.grad(f.number)(x), jax.hessian(f.number)(x)))
    for results, want in zip(
        tf.of_each_order(joined(blockwise, kind)), wants(f.point), strict=True
    ):
        for result in results.values():
            assert_close(result, want)


def test_without_jit() -> None:
    want = interpreted(jax.value_and_grad(plain, argnums=(0, 1, 2)))(*FLOATS)
    assert_close(jax.value_and_grad(blockwise, argnums=(0, 1, 2))(*FLOATS), want)


def test_jitted_jacfwd_gives_the_same_every_time() -> None:
    # A rule that instantiates zero tangents gave garbage here, another one in each run.
    fn = jax.jit(jax.jacfwd(blockwise))
    want = interpreted(jax.grad(plain))(*FLOATS)
    for _ in range(5):
        assert_close(fn(*FLOATS), want)


@KINDS
def test_eval_shape(kind: str) -> None:
    gradient = jax.grad(lambda *args: jnp.sum(blockwise(*args, kind=kind)), argnums=(0, 1))
    got = jax.eval_shape(gradient, *FLOATS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
        lambda x: (x.shape, x.dtype), FLOATS[:2]
    )


@KINDS
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (0, 0, 0)], ids=str)
def test_vmap_over_params_rows_or_both(kind: str, axes: tuple[int | None, ...]) -> None:
    def several(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.stack([x, 2 * x]), tree)

    args = [x if axis is None else several(x) for x, axis in zip(FLOATS, axes, strict=True)]

    def gradients(fn: Callable[..., Any]) -> Any:
        def number(*args: Any) -> Array:
            return jnp.sum(fn(*args, kind=kind))

        return jax.vmap(jax.value_and_grad(number, argnums=(0, 1, 2)), in_axes=axes)

    assert_close(jax.jit(gradients(blockwise))(*args), interpreted(gradients(plain))(*args))


def test_second_derivatives_of_a_function_of_the_results() -> None:
    """They ask for the slope of the results once more, by the rule of what made them.

    Before JAX 0.12 a scan that is taken apart forgets such rules: softplus has one, and sin asks.
    """

    def total(kernel: Array, hidden: Array) -> Array:
        def fn(kernel: Array, hidden: Array) -> Array:
            return jl.softplus(hidden @ kernel).sum(axis=1)

        return jnp.sum(jnp.sin(jl.blockwise_map(fn, block_size=BLOCK)(kernel, hidden)))

    def plain(kernel: Array, hidden: Array) -> Array:
        return jnp.sum(jnp.sin(jnp.logaddexp(hidden @ kernel, 0.0).sum(axis=1)))

    args = FLOATS[0]["kernel"], FLOATS[1]
    along = jax.tree.map(jnp.cos, args)

    def second(fn: Callable[..., Any]) -> Callable[..., Any]:
        gradients = jax.grad(fn, (0, 1))

        def backwards(*args: Any) -> Any:
            return sum(map(jnp.vdot, gradients(*args), along))

        def forwards(*args: Any) -> Any:
            return jax.jvp(fn, args, along)[1]

        return lambda *args: (
            jax.jvp(gradients, args, along)[1],
            jax.grad(backwards, (0, 1))(*args),
            jax.grad(forwards, (0, 1))(*args),
        )

    assert_close(jax.jit(second(total))(*args), interpreted(second(plain))(*args))


MESH = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
SPECS = {"mesh": MESH, "in_specs": (P(), P("data"), P("data"), P("data"))}


@KINDS
def test_shard_map_with_its_types_checked(kind: str) -> None:
    def local(params: Any, hidden: Array, labels: Array, weights: Array) -> Array:
        if kind == "map":
            each = jl.blockwise_map(head, block_size=BLOCK)(params, hidden, labels)
            return lax.psum(jnp.sum(each * weights), "data")
        fn = {"sum": jl.blockwise_sum, "mean": jl.blockwise_mean}[kind](head, block_size=BLOCK)
        return lax.psum(fn(params, hidden, labels, weights=weights), "data")

    def total(params: Any, hidden: Array, weights: Array) -> Array:
        return jax.shard_map(local, **SPECS, out_specs=P())(params, hidden, LABELS, weights)

    def number(*args: Any) -> Array:
        return jnp.sum(plain(*args, kind=kind))

    argnums = (0, 1, 2)

    def both(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (jax.value_and_grad(fn, argnums)(*args), jax.hessian(fn)(*args))

    assert_close(jax.jit(both(total))(*FLOATS), interpreted(both(number))(*FLOATS))


def test_shard_map_differentiates_what_is_closed_over() -> None:
    def local(params: Any, hidden: Array, labels: Array, weights: Array) -> Array:
        def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
            return head({"kernel": kernel, "bias": params["bias"]}, hidden, labels)

        total = jl.blockwise_sum(fn, block_size=BLOCK)
        return lax.psum(total(params["kernel"], hidden, labels, weights=weights), "data")

    def total(params: Any, hidden: Array, weights: Array) -> Array:
        return jax.shard_map(local, **SPECS, out_specs=P())(params, hidden, LABELS, weights)

    got = jax.jit(jax.value_and_grad(total))(*FLOATS)
    assert_close(got, interpreted(jax.value_and_grad(plain))(*FLOATS))


def test_what_is_closed_over_beside_a_mask_in_shard_map() -> None:
    """It changes on no device, and which rows count does: its derivatives in both modes."""
    keep = jnp.arange(N) % 3 != 1

    def each(params: Any, hidden: Array, scale: Array, keep: Array) -> Array:
        fn = jl.blockwise_map(lambda kernel, x: jnp.tanh(x @ kernel * scale), block_size=BLOCK)
        values: Array = fn(params["kernel"], hidden, where=keep)
        return values

    def total(scale: Array, params: Any, hidden: Array) -> Array:
        specs = {"mesh": MESH, "in_specs": (P(), P("data"), P(), P("data"))}
        split = jax.shard_map(each, **specs, out_specs=P("data"))
        return jnp.sum(split(params, hidden, scale, keep))

    def whole(scale: Array, params: Any, hidden: Array) -> Array:
        rows = jnp.tanh(hidden @ params["kernel"] * scale)
        return jnp.sum(jnp.where(keep[:, None], rows, 0.0))

    def both(fn: Callable[..., Any]) -> Callable[..., Any]:
        along = lambda scale, *args: jax.jvp(lambda s: fn(s, *args), (scale,), (scale,))  # noqa: E731
        return lambda *args: (along(*args), jax.grad(fn, (0, 1, 2))(*args))

    args = jnp.array(0.75), {"kernel": FLOATS[0]["kernel"]}, FLOATS[1]
    assert_close(jax.jit(both(total))(*args), interpreted(both(whole))(*args))


def test_sharded_rows_and_classes_on_four_devices() -> None:
    """The right numbers where classes are split too; rows that are sharded are never gathered."""
    mesh = jax.make_mesh((2, 2), ("data", "classes"), axis_types=(AxisType.Auto,) * 2)
    hidden, labels, kernel = random(0, 32, D), jnp.arange(32) % K, random(1, D, 2 * K)

    def head(kernel: Array, hidden: Array, labels: Array) -> Array:
        return cross_entropy(hidden @ kernel, labels)

    def split_head(kernel: Array, hidden: Array, labels: Array) -> Array:
        logits = hidden @ kernel
        largest = lax.pmax(lax.stop_gradient(logits).max(axis=1), "classes")
        total = lax.psum(jnp.exp(logits - largest[:, None]).sum(axis=1), "classes")
        first = lax.axis_index("classes") * logits.shape[1]
        classes = lax.broadcasted_iota(jnp.int32, logits.shape, 1) + first
        picked = jnp.where(classes == labels[:, None], logits, jnp.zeros_like(logits)).sum(axis=1)
        return largest + jnp.log(total) - lax.psum(picked, "classes")

    def local(kernel: Array, hidden: Array, labels: Array) -> Array:
        return lax.psum(jl.blockwise_sum(split_head, block_size=5)(kernel, hidden, labels), "data")

    specs = (P(None, "classes"), P("data"), P("data"))
    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P())
    auto = jl.blockwise_sum(head, block_size=8)
    for transform in (jax.value_and_grad, jax.hessian):
        whole = transform(lambda *args: head(*args, labels).sum(), argnums=(0, 1))
        want = interpreted(whole)(kernel, hidden)
        for fn in (split, auto):
            of = transform(lambda *args, fn=fn: fn(*args, labels), argnums=(0, 1))
            assert_close(jax.jit(of)(kernel, hidden), want)

    def place(array: Array, spec: P) -> Any:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))

    rows = place(hidden, P("data")), place(labels, P("data"))
    program = jax.jit(jax.value_and_grad(auto, argnums=(0, 1))).lower(place(kernel, P()), *rows)
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program.compile().as_text())


@KINDS
def test_export_with_a_symbolic_number_of_rows(kind: str) -> None:
    def loss(params: Any, hidden: Array, labels: Array) -> Array:
        name = f"blockwise_{kind}"
        return jnp.sum(getattr(jl, name)(head, block_size=BLOCK)(params, hidden, labels))

    (rows,) = export.symbolic_shape("rows")
    specs = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS),
        jax.ShapeDtypeStruct((rows, D), jnp.float32),
        jax.ShapeDtypeStruct((rows,), LABELS.dtype),
    ]
    exported = export.export(jax.jit(jax.value_and_grad(loss, argnums=(0, 1))))(*specs)
    reloaded = export.deserialize(exported.serialize())
    whole = interpreted(jax.value_and_grad(lambda *args: jnp.sum(head(*args)), argnums=(0, 1)))
    for n in (1, BLOCK, N):
        got = reloaded.call(PARAMS, HIDDEN[:n], LABELS[:n])
        value, gradients = whole(PARAMS, HIDDEN[:n], LABELS[:n])
        count = n if kind == "mean" else 1
        assert_close(got, jax.tree.map(lambda x, c=count: x / c, (value, gradients)))


def test_export_chooses_a_block_for_a_symbolic_number_of_rows() -> None:
    (rows,) = export.symbolic_shape("rows")
    specs = (jax.ShapeDtypeStruct((rows, D), jnp.float32), jax.ShapeDtypeStruct((rows,), jnp.int32))
    total = jl.blockwise_sum(lambda kernel, hidden, labels: cross_entropy(hidden @ kernel, labels))
    exported = export.export(jax.jit(total))(PARAMS["kernel"], *specs)
    want = cross_entropy(HIDDEN @ PARAMS["kernel"], LABELS).sum()
    assert_close(exported.call(PARAMS["kernel"], HIDDEN, LABELS), want)


# Values that fn closes over.


@KINDS
def test_differentiates_what_fn_closes_over(kind: str) -> None:
    def number(call: Callable[..., Any]) -> Callable[..., Array]:
        def of(params: Any, hidden: Array) -> Array:
            def fn(kernel: Array, rows: Array, labels: Array) -> Array:
                return head({"kernel": kernel, "bias": params["bias"]}, rows, labels)

            return jnp.sum(call(fn)(params["kernel"], hidden, LABELS))

        return of

    transform = getattr(jl, f"blockwise_{kind}")
    got = number(lambda fn: transform(fn, block_size=BLOCK))
    want = number(lambda fn: lambda *args: fn(*args) / (N if kind == "mean" else 1))
    args = (PARAMS, HIDDEN)

    def both(fn: Callable[..., Array]) -> Callable[..., Any]:
        return lambda *args: (jax.grad(fn)(*args), jax.hessian(fn)(*args))

    assert_close(jax.jit(both(jax.jit(got)))(*args), interpreted(both(want))(*args))


def test_batches_what_fn_closes_over() -> None:
    def noisy(call: Callable[..., Any]) -> Callable[..., Array]:
        def of(key: Array, scale: Array, shift: Array) -> Array:
            def fn(params: Any, hidden: Array, labels: Array) -> Array:
                noise = jax.random.normal(key, [D]) * scale
                return head(params, hidden + noise[None], (labels + shift) % K)

            return jnp.sum(call(fn)(PARAMS, HIDDEN, LABELS))

        return jax.jit(jax.vmap(jax.value_and_grad(of, argnums=1)))

    args = (jax.random.split(jax.random.key(7), 3), jnp.array([0.5, 1, 2]), jnp.arange(3))
    got = noisy(lambda fn: jl.blockwise_sum(fn, block_size=BLOCK))(*args)
    assert_close(got, noisy(lambda fn: fn)(*args))
    assert_close(noisy(lambda fn: jl.blockwise_map(fn, block_size=BLOCK))(*args), got)


# Rows: how many, which count, what they are.


@KINDS
@pytest.mark.parametrize(("rows", "block"), [(1, 4), (4, 4), (8, 4), (5, 1)])
def test_any_number_of_rows_in_blocks_of_any_size(kind: str, rows: int, block: int) -> None:
    args = (PARAMS, HIDDEN[:rows])

    def number(params: Any, hidden: Array) -> Array:
        fn = getattr(jl, f"blockwise_{kind}")(head, block_size=block)
        return jnp.sum(fn(params, hidden, LABELS[:rows]))

    def wanted(params: Any, hidden: Array) -> Array:
        return jnp.sum(head(params, hidden, LABELS[:rows])) / (rows if kind == "mean" else 1)

    got = jax.jit(jax.value_and_grad(number, argnums=(0, 1)))(*args)
    assert_close(got, interpreted(jax.value_and_grad(wanted, argnums=(0, 1)))(*args))


@KINDS
def test_no_rows(kind: str) -> None:
    fn = getattr(jl, f"blockwise_{kind}")(head)

    def number(params: Any) -> Array:
        return jnp.sum(fn(params, HIDDEN[:0], LABELS[:0]))

    assert fn(PARAMS, HIDDEN[:0], LABELS[:0]).shape == ((0,) if kind == "map" else ())
    value, gradient = jax.value_and_grad(number)(PARAMS)
    assert value == 0
    assert_close(gradient, jax.tree.map(jnp.zeros_like, PARAMS))
    if kind != "map":
        weighted = jax.grad(lambda w: fn(PARAMS, HIDDEN[:0], LABELS[:0], weights=w))
        assert weighted(WEIGHTS[:0]).shape == (0,)


KEEP = jnp.arange(N) % 3 != 0  # the first row, which would fill the blocks, doesn't count
BAD_HIDDEN = jnp.where(KEEP[:, None], HIDDEN, jnp.nan)
BAD_LABELS = jnp.where(KEEP, LABELS, -100)


def masked(params: Any, hidden: Array, labels: Array, how: str, keep: Array = KEEP) -> Array:
    mean = jl.blockwise_mean(head, block_size=BLOCK)
    if how == "where":
        return mean(params, hidden, labels, where=keep)
    dtype = {"float weights": jnp.float32, "integer weights": int, "boolean weights": bool}[how]
    return mean(params, hidden, labels, weights=keep.astype(dtype))


HOW = ["where", "float weights", "integer weights", "boolean weights"]


@pytest.mark.parametrize("how", HOW)
def test_rows_that_do_not_count_may_hold_anything(how: str) -> None:
    def wanted(params: Any, hidden: Array) -> Array:
        losses = jnp.where(KEEP, head(params, hidden, LABELS), 0.0)
        return jnp.sum(losses) / jnp.sum(KEEP.astype(jnp.float32))

    args = (PARAMS, BAD_HIDDEN, BAD_LABELS, how)

    def both(transform: Callable[..., Any]) -> Any:
        return jax.jit(transform(masked, (0, 1)), static_argnums=3)(*args)

    want = interpreted(jax.value_and_grad(wanted, (0, 1)))(PARAMS, HIDDEN)
    assert_close(both(jax.value_and_grad), want)
    if how in ("where", "float weights"):
        want = interpreted(jax.hessian(wanted))(PARAMS, HIDDEN)
        assert_close(both(lambda fn, _: jax.hessian(fn)), want)
        assert_close(both(lambda fn, _: jax.jacrev(jax.jacrev(fn))), want)


@pytest.mark.parametrize("how", HOW)
def test_no_row_that_counts(how: str) -> None:
    hidden = jnp.full_like(HIDDEN, jnp.nan)
    args = (PARAMS, hidden, BAD_LABELS, how, jnp.zeros([N], bool))
    value, gradients = jax.jit(jax.value_and_grad(masked, (0, 1)), static_argnums=3)(*args)
    assert value == 0
    assert_close(gradients, jax.tree.map(jnp.zeros_like, (PARAMS, hidden)))


def test_a_row_whose_weights_are_nan_is_masked() -> None:
    weights = jnp.where(KEEP, WEIGHTS, jnp.nan)

    def mean(params: Any, weights: Array) -> Array:
        fn = jl.blockwise_mean(head, block_size=BLOCK)
        return fn(params, BAD_HIDDEN, BAD_LABELS, where=KEEP, weights=weights)

    value, (gradient, by_weight) = jax.jit(jax.value_and_grad(mean, (0, 1)))(PARAMS, weights)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradient, by_weight)))
    assert np.all((by_weight == 0) == ~KEEP)


def test_a_zero_weight_has_its_own_derivatives() -> None:
    # Reweighting examples differentiates the gradient at weights that are all 0.
    zero = jnp.where(KEEP, WEIGHTS, 0.0)
    args = (PARAMS, HIDDEN, zero)
    assert_close(jax.jit(jax.grad(blockwise, 2))(*args), interpreted(jax.grad(plain, 2))(*args))

    def mixed(fn: Callable[..., Any]) -> Callable[..., Any]:
        return jax.jit(jax.jacrev(jax.grad(fn), 2))

    assert_close(mixed(blockwise)(*args), mixed(plain)(*args))


def test_several_row_dimensions() -> None:
    hidden, labels = HIDDEN[:10].reshape(2, 5, D), LABELS[:10].reshape(2, 5)
    keep = KEEP[:10].reshape(2, 5)
    options = {"row_ndim": 2, "block_size": BLOCK}
    losses = jax.jit(jl.blockwise_map(head, **options))(PARAMS, hidden, labels)
    assert_close(losses, jax.jit(head)(PARAMS, HIDDEN[:10], LABELS[:10]).reshape(2, 5))
    mean = jax.jit(jax.value_and_grad(jl.blockwise_mean(head, **options), argnums=1))
    value, gradient = mean(PARAMS, hidden, labels, where=keep)
    assert_close(value, losses.mean(where=keep))
    halves = jnp.array([[1.0], [3.0]])
    got = jax.jit(jl.blockwise_sum(head, **options))(PARAMS, hidden, labels, weights=halves)
    assert_close(got, jnp.sum(losses * jnp.broadcast_to(halves, losses.shape)))
    assert gradient.shape == hidden.shape


def test_rows_and_params_of_any_kind() -> None:
    keys = jax.random.split(jax.random.key(5), N)

    def fn(params: Any, rows: dict[str, Array], flags: Array) -> tuple[Array, Array]:
        noise = jax.vmap(lambda key: jax.random.normal(key, [D]))(rows["key"])
        hidden = jnp.where(flags[:, None], rows["hidden"], noise)
        return head(
            params[0], hidden, (LABELS[0] + params[1]) % K + jnp.zeros_like(rows["id"])
        ), keys

    rows = {"key": keys, "hidden": HIDDEN, "id": jnp.arange(N)}
    params = (PARAMS, jnp.int32(2), 3.0)

    def loss(*args: Any) -> Array:
        return fn(*args)[0]

    got = jax.grad(jl.blockwise_sum(loss, block_size=BLOCK), allow_int=True)(params, rows, KEEP)
    want = jax.grad(lambda *args: loss(*args).sum(), allow_int=True)
    assert_close(got[0], jax.jit(want)(params, rows, KEEP)[0])
    losses = jax.jit(loss)(params, rows, KEEP)
    masked = jl.blockwise_mean(loss, block_size=BLOCK)(params, rows, KEEP, where=KEEP)
    assert_close(masked, losses.mean(where=KEEP))
    assert_close(jax.jit(jl.blockwise_map(loss, block_size=BLOCK))(params, rows, KEEP), losses)


def test_params_without_a_float() -> None:
    def fn(shift: Array, hidden: Array, labels: Array) -> Array:
        return head(PARAMS, hidden, (labels + shift) % K)

    total = jl.blockwise_sum(fn, block_size=BLOCK)
    args = (jnp.int32(1), HIDDEN, LABELS)
    assert_close(total(*args), fn(*args).sum())
    whole = jax.jit(jax.grad(lambda *args: fn(*args).sum(), 1))
    assert_close(jax.jit(jax.grad(total, 1))(*args), whole(*args))
    nothing = jl.blockwise_map(lambda _, hidden: hidden.sum(axis=1), block_size=BLOCK)
    assert_close(nothing(None, HIDDEN), HIDDEN.sum(axis=1))


def test_map_returns_any_pytree() -> None:
    def fn(params: Any, hidden: Array, labels: Array) -> Any:
        logits = hidden @ params["kernel"]
        return {"logits": logits, "best": logits.argmax(axis=1), "sure": labels > 2}, None

    got = jl.blockwise_map(fn, block_size=BLOCK)(PARAMS, HIDDEN, LABELS)
    want = fn(PARAMS, HIDDEN, LABELS)
    assert got[1] is None
    assert_close(got[0]["logits"], want[0]["logits"])
    assert (got[0]["best"] == want[0]["best"]).all()
    assert (got[0]["sure"] == want[0]["sure"]).all()


# Auxiliary values.


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_auxiliary_values_beside_the_loss(kind: str) -> None:
    fn = getattr(jl, f"blockwise_{kind}")(head_and_logits, block_size=BLOCK, has_aux=True)
    (value, aux), gradient = jax.value_and_grad(fn, has_aux=True)(
        PARAMS, HIDDEN, LABELS, weights=WEIGHTS
    )
    want, wanted_gradient = jax.value_and_grad(plain)(*FLOATS, kind=kind)
    assert_close(value, want)
    assert_close(gradient, wanted_gradient)
    wanted = head_and_logits(PARAMS, HIDDEN, LABELS)[1]
    weights = WEIGHTS / (WEIGHTS.sum() if kind == "mean" else 1)
    assert_close(aux["hit"], jnp.sum(weights * wanted["hit"].astype(jnp.float32)))
    assert_close(aux["logits"], jnp.sum(weights[:, None] * wanted["logits"], axis=0))


def test_auxiliary_values_are_not_differentiated() -> None:
    fn = jl.blockwise_mean(head_and_logits, block_size=BLOCK, has_aux=True)

    def aux(*args: Any) -> Array:
        return fn(*args[:2], LABELS, weights=args[2])[1]["logits"].sum()

    for transform in (jax.grad, jax.jacfwd):
        gradient = jax.jit(transform(aux, (0, 1, 2)))(*FLOATS)
        assert_close(gradient, jax.tree.map(jnp.zeros_like, FLOATS))

    def gradient_of(params: Any) -> Any:
        return jax.grad(fn, has_aux=True)(params, HIDDEN, LABELS)

    second = jax.jit(jax.jacfwd(lambda params: gradient_of(params)[1]["logits"]))(PARAMS)
    assert all((x == 0).all() for x in jax.tree.leaves(second))


def test_masked_rows_do_not_reach_the_auxiliary_values() -> None:
    fn = jl.blockwise_mean(head_and_logits, block_size=BLOCK, has_aux=True)
    _, aux = fn(PARAMS, BAD_HIDDEN, BAD_LABELS, where=KEEP)
    wanted = head_and_logits(PARAMS, HIDDEN, LABELS)[1]
    assert_close(aux["hit"], wanted["hit"].mean(where=KEEP))


# dtypes.


@pytest.mark.parametrize("transform", ["grad", "hvp", "map"])
def test_gradients_of_bfloat16_params_are_summed_in_float32(transform: str) -> None:
    # Every row has the same gradient. A bfloat16 sum of 512 blocks of one row stops growing at 256,
    # where half a unit in the last place is more than the 1 that a row adds; float32 is exact.
    rows = jnp.ones([512], jnp.bfloat16)

    def loss(param: Array, row: Array) -> Array:
        return param * row if transform != "hvp" else param * param * row / 2

    def total(param: Array) -> Array:
        if transform == "map":
            return jl.blockwise_map(loss, block_size=1)(param, rows).astype(jnp.float32).sum()
        return jl.blockwise_sum(loss, block_size=1)(param, rows)

    param = jnp.ones([], jnp.bfloat16)
    derivative = jax.grad(jax.grad(total)) if transform == "hvp" else jax.grad(total)
    result = jax.jit(derivative)(param)
    assert result.dtype == jnp.bfloat16
    assert result == 512


def test_accumulate_dtype_trades_accuracy_for_memory() -> None:
    rows = jnp.ones([512], jnp.bfloat16)
    options = {"block_size": 1, "accumulate_dtype": jnp.bfloat16}
    for transform in (jl.blockwise_sum, jl.blockwise_mean):
        total = transform(lambda param, row: param * row, **options)
        gradient = jax.jit(jax.grad(total))(jnp.ones([], jnp.bfloat16), rows)
        assert gradient == (256 if transform is jl.blockwise_sum else 0.5)
    # It never narrows: float32 params are summed in float32.
    total = jl.blockwise_sum(lambda param, row: param * row.astype(jnp.float32), **options)
    assert jax.grad(total)(jnp.float32(1), rows) == 512


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_sums_are_float32(dtype: Any) -> None:
    rows = jnp.ones([5], dtype)
    total = jl.blockwise_sum(lambda param, row: param * row, block_size=2)
    assert total(jnp.ones([], dtype), rows).dtype == jnp.float32
    assert jax.grad(total)(jnp.ones([], dtype), rows).dtype == dtype
    each = jl.blockwise_map(lambda param, row: param * row, block_size=2)
    assert each(jnp.ones([], dtype), rows).dtype == dtype


@pytest.mark.usefixtures("x64")
def test_float64() -> None:
    args = jax.tree.map(lambda x: x.astype(jnp.float64), FLOATS)
    got = jax.jit(jax.value_and_grad(blockwise, (0, 1, 2)))(*args)
    want = jax.jit(jax.value_and_grad(plain, (0, 1, 2)))(*args)
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(got))
    assert_close(got, want, ulps=100 * 2**-29)


# Cost.


def count_dots(jaxpr: Any) -> int:
    inner = [p for eqn in jaxpr.eqns for p in eqn.params.values() if hasattr(p, "eqns")]
    own = sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns)
    return own + sum(map(count_dots, inner))


@pytest.mark.parametrize(
    ("kind", "value", "gradient", "jvp"),
    [("sum", 1, 3, 3), ("mean", 1, 3, 3), ("map", 1, 4, 3)],
)
def test_number_of_matrix_products(kind: str, value: int, gradient: int, jvp: int) -> None:
    def number(params: Any, hidden: Array) -> Array:
        return jnp.sum(blockwise(params, hidden, WEIGHTS, kind=kind))

    args = FLOATS[:2]
    assert count_dots(jax.make_jaxpr(number)(*args)) == value
    reverse = jax.make_jaxpr(jax.value_and_grad(number, argnums=(0, 1)))
    assert count_dots(reverse(*args)) == gradient
    forward = jax.make_jaxpr(lambda *args: jax.jvp(number, args, args))
    assert count_dots(forward(*args)) == jvp


def seen_rows(features: int, classes: int, rows: int, **options: Any) -> int:
    """How many rows a head of some size sees."""
    seen = []

    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        seen.append(hidden.shape[0])
        return cross_entropy(hidden @ kernel, labels)

    shapes = [(features, classes), (rows, features)]
    specs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32)
    jax.eval_shape(jl.blockwise_sum(fn, **options), *specs, labels)
    return seen[-1]


@pytest.mark.parametrize(
    ("features", "classes", "rows", "expected"),
    [
        (1024, 32000, 4096, 512),  # 8 blocks, each half as large as the kernel
        (64, 65536, 4096, 256),  # never fewer than 256 rows while there are more
        (8192, 65536, 16384, 2048),  # never more than 2048
        (64, 1000, 8192, 8192),  # 31 MiB of logits: one block
        (512, 32000, 100, 100),  # fewer rows than a block
        (1024, 32000, 525, 263),  # evened out: 263 and 262 rows, not 512 and 13
    ],
)
def test_default_block_size(features: int, classes: int, rows: int, expected: int) -> None:
    assert seen_rows(features, classes, rows) == expected


@pytest.mark.parametrize(
    ("kind", "features", "classes", "rows", "expected"),
    [
        ("TPU v5 lite", 1024, 32000, 8192, 1024),  # as many as hide the gradient's traffic
        ("NVIDIA H100 80GB HBM3", 1024, 32000, 8192, 1024),
        ("TPU v5 lite", 8192, 65536, 16384, 2048),  # more where the params are large
        ("TPU v5 lite", 256, 65536, 8192, 512),  # the logits as large as params and gradients
        ("TPU v5 lite", 64, 65536, 4096, 256),
        ("TPU v5 lite", 1024, 32000, 600, 600),
        ("TPU v6 lite", 4096, 32000, 32768, 4096),
        ("TPU v6 lite", 4096, 32000, 8192, 2048),  # a quarter of the rows
        ("TPU v6 lite", 4096, 32000, 2048, 2048),  # half as large as the params, as anywhere
        ("TPU v6 lite", 1024, 32000, 2048, 1024),
        ("cpu", 1024, 32000, 8192, 512),
    ],
)
def test_default_block_size_on_a_device(
    kind: str, features: int, classes: int, rows: int, expected: int
) -> None:
    fields = inspect.signature(jax.sharding.AbstractDevice).parameters
    device = jax.sharding.AbstractDevice(**{**dict.fromkeys(fields), "device_kind": kind})
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert seen_rows(features, classes, rows) == expected


def test_the_default_device_may_be_chosen() -> None:
    for device in ("cpu", jax.devices("cpu")[-1]):
        with jax.default_device(device):
            assert seen_rows(1024, 32000, 4096) == 512


def test_block_size_overrides_the_default() -> None:
    assert seen_rows(512, 32000, 4096, block_size=128) == 128


# What is refused.


def test_refuses_what_is_not_one_value_per_row() -> None:
    total, each = jl.blockwise_sum(head), jl.blockwise_map(head)
    with pytest.raises(
        ValueError, match=r"rows must share their first 1 dimensions, got float32\["
    ):
        total(PARAMS, HIDDEN, LABELS[:-1])
    with pytest.raises(ValueError, match="rows must share their first 1 dimensions, got no array"):
        each(PARAMS)
    with pytest.raises(ValueError, match=r"first 2 dimensions, got float32\[11,3\], int32\[11\]"):
        jl.blockwise_mean(head, row_ndim=2)(PARAMS, HIDDEN, LABELS)
    with pytest.raises(ValueError, match=r"weights must broadcast to \[11\], got float32\[10\]"):
        total(PARAMS, HIDDEN, LABELS, weights=WEIGHTS[:-1])
    with pytest.raises(TypeError, match="where must be boolean"):
        jl.blockwise_mean(head)(PARAMS, HIDDEN, LABELS, where=WEIGHTS)
    with pytest.raises(ValueError, match="fn must return an entry for each of the 11 rows"):
        jl.blockwise_map(lambda _, hidden: hidden.sum())(None, HIDDEN)
    with pytest.raises(ValueError, match=r"fn must return one loss per row, got float32\[11,3\]"):
        jl.blockwise_sum(lambda _, hidden: hidden)(None, HIDDEN)
    with pytest.raises(TypeError, match=r"fn must return floating-point losses, got int32\[11\]"):
        jl.blockwise_sum(lambda _, labels: labels)(None, LABELS)
    with pytest.raises(TypeError, match="fn must return floating-point losses, got tuple"):
        jl.blockwise_sum(head_and_logits)(PARAMS, HIDDEN, LABELS)
    with pytest.raises(TypeError, match=r"fn must return \(loss, aux\), got "):
        jl.blockwise_sum(head, has_aux=True)(PARAMS, HIDDEN, LABELS)
    with pytest.raises(ValueError, match="block_size must be a positive int, got 0"):
        jl.blockwise_map(head, block_size=0)
    with pytest.raises(ValueError, match="row_ndim must be a positive int, got 0"):
        jl.blockwise_sum(head, row_ndim=0)


def test_value_checks_of_fn_are_reported() -> None:
    def fn(kernel: Array, hidden: Array, labels: Array) -> Array:
        return jl.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)

    mean = jl.checked(jax.jit(jax.grad(jl.blockwise_mean(fn, block_size=BLOCK))))
    kernel = PARAMS["kernel"]
    assert np.isfinite(mean(kernel, BAD_HIDDEN, BAD_LABELS, where=KEEP)).all()
    with pytest.raises(ValueError, match="labels must be in"):
        mean(kernel, HIDDEN, LABELS + 2)
